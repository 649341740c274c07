"""What has been said of an answer as messages that fit into frames. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

from potato_client.protocol import Piece
from potatod.jobs.logprobs import unpacked

#: Tokens, and characters, in a Piece; and tokens where each has its log probabilities, of which one with all its alternatives may take some kilobytes.
_MOST: Final = 500_000
_MOST_LOGPROBS: Final = 500


def pieces(
    job: str, index: int, text: str, token_ids: tuple[int, ...], reasoning: str, logprobs: Sequence[bytes] = ()
) -> Iterator[Piece]:  # fmt: skip
    """Of tokens from number ``index`` on, with as many ``logprobs``, packed, or none. Where there is nothing to be said there is no Piece."""
    most = _MOST_LOGPROBS if logprobs else _MOST
    while token_ids or text or reasoning:
        yield Piece(job, index, text[:_MOST], token_ids[:most], reasoning[:_MOST], tuple(map(unpacked, logprobs[:most])))
        index += len(token_ids[:most])
        text, token_ids, reasoning, logprobs = text[_MOST:], token_ids[most:], reasoning[_MOST:], logprobs[most:]
