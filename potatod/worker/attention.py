"""Attention over a packed, ragged batch, through transformers' AttentionInterface.

All sequences' new tokens are one row of queries, ``(1, heads, tokens, head_dim)``; each piece of it attends to its own sequence's KV.
This one mechanism serves prefill, chunked prefill and decode. The arithmetic itself is the model family's own
``eager_attention_forward`` (so softcaps, sinks and scalings are as they are there), called per piece in one of two ways, or it is our own:

- at once, by code of our own, where a layer and the processor allow it: see native_attention.py;
- *whole* (reference, fast): the piece at once, as transformers would for this sequence alone;
- *tiled* (invariant): see NOTE [ invariant attention ].

NOTE [ invariant attention ]
A matrix product's rounding may depend on its shape. So here every shape is a function of the row's absolute position alone: positions
are cut into tiles of so many rows, a tile sees whole steps of keys up to its own, missing rows are zeros, masked keys weigh exactly 0.
Whatever else is in the sweep, however the prompt was chunked, and after a restart, a row is computed by the same
operations on the same numbers: its bits are the same.
"""

from __future__ import annotations

import functools
import inspect
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import torch
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface, causal_mask_function, eager_mask
from transformers.models.llama import modeling_llama

from potatod.kv_layout import BLOCK

from . import cpu
from .caches import AsTransformers
from .kv import Batch, PackedKV, Piece
from .likeness import same_code
from .rows import unwatched

#: What models are told their attention is called.
NAME: Final = "potato"

#: Rows of queries that may be computed together in *tiled* attention: which of them follows from the processor (find_tile).
TILES: Final = (8, 1)

#: A tile sees its keys in whole steps of so many. Each more is computed with and weighs nothing: at 20 tokens steps of 128 cost three times the rest.
STEP: Final = 16

_CPU: Final = torch.device("cpu")

assert all(STEP % tile == 0 for tile in TILES) and BLOCK % STEP == 0


@dataclass(frozen=True, slots=True)
class MaskRule:
    """transformers' rule for one kind of layer (causal, sliding, chunked, …), kept as a rule instead of a matrix.

    ``allows(batch, head, query_position, key_position)`` takes broadcastable index tensors.
    """

    allows: Callable[..., torch.Tensor]
    use_vmap: bool

    def matrix(self, query: tuple[int, int], key: tuple[int, int], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
        """(1, 1, queries, keys) of 0 and the dtype's minimum, for ``(first position, count)`` of queries and of keys."""
        mask: torch.Tensor = eager_mask(
            batch_size=1, q_length=query[1], kv_length=key[1], q_offset=query[0], kv_offset=key[0],
            mask_function=self.allows, dtype=dtype, use_vmap=self.use_vmap, device=device,
        )  # fmt: skip
        return mask

    def slides(self, window: int) -> bool:
        """Whether a token sees itself and the ``window`` − 1 before it, and nothing else. Asked of a few positions that are nothing round."""
        return all(
            (self.matrix((at, 1), (0, at + 1), torch.float32, _CPU)[0, 0, 0] == 0).tolist() == [False] * (at + 1 - window) + [True] * window
            for at in (window, 2 * window + 3, 3 * window + 7)
        )


class PackedAttention:
    """The attention function that transformers' layers call: stores new keys and values, attends piece by piece.

    One per process, registered under NAME. ``batch`` describes the pack of the sweep under way and is set before its forward pass:
    not every family hands further arguments down to its attention.
    """

    def __init__(self) -> None:
        self.batch: Batch | None = None
        self._seen: weakref.WeakKeyDictionary[torch.nn.Module, tuple[int | None, bool]] = weakref.WeakKeyDictionary()
        AttentionInterface.register(NAME, self)
        AttentionMaskInterface.register(NAME, _mask_rule)

    def __call__(
        self,
        module: torch.nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: MaskRule | None,
        **arguments: Any,
    ) -> tuple[torch.Tensor, None]:
        """(1, tokens, heads, head_dim) for a query of (1, heads, tokens, head_dim), keys and values of the same tokens."""
        batch = self.batch
        assert batch is not None, "a forward pass without a batch"
        eager = _family_attention(type(module))
        layer: int = module.layer_idx  # type: ignore[assignment]
        outs = []
        with unwatched():
            window, plain = self._sees(module, attention_mask, arguments)
            if batch.at_once and plain and _attends_as_llama(eager) and batch.at_once.takes(query, key, value):
                batch.at_once.append(batch, layer, key, value, window)
                return batch.at_once(query, batch, layer, window, arguments["scaling"], key.shape[1], value.shape[3]), None
            for piece in batch.pieces:
                rows = slice(piece.first, piece.end)
                assert isinstance(piece.kv, PackedKV)
                piece.kv.append(layer, key[:, :, rows], value[:, :, rows], window)
            for piece in batch.pieces:
                rows, kv = slice(piece.first, piece.end), piece.kv
                assert isinstance(kv, PackedKV)
                outs.append(batch.attend(eager, module, query[:, :, rows], kv, piece, layer, window, attention_mask, batch, arguments))
            return outs[0] if len(outs) == 1 else torch.cat(outs, dim=1), None

    def _sees(self, module: torch.nn.Module, rule: MaskRule | None, arguments: dict[str, Any]) -> tuple[int | None, bool]:
        """Tokens that a layer's newest one sees (None: all), what the family says where its mask says the same; and whether its mask says nothing
        else."""
        if module not in self._seen:
            said = arguments.get("sliding_window")
            window = said if isinstance(said, int) and rule is not None and rule.slides(said) else None
            self._seen[module] = window, window is not None or (rule is not None and rule.allows is causal_mask_function)
        return self._seen[module]


def _mask_rule(*, mask_function: Callable[..., torch.Tensor], use_vmap: bool = False, **_: Any) -> MaskRule:
    return MaskRule(mask_function, use_vmap)


_family: dict[type, Callable[..., Any]] = {}


def _family_attention(cls: type) -> Callable[..., Any]:
    """The ``eager_attention_forward`` that this attention class falls back to in transformers."""
    if cls not in _family:
        forward: Any = inspect.unwrap(cls.forward)  # type: ignore[attr-defined]
        _family[cls] = forward.__globals__["eager_attention_forward"]
    return _family[cls]


def attend_whole(
    form: Form,
    eager: Callable[..., Any],
    module: torch.nn.Module,
    query: torch.Tensor,
    kv: PackedKV,
    piece: Piece,
    layer: int,
    window: int | None,
    rule: MaskRule | None,
    batch: Batch,
    arguments: dict[str, Any],
) -> torch.Tensor:
    """All of a piece's rows with all keys, as transformers attends for this sequence alone. (1, heads, n, head_dim) → (1, n, heads, head_dim)."""
    count = piece.end - piece.first
    if isinstance(kv, AsTransformers):
        length, offset = kv.mask_sizes[layer]
    else:
        offset = _first_seen(window, piece.start)
        length = piece.start + count - offset
    key, value = kv.read(layer, offset, offset + length, query.dtype)
    mask = None
    if rule is not None:
        slot = (rule, piece.start, count, length, offset)
        if slot not in batch.masks:
            batch.masks[slot] = _what_hides(rule.matrix((piece.start, count), (offset, length), query.dtype, query.device), eager)
        mask = batch.masks[slot]
    return form(eager, module, query, key, value, mask, arguments)


def attend_tiled(
    tile: int,
    eager: Callable[..., Any],
    module: torch.nn.Module,
    query: torch.Tensor,
    kv: PackedKV,
    piece: Piece,
    layer: int,
    window: int | None,
    rule: MaskRule | None,
    batch: Batch,
    arguments: dict[str, Any],
) -> torch.Tensor:
    """NOTE [ invariant attention ]. (1, heads, n, head_dim) → (1, n, heads, head_dim)."""
    end = piece.start + piece.end - piece.first
    ours = _attends_as_llama(eager)
    begin = _first_seen(window, piece.start - piece.start % tile)
    keys, values = kv.read(layer, begin, ((end - 1) // STEP + 1) * STEP, _computing_dtype(query) if ours else query.dtype)
    tiles = []
    for at in range(piece.start - piece.start % tile, end, tile):
        low, high = max(at, piece.start), min(at + tile, end)
        seen = _first_seen(window, at)
        visible = (at // STEP + 1) * STEP
        rows = query.new_zeros(1, query.shape[1], tile, query.shape[3])
        rows[:, :, low - at : high - at] = query[:, :, low - piece.start : high - piece.start]
        mask = None
        if rule is not None:
            slot = (rule, at)
            if slot not in batch.masks:
                batch.masks[slot] = _what_hides(rule.matrix((at, tile), (seen, visible - seen), query.dtype, query.device), eager)
            mask = batch.masks[slot]
        out = grouped(eager, module, rows, keys[:, :, seen - begin : visible - begin], values[:, :, seen - begin : visible - begin], mask, arguments)
        tiles.append(out[:, low - at : high - at])
    return tiles[0] if len(tiles) == 1 else torch.cat(tiles, dim=1)


def _first_seen(window: int | None, position: int) -> int:
    """The first key that is computed with for a query there: whole steps, so that it follows from the position alone."""
    return 0 if window is None else max(0, position - window + 1) // STEP * STEP


def _what_hides(mask: torch.Tensor, eager: Callable[..., Any]) -> torch.Tensor | None:
    """None for a mask that hides nothing, as that of the one row of a sequence that goes on, where the family's attention takes None. On a card to
    look would be to wait."""
    return None if mask.device.type == "cpu" and _attends_as_llama(eager) and not mask.any() else mask


#: ``form(eager, module, query, key, value, mask, arguments)``: (1, heads, n, head_dim), (1, kv_heads, keys, head_dim) → (1, n, heads, head_dim)
Form = Callable[..., torch.Tensor]


def as_family(
    eager: Callable[..., Any], module: torch.nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None,
    arguments: dict[str, Any],
) -> torch.Tensor:  # fmt: skip
    """Transformers' own operations."""
    out: torch.Tensor = eager(module, query, key, value, mask, **arguments)[0]
    return out


def grouped(
    eager: Callable[..., Any], module: torch.nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None,
    arguments: dict[str, Any],
) -> torch.Tensor:  # fmt: skip
    """The same mathematics, rounded at the same places, where a family attends as Llama does: keys and values are not repeated for the query heads of a
    group, and products are made in fp32 where the processor has no instructions for their dtype. Other families' own operations."""
    if not _attends_as_llama(eager):
        return as_family(eager, module, query, key.contiguous(), value.contiguous(), mask, arguments)
    dtype, heads, count, width = query.dtype, query.shape[1], query.shape[2], query.shape[3]
    groups = heads // key.shape[1]
    rows = _computed_in(query).reshape(key.shape[1], groups * count, width)  # the query heads of a group stand one below the other
    scores = torch.bmm(rows, _computed_in(key)[0].transpose(1, 2)).to(dtype) * arguments["scaling"]
    if mask is not None:
        scores = scores.view(-1, groups, count, scores.shape[-1]).add_(mask[0]).view_as(scores)
    weights = torch.softmax(scores, dim=-1, dtype=torch.float32).to(dtype)
    out = torch.bmm(_computed_in(weights), _computed_in(value)[0])
    return out.view(1, heads, count, -1).transpose(1, 2).to(dtype)


def _computed_in(x: torch.Tensor) -> torch.Tensor:
    """In fp32 where the processor has no instructions for its dtype: products of bf16 take twenty times as long there."""
    return x.to(_computing_dtype(x))


def _computing_dtype(x: torch.Tensor) -> torch.dtype:
    return torch.float32 if x.device.type == "cpu" and not cpu.multiplies(x.dtype) else x.dtype


@functools.cache
def _attends_as_llama(eager: Callable[..., Any]) -> bool:
    return same_code(eager, modeling_llama.eager_attention_forward)


def find_tile(dtype: torch.dtype, device: torch.device) -> int:
    """The largest of TILES that costs at most half as much per row as a row alone does: most sweeps have one row of a sequence.

    Measured: where bf16 is not native to a cpu a product of eight rows takes seven times as long as one of a single row, in fp32 three times.
    Decided by what the processor can do and not by a clock, because the tile is part of the arithmetic: the same machine finds the same one.
    """
    return max(TILES) if device.type != "cpu" or cpu.multiplies(dtype) else min(TILES)
