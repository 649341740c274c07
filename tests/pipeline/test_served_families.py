"""Families that are served in another way than most, and prompts longer than a sweep takes: whole daemons, and transformers' own tokens."""

from __future__ import annotations

import json

import pytest
from daemons import Daemon
from factories import checkpoint
from families import by_name, longrope

from potatod.store.prepare import prepare

COUNT = 24
WORDS = "How many potatoes does a person eat in a year, and where do most of them grow? "
#: longrope turns by its long set beyond so many tokens
BORDER = 60


def _longrope() -> dict:
    config = by_name("Phi-3 (long rope)").config()
    rope = {**config.rope_parameters, **longrope(4.0, BORDER)}
    return {"rope_parameters": rope, "original_max_position_embeddings": BORDER, "max_position_embeddings": 256}


@pytest.mark.parametrize(
    ("family", "overrides", "prompts"),
    [
        pytest.param("Llama 3", {"max_position_embeddings": 2048}, [WORDS * 8], id="a prompt of two sweeps"),
        pytest.param("Phi-3 (long rope)", _longrope(), [WORDS, "Potatoes and what they need"], id="longrope, prompt and answer go over the border"),
        pytest.param("Falcon", {}, [WORDS], id="Falcon, by token"),
        pytest.param("Mamba 2", {}, [WORDS], id="Mamba 2, by token"),
        pytest.param("Qwen3-Next", {}, [WORDS], id="Qwen3-Next, by token"),
    ],
)
def test_the_tokens_are_those_of_transformers(tmp_path, probe_cache, family, overrides, prompts):
    source, model = checkpoint(tmp_path / "source", family, tokenizer=True, **overrides), tmp_path / "model"
    prepare(source, model)
    expected = [_greedy(source, prompt) for prompt in prompts]
    with Daemon(model, probe_cache, "--front-max-context", "1024" if family == "Llama 3" else "200") as daemon:
        answers = [daemon.ask(prompt, "--max-tokens", str(COUNT)) for prompt in prompts]
        report = json.loads(daemon.client("status", "--json").stdout)
    assert [(answer["prompt_tokens"], answer["token_ids"]) for answer in answers] == expected
    lengths = [length for length, _ in expected]
    if family == "Llama 3":
        assert lengths[0] > 512
    if family.startswith("Phi-3"):
        assert lengths[0] > BORDER and lengths[1] < BORDER < lengths[1] + COUNT
    assert report["engine"]["restarts"] == 0


def _greedy(source, prompt: str) -> tuple[int, list[int]]:
    import torch
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32, attn_implementation="eager").eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(source)
    ids = tokenizer.apply_chat_template([{"role": "user", "content": prompt}], add_generation_prompt=True)["input_ids"]
    out = model.generate(torch.tensor([ids]), max_new_tokens=COUNT, do_sample=False)[0, len(ids) :].tolist()
    return len(ids), [token for token in out if token != 2]
