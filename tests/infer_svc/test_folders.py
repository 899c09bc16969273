"""What a model's folder has."""

import os
import shutil
import threading
from pathlib import Path

import pytest

from infer_svc.config import read_config
from infer_svc.folders import all_files, files_of, look, only_lanes, without_config
from mesh.errors import SettingsError
from tests.infer_svc import graphs
from tests.infer_svc.graphs import write_model


def test_versions_that_are_served_and_those_that_are_there(tmp_path: Path) -> None:
    text = "version_policy { latest { num_versions: 2 } }"
    found = look(write_model(tmp_path, "m", graphs.identity(), text, versions=("1", "2", "3")))
    assert found.versions.keys() == {2, 3}
    assert found.there == {1, 2, 3}
    assert found.parts == ()


def test_files_are_those_of_the_version_and_those_that_all_share(tmp_path: Path) -> None:
    folder = write_model(tmp_path, "m", graphs.identity(), "", versions=("1", "2"))
    (folder / "1/data").mkdir()
    (folder / "1/data/part").write_text("x")
    names = {name for name, _, _ in files_of(folder, (1, 2), (1, 2))[1]}
    assert names == {"config.pbtxt", "1/model.onnx", "1/data/part"}
    before = files_of(folder, (1, 2), (1, 2))[2]
    (folder / "1/data/part").write_text("longer")
    assert files_of(folder, (1, 2), (1, 2))[2] == before
    os.utime(folder / "config.pbtxt", (1, 1))
    assert files_of(folder, (1, 2), (1, 2))[2] != before


def test_link_in_a_versions_place_is_seen_when_it_points_elsewhere(tmp_path: Path) -> None:
    folder = write_model(tmp_path, "m", graphs.identity(), "", versions=())
    for name in ("old", "new"):
        (tmp_path / name).mkdir()
    (folder / "1").symlink_to(tmp_path / "old")
    before = files_of(folder, (1, 2), (1, 2))[1]
    (folder / "1").unlink()
    (folder / "1").symlink_to(tmp_path / "new")
    assert files_of(folder, (1, 2), (1, 2))[1] != before


def test_files_that_go_while_they_are_listed_are_left_out(tmp_path: Path) -> None:
    folder = write_model(tmp_path, "m", graphs.identity(), "")
    (folder / "nowhere").symlink_to("gone")
    stop = threading.Event()

    def change() -> None:
        while not stop.is_set():
            (folder / "2/deep").mkdir(parents=True)
            (folder / "2/deep/file").write_text("x")
            shutil.rmtree(folder / "2")

    changing = threading.Thread(target=change)
    changing.start()
    try:
        for _ in range(300):
            assert {"config.pbtxt", "1/model.onnx"} <= {name for name, _, _ in all_files(folder)}
    finally:
        stop.set()
        changing.join()


def test_folder_that_cannot_be_listed_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_model(tmp_path, "m", graphs.identity(), "")

    def scandir(path: Path) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(SettingsError, match=r"files of .*/m cannot be listed: .*denied"):
        look(folder)


def test_folder_that_is_no_model_is_told(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="no ModelConfig"):
        look(write_model(tmp_path, "m", graphs.identity(), "max_batch_size: x"))


@pytest.mark.parametrize(
    ("old", "new", "lanes"),
    [
        ("", "instance_group [ { count: 3 } ]", 3),
        ("instance_group [ { count: 3 } ]", "", 1),
        ("", "instance_group [ { count: 1 }, { count: 2 } ]", 3),
        ("", "max_batch_size: 4 instance_group [ { count: 3 } ]", None),
        ("", "instance_group [ { count: 3 kind: KIND_GPU } ]", None),
        (
            "instance_group [ { gpus: [ 0 ] } ]", "instance_group [ { gpus: [ 0 ] count: 2 } ]", 2,
        ),
        (
            "instance_group [ { gpus: [ 0, 1 ] } ]",
            "instance_group [ { gpus: [ 0, 1 ] count: 2 } ]", None,
        ),
    ],
)  # fmt: skip
def test_config_in_which_only_lanes_have_changed(
    tmp_path: Path, old: str, new: str, lanes: int | None
) -> None:
    before = read_config(write_model(tmp_path / "a", "m", None, old))
    after = read_config(write_model(tmp_path / "b", "m", None, new))
    assert only_lanes(before, after) == lanes


def test_files_without_the_config() -> None:
    files = frozenset({("config.pbtxt", 1, 1), ("1/model.onnx", 2, 2)})
    assert without_config(files) == {("1/model.onnx", 2, 2)}
