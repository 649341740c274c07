"""The front's tokenizer against transformers' on the same folder: the same ids, the same text, the same names."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer, PreTrainedTokenizerFast
from vocabularies import KINDS, TEXTS, write

from potatod.front.tokenizer import Tokenizer

Pair = tuple[Tokenizer, PreTrainedTokenizerFast]


def _pair(folder: Path) -> Pair:
    return Tokenizer.load(folder), AutoTokenizer.from_pretrained(folder)


@pytest.fixture(scope="module", params=sorted(KINDS))
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return _pair(write(request.param, tmp_path_factory.mktemp(request.param)))


def _same(pair: Pair, text: str) -> None:
    ours, theirs = pair
    for special in (True, False):
        ids = ours.encode(text, add_special_tokens=special)
        assert ids == theirs.encode(text, add_special_tokens=special)
        for skip in (True, False):
            decoded = theirs.decode(ids, skip_special_tokens=skip, clean_up_tokenization_spaces=False)
            assert ours.decode(ids, skip_special_tokens=skip) == decoded


@pytest.mark.parametrize("text", TEXTS)
def test_chosen_texts_give_the_same_ids_and_the_same_text_again(pair: Pair, text: str) -> None:
    _same(pair, text)


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=40))
def test_any_text_gives_the_same_ids_and_the_same_text_again(pair: Pair, text: str) -> None:
    _same(pair, text)


def test_names_of_special_tokens_and_the_size_of_the_vocabulary_are_the_same(pair: Pair) -> None:
    ours, theirs = pair
    assert ours.special_tokens == theirs.special_tokens_map
    assert ours.vocabulary_size == len(theirs)
    assert ours.special_ids >= set(theirs.all_special_ids)
    assert ours.added_tokens == theirs.get_added_vocab()


@pytest.mark.parametrize("add", [True, False])
@pytest.mark.parametrize("kind", ["gemma", "llama2", "llama3"])
def test_what_the_config_says_about_bos_changes_nothing_beside_a_tokenizer_json(kind: str, add: bool, tmp_path: Path) -> None:
    folder = write(kind, tmp_path)
    _change(folder, add_bos_token=add, add_eos_token=add)
    _same(_pair(folder), "Hello world")


@pytest.mark.parametrize(
    "config",
    [
        {"added_tokens_decoder": {"700": {"content": "<extra>", "special": False, "normalized": False, "lstrip": True}}},
        {"added_tokens_decoder": {"1": {"content": "<s>", "special": False}}, "bos_token": "<s>", "eos_token": "<e>"},
        {"extra_special_tokens": ["<one>", "<two>"], "image_token": "<img>"},
        {"additional_special_tokens": ["<one>"]},
        {"extra_special_tokens": {"call_token": "<call>"}},
        {"split_special_tokens": True},
    ],
)
@pytest.mark.parametrize("kind", ["llama2", "llama3"])
def test_tokens_that_only_the_config_names_are_added_as_transformers_adds_them(
    kind: str, config: dict[str, object], tmp_path: Path
) -> None:
    folder = write(kind, tmp_path)
    _change(folder, **config)
    pair = _pair(folder)
    for text in [*TEXTS, "a <extra> b<s>c <one><two><img><call><e>"]:
        _same(pair, text)
    test_names_of_special_tokens_and_the_size_of_the_vocabulary_are_the_same(pair)


def test_a_tokenizer_that_transformers_rebuilds_and_saves_loads_with_the_rebuilt_ids(tmp_path: Path) -> None:
    """Some classes (LlamaTokenizer) take vocabulary and merges from tokenizer.json and set the rest themselves; what
    ``save_pretrained`` then writes is complete, and that is what a model folder holds."""
    folder = write("llama2", tmp_path / "source")
    _change(folder, tokenizer_class="LlamaTokenizer")
    rebuilt = AutoTokenizer.from_pretrained(folder)
    rebuilt.save_pretrained(tmp_path / "saved")
    ours = Tokenizer.load(tmp_path / "saved")
    for text in TEXTS:
        _same((ours, rebuilt), text)


def _change(folder: Path, **config: object) -> None:
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **config}))
