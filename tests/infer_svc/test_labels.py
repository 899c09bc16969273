"""Names of classes come from a file."""

from pathlib import Path

import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2 as triton

from infer_svc.labels import labels_of

CONFIG = text_format.Parse(
    'output [ { name: "y" label_filename: "labels.txt" }, { name: "z" } ]', triton.ModelConfig()
)


def test_each_line_is_a_class(tmp_path: Path) -> None:
    (tmp_path / "labels.txt").write_text("cat\n dog \n\nMöwe")
    assert labels_of(CONFIG, tmp_path) == (("y", ("cat", "dog", "", "Möwe")),)


@pytest.mark.parametrize("content", [None, b"\xff\xfe"])
def test_file_that_cannot_be_read_is_told(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "labels.txt").write_bytes(content)
    with pytest.raises(ValueError, match="label_filename of output 'y' cannot be read"):
        labels_of(CONFIG, tmp_path)
