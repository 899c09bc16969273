"""Messages as JSON in Triton's way."""

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2 as triton
from tritonclient.grpc import service_pb2 as oip

from gateway.rest.plain import plain


def test_numbers_enums_maps_and_what_is_not_set() -> None:
    text = """
        name: "m" max_batch_size: 8 input [ { name: "x" data_type: TYPE_FP32 dims: [ -1, 4 ] } ]
        parameters { key: "slots" value { string_value: "9" } }
        cc_model_filenames { key: "9.0" value: "p" }
    """
    found = plain(text_format.Parse(text, triton.ModelConfig()))
    assert found["max_batch_size"] == 8
    assert found["input"][0]["data_type"] == "TYPE_FP32"
    assert found["input"][0]["dims"] == [-1, 4]  # numbers, not texts as protobuf's own JSON has
    assert found["parameters"] == {"slots": {"string_value": "9"}}
    assert found["cc_model_filenames"] == {"9.0": "p"}
    assert "dynamic_batching" not in found
    assert found["output"] == []


def test_bytes_are_text_of_one_byte_each() -> None:
    assert plain(oip.ModelInferRequest(raw_input_contents=[b"a\xff"]))["raw_input_contents"] == [
        "a\xff"
    ]
