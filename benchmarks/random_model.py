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


def make(config: transformers.PretrainedConfig, out: Path) -> Path:
    """The model folder ``out``, with a tokenizer of bytes; made once."""
    if (out / "manifest.json").exists():
        return out
    source = out.with_name(out.name + ".source")
    source.mkdir(parents=True, exist_ok=True)
    (source / "config.json").write_text(json.dumps(config.to_dict(), default=str))
    made = skeleton.build(config, torch.bfloat16)
    state = {n: v for n, v in made.model.state_dict().items() if not (made.tied and n == made.head_name)}
    torch.manual_seed(0)
    groups: dict[str, dict[str, torch.Tensor]] = {}
    for name, value in state.items():
        layer = name.removeprefix(made.layers_name + ".").split(".")[0] if name.startswith(made.layers_name) else "outside"
        values = torch.ones(value.shape) if "norm" in name else torch.randn(value.shape) * 0.02
        groups.setdefault(f"model-{layer}.safetensors", {})[name] = values.to(torch.bfloat16)
    for file, tensors in groups.items():
        save_file(tensors, source / file)
    index = {name: file for file, tensors in groups.items() for name in tensors}
    (source / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    _tokenizer(source, config.vocab_size)
    prepare(source, out)
    shutil.rmtree(source)
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
