"""Calibration data is the model's, or it is refused by name."""

import io
import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from infer_svc.build.calibration import RANDOM_ROWS, content_hash, random_samples, read_samples
from mesh.errors import SettingsError
from mesh.tensor import TensorSpec, check_tensors

IDS, MASK = TensorSpec("ids", "INT64", (-1, -1)), TensorSpec("mask", "INT64", (-1, -1))
PIXELS = TensorSpec("pixels", "UINT8", (-1, 2, 2))


def ids(rows: int, length: int) -> Any:
    return np.arange(rows * length, dtype=np.int64).reshape(rows, length)


def test_npz_is_read_in_batches(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", ids=ids(5, 3), mask=ids(5, 3))
    samples = read_samples(tmp_path / "d.npz", [IDS, MASK])
    batches = list(samples.batches(2))
    assert [len(batch["ids"]) for batch in batches] == [2, 2, 1]
    np.testing.assert_array_equal(np.concatenate([b["mask"] for b in batches]), ids(5, 3))
    assert (samples.rows, samples.source) == (5, str(tmp_path / "d.npz"))


def test_folder_gives_a_set_for_each_npz_and_one_for_its_npy(tmp_path: Path) -> None:
    np.savez(tmp_path / "1.npz", ids=ids(2, 3), mask=ids(2, 3))
    np.savez(tmp_path / "2.npz", ids=ids(4, 7), mask=ids(4, 7))
    np.save(tmp_path / "ids.npy", ids(1, 2))
    np.save(tmp_path / "mask.npy", ids(1, 2))
    samples = read_samples(tmp_path, [IDS, MASK])
    assert [batch["ids"].shape for batch in samples.batches(8)] == [(2, 3), (4, 7), (1, 2)]
    assert samples.rows == 7


def test_limit_takes_a_share_of_each_set(tmp_path: Path) -> None:
    for number, length in enumerate((2, 4, 6)):
        np.savez(tmp_path / f"{number}.npz", ids=ids(10, length))
    batches = list(read_samples(tmp_path, [IDS]).batches(2, 9))
    assert [batch["ids"].shape for batch in batches] == [
        (2, 2), (1, 2), (2, 4), (1, 4), (2, 6), (1, 6),
    ]  # fmt: skip
    assert len(list(read_samples(tmp_path, [IDS]).batches(2, 2))) == 2


def test_model_without_rows_is_given_whole_sets(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", x=np.zeros((3, 4), np.float32))
    samples = read_samples(tmp_path / "d.npz", [TensorSpec("x", "FP32", (3, 4))])
    assert [batch["x"].shape for batch in samples.batches(2)] == [(3, 4)]
    assert samples.rows == 1


@pytest.mark.parametrize(
    ("arrays", "told"),
    [
        pytest.param({"pixel": np.zeros((1, 2, 2), np.uint8)}, r"\['pixel'\] came", id="name"),
        pytest.param({}, r"\[\] came, wanted \['pixels", id="nothing"),
        pytest.param(
            {"pixels": np.zeros((1, 2, 2), np.float32)}, r"is FP32.*wanted UINT8", id="dtype"
        ),
        pytest.param(
            {"pixels": np.zeros((1, 2, 3), np.uint8)}, r"\[1,2,3\], wanted .*\[-1,2,2\]", id="shape"
        ),
        pytest.param({"pixels": np.zeros((2, 2), np.uint8)}, r"\[2,2\], wanted", id="no_rows"),
        pytest.param({"pixels": np.zeros((0, 2, 2), np.uint8)}, "at least one", id="empty"),
        pytest.param({"pixels": np.zeros(2, np.complex64)}, "dtype complex64 came", id="odd_dtype"),
    ],
)
def test_array_that_is_not_the_models_is_refused(
    arrays: dict[str, Any], told: str, tmp_path: Path
) -> None:
    np.savez(tmp_path / "d.npz", **arrays)
    with pytest.raises(SettingsError, match=rf"calibration data .*d\.npz.*{told}"):
        read_samples(tmp_path / "d.npz", [PIXELS])


def test_inputs_with_different_rows_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", ids=ids(2, 3), mask=ids(3, 3))
    with pytest.raises(SettingsError, match=r"'ids': 2, 'mask': 3.*as many of each input"):
        read_samples(tmp_path / "d.npz", [IDS, MASK])


@pytest.mark.parametrize("name", ["d.npz", "d.npy"])
def test_broken_file_and_pickled_objects_are_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"no array")
    with pytest.raises(SettingsError, match=rf"{name} cannot be read"):
        read_samples(tmp_path, [PIXELS])
    with (tmp_path / name).open("wb") as file:
        odd = np.array([{}], object)
        np.savez(file, pixels=odd) if name == "d.npz" else np.save(file, odd)
    with pytest.raises(SettingsError, match=rf"{name} cannot be read: NumPy did not"):
        read_samples(tmp_path, [PIXELS])


def zipped(path: Path, name: str, content: bytes, method: int = zipfile.ZIP_STORED) -> None:
    with zipfile.ZipFile(path, "w", method) as file:
        file.writestr(name, content)


def npy(shape: tuple[int, ...]) -> bytes:
    """The beginning of an array's file, without its numbers."""
    stream = io.BytesIO()
    header = {"descr": "|u1", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(stream, header)
    return stream.getvalue()


def test_archive_with_a_file_that_is_no_array_is_refused(tmp_path: Path) -> None:
    zipped(tmp_path / "d.npz", "pixels.txt", b"hello")
    with pytest.raises(SettingsError, match=r"d\.npz has 'pixels\.txt', which is no array"):
        content_hash(tmp_path / "d.npz")


def test_array_larger_than_the_memory_is_refused(tmp_path: Path) -> None:
    zipped(tmp_path / "d.npz", "pixels.npy", npy((10**15, 2, 2)))
    with pytest.raises(SettingsError, match=r"d\.npz cannot be read: Unable to allocate"):
        content_hash(tmp_path / "d.npz")


def test_archive_whose_compressed_numbers_are_damaged_is_refused(tmp_path: Path) -> None:
    content = npy((64, 64)) + np.random.default_rng(0).bytes(64) * 64
    zipped(tmp_path / "d.npz", "pixels.npy", content, zipfile.ZIP_DEFLATED)
    raw = bytearray((tmp_path / "d.npz").read_bytes())
    raw[60:90] = b"\xff" * 30
    (tmp_path / "d.npz").write_bytes(raw)
    with pytest.raises(SettingsError, match=r"d\.npz cannot be read: Error -3"):
        content_hash(tmp_path / "d.npz")


def test_file_that_has_the_name_of_the_other_kind_is_refused(tmp_path: Path) -> None:
    with (tmp_path / "d.npz").open("wb") as file:
        np.save(file, ids(2, 3))
    with pytest.raises(SettingsError, match="one array without a name, wanted an"):
        content_hash(tmp_path / "d.npz")
    (tmp_path / "folder").mkdir()
    with (tmp_path / "folder/ids.npy").open("wb") as file:
        np.savez(file, ids=ids(2, 3))
    with pytest.raises(SettingsError, match=r"ids\.npy is an \.npz file"):
        content_hash(tmp_path / "folder")


def test_pipe_is_no_data_and_nobody_waits_for_it(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "d.npz")
    with pytest.raises(SettingsError, match=r"is no \.npz file"):
        content_hash(tmp_path / "d.npz")


@pytest.mark.parametrize("number", [np.nan, np.inf])
def test_numbers_that_are_none_are_refused(number: float, tmp_path: Path) -> None:
    array = np.ones((2, 3), np.float32)
    array[0, 1] = number
    np.savez(tmp_path / "d.npz", x=array)
    with pytest.raises(SettingsError, match="1 of the 6 numbers of 'x' are NaN or infinite"):
        read_samples(tmp_path / "d.npz", [TensorSpec("x", "FP32", (-1, 3))])


@pytest.mark.parametrize("name", ["", "none.npz", "data.txt"])
def test_path_without_data_is_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / "data.txt").write_text("no")
    with pytest.raises(SettingsError, match=r"is no \.npz file and no folder of"):
        read_samples(tmp_path / name, [PIXELS])


def test_made_up_data_fits_the_model_and_says_so() -> None:
    inputs = [IDS, PIXELS, TensorSpec("x", "FP16", (-1, 3)), TensorSpec("flag", "BOOL", (-1,))]
    samples = random_samples(inputs)
    (batch,) = samples.batches(RANDOM_ROWS)
    check_tensors(batch, inputs)
    assert samples.rows == RANDOM_ROWS
    assert "random" in samples.source
    assert set(np.unique(batch["ids"])) == {0, 1}
    assert batch["pixels"].max() > 100


def test_strings_are_not_made_up() -> None:
    with pytest.raises(SettingsError, match="input 'text' is of strings"):
        random_samples([TensorSpec("text", "BYTES", (-1,))])


def test_hash_is_of_names_dtypes_shapes_and_values(tmp_path: Path) -> None:
    given: list[dict[str, Any]] = [
        {"x": ids(2, 3)}, {"y": ids(2, 3)}, {"x": ids(3, 2)}, {"x": ids(2, 3) + 1},
        {"x": ids(2, 3).astype(np.uint64)},
    ]  # fmt: skip
    for number, arrays in enumerate(given):
        np.savez(tmp_path / f"{number}.npz", **arrays)
    assert len({content_hash(tmp_path / f"{n}.npz") for n in range(len(given))}) == len(given)
    (tmp_path / "folder").mkdir()
    np.save(tmp_path / "folder/x.npy", ids(2, 3))
    assert content_hash(tmp_path / "folder") == content_hash(tmp_path / "0.npz")
