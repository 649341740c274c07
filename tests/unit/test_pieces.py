"""What has been said, cut into messages: nothing is lost, and each fits into a frame."""

from __future__ import annotations

from potato_client.codec import MAX_FRAME_BYTES
from potato_client.protocol import FROM_FRONT, LikelyToken, TokenLogprob
from potatod.front.pieces import pieces
from potatod.jobs.logprobs import packed, unpacked


def likely(token: int, count: int = 20, size: int = 3) -> TokenLogprob:
    return TokenLogprob(token, -0.5, b"x" * size, tuple(LikelyToken(id, -1.0 - id, bytes([id]) * size) for id in range(count)))


def test_what_is_packed_comes_out_again() -> None:
    for one in (likely(7), likely(1 << 31, 0), TokenLogprob(0, -9999.0, b"")):
        assert unpacked(packed(one)) == one


def test_a_little_is_one_piece_and_nothing_is_none() -> None:
    (piece,) = pieces("j", 5, "ab", (1, 2), "hm", [packed(likely(1)), packed(likely(2))])
    assert (piece.job, piece.index, piece.text, piece.token_ids, piece.reasoning) == ("j", 5, "ab", (1, 2), "hm")
    assert piece.logprobs == (likely(1), likely(2))
    assert not list(pieces("j", 5, "", (), ""))


def test_much_is_several_that_follow_each_other_and_tokens_keep_their_log_probabilities() -> None:
    ids = tuple(range(1700))
    found = list(pieces("j", 3, "x" * 600_000, ids, "", [packed(likely(id, size=100)) for id in ids]))
    assert [piece.index for piece in found] == [3, 503, 1003, 1503]
    assert sum((piece.token_ids for piece in found), ()) == ids
    assert [one.token_id for piece in found for one in piece.logprobs] == list(ids)
    assert all(len(piece.token_ids) == len(piece.logprobs) for piece in found)
    assert sum(len(piece.text) for piece in found) == 600_000
    assert max(len(FROM_FRONT.encode(piece)) for piece in found) < MAX_FRAME_BYTES


def test_without_log_probabilities_a_long_answer_is_one_piece() -> None:
    assert len(list(pieces("j", 0, "", tuple(range(400_000)), ""))) == 1
