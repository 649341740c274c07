"""A model folder: its manifest, and whether the files are those that the manifest says."""

from __future__ import annotations

import dataclasses
import stat
from pathlib import Path
from typing import Final

from . import companions
from .errors import ModelDataError, NoSuchModel
from .json_file import read_text
from .manifest import Manifest, parse

#: The manifest's file.
NAME: Final = "manifest.json"
#: A model of 60,000 tensors needs some 24 MB.
_MAX_BYTES: Final = 32 << 20


def load(folder: Path) -> Manifest:
    """The folder's manifest, parsed and consistent; :class:`NoSuchModel` where there is none."""
    path = folder / NAME
    try:
        text = read_text(path, _MAX_BYTES)
    except NoSuchModel:
        if not folder.is_dir():
            raise NoSuchModel(f"there is no model folder at {folder}; make one with `potatod prepare SOURCE {folder}`") from None
        raise NoSuchModel(
            f"{folder} is not a finished model folder: it has no {NAME}; run `potatod prepare` again, it goes on where it stopped"
        ) from None
    try:
        return parse(text)
    except ModelDataError as error:
        raise ModelDataError(f"{path}: {error}; prepare the model again") from None


def check_files(folder: Path, manifest: Manifest) -> None:
    """Every file is there, a regular file of the folder's own, and as large as the manifest says."""
    for name, size in manifest.files.items():
        path = folder / name
        try:
            found = path.lstat()
        except OSError as error:
            raise ModelDataError(f"{path} is missing ({error.strerror}); prepare the model again") from None
        if not stat.S_ISREG(found.st_mode):
            raise ModelDataError(f"{path} is not a regular file: a model folder's shards lie in it, not behind links")
        if found.st_size != size:
            raise ModelDataError(f"{path} has {found.st_size} bytes and should have {size}: it was cut or changed; prepare it again")


def check_companions(folder: Path, manifest: Manifest) -> None:
    """Config, tokenizer and chat template are byte for byte those that the manifest says, where it does. Reads them all, which takes milliseconds."""
    wrong = companions.differences(folder, manifest.companions) if manifest.companions is not None else {}
    if wrong:
        what = ", ".join(f"{folder / name} {why}" for name, why in wrong.items())
        raise ModelDataError(f"{what}; {mend(folder, manifest)}{accept(folder)}")


def mend(folder: Path, manifest: Manifest) -> str:
    """What to do about a folder that is damaged."""
    return f"`potatod verify --repair {folder}` gets what is damaged anew" if is_of_hub(manifest) else "prepare the model again"


def accept(folder: Path) -> str:
    """What else there is to do, where it is not the weights."""
    return f", or take it as it is, if that is on purpose, with `potatod verify --accept {folder}`"


def is_of_hub(manifest: Manifest) -> bool:
    """Whether `potatod pull` made it, so that it is known where its parts come from."""
    return manifest.provenance.keys() >= {"source", "revision", "dtype"}


def check_mirror(folder: Path, mirror: Path) -> None:
    """``mirror`` has the weights of ``folder``. They are compared with their checksums when they are read; what lies beside them is read of ``folder``
    alone, and may be another one there."""
    if not _same_weights(folder, mirror):
        raise ModelDataError(f"[model] mirrors: {mirror} is not the model of {folder}; copy the whole folder there, or take it out of the list")
    check_files(mirror, load(mirror))


def _same_weights(folder: Path, mirror: Path) -> bool:
    if not (mirror / NAME).is_file():
        return False
    if (mirror / NAME).read_bytes() == (folder / NAME).read_bytes():
        return True
    try:
        one, other = (dataclasses.replace(load(each), companions=None) for each in (folder, mirror))
    except ModelDataError:
        return False
    return one == other
