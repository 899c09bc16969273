"""`trtmesh model load|unload|status`: the life of models, through a gateway or an infer_svc."""

import argparse

from tritonclient.grpc import service_pb2 as oip

from mesh.cli.options import Commands, add_gateway
from mesh.errors import NotFound
from mesh.oip.service import NAME
from mesh.sync_client import MeshClient

LOAD_S = 3600.0
"""An engine may have to be built."""


def add_commands(commands: Commands) -> None:
    """Add the command to the command line."""
    model = commands.add_parser("model", help="load and unload models, and see how they are")
    actions = model.add_subparsers(dest="action", required=True, metavar="ACTION")
    load = actions.add_parser("load", help="serve a model, or its newest files; ends when it does")
    load.set_defaults(run=_load)
    unload = actions.add_parser("unload", help="serve a model no more; what it runs is answered")
    unload.add_argument(
        "--steps", action="store_true", help="of an ensemble, the models of its steps too"
    )
    unload.set_defaults(run=_unload)
    status = actions.add_parser("status", help="every version, how it is, and why")
    status.set_defaults(run=_status)
    for parser in (load, unload):
        parser.add_argument("model", metavar="MODEL")
    status.add_argument("model", nargs="?", default="", metavar="MODEL")
    for parser, limit_s in ((load, LOAD_S), (unload, 30.0), (status, 30.0)):
        add_gateway(parser, limit_s)


def _load(arguments: argparse.Namespace) -> int:
    request = oip.RepositoryModelLoadRequest(model_name=arguments.model)
    with MeshClient(arguments.gateway, arguments.timeout, service=NAME) as client:
        client.call("RepositoryModelLoad", request, oip.RepositoryModelLoadResponse)
        return _show(client, arguments.model)


def _unload(arguments: argparse.Namespace) -> int:
    request = oip.RepositoryModelUnloadRequest(model_name=arguments.model)
    request.parameters["unload_dependents"].bool_param = arguments.steps
    with MeshClient(arguments.gateway, arguments.timeout, service=NAME) as client:
        client.call("RepositoryModelUnload", request, oip.RepositoryModelUnloadResponse)
        return _show(client, arguments.model)


def _status(arguments: argparse.Namespace) -> int:
    with MeshClient(arguments.gateway, arguments.timeout, service=NAME) as client:
        return _show(client, arguments.model)


def _show(client: MeshClient, wanted: str) -> int:
    """Print the lines of a model, or of all."""
    index = client.call(
        "RepositoryIndex", oip.RepositoryIndexRequest(), oip.RepositoryIndexResponse
    )
    rows = [one for one in index.models if wanted in ("", one.name, one.name.partition(".")[0])]
    if not rows:
        raise NotFound(f"model {wanted!r} is not known; `trtmesh model status` tells of all")
    for one in rows:
        print(f"{one.name:<24} {one.version or '-':>4}  {one.state:<11}  {one.reason}".rstrip())
    return 0
