"""The ops of preprocess_svc: bytes in, tensors out."""

from mesh.op import Op
from preprocess_svc.ops.center_crop import CenterCrop
from preprocess_svc.ops.letterbox import Letterbox
from preprocess_svc.ops.tokenize import Tokenize

OPS: dict[str, type[Op]] = {
    "letterbox": Letterbox,
    "center_crop": CenterCrop,
    "tokenize": Tokenize,
}
"""By the name that a pipeline uses."""
