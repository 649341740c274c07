"""The folder's tokenizer by the `tokenizers` library alone. That it equals transformers' is in tests/reference."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from vocabularies import KINDS, write

from potatod.errors import ModelDataError, NoSuchModel
from potatod.front.tokenizer import Tokenizer, special_tokens


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_encoded_text_decodes_to_itself_where_the_kind_keeps_text(kind: str, tmp_path: Path) -> None:
    tokenizer = Tokenizer.load(write(kind, tmp_path))
    text = "the quick fox" if kind == "wordpiece" else "The quick fox"
    assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=True), skip_special_tokens=True) == text


def test_truncation_and_padding_of_the_file_do_not_apply(tmp_path: Path) -> None:
    folder = write("gpt2", tmp_path)
    plain = Tokenizer.load(folder).encode("The quick brown fox", add_special_tokens=True)
    page = json.loads((folder / "tokenizer.json").read_text())
    page["truncation"] = {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0}
    page["padding"] = {
        "strategy": {"Fixed": 64}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0, "pad_type_id": 0,
        "pad_token": "<|end|>",
    }  # fmt: skip
    (folder / "tokenizer.json").write_text(json.dumps(page))
    assert Tokenizer.load(folder).encode("The quick brown fox", add_special_tokens=True) == plain


def test_special_tokens_have_names_for_templates(tmp_path: Path) -> None:
    assert Tokenizer.load(write("llama2", tmp_path)).special_tokens == {
        "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>",
    }  # fmt: skip


def test_tokens_of_the_model_alone_have_names_too_and_flags_have_none() -> None:
    config = {"image_token": "<img>", "add_bos_token": True, "extra_special_tokens": {"call": "<call>"}, "pad_token": None}
    assert special_tokens(config) == {"image_token": "<img>", "call": "<call>"}


def test_the_vocabulary_counts_added_tokens(tmp_path: Path) -> None:
    tokenizer = Tokenizer.load(write("llama3", tmp_path))
    assert tokenizer.vocabulary_size == max(tokenizer.added_tokens.values()) + 1
    assert tokenizer.token(tokenizer.vocabulary_size) is None


def test_a_folder_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NoSuchModel, match=r"has no tokenizer\.json"):
        Tokenizer.load(tmp_path)


@pytest.mark.parametrize("text", ["", "{}", "[]", "{" * 100, "\ufffd"])
def test_a_file_that_is_no_tokenizer_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(text)
    with pytest.raises(ModelDataError, match="is no tokenizer"):
        Tokenizer.load(tmp_path)


@pytest.mark.parametrize(
    ("config", "why"),
    [
        ("[]", "must hold a JSON object"), ("{", "cannot read"), ('{"added_tokens_decoder": {"1": "x"}}', "which is no token"),
        ('{"added_tokens_decoder": {"one": {"content": "x"}}}', "which is no id"), ('{"pad_token": "\\ud800"}', "a token that is none"),
        ('{"added_tokens_decoder": {"1": {"content": "\\ud800"}}}', "a token that is none"),
        ('{"added_tokens_decoder": {"%s": {"content": "x"}}}' % ("9" * 5000), "a token that is none"),
    ],
)  # fmt: skip
def test_a_config_that_is_damaged_is_refused(config: str, why: str, tmp_path: Path) -> None:
    folder = write("gpt2", tmp_path)
    (folder / "tokenizer_config.json").write_text(config)
    with pytest.raises(ModelDataError, match=why):
        Tokenizer.load(folder)
