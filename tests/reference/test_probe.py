"""What the probe concludes from a config."""

from __future__ import annotations

import pytest
from families import by_name

from potatod.worker.probe import kv_bytes_per_token, max_positions


@pytest.mark.parametrize(("family", "tokens"), [("Llama 3", 512), ("GPT-2", 512), ("Phi-3 (short rope)", 256), ("Gemma 3", 512)])
def test_the_context_is_what_can_be_served_exactly(family, tokens):
    """longrope turns all positions otherwise beyond its original length, so it is served up to there."""
    assert max_positions(by_name(family).config()) == tokens


def test_kv_is_counted_by_key_value_heads():
    import torch

    assert kv_bytes_per_token(by_name("Llama 3").config(), torch.bfloat16) == 6 * 2 * 2 * 16 * 2
