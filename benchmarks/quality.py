"""What storing weights in fewer bytes does to a model's answers: docs/QUALITY.md, by one command.

    python benchmarks/quality.py [--gemma FILE.gguf]

Perplexity of a text, and at how many of its positions the likeliest token is the one of the weights as they were. All forms are computed in fp32 by
transformers with the values that each holds, so that what differs is the weights alone. What comes from a 4-bit file lies on a 4-bit grid, and no
4-bit form does it harm: so SmolLM2 is tried as it is and with noise of 8 % of each weight's row, as far from such a grid as weights are that never
were on one.
"""

from __future__ import annotations

import json
import math
import tempfile
from pathlib import Path
from typing import Any, Final

import click
import torch
import transformers
from transformers import AutoTokenizer, PreTrainedModel

from potatod import model_folder
from potatod.store import skeleton
from potatod.store.prepare import prepare
from potatod.worker.banded import Banded
from potatod.worker.kv import rounded
from potatod.worker.weights import read_parts

ROOT: Final = Path(__file__).resolve().parent.parent
SMOL: Final = ROOT / ".cache" / "SmolLM2-135M-Instruct.Q4_1.gguf"
#: Prose that the repository ships.
TEXT: Final = [ROOT / "docs" / name for name in ("PROTOCOL.md", "OPERATIONS.md", "GLOSSARY.md")]
#: Tokens of each window of the text, and windows.
WINDOW, WINDOWS = 512, 5
NOISE: Final = 0.08
#: What is said of weights in bf16 whose KV is rounded.
KV: Final = "bfloat16, KV in float8"


def filled(folder: Path) -> PreTrainedModel:
    """transformers' model in fp32 with the values that the folder holds."""
    manifest = model_folder.load(folder)
    model = transformers.AutoModelForCausalLM.from_config(skeleton.load_config(folder), dtype=torch.float32).eval()
    values = {}
    for shard in manifest.shards:
        prefix = f"{manifest.layers_name}.{shard.layer}." if shard.kind == "layer" else ""
        for name, value in read_parts(folder, shard.parts):
            values[prefix + name] = exactly(value)
    if manifest.tied:  # stored otherwise than the embedding it is another matrix
        model.lm_head.weight = torch.nn.Parameter(values[manifest.head_name])
    model.load_state_dict(values)
    return model


def exactly(value: torch.Tensor) -> torch.Tensor:
    """In fp32, as a scheme holds it and not as bf16 would."""
    from potatod import schemes

    if not isinstance(value, Banded):
        return value.float().clone()
    return torch.cat([schemes.get(piece.scheme).view(piece.lies, "float32", piece.shape) for piece in value.pieces])


def windows(folder: Path) -> list[torch.Tensor]:
    text = "\n".join(path.read_text() for path in TEXT)
    ids = AutoTokenizer.from_pretrained(folder)(text, return_tensors="pt").input_ids[0]
    return [ids[at : at + WINDOW] for at in range(0, min(len(ids), WINDOW * WINDOWS) - WINDOW + 1, WINDOW)]


class Rounding(transformers.DynamicCache):  # type: ignore[misc]  # transformers is untyped to mypy
    """Keys and values as `[kv] dtype = "float8"` keeps them."""

    def update(self, keys: torch.Tensor, values: torch.Tensor, *arguments: Any, **named: Any) -> tuple[torch.Tensor, torch.Tensor]:
        kept = (rounded(each, torch.float8_e4m3fn).to(each.dtype) for each in (keys, values))
        return super().update(*kept, *arguments, **named)  # type: ignore[no-any-return]


@torch.inference_mode()
def judged(folder: Path, likeliest: list[torch.Tensor] | None, cache: type[transformers.DynamicCache]) -> tuple[float, float, list[torch.Tensor]]:
    """Perplexity, share of positions with the likeliest tokens that are given, and its own."""
    model = filled(folder)
    loss, count, own = 0.0, 0, []
    for window in windows(folder):
        logits = model(window[None], past_key_values=cache(config=model.config), use_cache=True).logits[0, :-1]
        loss += float(torch.nn.functional.cross_entropy(logits, window[1:], reduction="sum"))
        count += len(window) - 1
        own.append(logits.argmax(-1))
    same = 1.0 if likeliest is None else sum(int((a == b).sum()) for a, b in zip(own, likeliest, strict=True)) / count
    return math.exp(loss / count), same, own


def with_noise(folder: Path, out: Path, noise: float = NOISE) -> Path:
    """A Hugging Face folder of the same model, each layer's matrices off by this share of their rows' size, in bf16."""
    model = filled(folder)
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        if parameter.dim() == 2 and "embed" not in name and name != "lm_head.weight":
            sigma = parameter.data.std(dim=1, keepdim=True)
            parameter.data += torch.randn(parameter.shape, generator=generator) * sigma * noise
    model.tie_weights()
    model.to(torch.bfloat16).save_pretrained(out)
    AutoTokenizer.from_pretrained(folder).save_pretrained(out)
    return out


def table(source: Path, forms: tuple[str, ...], place: Path) -> dict[str, Any]:
    rows: dict[str, Any] = {}
    likeliest = None
    for form in (*forms, KV):
        out = place / (form if form != KV else "bfloat16")
        if form != KV:
            prepare(source, out, dtype=form, notice=lambda _: None)
        perplexity, same, own = judged(out, likeliest, Rounding if form == KV else transformers.DynamicCache)
        likeliest = likeliest or own
        weights = sum(p.length for s in model_folder.load(out).shards if s.kind in ("layer", "head") for p in s.parts)
        click.echo(f"{source.name} as {form}: perplexity {perplexity:.3f}, the same token at {same:.1%}", err=True)
        rows[form] = {"weights_bytes": weights, "perplexity": round(perplexity, 3), "same_token": round(same, 4)}
    return rows


@click.command()
@click.option("--smol", type=click.Path(path_type=Path), default=SMOL, show_default=True)
@click.option("--gemma", type=click.Path(path_type=Path), help="Gemma 3 270M as a GGUF file; left out without it.")
def main(smol: Path, gemma: Path | None) -> None:
    """Print the tables, and write bench-out/quality.json."""
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    result: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="pq-") as name:
        place = Path(name)
        result["SmolLM2-135M-Instruct"] = table(smol, ("bfloat16", "packed", "keep", "int8", "int4"), place / "smol")
        noisy = with_noise(place / "smol" / "bfloat16", place / "noisy")
        result["SmolLM2-135M-Instruct + 8 % noise"] = table(noisy, ("bfloat16", "packed", "int8", "int4"), place / "smol8")
        if gemma:
            result["Gemma 3 270M"] = table(gemma, ("bfloat16", "packed", "keep", "int8", "int4"), place / "gemma")
    for model, rows in result.items():
        click.echo(f"\n{model}\n\n| stored as | MB a sweep | perplexity | same likeliest token |\n|---|---|---|---|")
        for form, row in rows.items():
            click.echo(f"| {form} | {row['weights_bytes'] / 1e6:.0f} | {row['perplexity']:.2f} | {row['same_token']:.1%} |")
    (ROOT / "bench-out").mkdir(exist_ok=True)
    (ROOT / "bench-out" / "quality.json").write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
