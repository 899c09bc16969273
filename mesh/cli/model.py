"""`trtmesh model load|unload|status|route`: models and their versions, through a gateway.

The first three work at an infer_svc, too.
"""

import argparse
import time
from pathlib import Path

from google.protobuf import json_format
from tritonclient.grpc import service_pb2 as oip

from mesh.cli.options import Commands, add_gateway
from mesh.errors import InvalidInput, NotFound
from mesh.oip.service import NAME
from mesh.sync_client import MeshClient
from protos.mesh.v1 import routes_pb2

RULE = {
    "p99_ratio": "p99", "error_rate": "errors", "min_samples": "samples", "window_s": "window",
    "promote_after_s": "promote_after",
}  # fmt: skip
"""Options by the field of `RouteRule`."""
SHOWN_CHANGES = 10
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
    route = actions.add_parser("route", help="which versions answer a pipeline, and how they do")
    _add_route_options(route)
    route.set_defaults(run=_route)
    add_gateway(route)
    for parser in (load, unload):
        parser.add_argument("model", metavar="MODEL")
    status.add_argument("model", nargs="?", default="", metavar="MODEL")
    for parser, limit_s in ((load, LOAD_S), (unload, 30.0), (status, 30.0)):
        add_gateway(parser, limit_s)


def _add_route_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("pipeline", nargs="?", default="", metavar="PIPELINE")
    parser.add_argument("--stable", metavar="VERSION", help="answers what no other version does")
    parser.add_argument("--canary", metavar="VERSION", help="is tried out")
    parser.add_argument("--weight", type=float, metavar="PERCENT", help="of the canary")
    parser.add_argument(
        "--sticky", metavar="HEADER", help="requests with the same value get the same version"
    )
    parser.add_argument("--shadow", metavar="VERSION", help="gets copies, and nobody its answers")
    rule = parser.add_argument_group("a rule, by which the canary goes or takes over")
    rule.add_argument("--p99", type=float, metavar="RATIO", help="to the stable version's")
    rule.add_argument("--errors", type=float, metavar="SHARE", help="more than the stable one's")
    rule.add_argument("--samples", type=int, metavar="N", help="of each, before anything is said")
    rule.add_argument("--window", type=float, metavar="SECONDS", help="that are looked at")
    rule.add_argument("--promote-after", type=float, metavar="SECONDS", help="without a fault")
    once = parser.add_mutually_exclusive_group()
    once.add_argument("--promote", action="store_true", help="the canary becomes the stable one")
    once.add_argument("--rollback", action="store_true", help="the canary goes")
    once.add_argument("--remove", action="store_true", help="the newest version answers all")
    parser.add_argument("--export", type=Path, metavar="JSON", help="routes, figures and changes")


def _route(arguments: argparse.Namespace) -> int:
    names = ("stable", "canary", "weight", "sticky", "shadow")
    fields = {name: value for name in names if (value := getattr(arguments, name)) is not None}
    rule = {
        field: value
        for field, name in RULE.items()
        if (value := getattr(arguments, name)) is not None
    }
    actions = {name: getattr(arguments, name) for name in ("promote", "rollback", "remove")}
    with MeshClient(arguments.gateway, arguments.timeout) as client:
        if fields or rule or any(actions.values()):
            if not arguments.pipeline:
                raise InvalidInput("name the pipeline whose route is to be set")
            known = client.call(
                "GetRoutes",
                routes_pb2.GetRoutesRequest(pipeline=arguments.pipeline),
                routes_pb2.RoutesResponse,
            )
            route = known.routes[0].route if known.routes else routes_pb2.Route()
            route.MergeFrom(
                routes_pb2.Route(
                    pipeline=arguments.pipeline,
                    rule=routes_pb2.RouteRule(**rule) if rule else None,
                    **fields,
                )
            )
            request = routes_pb2.SetRouteRequest(route=route, **actions)
            told = client.call("SetRoute", request, routes_pb2.RoutesResponse)
        else:
            ask = routes_pb2.GetRoutesRequest(pipeline=arguments.pipeline)
            told = client.call("GetRoutes", ask, routes_pb2.RoutesResponse)
    if arguments.export:
        text = json_format.MessageToJson(told, preserving_proto_field_name=True)
        arguments.export.write_text(text)
    for state in told.routes:
        _show_route(state)
    for change in told.changes[-SHOWN_CHANGES:]:
        at = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(change.time))
        print(f"{at}  {change.pipeline}  by {change.by}: {change.what}")
    return 0


def _show_route(state: routes_pb2.RouteState) -> None:
    route = state.route
    print(route.pipeline)
    for arm in state.arms:
        share = f"{route.weight:g} %" if arm.arm == "canary" else ""
        same = f"  {arm.same} answers the same" if arm.arm == "shadow" else ""
        print(
            f"  {arm.arm:<7} {arm.version or 'newest':>7} {share:>6}  {arm.requests} requests, "
            f"{arm.errors} failed, p50 {arm.p50_ms:.1f} ms, p99 {arm.p99_ms:.1f} ms{same}"
        )


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
