"""`trtmesh detect`, `classify`, `language`, `models`: requests to a gateway."""

import argparse
from pathlib import Path

from mesh.cli.drawing import draw_detections
from mesh.cli.options import Commands, add_gateway
from mesh.errors import InvalidInput
from mesh.sync_client import MeshClient
from protos.mesh.v1 import mesh_pb2


def add_commands(commands: Commands) -> None:
    """Add the commands to the command line."""
    detect = commands.add_parser("detect", help="find objects in pictures")
    detect.add_argument("images", nargs="+", type=Path, metavar="FILE")
    detect.add_argument("--save", type=Path, metavar="PNG", help="the picture with its boxes")
    detect.set_defaults(run=_detect)
    classify = commands.add_parser("classify", help="say what pictures show")
    classify.add_argument("images", nargs="+", type=Path, metavar="FILE")
    classify.set_defaults(run=_classify)
    language = commands.add_parser("language", help="say which language texts are in")
    language.add_argument("texts", nargs="+", metavar="TEXT")
    language.set_defaults(run=_language)
    models = commands.add_parser("models", help="list pipelines and their models")
    models.set_defaults(run=_models)
    for parser in (detect, classify, language):
        parser.add_argument("--pipeline", default="", help="when several do the task")
    for parser in (detect, classify, language, models):
        add_gateway(parser)


def _detect(arguments: argparse.Namespace) -> int:
    if arguments.save and len(arguments.images) > 1:
        raise InvalidInput("--save takes one picture at a time")
    pictures = [_read(path) for path in arguments.images]
    with _client(arguments) as client:
        request = mesh_pb2.DetectRequest(pipeline=arguments.pipeline, images=pictures)
        response = client.call("Detect", request, mesh_pb2.DetectResponse)
    for path, picture, result in zip(arguments.images, pictures, response.results, strict=True):
        print(f"{path}: {len(result.detections)} found")
        for found in result.detections:
            box = f"{found.x1:7.1f} {found.y1:7.1f} {found.x2:7.1f} {found.y2:7.1f}"
            print(f"  {found.label or found.class_id:<12} {found.score:.3f}  [{box} ]")
        if arguments.save:
            arguments.save.write_bytes(draw_detections(picture, result.detections))
            print(f"drawn: {arguments.save}")
    _tell_trace(client)
    return 0


def _classify(arguments: argparse.Namespace) -> int:
    pictures = [_read(path) for path in arguments.images]
    with _client(arguments) as client:
        request = mesh_pb2.ClassifyRequest(pipeline=arguments.pipeline, images=pictures)
        response = client.call("Classify", request, mesh_pb2.ClassifyResponse)
    _print_rankings([str(path) for path in arguments.images], response)
    _tell_trace(client)
    return 0


def _language(arguments: argparse.Namespace) -> int:
    with _client(arguments) as client:
        request = mesh_pb2.ClassifyTextRequest(pipeline=arguments.pipeline, texts=arguments.texts)
        response = client.call("ClassifyText", request, mesh_pb2.ClassifyTextResponse)
    _print_rankings(arguments.texts, response)
    _tell_trace(client)
    return 0


def _models(arguments: argparse.Namespace) -> int:
    with _client(arguments) as client:
        response = client.call(
            "ListPipelines", mesh_pb2.ListPipelinesRequest(), mesh_pb2.ListPipelinesResponse
        )
    for row in response.pipelines:
        if row.refused:
            print(f"{row.name:<18} refused: {row.refused}")
            continue
        inputs, outputs = (
            ", ".join(f"{t.name} {t.dtype}{list(t.shape)}" for t in tensors)
            for tensors in (row.inputs, row.outputs)
        )
        print(f"{row.name:<18} {row.task:<14} model {row.model} version {row.model_version}")
        print(f"{'':<18} {inputs}  ->  {outputs}")
    return 0


def _client(arguments: argparse.Namespace) -> MeshClient:
    return MeshClient(arguments.gateway, arguments.timeout, traced=arguments.command != "models")


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as err:
        raise InvalidInput(f"cannot read {path}: {err.strerror}") from err


def _print_rankings(
    names: list[str], response: mesh_pb2.ClassifyResponse | mesh_pb2.ClassifyTextResponse
) -> None:
    for name, ranking in zip(names, response.results, strict=True):
        print(name)
        for category in ranking.categories:
            print(f"  {category.label or category.class_id:<24} {category.score:.3f}")


def _tell_trace(client: MeshClient) -> None:
    print(f"trace: {client.trace_id}")
