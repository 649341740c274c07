"""What the model folder says about ends of text and about sampling."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from potatod.json_file import read_json_if_there


def generation_config(folder: Path) -> dict[str, Any]:
    """``generation_config.json``; empty where the model has none."""
    return read_json_if_there(folder / "generation_config.json")


def end_ids(folder: Path) -> frozenset[int]:
    """Ids that end a text, as config.json (its text part too) and generation_config.json name them; may be empty."""
    config = read_json_if_there(folder / "config.json")
    text = config.get("text_config")
    pages = (config, text if isinstance(text, dict) else {}, generation_config(folder))
    return frozenset(token for page in pages for token in _ids(page.get("eos_token_id")))


def _ids(value: Any) -> list[int]:
    values = value if isinstance(value, list) else [value]
    return [token for token in values if type(token) is int]
