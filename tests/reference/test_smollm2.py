"""A real model: SmolLM2-135M-Instruct from a GGUF file, against transformers reading the same file."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
import transformers
from engine import Engine
from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

from potatod.store import skeleton
from potatod.store.gguf_file import names_once
from potatod.store.prepare import prepare

ROOT = Path(__file__).resolve().parents[2]
GGUF = Path(os.environ.get("POTATO_TEST_GGUF", ROOT / ".cache" / "SmolLM2-135M-Instruct.Q4_1.gguf"))
PROMPT = "The old lighthouse keeper climbed the stairs one last time, because"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not GGUF.exists(), reason=f"{GGUF} is not there: `make test` fetches it, or set POTATO_TEST_GGUF"),
]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("smollm2") / "model"
    prepare(GGUF, out, dtype="float32")
    return out


@pytest.fixture(scope="module")
def expected(model: Path) -> tuple[list[int], list[int]]:
    """The prompt's tokens, and the 64 that transformers continues it with."""
    transformers.logging.set_verbosity_error()
    plain = transformers.AutoModelForCausalLM.from_config(
        skeleton.load_config(model), dtype=torch.float32, attn_implementation="eager"
    ).eval()
    with names_once():
        tensors = load_gguf_checkpoint(str(GGUF), return_tensors=True, model_to_load=plain, torch_dtype=torch.float32)["tensors"]
    plain.load_state_dict(tensors, strict=False)
    tokenizer = transformers.AutoTokenizer.from_pretrained(model)
    ids = tokenizer(PROMPT)["input_ids"]
    out = plain.generate(torch.tensor([ids]), max_new_tokens=64, do_sample=False, eos_token_id=None, pad_token_id=0)
    return ids, out[0, len(ids) :].tolist()


@pytest.mark.timeout(600)
@pytest.mark.parametrize("kernels", ["reference", "invariant"])
def test_64_greedy_tokens_are_those_of_transformers(model: Path, expected: tuple[list[int], list[int]], kernels: str):
    ids, tokens = expected
    with Engine(model, 400 << 20, kernels=kernels) as engine:
        assert engine.plan.streamed_bytes > 100e6
        assert engine.greedy(1, ids, 64) == tokens
