"""Small files of a folder that a stranger made: read whole, or refused in a sentence.

Law: nothing but a regular file is read (a FIFO would keep us for ever, a device has no end), never more than its kind can need, and
whatever is wrong with it is a :class:`ModelDataError`, or :class:`NoSuchModel` where nothing is there.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Final

from .errors import ModelDataError, NoSuchModel
from .sizes import human_size

#: config.json and generation_config.json: real ones have some kilobytes.
MAX_CONFIG_BYTES: Final = 4 << 20


def read_text(path: Path, most_bytes: int) -> str:
    """UTF-8."""
    with regular(path) as file:
        data = file.read(most_bytes + 1)
    if len(data) > most_bytes:
        raise ModelDataError(f"{path} is larger than {human_size(most_bytes)}: that is not what its name says")
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise ModelDataError(f"cannot read {path}: it is not UTF-8 at byte {error.start}") from None


@contextmanager
def regular(path: Path) -> Iterator[BinaryIO]:
    """The regular file, to be read; an OSError within is a :class:`ModelDataError`. Links are followed: a downloaded checkpoint often consists of
    them."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        raise NoSuchModel(f"there is no {path.name} in {path.parent}") from None
    except OSError as error:
        raise ModelDataError(f"cannot read {path}: {error.strerror}") from None
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise ModelDataError(f"{path} is not a regular file: put the file itself there")
        with open(fd, "rb", closefd=False) as file:
            yield file
    except OSError as error:
        raise ModelDataError(f"cannot read {path}: {error.strerror}") from None
    finally:
        os.close(fd)


def read_json(path: Path, most_bytes: int = MAX_CONFIG_BYTES) -> dict[str, Any]:
    """The JSON object that a file holds."""
    return parse_json(read_text(path, most_bytes), path)


def read_json_if_there(path: Path, most_bytes: int = MAX_CONFIG_BYTES) -> dict[str, Any]:
    """The same; empty where there is no such file."""
    try:
        return read_json(path, most_bytes)
    except NoSuchModel:
        return {}


def parse_json(text: str, where: Path | str) -> dict[str, Any]:
    try:
        page = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ModelDataError(f"cannot read {where}: it is not JSON ({error})") from None
    if not isinstance(page, dict):
        raise ModelDataError(f"{where} must hold a JSON object")
    return page
