"""Ids to text, token by token: never half a character, and all pieces together are exactly the whole decode.

    id ─▶ visible? ─▶ strategy (by tokenizer.json's decoder) ─▶ text that nothing that follows can change

What a token's text depends on, and so what must be held back, is known for the decoders that language models use:

* ``ByteLevel``: each token is bytes, all bytes together are UTF-8. Text is final as soon as its bytes are complete.
* the others (Metaspace, Replace, ByteFallback, Fuse, Strip on the left, WordPiece, or none): the first token of a text loses
  its leading space, and a run of byte tokens (``<0xE4>``) is text or replacement characters *as a whole*. So runs are held
  until they end, and every later segment is decoded behind an anchor token whose own text is then cut off.

Either way a token costs the same however long the answer is.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final, Protocol

from potatod.errors import UnsupportedModel

from .tokenizer import Tokenizer

_BYTE_TOKEN: Final = re.compile(r"<0x[0-9A-Fa-f]{2}>")
_LOCAL_DECODERS: Final = frozenset({"Metaspace", "Replace", "ByteFallback", "Fuse", "Strip", "WordPiece"})


class _Strategy(Protocol):
    def push(self, number: int, token: str) -> str: ...
    def flush(self) -> str: ...
    def bytes_of(self, number: int, token: str) -> bytes: ...


class Detokenizer:
    """One per answer. ``keep`` are special tokens that are shown nevertheless."""

    def __init__(self, tokenizer: Tokenizer, skip_special_tokens: bool = True, *, keep: frozenset[int] = frozenset()) -> None:
        """Raises :class:`UnsupportedModel` where tokenizer.json has a decoder that is not understood here."""
        self._tokenizer = tokenizer
        self._hidden = tokenizer.special_ids - keep if skip_special_tokens else frozenset[int]()
        self._strategy = _strategy(tokenizer)

    def push(self, ids: Iterable[int]) -> str:
        """Text that these ids make certain; nothing that was returned before changes."""
        pieces = []
        for number in ids:
            token = None if number in self._hidden else self._tokenizer.token(number)
            if token is not None:
                pieces.append(self._strategy.push(number, token))
        return "".join(pieces)

    def flush(self) -> str:
        """What was held back; the answer is complete."""
        return self._strategy.flush()

    def bytes_of(self, number: int) -> bytes:
        """UTF-8 of one token behind other text, hidden or not, which may be part of a character; empty where there is no token with that id."""
        token = self._tokenizer.token(number)
        return b"" if token is None else self._strategy.bytes_of(number, token)


def check(tokenizer: Tokenizer) -> None:
    """Raises :class:`UnsupportedModel` where a :class:`Detokenizer` would."""
    _strategy(tokenizer)


def _strategy(tokenizer: Tokenizer) -> _Strategy:
    decoders = list(_flat(tokenizer.decoder()))
    names = [decoder["type"] for decoder in decoders]
    if [name for name in names if name != "Fuse"] == ["ByteLevel"]:
        return _Bytes()
    late = names[names.index("Fuse") :] if "Fuse" in names else []
    strips_right = any(decoder["type"] == "Strip" and decoder.get("stop") for decoder in decoders)
    if not _LOCAL_DECODERS.issuperset(names) or strips_right or "Replace" in late:
        raise UnsupportedModel(f"tokenizer.json decodes by {names}, which is not understood token by token")
    return _Segments(tokenizer, byte_fallback="ByteFallback" in names)


def _flat(decoder: dict[str, Any]) -> Iterator[dict[str, Any]]:
    if decoder.get("type") == "Sequence":
        for inner in decoder["decoders"]:
            yield from _flat(inner)
    elif decoder:
        yield decoder


class _Bytes:
    """ByteLevel: a character of a token stands for a byte; a token with any other character stands for itself."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, number: int, token: str) -> str:
        return self._decoder.decode(self.bytes_of(number, token))

    def flush(self) -> str:
        return self._decoder.decode(b"", final=True)

    def bytes_of(self, number: int, token: str) -> bytes:
        try:
            return bytes(map(_BYTE_OF.__getitem__, token))
        except KeyError:
            return token.encode()


def _byte_of() -> dict[str, int]:
    """GPT-2's alphabet: a printable Latin-1 character is its own byte, the other bytes follow from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + i): byte for i, byte in enumerate(others)}


_BYTE_OF: Final = _byte_of()


class _Segments:
    """Segments that end with a token that is no byte; each but the first is decoded behind the anchor."""

    def __init__(self, tokenizer: Tokenizer, *, byte_fallback: bool) -> None:
        self._tokenizer = tokenizer
        self._byte_fallback = byte_fallback
        self._held: list[int] = []
        #: None until something has been decoded: what comes first stands behind nothing
        self._anchor: tuple[list[int], int] | None = None
        self._for_bytes: tuple[list[int], int] | None = None

    def push(self, number: int, token: str) -> str:
        self._held.append(number)
        if self._byte_fallback and _BYTE_TOKEN.fullmatch(token):
            return ""
        return self.flush()

    def flush(self) -> str:
        if not self._held:
            return ""
        segment, self._held = self._held, []
        if self._anchor is None:
            self._anchor = _anchor(self._tokenizer)
            return self._decode(segment)
        return self._behind(self._anchor, segment)

    def bytes_of(self, number: int, token: str) -> bytes:
        if self._byte_fallback and _BYTE_TOKEN.fullmatch(token):
            return bytes([int(token[3:5], 16)])
        if self._for_bytes is None:
            self._for_bytes = _anchor(self._tokenizer)
        return self._behind(self._for_bytes, [number]).encode()

    def _behind(self, anchor: tuple[list[int], int], segment: list[int]) -> str:
        ids, length = anchor
        return self._decode([*ids, *segment])[length:]

    def _decode(self, ids: Sequence[int]) -> str:
        return self._tokenizer.decode(ids, skip_special_tokens=False)  # hidden ones are gone already


def _anchor(tokenizer: Tokenizer) -> tuple[list[int], int]:
    """A token that is text by itself, and the length of its text. Where all are bytes there is one segment only."""
    for number in range(tokenizer.vocabulary_size):
        token = tokenizer.token(number)
        if token is None or number in tokenizer.special_ids or _BYTE_TOKEN.fullmatch(token):
            continue
        text = tokenizer.decode([number], skip_special_tokens=False)
        if text.strip():
            return [number], len(text)
    return [], 0
