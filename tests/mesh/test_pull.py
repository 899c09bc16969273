"""A repository of object storage, in memory here, as a folder."""

import json
import os
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import pytest

from mesh.errors import InvalidInput, StageUnavailable
from mesh.pull import NOTES, Puller


class Storage:
    """A bucket."""

    def __init__(self) -> None:
        self.files = fsspec.filesystem("memory")
        self.root = f"/bucket-{secrets.token_hex(4)}/models"
        self.url = f"memory:/{self.root}"

    def put(self, path: str, content: str) -> None:
        self.files.pipe_file(f"{self.root}/{path}", content.encode())

    def remove(self, path: str) -> None:
        self.files.rm_file(f"{self.root}/{path}")


@pytest.fixture
def storage() -> Storage:
    made = Storage()
    made.put("m/config.pbtxt", "max_batch_size: 8")
    made.put("m/1/model.onnx", "one")
    made.put("m/pipeline.yaml", "model: m")
    return made


def files(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): path.read_text()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != NOTES
    }


def test_folder_is_as_the_storage(storage: Storage, tmp_path: Path) -> None:
    puller = Puller(storage.url, tmp_path / "here")
    assert sorted(puller.pull()) == ["m/1/model.onnx", "m/config.pbtxt", "m/pipeline.yaml"]
    assert files(tmp_path / "here") == {
        "m/1/model.onnx": "one", "m/config.pbtxt": "max_batch_size: 8",
        "m/pipeline.yaml": "model: m",
    }  # fmt: skip
    assert puller.pull() == []
    storage.put("m/2/model.onnx", "two")
    storage.put("m/2/data/more", "x")
    storage.put("m/config.pbtxt", "max_batch_size: 16")
    assert sorted(puller.pull()) == ["m/2/data/more", "m/2/model.onnx", "m/config.pbtxt"]
    storage.remove("m/1/model.onnx")
    assert puller.pull() == ["m/1/model.onnx"]
    assert not (tmp_path / "here/m/1").exists()
    assert files(tmp_path / "here")["m/2/data/more"] == "x"
    assert not [path for path in (tmp_path / "here").iterdir() if path.name.startswith(".pull-")]


def test_another_process_goes_on_where_one_ended(storage: Storage, tmp_path: Path) -> None:
    Puller(storage.url, tmp_path).pull()
    assert Puller(storage.url, tmp_path).pull() == []


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_text("ond"),
        lambda path: path.unlink(),
        lambda path: path.write_text(""),
    ],
)
def test_file_that_was_damaged_comes_anew(
    storage: Storage, tmp_path: Path, damage: Callable[[Path], Any]
) -> None:
    puller = Puller(storage.url, tmp_path)
    puller.pull()
    damage(tmp_path / "m/1/model.onnx")
    assert puller.pull() == ["m/1/model.onnx"]
    assert (tmp_path / "m/1/model.onnx").read_text() == "one"


def test_without_notes_everything_comes_anew(storage: Storage, tmp_path: Path) -> None:
    puller = Puller(storage.url, tmp_path)
    puller.pull()
    (tmp_path / NOTES).write_text("{broken")
    assert len(puller.pull()) == 3
    assert json.loads((tmp_path / NOTES).read_text()).keys() == files(tmp_path).keys()


def test_new_version_appears_whole(
    storage: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    puller = Puller(storage.url, tmp_path)
    puller.pull()
    storage.put("m/2/a", "x")
    storage.put("m/2/b", "x")
    seen = []
    fetch = Puller._fetch

    def noting(self: Puller, path: str, *rest: Any) -> Any:
        seen.append((tmp_path / "m/2").exists())
        return fetch(self, path, *rest)

    monkeypatch.setattr(Puller, "_fetch", noting)
    puller.pull()
    assert seen == [False, False]
    assert sorted(os.listdir(tmp_path / "m/2")) == ["a", "b"]


def test_failure_leaves_what_there_was(
    storage: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    puller = Puller(storage.url, tmp_path)
    puller.pull()
    before = files(tmp_path)
    storage.put("m/2/model.onnx", "two")

    def broken(*_: Any) -> None:
        raise OSError("the network is gone")

    with monkeypatch.context() as patched:
        patched.setattr(puller._storage, "get_file", broken)
        with pytest.raises(StageUnavailable, match="cannot be read now: the network is gone"):
            puller.pull()
    assert files(tmp_path) == before

    def short(_: str, target: str) -> None:
        Path(target).write_text("tw")

    with monkeypatch.context() as patched:
        patched.setattr(puller._storage, "get_file", short)
        with pytest.raises(
            StageUnavailable, match=r"m/2/model.onnx has 2 bytes, the storage says 3"
        ):
            puller.pull()
    assert puller.pull() == ["m/2/model.onnx"]


def test_storage_that_is_empty_or_gone_removes_nothing(storage: Storage, tmp_path: Path) -> None:
    puller = Puller(storage.url, tmp_path)
    puller.pull()
    before = files(tmp_path)
    storage.files.rm(storage.root, recursive=True)
    with pytest.raises(StageUnavailable, match="cannot be read now"):
        puller.pull()
    assert files(tmp_path) == before


@pytest.mark.parametrize(
    ("url", "fix"),
    [("s3://bucket/models", "pip install s3fs"), ("nowhere://x", "wanted one of")],
)
def test_scheme_whose_package_is_missing_is_told(tmp_path: Path, url: str, fix: str) -> None:
    with pytest.raises(InvalidInput, match=fix):
        Puller(url, tmp_path)
