"""`trtmesh trace`: a trace as a tree with times, or as a file for Jaeger's page."""

import argparse
import json
from pathlib import Path

from opentelemetry.proto.trace.v1.trace_pb2 import TracesData

from mesh.cli.options import Commands, add_gateway
from mesh.cli.trace_view import jaeger_json, tree
from mesh.sync_client import MeshClient
from protos.mesh.v1 import mesh_pb2


def add_commands(commands: Commands) -> None:
    """Add `trace` to the command line."""
    parser = commands.add_parser("trace", help="show a trace that the gateway has kept")
    parser.add_argument("id", nargs="?", default="", help="32 hexadecimal digits; none: the newest")
    parser.add_argument(
        "--jaeger", type=Path, metavar="JSON", help="write it as a file that Jaeger's page opens"
    )
    add_gateway(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Fetch a trace, and print or write it."""
    with MeshClient(arguments.gateway, arguments.timeout) as client:
        request = mesh_pb2.GetTraceRequest(trace_id=arguments.id)
        response = client.call("GetTrace", request, mesh_pb2.GetTraceResponse)
    data = TracesData.FromString(response.traces)
    if arguments.jaeger:
        arguments.jaeger.write_text(json.dumps(jaeger_json(data), indent=1))
        print(f"written: {arguments.jaeger}")
        return 0
    print(f"trace {response.trace_id}")
    for line in tree(data, response.trace_id):
        print(line)
    return 0
