"""Configs, tokenizers and templates: what lies in OUT is what transformers would have used of the source."""

from __future__ import annotations

import base64
import json

import pytest
import sentencepiece
import tokenizers
import transformers
from factories import CHAT_TEMPLATE, checkpoint

from potatod.store.prepare import prepare

TEXT = "Hello world, this is 12345\n  a test  <s> of potatoes"


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return checkpoint(tmp_path_factory.mktemp("companions") / "source", tokenizer=True)


def settings(source, **changes) -> None:
    path = source / "tokenizer_config.json"
    page = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in page.items() if value is not None}))


def fresh(tmp_path, **options):
    return checkpoint(tmp_path / "source", **options)


def test_tokenizer_json_gives_the_ids_that_transformers_gives(tmp_path, source):
    """Written as transformers saves it: for some classes it rebuilds parts of what lies in the file."""
    prepare(source, tmp_path / "out")
    ours = tokenizers.Tokenizer.from_file(str(tmp_path / "out" / "tokenizer.json"))
    theirs = transformers.AutoTokenizer.from_pretrained(source)
    for text in ("hello world", "  two  blanks ", "naïve — ☃\n\tcode()", ""):
        assert ours.encode(text, add_special_tokens=True).ids == theirs(text)["input_ids"]


def test_the_template_inside_the_tokenizers_config_gets_a_file_of_its_own(tmp_path, source):
    prepare(source, tmp_path / "out")
    assert (tmp_path / "out" / "chat_template.jinja").read_text() == CHAT_TEMPLATE
    assert "chat_template" not in json.loads((tmp_path / "out" / "tokenizer_config.json").read_text())


def test_a_template_file_comes_before_the_one_inside(tmp_path):
    source = fresh(tmp_path, tokenizer=True)
    (source / "chat_template.jinja").write_text("{{ 'file' }}")
    prepare(source, tmp_path / "out")
    assert (tmp_path / "out" / "chat_template.jinja").read_text() == "{{ 'file' }}"


def test_of_several_named_templates_the_default_is_taken(tmp_path):
    source = fresh(tmp_path, tokenizer=True)
    named = [{"name": "tool_use", "template": "{{ 'tools' }}"}, {"name": "default", "template": "{{ 'plain' }}"}]
    settings(source, chat_template=named)
    prepare(source, tmp_path / "out")
    assert (tmp_path / "out" / "chat_template.jinja").read_text() == "{{ 'plain' }}"


def test_without_a_template_none_is_made_up(tmp_path):
    source = fresh(tmp_path, tokenizer=True)
    settings(source, chat_template=None)
    prepare(source, tmp_path / "out")
    assert not (tmp_path / "out" / "chat_template.jinja").exists()


def test_without_a_tokenizer_the_weights_are_prepared_and_it_is_said(tmp_path):
    said: list[str] = []
    prepare(fresh(tmp_path), tmp_path / "out", notice=said.append)
    assert len(said) == 1 and "has no tokenizer" in said[0]
    assert not (tmp_path / "out" / "tokenizer.json").exists()


def test_the_generation_config_is_the_sources(tmp_path):
    source = fresh(tmp_path)
    (source / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, 7], "temperature": 0.6, "do_sample": True}))
    prepare(source, tmp_path / "out")
    page = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    assert (page["eos_token_id"], page["temperature"], page["do_sample"]) == ([2, 7], 0.6, True)


def test_where_there_is_no_generation_config_the_ids_that_end_a_text_come_from_the_config(tmp_path):
    source = fresh(tmp_path)
    (source / "generation_config.json").unlink()
    prepare(source, tmp_path / "out")
    assert json.loads((tmp_path / "out" / "generation_config.json").read_text())["eos_token_id"] == 2


def train_sentencepiece(folder) -> None:
    lines = folder / "lines.txt"
    lines.write_text("\n".join(f"Hello world {n} this is a test of potatoes and {n * n} tomatoes, isn't it" for n in range(300)))
    sentencepiece.SentencePieceTrainer.train(
        input=str(lines), model_prefix=str(folder / "tokenizer"), vocab_size=320, model_type="bpe", byte_fallback=True, minloglevel=2
    )
    lines.unlink()
    (folder / "tokenizer.vocab").unlink()


def test_llama_2s_tokenizer_model_is_converted(tmp_path):
    source = fresh(tmp_path)
    train_sentencepiece(source)
    page = {"tokenizer_class": "LlamaTokenizer", "add_bos_token": True, "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    (source / "tokenizer_config.json").write_text(json.dumps(page | {"chat_template": CHAT_TEMPLATE}))
    prepare(source, tmp_path / "out")
    theirs = transformers.AutoTokenizer.from_pretrained(source)
    ours = transformers.PreTrainedTokenizerFast.from_pretrained(tmp_path / "out")
    assert ours(TEXT).input_ids == theirs(TEXT).input_ids
    assert ours(TEXT).input_ids[0] == 1, "the sequence begins with <s>"
    plain = sentencepiece.SentencePieceProcessor(model_file=str(source / "tokenizer.model"))
    assert ours("Hello world", add_special_tokens=False).input_ids == plain.encode("Hello world")
    assert (tmp_path / "out" / "chat_template.jinja").read_text() == CHAT_TEMPLATE


def test_a_tiktoken_vocabulary_is_converted(tmp_path):
    source = fresh(tmp_path)
    words = [bytes([n]) for n in range(256)] + [b"He", b"ll", b"lo", b" w", b"or"]
    (source / "tokenizer.model").write_bytes(b"".join(base64.b64encode(w) + b" " + str(n).encode() + b"\n" for n, w in enumerate(words)))
    (source / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"}))
    prepare(source, tmp_path / "out")
    ours = transformers.PreTrainedTokenizerFast.from_pretrained(tmp_path / "out")
    assert ours("Hello wor", add_special_tokens=False).input_ids == [256, 257, 111, 259, 260]
