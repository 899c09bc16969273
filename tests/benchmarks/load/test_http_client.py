"""Bodies as the HTTP peers take them."""

import base64
import json
from email import message_from_bytes

from benchmarks.load.http_client import FORM, form_body, image_body, text_body

FILE = bytes(range(256)) * 4


def test_form_has_the_file_and_nothing_else() -> None:
    head = f"Content-Type: {FORM['Content-Type']}\r\n\r\n"
    message = message_from_bytes(head.encode() + form_body(FILE))
    _, part = message.walk()
    assert part.get_param("name", header="content-disposition") == "file"
    assert part.get_payload(decode=True) == FILE


def test_json_has_the_file_in_base64() -> None:
    assert base64.b64decode(json.loads(image_body(FILE))["image"]) == FILE


def test_text_keeps_its_letters() -> None:
    assert json.loads(text_body("добър ден".encode())) == {"text": "добър ден"}
