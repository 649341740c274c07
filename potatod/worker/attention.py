"""Attention over a packed, ragged batch, through transformers' AttentionInterface.

All sequences' new tokens are one row of queries, ``(1, heads, tokens, head_dim)``; each piece of it attends to its own sequence's KV.
This one mechanism serves prefill, chunked prefill and decode. The arithmetic itself is the model family's own
``eager_attention_forward`` (so softcaps, sinks and scalings are as they are there), called per piece in one of two ways:

- *whole* (reference, fast): the piece at once, as transformers would for this sequence alone;
- *tiled* (invariant): see NOTE [ invariant attention ].

NOTE [ invariant attention ]
A matrix product's rounding may depend on its shape. So here every shape is a function of the row's absolute position alone: positions
are cut into tiles of TILE rows, a tile sees the whole key blocks up to its own, missing rows are zeros, masked keys weigh exactly 0.
Whatever else is in the sweep, however the prompt was chunked, and after a restart, a row is computed by the same
operations on the same numbers: its bits are the same.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import torch
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface, eager_mask

from .kv import BLOCK, AsTransformers, Batch, Piece

#: What models are told their attention is called.
NAME: Final = "potato"

#: Rows of queries computed together in *tiled* attention.
TILE: Final = 8

assert BLOCK % TILE == 0


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


def register() -> None:
    """Make our attention known to transformers, in this process."""
    AttentionInterface.register(NAME, _attention)
    AttentionMaskInterface.register(NAME, _mask_rule)


def _mask_rule(*, mask_function: Callable[..., torch.Tensor], use_vmap: bool = False, **_: Any) -> MaskRule:
    return MaskRule(mask_function, use_vmap)


def _attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: MaskRule | None,
    *,
    potato: Batch,
    **arguments: Any,
) -> tuple[torch.Tensor, None]:
    """(1, tokens, heads, head_dim) for a (1, heads, tokens, head_dim) query; keys and values have gone to the cache before."""
    eager = _family_attention(type(module))
    layer = _kv_layer(module)
    pieces = [
        potato.attend(eager, module, query[:, :, piece.first : piece.end], piece, layer, attention_mask, potato, arguments)
        for piece in potato.pieces
    ]
    return pieces[0] if len(pieces) == 1 else torch.cat(pieces, dim=1), None


_family: dict[type, Callable[..., Any]] = {}


def _family_attention(cls: type) -> Callable[..., Any]:
    """The ``eager_attention_forward`` that this attention class falls back to in transformers."""
    if cls not in _family:
        forward: Any = inspect.unwrap(cls.forward)  # type: ignore[attr-defined]
        _family[cls] = forward.__globals__["eager_attention_forward"]
    return _family[cls]


def _kv_layer(module: torch.nn.Module) -> int:
    """The layer whose KV this attention reads: another one's where a family shares them."""
    if getattr(module, "is_kv_shared_layer", False):
        shared = getattr(module, "kv_shared_layer_index", None)
        if isinstance(shared, int):
            return shared
    layer: int = module.layer_idx  # type: ignore[assignment]
    return layer


def attend_whole(
    eager: Callable[..., Any],
    module: torch.nn.Module,
    query: torch.Tensor,
    piece: Piece,
    layer: int,
    rule: MaskRule | None,
    batch: Batch,
    arguments: dict[str, Any],
) -> torch.Tensor:
    """As transformers attends for this sequence alone. (1, heads, n, head_dim) → (1, n, heads, head_dim)."""
    count = piece.end - piece.first
    key, value = piece.kv.read(layer)
    if isinstance(piece.kv, AsTransformers):
        length, offset = piece.kv.mask_sizes[layer]
    else:
        length, offset = piece.start + count, 0
        key, value = key[:, :, :length], value[:, :, :length]
    mask = None
    if rule is not None:
        slot = (rule, piece.start, count, length, offset)
        if slot not in batch.masks:
            batch.masks[slot] = rule.matrix((piece.start, count), (offset, length), query.dtype, query.device)
        mask = batch.masks[slot]
    out: torch.Tensor = eager(module, query, key, value, mask, **arguments)[0]
    return out


def attend_tiled(
    eager: Callable[..., Any],
    module: torch.nn.Module,
    query: torch.Tensor,
    piece: Piece,
    layer: int,
    rule: MaskRule | None,
    batch: Batch,
    arguments: dict[str, Any],
) -> torch.Tensor:
    """NOTE [ invariant attention ]. (1, heads, n, head_dim) → (1, n, heads, head_dim)."""
    keys, values = piece.kv.read(layer)
    end = piece.start + piece.end - piece.first
    tiles = []
    for tile in range(piece.start - piece.start % TILE, end, TILE):
        low, high = max(tile, piece.start), min(tile + TILE, end)
        visible = (tile // BLOCK + 1) * BLOCK
        rows = query.new_zeros(1, query.shape[1], TILE, query.shape[3])
        rows[:, :, low - tile : high - tile] = query[:, :, low - piece.start : high - piece.start]
        mask = None
        if rule is not None:
            slot = (rule, tile)
            if slot not in batch.masks:
                batch.masks[slot] = rule.matrix((tile, TILE), (0, visible), query.dtype, query.device)
            mask = batch.masks[slot]
        key, value = keys[:, :, :visible].contiguous(), values[:, :, :visible].contiguous()
        out = eager(module, rows, key, value, mask, **arguments)[0]
        tiles.append(out[:, low - tile : high - tile])
    return tiles[0] if len(tiles) == 1 else torch.cat(tiles, dim=1)
