"""A client of the HTTP peers; needs aiohttp, which is in their environments."""

import base64
import json
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import cache

from benchmarks.load.loops import Ask, AskError

BOUNDARY = "boundary-of-the-benchmark"
FORM = {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}
JSON = {"Content-Type": "application/json"}


def form_body(payload: bytes) -> bytes:
    """Return a form with the one file `file`, as FastAPI's `UploadFile` takes it."""
    head = (
        f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="file"; filename="picture.jpg"\r\n'
        "Content-Type: image/jpeg\r\n\r\n"
    )
    return head.encode() + payload + f"\r\n--{BOUNDARY}--\r\n".encode()


def image_body(payload: bytes) -> bytes:
    """Return JSON with the file in base64, as LitServe's examples take it."""
    return json.dumps({"image": base64.b64encode(payload).decode()}).encode()


def text_body(payload: bytes) -> bytes:
    """Return JSON with the text."""
    return json.dumps({"text": payload.decode()}).encode()


def form(address: str, work: str, timeout_s: float) -> AbstractAsyncContextManager[Ask]:
    """Send files as forms, texts as JSON."""
    if work == "jpeg":
        return _client(address, FORM, form_body, timeout_s)
    return plain_json(address, work, timeout_s)


def plain_json(address: str, work: str, timeout_s: float) -> AbstractAsyncContextManager[Ask]:
    """Send files in JSON."""
    return _client(address, JSON, image_body if work == "jpeg" else text_body, timeout_s)


@asynccontextmanager
async def _client(
    address: str, headers: dict[str, str], body: Callable[[bytes], bytes], timeout_s: float
) -> AsyncIterator[Ask]:
    import aiohttp  # noqa: PLC0415  only in the peers' environments

    # A body is made once for each payload, so that the client costs little.
    made = cache(body)
    limit = aiohttp.ClientTimeout(total=timeout_s)
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(
        f"http://{address}", timeout=limit, connector=connector
    ) as session:

        async def ask(payload: bytes) -> list[int]:
            try:
                async with session.post(
                    "/predict", data=made(payload), headers=headers
                ) as response:
                    if response.status != 200:
                        raise AskError(f"HTTP {response.status}")
                    found: list[int] = (await response.json())["classes"]
            except (aiohttp.ClientError, TimeoutError) as err:
                raise AskError(type(err).__name__) from err
            return found

        yield ask
