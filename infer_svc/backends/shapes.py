"""Which shapes an engine is built for and run at: batch-size rungs and length buckets."""

import itertools
from collections.abc import Mapping, Sequence

from infer_svc.backends.trt_build import Profile
from mesh.errors import InvalidInput
from mesh.tensor import TensorSpec

Shapes = Mapping[str, tuple[int, ...]]
"""By input."""


def rungs(max_rows: int) -> list[int]:
    """Return the batch sizes that are run: powers of two, and the largest."""
    powers = itertools.takewhile(lambda rows: rows < max_rows, (2**n for n in itertools.count()))
    return [*powers, max_rows]


def profiles_of(
    inputs: Sequence[TensorSpec], max_rows: int, lengths: Sequence[int]
) -> list[Profile]:
    """Return an optimization profile for each length, or one where every size is fixed.

    The best shape is the largest: a server's batches are full when it matters, and what is shorter
    is padded to the length of its bucket anyway.

    Args:
        inputs: as the ONNX file declares them.
        max_rows: largest batch; 0: the first dimension is none of rows.
        lengths: buckets of the sizes that are not fixed, the smallest first.
    """
    skip = 1 if max_rows else 0
    dynamic = any(-1 in spec.shape[skip:] for spec in inputs)
    rows = ((1,), (max_rows,)) if max_rows else ((), ())

    def sizes(spec: TensorSpec, rows: tuple[int, ...], length: int) -> tuple[int, ...]:
        return (*rows, *(length if dim == -1 else dim for dim in spec.shape[skip:]))

    def least(spec: TensorSpec, length: int) -> tuple[int, ...]:
        found = sizes(spec, rows[0], length)
        return (1, *found[1:]) if spec.shape[0] == -1 else found  # as `padded` has it

    return [
        {
            spec.name: (
                least(spec, length),
                sizes(spec, rows[1], length),
                sizes(spec, rows[1], length),
            )
            for spec in inputs
            if -1 in spec.shape
        }
        for length in (lengths if dynamic else lengths[:1])
    ]


def fit(given: Shapes, declared: Shapes, limits: Sequence[Shapes]) -> tuple[int, Shapes]:
    """Return the smallest profile that has room for a batch, and the shapes that it is padded to.

    Args:
        given: shapes of the batch.
        declared: shapes of the engine's inputs; -1 is any size.
        limits: largest shapes of each profile.

    Raises:
        InvalidInput: no profile has room.
    """
    for index, largest in enumerate(limits):
        if all(
            size <= limit
            for name, shape in given.items()
            for size, limit in zip(shape, largest[name], strict=True)
        ):
            return index, {
                name: padded(given[name], largest[name], dims) for name, dims in declared.items()
            }
    raise InvalidInput(
        f"shapes {dict(given)} came, wanted at most {dict(limits[-1])}; the engine was built for "
        "no larger ones: change max_batch_size or length_buckets in config.pbtxt"
    )


def padded(
    shape: tuple[int, ...], limits: tuple[int, ...], dims: tuple[int, ...]
) -> tuple[int, ...]:
    """Return the shape that a tensor is run at: rows of the next rung, lengths of the bucket."""
    sizes = [
        limit if dim == -1 else size for size, limit, dim in zip(shape, limits, dims, strict=True)
    ]
    if dims and dims[0] == -1:
        sizes[0] = next(rows for rows in rungs(limits[0]) if rows >= shape[0])
    return tuple(sizes)


def cropping(given: Shapes, run: Shapes) -> dict[tuple[int, int], int]:
    """Return the size that each padded size stands for, by axis and padded size.

    An output's open size is that of an input on the same axis, as a text's length is.
    """
    return {
        (axis, large): size
        for name, shape in given.items()
        for axis, (size, large) in enumerate(zip(shape, run[name], strict=True))
    }
