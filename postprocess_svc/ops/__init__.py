"""Ops of postprocess_svc: what turns the tensors of a model into an answer."""

from mesh.op import Op
from postprocess_svc.ops.detokenize import Detokenize
from postprocess_svc.ops.nms import Nms
from postprocess_svc.ops.pool import Pool
from postprocess_svc.ops.top_k import TopK

OPS: dict[str, type[Op]] = {
    "nms": Nms, "top_k": TopK, "pool": Pool, "detokenize": Detokenize,
}  # fmt: skip
"""By the name that a pipeline.yaml uses."""
