"""`python -m infer_svc.generation`: what `trtmesh import` runs."""

import argparse
import os
import sys
from pathlib import Path

from infer_svc.generation.hf import DTYPES, MOST_LENGTH, TASKS, Wanted, import_folder
from mesh.errors import MeshError

INTERRUPTED = 130
"""Exit status after Ctrl-C, as a shell has it."""


def main() -> int:
    """Import one folder; return the exit status."""
    # Only its tokenizers are used; it would say that there is no PyTorch.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # noqa: TID251 for transformers
    parser = argparse.ArgumentParser(
        prog="trtmesh import hf", description="Make a model's folder from one of Hugging Face.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )  # fmt: skip
    parser.add_argument("folder", type=Path, help="as save_pretrained writes it")
    parser.add_argument("--task", required=True, choices=TASKS)
    parser.add_argument(
        "--models", type=Path, default=Path("models"), metavar="DIR",
        help="the model repository; made where it is not there",
    )  # fmt: skip
    parser.add_argument("--name", default="", help="of the model; the folder's unless given")
    parser.add_argument(
        "--length", type=int, default=0,
        help=f"ids that a generation may have; 0: what the model can, {MOST_LENGTH} at most",
    )  # fmt: skip
    parser.add_argument(
        "--source-length", type=int, default=0, help="ids of a text to encode; 0: as --length"
    )
    parser.add_argument("--slots", type=int, default=Wanted.slots, help="generations at a time")
    parser.add_argument(
        "--precision", choices=DTYPES, default=Wanted.precision, help="of weights and caches"
    )
    parser.add_argument("--gpu", action="store_true", help="run it on TensorRT")
    job = parser.parse_args()
    wanted = Wanted(
        job.task, job.name or job.folder.resolve().name, job.length, job.source_length, job.slots,
        job.precision, job.gpu,
    )  # fmt: skip
    try:
        made = import_folder(job.folder, job.models, wanted)
    except MeshError as err:
        sys.stderr.write(f"trtmesh: {err}\n")
        return 1
    except KeyboardInterrupt:
        return INTERRUPTED
    sys.stdout.write(
        f"{made.folder}: {made.bytes / 2**20:.1f} MiB of graphs, "
        f"{made.cache_bytes / 2**20:.1f} MiB of caches for {wanted.slots} slots\n"
        f"try it:\n  trtmesh up --models {job.models}\n"
        f'  trtmesh generate "some text" --pipeline {wanted.name}\n'
    )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
