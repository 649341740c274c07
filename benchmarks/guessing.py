"""How many tokens a pass of the target yields: trees of a draft model, its chains, transformers' assisted generation; of one pair, the same texts.

Nothing streams here: the target's texts are made first, and then is counted how far guesses are those texts.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import torch
from quality import filled
from speculating import MOST_REPEATED, NOISES, PROMPTS, TEMPERATURES, noisy, repeats
from transformers import AutoTokenizer, PreTrainedModel

from potatod import drafts, model_folder
from potatod import manifest as manifests
from potatod.config import Settings
from potatod.front.guessing import LONGEST_DRAFTS
from potatod.front.speculation import Speculation
from potatod.messages import DraftText, Drawn
from potatod.sampling.params import Sampling
from potatod.sampling.sampler import sample
from potatod.spans import Spans
from potatod.trees import ROOT
from potatod.worker import arithmetic, candidates
from potatod.worker.attention import PackedAttention
from potatod.worker.drafter import Drafter
from potatod.worker.probe import weight_shapes

#: Seconds that a sweep is said to take: what SmolLM2 takes at 50 MB/s.
SWEEP_S = 4.0
SEED = 5
#: Tokens of each text: several passes of whoever guesses best.
LENGTH = 192


def guessed(model: Path) -> dict[str, Any]:
    """Tokens per pass of the target. The pair is SmolLM2 with noise on its weights, and a copy of that in int4."""
    result: dict[str, Any] = {}
    for percent in NOISES:
        folder = noisy(model, percent)
        copy = drafts.named(folder, "int4")
        target, assistant = filled(folder), filled(copy)
        tokenizer = AutoTokenizer.from_pretrained(folder)
        ours = _drafter(copy, target.config.vocab_size)
        for temperature in TEMPERATURES:
            rows: dict[str, list[float]] = {"trees": [], "chains": [], "assisted": []}
            for name, prompt in PROMPTS.items():
                ids = tokenizer(prompt).input_ids
                text = _text(target, ids, Sampling(temperature=temperature, seed=SEED))
                if repeats(tokenizer.decode(text[len(ids) :])) > MOST_REPEATED:
                    continue
                drawn = Drawn(temperature=temperature, seed=SEED)
                rows["trees"].append(_per_pass(ours, len(ids), text, drawn))
                with _chains():
                    rows["chains"].append(_per_pass(ours, len(ids), text, drawn))
                rows["assisted"].append(_assisted(target, assistant, ids, temperature))
                click.echo(f"  {percent} % {name} T={temperature}: " + ", ".join(f"{who} {found[-1]:.2f}" for who, found in rows.items()))
            key = f"{percent} % T={temperature}"
            for name, mean in (("", statistics.mean), (", all texts together", statistics.harmonic_mean)):
                means = {who: mean(found) for who, found in rows.items()}
                result |= {f"{key} {who}{name}": round(value, 2) for who, value in means.items()}
                result |= {f"{key} trees ÷ {who}{name}": round(means["trees"] / means[who], 2) for who in ("chains", "assisted")}
    return result


def _drafter(folder: Path, vocabulary: int) -> Drafter:
    manifest = model_folder.load(folder)
    found = arithmetic.find("fast", weight_shapes(manifest), getattr(torch, manifest.dtype), torch.device("cpu"), manifests.schemes_of(manifest))
    return Drafter(folder, {"arithmetic": found.to_json()}, vocabulary, torch.device("cpu"), PackedAttention(), Spans())


@torch.inference_mode()
def _text(target: PreTrainedModel, ids: list[int], sampling: Sampling) -> list[int]:
    """What the target says, with its prompt."""
    tokens, cache = list(ids), None
    while len(tokens) < len(ids) + LENGTH:
        new = tokens if cache is None else tokens[-1:]
        said = target(torch.tensor([new]), past_key_values=cache, use_cache=True, logits_to_keep=1)
        cache = said.past_key_values
        tokens.append(sample(said.logits[0, -1].float().numpy(), tokens, sampling, 0, len(tokens)))
        if tokens[-1] == target.config.eos_token_id:
            break
    return tokens


def _per_pass(ours: Drafter, known: int, text: list[int], drawn: Drawn) -> float:
    """As the front asks and verifies, with a target that says this text. The last pass is left out: it is over where the text is."""
    speculation = Speculation(Settings().speculation.max_tokens, lookup=False, draft=True)
    ours.forget(1)
    at, passes, before = known, 0, known
    while at < len(text):
        room = len(text) - at - 1
        ask = speculation.ask(1, [DraftText(1, tuple(text[:at]), room, room, drawn)], LONGEST_DRAFTS, SWEEP_S, 0.0)
        assert ask is not None, "it does not pay"
        speculation.told(ours.draft(replace(ask, reads=1 << 20), lambda: None))
        tree = speculation.draft([(1, text[:at], room)], LONGEST_DRAFTS, lambda _: SWEEP_S).get(1)
        node, right = ROOT, 0
        while tree is not None and at + right < len(text) - 1 and (following := tree.child(node, text[at + right])) is not None:
            node, right = following, right + 1
        if tree is not None:
            speculation.verified(1, tree, text[at : at + right])
        before, at, passes = at, at + right + 1, passes + 1
    return (before - known) / (passes - 1)


@contextmanager
def _chains() -> Iterator[None]:
    """Nobody looks at second choices: a chain as long as a sweep verifies is what is left."""
    before, candidates.CANDIDATES = candidates.CANDIDATES, 1
    try:
        yield
    finally:
        candidates.CANDIDATES = before


def _assisted(target: PreTrainedModel, assistant: PreTrainedModel, ids: list[int], temperature: float) -> float:
    passes, forward = 0, target.forward

    def counted(*arguments: Any, **named: Any) -> Any:
        nonlocal passes
        passes += 1
        return forward(*arguments, **named)

    sampled = {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0} if temperature else {"do_sample": False}
    torch.manual_seed(SEED)
    target.forward = counted
    try:
        out = target.generate(torch.tensor([ids]), assistant_model=assistant, max_new_tokens=LENGTH, pad_token_id=0, **sampled)
    finally:
        target.forward = forward
    return (out.shape[1] - len(ids)) / passes
