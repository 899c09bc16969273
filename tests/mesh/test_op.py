"""An op is made from its name and parameters, and what cannot be is told by name."""

from pathlib import Path

import numpy as np
import pytest

from mesh.errors import InvalidInput, NotFound
from mesh.op import make_op
from tests.mesh.ops import OPS, Scale


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A model repository with a file, beside a file that is not of it."""
    (tmp_path / "outside.txt").touch()
    (tmp_path / "models-old").mkdir()
    (tmp_path / "models-old/labels.txt").touch()
    root = tmp_path / "models"
    (root / "digits").mkdir(parents=True)
    (root / "digits/labels.txt").touch()
    return root


def test_parameters_are_those_of_the_json(repository: Path) -> None:
    op = make_op(OPS, "scale", b'{"factor": 3}', repository)
    outcome = op({"x": np.ones((1, 2), np.float32)}, {})
    assert outcome.tensors["x"].tolist() == [[3, 3]]


@pytest.mark.parametrize("parameters", [b"", b"{}"], ids=["empty", "no_parameters"])
def test_without_parameters_there_are_the_defaults(parameters: bytes, repository: Path) -> None:
    assert make_op(OPS, "scale", parameters, repository) == Scale()


def test_unknown_op_is_told_with_those_there_are(repository: Path) -> None:
    with pytest.raises(NotFound, match=r"op 'sacle' .* \['fail', 'gate', 'scale'\]"):
        make_op(OPS, "sacle", b"", repository)


@pytest.mark.parametrize(
    ("parameters", "match"),
    [
        pytest.param(b'{"facktor": 3}', "op 'scale': facktor: Unexpected keyword", id="unknown"),
        pytest.param(b'{"factor": "x"}', r"op 'scale': factor: .* \(came 'x'\)", id="value"),
        pytest.param(b'{"factor": null}', "op 'scale': factor: ", id="null"),
        pytest.param(b"{", "parameters of op 'scale' are no JSON", id="no_json"),
        pytest.param(b"\xff", "parameters of op 'scale' are no JSON", id="no_text"),
        pytest.param(b"[1]", "op 'scale': parameters: ", id="list"),
        pytest.param(b'"factor"', "op 'scale': parameters: ", id="string"),
    ],
)
def test_parameters_that_do_not_fit_are_refused_by_name(
    parameters: bytes, match: str, repository: Path
) -> None:
    with pytest.raises(InvalidInput, match=match):
        make_op(OPS, "scale", parameters, repository)


def test_every_wrong_parameter_is_told_at_once(repository: Path) -> None:
    with pytest.raises(InvalidInput, match=r"factor: .*; other: "):
        make_op(OPS, "scale", b'{"factor": "x", "other": 1}', repository)


@pytest.mark.parametrize("path", ["digits/labels.txt", "./digits/../digits/labels.txt", "digits"])
def test_path_is_one_of_the_repository(path: str, repository: Path) -> None:
    op = make_op(OPS, "scale", b'{"labels": "%s"}' % path.encode(), repository)
    assert isinstance(op, Scale)
    assert op.labels is not None
    assert op.labels.exists()
    assert op.labels.is_absolute()


@pytest.mark.parametrize(
    "path",
    [
        "../outside.txt",
        "digits/../../outside.txt",
        "/etc/passwd",
        "..",
        "../models-old/labels.txt",
    ],
)
def test_path_outside_the_repository_is_refused(path: str, repository: Path) -> None:
    with pytest.raises(InvalidInput, match=r"labels: .*is outside the model repository"):
        make_op(OPS, "scale", b'{"labels": "%s"}' % path.encode(), repository)


@pytest.mark.parametrize("path", ["digits/lables.txt", "other/labels.txt"])
def test_file_that_is_not_there_is_refused_with_its_path(path: str, repository: Path) -> None:
    with pytest.raises(InvalidInput, match=f"{path} is not there"):
        make_op(OPS, "scale", b'{"labels": "%s"}' % path.encode(), repository)


def test_repository_may_be_a_relative_path(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(repository.parent)
    op = make_op(OPS, "scale", b'{"labels": "digits/labels.txt"}', Path("models"))
    assert isinstance(op, Scale)
    assert op.labels == repository / "digits/labels.txt"
