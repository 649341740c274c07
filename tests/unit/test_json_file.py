"""Files of a model folder may be anything: each is read or refused in a sentence, by everybody who reads one."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from potatod import json_file, model_folder, verdict
from potatod.config import build
from potatod.errors import ModelDataError, NoSuchModel
from potatod.front import generation, template, tokenizer
from potatod.json_file import read_json, read_json_if_there, read_text


def _fifo(path: Path) -> None:
    os.mkfifo(path)


def _device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def _folder(path: Path) -> None:
    path.mkdir()


def _locked(path: Path) -> None:
    path.symlink_to(path.name)  # a link to itself: even root cannot open it


def _huge(path: Path) -> None:
    with path.open("wb") as file:
        file.write(b'{"a": "')
        file.truncate(300 << 20)


def _bytes(data: bytes) -> Callable[[Path], Any]:
    return lambda path: path.write_bytes(data)


HARM: dict[str, Callable[[Path], Any]] = {
    "a FIFO": _fifo,
    "a device without end": _device,
    "a folder": _folder,
    "a link to itself": _locked,
    "no UTF-8": _bytes(b'{"a": "\xff\xfe"}'),
    "half a file": _bytes(b'{"a": '),
    "nothing": _bytes(b""),
    "a list": _bytes(b"[]"),
    "deep nesting": _bytes(b'{"a":' * 100_000),
    "deep nesting of lists": _bytes(b"[" * 100_000),
    "a number of a million digits": _bytes(b'{"a": 1' + b"0" * 1_000_000 + b"}"),
    "a file of a hundred times its size": _huge,
}
READERS: dict[str, tuple[str, Callable[[Path], Any]]] = {
    "generation_config.json, by the front": ("generation_config.json", generation.generation_config),
    "config.json, by the front": ("config.json", generation.end_ids),
    "tokenizer_config.json, by the front": ("tokenizer_config.json", tokenizer.tokenizer_config),
    "tokenizer.json, by the front": ("tokenizer.json", tokenizer.Tokenizer.load),
    "manifest.json": ("manifest.json", model_folder.load),
}


@pytest.mark.timeout(60)
@pytest.mark.parametrize("harm", HARM)
@pytest.mark.parametrize("reader", READERS)
def test_whatever_lies_there_is_refused_in_a_sentence_that_names_it(reader: str, harm: str, tmp_path: Path) -> None:
    name, read = READERS[reader]
    HARM[harm](tmp_path / name)
    with pytest.raises(ModelDataError) as refusal:
        read(tmp_path)
    assert str(tmp_path / name) in str(refusal.value)
    assert "\n" not in str(refusal.value)
    assert len(str(refusal.value)) < 1000


@pytest.mark.timeout(60)
@pytest.mark.parametrize("harm", ["a FIFO", "a device without end", "a folder", "a link to itself", "no UTF-8", "a file of a hundred times its size"])
def test_the_supervisor_refuses_a_config_that_is_none_before_it_asks_anybody(harm: str, tmp_path: Path) -> None:
    HARM[harm](tmp_path / "config.json")
    manifest: Any = SimpleNamespace(fingerprint="f", shards=())
    with pytest.raises(ModelDataError, match=r"config\.json"):
        verdict.probe(build({}), tmp_path, manifest, tmp_path, 0, lambda: False)


@pytest.mark.parametrize("harm", ["a FIFO", "a device without end", "no UTF-8"])
def test_a_template_that_is_no_file_is_refused(harm: str, tmp_path: Path) -> None:
    HARM[harm](tmp_path / "chat_template.jinja")
    with pytest.raises(ModelDataError, match=r"chat_template\.jinja"):
        template.ChatTemplate.load(tmp_path)


def test_what_is_not_there_is_another_error_or_nothing(tmp_path: Path) -> None:
    with pytest.raises(NoSuchModel, match=r"no config\.json in"):
        read_json(tmp_path / "config.json")
    with pytest.raises(NoSuchModel):
        read_json(tmp_path / "file" / "config.json")
    assert read_json_if_there(tmp_path / "config.json") == {}


def test_links_are_followed_and_the_bound_is_exact(tmp_path: Path) -> None:
    (tmp_path / "blob").write_text('{"a": "é"}')
    (tmp_path / "link").symlink_to("blob")
    assert read_json(tmp_path / "link", 11) == {"a": "é"}
    with pytest.raises(ModelDataError, match="is larger than 10B"):
        read_text(tmp_path / "link", 10)


def test_a_file_that_grows_while_it_is_read_is_not_read_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "config.json").write_text("x" * 100)
    real = os.stat_result
    monkeypatch.setattr(json_file.os, "fstat", lambda fd: real((0o100644, *[0] * 9)))  # says: a regular file of no bytes
    with pytest.raises(ModelDataError, match="is larger than"):
        read_text(tmp_path / "config.json", 50)
