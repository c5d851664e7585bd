"""Where a graph is found: in a local folder, or in the cache of the Hub; tests/hub does the same with a server."""

from __future__ import annotations

import pytest

from optimum_qala.errors import CheckpointError
from optimum_qala.inference.files import SUBFOLDERS, find_config, find_file, find_graph


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


COMMIT = "c" * 40


class TestCacheOnly:
    @pytest.fixture
    def repository(self, tmp_path):
        """The cache of a repository of which only the torch model was loaded."""
        folder = tmp_path / "models--org--m"
        put(folder, "refs/main", f"snapshots/{COMMIT}/config.json")
        (folder / "refs" / "main").write_text(COMMIT)
        return folder

    @pytest.fixture
    def hub(self, tmp_path):
        return {"cache_dir": str(tmp_path), "local_files_only": True}

    @pytest.mark.parametrize("name", GRAPHS)
    def test_file_that_nobody_asked_for_may_exist(self, name, repository, hub):
        unknown = (
            f"{name} of org/m is not in the cache, and the Hub does not tell whether there is one .*; load the model"
        )
        put(repository, f".no_exist/{COMMIT}/{name}")  # at the root, which says nothing about the sub-folder
        with pytest.raises(CheckpointError, match=unknown):
            find_graph("org/m", name, hub)
        put(repository, f".no_exist/{COMMIT}/{SUBFOLDERS[name]}/{name}")
        assert find_graph("org/m", name, hub) == (None, hub)
        with pytest.raises(CheckpointError, match=unknown):
            find_graph("org/m", name, hub | {"revision": "v2"})

    @pytest.mark.parametrize("name", GRAPHS)
    def test_graph_is_found_after_a_download_which_asks_for_nothing_that_is_not_there(self, name, repository, hub):
        inside = repository / "snapshots" / COMMIT / SUBFOLDERS[name]
        put(inside, name)
        beside = hub | {"subfolder": SUBFOLDERS[name]}
        assert find_graph("org/m", name, hub) == (inside / name, beside)
        assert find_config("org/m", beside, hub) == hub, "the one at the root"

    def test_file_that_many_models_lack_is_taken_as_missing(self, repository, hub):
        assert find_file("org/m", "openvino_quala_config.json", hub, optional=True) is None
