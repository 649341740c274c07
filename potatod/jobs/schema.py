"""The tables of the job database, and the way from each older form of them to the present one.

    jobs     a row a job, small: it is written anew with every sweep that the job takes part in
    asks     what was asked, written once
    tokens   a row for each sweep that gave the job tokens; one row in all once it is over; logprobs (logprobs.py) where the job asked for them

A form is a number, SQLite's ``user_version``. A new one is a script at the end of ``MIGRATIONS``; those before it never change.
"""

from __future__ import annotations

from typing import Final

#: SQLite's ``application_id``: what this file is, for ``file`` and for us.
APPLICATION_ID: Final = 0x706F7461

_FIRST: Final = """
CREATE TABLE jobs (
    number INTEGER PRIMARY KEY,
    id TEXT NOT NULL UNIQUE,
    owner TEXT NOT NULL,
    key TEXT NOT NULL,
    model TEXT NOT NULL,
    model_name TEXT NOT NULL,
    title TEXT NOT NULL,
    rank INTEGER NOT NULL,
    seed INTEGER NOT NULL,
    choice INTEGER NOT NULL,
    prompt_tokens INTEGER NOT NULL,
    limit_tokens INTEGER NOT NULL,
    accepted_at REAL NOT NULL,
    state TEXT NOT NULL,
    started_at REAL,
    first_token_at REAL,
    ended_at REAL,
    sampled_tokens INTEGER NOT NULL,
    shown_tokens INTEGER NOT NULL,
    sweeps INTEGER NOT NULL,
    read_bytes INTEGER NOT NULL,
    drafted_tokens INTEGER NOT NULL,
    accepted_tokens INTEGER NOT NULL,
    guesses TEXT NOT NULL,
    reason TEXT NOT NULL,
    code TEXT NOT NULL,
    why TEXT NOT NULL,
    deaths INTEGER NOT NULL,
    died_at INTEGER NOT NULL
) STRICT;
CREATE UNIQUE INDEX by_key ON jobs (owner, key) WHERE key <> '';
CREATE TABLE asks (
    number INTEGER PRIMARY KEY REFERENCES jobs ON DELETE CASCADE,
    frame BLOB NOT NULL,
    prompt_ids BLOB NOT NULL,
    sampling TEXT NOT NULL,
    chat INTEGER NOT NULL,
    tail TEXT NOT NULL
) STRICT;
CREATE TABLE tokens (
    number INTEGER NOT NULL REFERENCES jobs ON DELETE CASCADE,
    first INTEGER NOT NULL,
    ids BLOB NOT NULL,
    text TEXT NOT NULL,
    reasoning TEXT NOT NULL,
    PRIMARY KEY (number, first)
) STRICT, WITHOUT ROWID;
"""

_SECOND: Final = """
ALTER TABLE tokens ADD COLUMN logprobs BLOB
"""

MIGRATIONS: Final = (_FIRST, _SECOND)
