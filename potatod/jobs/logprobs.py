"""Log probabilities as bytes, as they lie in the database, and in memory, where objects would take ten times as much.

    a token's   [id, logprob, bytes, [[id, logprob, bytes], …]]   msgpack
    a row's     [token's, …]                                      msgpack, each as bytes
"""

from __future__ import annotations

from collections.abc import Sequence

import msgpack

from potato_client.protocol import LikelyToken, TokenLogprob


def packed(logprob: TokenLogprob) -> bytes:
    others = [(other.token_id, other.logprob, other.text_bytes) for other in logprob.alternatives]
    data: bytes = msgpack.packb((logprob.token_id, logprob.logprob, logprob.text_bytes, others))
    return data


def unpacked(data: bytes) -> TokenLogprob:
    """What :func:`packed` made. Raises ValueError or TypeError for anything else."""
    id, logprob, text, others = msgpack.unpackb(data)
    return TokenLogprob(id, logprob, text, tuple(LikelyToken(*other) for other in others))


def joined(each: Sequence[bytes]) -> bytes | None:
    """A row's; None where there are none."""
    row: bytes | None = msgpack.packb(list(each)) if each else None
    return row


def split(row: bytes | None, count: int) -> tuple[bytes, ...]:
    """Those of a row with so many tokens, none where it has none. Raises ValueError where there are more or fewer."""
    if row is None:
        return ()
    found = msgpack.unpackb(row)
    if not isinstance(found, list) or len(found) != count or not all(isinstance(each, bytes) for each in found):
        raise ValueError(f"log probabilities of {count} tokens are none")
    return tuple(found)
