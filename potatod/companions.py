"""The small files beside the weights of a model folder, as its manifest has them: config, tokenizer, chat template.

A damaged one mostly still parses, and gives another prompt or another token. So the manifest has a checksum of each, and who edits one says so
(`potatod verify --accept`). Manifests that were written before there were such checksums have none, and nothing is compared.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import xxhash

from .errors import ModelDataError, NoSuchModel
from .json_file import regular

CONFIG: Final = "config.json"
#: All that there are: stages read nothing else of a folder beside manifest and shards.
NAMES: Final = ("chat_template.jinja", CONFIG, "generation_config.json", "tokenizer.json", "tokenizer_config.json")
#: The largest tokenizer.json that the front reads.
MAX_BYTES: Final = 256 << 20
_CHECKSUM: Final = re.compile(r"[0-9a-f]{16}")
_READ_BYTES: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class Companion:
    #: bytes
    length: int
    #: XXH3-64 of them, 16 hex digits
    checksum: str


def of_bytes(data: bytes) -> Companion:
    return Companion(len(data), xxhash.xxh3_64_hexdigest(data))


def of_file(path: Path, most_bytes: int = MAX_BYTES) -> Companion:
    """Of a larger one: of its beginning, one byte more than ``most_bytes``. Raises NoSuchModel where nothing is there, ModelDataError where that is no
    regular file or cannot be read."""
    digest, left = xxhash.xxh3_64(), most_bytes + 1
    with regular(path) as file:
        while left and (data := file.read(min(left, _READ_BYTES))):
            digest.update(data)
            left -= len(data)
    return Companion(most_bytes + 1 - left, digest.hexdigest())


def found(folder: Path) -> dict[str, Companion]:
    """Those that are there now. Raises ModelDataError where one cannot be read, or is larger than MAX_BYTES."""
    there = {}
    for name in NAMES:
        try:
            there[name] = of_file(folder / name)
        except NoSuchModel:
            continue
    check(there)
    return there


def check(recorded: Mapping[str, Companion]) -> None:
    """What a manifest says of them can be; raises ModelDataError naming what cannot."""
    for name, companion in recorded.items():
        if name not in NAMES:
            raise ModelDataError(f"{name[:80]!r} is not a name for a file beside the weights")
        if not 0 <= companion.length <= MAX_BYTES:
            raise ModelDataError(f"{name}: {companion.length} bytes are not the size of such a file")
        if not _CHECKSUM.fullmatch(companion.checksum):
            raise ModelDataError(f"{name}: {companion.checksum[:40]!r} is not a checksum")


def differences(folder: Path, recorded: Mapping[str, Companion]) -> dict[str, str]:
    """What is wrong with each that is not as recorded, to be put behind its name; empty where all are."""
    wrong = {}
    for name in NAMES:
        wanted = recorded.get(name)
        try:
            now = of_file(folder / name, MAX_BYTES if wanted is None else wanted.length)
        except NoSuchModel:
            if wanted is not None:
                wrong[name] = "is missing"
        except ModelDataError as error:
            wrong[name] = f"is not the file that it should be ({error})"
        else:
            if wanted is None:
                wrong[name] = "is not in the manifest: it was put there later"
            elif now != wanted:
                wrong[name] = "is not as the manifest has it: it was damaged or changed"
    return wrong
