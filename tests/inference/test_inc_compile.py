"""Machine code of an int8 graph: same answers in any shape, kept for the next process, no compiler, no surprise."""

from __future__ import annotations

import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
import torch._inductor.config
from transformers import AutoConfig

from optimum_qala import INCQuaLAMiniLMForQuestionAnswering
from optimum_qala._compat import is_available
from optimum_qala.errors import BackendError, CheckpointError, UnknownBudgetError
from optimum_qala.inference import inc, inc_compile, inc_programs
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


@pytest.fixture
def refused(monkeypatch):
    """Compiling anything fails."""

    def refuse(*arguments):
        raise AssertionError("it was compiled again")

    monkeypatch.setattr(inc_compile, "_compile", refuse)


def test_another_process_takes_it_from_the_cache(compiled, folder, cache, refused):
    again = INCQuaLAMiniLMForQuestionAnswering.from_pretrained(folder)
    again.compile(["fast"], cache_dir=cache)
    batch = random_batch(1, 2, 30, 140)
    assert torch.equal(logits(again, batch, "fast"), logits(compiled, batch, "fast"))
    with pytest.raises(AssertionError, match="compiled again"):
        again.compile(["shallow"], cache_dir=cache)


@pytest.mark.usefixtures("refused")
def test_loading_may_compile(compiled, folder, cache, monkeypatch):
    monkeypatch.setattr(inc_compile.constants, "HF_HOME", str(cache.parent.parent))
    config = AutoConfig.from_pretrained(folder)
    del config.budgets["shallow"]
    again = INCQuaLAMiniLMForQuestionAnswering.from_pretrained(folder, config=config, compile=True)
    assert again.compiled_exits == {None}
    batch = random_batch(1, 2, 30, 140)
    assert torch.equal(logits(again, batch, "fast"), logits(compiled, batch, "fast"))
    with pytest.raises(AssertionError, match="compiled again"):  # "shallow" runs another number of layers
        INCQuaLAMiniLMForQuestionAnswering.from_pretrained(folder, compile=True)


def test_loading_says_what_not_compiling_costs(folder, monkeypatch):
    messages, compiled = [], []
    monkeypatch.setattr(inc.logger, "info", messages.append)
    monkeypatch.setattr(INCQuaLAMiniLMForQuestionAnswering, "compile", lambda self: compiled.append(self))
    model = INCQuaLAMiniLMForQuestionAnswering.from_pretrained(folder, compile=True)
    assert (compiled, messages) == ([model], [])
    INCQuaLAMiniLMForQuestionAnswering.from_pretrained(folder)
    assert len(compiled) == len(messages) == 1
    assert "runs uncompiled, on the int8 kernels of torch" in messages[0]
    results = (Path(__file__).parents[2] / "docs/results/quantization/README.md").read_text(encoding="utf-8")
    for ratio in ("1.3 to 1.7 times as fast", "more than twice as fast"):
        assert ratio in messages[0]
        assert ratio in results
    monkeypatch.setattr(inc, "use_int8_kernels", lambda graph: 0)
    INCQuaLAMiniLMForQuestionAnswering.from_pretrained(folder)
    assert len(messages) == 1


@pytest.mark.usefixtures("refused")
def test_buckets_run_compiled(compiled, folder, cache, monkeypatch):
    bucketed = INCQuaLAMiniLMForQuestionAnswering.from_pretrained(folder, buckets=True)
    bucketed.compile(["fast"], cache_dir=cache)
    monkeypatch.setattr(bucketed.programs, "cut", lambda exit_layer: pytest.fail("it ran uncompiled"))
    batch = random_batch(1, 4, 90, 140)
    real = batch["attention_mask"].bool().expand(2, 4, 90)
    expected, found = (logits(model, batch, "fast")[real] for model in (compiled, bucketed))
    assert (found - expected).abs().median() < 0.002 * expected.abs().max()


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("given", [1, 5])
def test_single_tokens_run_uncompiled(compiled, folder, rows, given):
    """torch.export takes it for granted that a length that may vary is not 1."""
    batch = {
        "input_ids": torch.full((rows, given), 101),
        "attention_mask": torch.zeros(rows, given, dtype=torch.int64),
    }
    batch["attention_mask"][:, 0] = 1
    plain = INCQuaLAMiniLMForQuestionAnswering.from_pretrained(folder)
    assert torch.equal(logits(compiled, batch, "fast"), logits(plain, batch, "fast"))


@pytest.mark.parametrize("budget", ["full", "fast", "1,0.01"])
def test_two_tokens_run_compiled(compiled, budget, monkeypatch):
    monkeypatch.setattr(compiled.programs, "cut", lambda exit_layer: pytest.fail("it ran uncompiled"))
    assert logits(compiled, {"input_ids": torch.full((1, 2), 101)}, budget).isfinite().all()


@pytest.fixture
def other_threads():
    """Another number of threads than that of the compiled model."""
    before = torch.get_num_threads()
    torch.set_num_threads(before + 1)
    yield before + 1
    torch.set_num_threads(before)


def test_another_number_of_threads_is_not_what_was_compiled(compiled, folder, cache, other_threads, monkeypatch):
    messages, made = [], []
    monkeypatch.setattr(inc_programs.logger, "warning_once", messages.append)
    plain, batch = INCQuaLAMiniLMForQuestionAnswering.from_pretrained(folder), random_batch(1, 2, 30, 140)
    assert compiled.threads == other_threads
    assert compiled.compiled_exits == set()
    assert torch.equal(logits(compiled, batch, "fast"), logits(plain, batch, "fast"))
    assert f"is for {other_threads - 1} threads, but torch has {other_threads} now" in messages[0]

    def provide(file, *arguments):
        made.append(file)
        return compiled.programs.cut(None)

    monkeypatch.setattr(inc, "provide_program", provide)
    plain.compile(["fast"], cache_dir=cache)
    plain.compile(["fast"], cache_dir=cache)
    assert plain.compiled_exits == {None}
    torch.set_num_threads(other_threads - 1)
    assert plain.compiled_exits == set()
    assert compiled.compiled_exits == {None}
    plain.compile(["fast"], cache_dir=cache)
    assert len(made) == len(set(made)) == 2


def test_other_threads_of_python_run_what_is_compiled(compiled, monkeypatch):
    """Each thread has a number of threads of its own in torch."""
    monkeypatch.setattr(compiled.programs, "cut", lambda exit_layer: pytest.fail("it ran uncompiled"))
    with ThreadPoolExecutor(max_workers=1) as pool:
        pool.submit(logits, compiled, random_batch(1, 2, 30, 140), "fast").result()


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


@pytest.fixture
def damaged(compiled, cache, tmp_path):
    """A cache whose only program is cut off."""
    (program,) = cache.glob("*.pt2")
    (tmp_path / program.name).write_bytes(program.read_bytes()[:1000])
    return tmp_path


def test_program_that_does_not_load_is_compiled_again(compiled, folder, cache, damaged, monkeypatch):
    (good,) = cache.glob("*.pt2")
    messages, made = [], []
    monkeypatch.setattr(inc_compile.logger, "warning", messages.append)
    monkeypatch.setattr(
        inc_compile, "_compile", lambda graph, config, file: made.append(graph) or shutil.copyfile(good, file)
    )
    for _ in range(2):
        model = INCQuaLAMiniLMForQuestionAnswering.from_pretrained(folder)
        model.compile(["fast"], cache_dir=damaged)
        batch = random_batch(1, 2, 30, 140)
        assert torch.equal(logits(model, batch, "fast"), logits(compiled, batch, "fast"))
    assert len(messages) == len(made) == 1
    assert f"{damaged / good.name}, a compiled program, does not load (" in messages[0]
    assert made[0].output_names == tuple(inc.logit_names(None))
    assert [path.name for path in damaged.iterdir()] == [good.name]


def test_program_that_never_loads_is_refused(folder, damaged, monkeypatch):
    made = []
    monkeypatch.setattr(
        inc_compile, "_compile", lambda graph, config, file: made.append(file) or file.write_bytes(b"no program")
    )
    model = INCQuaLAMiniLMForQuestionAnswering.from_pretrained(folder)
    with pytest.raises(BackendError, match=rf"{damaged}/\w+\.pt2, a compiled program, does not load \("):
        model.compile(["fast"], cache_dir=damaged)
    assert len(made) == 1
    assert model.compiled_exits == set()


@pytest.mark.parametrize("name", ["file", "file/below"])
def test_cache_that_cannot_be_made_is_named(folder, tmp_path, name):
    (tmp_path / "file").write_text("mine")
    model = INCQuaLAMiniLMForQuestionAnswering.from_pretrained(folder)
    message = rf"^{tmp_path / name}, the cache of compiled programs, cannot be written \(.*\); name .* by cache_dir"
    with pytest.raises(BackendError, match=message):
        model.compile(["fast"], cache_dir=tmp_path / name)


def test_cache_that_cannot_be_written_is_named(folder, tmp_path, monkeypatch):
    def refuse(*arguments, **options):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(inc_compile.tempfile, "TemporaryDirectory", refuse)
    model = INCQuaLAMiniLMForQuestionAnswering.from_pretrained(folder)
    with pytest.raises(BackendError, match=r"cannot be written \(\[Errno 13\] Permission denied\)"):
        model.compile(["fast"], cache_dir=tmp_path)


def test_illegal_budgets_and_lost_files_are_refused(folder, tmp_path):
    model = INCQuaLAMiniLMForQuestionAnswering.from_pretrained(folder)
    with pytest.raises(UnknownBudgetError, match="no budget 'slow'"):
        model.compile(["slow"], cache_dir=tmp_path)
    model.files = (tmp_path / "gone.json", tmp_path / "gone.safetensors")
    with pytest.raises(CheckpointError, match="gone"):
        model.compile(["full"], cache_dir=tmp_path)
