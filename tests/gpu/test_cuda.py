"""The same engine on a CUDA device: exact against transformers there, slots filled from a page-locked pool."""

from __future__ import annotations

import pytest
import torch
from engine import Engine
from families import by_name

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device: torch.cuda.is_available() is False"),
]

NAMES = ["Llama 2", "Llama 3.1, 3.2", "Mistral", "Mixtral", "Qwen2", "Qwen3", "Gemma 2", "Gemma 3", "Phi-4", "gpt-oss"]
PROMPT = torch.randint(3, 320, (40,), generator=torch.Generator().manual_seed(1)).tolist()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kernels", ["reference", "invariant"])
def test_greedy_tokens_are_those_of_transformers_on_the_same_device(tmp_path, name, kernels):
    import transformers

    from potatod.store.prepare import prepare

    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(by_name(name).config(), attn_implementation="eager").eval()
    model.save_pretrained(tmp_path / "source")
    prepare(tmp_path / "source", tmp_path / "model")
    model = model.cuda()
    out = model.generate(torch.tensor([PROMPT]).cuda(), max_new_tokens=16, do_sample=False, eos_token_id=None, pad_token_id=0)
    with Engine(tmp_path / "model", 600 << 10, kernels=kernels, device="cuda:0") as engine:
        assert engine.greedy(1, PROMPT, 16) == out[0, len(PROMPT) :].tolist()
