"""`trtmesh generate`: a text that continues or answers a text, shown as it comes."""

import argparse
import sys

from mesh.cli.options import Commands, add_gateway
from mesh.errors import InvalidInput
from mesh.sync_client import MeshClient
from protos.mesh.v1 import mesh_pb2

NUMBERS = {
    "max_tokens": (int, "N", "at most so many"),
    "temperature": (float, "T", "0: the best token every time"),
    "top_k": (int, "K", "only so many of the best tokens; 0: all"),
    "top_p": (float, "P", "only the best tokens that have this probability together"),
    "seed": (int, "S", "the same seed gives the same text"),
    "repetition_penalty": (float, "R", "over 1: tokens that came already are less likely"),
}


def add_commands(commands: Commands) -> None:
    """Add the command to the command line."""
    parser = commands.add_parser("generate", help="continue or answer a text")
    parser.add_argument("text", metavar="TEXT")
    parser.add_argument("--pipeline", default="", help="when several generate")
    for name, (kind, metavar, text) in NUMBERS.items():
        flag = f"--{name.replace('_', '-')}"
        parser.add_argument(flag, type=kind, metavar=metavar, help=text)
    parser.add_argument("--stop", action="append", default=[], metavar="TEXT", help="ends it")
    parser.add_argument("-v", "--verbose", action="store_true", help="tell how it ended, and where")
    add_gateway(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Show a generation; Ctrl-C ends it, here and at the model."""
    request = mesh_pb2.GenerateRequest(
        pipeline=arguments.pipeline, text=arguments.text, stop=arguments.stop
    )
    for name in NUMBERS:
        if (value := getattr(arguments, name)) is not None:
            try:
                setattr(request, name, value)
            except ValueError as err:
                flag = name.replace("_", "-")
                raise InvalidInput(f"--{flag} {value} cannot be sent: {err}") from None
    response = mesh_pb2.GenerateResponse()
    with MeshClient(arguments.gateway, arguments.timeout, traced=True) as client:
        for response in client.stream("Generate", request, mesh_pb2.GenerateResponse):
            sys.stdout.write(response.text)
            sys.stdout.flush()
    sys.stdout.write("\n")
    if arguments.verbose:
        print(
            f"{response.finish_reason} after {response.completion_tokens} tokens; the text had "
            f"{response.prompt_tokens}\ntrace: {client.trace_id}"
        )
    return 0
