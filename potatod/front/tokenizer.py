"""Text to ids and back, as transformers does it with the same folder, by the `tokenizers` library alone.

tokenizer.json holds the algorithm; tokenizer_config.json names the special tokens and may add tokens. As in transformers,
tokenizer.json's own post-processor decides what surrounds a text (``add_bos_token`` beside it says nothing), its truncation
and padding do not apply, and decoding cleans up no spaces.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import tokenizers
from tokenizers import AddedToken

from potatod.errors import ModelDataError, NoSuchModel, first_line
from potatod.json_file import read_json_if_there, read_text

_NAMED: Final = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
#: Vocabularies of a quarter of a million tokens take some 35 MB.
_MAX_BYTES: Final = 256 << 20
_MAX_CONFIG_BYTES: Final = 64 << 20


class Tokenizer:
    def __init__(self, inner: tokenizers.Tokenizer, special_tokens: Mapping[str, str]) -> None:
        self._inner = inner
        #: what templates may call by name: "bos_token", "eos_token", …
        self.special_tokens = dict(special_tokens)
        added = inner.get_added_tokens_decoder()
        #: content to id of every token that lies beside the model's own vocabulary
        self.added_tokens = {token.content: number for number, token in added.items()}
        self.special_ids = frozenset(number for number, token in added.items() if token.special)

    @classmethod
    def load(cls, folder: Path) -> Tokenizer:
        """The folder's tokenizer. Raises :class:`NoSuchModel` where there is none, :class:`ModelDataError` where it is bad."""
        path = folder / "tokenizer.json"
        try:
            text = read_text(path, _MAX_BYTES)
        except NoSuchModel:
            raise NoSuchModel(f"{folder} has no tokenizer.json; prepare the model from a source that has a tokenizer") from None
        try:
            inner = tokenizers.Tokenizer.from_str(text)
        except Exception as error:  # the library raises nothing more precise
            raise ModelDataError(f"{path} is no tokenizer ({first_line(error)[:300]}); prepare the model again") from None
        inner.no_truncation()
        inner.no_padding()
        config = tokenizer_config(folder)
        inner.encode_special_tokens = config.get("split_special_tokens") is True
        special = special_tokens(config)
        try:
            for token in _tokens_to_add(inner, config, special):
                inner.add_tokens([token])
        except ValueError as error:  # half a character, which JSON may spell, or an id of thousands of digits
            where = folder / "tokenizer_config.json"
            raise ModelDataError(f"{where} has a token that is none ({first_line(error)[:300]}); prepare the model again") from None
        return cls(inner, special)

    @property
    def vocabulary_size(self) -> int:
        """Added tokens included; the model's logits may be wider, for alignment."""
        return int(self._inner.get_vocab_size(with_added_tokens=True))

    def encode(self, text: str, add_special_tokens: bool) -> list[int]:
        """Ids of a text; with the special tokens that this model's texts begin and end with, or without."""
        return list(self._inner.encode(text, add_special_tokens=add_special_tokens).ids)

    def decode(self, ids: Sequence[int], skip_special_tokens: bool) -> str:
        """Text of ids. Ids that no token has give nothing."""
        return str(self._inner.decode(ids, skip_special_tokens=skip_special_tokens))

    def id(self, token: str) -> int | None:
        """The id of this token as it stands in the vocabulary; None where it is none."""
        found: int | None = self._inner.token_to_id(token)
        return found

    def token(self, number: int) -> str | None:
        """The token as the vocabulary writes it; None where there is none with that id."""
        token: str | None = self._inner.id_to_token(number)
        return token

    def decoder(self) -> dict[str, Any]:
        """tokenizer.json's ``decoder``: how tokens become text. Empty where there is none."""
        decoder = self._inner.decoder
        page: dict[str, Any] = {} if decoder is None else json.loads(decoder.__getstate__())
        return page


def tokenizer_config(folder: Path) -> dict[str, Any]:
    """tokenizer_config.json; empty where the model has none."""
    return read_json_if_there(folder / "tokenizer_config.json", _MAX_CONFIG_BYTES)


def special_tokens(config: Mapping[str, Any]) -> dict[str, str]:
    """Special tokens that have a name: transformers' seven, and whatever else is called ``…_token``."""
    extra = config.get("extra_special_tokens")
    pairs = {**config, **(extra if isinstance(extra, dict) else {})}
    others = [key for key in pairs if key not in _NAMED and (key.endswith("_token") or key not in config)]
    found = {key: _content(pairs.get(key)) for key in (*_NAMED, *others)}
    return {key: content for key, content in found.items() if content}


def _content(value: Any) -> str | None:
    """A token is written as its text, or as an object with its text and how it is to be found."""
    content = value.get("content") if isinstance(value, dict) else value
    return content if isinstance(content, str) else None


def _tokens_to_add(inner: tokenizers.Tokenizer, config: Mapping[str, Any], special: Mapping[str, str]) -> Iterator[AddedToken]:
    """The config's own list of added tokens first, in the order of their ids, then special tokens that are still missing.

    A token that is there already is added too: it keeps its id and takes the list's flags. One with a name is special.
    """
    listed = config.get("added_tokens_decoder")
    written = (
        {_number(key): _added_token(entry) for key, entry in listed.items()}
        if isinstance(listed, dict)
        else inner.get_added_tokens_decoder()
    )
    known = {token.content for token in inner.get_added_tokens_decoder().values()}
    for _, token in sorted(written.items()):
        known.add(token.content)
        token.special = token.special or token.content in special.values()
        yield token
    extra = config.get("extra_special_tokens") or config.get("additional_special_tokens")
    extra_contents = [_content(entry) for entry in extra] if isinstance(extra, list) else []
    for content in (*special.values(), *extra_contents):
        if content and content not in known:
            known.add(content)
            yield AddedToken(content, special=True)


def _number(key: str) -> int:
    if not key.isdecimal():
        raise ModelDataError(f"tokenizer_config.json: added_tokens_decoder has {key[:60]!r}, which is no id")
    return int(key)


def _added_token(entry: Any) -> AddedToken:
    if not isinstance(entry, dict) or not _content(entry):
        raise ModelDataError(f"tokenizer_config.json: added_tokens_decoder has {str(entry)[:60]!r}, which is no token")
    flags = ("single_word", "lstrip", "rstrip", "special")
    given = {flag: entry[flag] for flag in (*flags, "normalized") if isinstance(entry.get(flag), bool)}
    return AddedToken(entry["content"], **given)
