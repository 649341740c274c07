"""Answers that must be JSON of a schema: which tokens may come next, by llguidance.

    schema ─▶ check, in a process of its own ─▶ Constraint, one per answer:  push(token) … allowed() ─▶ (vocabulary,) True where a token may come

What is allowed depends on the schema and on the tokens so far and on nothing else, so it is the same with guesses and without, and after a restart,
when the tokens are pushed anew. A model's thoughts come before its JSON and are free. llguidance and what it knows of the vocabulary are loaded for the
first answer that needs them.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

from .detokenizer import Detokenizer
from .reasoning import Marks
from .refusal import Refusal
from .schema import grammar_of, limits, said, why_not
from .tokenizer import Tokenizer

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

#: Trying out schemas takes no more than this share of the front's time, and so many seconds at once.
_SHARE: Final = 0.05
_ALLOWANCE_S: Final = 3.0
#: Schemas whose verdict is remembered.
_REMEMBERED: Final = 32
_SHOWN_CHARS: Final = 300


class Grammars:
    """What is known of a model's tokens, for all answers."""

    def __init__(
        self, tokenizer: Tokenizer, vocabulary: int, end_ids: frozenset[int], marks: Marks | None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """``vocabulary``: tokens that the model has logits of."""
        self._tokenizer = tokenizer
        self._vocabulary = vocabulary
        self._end_ids = sorted(id for id in end_ids if id < vocabulary)
        self._marks = marks
        self._why_not = functools.lru_cache(_REMEMBERED)(why_not)
        self._clock = clock
        #: seconds that trying out schemas may take now
        self._allowance_s = _ALLOWANCE_S
        self._looked_at = clock()

    def check(self, schema: str) -> None:
        """Raises :class:`Refusal` for one that cannot be kept to, or costs too much (schema.py), and where trying out others has just taken much of
        the front's time, which is everybody's."""
        now = self._clock()
        self._allowance_s = min(_ALLOWANCE_S, self._allowance_s + _SHARE * (now - self._looked_at))
        self._looked_at = now
        if self._allowance_s <= 0:
            in_s = -self._allowance_s / _SHARE + 1
            raise Refusal("queue_full", f"new JSON schemas have taken much time just now; ask again in {in_s:.0f} s")
        why = self._why_not(schema)
        self._allowance_s -= self._clock() - now
        if why:
            raise Refusal("bad_request", f"json_schema cannot be kept to: {why}"[:_SHOWN_CHARS])

    def constraint(self, schema: str, chat: bool, opened: bool) -> Constraint:
        """Of one answer: to a chat the model may think first; ``opened``: it has begun to."""
        return Constraint(self, grammar_of(schema, self._marks if chat else None, opened))

    def matcher(self, grammar: str) -> LLMatcher:
        """At the beginning of an answer. What is wrong with it stands in its ``get_error``."""
        from llguidance import LLMatcher

        return LLMatcher(self._known, grammar, log_level=0, limits=limits())

    def mask(self, matcher: LLMatcher) -> NDArray[np.bool_]:
        """(vocabulary,)"""
        bits = np.frombuffer(matcher.compute_bitmask(), dtype=np.uint8)
        allowed = np.zeros(self._vocabulary, dtype=np.bool_)
        unpacked = np.unpackbits(bits, bitorder="little")[: self._vocabulary]
        allowed[: unpacked.size] = unpacked
        return allowed

    @functools.cached_property
    def _known(self) -> LLTokenizer:
        """Takes a second for a vocabulary of 100,000, once."""
        from llguidance import LLTokenizer

        words = _Words(self._tokenizer, self._vocabulary, self._end_ids, self._marks)
        return LLTokenizer(words, n_vocab=len(words.tokens), eos_token=self._end_ids or len(words.tokens) - 1)  # type: ignore[arg-type]  # by its attributes


class _Words:
    """The vocabulary as LLTokenizer asks for it: the bytes of each token as they become text here, and how text becomes tokens."""

    is_tokenizer_wrapper: Final = True
    bos_token_id: Final = None

    def __init__(self, tokenizer: Tokenizer, vocabulary: int, end_ids: Sequence[int], marks: Marks | None) -> None:
        self._tokenizer = tokenizer
        bytes_of = Detokenizer(tokenizer).bytes_of
        self.tokens = [bytes_of(id) for id in range(vocabulary)]
        if not end_ids:
            self.tokens.append(b"")  # one that the model has no logits of
        # a mark of thinking is text, as in Reasoning, also where it is a token of its own
        text = {tokenizer.id(mark) for mark in (marks.opening, marks.closing)} if marks is not None else set()
        special = (set(tokenizer.special_ids) | set(end_ids)) - text
        self.eos_token_id = end_ids[0] if end_ids else vocabulary
        self.special_token_ids = sorted({id for id in special if id < vocabulary} | {self.eos_token_id})
        self._longest = max(map(len, self.tokens))
        never = set(self.special_token_ids)
        #: of several with the same bytes the last one: tokens for single bytes, which models hardly use, come first in their vocabularies
        self._id_of = {data: id for id, data in enumerate(self.tokens) if data and id not in never}

    def __call__(self, text: str) -> list[int]:
        """Tokens with exactly these bytes: the tokenizer's, or the longest ones where it makes a blank before the first word."""
        ids, data = self._tokenizer.encode(text, add_special_tokens=False), text.encode()
        if b"".join(self.tokens[id] for id in ids if id < len(self.tokens)) == data:
            return ids
        return list(self._greedily(data))

    def _greedily(self, data: bytes) -> Iterator[int]:
        """As far as there are tokens."""
        at = 0
        while at < len(data):
            ends = range(min(len(data), at + self._longest), at, -1)
            end = next((end for end in ends if data[at:end] in self._id_of), None)
            if end is None:
                return
            yield self._id_of[data[at:end]]
            at = end


class Constraint:
    """One per answer. Nothing is compiled before ``allowed`` is asked for the first time."""

    def __init__(self, grammars: Grammars, grammar: str) -> None:
        self._grammars = grammars
        self._grammar = grammar
        #: pushed, and not seen by the matcher
        self._coming: list[int] = []
        self._matcher: LLMatcher | None = None

    def push(self, token: int) -> None:
        """A token of the answer; an end of text is none."""
        self._coming.append(token)

    def allowed(self) -> NDArray[np.bool_]:
        """Tokens that may come next, ends of text among them, (vocabulary,); none where the answer is complete and the model has no end of text.

        Raises :class:`Refusal` where the schema asks for more than llguidance's limits allow at this place.
        """
        matcher = self._caught_up()
        allowed = self._grammars.mask(matcher)
        self._raise_for(matcher)
        if not allowed.any() and not matcher.is_accepting():
            raise Refusal("bad_request", "json_schema cannot be kept to here: the model has no token that may come next")
        return allowed

    @property
    def complete(self) -> bool:
        """Whether nothing may come any more but an end of text. Raises as ``allowed``."""
        return self._caught_up().is_stopped()

    def _caught_up(self) -> LLMatcher:
        if self._matcher is None:
            self._matcher = self._grammars.matcher(self._grammar)
        coming, self._coming = self._coming, []
        if coming:
            self._matcher.consume_tokens(coming)
        self._raise_for(self._matcher)
        return self._matcher

    @staticmethod
    def _raise_for(matcher: LLMatcher) -> None:
        if matcher.is_error():
            raise Refusal("bad_request", f"json_schema cannot be kept to here: {said(matcher.get_error())}"[:_SHOWN_CHARS])
