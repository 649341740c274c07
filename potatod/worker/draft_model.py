"""The draft model's forward pass: what follows several texts, and several guesses of how one goes on, at once.

It is the same engine as the model's: transformers' forward pass, our attention and KV, weights lent group by group, all of which stay.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from potatod import model_folder
from potatod.drafts import READS_AT_ONCE, SCORES_BYTES
from potatod.kv_layout import WAY_BACK
from potatod.room import vocabulary_of
from potatod.spans import Spans
from potatod.store import skeleton as skeletons

from .arithmetic import Arithmetic
from .attention import PackedAttention
from .kernels import choose
from .kv import Paged, Piece
from .model import Model
from .passes import Pack
from .resident import Resident


@dataclass(slots=True)
class Read:
    """Tokens that the draft model has read, and its KV of them."""

    tokens: list[int]
    kv: Paged
    #: no fewer of them than these will stay
    least: int = 0

    def fork(self, length: int) -> Read:
        """Another that begins with so many of them."""
        return Read(self.tokens[:length], self.kv.fork(length), length)

    def cut(self, length: int) -> bool:
        """Forgets those behind so many; False where windows have left behind what it would go on from: then nothing has changed."""
        if not self.kv.reaches(length):
            return False
        self.kv.cut(length)
        del self.tokens[length:]
        self.least = min(self.least, length)
        return True

    @property
    def may_go_on(self) -> bool:
        """Whether it can still be cut to any length from ``least`` on when it has read another token."""
        return not self.kv.slides or len(self.tokens) - self.least < WAY_BACK

    def going_on(self, tokens: Sequence[int]) -> tuple[Read, Sequence[int]]:
        """It is about to read these: whoever else goes on from where it was makes a fork."""
        self.tokens.extend(tokens)
        return self, tokens


class DraftModel:
    def __init__(self, folder: Path, findings: dict[str, Any], device: torch.device, attention: PackedAttention) -> None:
        """``findings``: verdict.Findings of the draft model."""
        manifest = model_folder.load(folder)
        config = skeletons.load_config(folder)
        resident = Resident(folder, manifest, device)
        self._kernels = choose(
            "fast", "packed", config, device, attention, Arithmetic.from_json(findings["arithmetic"]),
        )  # fmt: skip
        skeleton = skeletons.build(config, getattr(torch, manifest.dtype))
        self._model = Model(skeleton, manifest, folder, resident, resident, device, self._kernels, lambda _: None, Spans())
        #: tokens that can be read: of two models with one tokenizer one may have rows for more
        self.vocabulary = vocabulary_of(manifest, "embed")
        self._heads = int(skeleton.model.config.get_text_config().num_attention_heads)

    def nothing_read(self) -> Read:
        """What a text begins with."""
        kv = self._kernels.batching.new_kv()
        assert isinstance(kv, Paged)
        return Read([], kv)

    def at_once(self, context: int) -> int:
        """Tokens of a text of that length that are read together: their scores take no more than was planned."""
        return max(1, min(READS_AT_ONCE, SCORES_BYTES // (4 * self._heads * context)))

    def read(self, parts: Sequence[tuple[Read, Sequence[int]]]) -> NDArray[np.float32]:
        """Reads the last tokens of each, which its ``tokens`` have already; logits (parts, vocabulary) behind each."""
        tokens: list[int] = []
        pieces, wanted = [], []
        for read, new in parts:
            pieces.append(Piece(read.kv, len(tokens), len(tokens) + len(new), read.kv.length, len(read.tokens)))
            tokens += new
            wanted.append(len(tokens) - 1)
        logits = self._model.forward(Pack(tokens, pieces, wanted)).float().cpu()
        for piece in pieces:
            piece.kv.length += piece.end - piece.first
        values: NDArray[np.float32] = logits.numpy()
        return values
