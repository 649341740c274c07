"""JSON schemas as grammars of llguidance; and ``python -m potatod.front.schema FILE``: why one cannot be kept to, as one line of JSON. Then it ends.

NOTE [ hostile schemas ]
Compiling cannot be interrupted, and llguidance's limits do not count everything: twenty bytes that ask for a ``multipleOf`` of a million take twenty
seconds and 350 MB, patterns that must hold together take for ever. So a schema is compiled in a process of its own first, with the bytes as its
vocabulary, which changes little about what it costs; one that takes more than _CPU_S or _MEMORY_BYTES there never comes to the front.
"""

from __future__ import annotations

import functools
import json
import random
import resource
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Final

from potatod import errand
from potatod.errors import InternalError, first_line

from .reasoning import Marks

if TYPE_CHECKING:
    from llguidance import LLParserLimits

#: What the process may take, and how long it is waited for where the machine is busy.
_CPU_S: Final = 2
_MEMORY_BYTES: Final = 512 << 20
_LIMIT_S: Final = 10.0
#: Tokens that are tried, since some of a grammar is only built when it is used.
_TRIED_TOKENS: Final = 64
#: What a row of the parser may hold. One of a schema of 64 KiB with nothing but optional properties holds some 20,000.
_ROW_ITEMS: Final = 50_000

#: Between two words of JSON, and around a thought. Without a bound some models go on with blanks until the answer is full.
_BLANKS: Final = r"[\x20\x0A\x0D\x09]{1,64}"
_THOUGHTS: Final = r"""
start: {start}
WS: /{blanks}/
thought[lazy]: /{thought}/
json: %json {schema}
"""


def why_not(schema: str) -> str:
    """Why it cannot be kept to; empty where it can. Takes a fifth of a second, most of it for the process."""
    try:
        page = json.loads(schema)
    except (ValueError, RecursionError) as error:
        return f"it is not JSON ({first_line(error)})"
    if not isinstance(page, dict):
        return "it is not a JSON object"
    with tempfile.NamedTemporaryFile("w", encoding="utf-8", prefix="potato-schema-") as file:
        file.write(schema)
        file.flush()
        try:
            return str(errand.run("front.schema", file.name, limit_s=_LIMIT_S)["why"])
        except InternalError as error:
            return f"it takes more than {_CPU_S} seconds or {_MEMORY_BYTES >> 20} MiB to compile ({first_line(error)}); make it simpler"


def grammar_of(schema: str, marks: Marks | None, opened: bool) -> str:
    """``marks``: thoughts may come before the JSON; ``opened``: they do. Raises ValueError for what is not JSON."""
    from llguidance import LLMatcher

    grammar = LLMatcher.grammar_from_json_schema(schema, {"whitespace_pattern": _BLANKS})
    if marks is None:
        return grammar
    schema = json.dumps(json.loads(grammar)["grammars"][0]["json_schema"])
    opening, closing = _literally(marks.opening), _literally(marks.closing)
    if opened:
        return _THOUGHTS.format(start="thought WS? json", thought=f"(?s:.*){closing}", schema=schema, blanks=_BLANKS)
    return _THOUGHTS.format(start="WS? (thought WS? json | json)", thought=f"{opening}(?s:.*){closing}", schema=schema, blanks=_BLANKS)


@functools.cache
def limits() -> LLParserLimits:
    """Of every matcher."""
    from llguidance import LLParserLimits

    return LLParserLimits(max_items_in_row=_ROW_ITEMS, precompute_large_lexemes=False, verbose_errors=False)


def said(error: str) -> str:
    """What llguidance says, on one line."""
    return " ".join(error.removesuffix("<non-verbose/>").split())


def _literally(text: str) -> str:
    """In a regular expression between slashes."""
    return "".join(char if char.isalnum() else rf"\x{ord(char):02x}" for char in text)


# the process's own side


class _Bytes:
    """A vocabulary of all bytes and an end of text, as LLTokenizer asks for one."""

    is_tokenizer_wrapper: Final = True
    bos_token_id: Final = None
    eos_token_id: Final = 256
    special_token_ids: Final = (256,)
    tokens: Final = (*(bytes([byte]) for byte in range(256)), b"<end>")

    def __call__(self, text: str) -> list[int]:
        return list(text.encode())


def main(argv: list[str]) -> int:
    resource.setrlimit(resource.RLIMIT_CPU, (_CPU_S, _CPU_S + 1))  # SIGXCPU comes first, and says why
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_BYTES, _MEMORY_BYTES))
    Path("/proc/self/oom_score_adj").write_text("1000")  # where memory runs out all the same, it is this that ends
    return errand.answer(lambda: {"why": _found(Path(argv[0]).read_text(encoding="utf-8"))})


def _found(schema: str) -> str:
    from llguidance import LLMatcher, LLTokenizer

    vocabulary = _Bytes()
    known = LLTokenizer(vocabulary, n_vocab=len(vocabulary.tokens), eos_token=vocabulary.eos_token_id, slices=[])  # type: ignore[arg-type]  # by its attributes
    try:
        matcher = LLMatcher(known, grammar_of(schema, None, False), log_level=0, limits=limits())
    except ValueError as error:
        return first_line(error)
    chance = random.Random(0)
    for _ in range(_TRIED_TOKENS):
        if matcher.is_stopped():
            break
        mask = matcher.compute_bitmask()
        may_come = [token for token in range(256) if mask[token >> 3] >> (token & 7) & 1]
        if may_come:
            matcher.consume_token(chance.choice(may_come))
    return said(matcher.get_error())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
