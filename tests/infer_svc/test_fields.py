"""No field of Triton's config is left out silently."""

import logging
from pathlib import Path

import pytest
from google.protobuf import text_format
from google.protobuf.descriptor import Descriptor
from tritonclient.grpc import model_config_pb2 as triton

from infer_svc.backends.machine import Machine
from infer_svc.config import read_config
from infer_svc.fields import FIELDS, TABLE, demand_known, fate_of, ignored, table
from infer_svc.repository import load_model
from mesh.errors import SettingsError
from tests.infer_svc import graphs
from tests.infer_svc.graphs import write_model

MODELS = Path(__file__).parents[2] / "models"


def paths(descriptor: Descriptor, prefix: str = "", depth: int = 0) -> list[str]:
    found = []
    for field in descriptor.fields:
        found.append(prefix + field.name)
        kind = field.message_type
        if kind is not None and depth < 4 and not kind.GetOptions().map_entry:
            found += paths(kind, f"{prefix}{field.name}.", depth + 1)
    return found


def parsed(text: str) -> triton.ModelConfig:
    return text_format.Parse(text, triton.ModelConfig())


def test_every_field_has_a_fate_and_every_fate_a_field() -> None:
    known = paths(triton.ModelConfig.DESCRIPTOR)
    top = {path for path in known if "." not in path}
    assert top <= FIELDS.keys()
    assert FIELDS.keys() <= set(known)
    assert all(why for fate, why in FIELDS.values() if fate != "honoured")


def test_table_in_the_repository_is_this_one() -> None:
    assert TABLE.read_text() == table(), "run python -m infer_svc.fields"


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("sequence_batching { }", "sequence_batching"),
        ("input [ { name: 'x' allow_ragged_batch: true } ]", "input.allow_ragged_batch"),
        ("input [ { name: 'x' optional: true } ]", "input.optional"),
        ("output [ { name: 'y' reshape { shape: [ 1 ] } } ]", "output.reshape"),
        ("instance_group [ { passive: true } ]", "instance_group.passive"),
        ("model_repository_agents { agents [ { name: 'checksum' } ] }", "model_repository_agents"),
    ],
)
def test_field_that_would_change_answers_is_refused(text: str, path: str) -> None:
    with pytest.raises(ValueError, match=f"{path} came, which cannot be done"):
        demand_known(parsed(text))


def test_field_that_is_left_out_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    text = "max_batch_size: 8 response_cache { enable: true } metric_tags { key: 'a' value: 'b' }"
    folder = write_model(tmp_path, "m", graphs.identity(), text)
    load_model(folder, Machine())
    told = {record.field for record in caplog.records if record.getMessage() == "field ignored"}  # type: ignore[attr-defined]
    assert told == {"response_cache", "response_cache.enable", "metric_tags"}
    assert all(record.levelno == logging.WARNING for record in caplog.records)


def test_refused_model_is_told_by_its_file_and_field(tmp_path: Path) -> None:
    folder = write_model(tmp_path, "m", graphs.identity(), "sequence_batching { }")
    with pytest.raises(SettingsError, match=r"config.pbtxt: sequence_batching came.*leave it out"):
        read_config(folder)


def test_our_own_models_have_no_field_that_is_left_out() -> None:
    for path in MODELS.glob("*/config.pbtxt"):
        assert ignored(parsed(path.read_text())) == {}


def test_inner_fields_are_as_the_one_around_them() -> None:
    assert fate_of("optimization.cuda.graph_spec.batch_size") == FIELDS["optimization.cuda"]
    assert fate_of("dynamic_batching.preferred_batch_size")[0] == "honoured"
