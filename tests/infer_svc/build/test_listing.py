import argparse
import re
from pathlib import Path

import pytest

from infer_svc.build.cache import EngineCache
from infer_svc.build.listing import HEADINGS, list_command, table
from tests.infer_svc.build.orders import FULL, key, manifest


def listed(root: Path, capsys: pytest.CaptureFixture[str]) -> list[str]:
    assert list_command(argparse.Namespace(cache=root)) == 0
    return capsys.readouterr().out.splitlines()


def test_engines_are_listed_with_what_they_are_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cache = EngineCache(tmp_path / "engines")
    cache.open()
    for name, of in (("b", key()), ("a", key(target=FULL))):
        cache.begin(of)
        plan = bytes(3 * 2**19)
        cache.commit(of, manifest(of, plan, name), plan)
    lines = listed(cache.root, capsys)
    assert re.split(" {2,}", lines[0]) == list(HEADINGS)
    assert [line.split() for line in lines[1:]] == [
        ["a", "fp16", "tensorrt", "10.16.1", "sm_90", "1.5", "2026-11-26", "18:30:00", "1.5",
         key(target=FULL).digest[:12]],
        ["b", "fp16", "tensorrt_rtx", "1.5.0", "portable", "1.5", "2026-11-26", "18:30:00", "1.5",
         key().digest[:12]],
    ]  # fmt: skip
    (cache.root / key().digest / "manifest.json").unlink()
    lines = listed(cache.root, capsys)
    assert len(lines) == 3
    assert key().digest in lines[2]
    assert "is broken: manifest" in lines[2]


def test_empty_cache_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert listed(tmp_path / "engines", capsys) == [f"no engines in {tmp_path / 'engines'}"]


def test_columns_are_as_wide_as_their_longest_word() -> None:
    assert table([("a", "b"), ("long", "c"), ("d", "")]) == ["a     b", "long  c", "d"]
