"""Where a graph is found in a local folder; tests/hub does the same by repository id."""

from __future__ import annotations

import pytest

from optimum_qala.inference.files import SUBFOLDERS, find_config, find_graph


GRAPHS = sorted(SUBFOLDERS)


def put(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("")


@pytest.mark.parametrize("name", GRAPHS)
class TestFindGraph:
    def test_sub_folder_of_the_back_end_is_searched(self, name, tmp_path):
        put(tmp_path, f"{SUBFOLDERS[name]}/{name}")
        assert find_graph(tmp_path, name, {}) == (tmp_path / SUBFOLDERS[name] / name, {"subfolder": SUBFOLDERS[name]})

    def test_root_wins(self, name, tmp_path):
        put(tmp_path, name, f"{SUBFOLDERS[name]}/{name}")
        assert find_graph(tmp_path, name, {"token": "t"}) == (tmp_path / name, {"token": "t"})

    @pytest.mark.parametrize("subfolder", ["", "other"])
    def test_sub_folder_that_is_named_is_the_only_one(self, subfolder, name, tmp_path):
        put(tmp_path, f"{SUBFOLDERS[name]}/{name}")
        assert find_graph(tmp_path, name, {"subfolder": subfolder}) == (None, {"subfolder": subfolder})
        put(tmp_path / subfolder, name)
        assert find_graph(tmp_path, name, {"subfolder": subfolder})[0] == tmp_path / subfolder / name

    def test_other_back_end_does_not_count(self, name, tmp_path):
        other = next(graph for graph in GRAPHS if graph != name)
        put(tmp_path, f"{SUBFOLDERS[other]}/{other}", other)
        assert find_graph(tmp_path, name, {}) == (None, {})


def test_configuration_beside_the_graph_wins_over_that_of_the_root(tmp_path):
    beside = {"subfolder": "openvino"}
    put(tmp_path, "config.json")
    assert find_config(tmp_path, beside, {}) == {}
    put(tmp_path, "openvino/config.json")
    assert find_config(tmp_path, beside, {}) == beside
