"""`python -m infer_svc.build`: what `trtmesh engine` runs."""

import argparse
import sys

from infer_svc.build.compare import add_compare
from mesh.errors import MeshError


def main() -> int:
    """Run one command; return its exit status."""
    parser = argparse.ArgumentParser(prog="trtmesh engine")
    commands = parser.add_subparsers(dest="command", required=True)
    add_compare(commands)
    arguments = parser.parse_args()
    try:
        return int(arguments.run(arguments))
    except MeshError as err:
        sys.stderr.write(f"trtmesh: {err}\n")
        return 1


if __name__ == "__main__":
    raise SystemExit(main())
