"""Op `letterbox`: a picture scaled into a fixed frame, its aspect ratio kept."""

from typing import Annotated

import cv2
import numpy as np
from pydantic import ConfigDict, Field, PositiveInt
from pydantic.dataclasses import dataclass

from mesh.op import Outcome
from mesh.tensor import Tensors, TensorSpec
from preprocess_svc.ops.exif import Pixels
from preprocess_svc.ops.image import MAX_BYTES, MAX_PIXELS, choose_reduction, decode, resize
from preprocess_svc.ops.image_check import check_image


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Letterbox:
    """Scale a picture up or down until it just fits, centre it and pad the rest.

    Context: `geometry` FP32[1, 6] = width, height (of the upright picture, in pixels), scale_x,
    scale_y, pad_left, pad_top, where model pixel = picture pixel x scale + pad, both counted from
    the outer edge of the first one. The scales differ a little, because sides are whole pixels.
    """

    size: tuple[PositiveInt, PositiveInt] = (640, 640)
    """Height and width of the frame in pixels."""
    pad_value: Annotated[int, Field(ge=0, le=255)] = 114
    """Red, green and blue of the padding."""
    max_bytes: PositiveInt = MAX_BYTES
    """Limit of a file."""
    max_pixels: PositiveInt = MAX_PIXELS
    """Limit of width times height of a picture."""

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """One file: JPEG, PNG, WebP or BMP."""
        return (TensorSpec("image", "BYTES", (1,)),)

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """Pixels as decoded: RGB, 0..255."""
        return (TensorSpec("pixels", "UINT8", (1, *self.size, 3)),)

    def __call__(self, tensors: Tensors, context: Tensors) -> Outcome:
        """Decode, scale and pad one picture.

        Args:
            tensors: {"image": BYTES[1]}, one file.
            context: not used.

        Returns:
            {"pixels": UINT8[1, H, W, 3]}, RGB, and the context.

        Raises:
            InvalidInput: over a limit, damaged, or no picture.
        """
        data: bytes = tensors["image"].item()
        header = check_image(data, self.max_bytes, self.max_pixels)
        width, height = header.upright_size
        scale = min(self.size[0] / height, self.size[1] / width)
        reduction = choose_reduction(header, scale)
        picture = decode(data, header, reduction)
        covered_height, covered_width = (reduction * side for side in picture.shape[:2])
        picture = resize(picture, max(1, round(width * scale)), max(1, round(height * scale)))
        high, wide, _ = picture.shape
        pixels, top, left = self._frame(picture)
        geometry = (width, height, wide / covered_width, high / covered_height, left, top)
        return Outcome({"pixels": pixels[None]}, {"geometry": np.array([geometry], np.float32)})

    def _frame(self, picture: Pixels) -> tuple[Pixels, int, int]:
        rows, columns = (a - b for a, b in zip(self.size, picture.shape[:2], strict=True))
        top, left = rows // 2, columns // 2
        border = (top, rows - top, left, columns - left)
        fill = [self.pad_value] * 3
        framed = cv2.copyMakeBorder(picture, *border, cv2.BORDER_CONSTANT, value=fill)
        return framed, top, left
