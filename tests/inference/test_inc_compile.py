"""Machine code of an int8 graph: same answers in any shape, kept for the next process, no compiler, no surprise."""

from __future__ import annotations

import pytest
import torch
import torch._inductor.config

from optimum_qala import INCQuaLAMiniLMForQuestionAnswering
from optimum_qala._compat import is_available
from optimum_qala.errors import BackendError, CheckpointError, UnknownBudgetError
from optimum_qala.inference import inc_compile
from optimum_qala.inference.inc_compile import default_compile_cache, program_file
from tests.inference.batches import assert_threads_agree, random_batch


pytestmark = [
    pytest.mark.skipif(not is_available("neural-compressor"), reason="needs the extra neural-compressor"),
    pytest.mark.timeout(600),
]


@pytest.fixture(scope="module")
def folder(inc_folder):
    return inc_folder


@pytest.fixture(scope="module")
def cache(compile_cache):
    return compile_cache


@pytest.fixture(scope="module")
def compiled(folder, cache):
    """The model, compiled at full depth only."""
    model = INCQuaLAMiniLMForQuestionAnswering.from_pretrained(folder)
    model.compile(["full", "fast"], cache_dir=cache)
    return model


def logits(model, batch, budget):
    output = model(**batch, budget=budget)
    return torch.stack([output.start_logits, output.end_logits])


def test_only_the_depths_asked_for_are_compiled(compiled, cache):
    assert compiled.compiled_exits == {None}
    assert len(list(cache.iterdir())) == 1


@pytest.mark.parametrize("budget", ["full", "fast", "1,0.8"])
@pytest.mark.parametrize("shape", [(1, 9), (1, 40), (3, 24)], ids=str)
def test_compiled_answers_are_those_of_the_graph(compiled, folder, shape, budget):
    batch = random_batch(0, *shape, vocab_size=140)
    plain = INCQuaLAMiniLMForQuestionAnswering.from_pretrained(folder)
    real = batch["attention_mask"].bool().expand(2, *shape)
    expected, found = (logits(model, batch, budget)[real] for model in (plain, compiled))
    # A value that lies halfway between two numbers of 8 bits may go to either.
    assert (found - expected).abs().median() < 0.002 * expected.abs().max()


def test_another_process_takes_it_from_the_cache(compiled, folder, cache, monkeypatch):
    def refuse(*arguments):
        raise AssertionError("it was compiled again")

    monkeypatch.setattr(inc_compile, "_compile", refuse)
    again = INCQuaLAMiniLMForQuestionAnswering.from_pretrained(folder)
    again.compile(["fast"], cache_dir=cache)
    batch = random_batch(1, 2, 30, 140)
    assert torch.equal(logits(again, batch, "fast"), logits(compiled, batch, "fast"))
    with pytest.raises(AssertionError, match="compiled again"):
        again.compile(["shallow"], cache_dir=cache)


def test_threads_agree(compiled):
    budgets = ["full", "fast", "shallow"]
    assert_threads_agree(
        compiled, [(random_batch(index, 2, 20 + index, 140), budgets[index % 3]) for index in range(12)]
    )


def test_files_in_the_cache_are_those_of_one_model_and_depth(folder, tmp_path):
    files = tuple(sorted(folder.glob("inc_[gw]*")))
    assert len(files) == 2
    other = tmp_path / "other"
    other.write_bytes(files[1].read_bytes()[:-1] + b"?")
    names = {
        program_file(tmp_path, given, exit_layer) for given in (files, (files[0], other)) for exit_layer in (None, 1)
    }
    assert len(names) == 4
    assert program_file(tmp_path, files, 1) in names


def test_another_number_of_threads_is_another_program(folder, tmp_path, monkeypatch):
    """Inductor writes the number into the loops of its code, or writes no parallel loops for one thread."""
    files = tuple(sorted(folder.glob("inc_[gw]*")))
    names = set()
    for threads in (1, 2):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        names.add(program_file(tmp_path, files, None))
    assert len(names) == 2


def test_another_version_is_another_program(folder, tmp_path, monkeypatch):
    """Another version may cut the same graph in another way."""
    files = tuple(sorted(folder.glob("inc_[gw]*")))
    before = program_file(tmp_path, files, None)
    monkeypatch.setattr(inc_compile, "__version__", "0.0.0")
    assert program_file(tmp_path, files, None) != before


def test_cache_is_where_hugging_face_keeps_its_own(monkeypatch, tmp_path):
    monkeypatch.setattr(inc_compile.constants, "HF_HOME", str(tmp_path))
    assert default_compile_cache() == tmp_path / "optimum_qala" / "compiled"


def test_no_compiler_is_said(folder, tmp_path):
    model = INCQuaLAMiniLMForQuestionAnswering.from_pretrained(folder)
    without = torch._inductor.config.patch({"cpp.cxx": ("no-such-compiler",)})
    message = r"needs a C\+\+ compiler, and none was found; install g\+\+ or name one in the environment variable CXX"
    with without, pytest.raises(BackendError, match=message):
        model.compile(["full"], cache_dir=tmp_path / "cache")
    assert not (tmp_path / "cache").exists()
    assert model.compiled_exits == set()
    logits(model, random_batch(2, 1, 20, 140), "full")  # goes on without


def test_what_cannot_be_compiled_leaves_nothing(folder, tmp_path, monkeypatch):
    def fail(*arguments, **options):
        raise RuntimeError("C++ compile error\nmore")

    monkeypatch.setattr("torch._inductor.aoti_compile_and_package", fail)
    model = INCQuaLAMiniLMForQuestionAnswering.from_pretrained(folder)
    with pytest.raises(BackendError, match=r"cannot compile this model \(C\+\+ compile error\); do not compile"):
        model.compile(["full"], cache_dir=tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def test_illegal_budgets_and_lost_files_are_refused(folder, tmp_path):
    model = INCQuaLAMiniLMForQuestionAnswering.from_pretrained(folder)
    with pytest.raises(UnknownBudgetError, match="no budget 'slow'"):
        model.compile(["slow"], cache_dir=tmp_path)
    model.files = (tmp_path / "gone.json", tmp_path / "gone.safetensors")
    with pytest.raises(CheckpointError, match="gone"):
        model.compile(["full"], cache_dir=tmp_path)
