"""A labels file names each class, or says in which line it does not."""

from pathlib import Path

import numpy as np
import pytest

from mesh.tensor import bytes_tensor
from postprocess_svc.ops.labels import name_classes, read_labels


def write(folder: Path, content: bytes) -> Path:
    path = folder / "labels.txt"
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    "content",
    [
        b"cat\nblue whale",
        b"cat\nblue whale\n",
        b"cat\r\nblue whale\r\n\r\n",
        b"\xef\xbb\xbfcat\n blue whale \n",
    ],
    ids=["no-last-line-end", "unix", "windows", "mark-and-spaces"],
)
def test_line_i_names_class_i(tmp_path: Path, content: bytes) -> None:
    assert read_labels(write(tmp_path, content)).tolist() == [b"cat", b"blue whale"]


def test_names_stay_whole_and_utf8(tmp_path: Path) -> None:
    content = "chaîne\u2028à vélo\n犬".encode()
    assert read_labels(write(tmp_path, content)).tolist() == content.split(b"\n")


def test_no_file_gives_no_names() -> None:
    assert read_labels(None).tolist() == []


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"", "line 1 is empty"),
        (b"\n \n", "line 1 is empty"),
        (b"cat\n\ndog\n", "line 2 is empty"),
        (b"cat\n\xff\n", "cannot be read: 'utf-8' codec"),
    ],
    ids=["empty-file", "only-line-ends", "empty-line-inside", "not-utf8"],
)
def test_refuses_what_would_misname_a_class(tmp_path: Path, content: bytes, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        read_labels(write(tmp_path, content))


def test_refuses_a_folder(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="cannot be read"):
        read_labels(tmp_path)


def test_names_have_the_shape_of_the_classes() -> None:
    named = name_classes(bytes_tensor(b"a", b"b"), np.array([[1, 0], [1, 1]]))
    assert named.tolist() == [[b"b", b"a"], [b"b", b"b"]]


def test_without_names_every_class_is_empty() -> None:
    assert name_classes(bytes_tensor(), np.array([[7, 9]])).tolist() == [[b"", b""]]
