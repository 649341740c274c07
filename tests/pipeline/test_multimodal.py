"""The text part of models that also see: checkpoint, model folder, daemon, client, and the tokens of the whole model fed with text."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from daemons import Daemon
from factories import add_tokenizer
from families import VOCABULARY

from potatod.store.prepare import prepare

_TEXT = {
    "vocab_size": VOCABULARY, "hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 6, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 512, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
_VISION = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 28, "patch_size": 14,
}  # fmt: skip
_IDS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "image_token_id": VOCABULARY - 1}
MODELS = {
    "Gemma3ForConditionalGeneration": {
        "model_type": "gemma3", "text_config": {**_TEXT, "sliding_window": 16, "query_pre_attn_scalar": 16}, "vision_config": _VISION,
        "mm_tokens_per_image": 4, **_IDS,
    },
    "Mistral3ForConditionalGeneration": {
        "model_type": "mistral3", "text_config": {"model_type": "mistral", **_TEXT, "sliding_window": 16},
        "vision_config": {"model_type": "pixtral", **_VISION, "head_dim": 16}, **_IDS,
    },
    "Llama4ForConditionalGeneration": {
        "model_type": "llama4",
        "text_config": {
            **_TEXT, "num_local_experts": 4, "num_experts_per_tok": 1, "intermediate_size_mlp": 160, "interleave_moe_layer_step": 2,
            "attention_chunk_size": 16,
        },
        "vision_config": {**_VISION, "vision_output_dim": 32, "projector_input_dim": 32, "projector_output_dim": 32}, **_IDS,
    },
}  # fmt: skip
PROMPT = "What is a potato, and who ate the first one?"
COUNT = 12
#: So small that layers stream.
POOLS = {
    "Gemma3ForConditionalGeneration": "640KiB", "Mistral3ForConditionalGeneration": "640KiB", "Llama4ForConditionalGeneration": "1400KiB",
}  # fmt: skip


def save(place: Path, architecture: str) -> Path:
    """A checkpoint of the whole model, every weight random, as its authors would publish it."""
    import torch
    import transformers

    config = transformers.AutoConfig.for_model(**MODELS[architecture])
    torch.manual_seed(2)
    model = getattr(transformers, architecture)._from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for name, parameter in model.named_parameters():  # so that the tokens of an answer differ from each other
            if parameter.dim() == 1:
                parameter.add_(torch.randn_like(parameter), alpha=0.1)
            elif "embed" not in name:
                parameter.normal_(std=0.2)
    model.save_pretrained(place)
    add_tokenizer(place)
    return place


def greedy(source: Path, architecture: str) -> tuple[int, list[int]]:
    """Tokens of the prompt, and what transformers' whole model answers to the text alone."""
    import torch
    import transformers

    model = getattr(transformers, architecture).from_pretrained(source, dtype=torch.float32, attn_implementation="eager").eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(source)
    ids = tokenizer.apply_chat_template([{"role": "user", "content": PROMPT}], add_generation_prompt=True)["input_ids"]
    out = model.generate(torch.tensor([ids]), max_new_tokens=COUNT, do_sample=False)[0, len(ids) :].tolist()
    return len(ids), out


@pytest.mark.parametrize("architecture", MODELS)
def test_the_tokens_are_those_of_the_whole_model_fed_with_text(tmp_path, probe_cache, architecture):
    source, model = save(tmp_path / "source", architecture), tmp_path / "model"
    prepare(source, model)
    prompt, expected = greedy(source, architecture)
    assert len(expected) == COUNT and len(set(expected)) >= COUNT // 2, "tokens that are all alike would show little"
    with Daemon(model, probe_cache, "--pool-size", POOLS[architecture], "--front-max-context", "256") as daemon:
        answer = daemon.ask(PROMPT, "--max-tokens", str(COUNT))
        report = json.loads(daemon.client("status", "--json").stdout)
    assert (answer["prompt_tokens"], answer["token_ids"]) == (prompt, expected)
    assert report["model"]["streamed_bytes_per_sweep"] > 0
