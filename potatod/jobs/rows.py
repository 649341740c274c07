"""A job, its question and its answer as rows of the tables of schema.py, both ways.

A row that none of us wrote raises ValueError, KeyError or TypeError.
"""

from __future__ import annotations

import dataclasses
import json
import sqlite3
import sys
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from potatod.sampling.params import Sampling

from .job import Ask, Job
from .logprobs import split
from .states import State

COLUMNS: Final = tuple(each.name for each in dataclasses.fields(Job))
SELECT: Final = f"SELECT {', '.join(COLUMNS)} FROM jobs"


@dataclass(frozen=True, slots=True)
class Answered:
    """All that has been said for a job: sampled tokens, those at the end that are not shown yet among them, and what is shown of their text."""

    ids: tuple[int, ...] = ()
    text: str = ""
    reasoning: str = ""
    #: one for each id where the job asked for them, packed as in logprobs.py
    logprobs: tuple[bytes, ...] = ()


def job_of(connection: sqlite3.Connection, number: int) -> Job | None:
    """Raises ValueError, KeyError, TypeError where the row is none of ours, like the two below; sqlite3's own errors."""
    row = connection.execute(f"{SELECT} WHERE number = ?", (number,)).fetchone()
    return None if row is None else job_from(row)


def ask_of(connection: sqlite3.Connection, number: int) -> Ask:
    row = connection.execute("SELECT frame, prompt_ids, sampling, chat, tail FROM asks WHERE number = ?", (number,)).fetchone()
    if row is None:
        raise ValueError(f"job number {number} has no question")
    frame, ids, sampling, chat, tail = row
    return Ask(frame, unpacked_ids(ids), _sampling_of(json.loads(sampling)), bool(chat), tail)


def _sampling_of(page: dict[str, Any]) -> Sampling:
    """What JSON made lists of is tuples again; a page of an older release lacks what that did not know."""
    biases = tuple((token, bias) for token, bias in page.get("logit_bias", ()))
    return Sampling(**page | {"stop": tuple(page["stop"]), "logit_bias": biases})


def answer_of(connection: sqlite3.Connection, number: int, *, as_far_as_it_goes: bool = False) -> Answered:
    """Up to a row that does not go on where the one before ends, or, ``as_far_as_it_goes``, that cannot be read."""
    ids: list[int] = []
    text, reasoning = [], []
    logprobs: list[bytes] = []
    try:
        likely = "NULL" if as_far_as_it_goes and _of_the_first_form(connection) else "logprobs"
        rows = connection.execute(f"SELECT first, ids, text, reasoning, {likely} FROM tokens WHERE number = ? ORDER BY first", (number,))
        for first, packed, more, thought, likely in rows:
            if first != len(ids):
                break
            found = unpacked_ids(packed)
            logprobs += split(likely, len(found))
            ids += found
            text.append(more)
            reasoning.append(thought)
    except (sqlite3.DatabaseError, ValueError, TypeError):
        if not as_far_as_it_goes:
            raise
    return Answered(tuple(ids), "".join(text), "".join(reasoning), tuple(logprobs))


def _of_the_first_form(connection: sqlite3.Connection) -> bool:
    """Whoever only reads a damaged database does not make it the present form before."""
    (form,) = connection.execute("PRAGMA user_version").fetchone()
    return bool(form == 1)


def row_of(job: Job) -> tuple[object, ...]:
    values = {name: getattr(job, name) for name in COLUMNS}
    return tuple((values | {"state": job.state.value, "guesses": json.dumps(job.guesses)}).values())


def job_from(row: tuple[Any, ...]) -> Job:
    values = dict(zip(COLUMNS, row, strict=True))
    guesses = {source: (drafted, accepted) for source, (drafted, accepted) in json.loads(values["guesses"]).items()}
    return Job(**values | {"state": State(values["state"]), "guesses": guesses})


def packed_ids(ids: Sequence[int]) -> bytes:
    """Four bytes a token, the lowest first."""
    packed = array("I", ids)
    if sys.byteorder == "big":
        packed.byteswap()
    return packed.tobytes()


def unpacked_ids(packed: bytes) -> tuple[int, ...]:
    ids = array("I")
    ids.frombytes(packed)
    if sys.byteorder == "big":
        ids.byteswap()
    return tuple(ids)
