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
    run = [sys.executable, "-c", MEASURE, tiny, large, tmp_path / "out"]
    before, after = json.loads(subprocess.run(run, capture_output=True, check=True).stdout)
    sizes = {path.name: path.stat().st_size for path in (tmp_path / "out" / "large").glob("layer.*.safetensors")}
    shard, whole = max(sizes.values()), sum(path.stat().st_size for path in (tmp_path / "out" / "large").glob("*.safetensors"))
    assert shard > 30 << 20 and whole > 10 * shard, "the model is too small for this test to mean anything"
    assert (after - before) * 1024 < 2 * shard, f"{(after - before) / 1024:.0f} MiB for shards of {shard >> 20} MiB"
