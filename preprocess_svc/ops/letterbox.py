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
        reduction = choose_reduction(header, self._scale(height, width))
        picture = decode(data, header, reduction)
        scale = self._scale(*picture.shape[:2])
        high, wide = (max(1, round(side * scale)) for side in picture.shape[:2])
        top, left = (self.size[0] - high) // 2, (self.size[1] - wide) // 2
        scale_y, scale_x = high / picture.shape[0] / reduction, wide / picture.shape[1] / reduction
        geometry = np.array([(width, height, scale_x, scale_y, left, top)], np.float32)
        pixels = self._pad(resize(picture, wide, high), top, left)
        return Outcome({"pixels": pixels[None]}, {"geometry": geometry})

    def _scale(self, height: int, width: int) -> float:
        return min(self.size[0] / height, self.size[1] / width)

    def _pad(self, picture: Pixels, top: int, left: int) -> Pixels:
        bottom = self.size[0] - top - picture.shape[0]
        right = self.size[1] - left - picture.shape[1]
        border = (top, bottom, left, right)
        fill = [self.pad_value] * 3
        padded: Pixels = cv2.copyMakeBorder(picture, *border, cv2.BORDER_CONSTANT, value=fill)
        return padded
