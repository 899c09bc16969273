"""Op `center_crop`: the middle of a picture, at a fixed size."""

from collections.abc import Sequence

import numpy as np
from pydantic import ConfigDict, PositiveInt
from pydantic.dataclasses import dataclass

from mesh.op import Outcome
from mesh.tensor import Tensors, TensorSpec
from preprocess_svc.ops.exif import Pixels
from preprocess_svc.ops.image import MAX_BYTES, MAX_PIXELS, choose_reduction, decode, resize
from preprocess_svc.ops.image_check import check_image


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class CenterCrop:
    """The middle of a picture, as if it was scaled by its shorter side and then cut."""

    size: tuple[PositiveInt, PositiveInt] = (224, 224)
    """Height and width of the crop in pixels."""
    resize: PositiveInt | None = 256
    """Length of the shorter side after scaling; null: the picture just covers the crop."""
    max_bytes: PositiveInt = MAX_BYTES
    """Limit of a file."""
    max_pixels: PositiveInt = MAX_PIXELS
    """Limit of width times height of a picture."""

    def __post_init__(self) -> None:
        """Refuse a crop that is larger than scaled pictures."""
        if self.resize is not None and self.resize < max(self.size):
            raise ValueError(
                f"resize {self.resize} leaves pictures smaller than the crop of "
                f"{self.size[0]}x{self.size[1]}; wanted {max(self.size)} or more, or null"
            )

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """One file: JPEG, PNG, WebP or BMP."""
        return (TensorSpec("image", "BYTES", (1,)),)

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """Pixels as decoded: RGB, 0..255."""
        return (TensorSpec("pixels", "UINT8", (1, *self.size, 3)),)

    def __call__(self, tensors: Tensors, context: Tensors) -> Outcome:
        """Decode, scale and crop one picture.

        Args:
            tensors: {"image": BYTES[1]}, one file.
            context: not used.

        Returns:
            {"pixels": UINT8[1, H, W, 3]}, RGB.

        Raises:
            InvalidInput: over a limit, damaged, or no picture.
        """
        data: bytes = tensors["image"].item()
        header = check_image(data, self.max_bytes, self.max_pixels)
        width, height = header.upright_size
        picture = decode(data, header, choose_reduction(header, self._scale(height, width)))
        return Outcome({"pixels": self._crop(picture)[None]})

    def _scale(self, height: int, width: int) -> float:
        if self.resize is None:
            return max(self.size[0] / height, self.size[1] / width)
        return self.resize / min(height, width)

    def _crop(self, picture: Pixels) -> Pixels:
        """Cut first, then scale: the same pixels within rounding, for half the work."""
        scale = self._scale(*picture.shape[:2])
        region = _middle(picture, [max(1, round(side / scale)) for side in self.size])
        return np.ascontiguousarray(resize(region, self.size[1], self.size[0]))


def _middle(picture: Pixels, size: Sequence[int]) -> Pixels:
    top, left = (max(0, a - b) // 2 for a, b in zip(picture.shape, size, strict=False))
    return picture[top : top + size[0], left : left + size[1]]
