"""The draft model: a smaller or coarser one of the same vocabulary, whose weights stay, guesses how texts go on.

    Draft(texts) ─▶ what it has not read of each ─▶ round ─▶ candidates, with the noise that the target will sample with ─▶ … ─▶ Drafted(trees)
                                                      ▲                                                          │
                                                      └────────────────── growth.py: which nodes next ◀──────────┘

It is the same engine: transformers' forward pass, our attention and KV, weights lent group by group. Each path of a tree has its KV as a fork of the
text's; when the text comes again it goes on from the path that was right.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from potatod import manifest as manifests
from potatod.drafts import FORKED_BLOCKS, READS_AT_ONCE, SCORES_BYTES
from potatod.kv_layout import BLOCK
from potatod.messages import Draft, Drafted, DraftText, Drawn, Guessed
from potatod.room import vocabulary_of
from potatod.sampling.noise import gumbel
from potatod.sampling.params import Sampling
from potatod.sampling.processors import process
from potatod.spans import Spans
from potatod.store import skeleton as skeletons
from potatod.trees import ROOT

from .arithmetic import Arithmetic
from .attention import PackedAttention
from .growth import CANDIDATES, ROWS, Growth, RoundTimes, Spread
from .kernels import choose
from .kv import Paged, Piece
from .model import Model
from .passes import Pack
from .resident import Resident

#: Fewer tokens than these, the last one among them, are read where the growing begins.
FEW: Final = 8
#: So many times in a row a card has not the memory for a draft.
_OFTEN: Final = 3
#: A text is gone on with from another one's beginning where that spares so many tokens.
_WORTH_SHARING: Final = 32


@dataclass(slots=True)
class _Read:
    """Tokens that the draft model has read, and its KV of them."""

    tokens: list[int]
    kv: Paged


@dataclass(slots=True)
class _Looked:
    """A node that was looked behind: its candidates, and by how much the first is preferred to each."""

    tokens: list[int]
    gaps: list[float]


@dataclass(slots=True)
class _Text:
    read: _Read
    #: of the last draft: what was read on each path, and what may follow the paths
    paths: list[_Read] = field(default_factory=list)
    looked: dict[tuple[int, ...], _Looked] = field(default_factory=dict)
    #: whether the last draft was of others
    stale: bool = False


class Drafter:
    def __init__(self, folder: Path, findings: dict[str, Any], vocabulary: int, device: torch.device, attention: PackedAttention, spans: Spans) -> None:
        """``findings``: verdict.Findings of the draft model; ``vocabulary``: tokens that the target knows."""
        manifest = manifests.load(folder)
        config = skeletons.load_config(folder)
        resident = Resident(folder, manifest, device)
        self._kernels = choose(
            "fast", "packed", config, device, attention, Arithmetic.from_json(findings["arithmetic"]),
        )  # fmt: skip
        skeleton = skeletons.build(config, getattr(torch, manifest.dtype))
        self._model = Model(skeleton, manifest, folder, resident, resident, device, self._kernels, lambda _: None, Spans())
        self._vocabulary = vocabulary
        #: tokens that can be read: of two models with one tokenizer one may have rows for more
        self._readable = vocabulary_of(manifest, "embed")
        self._heads = int(skeleton.model.config.get_text_config().num_attention_heads)
        self._spans = spans
        self._texts: dict[int, _Text] = {}
        #: how often in a row a card had not the memory
        self._exhausted = 0
        self._spread = Spread()
        self._round_s = RoundTimes()

    @torch.inference_mode()
    def fork(self, sequence: int, of: int, length: int) -> None:
        """As worker.fork; where there is nothing of that one there will be nothing of this one."""
        text = self._texts.get(of)
        if text is not None:
            length = min(length, len(text.read.tokens), text.read.kv.length)
            if text.read.kv.reaches(length):
                self._texts[sequence] = _Text(_Read(text.read.tokens[:length], text.read.kv.fork(length)))

    def forget(self, sequence: int) -> None:
        self._texts.pop(sequence, None)

    def draft(self, ask: Draft, going_on: Callable[[], None]) -> Drafted:
        """``going_on`` is called between passes. Where a card has not the memory for it nothing is guessed, and all texts are read anew; again and
        again it is an error."""
        began = time.monotonic()
        try:
            drafted = self._drafted(ask, going_on)
            self._exhausted = 0
            return drafted
        except torch.OutOfMemoryError:
            self._exhausted += 1
            if self._exhausted == _OFTEN:
                raise
        self._texts.clear()  # outside the handler: an exception holds its frames, and they hold tensors
        return Drafted(ask.epoch, ask.number, (), time.monotonic() - began)

    @torch.inference_mode()
    def _drafted(self, ask: Draft, going_on: Callable[[], None]) -> Drafted:
        began = time.monotonic()
        for known in self._texts.values():
            known.stale = True
        texts = [text for text in ask.texts if max(text.tokens) < self._readable]
        for text in texts:
            self._come(text)
        for known in self._texts.values():
            if known.stale:  # nobody goes on with it for now
                known.paths, known.looked = [], {}
        ready, read, read_s = self._read_all(texts, ask.reads, going_on)
        growth = Growth({text.sequence: text.most for text in ready}, ask.nodes, ask.sweep_s, self._round_s)
        if ready:
            self._grow(ready, growth, going_on)
        ended = time.monotonic()
        self._spans.add("draft", f"draft {ask.number}", began, ended)
        guessed = tuple(
            Guessed(id, tuple(tree.tokens), tuple(tree.parents), tuple(tree.chances)) for id, tree in growth.trees.items()
        )
        return Drafted(ask.epoch, ask.number, guessed, ended - began, read_s, read)

    # reading

    def _come(self, text: DraftText) -> None:
        """A text has come to here: what was guessed of it is compared, and the path that was right is gone on with."""
        known, tokens = self._texts.get(text.sequence), list(text.tokens)
        if known is None:
            self._texts[text.sequence] = _Text(_Read([], self._new_kv()))
            return
        self._learn(known, tokens)
        best, length = max(((read, _alike(read.tokens, tokens)) for read in (known.read, *known.paths)), key=lambda each: each[1])
        length = min(length, len(tokens) - 1)  # behind the last one is looked
        if best.kv.reaches(length):
            best.kv.cut(length)
            known.read = _Read(tokens[:length], best.kv)
        else:
            known.read = _Read([], self._new_kv())
        known.paths, known.looked, known.stale = [], {}, False

    def _learn(self, text: _Text, tokens: Sequence[int]) -> None:
        for path, looked in text.looked.items():
            if len(path) < len(tokens) and tuple(tokens[: len(path)]) == path:
                came = tokens[len(path)]
                self._spread.learn(looked.gaps, looked.tokens.index(came) if came in looked.tokens else None)

    def _new_kv(self) -> Paged:
        kv = self._kernels.batching.new_kv()
        assert isinstance(kv, Paged)
        return kv

    def _read_all(self, texts: Sequence[DraftText], most: int, going_on: Callable[[], None]) -> tuple[list[DraftText], int, float]:
        """Reads the texts, so far as ``most`` tokens go, but for a few last ones of each; those that are to be gone on with, tokens that were read,
        and seconds."""
        left, began, ready = most, time.monotonic(), []
        for text in texts:
            if left > 0:
                self._share(text)
            read = self._texts[text.sequence].read
            while left > 0 and (some := text.tokens[len(read.tokens) : -1][: min(left, self._at_once(len(text.tokens)))]):
                if text.most and len(text.tokens) - len(read.tokens) <= FEW:
                    break
                self._pass([_goes_on(read, some)])
                left -= len(some)
                going_on()
            if text.most and len(text.tokens) - len(read.tokens) <= FEW:
                ready.append(text)
        return ready, most - left, time.monotonic() - began

    def _at_once(self, context: int) -> int:
        """Tokens of a text that are read together: their scores take no more than was planned."""
        return max(1, min(READS_AT_ONCE, SCORES_BYTES // (4 * self._heads * context)))

    def _share(self, text: DraftText) -> None:
        """Goes on from what was read of another text, where that begins alike and further than this one's own."""
        known, tokens = self._texts[text.sequence], list(text.tokens)
        own = len(known.read.tokens)
        others = (other.read for id, other in self._texts.items() if id != text.sequence)
        begun = ((min(_alike(read.tokens, tokens), len(tokens) - 1), read) for read in others if len(read.tokens) >= own + _WORTH_SHARING)
        length, read = max(begun, key=lambda each: each[0], default=(0, known.read))
        if length >= own + _WORTH_SHARING and read.kv.reaches(length):
            known.read = _Read(tokens[:length], read.kv.fork(length))

    # growing

    def _grow(self, ready: Sequence[DraftText], growth: Growth, going_on: Callable[[], None]) -> None:
        texts = {text.sequence: text for text in ready}
        noise = _Noise(self._vocabulary)
        #: of each node that was looked behind: what has read it, and how much that had read then
        held: dict[tuple[int, int], tuple[_Read, int]] = {}
        self._blocks = 0
        nodes = [(text.sequence, ROOT) for text in ready]
        parts = [_goes_on(read := self._texts[text.sequence].read, text.tokens[len(read.tokens) :]) for text in ready]
        while nodes:
            began = time.monotonic()
            logits = self._pass(parts)
            for (id, node), (read, _), values in zip(nodes, parts, logits, strict=True):
                held[id, node] = read, len(read.tokens)
                looked = _candidates(values[: self._vocabulary], read.tokens, texts[id].drawn, noise)
                self._texts[id].looked[tuple(read.tokens)] = looked
                growth.children(id, node, list(zip(looked.tokens, self._spread.chances(looked.gaps), strict=True)))
            seconds = time.monotonic() - began
            growth.spent(seconds)
            if nodes[0][1] != ROOT:
                self._round_s.add(next(rows for rows in ROWS if rows >= len(nodes)), seconds)
            going_on()
            nodes, parts = [], []
            for id, node in growth.next():
                tree = growth.trees[id]
                if (goes_on := self._behind(id, *held[id, tree.parents[node]])) is not None:
                    nodes.append((id, node))
                    parts.append(_goes_on(goes_on, (tree.tokens[node],)))

    def _behind(self, id: int, read: _Read, length: int) -> _Read | None:
        """What goes on behind that much of what was read: itself where it ends there, else a fork; None where its windows have left that behind, or as
        many blocks as were planned are taken."""
        goes_on, begins = len(read.tokens) == length, length % BLOCK == 0
        if (self._blocks == FORKED_BLOCKS and (begins or not goes_on)) or not (goes_on or read.kv.reaches(length)):
            return None
        self._blocks += begins or not goes_on
        if goes_on:
            return read
        fork = _Read(read.tokens[:length], read.kv.fork(length))
        self._texts[id].paths.append(fork)
        return fork

    def _pass(self, parts: Sequence[tuple[_Read, Sequence[int]]]) -> NDArray[np.float32]:
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


def _goes_on(read: _Read, tokens: Sequence[int]) -> tuple[_Read, Sequence[int]]:
    """It is about to read these: whoever else goes on from where it was makes a fork."""
    read.tokens.extend(tokens)
    return read, tokens


def _alike(some: list[int], others: list[int]) -> int:
    """How many tokens both begin with."""
    least = min(len(some), len(others))
    if some[:least] == others[:least]:
        return least
    return next(at for at in range(least) if some[at] != others[at])


class _Noise:
    """The numbers that the target will sample with, made once for each position."""

    def __init__(self, vocabulary: int) -> None:
        self._vocabulary = vocabulary
        self._made: dict[tuple[int, int, int], NDArray[np.float64]] = {}

    def of(self, drawn: Drawn, position: int) -> NDArray[np.float64]:
        key = drawn.seed, drawn.choice, position
        if key not in self._made:
            self._made[key] = gumbel(drawn.seed, drawn.choice, position, self._vocabulary)
        return self._made[key]


def _candidates(logits: NDArray[np.float32], tokens: Sequence[int], drawn: Drawn, noise: _Noise) -> _Looked:
    """What the target would sample if its logits behind ``tokens`` were these, (vocabulary,), and what it would next to that."""
    sampling = Sampling(drawn.temperature, drawn.top_k, drawn.top_p, drawn.min_p, drawn.repetition_penalty)
    scores: NDArray[Any] = process(logits, tokens, sampling)
    unit = 1.0
    if not sampling.greedy:
        scores, unit = scores + noise.of(drawn, len(tokens))[: scores.size], drawn.temperature
    best = np.argpartition(scores, -CANDIDATES)[-CANDIDATES:]
    best = best[np.lexsort((best, -scores[best]))]
    if not np.isfinite(scores[best[0]]):
        raise ArithmeticError("the draft model's logits are no numbers")
    gaps = (scores[best[0]] - scores[best]).astype(np.float64) * unit
    return _Looked(best.tolist(), gaps.tolist())
