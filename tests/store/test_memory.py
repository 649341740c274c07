"""`prepare` never holds the model: its peak is about two shards, measured from outside by the kernel."""

from __future__ import annotations

import json
import subprocess
import sys

import torch
import transformers

#: Says what is resident before and the peak after, in KiB. A first, tiny preparation brings in every import and cache.
#: The kernel's ru_maxrss would not do: it survives exec, so a child begins with its parent's.
MEASURE = """
import json, sys
from pathlib import Path
from potatod.store.prepare import prepare
def said(name):
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(name))
tiny, large, out = map(Path, sys.argv[1:])
prepare(tiny, out / "tiny")
before = said("VmRSS:")
prepare(large, out / "large")
print(json.dumps([before, said("VmHWM:")]))
"""


def measured(tmp_path, tiny, large) -> tuple[int, int, int]:
    """Bytes that the large one took more than the tiny one, of its largest shard, and of all its shards."""
    run = [sys.executable, "-c", MEASURE, tiny, large, tmp_path / "out"]
    before, after = json.loads(subprocess.run(run, capture_output=True, check=True).stdout)
    sizes = {path.name: path.stat().st_size for path in (tmp_path / "out" / "large").glob("*.safetensors")}
    shard = max(size for name, size in sizes.items() if name.startswith("layer."))
    return (after - before) * 1024, shard, sum(sizes.values())


def make(folder, width: int, layers: int, **more):
    config = transformers.LlamaConfig(
        hidden_size=width, intermediate_size=4 * width, num_hidden_layers=layers, num_attention_heads=8, vocab_size=40 * width, **more
    )
    model = transformers.LlamaForCausalLM(config).to(torch.bfloat16)
    model.save_pretrained(folder)
    return folder


def test_the_peak_is_about_two_shards_whatever_the_model_weighs(tmp_path):
    tiny = make(tmp_path / "tiny", 64, 1, tie_word_embeddings=False)
    large = make(tmp_path / "large", 1024, 8, tie_word_embeddings=False)
    more, shard, whole = measured(tmp_path, tiny, large)
    assert shard > 30 << 20 and whole > 10 * shard, "the model is too small for this test to mean anything"
    assert more < 2 * shard, f"{more >> 20} MiB for shards of {shard >> 20} MiB"


def test_fusing_a_hundred_experts_takes_little_more(tmp_path):
    """transformers stacks the gates, then the ups, then joins them: two thirds of a layer twice, and the rest beside it."""
    tiny = make(tmp_path / "tiny", 64, 1, tie_word_embeddings=False)
    config = transformers.Qwen3MoeConfig(
        hidden_size=512, moe_intermediate_size=256, num_experts=96, num_experts_per_tok=4, num_hidden_layers=5,
        num_attention_heads=8, num_key_value_heads=8, head_dim=64, vocab_size=1000,
    )  # fmt: skip
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(tmp_path / "large")
    more, shard, whole = measured(tmp_path, tiny, tmp_path / "large")
    assert shard > 60 << 20 and whole > 4 * shard
    assert more < 3.0 * shard, f"{more >> 20} MiB for shards of {shard >> 20} MiB"
