"""Write two small networks with random weights, and what transformers makes of them.

Needs torch. `python tests/infer_svc/generation/make_golden.py` writes `golden/`.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from transformers import BartConfig, BartForConditionalGeneration, GPT2Config, GPT2LMHeadModel

GOLDEN = Path(__file__).parent / "golden"
TOKENS = 24
VOCABULARY, WIDTH, POSITIONS = 90, 32, 64
PROMPTS = [[5, 6, 7], [8, 9, 10, 11, 12], [1], [30, 31, 32, 33, 34, 35, 36, 37, 38]]
SOURCES = [[0, 5, 6, 7, 2], [0, 8, 9, 10, 11, 12, 13, 2], [0, 20, 2], [0, 71, 70, 69, 68, 67, 2]]


def scatter(network: Any, spread: float) -> Any:
    """Give a network weights with which it does not say the same token again and again."""
    torch.manual_seed(2)
    for name, weight in network.named_parameters():
        if weight.dim() > 1:
            place = "embed_positions" in name or "wpe" in name
            # What stands where matters more than what it is: else a token calls for itself.
            weight.data.normal_(0, 4 * spread if place else 0.2 if "shared" in name else spread)
        else:
            weight.data.add_(0.05 * torch.randn_like(weight))
    return network.eval()


def keep(name: str, network: Any, given: list[list[int]], **options: Any) -> None:
    """Write config, weights, and what is generated for each of the given ids."""
    folder = GOLDEN / name
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(network.config.to_json_string())
    weights = {key: value.contiguous() for key, value in network.state_dict().items()}
    weights = {key: value for key, value in weights.items() if key not in TIED}
    save_file(weights, folder / "model.safetensors")
    made = []
    for ids in given:
        out = network.generate(
            torch.tensor([ids]), do_sample=False, num_beams=1, max_new_tokens=TOKENS,
            min_new_tokens=TOKENS, **options,
        )  # fmt: skip
        made.append(out[0].tolist()[-TOKENS:])
    (folder / "expected.json").write_text(json.dumps({"given": given, "made": made}) + "\n")
    forced = torch.randint(3, VOCABULARY, (len(given), TOKENS))
    logits = [
        network(torch.tensor([ids]), decoder_input_ids=row[None]) if "bart" in name
        else network(row[None])
        for ids, row in zip(given, forced, strict=True)
    ]  # fmt: skip
    rows = torch.cat([out.logits for out in logits]).detach().numpy()
    np.savez_compressed(folder / "forced.npz", ids=forced.numpy(), logits=rows)
    print(name, *made, sep="\n")


TIED = {
    "lm_head.weight", "model.encoder.embed_tokens.weight", "model.decoder.embed_tokens.weight"
}  # fmt: skip
"""Other names of a matrix that is there already, as hubs leave them out."""

if __name__ == "__main__":
    gpt2 = GPT2Config(
        vocab_size=VOCABULARY, n_positions=POSITIONS, n_embd=WIDTH, n_layer=2, n_head=2,
        bos_token_id=0, eos_token_id=None,
    )  # fmt: skip
    keep("gpt2", scatter(GPT2LMHeadModel(gpt2), 0.5), PROMPTS)
    bart = BartConfig(
        vocab_size=VOCABULARY, d_model=WIDTH, encoder_layers=2, decoder_layers=2,
        encoder_attention_heads=2, decoder_attention_heads=2, encoder_ffn_dim=48,
        decoder_ffn_dim=48, max_position_embeddings=POSITIONS, pad_token_id=1, bos_token_id=0,
        eos_token_id=2, decoder_start_token_id=2, forced_eos_token_id=None, scale_embedding=True,
    )  # fmt: skip
    network = BartForConditionalGeneration(bart)
    network.tie_weights()
    network = scatter(network, 0.2)
    network.final_logits_bias.normal_(0, 0.1)
    keep("bart", network, SOURCES)
