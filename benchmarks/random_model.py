"""A checkpoint of random weights, prepared like any other: for measuring bytes and arithmetic, where the text does not matter."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
import transformers
from safetensors.torch import save_file

from potatod.store import skeleton
from potatod.store.prepare import prepare


def large() -> transformers.PretrainedConfig:
    """3.09 GB in bf16: 28 layers, 1536 wide, a tied vocabulary of 151,936."""
    return transformers.Qwen2Config(
        hidden_size=1536, num_hidden_layers=28, intermediate_size=8960, num_attention_heads=12, num_key_value_heads=2,
        vocab_size=151936, tie_word_embeddings=True, max_position_embeddings=32768, dtype="bfloat16", bos_token_id=1, eos_token_id=2,
        architectures=["Qwen2ForCausalLM"],
    )  # fmt: skip


def small() -> transformers.PretrainedConfig:
    """0.34 billion weights: 24 layers, 1024 wide, a tied vocabulary of 32,000."""
    return transformers.Qwen2Config(
        hidden_size=1024, num_hidden_layers=24, intermediate_size=2816, num_attention_heads=16, num_key_value_heads=4, vocab_size=32000,
        tie_word_embeddings=True, max_position_embeddings=32768, bos_token_id=1, eos_token_id=2, architectures=["Qwen2ForCausalLM"],
    )  # fmt: skip


def make(config: transformers.PretrainedConfig, out: Path, dtype: str = "bfloat16") -> Path:
    """The model folder ``out``, with a tokenizer of bytes; made once."""
    if (out / "manifest.json").exists():
        return out
    source = checkpoint(config, out.with_name(out.name + ".source"), dtype)
    prepare(source, out)
    shutil.rmtree(source)
    return out


def checkpoint(config: transformers.PretrainedConfig, out: Path, dtype: str = "bfloat16") -> Path:
    """The same weights as a Hugging Face folder, a file for each layer; made once. Its index is written last."""
    if (out / "model.safetensors.index.json").exists():
        return out
    out.mkdir(parents=True, exist_ok=True)
    kind = getattr(torch, dtype)
    (out / "config.json").write_text(json.dumps(config.to_dict() | {"dtype": dtype}, default=str))
    made = skeleton.build(config, kind)
    state = {n: v for n, v in made.model.state_dict().items() if not (made.tied and n == made.head_name)}
    torch.manual_seed(0)
    groups: dict[str, dict[str, torch.Tensor]] = {}
    for name, value in state.items():
        layer = name.removeprefix(made.layers_name + ".").split(".")[0] if name.startswith(made.layers_name) else "outside"
        values = torch.ones(value.shape) if "norm" in name else torch.randn(value.shape) * 0.02
        groups.setdefault(layer, {})[name] = values.to(kind)
    index = {}
    for number, tensors in enumerate(groups.values(), 1):
        file = f"model-{number:05}-of-{len(groups):05}.safetensors"
        save_file(tensors, out / file, metadata={"format": "pt"})
        index |= dict.fromkeys(tensors, file)
    _tokenizer(out, config.vocab_size)
    (out / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    return out


def _tokenizer(folder: Path, size: int) -> None:
    """Bytes, and a made-up word for every other id: whatever is sampled has a text, so it is shown."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    alphabet = ["<pad>", "<s>", "</s>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    alphabet += [f"w{number}" for number in range(len(alphabet), size)]
    inner = Tokenizer(models.BPE(vocab={word: i for i, word in enumerate(alphabet)}, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="<pad>", bos_token="<s>", eos_token="</s>")
    fast.save_pretrained(folder)
