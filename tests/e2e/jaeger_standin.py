"""What the mesh needs of Jaeger, behind Jaeger's ports, where Jaeger's image cannot be had.

OTLP over gRPC at 4317; at 16686 `GET /api/traces/<id>` in the JSON form of Jaeger's query API. Runs
in the image of the gateway. Keeps the newest 1000 traces, and has no page to look at them.
"""

import asyncio
import json
import re
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

from gateway.trace_store import TraceStore, trace_service
from mesh import log
from mesh.cli.trace_view import jaeger_json
from mesh.errors import NotFound
from mesh.host import Host, run_process
from mesh.process import wait_for_signal

Answer = tuple[HTTPStatus, dict[str, Any]]


async def look_up(store: TraceStore, trace_id: str) -> Answer:
    """Return one trace as Jaeger does; the store adds the traces that it links to."""
    try:
        _, data = store.get(trace_id)
    except NotFound:
        error = {"code": 404, "msg": "trace not found"}
        return HTTPStatus.NOT_FOUND, {"data": None, "total": 0, "errors": [error]}
    document = jaeger_json(data)
    document["data"] = [trace for trace in document["data"] if trace["traceID"] == trace_id]
    return HTTPStatus.OK, document | {"total": 1}


def query_server(store: TraceStore, loop: asyncio.AbstractEventLoop) -> ThreadingHTTPServer:
    """Return an HTTP server whose threads look into the store on the loop that fills it."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            found = re.fullmatch("/api/traces/([0-9a-f]{32})", self.path)
            if found:
                answer = asyncio.run_coroutine_threadsafe(look_up(store, found[1]), loop)
                self._send(*answer.result())
            elif self.path == "/":
                self._send(HTTPStatus.OK, {"status": "serving"})
            else:
                self._send(HTTPStatus.NOT_FOUND, {"errors": [{"code": 404, "msg": self.path}]})

        def _send(self, status: HTTPStatus, document: dict[str, Any]) -> None:
            body = json.dumps(document).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Say nothing: a line per probe tells nobody anything."""

    return ThreadingHTTPServer(("0.0.0.0", 16686), Handler)


async def main() -> None:
    """Serve both ports until a signal comes."""
    log.configure("jaeger", "INFO")
    store = TraceStore()
    host = Host("0.0.0.0:4317")
    host.add(*trace_service(store))
    await host.start()
    server = query_server(store, asyncio.get_running_loop())
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    await wait_for_signal()
    await asyncio.to_thread(server.shutdown)
    server.server_close()
    await host.server.stop(1)


if __name__ == "__main__":
    run_process(main)
