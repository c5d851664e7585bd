"""The JSON store of evaluations."""

from __future__ import annotations

import json
import os

import pytest

from optimum_qala.errors import ConfigurationError, SearchStoreError
from optimum_qala.models.length_config import LengthConfig
from optimum_qala.search.store import EvaluationStore, content_hash


FINGERPRINT = {"model": "m", "data": "d", "lengths": (1, 2)}
CONFIG = LengthConfig((1.0, 0.5))


@pytest.fixture
def path(tmp_path):
    return tmp_path / "new" / "search.json"


def saved(path):
    store = EvaluationStore(path, FINGERPRINT)
    store.put(CONFIG, cost=3, score=0.0)
    store.put(LengthConfig((0.5, 0.25)), cost=1.5)
    store.save()
    return path


def test_store_round_trip_keeps_costs_and_scores(path):
    reloaded = EvaluationStore(saved(path), FINGERPRINT)
    assert (reloaded.get_cost(CONFIG), reloaded.get_score(CONFIG)) == (3.0, 0.0)
    assert reloaded.get_cost(LengthConfig((0.5, 0.25))) == 1.5
    assert reloaded.get_score(LengthConfig((0.5, 0.25))) is None
    assert reloaded.get_cost(LengthConfig((0.5, 0.24))) is None
    assert len(reloaded) == 1


def test_store_put_keeps_what_is_not_given(path):
    store = EvaluationStore(path, FINGERPRINT)
    store.put(CONFIG, cost=3)
    store.put(CONFIG, score=7)
    assert (store.get_cost(CONFIG), store.get_score(CONFIG)) == (3.0, 7.0)


def test_store_forgets_costs_and_keeps_scores(path):
    store = EvaluationStore(saved(path), FINGERPRINT)
    store.forget_costs()
    store.save()
    reloaded = EvaluationStore(path, FINGERPRINT)
    assert (reloaded.get_cost(CONFIG), reloaded.get_score(CONFIG)) == (None, 0.0)


def test_store_key_ignores_float_noise_and_tells_neighbours_apart(path):
    store = EvaluationStore(path, FINGERPRINT)
    store.put(LengthConfig((1.0, 0.1 + 0.2)), score=7)
    assert store.get_score(LengthConfig((1.0, 0.3))) == 7
    assert store.get_score(LengthConfig((1.0, 0.30001))) is None


def test_store_tells_exit_layers_apart(path):
    store, shallow = EvaluationStore(path, FINGERPRINT), LengthConfig((1.0, 0.5, 0.5), exit_layer=2)
    store.put(LengthConfig((1.0, 0.5, 0.5)), score=7)
    store.put(shallow, score=5)
    store.save()
    reloaded = EvaluationStore(path, FINGERPRINT)
    assert reloaded.get_score(LengthConfig((1.0, 0.5, 0.5))) == 7
    assert reloaded.get_score(shallow) == 5
    assert reloaded.get_score(LengthConfig((1.0, 0.5, 0.5), exit_layer=1)) is None


def test_store_refuses_numbers_that_are_not_finite(path):
    store = EvaluationStore(path, FINGERPRINT)
    with pytest.raises(ConfigurationError, match="the cost of LengthConfig 1,0.5 is inf"):
        store.put(CONFIG, cost=float("inf"))
    with pytest.raises(ConfigurationError, match="the score of LengthConfig 1,0.5 is nan"):
        store.put(CONFIG, score=float("nan"))
    assert store.get_cost(CONFIG) is None


def test_store_opening_writes_nothing(path):
    EvaluationStore(path, FINGERPRINT).save()
    assert not path.parent.exists()


def test_store_save_leaves_no_temporary_file(path):
    saved(path)
    assert os.listdir(path.parent) == ["search.json"]


def test_store_interrupted_save_keeps_the_old_file(path, monkeypatch):
    before = saved(path).read_text()
    store = EvaluationStore(path, FINGERPRINT)
    store.put(CONFIG, score=99)

    def fail(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", fail)
        with pytest.raises(KeyboardInterrupt):
            store.save()
    assert path.read_text() == before
    assert os.listdir(path.parent) == ["search.json"]
    store.save()
    assert EvaluationStore(path, FINGERPRINT).get_score(CONFIG) == 99


def test_store_save_without_change_does_not_write(path):
    store = EvaluationStore(saved(path), FINGERPRINT)
    path.unlink()
    store.save()
    assert not path.exists()


def test_store_refuses_a_foreign_file_and_names_what_differs(path):
    before = saved(path).read_text()
    with pytest.raises(
        SearchStoreError, match=r"made with data='d', extra=None, but this search has data='e', extra=1"
    ):
        EvaluationStore(path, {**FINGERPRINT, "data": "e", "extra": 1})
    assert path.read_text() == before


def test_store_refuses_a_fingerprint_without_json_form(path):
    with pytest.raises(ConfigurationError, match="must be JSON values.*set is not JSON serializable"):
        EvaluationStore(path, {"model": {1}})


def document(**changes):
    entry = {"retention": [1.0, 0.5], "cost": 1.0, "score": 2.0}
    full = {"format": "optimum-qala search store", "version": 1, "fingerprint": FINGERPRINT, "evaluations": [entry]}
    return {**full, **changes}


def test_store_reads_the_documented_form(path):
    path.parent.mkdir()
    path.write_text(json.dumps(document()))
    assert EvaluationStore(path, FINGERPRINT).get_score(CONFIG) == 2.0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "Expecting value"),
        ('{"format": ', "Expecting value"),
        ("\udcff", "codec can't decode"),
        ("[]", 'it has no "format"'),
        (json.dumps(document(format="x")), 'it has no "format": "optimum-qala search store"'),
        (json.dumps(document(version=2)), "its version is 2, this release reads 1"),
        (json.dumps(document(fingerprint=None)), "it needs a fingerprint and a list"),
        (json.dumps(document(evaluations={})), "it needs a fingerprint and a list"),
        (json.dumps(document(evaluations=[3])), "evaluation 0: TypeError"),
        (json.dumps(document(evaluations=[{"retention": [1.0]}])), "evaluation 0: KeyError: 'cost'"),
        (
            json.dumps(document(evaluations=[{"retention": [0.5, 1.0], "cost": 1, "score": 1}])),
            "evaluation 0: LengthConfigError: retention ratio 1 of layer 1 exceeds",
        ),
        (
            json.dumps(document(evaluations=[{"retention": [1.0], "cost": "x", "score": 1}])),
            "evaluation 0: ValueError: 'x' is not a finite number",
        ),
        (
            json.dumps(document(evaluations=[{"retention": [1.0], "cost": 1, "score": float("nan")}])),
            "evaluation 0: ValueError: nan is not a finite number",
        ),
        (
            json.dumps(document(evaluations=[{"retention": [1.0], "cost": 1, "score": True}])),
            "evaluation 0: ValueError: True is not a finite number",
        ),
        (json.dumps(document(evaluations=document()["evaluations"] * 2)), "evaluation 1 repeats LengthConfig 1,0.5"),
    ],
)
def test_store_refuses_a_corrupt_file_and_leaves_it(path, text, message):
    path.parent.mkdir()
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(SearchStoreError, match=message):
        EvaluationStore(path, FINGERPRINT)
    assert path.read_bytes() == text.encode("utf-8", "surrogateescape")


def test_store_refuses_a_folder(tmp_path):
    with pytest.raises(SearchStoreError, match="cannot be read: .*Is a directory"):
        EvaluationStore(tmp_path, FINGERPRINT)


def test_content_hash_follows_content_and_not_names(tmp_path):
    for name, text in (("a", "1"), ("b", "1"), ("c", "2")):
        (tmp_path / name).write_text(text)
    assert content_hash([tmp_path / "a"]) == content_hash([str(tmp_path / "b")])
    assert content_hash([tmp_path / "a"]) != content_hash([tmp_path / "c"])
    assert content_hash([tmp_path / "a", tmp_path / "c"]) != content_hash([tmp_path / "c", tmp_path / "a"])


def test_store_keeps_details(path):
    store = EvaluationStore(path, FINGERPRINT)
    store.put(CONFIG, score=7, details={"em": 3.5})
    store.put(CONFIG, details={"other": 1})
    store.save()
    reloaded = EvaluationStore(path, FINGERPRINT)
    assert reloaded.get_details(CONFIG) == {"em": 3.5, "other": 1.0}
    assert reloaded.get_score(CONFIG) == 7
    assert reloaded.get_details(LengthConfig((0.5, 0.25))) == {}
    with pytest.raises(ConfigurationError, match="the em of LengthConfig 1,0.5 is nan"):
        store.put(CONFIG, details={"em": float("nan")})


def test_store_reads_files_without_details(path):
    document = json.loads(saved(path).read_text())
    for entry in document["evaluations"]:
        del entry["details"]
    path.write_text(json.dumps(document))
    assert EvaluationStore(path, FINGERPRINT).get_score(CONFIG) == 0.0
