"""The large random model in the forms that ours and the peers read, each made once, in .cache.

    random-3gb           ours, prepared
    random-3gb.hf        a Hugging Face folder, bf16                                  accelerate, and what the others are made from
    random-3gb.airllm    AirLLM's shards of a layer each, bf16, written by itself     AirLLM
    random-3gb.f16.gguf  F16; norms and biases F32, as llama.cpp's own converter has them
    random-3gb.q8_0.gguf, random-3gb.q4_k_m.gguf      made of it by llama.cpp itself

Run in benchmarks/, as ``python -m peers.models``.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import click
import gguf
import numpy as np
import random_model
import torch
import transformers
from safetensors import safe_open

from peers import environments
from potatod.store.prepare import prepare

CACHE = environments.ROOT / ".cache"
OURS, HF, AIRLLM, GGUF = (CACHE / f"random-3gb{end}" for end in ("", ".hf", ".airllm", ".f16.gguf"))

#: As llama.cpp numbers them.
FILE_TYPES = {"q8_0": "7", "q4_k_m": "15"}


def make() -> None:
    """All of them, but for a peer that has no environment."""
    random_model.checkpoint(random_model.large(), HF)
    if not (OURS / "manifest.json").exists():
        click.echo(f"{OURS.name}: preparing …")
        prepare(HF, OURS)
    in_gguf()
    if environments.python("airllm").exists() and not (AIRLLM / "done").exists():
        click.echo(f"{AIRLLM.name}: AirLLM writes its shards …")
        AIRLLM.mkdir(exist_ok=True)
        program = Path(__file__).with_name("run_airllm.py")
        command = [environments.python("airllm"), program, HF, "--shards", AIRLLM, "--prompt", "3", "--tokens", "0"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        (AIRLLM / "done").touch()


def in_gguf() -> Path:
    """As F16; made once."""
    if not GGUF.exists():
        random_model.checkpoint(random_model.large(), HF)
        click.echo(f"{GGUF.name}: writing …")
        write_gguf(HF, GGUF)
    return GGUF


def quantised(form: str) -> Path:
    """The large model as llama.cpp quantises it, "q8_0" or "q4_k_m"; made once, with llama.cpp's environment."""
    out = CACHE / f"random-3gb.{form}.gguf"
    if not out.exists():
        part = out.with_suffix(".part")
        program = (
            "import ctypes, sys, llama_cpp as l; p = l.llama_model_quantize_default_params(); p.ftype = int(sys.argv[3]); "
            "sys.exit(l.llama_model_quantize(sys.argv[1].encode(), sys.argv[2].encode(), ctypes.byref(p)))"
        )
        command = [environments.python("llama.cpp"), "-c", program, in_gguf(), part, FILE_TYPES[form]]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        os.replace(part, out)
    return out


def write_gguf(folder: Path, out: Path) -> None:
    """Qwen2 as F16. Without a vocabulary: it is asked with token ids, so its 152k texts would only cost it RAM."""
    config = transformers.AutoConfig.from_pretrained(folder)
    index: dict[str, str] = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.QWEN2, config.num_hidden_layers)
    part = out.with_suffix(".part")
    writer = gguf.GGUFWriter(part, "qwen2")
    _describe(writer, config)
    shapes = {name: _tensor(folder, index, name).shape for name in index}
    for name, shape in shapes.items():
        kind = _kind(shape)
        target = names.get_name(name, try_suffixes=(".weight", ".bias"))
        writer.add_tensor_info(target, shape, np.dtype(kind), int(np.prod(shape)) * np.dtype(kind).itemsize)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for name, shape in shapes.items():
        writer.write_tensor_data(_tensor(folder, index, name).float().numpy().astype(_kind(shape)))
    writer.close()
    os.replace(part, out)


def _kind(shape: Any) -> type[np.floating[Any]]:
    return np.float16 if len(shape) > 1 else np.float32


def _tensor(folder: Path, index: dict[str, str], name: str) -> torch.Tensor:
    with safe_open(folder / index[name], framework="pt") as file:
        return file.get_tensor(name)  # type: ignore[no-any-return]


def _describe(writer: gguf.GGUFWriter, config: transformers.PretrainedConfig) -> None:
    rope = config.rope_parameters or {}
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_rope_freq_base(rope.get("rope_theta", 10_000.0))
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    writer.add_tokenizer_model("no_vocab")
    writer.add_vocab_size(config.vocab_size)


@click.command()
def main() -> None:
    """Make the model in every form."""
    make()


if __name__ == "__main__":
    main()
