"""Small tokenizers of the kinds that language models use, made by training on a few lines or by hand."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

LINES = [
    "The quick brown fox jumps over the lazy dog, and then it's gone.",
    "Zwölf Boxkämpfer jagen Viktor quer über den großen Sylter Deich.",
    "def main() -> None:\n    return {'a': 1, \"b\": [2, 3]}",
    "東京は日本の首都です。 こんにちは世界 🙂🙃",
    "numbers 123 4567 and   many    blanks\n\n\tand tabs",
] * 4
TEXTS = [
    "", " ", "Hello world", " leading blank", "trailing blank ", "  two  blanks  ", "it's the fox's", "Zwölf 東京 🙂 👩‍👩‍👧 ñ",
    "line\nline\r\n\n\tend", "<s> not </s> special <|end|> or is it <tool>", "123 4567890", "e\u0301 \u00a0 \u200b",
]  # fmt: skip
WORD_SPLIT = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s+(?!\S)|\s+"


def _byte_level(split: str | None) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=split is None)
    tokenizer.pre_tokenizer = level if split is None else pre_tokenizers.Sequence([pre_tokenizers.Split(_regex(split), "isolated"), level])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=400, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False)
    tokenizer.train_from_iterator(LINES, trainer)
    return tokenizer


def _regex(pattern: str) -> object:
    from tokenizers import Regex

    return Regex(pattern)


def gpt2() -> tuple[Tokenizer, dict[str, object]]:
    tokenizer = _byte_level(None)
    tokenizer.add_special_tokens(["<|end|>"])
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    return tokenizer, {"bos_token": "<|end|>", "eos_token": "<|end|>", "unk_token": "<|end|>"}


def llama3() -> tuple[Tokenizer, dict[str, object]]:
    tokenizer = _byte_level(WORD_SPLIT)
    tokenizer.add_special_tokens(["<|begin|>", "<|end|>"])
    tokenizer.add_tokens([AddedToken("<tool>", special=False, normalized=False), AddedToken("東京 tower", special=False)])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<|begin|> $A", pair="<|begin|> $A <|begin|>:1 $B:1", special_tokens=[("<|begin|>", _id(tokenizer, "<|begin|>"))]
    )
    return tokenizer, {"bos_token": "<|begin|>", "eos_token": "<|end|>", "clean_up_tokenization_spaces": True}


def _sentencepiece_bpe() -> Tokenizer:
    """Merges learned over Metaspace, then bytes for what has no token, as sentencepiece's BPE models come out."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, fuse_unk=True, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="first", split=False)
    specials = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=480, special_tokens=specials, limit_alphabet=70, show_progress=False)
    tokenizer.train_from_iterator(LINES, trainer)
    page = json.loads(tokenizer.to_str())
    page["added_tokens"] = page["added_tokens"][:3]  # bytes are the model's own tokens, not special ones
    return Tokenizer.from_str(json.dumps(page))


def _fused(*more: object) -> decoders.Decoder:
    return decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *more])


def llama2() -> tuple[Tokenizer, dict[str, object]]:
    tokenizer = _sentencepiece_bpe()
    tokenizer.pre_tokenizer = None
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = _fused(decoders.Strip(" ", 1, 0))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s>:1 $B:1", special_tokens=[("<s>", _id(tokenizer, "<s>"))]
    )
    return tokenizer, {"bos_token": {"__type": "AddedToken", "content": "<s>"}, "eos_token": "</s>", "unk_token": "<unk>"}


def gemma() -> tuple[Tokenizer, dict[str, object]]:
    """No blank before the text; added tokens that are not special; no post-processor at all."""
    tokenizer = _sentencepiece_bpe()
    tokenizer.pre_tokenizer = None
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.decoder = _fused()
    tokenizer.add_tokens([AddedToken("<tool>", normalized=False), AddedToken("\n\n", normalized=False)])
    return tokenizer, {"bos_token": "<s>", "eos_token": "</s>", "add_bos_token": True, "pad_token": "<pad>"}


def unigram() -> tuple[Tokenizer, dict[str, object]]:
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")
    tokenizer.decoder = decoders.Metaspace(replacement="▁", prepend_scheme="always")
    trainer = trainers.UnigramTrainer(vocab_size=260, special_tokens=["<unk>", "<s>", "</s>"], unk_token="<unk>", show_progress=False)
    tokenizer.train_from_iterator(LINES, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", _id(tokenizer, "</s>"))]
    )
    return tokenizer, {"eos_token": "</s>", "unk_token": "<unk>"}


def wordpiece() -> tuple[Tokenizer, dict[str, object]]:
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(prefix="##", cleanup=True)
    trainer = trainers.WordPieceTrainer(vocab_size=300, special_tokens=["[UNK]", "[SEP]"], show_progress=False)
    tokenizer.train_from_iterator(LINES, trainer)
    return tokenizer, {"unk_token": "[UNK]", "sep_token": "[SEP]"}


def _id(tokenizer: Tokenizer, token: str) -> int:
    number: int | None = tokenizer.token_to_id(token)
    assert number is not None
    return number


KINDS: dict[str, Callable[[], tuple[Tokenizer, dict[str, object]]]] = {
    "gpt2": gpt2, "llama3": llama3, "llama2": llama2, "gemma": gemma, "unigram": unigram, "wordpiece": wordpiece,
}  # fmt: skip


def write(kind: str, folder: Path) -> Path:
    """A folder with that kind's tokenizer.json and tokenizer_config.json."""
    tokenizer, config = KINDS[kind]()
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", **config}))
    return folder
