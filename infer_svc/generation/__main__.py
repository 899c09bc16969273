"""`python -m infer_svc.generation`: what `trtmesh import` runs."""

import argparse
import sys
from pathlib import Path

from infer_svc.generation.hf import DTYPES, TASKS, Wanted, import_folder
from mesh.errors import MeshError


def main() -> int:
    """Import one folder; return the exit status."""
    parser = argparse.ArgumentParser(
        prog="trtmesh import", description="Make a model's folder from one of Hugging Face."
    )
    parser.add_argument("format", choices=["hf"], help="what the folder is")
    parser.add_argument("folder", type=Path, help="as save_pretrained writes it")
    parser.add_argument("--task", required=True, choices=TASKS)
    parser.add_argument("--models", type=Path, default=Path("models"), metavar="DIR")
    parser.add_argument("--name", default="", help="of the model; the folder's unless given")
    parser.add_argument("--length", type=int, default=0, help="ids that a generation may have")
    parser.add_argument("--source-length", type=int, default=0, help="ids of a text to encode")
    parser.add_argument("--slots", type=int, default=Wanted.slots, help="generations at a time")
    parser.add_argument("--precision", choices=DTYPES, default=Wanted.precision)
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
    sys.stdout.write(
        f"{made.folder}: {made.bytes / 2**20:.1f} MiB of graphs, "
        f"{made.cache_bytes / 2**20:.1f} MiB of caches for {wanted.slots} slots\n"
        f"try it: trtmesh up --models {job.models}, and trtmesh generate --pipeline {wanted.name}\n"
    )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
