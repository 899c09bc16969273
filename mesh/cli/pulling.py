"""`trtmesh pull`: a repository of object storage as a folder that follows it."""

import argparse
import time
from pathlib import Path

from mesh.cli.options import Commands, say
from mesh.errors import StageUnavailable
from mesh.pull import Puller


def add_commands(commands: Commands) -> None:
    """Add `pull` to the command line."""
    parser = commands.add_parser("pull", help="bring a model repository from object storage")
    parser.add_argument("url", metavar="URL", help="as s3://bucket/models; az:// and gs:// too")
    parser.add_argument("folder", type=Path, metavar="DIR")
    parser.add_argument(
        "--every", type=float, metavar="SECONDS", help="go on, and look again so often"
    )
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    puller = Puller(arguments.url, arguments.folder)
    while True:
        try:
            for path in puller.pull():
                print(path, flush=True)
        except StageUnavailable as err:
            if not arguments.every:
                raise
            say(str(err))
        if not arguments.every:
            return 0
        time.sleep(arguments.every)
