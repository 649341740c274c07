"""How memory is shared out: processes, KV, what a sweep computes with, and weights. Pure but for a tokenizer's size.

    available ─▶ share() ─▶ Room: what is left of the RAM is the pool's, and of a card's memory what stays there and the slots

Where a card computes, KV and what a sweep computes with lie in its memory, and RAM holds the pool and the processes.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, Protocol

from . import forms
from .config import Settings
from .dtypes import RAW
from .errors import ConfigError, DoesNotFit
from .kv_layout import BLOCK, KvLayout
from .manifest import Manifest, Tensor, shapes_of, values_bytes
from .memory import Available
from .plan import smallest_pool, sweep_parts
from .sizes import Auto, Percent, human_size

#: The most tokens of a prompt per sweep, but under ``reference``.
CHUNK: Final = 512
#: Of what is available, at most so much goes to KV where its size is not configured …
KV_SHARE: Final = 0.1
#: … but enough for a text of so many tokens.
LEAST_CONTEXT: Final = 256
#: Families that keep KV of their own copy it when it grows: of one layer at a time, and what the allocator loses.
_COPIED: Final = 8
#: Supervisor, reader and front together without a tokenizer (their proportional sets, where memory is short: 84 MB measured), and a tokenizer for each
#: byte of its file.
_OTHER_STAGES: Final = 88 << 20
_PER_TOKENIZER_BYTE: Final = 8
#: Each output of each of a layer's matrices, as if all of them were there at the same time; in fp32, or in half of that beside a copy.
_PER_ACTIVATION_BYTES: Final = 4
_EXPERTS: Final = 8
#: Keys and values of a layer that are attended to lie there once more, and once for each query head of a group; groups of eight are the largest known.
_ATTENDED: Final = 9
#: A row of logits on a card: in the model's dtype and in fp32.
_PER_LOGIT: Final = 8
#: What is left free on a card where its memory is shared out by itself, and one part in so many of it: libraries' own, and fragments.
_CARD_RESERVE: Final = 256 << 20
_CARD_SHARE: Final = 20
#: For each so many bytes of the pool the kernel keeps one: page tables of two processes, and the memfd's own index.
_PER_KERNEL_BYTE: Final = 160


#: Guesses in a sweep whose logits the front samples from itself; others only need the likeliest token.
_GUESSED: Final = 16


#: Guesses in a sweep, and what the head gives of each for a token of the vocabulary: a number of the model's, which is of two bytes mostly.
_GUESSES: Final = 64
_PER_GUESS: Final = 2


#: Guesses beside each other have so many blocks each of the layer that is computed. Of what was looked up there are so many branches of a text.
_BRANCH_BLOCKS: Final = 2
_LOOKED_UP: Final = 2


#: What is put together to be multiplied with: matrices that lie in several places; and what is bf16 written in another way, a matrix at a time; and all
#: of a layer that is stored in another scheme than its dtype's own.
Together = Literal["nothing", "bands", "matrix", "layer"]


class Needs(Protocol):
    """What a model takes beside its weights."""

    @property
    def kv(self) -> KvLayout: ...
    @property
    def max_positions(self) -> int: ...
    @property
    def together(self) -> Together: ...
    @property
    def worker_bytes(self) -> int: ...
    @property
    def draft_bytes(self) -> int:
        """Of a draft model beside it, its weights included."""

    @property
    def draft_on_card(self) -> tuple[int, int]:
        """The same where a card computes: of its memory, and of RAM."""


@dataclass(frozen=True, slots=True)
class Room:
    """How the available RAM is shared out. All in bytes, but for the context."""

    pool_bytes: int
    kv_bytes: int
    #: all processes
    process_bytes: int
    #: left alone where the pool is sized by itself
    reserve_bytes: int
    #: tokens per sequence
    context: int
    #: of a card's memory for weights; None where the cpu computes
    card_bytes: int | None = None


def share(
    settings: Settings, manifest: Manifest, available: Available, needs: Needs, tokenizer: int, chunk: int = CHUNK, card: int | None = None
) -> Room:
    """``available`` RAM for the pool, the KV and the processes, of which one has tokenizers of so many bytes and one computes with ``chunk`` tokens
    of prompts at a time; ``card``: bytes that are free on the card that computes, where one does.

    Raises :class:`DoesNotFit` with the missing bytes.
    """
    taken = None if card is None else _of_the_card(settings, card)
    sequences = settings.front.max_sequences
    context, kv = _kv(settings, available.size_bytes if taken is None else taken, needs, chunk)
    rows = sequences + min(chunk, context * sequences)
    computing = activation_bytes(manifest, rows) + context * needs.kv.bytes_per_token * needs.kv.widened // manifest.layers * _ATTENDED
    computing += guessed_rows(settings) * vocabulary_of(manifest) * _PER_GUESS
    computing += needs.draft_bytes if taken is None else needs.draft_on_card[0]
    computing += _branches(settings) * _BRANCH_BLOCKS * BLOCK * needs.kv.bytes_per_token // manifest.layers
    computing += 0 if needs.kv.forks else kv // _COPIED
    processes = needs.worker_bytes + _OTHER_STAGES + _PER_TOKENIZER_BYTE * tokenizer + logits_rows(settings) * vocabulary_of(manifest) * 4
    reserve = _reserve(settings, available)
    if taken is not None:
        computing += logits_rows(settings) * vocabulary_of(manifest) * _PER_LOGIT
        processes += needs.draft_on_card[1]
        if taken < kv + computing:
            raise DoesNotFit(
                f"of the card's memory {human_size(taken)} may be taken, and the KV of [kv] size and what a sweep computes with need "
                f"{human_size(kv + computing)}{_of_draft(needs)}: lower [kv] size or [front] max_context, or set [worker] device to \"cpu\""
            )
        pool = pool_bytes(settings, manifest, available.size_bytes, processes, reserve, card=True)
        return Room(pool, kv, processes, reserve, context, taken - kv - computing)
    processes += computing + put_together_bytes(manifest, needs.together)
    try:
        pool = pool_bytes(settings, manifest, available.size_bytes, kv + processes, reserve)
    except DoesNotFit as error:
        if needs.draft_bytes:
            raise DoesNotFit(f"{error}; the draft model takes {human_size(needs.draft_bytes)} of them") from None
        raise
    return Room(pool, kv, processes, reserve, context)


def _of_draft(needs: Needs) -> str:
    """Of a card's memory."""
    return f", of which the draft model takes {human_size(needs.draft_on_card[0])}" if needs.draft_bytes else ""


def _kv(settings: Settings, available: int, needs: Needs, chunk: int) -> tuple[int, int]:
    """Tokens that one text may have, and bytes for the KV of all. It holds one text of that length; how many more is what the budget gives."""
    layout, configured, wanted = needs.kv, settings.front.max_context, settings.kv.size
    if configured > needs.max_positions:
        raise ConfigError(
            f"[front] max_context is {configured} tokens and this model was made for {needs.max_positions}; set it to at most that"
        )

    def bytes_of(tokens: int) -> int:
        return layout.bytes_of(tokens, min(chunk, tokens))

    if isinstance(wanted, Auto):
        least = bytes_of(configured or min(LEAST_CONTEXT, needs.max_positions))
        most = settings.front.max_sequences * bytes_of(configured or needs.max_positions)
        budget = max(least, min(most, int(available * KV_SHARE)))
    else:
        budget = int(available * wanted.percent / 100) if isinstance(wanted, Percent) else wanted
    context = layout.affordable(budget, configured or needs.max_positions, chunk)
    if context < (configured or min(LEAST_CONTEXT, needs.max_positions)):
        missing = bytes_of(configured or min(LEAST_CONTEXT, needs.max_positions)) - budget
        raise ConfigError(
            f"[kv] size of {human_size(budget)} holds {context} tokens of one text: raise it by {human_size(missing)}"
            + (f", or lower [front] max_context to {context}" if configured and context else "")
        )
    return context, budget


def _of_the_card(settings: Settings, free: int) -> int:
    """``[worker] vram`` in bytes, of so many that are free."""
    wanted = settings.worker.vram
    if isinstance(wanted, Auto):
        return max(0, free - max(_CARD_RESERVE, free // _CARD_SHARE))
    wanted = int(free * wanted.percent / 100) if isinstance(wanted, Percent) else wanted
    if wanted > free:
        raise DoesNotFit(f"[worker] vram is {human_size(wanted)} and the card has {human_size(free)} free: {human_size(wanted - free)} are missing")
    return wanted


def logits_rows(settings: Settings) -> int:
    """Rows of logits that worker and front share: of each sequence one, some of guesses, and the last for what is no number."""
    return settings.front.max_sequences + 1 + (0 if not settings.speculation.enabled else _GUESSES if settings.speculation.draft else _GUESSED)


def guessed_rows(settings: Settings) -> int:
    """The most guesses in a sweep, of all sequences together."""
    return _GUESSES if settings.speculation.enabled else 0


def _branches(settings: Settings) -> int:
    """The most in a sweep, of all sequences together; a tree has a trunk beside them."""
    if not settings.speculation.enabled:
        return 0
    return _GUESSES - 1 if settings.speculation.draft else min(_GUESSES - 1, settings.front.max_sequences * _LOOKED_UP)


def activation_bytes(manifest: Manifest, tokens: int) -> int:
    """What the widest layer gives of so many tokens at once: every matrix its wider side, experts as if a token went to _EXPERTS of them.

    The scores of whole attention (``fast``, ``reference``: heads × tokens × context) are not in it.
    """
    layers = [[shape for shape in shapes_of(shard).values() if len(shape) >= 2] for shard in manifest.shards if shard.kind == "layer"]
    widest = max(sum(max(shape[-2:]) * (min(shape[0], _EXPERTS) if len(shape) > 2 else 1) for shape in shapes) for shapes in layers)
    return _PER_ACTIVATION_BYTES * tokens * widest


def put_together_bytes(manifest: Manifest, what: Together) -> int:
    """Of what a layer's matrices take that are put together to be computed with: of those that come in bands the two largest, since one may be
    resident in part and another lie around the ring's end, and what becomes values first."""
    if what == "nothing":
        return 0

    def decoded(tensors: Iterable[Tensor]) -> int:
        """By name: a matrix may come in bands."""
        sizes: dict[str, int] = {}
        for tensor in tensors:
            if forms.exact(tensor.scheme) if what == "matrix" else what == "layer" and tensor.scheme != RAW:
                sizes[tensor.name] = sizes.get(tensor.name, 0) + values_bytes(tensor)
        return max(sizes.values(), default=0) if what == "matrix" else sum(sizes.values())

    most = 0
    for shard in (shard for shard in manifest.shards if shard.kind == "layer"):
        banded: dict[str, int] = {}
        tensors = [tensor for part in shard.parts for tensor in part.tensors]
        for tensor in tensors:
            if tensor.scheme == RAW and tensor.first_row is not None:
                banded[tensor.name] = banded.get(tensor.name, 0) + tensor.length
        most = max(most, decoded(tensors) + sum(sorted(banded.values())[-2:]))
    head = {part.file for shard in manifest.shards if shard.kind == "head" for part in shard.parts}
    stops: dict[int, list[Tensor]] = {}
    for stop, part in sweep_parts(manifest) if head else ():
        if part.file in head:
            stops.setdefault(stop, []).extend(part.tensors)
    return max(most, *map(decoded, stops.values()), 0)


def tokenizer_bytes(folder: Path) -> int:
    """Of its file: the front holds it in another form."""
    file = folder / "tokenizer.json"
    return file.stat().st_size if file.is_file() else 0


def _reserve(settings: Settings, available: Available) -> int:
    wanted = settings.pool.reserve
    if not isinstance(settings.pool.size, Auto):
        return 0  # who gives the size has thought of the others
    if isinstance(wanted, Auto):
        return available.reserve_bytes
    return int(available.size_bytes * wanted.percent / 100) if isinstance(wanted, Percent) else wanted


def pool_bytes(settings: Settings, manifest: Manifest, available: int, others: int, reserve: int, card: bool = False) -> int:
    """``[pool] size`` in bytes, where ``available`` bytes of RAM are to hold the pool and ``others`` beside it, and ``reserve`` stays free where the
    size is ours to choose; ``card``: whether one computes."""
    size = settings.pool.size
    lengths = [(stop, part.length) for stop, part in sweep_parts(manifest)]
    total = sum(length for _, length in lengths)
    if isinstance(size, Auto):
        least = min(smallest_pool(lengths, card), total)
        chosen = min((available - others - reserve) * _PER_KERNEL_BYTE // (_PER_KERNEL_BYTE + 1), total)
        if chosen < least:
            raise _missing(f"the smallest pool for this model, {human_size(least)}", least + reserve, available, others)
        return chosen
    wanted = int(available * size.percent / 100) if isinstance(size, Percent) else int(size)
    taken = min(wanted, total)  # a pool larger than the model is not made
    if taken + taken // _PER_KERNEL_BYTE + others > available:
        raise _missing(f"[pool] size of {human_size(taken)}", taken, available, others)
    return wanted


def _missing(what: str, pool: int, available: int, others: int) -> DoesNotFit:
    return DoesNotFit(
        f"{what}, and {human_size(others)} for the processes and the KV are "
        f"{human_size(pool + others - available)} more than the {human_size(available)} of RAM that are available: free some, or lower one of these"
    )


def vocabulary_of(manifest: Manifest, kind: Literal["head", "embed"] = "head") -> int:
    """Rows of the head: tokens that can be answered. Of the embedding: those that can be read, which are more in some models of images."""
    bands = [t for s in manifest.shards if s.kind == kind for p in s.parts for t in p.tensors]
    return max(((t.first_row or 0) + t.shape[0] for t in bands), default=0)
