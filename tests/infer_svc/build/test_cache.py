import logging
import os
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from infer_svc.build.cache import EngineCache
from infer_svc.build.manifest import Key, Manifest
from mesh.errors import SettingsError
from tests.conftest import eventually
from tests.infer_svc.build.orders import FULL, key, manifest


@pytest.fixture
def cache(tmp_path: Path) -> EngineCache:
    made = EngineCache(tmp_path / "engines")
    made.open()
    return made


def store(cache: EngineCache, of: Key, plan: bytes = b"plan") -> Path:
    """Store an engine and return its folder."""
    with cache.locked(of):
        (cache.begin(of) / "build.log").write_text("built\n")
        return cache.commit(of, manifest(of, plan), plan).plan.parent


def test_what_was_stored_is_found(cache: EngineCache) -> None:
    assert cache.find(key()) is None
    folder = store(cache, key())
    found = cache.find(key())
    assert found is not None
    assert found.plan.read_bytes() == b"plan"
    assert found.manifest == manifest(key(), b"plan")
    assert found.runtime_cache == folder / "runtime.cache"
    assert (folder / "build.log").read_text() == "built\n"
    assert cache.find(key(target=FULL)) is None
    assert not cache.work(key()).exists()


def test_cache_is_for_its_owner_only(cache: EngineCache) -> None:
    folder = store(cache, key())
    assert stat.S_IMODE(cache.root.stat().st_mode) == 0o700
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    for name in ("model.plan", "manifest.json"):
        assert stat.S_IMODE((folder / name).stat().st_mode) == 0o600


def truncate(folder: Path) -> None:
    os.truncate(folder / "model.plan", 3)


def flip(folder: Path) -> None:
    (folder / "model.plan").write_bytes(b"plam")


def remove_plan(folder: Path) -> None:
    (folder / "model.plan").unlink()


def remove_manifest(folder: Path) -> None:
    (folder / "manifest.json").unlink()


def break_manifest(folder: Path) -> None:
    os.truncate(folder / "manifest.json", 20)


def change_key(folder: Path) -> None:
    (folder / "manifest.json").write_text(manifest(key(target=FULL), b"plan").to_json())


DAMAGE = [truncate, flip, remove_plan, remove_manifest, break_manifest, change_key]


@pytest.mark.parametrize("damage", DAMAGE, ids=lambda damage: damage.__name__)
def test_broken_or_foreign_entry_is_missing_with_a_log_line_and_is_replaced(
    cache: EngineCache, damage: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    folder = store(cache, key())
    damage(folder)
    with caplog.at_level(logging.WARNING):
        assert cache.find(key()) is None
    assert [record.getMessage() for record in caplog.records] == ["engine ignored"]
    store(cache, key(), b"new plan")
    found = cache.find(key())
    assert found is not None
    assert found.plan.read_bytes() == b"new plan"


def test_entries_are_listed_and_broken_ones_named(cache: EngineCache) -> None:
    good = store(cache, key())
    bad = store(cache, key(target=FULL))
    change_key(good)
    (bad / "manifest.json").write_text("{}")
    found = dict(cache.entries())
    assert found.keys() == {good, bad}
    assert all(isinstance(error, SettingsError) for error in found.values())
    good.joinpath("manifest.json").write_text(manifest(key(), b"plan").to_json())
    assert isinstance(dict(cache.entries())[good], Manifest)
    truncate(good)
    assert "its manifest says 4" in str(dict(cache.entries())[good])


def test_failed_build_leaves_its_log_and_nothing_else(cache: EngineCache) -> None:
    with cache.locked(key()):
        folder = cache.begin(key())
        (folder / "build.log").write_text("why\n")
        (folder / "model.onnx").write_text("large")
        cache.abandon(key())
    assert cache.failed_log(key()).read_text() == "why\n"
    assert not folder.exists()
    assert cache.entries() == []


def test_what_a_killed_builder_left_is_removed_by_the_next(cache: EngineCache) -> None:
    (cache.begin(key()) / "build.log").write_text("half\n")
    with cache.locked(key()):
        assert list(cache.begin(key()).iterdir()) == []
    assert cache.failed_log(key()).read_text() == "half\n"


def test_salvage_keeps_the_log_of_a_killed_builder_and_leaves_one_that_works_alone(
    cache: EngineCache,
) -> None:
    (cache.begin(key()) / "build.log").write_text("half\n")
    with cache.locked(key()):
        cache.salvage(key())
        assert cache.work(key()).exists()
    cache.salvage(key())
    assert not cache.work(key()).exists()
    assert cache.failed_log(key()).read_text() == "half\n"


def test_sweep_removes_what_killed_builders_of_other_engines_left(cache: EngineCache) -> None:
    (cache.begin(key()) / "build.log").write_text("half\n")
    other = cache.begin(key(target=FULL))
    with cache.locked(key(target=FULL)):
        cache.sweep()
    assert not cache.work(key()).exists()
    assert cache.failed_log(key()).read_text() == "half\n"
    assert other.exists()


def test_logs_of_failed_builds_are_kept_up_to_a_number_the_newest_ones(
    cache: EngineCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("infer_svc.build.cache.KEPT_FAILURES", 3)
    for number in range(6):
        old = cache.root / "failed" / f"{number}.log"
        old.touch()
        os.utime(old, (number, number))
    (cache.begin(key()) / "build.log").write_text("new\n")
    cache.salvage(key())
    assert {log.stem for log in (cache.root / "failed").iterdir()} == {"4", "5", key().digest}


HOLDER = """
import sys
from pathlib import Path
from infer_svc.build.cache import EngineCache
from tests.infer_svc.build.orders import key
cache = EngineCache(Path(sys.argv[1]))
cache.open()
with cache.locked(key()):
    print("locked", flush=True)
    sys.stdin.readline()
"""


async def test_lock_of_a_process_that_is_killed_is_free(cache: EngineCache) -> None:
    words = [sys.executable, "-c", HOLDER, str(cache.root)]
    with subprocess.Popen(
        words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "locked\n"

        def kill() -> None:
            waited.append(True)
            holder.kill()

        waited: list[bool] = []
        with cache.locked(key(), kill):
            assert waited == [True]
        await eventually(lambda: holder.poll() is not None)


def test_locks_of_two_keys_are_two(cache: EngineCache) -> None:
    with cache.locked(key()), cache.locked(key(target=FULL), lambda: pytest.fail("waits")):
        pass


def test_home_folder_is_meant_by_a_tilde(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    cache = EngineCache(Path("~/.cache/trtmesh/engines"))
    cache.open()
    assert cache.root == tmp_path / ".cache/trtmesh/engines"
    assert cache.root.is_dir()


def test_folder_that_others_can_write_is_refused(tmp_path: Path) -> None:
    (tmp_path / "engines").mkdir()
    (tmp_path / "engines").chmod(0o770)
    with pytest.raises(SettingsError, match=r"written by others \(mode 770\).*INFER_ENGINE_CACHE"):
        EngineCache(tmp_path / "engines").open()


def test_folder_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(SettingsError, match=r"cannot be made: .*INFER_ENGINE_CACHE"):
        EngineCache(tmp_path / "file/engines").open()


def test_folder_with_a_file_in_the_way_is_refused(cache: EngineCache) -> None:
    (cache.root / "locks").rmdir()
    (cache.root / "locks").touch()
    with pytest.raises(SettingsError, match=r"cannot be used: .*locks.*INFER_ENGINE_CACHE"):
        EngineCache(cache.root).open()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder away")
def test_folder_of_another_user_is_refused(tmp_path: Path) -> None:
    (tmp_path / "engines").mkdir(mode=0o700)
    os.chown(tmp_path / "engines", 12345, 12345)
    with pytest.raises(SettingsError, match="belongs to user 12345, this process is user 0"):
        EngineCache(tmp_path / "engines").open()
