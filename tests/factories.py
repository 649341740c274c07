"""Tiny checkpoints and model folders for tests: random weights, a vocabulary of bytes, seconds to make.

Imported by tests of every cost; torch and transformers are loaded when a maker runs.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from families import VOCABULARY, Family, by_name

CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def checkpoint(
    folder: Path, family: str | Family = "Llama 2", dtype: str = "float32", *, seed: int = 0, tokenizer: bool = False,
    shard_size: str = "5GB", **overrides: Any,
) -> Path:  # fmt: skip
    """A Hugging Face folder of the family's tiny random model, every tensor random; ``overrides`` go into its config."""
    import torch
    import transformers

    chosen = by_name(family) if isinstance(family, str) else family
    config = chosen.config()
    for key, value in overrides.items():
        setattr(config, key, value)
    torch.manual_seed(seed)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.5)
    model.save_pretrained(folder, max_shard_size=shard_size)
    if tokenizer:
        add_tokenizer(folder)
    return folder


def prepared_folder(place: Path, family: str | Family = "Llama 2", dtype: str = "float32", **options: Any) -> Path:
    """The model folder that `prepare` makes of :func:`checkpoint`, with a tokenizer unless told otherwise."""
    from potatod.store.prepare import prepare

    options.setdefault("tokenizer", True)
    source = checkpoint(place / "source", family, dtype, **options)
    prepare(source, place / "model", band_bytes=1 << 13)
    return place / "model"


def add_tokenizer(folder: Path) -> None:
    """A byte-level tokenizer of VOCABULARY tokens, with the special ones and the chat template of many models."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    special = ["<pad>", "<|im_start|>", "<|im_end|>"]
    filler = [f"<unused{n}>" for n in range(VOCABULARY - len(alphabet) - len(special))]
    vocabulary = {token: n for n, token in enumerate([*special, *alphabet, *filler])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in special])
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<|im_start|>", "eos_token": "<|im_end|>",
        "pad_token": "<pad>", "chat_template": CHAT_TEMPLATE,
    }  # fmt: skip
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def tensors_of(folder: Path) -> dict[str, Any]:
    """Every tensor of a model folder by the model's name for it, read by safetensors itself."""
    from safetensors import safe_open

    from potatod import model_folder

    manifest = model_folder.load(folder)
    found = {}
    for file in manifest.files:
        prefix = f"{manifest.layers_name}.{int(file.split('.')[1])}." if file.startswith("layer.") else ""
        with safe_open(folder / file, "pt") as opened:
            found |= {prefix + name: opened.get_tensor(name) for name in opened.keys() if not name.startswith("__pad.")}  # noqa: SIM118
    return found


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a folder, to compare two of them."""
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}
