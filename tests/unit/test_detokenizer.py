"""Incremental detokenisation over all kinds of tokenizers: whole characters, and exactly the whole decode."""

from __future__ import annotations

import codecs
import json
import time
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders, models
from tokenizers import Tokenizer as Inner
from vocabularies import KINDS, TEXTS, write

from potatod.errors import UnsupportedModel
from potatod.front.detokenizer import Detokenizer
from potatod.front.tokenizer import Tokenizer


@pytest.fixture(scope="module", params=sorted(KINDS))
def tokenizer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return Tokenizer.load(write(request.param, tmp_path_factory.mktemp(request.param)))


def _pieces(tokenizer: Tokenizer, ids: list[int], skip: bool = True) -> list[str]:
    detokenizer = Detokenizer(tokenizer, skip)
    return [*(detokenizer.push([number]) for number in ids), detokenizer.flush()]


# Ids are drawn as fractions of whatever vocabulary the kind has; half of the draws are from its first 300, where the
# special tokens and the bytes lie.
_drawn = st.lists(st.one_of(st.integers(0, 300), st.integers(0, 1 << 20)), max_size=40)


@given(_drawn, st.booleans())
@example([*range(600)], True)
@example([*range(599, -1, -1)], False)
@example([3 + 0xE4, 3 + 0xBD, 3 + 0xA0, 3 + 0xFF, 290], True)
@example([1, 1, 290, 2, 290], True)
def test_the_pieces_of_any_ids_are_exactly_the_whole_decode(tokenizer: Tokenizer, drawn: list[int], skip: bool) -> None:
    ids = [number % (tokenizer.vocabulary_size + 2) for number in drawn]  # two ids that no token has
    pieces = _pieces(tokenizer, ids, skip)
    assert "".join(pieces) == tokenizer.decode(ids, skip_special_tokens=skip)


@given(st.one_of(st.sampled_from(TEXTS), st.text(st.characters(exclude_categories=["Cs"]), max_size=30)))
def test_the_pieces_of_an_encoded_text_are_its_decode_and_hold_no_half_characters(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text, add_special_tokens=True)
    whole = tokenizer.decode(ids, skip_special_tokens=True)
    pieces = _pieces(tokenizer, ids)
    assert "".join(pieces) == whole
    assert "".join(pieces).count("\ufffd") == whole.count("\ufffd")


@given(st.one_of(st.sampled_from(TEXTS), st.text(st.characters(exclude_categories=["Cs"]), max_size=30)))
def test_the_bytes_of_the_tokens_together_are_those_of_the_text_but_for_the_blank_before_its_first_word(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text, add_special_tokens=True)
    detokenizer = Detokenizer(tokenizer, skip_special_tokens=False)
    together = b"".join(map(detokenizer.bytes_of, ids)).decode()
    assert together in ((shown := detokenizer.push(ids) + detokenizer.flush()), f" {shown}")


def test_the_bytes_of_a_token_are_known_whatever_comes_around_it(tokenizer: Tokenizer) -> None:
    detokenizer = Detokenizer(tokenizer)
    assert detokenizer.bytes_of(tokenizer.vocabulary_size) == b"", "no token has that id"
    for content, number in tokenizer.added_tokens.items():
        assert detokenizer.bytes_of(number).strip() == content.strip().encode(), "special ones have their name"
    ids = range(tokenizer.vocabulary_size)
    before = [detokenizer.bytes_of(number) for number in ids]
    detokenizer.push(ids)
    assert [detokenizer.bytes_of(number) for number in ids] == before


@given(_drawn, st.lists(st.integers(1, 5)))
def test_it_does_not_matter_how_many_ids_are_pushed_at_once(tokenizer: Tokenizer, drawn: list[int], sizes: list[int]) -> None:
    ids = [number % tokenizer.vocabulary_size for number in drawn]
    detokenizer, at, text = Detokenizer(tokenizer), 0, ""
    for size in [*sizes, len(ids)]:
        text += detokenizer.push(ids[at : at + size])
        at += size
    assert text + detokenizer.flush() == tokenizer.decode(ids, skip_special_tokens=True)


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return Tokenizer.load(write("gpt2", tmp_path_factory.mktemp("gpt2")))


def test_an_emoji_of_four_byte_tokens_comes_out_whole_with_the_last_of_them(gpt2: Tokenizer) -> None:
    ids = [_byte_token(gpt2, byte) for byte in "🙂".encode()]
    assert _pieces(gpt2, ids) == ["", "", "", "🙂", ""]


def test_bytes_that_never_become_a_character_come_out_as_replacements(gpt2: Tokenizer) -> None:
    ids = [_byte_token(gpt2, byte) for byte in b"\xf0\x9fA\xff"]
    assert _pieces(gpt2, ids) == ["", "", "\ufffdA", "\ufffd", ""]
    assert _pieces(gpt2, ids[:2])[-1] == "\ufffd"


@given(st.binary(max_size=12))
def test_broken_utf8_is_replaced_as_the_tokenizers_library_does(gpt2: Tokenizer, data: bytes) -> None:
    ids = [_byte_token(gpt2, byte) for byte in data]
    assert "".join(_pieces(gpt2, ids)) == gpt2.decode(ids, skip_special_tokens=True)
    assert "".join(_pieces(gpt2, ids)) == codecs.decode(data, errors="replace")


def test_special_tokens_can_be_kept_one_by_one(gpt2: Tokenizer) -> None:
    end = gpt2.added_tokens["<|end|>"]
    assert Detokenizer(gpt2).push([end]) == ""
    assert Detokenizer(gpt2, keep=frozenset({end})).push([end]) == "<|end|>"


def test_the_thousandth_token_costs_what_the_first_costs(tokenizer: Tokenizer) -> None:
    """No limit on the time itself: the last thousand of 20,000 tokens against the first thousand, with a wide margin."""
    ids = tokenizer.encode(" ".join(TEXTS), add_special_tokens=False)
    ids = (ids * (20_000 // len(ids) + 1))[:20_000]
    detokenizer, times = Detokenizer(tokenizer), []
    for start in range(0, len(ids), 1000):
        began = time.perf_counter()
        for number in ids[start : start + 1000]:
            detokenizer.push([number])
        times.append(time.perf_counter() - began)
    assert min(times[-5:]) < 5 * max(times[:5]), times


@pytest.mark.parametrize(
    "decoder",
    [
        decoders.BPEDecoder(),
        decoders.CTC(),
        decoders.Sequence([decoders.Fuse(), decoders.Replace("ab", " ")]),
        decoders.Strip(" ", 0, 1),
    ],
)
def test_a_decoder_whose_text_depends_on_what_follows_is_refused(decoder: decoders.Decoder, tmp_path: Path) -> None:
    inner = Inner(models.WordLevel({"a": 0, "b": 1}, unk_token="a"))
    inner.decoder = decoder
    inner.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(UnsupportedModel, match="not understood token by token"):
        Detokenizer(Tokenizer.load(tmp_path))


def test_tokens_without_a_decoder_are_words_between_blanks(tmp_path: Path) -> None:
    inner = Inner(models.WordLevel({"a": 0, "b": 1, "<x>": 2}, unk_token="a"))
    inner.add_special_tokens([AddedToken("<x>")])
    inner.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({}))
    tokenizer = Tokenizer.load(tmp_path)
    assert _pieces(tokenizer, [2, 0, 1, 2, 1]) == ["", "a", " b", "", " b", ""]
    assert tokenizer.decode([2, 0, 1, 2, 1], skip_special_tokens=True) == "a b b"


def _byte_token(tokenizer: Tokenizer, byte: int) -> int:
    """The token that stands for one byte in a byte-level vocabulary."""
    (number,) = (number for number in range(256) if bytes(map(ALPHABET.__getitem__, tokenizer.token(number) or "")) == bytes([byte]))
    return number


_PRINTABLE = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
ALPHABET = {chr(byte): byte for byte in _PRINTABLE} | {
    chr(0x100 + i): byte for i, byte in enumerate(byte for byte in range(256) if byte not in _PRINTABLE)
}
