"""Which versions are served: Triton's version_policy."""

from pathlib import Path

import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2 as triton

from infer_svc.versions import NEWEST_ONE, Policy, policy_of, versions_of, wanted
from mesh.errors import SettingsError


def parsed(text: str) -> Policy:
    return policy_of(text_format.Parse(text, triton.ModelConfig()))


@pytest.mark.parametrize(
    ("text", "served"),
    [
        ("", [10]),
        ("version_policy { latest { } }", [10]),
        ("version_policy { latest { num_versions: 2 } }", [3, 10]),
        ("version_policy { latest { num_versions: 9 } }", [1, 3, 10]),
        ("version_policy { all { } }", [1, 3, 10]),
        ("version_policy { specific { versions: [ 3, 1 ] } }", [1, 3]),
        ("version_policy { specific { versions: [ 3, 7 ] } }", [3]),
    ],
)
def test_policy_says_which_versions_are_served(text: str, served: list[int]) -> None:
    assert wanted(Path("m"), [1, 3, 10], parsed(text)) == served


def test_without_a_policy_it_is_the_newest_one() -> None:
    assert parsed("") == NEWEST_ONE


@pytest.mark.parametrize("versions", ["", "versions: 0", "versions: -3"])
def test_policy_that_names_no_version_is_refused(versions: str) -> None:
    with pytest.raises(ValueError, match="wanted at least one, from 1"):
        parsed(f"version_policy {{ specific {{ {versions} }} }}")


def test_version_that_is_not_there_is_told() -> None:
    with pytest.raises(SettingsError, match=r"versions \[1\], its version_policy wants \[2\]"):
        wanted(Path("m"), [1], Policy(named=(2,)))
    with pytest.raises(SettingsError, match="'m' has no version: wanted a folder m/1"):
        wanted(Path("m"), [], NEWEST_ONE)


def test_only_folders_with_a_number_from_one_are_versions(tmp_path: Path) -> None:
    for name in ("1", "12", "0", "01", "3.tmp", "warmup"):
        (tmp_path / name).mkdir()
    (tmp_path / "2").write_text("a file")
    assert versions_of(tmp_path) == [1, 12]
