"""Where tensors of steps are on a GPU: slots are rows, so that the first ones are a batch."""

from collections.abc import Mapping, Sequence

import numpy as np

from infer_svc.backends.staging import NUMBER as ID
from infer_svc.generation.stepper import CACHE, CROSSED, longest
from mesh.errors import EngineError
from mesh.tensor import NUMPY_DTYPES, TensorSpec

ALIGNED = 256
"""TensorRT wants each tensor at a multiple of so many bytes."""
START, COUNT, XLEN = 64, 96, 128
"""Elements of a piece's memory where what goes with the ids lies, each aligned."""
TEXTS = ("input_ids", "attention_mask")
"""Inputs of an encoder."""

Addresses = dict[str, int]


class Layout:
    """Names and sizes of blocks, and where in them a run has its tensors.

    Args:
        step: inputs of the decoder's step.
        slots: of its caches.
        in_place: whether an engine writes into caches where they are; else a block for each takes
            what a run returns.

    Raises:
        EngineError: the rows of a cache would not be aligned.
    """

    def __init__(self, step: Sequence[TensorSpec], slots: int, *, in_place: bool) -> None:
        rows = {spec.name: spec for spec in step if spec.name.startswith((*CACHE, *CROSSED))}
        self.length = longest(rows, CACHE)
        self.source_length = longest(rows, CROSSED)
        self.row_bytes = {
            name: int(np.prod(spec.shape[1:])) * NUMPY_DTYPES[spec.dtype].itemsize
            for name, spec in rows.items()
        }
        """Of each cache."""
        self._slots, self._in_place = slots, in_place
        if any(size % ALIGNED for size in self.row_bytes.values()):
            raise EngineError(
                f"caches of {self.row_bytes} bytes a slot came, wanted multiples of {ALIGNED}; "
                "give the model an even length"
            )

    def copied(self, kind: tuple[str, ...], rows: int) -> dict[str, int]:
        """Return the bytes of the caches that are copied after a run of the first rows."""
        if self._in_place:
            return {}
        sizes = self.row_bytes.items()
        return {name: rows * size for name, size in sizes if name.startswith(kind)}

    def step_blocks(self, vocabulary: int, item_bytes: int) -> dict[str, int]:
        """Return the bytes of each block that steps need.

        Args:
            vocabulary: tokens that there are.
            item_bytes: of a logit.
        """
        sizes = {name: self._slots * size for name, size in self.row_bytes.items()}
        sizes |= {f"{name}_out": size for name, size in self.copied(CACHE, self._slots).items()}
        sizes |= dict.fromkeys(("ids", "start", "count", "xlen", "best"), self._slots * ID.itemsize)
        sizes["piece"] = (XLEN + 1) * ID.itemsize
        sizes["top"] = self._slots * item_bytes
        sizes["logits"] = self._slots * vocabulary * item_bytes
        sizes |= {"unread best": ALIGNED, "unread top": ALIGNED}
        sizes["unread logits"] = vocabulary * item_bytes
        return sizes

    def encoder_blocks(self, length: int) -> dict[str, int]:
        """Return the bytes of each block that an encoder needs, which makes one row at a time.

        Args:
            length: of the longest source.
        """
        crossed = {n: size for n, size in self.row_bytes.items() if n.startswith(CROSSED)}
        copied = self.copied(CROSSED, 1)
        return {
            **dict.fromkeys(TEXTS, length * ID.itemsize),
            **{f"made {name}": size for name, size in crossed.items()},
            **{f"made {name}_out": size for name, size in copied.items()},
        }

    def step(self, at: Mapping[str, int]) -> Addresses:
        """Return where a step of the first slots has its tensors; `at` has where blocks are."""
        caches = (name for name in self.row_bytes if name.startswith(CACHE))
        return {**{f"{name}_out": at[name] for name in caches}, **at}

    def piece(self, at: Mapping[str, int], slot: int) -> Addresses:
        """Return where a step that reads ids of a slot has its tensors."""
        found = {name: at[name] + slot * size for name, size in self.row_bytes.items()}
        caches = [name for name in found if name.startswith(CACHE)]
        found |= {f"{name}_out": at.get(f"{name}_out", found[name]) for name in caches}
        # What it says is not wanted, and must not be where the rows say it that are under way.
        found |= {name: at[f"unread {name}"] for name in ("logits", "best", "top")}
        places = {"ids": 0, "start": START, "count": COUNT, "xlen": XLEN}
        return found | {name: at["piece"] + place * ID.itemsize for name, place in places.items()}

    def encoder(self, at: Mapping[str, int]) -> Addresses:
        """Return where an encoder has its tensors."""
        found = {name: at[name] for name in TEXTS}
        for name in (name for name in self.row_bytes if name.startswith(CROSSED)):
            found[name] = at[f"made {name}"]
            found[f"{name}_out"] = at.get(f"made {name}_out", found[name])
        return found


def sized(spec: TensorSpec, rows: int, tokens: int) -> tuple[int, ...]:
    """Return a shape with sizes for those that are open: rows first, then tokens."""
    return tuple(
        size if size != -1 else tokens if axis else rows for axis, size in enumerate(spec.shape)
    )
