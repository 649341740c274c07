"""``python -m potatod.front.vocabulary MODEL DRAFT``: whether two models speak of the same tokens, as one line of JSON. Then it ends.

A process of its own: two vocabularies take a hundred megabytes, and whoever asks does not want to carry them.
"""

from __future__ import annotations

import sys
from pathlib import Path

from potatod import errand

from .tokenizer import Tokenizer


def main(argv: list[str]) -> int:
    return errand.answer(lambda: {"differs": differs(Path(argv[0]), Path(argv[1]))})


def differs(folder: Path, draft: Path) -> str | None:
    """The first token that is another one, in a sentence; None where none is."""
    ours, theirs = Tokenizer.load(folder), Tokenizer.load(draft)
    for number in range(max(ours.vocabulary_size, theirs.vocabulary_size)):
        one, other = ours.token(number), theirs.token(number)
        if one != other:
            return f"token {number} is {_quoted(one)} in one and {_quoted(other)} in the other"
    return None


def _quoted(token: str | None) -> str:
    return "none" if token is None else f'"{token[:40]}"'


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
