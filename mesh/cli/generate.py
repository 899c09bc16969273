"""`trtmesh generate`: a text that continues or answers a text, shown as it comes."""

import argparse
import io
import sys

from mesh.cli.options import Commands, add_gateway
from mesh.errors import DeadlineExceeded, InvalidInput
from mesh.sync_client import MeshClient
from protos.mesh.v1 import mesh_pb2

TIMEOUT_S = 120.0
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
    parser = commands.add_parser(
        "generate", help="continue or answer a text",
        description="Shows what a model makes of a text, as it comes.",
        epilog='trtmesh generate "vendredi 27 novembre 2026" --pipeline dates; '
        'trtmesh generate "48213 =" --pipeline numbers',
    )  # fmt: skip
    parser.add_argument("text", metavar="TEXT", help="for the model; -: from standard input")
    parser.add_argument("--pipeline", default="", help="when several generate")
    for name, (kind, metavar, text) in NUMBERS.items():
        flag = f"--{name.replace('_', '-')}"
        parser.add_argument(flag, type=kind, metavar=metavar, help=text)
    parser.add_argument(
        "--stop",
        action="append",
        default=[],
        metavar="TEXT",
        help="ends it and is not shown; may be given several times",
    )
    parser.add_argument("-v", "--verbose", action="store_true", help="tell how it ended, and where")
    add_gateway(parser, TIMEOUT_S)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Show a generation; Ctrl-C ends it, here and at the model."""
    text = _text(arguments.text)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal may not know what a model says
    request = mesh_pb2.GenerateRequest(pipeline=arguments.pipeline, text=text, stop=arguments.stop)
    for name in NUMBERS:
        if (value := getattr(arguments, name)) is not None:
            try:
                setattr(request, name, value)
            except ValueError as err:
                flag = name.replace("_", "-")
                raise InvalidInput(f"--{flag} {value} cannot be sent: {err}") from None
    response = mesh_pb2.GenerateResponse()
    begun = False
    with MeshClient(arguments.gateway, arguments.timeout, traced=True) as client:
        try:
            for response in client.stream("Generate", request, mesh_pb2.GenerateResponse):
                sys.stdout.write(response.text)
                sys.stdout.flush()
                begun = True
        except DeadlineExceeded as err:
            raise DeadlineExceeded(
                f"not finished in {arguments.timeout:g} s; see --timeout ({err})"
            ) from None
        finally:
            if begun:
                sys.stdout.write("\n")
    if arguments.verbose:
        print(
            f"{response.finish_reason} after {response.completion_tokens} tokens; the text had "
            f"{response.prompt_tokens}\ntrace: {client.trace_id}"
        )
    return 0


def _text(argument: str) -> str:
    try:
        text = sys.stdin.read() if argument == "-" else argument
        text.encode()
    except UnicodeError as err:
        raise InvalidInput(f"the text is no UTF-8: {err}") from None
    return text
