"""`trtmesh model` against an infer_svc: it speaks the same protocol as a gateway."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from mesh.cli import main
from tests.infer_svc.graphs import write_model
from tests.infer_svc.test_catalog import listening
from tests.infer_svc.test_models import DYNAMIC, put, times


@pytest.fixture
async def address(tmp_path: Path) -> AsyncIterator[str]:
    write_model(tmp_path, "m", times(1), DYNAMIC)
    write_model(tmp_path, "n", times(1), DYNAMIC)
    async with listening(tmp_path) as address:
        yield address


async def run(address: str, *words: str) -> int:
    return await asyncio.to_thread(main, ["model", *words, "--gateway", address])


async def test_status_tells_of_all_or_of_one(
    address: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert await run(address, "status") == 0
    assert capsys.readouterr().out.split() == ["m", "1", "READY", "n", "1", "READY"]
    assert await run(address, "status", "n") == 0
    assert capsys.readouterr().out.split() == ["n", "1", "READY"]
    assert await run(address, "status", "none") == 1
    assert "model 'none' is not known" in capsys.readouterr().err


async def test_model_is_loaded_and_unloaded(
    address: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    put(tmp_path, 2)
    assert await run(address, "load", "m") == 0
    assert "2  READY" in capsys.readouterr().out
    assert await run(address, "unload", "m") == 0
    out = capsys.readouterr().out
    assert "READY" not in out
    assert "unloaded" in out


async def test_version_that_cannot_be_loaded_is_told_with_its_reason(
    address: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    put(tmp_path, 2, b"garbage")
    assert await run(address, "load", "m") == 1
    assert "cannot load" in capsys.readouterr().err
    assert await run(address, "status", "m") == 0
    lines = capsys.readouterr().out.splitlines()
    assert "READY" in lines[0]
    assert "UNAVAILABLE" in lines[1] and "cannot load" in lines[1]
