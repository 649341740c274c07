"""How many bytes a matrix takes in each scheme, and which widths it can have. Pure: what weights are is potatod/schemes' to know.

Every scheme but `raw` stores a matrix row by row. A row's record is equally long for all rows of a matrix, so that bands of rows are cut and joined
like those of a raw one; in `packed` alone rows that need more have it behind the band's last record.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

#: A record is padded to so many bytes: bands begin at multiples of 4096 after few rows, then.
RECORD_ALIGNMENT: Final = 16


#: Behind everything that a band of its own holds: who reads its words by eight reads beyond the last of them.
SPARE_BYTES: Final = 16


@dataclass(frozen=True, slots=True)
class Form:
    #: a row has a multiple of so many columns, and at least
    columns: int
    least: int
    #: bytes of a row's record without padding
    record: Callable[[int], int]
    #: whether bands have more than their records: then they are stored by themselves, and nothing needs padding
    more: bool = False


#: By the scheme's name. A group of 32 columns that shares a scale is 16 bytes of halves, or 32 of bytes.
FORMS: Final = {
    "int8": Form(8, 8, lambda k: 4 + k),
    "int4": Form(32, 32, lambda k: 8 + k // 16 + k // 2),
    "packed": Form(16, 128, lambda k: 8 + 11 * k // 8, more=True),
    "q4_0": Form(32, 32, lambda k: k // 16 + k // 2),
    "q4_1": Form(32, 32, lambda k: k // 8 + k // 2),
    "q5_0": Form(32, 32, lambda k: k // 16 + k // 2 + k // 8),
    "q5_1": Form(32, 32, lambda k: k // 8 + k // 2 + k // 8),
    "q8_0": Form(32, 32, lambda k: k // 16 + k),
    "q4_k": Form(256, 256, lambda k: k // 64 + k // 16 + k // 2),
    "q5_k": Form(256, 256, lambda k: k // 64 + k // 16 + k // 2 + k // 8),
    "q6_k": Form(256, 256, lambda k: k // 128 + k // 16 + k // 2 + k // 4),
}


def refusal(scheme: str, columns: int) -> str | None:
    """Why rows of so many columns cannot be stored so; None where they can."""
    form = FORMS[scheme]
    if columns % form.columns or columns < form.least:
        return f"{scheme} needs rows of a multiple of {form.columns} columns, at least {form.least}, and these have {columns}"
    return None


def record_bytes(scheme: str, columns: int) -> int:
    """Of a row."""
    form = FORMS[scheme]
    alignment = 2 if form.more else RECORD_ALIGNMENT
    return -(-form.record(columns) // alignment) * alignment


def fits(scheme: str, rows: int, columns: int, nbytes: int) -> bool:
    """Whether so many bytes are those of such a matrix or band."""
    records = rows * record_bytes(scheme, columns)
    return nbytes >= records + SPARE_BYTES if FORMS[scheme].more else nbytes == records


def exact(scheme: str) -> bool:
    """Whether it is another way of writing a dtype's own numbers."""
    return scheme == "packed"


def has_more(scheme: str) -> bool:
    """Whether a band has bytes behind its records, so that bands cannot be joined."""
    return scheme in FORMS and FORMS[scheme].more
