"""Representative data of a model: rows of its inputs, for ranges and for comparisons.

It is an `.npz` file whose arrays are named as the model's inputs, rows first; or a folder of such
files and of `<input>.npy` files. Each `.npz` is a set of its own, so texts of several lengths are
several files; the `.npy` files of a folder are one set.
"""

import hashlib
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mesh.errors import InvalidInput, SettingsError
from mesh.tensor import FLOATS, NUMPY_DTYPES, Array, Tensors, TensorSpec, check_tensors

RANDOM_ROWS = 8
RANDOM_SIZE = 16
"""Of random data, where a model leaves a size open."""
_BROKEN = (OSError, ValueError, EOFError, MemoryError, zipfile.BadZipFile, zlib.error)


@dataclass(frozen=True)
class Samples:
    """Data that was checked against a model."""

    sets: tuple[Tensors, ...]
    """Tensors by input; the sizes of two sets may differ."""
    by_rows: bool
    """Whether the first dimension is any number of rows; if not, a set is one run."""
    source: str
    """Where they are from, for reports."""

    @property
    def rows(self) -> int:
        """Rows of all sets; where there are no rows, the sets."""
        return sum(map(self.count, self.sets))

    def count(self, tensors: Tensors) -> int:
        """Return the rows of a set or batch; 1 where there are no rows."""
        return len(next(iter(tensors.values()))) if self.by_rows else 1

    def batches(self, size: int, limit: int | None = None) -> Iterator[Tensors]:
        """Yield the rows, at most so many together and in all.

        Args:
            size: largest batch.
            limit: rows in all; None: every row. Where sets differ, each gives its share.
        """
        share = None if limit is None else max(1, limit // len(self.sets))
        for one in self.sets if limit is None else self.sets[:limit]:
            if not self.by_rows:
                yield one
                continue
            rows = self.count(one)
            end = rows if share is None else min(rows, share)
            for first in range(0, end, size):
                last = min(first + size, end)
                yield {name: array[first:last] for name, array in one.items()}


def read_samples(path: Path, inputs: Sequence[TensorSpec]) -> Samples:
    """Read representative data and compare it with a model's inputs.

    Args:
        path: an .npz file or a folder.
        inputs: of the model; -1 first: rows.

    Raises:
        SettingsError: there is no data, or its names, dtypes or shapes are not the model's; the
            text names the file, what came and what was wanted.
    """
    by_rows = _by_rows(inputs)
    sets = []
    for place, tensors in _sets(path):
        try:
            check_tensors(tensors, inputs)
        except InvalidInput as err:
            raise SettingsError(f"calibration data {place}: {err}") from err
        counts = {name: len(array) if array.ndim else 1 for name, array in tensors.items()}
        if by_rows and (len(set(counts.values())) > 1 or 0 in counts.values()):
            raise SettingsError(
                f"calibration data {place} has {counts} rows, wanted as many of each input, "
                "and at least one"
            )
        _demand_finite(place, tensors)
        sets.append(tensors)
    return Samples(tuple(sets), by_rows, str(path))


def random_samples(inputs: Sequence[TensorSpec]) -> Samples:
    """Return made-up data, good to see an overflow of FP16 and for nothing finer.

    Floats are from a normal distribution, bytes and other unsigned numbers 0..255, signed numbers
    0 or 1, since every table has those two rows. Sizes that are open are 16.

    Raises:
        SettingsError: an input is of strings.
    """
    rng = np.random.default_rng(0)
    by_rows = _by_rows(inputs)
    return Samples(
        ({spec.name: _random(spec, by_rows, rng) for spec in inputs},),
        by_rows,
        "random values (no data was given)",
    )


def content_hash(path: Path) -> str:
    """Return a hash of the names, dtypes, shapes and values of calibration data.

    Raises:
        SettingsError: it cannot be read.
    """
    found = hashlib.sha256()
    for _, tensors in _sets(path):
        found.update(f"set {len(tensors)}\n".encode())
        for name, array in sorted(tensors.items()):
            found.update(f"{name!r} {array.dtype.str} {array.shape}\n".encode())
            found.update(array.tobytes())
    return found.hexdigest()


def _demand_finite(place: Path, tensors: Tensors) -> None:
    """Refuse NaN: where both models give it, the comparison would find nothing wrong."""
    for name, array in tensors.items():
        wrong = array.size - np.count_nonzero(np.isfinite(array)) if array.dtype in FLOATS else 0
        if wrong:
            raise SettingsError(
                f"calibration data {place}: {wrong} of the {array.size} numbers of {name!r} are "
                "NaN or infinite, wanted what the model is given in use"
            )


def _by_rows(inputs: Sequence[TensorSpec]) -> bool:
    return all(spec.shape and spec.shape[0] == -1 for spec in inputs)


def _sets(path: Path) -> list[tuple[Path, Tensors]]:
    if path.is_dir():
        files = sorted(path.glob("*.npz"))
        sets = [(file, _arrays(file)) for file in files]
        single = {file.stem: _array(file) for file in sorted(path.glob("*.npy"))}
        sets += [(path, single)] if single else []
    elif path.suffix == ".npz" and path.is_file():
        sets = [(path, _arrays(path))]
    else:
        sets = []
    if not sets:
        raise SettingsError(
            f"calibration data {path} is no .npz file and no folder of .npz or .npy files; give "
            "arrays named as the model's inputs, rows first"
        )
    return sets


def _arrays(path: Path) -> Tensors:
    found = _loaded(path)
    if isinstance(found, np.ndarray):
        raise SettingsError(
            f"calibration data {path} is one array without a name, wanted an .npz file as "
            "numpy.savez writes it"
        )
    return found


def _array(path: Path) -> Array:
    found = _loaded(path)
    if not isinstance(found, np.ndarray):
        raise SettingsError(f"calibration data {path} is an .npz file; name it so")
    return found


def _loaded(path: Path) -> Array | Tensors:
    """Return an array, or those of an .npz file by name."""
    try:
        loaded: Any = np.load(path, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            return loaded
        with loaded:
            found: Tensors = {name: loaded[name] for name in loaded.files}
    except _BROKEN as err:
        raise SettingsError(f"calibration data {path} cannot be read: {_told(err)}") from err
    for name, array in found.items():
        if not isinstance(array, np.ndarray):  # a file of the archive that NumPy did not write
            raise SettingsError(f"calibration data {path} has {name!r}, which is no array")
    return found


def _told(err: Exception) -> str:
    """Return an error's text; NumPy's own says how to trust the file, which nobody should."""
    return "NumPy did not write it, or not numbers" if "allow_pickle" in str(err) else str(err)


def _random(spec: TensorSpec, by_rows: bool, rng: np.random.Generator) -> Array:
    if spec.dtype == "BYTES":
        raise SettingsError(
            f"input {spec.name!r} is of strings, which cannot be made up; give calibration data"
        )
    dtype = NUMPY_DTYPES[spec.dtype]
    sizes = [RANDOM_SIZE if dim == -1 else dim for dim in spec.shape]
    if by_rows:
        sizes[0] = RANDOM_ROWS
    if dtype in FLOATS:
        return np.asarray(rng.standard_normal(sizes)).astype(dtype)
    return np.asarray(rng.integers(0, 256 if dtype.kind == "u" else 2, sizes)).astype(dtype)
