"""`trtmesh health`: one question to a server's `grpc.health.v1.Health`, as containers ask it."""

import argparse
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from mesh.cli.options import Commands, add_gateway
from mesh.errors import MeshError, NotFound
from mesh.status import from_rpc_error


def add_commands(commands: Commands) -> None:
    """Add `health` to the command line."""
    parser = commands.add_parser("health", help="ask the gateway or a stage whether it serves")
    parser.add_argument(
        "--service", default="", metavar="NAME",
        help="full name of a gRPC service, or of a pipeline at the gateway; none: the process",
    )  # fmt: skip
    add_gateway(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Print the status of a service; 0 only when it is SERVING.

    Raises:
        MeshError: nobody answered, or no service has that name.
    """
    request = health_pb2.HealthCheckRequest(service=arguments.service)
    with grpc.insecure_channel(arguments.gateway) as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        try:
            answer = stub.Check(request, timeout=arguments.timeout)
        except grpc.RpcError as err:
            raise _explained(from_rpc_error(err), arguments) from None
    print(health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status))
    return 0 if answer.status == health_pb2.HealthCheckResponse.SERVING else 1


def _explained(error: MeshError, arguments: argparse.Namespace) -> MeshError:
    """Return the error with a text; for a name it does not know, a health server sends none."""
    if isinstance(error, NotFound):
        return NotFound(f"{arguments.gateway} tells no health of {arguments.service!r}")
    return error
