"""`python -m infer_svc.build`: what `trtmesh engine` runs."""

import argparse
import sys

from infer_svc.build.building import add_build, add_order
from infer_svc.build.compare import add_compare
from infer_svc.build.kernels import add_kernels
from infer_svc.build.listing import add_list
from infer_svc.build.profiling import add_profile
from mesh.errors import MeshError

INTERRUPTED = 130
"""Exit status after Ctrl-C, as a shell has it."""
COMMANDS = (add_build, add_list, add_profile, add_compare, add_order, add_kernels)


def main() -> int:
    """Run one command; return its exit status."""
    parser = argparse.ArgumentParser(prog="trtmesh engine")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for add in COMMANDS:
        add(commands)
    arguments = parser.parse_args()
    try:
        return int(arguments.run(arguments))
    except MeshError as err:
        sys.stderr.write(f"trtmesh: {err}\n")
        return 1
    except KeyboardInterrupt:
        return INTERRUPTED


if __name__ == "__main__":
    raise SystemExit(main())
