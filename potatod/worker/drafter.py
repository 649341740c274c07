"""The draft model: a smaller or coarser one of the same vocabulary, whose weights stay, guesses how texts go on.

    Draft(texts) ─▶ what it has not read of each ─▶ round ─▶ candidates, with the noise that the target will sample with ─▶ … ─▶ Drafted(trees)
                                                      ▲                                                          │
                                                      └────────────────── growth.py: which nodes next ◀──────────┘

Each path of a tree has its KV as a fork of the text's. What was looked behind is kept as a tree of its own: when the text comes again, and has gone
on along one of its paths, what lies behind that is known already.

NOTE [ ahead ]
While a tree is verified, and weights are waited for, the growing goes on: behind the nodes that are verified, and beside them. It is the same tree,
and the likeliest nodes are those that the target will most likely come to; so what is looked at ahead is what the next draft would look at, and that
begins with it. What the target does not come to is forgotten then. Prompts that are computed meanwhile are read ahead too.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, TypeVar

import torch

from potatod.drafts import FORKED_BLOCKS
from potatod.kv_layout import BLOCK
from potatod.messages import Draft, Drafted, DraftText, Guessed
from potatod.spans import Spans
from potatod.trees import ROOT

from .attention import PackedAttention
from .candidates import Noise, candidates
from .draft_model import DraftModel, Read
from .draft_texts import Looked, Text, alike
from .growth import DOUBT, ROWS, Growth, Reach, RoundTimes, Spread

#: Fewer tokens than these, the last one among them, are read where the growing begins.
FEW: Final = 8
#: So many times in a row a card has not the memory for a draft.
_OFTEN: Final = 3
#: A text is gone on with from another one's beginning where that spares so many tokens.
_WORTH_SHARING: Final = 32

T = TypeVar("T")


@dataclass(slots=True)
class _Growing:
    """The trees of the last draft."""

    texts: dict[int, DraftText]
    #: those of whose tokens not all have been read
    unread: list[DraftText]
    growth: Growth
    noise: Noise
    #: of each node that was looked behind, by text and node
    looked: dict[tuple[int, int], Looked] = field(default_factory=dict)

    def forget(self, id: int) -> None:
        self.texts.pop(id, None)
        self.unread = [text for text in self.unread if text.sequence != id]
        for key in [key for key in self.looked if key[0] == id]:
            del self.looked[key]


class Drafter:
    def __init__(self, folder: Path, findings: dict[str, Any], vocabulary: int, device: torch.device, attention: PackedAttention, spans: Spans) -> None:
        """``findings``: verdict.Findings of the draft model; ``vocabulary``: tokens that the target knows."""
        self._model = DraftModel(folder, findings, device, attention)
        self._vocabulary = vocabulary
        self._spans = spans
        self._texts: dict[int, Text] = {}
        self._growing: _Growing | None = None
        #: blocks that all guesses take
        self._blocks = 0
        #: how often in a row a card had not the memory
        self._exhausted = 0
        self._spread = Spread()
        self._round_s = RoundTimes()
        #: the same where the target's sweep is under way
        self._ahead_s = RoundTimes(self._round_s)
        #: seconds to read a token, of the last text that was read ahead; 0 where none was
        self._read_s = 0.0
        #: in this sweep: something was looked at or read ahead; something was not, since it would have taken too long
        self._was_ahead = self._refused = False

    @torch.inference_mode()
    def fork(self, sequence: int, of: int, length: int) -> None:
        """As worker.fork; where there is nothing of that one there will be nothing of this one."""
        text = self._texts.get(of)
        if text is not None:
            length = min(length, text.known)
            if text.read.kv.reaches(length):
                self._texts[sequence] = Text(text.read.fork(length))

    def forget(self, sequence: int) -> None:
        self._texts.pop(sequence, None)
        if self._growing is not None:
            self._growing.forget(sequence)

    def draft(self, ask: Draft, going_on: Callable[[], None]) -> Drafted:
        """``going_on`` is called between passes. Where a card has not the memory for it nothing is guessed, and all texts are read anew; again and
        again it is an error."""
        began = time.monotonic()
        drafted = self._in_memory(lambda: self._drafted(ask, going_on))
        return drafted or Drafted(ask.epoch, ask.number, (), time.monotonic() - began)

    def ahead(self, spare_s: float) -> bool:
        """Something of NOTE [ ahead ], which takes no longer than that; whether there was anything to be done. Raises as :meth:`draft`."""
        return self._growing is not None and bool(self._in_memory(lambda: self._further(spare_s)))

    def verified(self, held: Mapping[int, int]) -> None:
        """The target has been where it goes, and holds so many tokens of each: nothing is looked at ahead before the next draft. What was read ahead
        of a prompt that the sweep did not take is forgotten."""
        self._growing = None
        for id, known in list(self._texts.items()):
            length = held.get(id, 0)
            if not length or (known.looked is None and known.known > length and not known.read.cut(length)):
                del self._texts[id]
        if self._refused and not self._was_ahead:
            self._ahead_s.doubt()
            self._read_s *= DOUBT
        self._was_ahead = self._refused = False

    def _in_memory(self, do: Callable[[], T]) -> T | None:
        try:
            with torch.inference_mode():
                done = do()
            self._exhausted = 0
            return done
        except torch.OutOfMemoryError:
            self._exhausted += 1
            if self._exhausted == _OFTEN:
                raise
        self._texts.clear()  # outside the handler: an exception holds its frames, and they hold tensors
        self._growing = None
        return None

    def _drafted(self, ask: Draft, going_on: Callable[[], None]) -> Drafted:
        began = time.monotonic()
        for known in self._texts.values():
            known.stale = True
        texts = [text for text in ask.texts if max(text.tokens) < self._model.vocabulary]
        for text in texts:
            self._come(text)
        for id in [id for id, known in self._texts.items() if known.stale and not known.settle()]:
            del self._texts[id]
        now = [text for text in texts if text.most or not ask.spare_s]
        ready, read, read_s = self._read_all(now, ask.reads, going_on)
        growth = Growth({text.sequence: Reach(text.most, text.room) for text in ready}, ask.nodes, ask.sweep_s, self._round_s)
        ids = {text.sequence: text for text in ready}
        self._growing = growing = _Growing(ids, [text for text in texts if text.sequence not in ids], growth, Noise(self._vocabulary))
        if ready:
            self._begin(growing)
            going_on()
            while nodes := growth.next():
                self._round(growing, nodes, self._round_s)
                going_on()
        ended = time.monotonic()
        self._spans.add("draft", f"draft {ask.number}", began, ended)
        guessed = tuple(
            Guessed(id, tuple(tree.tokens), tuple(tree.parents), tuple(tree.chances)) for id, tree in growth.trees.items()
        )
        return Drafted(ask.epoch, ask.number, guessed, ended - began, read_s, read)

    def _further(self, spare_s: float) -> bool:
        growing, began = self._growing, time.monotonic()
        assert growing is not None
        done = False
        while not done and (nodes := growing.growth.ahead(spare_s, self._ahead_s)):
            done = self._round(growing, nodes, self._ahead_s)
        while not done and growing.unread and (most := self._can_read(spare_s)):
            done = self._read_ahead(growing.unread, most)
        self._was_ahead |= done
        self._refused |= not done and (growing.growth.unlooked or bool(growing.unread))
        if done:
            self._spans.add("draft", "ahead", began, time.monotonic())
        return done

    # reading

    def _come(self, text: DraftText) -> None:
        """A text has come to here: what was guessed of it is compared, and the path that was right is gone on with."""
        known, tokens = self._texts.get(text.sequence), list(text.tokens)
        if known is None:
            self._texts[text.sequence] = Text(self._model.nothing_read())
            return
        known.stale = False
        if (looked := self._follow(known.looked, tokens)) is not None:
            known.read = looked.read
            if looked.length == len(tokens):
                known.looked = looked
                return
        known.looked = None
        if not known.read.cut(min(alike(known.read.tokens, tokens), len(tokens) - 1)):  # behind the last one is looked
            known.read = self._model.nothing_read()

    def _follow(self, looked: Looked | None, tokens: Sequence[int]) -> Looked | None:
        """The last place along the text that was looked behind; what came there is learned from."""
        if looked is None or alike(looked.read.tokens[: looked.length], tokens) < looked.length:
            return None
        for came in tokens[looked.length :]:
            self._spread.learn(looked.gaps, looked.tokens.index(came) if came in looked.tokens else None)
            if came not in looked.behind:
                break
            looked = looked.behind[came]
        return looked

    def _read_all(self, texts: Sequence[DraftText], most: int, going_on: Callable[[], None]) -> tuple[list[DraftText], int, float]:
        """Reads the texts, so far as ``most`` tokens go, but for a few last ones of each; those that are to be gone on with, tokens that were read,
        and seconds."""
        left, began, ready = most, time.monotonic(), []
        for text in texts:
            if left > 0:
                self._share(text)
            while left > 0 and (read := self._read_some(text, min(left, self._model.at_once(len(text.tokens))))):
                left -= read
                going_on()
            if text.most and not self._left_of(text):
                ready.append(text)
        return ready, most - left, time.monotonic() - began

    def _left_of(self, text: DraftText) -> int:
        """Tokens of it to be read before it can be gone on with."""
        left = len(text.tokens) - len(self._texts[text.sequence].read.tokens)
        return left - 1 if left > FEW else 0

    def _read_some(self, text: DraftText, most: int) -> int:
        """Reads so many tokens of it, or what is left; how many it read."""
        read = self._texts[text.sequence].read
        at, count = len(read.tokens), min(most, self._left_of(text))
        if count:
            self._model.read([read.going_on(text.tokens[at : at + count])])
        return count

    def _can_read(self, spare_s: float) -> int:
        """Tokens in that time; 0 where they are few, or a round would take longer. What is not known yet is thought to take as long as that."""
        if self._ahead_s(1) > spare_s:
            return 0
        most = int(spare_s / (self._read_s or self._ahead_s(ROWS[-1]) / ROWS[-1]))
        return most if most >= FEW else 0

    def _read_ahead(self, unread: list[DraftText], most: int) -> bool:
        """Some tokens of the first of these; False where it has nothing left."""
        text, began = unread[0], time.monotonic()
        self._share(text)
        at_once = self._model.at_once(len(text.tokens))
        read = self._read_some(text, min(most, at_once))
        if read >= min(FEW, at_once):
            self._read_s = (time.monotonic() - began) / read
        if not self._left_of(text):
            unread.pop(0)
        return read > 0

    def _share(self, text: DraftText) -> None:
        """Goes on from what was read of another text, where that begins alike and further than this one's own."""
        known, tokens = self._texts[text.sequence], list(text.tokens)
        own = len(known.read.tokens)
        others = ((other.read, other.known) for id, other in self._texts.items() if id != text.sequence)
        begun = ((min(alike(read.tokens[:most], tokens), len(tokens) - 1), read) for read, most in others if most >= own + _WORTH_SHARING)
        length, read = max(begun, key=lambda each: each[0], default=(0, known.read))
        if length >= own + _WORTH_SHARING and read.kv.reaches(length):
            known.read = read.fork(length)

    # growing

    def _begin(self, growing: _Growing) -> None:
        """Looks behind the ends of texts, where that has not been done ahead, and takes what is known of what lies behind them."""
        began = time.monotonic()
        new = [text for text in growing.texts.values() if self._texts[text.sequence].looked is None]
        reads = [self._texts[text.sequence].read for text in new]
        found = self._look(growing, new, [read.going_on(text.tokens[len(read.tokens) :]) for read, text in zip(reads, new, strict=True)])
        for text, looked in zip(new, found, strict=True):
            self._texts[text.sequence].looked = looked
        for id in growing.texts:
            if (begins := self._texts[id].looked) is not None:
                begins.read.least = begins.length
                self._take(growing, id, ROOT, begins)
        self._blocks = sum(text.forked_blocks() for text in self._texts.values())
        growing.growth.spent(time.monotonic() - began)

    def _round(self, growing: _Growing, nodes: Sequence[tuple[int, int]], times: RoundTimes) -> bool:
        """Looks behind these, of texts that have not been forgotten; False where that is not possible for any."""
        began, of, parts = time.monotonic(), [], []
        for id, node in nodes:
            tree = growing.growth.tree(id)
            if (before := growing.looked.get((id, tree.parents[node]))) is None:
                continue
            token = tree.tokens[node]
            if (read := self._behind(before)) is not None:
                of.append((id, node, before, token))
                parts.append(read.going_on((token,)))
        if not parts:
            return False
        for (id, node, before, token), looked in zip(of, self._look(growing, [growing.texts[id] for id, *_ in of], parts), strict=True):
            before.behind[token] = looked
            self._take(growing, id, node, looked)
        seconds = time.monotonic() - began
        growing.growth.spent(seconds)
        times.add(next(rows for rows in ROWS if rows >= len(parts)), seconds)
        return True

    def _look(self, growing: _Growing, texts: Sequence[DraftText], parts: Sequence[tuple[Read, Sequence[int]]]) -> list[Looked]:
        """What may follow each of these, when it has read its part."""
        logits = self._model.read(parts) if parts else ()
        return [
            Looked(read, len(read.tokens), *candidates(values[: self._vocabulary], read.tokens, text.drawn, growing.noise))
            for text, (read, _), values in zip(texts, parts, logits, strict=True)
        ]

    def _take(self, growing: _Growing, id: int, node: int, looked: Looked) -> None:
        """What may follow that node becomes its children, and what is known already of what lies behind those theirs."""
        growth, left = growing.growth, [(node, looked)]
        while left:
            node, looked = left.pop()
            growing.looked[id, node] = looked
            before, looked.behind = looked.behind, {}  # what is too unlikely now is forgotten
            for child in growth.children(id, node, list(zip(looked.tokens, self._spread.chances(looked.gaps), strict=True))):
                token = growth.tree(id).tokens[child]
                if (known := before.get(token)) is not None:
                    looked.behind[token] = known
                    left.append((child, known))
                else:
                    growth.open(id, child)

    def _behind(self, looked: Looked) -> Read | None:
        """What goes on from there: what has read it, where that ends there and its windows may move on, else a fork; None where they have left that
        behind, or as many blocks as were planned are taken."""
        read, length = looked.read, looked.length
        goes_on, begins = len(read.tokens) == length and read.may_go_on, length % BLOCK == 0
        if (self._blocks >= FORKED_BLOCKS and (begins or not goes_on)) or not (goes_on or read.kv.reaches(length)):
            return None
        self._blocks += begins or not goes_on
        return read if goes_on else read.fork(length)
