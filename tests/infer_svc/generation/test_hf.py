"""A Hugging Face folder becomes a model's folder that says what transformers says."""

import asyncio
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from safetensors.numpy import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from infer_svc.backends.machine import Machine
from infer_svc.generation.__main__ import main
from infer_svc.generation.engines import ENCODER, STEP
from infer_svc.generation.generator import open_generator
from infer_svc.generation.hf import Wanted, import_folder
from infer_svc.generation.settings import read_generation_config
from infer_svc.generation.stepper import OrtStepper
from infer_svc.metrics import ModelMetrics
from infer_svc.repository import load_model
from mesh.errors import SettingsError
from tests.infer_svc.generation.networks import BART, GOLDEN, GPT2, Network
from tests.infer_svc.generation.test_generator import Call

TASKS = {"gpt2": "text-generation", "bart": "summarization"}


def hf_folder(at: Path, name: str) -> Path:
    """Return a golden network as `save_pretrained` would have written it."""
    folder = at / "hf" / name
    shutil.copytree(GOLDEN / name, folder)
    words = {f"w{number}": number for number in range(90)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="w3"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="w3").save_pretrained(folder)
    return folder


def repository(at: Path) -> Path:
    root = at / "models"
    root.mkdir()
    return root


@pytest.mark.parametrize(("network", "count"), [(GPT2, 1), (BART, 2)], ids=["gpt2", "bart"])
async def test_folder_is_served_and_says_what_transformers_says(
    tmp_path: Path, network: Network, count: int
) -> None:
    root = repository(tmp_path)
    wanted = Wanted(TASKS[network.name], "m", length=36, source_length=12, slots=3)
    made = import_folder(hf_folder(tmp_path, network.name), root, wanted)
    assert made.folder == root / "m"
    assert sorted(path.name for path in root.iterdir()) == ["m"]
    graphs = list((root / "m/1").glob("*.onnx"))
    assert len(graphs) == count
    assert made.bytes == sum(path.stat().st_size for path in graphs)
    config = load_model(root / "m", Machine()).config
    assert (config.decoupled, config.slots) == (True, 3)
    loop, served = asyncio.get_running_loop(), ModelMetrics("m", 1, 0)
    generator = open_generator(config, root / "m/1", Machine(), served, loop)
    assert generator.metrics.gauges["cache_bytes"]() == made.cache_bytes
    call = Call('{"max_tokens": 9}')
    await call.run(generator, network.given[1])
    end = network.config.get("eos_token_id")
    wanted_ids = network.made[1][:9]
    assert call.tokens == wanted_ids[: wanted_ids.index(end) if end in wanted_ids else None]
    await asyncio.to_thread(generator.close)


def test_pipeline_names_the_ops_and_the_tokenizer(tmp_path: Path) -> None:
    root = repository(tmp_path)
    import_folder(hf_folder(tmp_path, "bart"), root, Wanted("summarization", "m"))
    pipeline = yaml.safe_load((root / "m/pipeline.yaml").read_text())
    assert pipeline["task"] == "generate"
    assert pipeline["preprocess"]["parameters"] == {"folder": "m/tokenizer", "max_length": 64}
    import_folder(hf_folder(tmp_path, "gpt2"), root, Wanted("text-generation", "n", length=40))
    alone = yaml.safe_load((root / "n/pipeline.yaml").read_text())["preprocess"]["parameters"]
    assert alone == {"folder": "n/tokenizer", "max_length": 39, "truncate": False}
    assert (root / pipeline["postprocess"]["parameters"]["folder"] / "tokenizer.json").is_file()


def test_generation_config_is_taken_from_an_older_config(tmp_path: Path) -> None:
    folder, root = hf_folder(tmp_path, "bart"), repository(tmp_path)
    config = json.loads((folder / "config.json").read_text())
    config |= {"no_repeat_ngram_size": 3, "decoder_start_token_id": 2, "max_length": 20}
    (folder / "config.json").write_text(json.dumps(config))
    import_folder(folder, root, Wanted("summarization", "old"))
    assert read_generation_config(root / "old/1").no_repeat_ngram_size == 3
    (folder / "generation_config.json").write_text('{"max_length": 7}')
    import_folder(folder, root, Wanted("summarization", "new"))
    found = read_generation_config(root / "new/1")
    assert (found.max_length, found.decoder_start_token_id) == (7, 2)


def test_weights_may_be_in_several_files_and_graphs_in_half_precision(tmp_path: Path) -> None:
    folder, root = hf_folder(tmp_path, "gpt2"), repository(tmp_path)
    import_folder(folder, root, Wanted("text-generation", "one"))
    weights = load_file(folder / "model.safetensors")
    names = sorted(weights)
    places: dict[str, str] = {}
    for number, part in enumerate((names[::2], names[1::2])):
        file = f"model-{number}.safetensors"
        save_file({name: weights[name] for name in part}, folder / file)
        places |= dict.fromkeys(part, file)
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    import_folder(folder, root, Wanted("text-generation", "two"))
    assert (root / "one/1" / STEP).read_bytes() == (root / "two/1" / STEP).read_bytes()
    half = import_folder(folder, root, Wanted("text-generation", "half", precision="fp16"))
    assert half.bytes < 0.6 * (root / "one/1" / STEP).stat().st_size


def test_generation_config_has_the_last_word(tmp_path: Path) -> None:
    folder, root = hf_folder(tmp_path, "gpt2"), repository(tmp_path)
    config = json.loads((folder / "config.json").read_text())
    config |= {"top_k": 3, "do_sample": True, "eos_token_id": 5}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "generation_config.json").write_text('{"temperature": 0.5}')
    import_folder(folder, root, Wanted("text-generation", "m"))
    found = read_generation_config(root / "m/1")
    assert (found.top_k, found.do_sample, found.temperature) == (None, None, 0.5)
    assert found.eos_token_id == 5


def test_words_may_have_other_vectors_at_the_end(tmp_path: Path) -> None:
    folder, root = hf_folder(tmp_path, "gpt2"), repository(tmp_path)
    weights = load_file(folder / "model.safetensors")
    name = next(name for name in weights if name.endswith("wte.weight"))
    flipped = {**weights, "lm_head.weight": -weights[name]}
    save_file(flipped, folder / "model.safetensors")
    found = {}
    for tied in (True, False):
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": tied}))
        model = f"tied_{tied}"
        import_folder(folder, root, Wanted("text-generation", model))
        found[tied] = OrtStepper(root / model / "1" / STEP, 1).step(0, [[1, 2]], [0]).all_logits
    np.testing.assert_allclose(found[False], -found[True], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["123", "null", "true", "1e3"])
def test_name_that_yaml_would_take_for_something_else_stays_a_name(
    tmp_path: Path, name: str
) -> None:
    import_folder(
        hf_folder(tmp_path, "gpt2"), repository(tmp_path), Wanted("text-generation", name)
    )  # fmt: skip
    pipeline = yaml.safe_load((tmp_path / "models" / name / "pipeline.yaml").read_text())
    assert pipeline["model"] == name


def break_nothing(folder: Path) -> None:
    pass


def drop_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def drop_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()


def lose_a_weight(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    del weights[next(name for name in weights if "ln_f" in name)]
    save_file(weights, folder / "model.safetensors")


def cut_a_weight(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    name = next(name for name in weights if "c_attn.weight" in name)
    save_file({**weights, name: weights[name][:-1].copy()}, folder / "model.safetensors")


def index_of_nothing(folder: Path) -> None:
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"a": 1}}')


def nest_deeply(folder: Path) -> None:
    (folder / "config.json").write_text("[" * 100_000)


def change(name: str, **values: Any) -> Any:
    def spoil(folder: Path) -> None:
        found = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps(found | values))

    return spoil


def garble(name: str) -> Any:
    return lambda folder: (folder / name).write_bytes(b"[1]")


@pytest.mark.parametrize(
    ("spoil", "wanted", "match"),
    [
        (break_nothing, Wanted("translation", "m"), "wanted one of"),
        (break_nothing, Wanted("summarization", "m"), "type 'gpt2' came.*'bart'"),
        (break_nothing, Wanted("text-generation", "m", length=65), "has 64 positions"),
        (drop_weights, Wanted("text-generation", "m"), "no model.safetensors.*save_pretrained"),
        (garble("model.safetensors"), Wanted("text-generation", "m"), "cannot be read"),
        (garble("config.json"), Wanted("text-generation", "m"), "no JSON object"),
        (drop_tokenizer, Wanted("text-generation", "m"), "no tokenizer can be loaded"),
        (lose_a_weight, Wanted("text-generation", "m"), "weight 'ln_f"),
        (cut_a_weight, Wanted("text-generation", "m"), "do not fit each other"),
        (change("config.json", n_head=0), Wanted("text-generation", "m"), "ZeroDivisionError"),
        (change("config.json", n_head=None), Wanted("text-generation", "m"), "TypeError"),
        (change("config.json", n_embd="x"), Wanted("text-generation", "m"), "TypeError"),
        (change("config.json", n_layer=None), Wanted("text-generation", "m"), "TypeError"),
        (change("config.json", eos_token_id=10**6), Wanted("text-generation", "m"), "vocabulary"),
        (change("config.json", top_k=-1), Wanted("text-generation", "m"), "top_k"),
        (index_of_nothing, Wanted("text-generation", "m"), "no weight_map"),
        (nest_deeply, Wanted("text-generation", "m"), "cannot be read"),
        (break_nothing, Wanted("text-generation", "m", length=1), "length of 1 came, wanted 2"),
    ],
)
def test_what_cannot_be_imported_is_told_and_leaves_nothing(
    tmp_path: Path, spoil: Any, wanted: Wanted, match: str
) -> None:
    folder, root = hf_folder(tmp_path, "gpt2"), repository(tmp_path)
    spoil(folder)
    with pytest.raises(SettingsError, match=match):
        import_folder(folder, root, wanted)
    assert list(root.iterdir()) == []


def test_model_that_is_there_already_is_not_touched(tmp_path: Path) -> None:
    root = repository(tmp_path)
    (root / "m").mkdir()
    with pytest.raises(SettingsError, match="is there already"):
        import_folder(hf_folder(tmp_path, "gpt2"), root, Wanted("text-generation", "m"))
    assert list((root / "m").iterdir()) == []


def test_repository_is_made_where_it_is_not_there(tmp_path: Path) -> None:
    folder = hf_folder(tmp_path, "gpt2")
    made = import_folder(folder, tmp_path / "some/where", Wanted("text-generation", "m"))
    assert made.folder.is_dir()
    (tmp_path / "file").touch()
    with pytest.raises(SettingsError, match="cannot be made"):
        import_folder(folder, tmp_path / "file", Wanted("text-generation", "m"))


@pytest.mark.parametrize(
    ("wanted", "match"),
    [
        (Wanted("text-generation", "a/b"), "the name 'a/b' came.*--name"),
        (Wanted("text-generation", ""), "the name '' came"),
        (Wanted("text-generation", "m", slots=0), "0 slots came, wanted 1 to"),
        (Wanted("text-generation", "m", length=-1), "a length of -1 came"),
    ],
)
def test_wishes_that_cannot_be_are_told_before_any_work(
    tmp_path: Path, wanted: Wanted, match: str
) -> None:
    with pytest.raises(SettingsError, match=match):
        import_folder(tmp_path / "none", tmp_path / "models", wanted)
    assert list(tmp_path.iterdir()) == []


def test_command_tells_what_it_made_or_why_not(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, root = hf_folder(tmp_path, "bart"), repository(tmp_path)
    words = ["import", str(folder), "--task", "summarization", "--models", str(root)]
    monkeypatch.setattr("sys.argv", words)
    assert main() == 0
    assert "caches for 8 slots" in capsys.readouterr().out
    assert (root / "bart/1" / ENCODER).is_file()
    assert main() == 1
    assert "is there already" in capsys.readouterr().err


def test_caches_are_those_of_all_slots(tmp_path: Path) -> None:
    root = repository(tmp_path)
    made = import_folder(
        hf_folder(tmp_path, "bart"), root,
        Wanted("summarization", "m", length=10, source_length=6, slots=5, precision="fp16"),
    )  # fmt: skip
    layers, width = BART.config["decoder_layers"], BART.config["d_model"]
    assert made.cache_bytes == 5 * 2 * layers * (10 + 6) * width * np.dtype(np.float16).itemsize
