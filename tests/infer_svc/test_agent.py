"""What is copied into a repository is served a moment later, and never half of it."""

import asyncio
import hashlib
import os
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from infer_svc.agent import SUMS, Agent, Mode, is_complete
from infer_svc.folders import Files, all_files
from infer_svc.repository import model_folders
from mesh.errors import MeshError, NotFound, StageUnavailable
from tests.conftest import eventually
from tests.infer_svc.graphs import write_model
from tests.infer_svc.test_models import DYNAMIC, Open, opened, put, times

SETTLED_S = 0.1


@asynccontextmanager
async def watching(root: Path, mode: Mode = "poll") -> AsyncIterator[Open]:
    async with opened(root) as one:
        agent = Agent(one.models, root, mode, SETTLED_S)
        following = asyncio.create_task(agent.run())
        await asyncio.sleep(0.2)
        yield one
        assert following.done() == (mode != "poll")
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "models").mkdir()
    write_model(tmp_path / "models", "m", times(1), DYNAMIC)
    return tmp_path / "models"


async def serves(one: Open, *wanted: tuple[float, int], model: str = "m") -> None:
    """Wait until a model says so."""
    for _ in range(200):
        try:
            if await one.says(model) in wanted:
                return
        except MeshError:
            pass
        await asyncio.sleep(0.05)
    pytest.fail(f"{model} never said {wanted}")


async def test_new_version_new_model_and_what_is_removed(root: Path) -> None:
    async with watching(root) as one:
        put(root, 2)
        await serves(one, (2, 2))
        shutil.rmtree(root / "m/2")
        await serves(one, (1, 1))
        write_model(root, "other", times(5), DYNAMIC)
        await serves(one, (5, 1), model="other")
        shutil.rmtree(root / "other")
        await eventually(lambda: one.index("other") == [])
        with pytest.raises(NotFound):
            await one.ask("other")


async def test_watch_goes_on_after_an_error(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("infer_svc.agent.AGAIN_AFTER_S", 0.05)
    failing = True

    def folders(root: Path) -> list[Path]:
        if failing:
            raise OSError("the share does not answer")
        return model_folders(root)

    async with watching(root) as one:
        with monkeypatch.context() as context:
            context.setattr("infer_svc.agent.model_folders", folders)
            put(root, 2)
            await asyncio.sleep(0.5)
            assert await one.says("m") == (1, 1)
            failing = False
            await serves(one, (2, 2))


async def test_model_whose_folder_cannot_be_read_serves_on(
    root: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def unreadable(folder: Path) -> Files:
        if folder.name == "m":
            raise OSError("stale file handle")
        return all_files(folder)

    async with watching(root) as one:
        with monkeypatch.context() as context:
            context.setattr("infer_svc.agent.all_files", unreadable)
            write_model(root, "other", times(5), DYNAMIC)
            await serves(one, (5, 1), model="other")
            assert await one.says("m") == (1, 1)
    assert "not readable" in caplog.text


async def test_folder_that_is_being_copied_is_left_alone(root: Path) -> None:
    content = times(2)
    async with watching(root) as one:
        (root / "m/2").mkdir()
        for at in range(0, len(content), 40):  # slower than a look at it, and in many pieces
            with (root / "m/2/model.onnx").open("ab") as file:
                file.write(content[at : at + 40])
            await asyncio.sleep(SETTLED_S / 2)
        await serves(one, (2, 2))
        assert all(state == "READY" for version, state in one.index() if version == "2")
        assert not one.reason("2")


async def test_change_before_an_unload_loads_nothing_again(root: Path) -> None:
    async with opened(root) as one:
        agent = Agent(one.models, root, "poll", SETTLED_S)
        following = asyncio.create_task(agent.run())
        await asyncio.sleep(0.2)
        put(root, 2)
        await agent.load("m", {})
        assert await one.says() == (2, 2)
        await agent.unload("m", parts=False)
        await asyncio.sleep(6 * SETTLED_S)
        with pytest.raises(StageUnavailable, match="unloaded"):
            await one.ask("m")
        put(root, 3)
        await serves(one, (3, 3))
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)


async def test_broken_version_is_told_and_the_old_one_serves(root: Path) -> None:
    async with watching(root) as one:
        put(root, 2, b"garbage")
        await eventually(lambda: ("2", "UNAVAILABLE") in one.index())
        assert "cannot load" in one.reason("2")
        assert await one.says() == (1, 1)
        (root / "m/2/model.onnx").write_bytes(times(2))
        await serves(one, (2, 2))


async def test_version_whose_sums_are_not_right_is_waited_for(root: Path) -> None:
    content = times(2)
    async with watching(root) as one:
        (root / "m/2").mkdir()
        digest = hashlib.sha256(content).hexdigest()
        (root / f"m/2/{SUMS}").write_text(f"{digest}  model.onnx\n")
        (root / "m/2/model.onnx").write_bytes(content[:-1])
        await asyncio.sleep(6 * SETTLED_S)
        assert one.index() == [("1", "READY")]
        (root / "m/2/model.onnx").write_bytes(content)
        await serves(one, (2, 2))


@pytest.mark.parametrize("mode", ["none", "explicit"])
async def test_other_modes_do_not_watch(root: Path, mode: Mode) -> None:
    async with watching(root, mode) as one:
        put(root, 2)
        await asyncio.sleep(6 * SETTLED_S)
        assert await one.says() == (1, 1)


async def test_explicit_loads_what_it_is_told_at_the_start(root: Path) -> None:
    write_model(root, "other", times(5), DYNAMIC)
    folders = model_folders(root)
    async with opened(root) as one:
        explicit = Agent(one.models, root, "explicit")
        assert explicit.chosen(folders, ()) == []
        assert explicit.chosen(folders, ("other",)) == [root / "other"]
        assert explicit.chosen(folders, ("*",)) == folders
        with pytest.raises(NotFound, match=r"\['none'\] are to be loaded, there are"):
            explicit.chosen(folders, ("none",))
        assert Agent(one.models, root, "poll").chosen(folders, ()) == folders


def test_sums_that_are_no_text_are_waited_for(tmp_path: Path) -> None:
    (tmp_path / SUMS).write_bytes(b"\xff\xfe")
    assert not is_complete(tmp_path)


def test_sums_are_those_of_sha256sum(tmp_path: Path) -> None:
    (tmp_path / "a b").write_text("x")
    digest = hashlib.sha256(b"x").hexdigest()
    assert is_complete(tmp_path)
    (tmp_path / SUMS).write_text(f"{digest} *a b\n")
    assert is_complete(tmp_path)
    (tmp_path / SUMS).write_text(f"{digest}  a b\n{digest}  missing\n")
    assert not is_complete(tmp_path)
    os.remove(tmp_path / SUMS)
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / SUMS).write_text(f"{digest[::-1]}  ../a b\n")
    assert not is_complete(tmp_path)
