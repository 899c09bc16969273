"""The HTTP application: all routes, their errors, and the page that tells of them."""

from pathlib import Path

import fastapi_swagger
from fastapi import FastAPI
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.routing import APIRoute
from starlette.requests import Request
from starlette.responses import Response
from starlette.staticfiles import StaticFiles

from gateway.rest.answers import failure
from gateway.rest.generating import generating_routes
from gateway.rest.inference import inference_routes, unknown_route
from gateway.rest.settings import settings_routes
from gateway.rest.typed import typed_routes
from gateway.service import MeshService
from mesh import __version__
from mesh.errors import InternalError, MeshError
from mesh.oip.service import OipService

DOCS = "/docs"
ASSETS = f"{DOCS}/assets"


def make_app(service: MeshService, oip: OipService, most_bytes: int) -> FastAPI:
    """Return the application.

    Args:
        service: the gateway's calls.
        oip: the Open Inference Protocol over the same.
        most_bytes: of a body.
    """
    app = FastAPI(title="trtmesh", version=__version__, docs_url=None, redoc_url=None)
    for router in (
        typed_routes(service.handlers, most_bytes),
        generating_routes(service.handlers["Generate"], service.generating, most_bytes),
        inference_routes(oip, most_bytes),
        settings_routes(oip, most_bytes),
    ):
        for route in router.routes:
            if isinstance(route, APIRoute):  # the first sentence says more than a function's name
                route.summary = route.description.partition("\n")[0].rstrip(".")
        app.include_router(router)
    app.add_exception_handler(MeshError, _failed)
    app.add_exception_handler(404, unknown_route)
    app.add_exception_handler(405, unknown_route)
    app.add_exception_handler(500, _broken)
    app.mount(ASSETS, StaticFiles(directory=_assets()), name="assets")

    app.add_api_route(DOCS, _docs, include_in_schema=False, response_model=None)
    return app


async def _docs() -> Response:
    """Return the page that tells of all routes, with nothing from other hosts."""
    page: Response = get_swagger_ui_html(
        openapi_url="/openapi.json", title="trtmesh",
        swagger_js_url=f"{ASSETS}/swagger-ui-bundle.js",
        swagger_css_url=f"{ASSETS}/swagger-ui.css",
        swagger_favicon_url=f"{ASSETS}/favicon-32x32.png",
    )  # fmt: skip
    return page


async def _failed(_: Request, error: Exception) -> Response:
    assert isinstance(error, MeshError)
    return failure(error)


async def _broken(_: Request, __: Exception) -> Response:
    """Answer for an error that nobody expected; uvicorn logs it."""
    return failure(InternalError("the gateway failed; its log says why"))


def _assets() -> Path:
    """Return the folder of Swagger UI's files."""
    return Path(str(fastapi_swagger.__file__)).parent / "resources"
