"""A plan for people and for programs. Pure."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from typing import Any, Final

from potato_client.units import count

from .forecast import Forecast, Rates
from .manifest import stored_as
from .planning import Draft, Planned
from .sizes import human_size

_LABEL: Final = "{:<8}{}"
_WAITS: Final = {"disk": "the disk", "upload": "uploads to the card", "compute": "computing"}


def as_text(planned: Planned) -> str:
    return "\n".join([*_head(planned), "", *_table(planned), *_notes(planned), *_draft(planned), *_advice(planned)]) + "\n"


def as_json(planned: Planned) -> str:
    """Sizes in bytes, times in seconds."""
    plan, known, room = planned.plan, planned.outline, planned.room
    page: dict[str, Any] = {
        "model": planned.name,
        "architecture": known.manifest.architecture,
        "dtype": stored_as(known.manifest),
        "layers": known.manifest.layers,
        "disk_bytes": sum(known.manifest.files.values()),
        "weights_bytes": plan.weights_bytes,
        "available_bytes": planned.available,
        "reserve_bytes": room.reserve_bytes,
        "process_bytes": room.process_bytes,
        "draft_bytes": 0 if planned.draft is None else planned.draft.size_bytes,
        "kv_bytes": room.kv_bytes,
        "context_tokens": room.context,
        "sequences": planned.sequences,
        "prompt_tokens_per_sweep": planned.chunk,
        "pool_bytes": plan.pool_bytes,
        "resident_bytes": plan.resident_bytes,
        "ring_bytes": plan.ring_bytes,
        "streamed_bytes_per_sweep": plan.streamed_bytes,
        "vram_bytes": planned.vram,
        "card_bytes": plan.card_bytes,
        "uploaded_bytes_per_sweep": plan.uploaded_bytes,
        "slots": plan.slots,
        "slot_bytes": plan.slot_bytes,
        "disk_is": planned.disk_is,
        "device": planned.device,
        "upload_bytes_per_s": planned.upload_bytes_per_s,
        "outlooks": [
            {
                "disk_bytes_per_s": outlook.disk_bytes_per_s,
                "forecasts": [
                    {
                        "sequences": each.rows, "disk_s": each.disk_s, "upload_s": each.upload_s, "compute_s": each.compute_s,
                        "s_per_sweep": each.sweep_s, "s_per_token": each.token_s, "waits_for": each.bottleneck,
                    }
                    for each in outlook.forecasts
                ],
            }
            for outlook in planned.outlooks
        ],
        "draft": None if planned.draft is None else _draft_json(planned.draft),
        "advice": [dataclasses.asdict(advice) for advice in planned.advice],
    }  # fmt: skip
    return json.dumps(page, indent=2) + "\n"


def rates_text(rates: Rates, dtype: str, kernels: str) -> str:
    text = f"disk       {human_size(rates.disk)}/s\n"
    for rows, rate in rates.compute:
        text += f"computing  {human_size(rate)} of weights a second with {count(rows, 'token')} in a sweep ({dtype}, {kernels})\n"
    if rates.upload:
        text += f"uploading  {human_size(rates.upload)}/s to the card\n"
    return text + f"a layer    {rates.layer_s * 1000:.2f} ms, whatever its size\n"


def rates_json(rates: Rates, dtype: str, kernels: str) -> str:
    return json.dumps(dataclasses.asdict(rates) | {"dtype": dtype, "kernels": kernels}, indent=2) + "\n"


def _head(planned: Planned) -> Iterator[str]:
    plan, known, room = planned.plan, planned.outline, planned.room
    weights = plan.weights_bytes
    on_disk = human_size(sum(known.manifest.files.values()))
    yield _LABEL.format(
        "model",
        f"{planned.name}: {known.manifest.architecture}, {stored_as(known.manifest)}, {known.manifest.layers} layers; {on_disk} on disk, "
        f"{human_size(weights)} in a sweep",
    )
    yield _LABEL.format(
        "RAM",
        f"{human_size(planned.available)}: {human_size(room.process_bytes)} for the processes, {'' if planned.vram else _kv(planned) + ', '}"
        f"{human_size(room.reserve_bytes)} left alone, {human_size(plan.pool_bytes)} for the pool",
    )
    if planned.draft is not None:
        where = "the card" if planned.vram is not None else "the processes' RAM"
        yield _LABEL.format("draft", f"{planned.draft.name}, {human_size(planned.draft.size_bytes)} of {where}: its weights, and what it computes with")
    if planned.vram is not None:
        slots = f"{plan.slots} slot{'s' if plan.slots > 1 else ''} of {human_size(plan.slot_bytes)}" if plan.slots else "all weights"
        uploads = f"; {human_size(plan.uploaded_bytes)} are uploaded for every sweep" if plan.uploaded_bytes else ""
        yield _LABEL.format(
            "card",
            f"{human_size(planned.vram)} free: {_kv(planned)}, {human_size(plan.card_bytes)} resident ({plan.card_bytes / weights:.0%} of the "
            f"weights), {slots}{uploads}",
        )
    if plan.streamed_bytes:
        yield _LABEL.format(
            "pool",
            f"{human_size(plan.resident_bytes)} resident ({plan.resident_bytes / weights:.0%} of the weights), a ring of "
            f"{human_size(plan.ring_bytes)}; {human_size(plan.streamed_bytes)} are read for every sweep",
        )
    else:
        rest = "the card does not hold; " if plan.card_bytes and plan.uploaded_bytes else "; "
        yield _LABEL.format("pool", f"holds all weights{' that ' if rest != '; ' else ''}{rest}after the first sweep nothing is read")


def _kv(planned: Planned) -> str:
    return f"{human_size(planned.room.kv_bytes)} for KV (one text of {planned.room.context} tokens, or several shorter ones)"


def _table(planned: Planned) -> Iterator[str]:
    columns = planned.outlooks[0].forecasts
    row = "{:<24}" + "{:>16}" * len(columns) + "  {}"
    yield row.format(f"disk ({planned.disk_is})", *(count(each.rows, "sequence") for each in columns), "one sequence waits for")
    for outlook in planned.outlooks:
        times = [f"{_seconds(each.token_s)}/token" for each in outlook.forecasts]
        yield row.format(f"{human_size(outlook.disk_bytes_per_s)}/s", *times, _waits(planned, outlook.forecasts[0]))


def _waits(planned: Planned, one: Forecast) -> str:
    links = {"reading": one.disk_s, "uploading": one.upload_s, "computing": one.compute_s}
    shown = [f"{name} {_seconds(seconds)}" for name, seconds in links.items() if seconds]
    turns = "" if one.overlapped or not one.upload_s else ", one after the other"
    return f"{_WAITS[one.bottleneck]} ({', '.join(shown)}{turns})"


def _notes(planned: Planned) -> Iterator[str]:
    yield "Texts of a few tokens; long ones take longer."
    if (most := planned.outlooks[0].forecasts[-1].rows) > planned.sequences:
        yield f"{most} sequences need [front] max_sequences = {most}: their KV is counted there."
    if planned.device == "card" and planned.upload_bytes_per_s is not None:
        yield f"The card is supposed to be a modest one, and {human_size(planned.upload_bytes_per_s)}/s to reach it (--pcie says otherwise)."


def _draft_json(draft: Draft) -> dict[str, Any]:
    """Of one sequence."""
    return {
        "draft": draft.name, "made_by": draft.made_by or None, "without_s_per_token": draft.without_s, "with_s_per_token": draft.guessing.token_s,
        "tokens_per_sweep": draft.guessing.tokens, "s_per_sweep": draft.guessing.sweep_s, "drafting_s": draft.guessing.drafting_s,
        "recommended": draft.pays,
    }  # fmt: skip


def _draft(planned: Planned) -> Iterator[str]:
    draft = planned.draft
    if draft is None:
        return
    guessing = draft.guessing
    yield ""
    yield f"One sequence with and without a draft model, at {human_size(planned.outlooks[0].disk_bytes_per_s)}/s:"
    yield f"  {'without':<12}{_seconds(draft.without_s)}/token, and its memory holds weights"
    yield (
        f"  {draft.name:<12}{_seconds(guessing.token_s)}/token: {guessing.tokens:.2g} tokens from a sweep of {_seconds(guessing.sweep_s)} and "
        f"{_seconds(guessing.drafting_s)} of guessing"
    )
    yield "Supposed: that as many guesses are right as of a copy in int4 of a model in bf16. `potatod status` says how many are."
    if draft.pays:
        made_by = f", made by `{draft.made_by}`" if draft.made_by else ""
        yield f'Recommended: [speculation] draft = "{draft.name}"{made_by}.'
    else:
        yield 'Recommended: no draft model, [speculation] draft = "".'


def _advice(planned: Planned) -> Iterator[str]:
    now = planned.outlooks[0].forecasts[0].token_s
    if planned.advice:
        at = f", at {human_size(planned.outlooks[0].disk_bytes_per_s)}/s" if planned.disk_is == "supposed" else ""
        yield ""
        yield f"What would help one sequence most{at}:"
    for advice in planned.advice:
        yield f"  {advice.what}: {_seconds(now)} → {_seconds(advice.token_s)} a token"


def _seconds(seconds: float) -> str:
    return f"{seconds:.3g} s" if seconds < 999.5 else f"{seconds:.0f} s"
