"""Names of models: where `potatod pull` puts them, and which folder a name stands for.

    $POTATO_HOME/models/NAME, else $XDG_DATA_HOME/potato/models/NAME, else ~/.local/share/potato/models/NAME

NAME is the last part of the hub's id in small letters, with ":DTYPE" where one was asked for: smollm2-135m-instruct:int4. A path that is there is
always meant itself.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

VARIABLE: Final = "POTATO_HOME"
#: What else a dtype may have in it, PATTERN=DTYPE and commas, is no good in a folder's name.
_OTHER: Final = re.compile(r"[^A-Za-z0-9._-]+")


def models(environment: Mapping[str, str]) -> Path:
    """The folder of all of them; it need not be there."""
    if home := environment.get(VARIABLE):
        return Path(home).expanduser() / "models"
    data = environment.get("XDG_DATA_HOME")
    return (Path(data) if data else Path.home() / ".local" / "share") / "potato" / "models"


def name_of(model_id: str, dtype: str) -> str:
    """Of a model at the hub, stored so."""
    name = model_id.rpartition("/")[2].lower()
    return name if dtype == "auto" else f"{name}:{_OTHER.sub('-', dtype).strip('-')}"


def folder_of(text: str, environment: Mapping[str, str], is_there: Callable[[Path], bool] = Path.exists) -> str:
    """The model folder that a path or a name means; the text itself where it means none."""
    if not text or "/" in text or text in (".", "..") or is_there(Path(text)):
        return text
    named = (models(environment) / name for name in (text, text.lower()))
    return next((str(folder) for folder in named if is_there(folder)), text)
