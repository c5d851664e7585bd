"""Commands find the models of a folder with several back ends."""

from __future__ import annotations

import pytest

from optimum_qala.cli.finding import find_backend, size_on_disk
from optimum_qala.cli.loading import load_model
from optimum_qala.errors import CheckpointError


def put(folder, **sizes):
    folder.mkdir(parents=True, exist_ok=True)
    for name, size in sizes.items():
        (folder / name.replace("__", ".")).write_bytes(b"x" * size)


@pytest.fixture
def folder(tmp_path):
    put(tmp_path, model__safetensors=5)
    return tmp_path


def test_fastest_back_end_is_chosen_wherever_it_is(folder):
    assert find_backend(str(folder)) == "torch"
    put(folder / "inc", inc_graph__json=1)
    assert find_backend(str(folder)) == "inc"
    put(folder / "openvino", openvino_model__xml=1)
    assert find_backend(str(folder)) == "openvino"


def test_each_back_end_has_a_size_of_its_own(folder):
    put(folder / "openvino", openvino_model__xml=10, openvino_model__bin=20)
    put(folder / "inc", inc_graph__json=100, inc_weights__safetensors=200)
    sizes = {backend: size_on_disk(folder, backend) for backend in ("torch", "openvino", "inc")}
    assert sizes == {"torch": 5, "openvino": 30, "inc": 300}


def test_back_end_that_is_nowhere_is_named(folder):
    with pytest.raises(CheckpointError, match="holds no model for --backend inc: it has none of inc_graph.json"):
        load_model(str(folder), "inc")
    put(folder / "inc", inc_graph__json=1)
    with pytest.raises(CheckpointError, match="holds inc_graph.json without inc_weights.safetensors"):
        load_model(str(folder), "inc")
