"""What is asked, and how its answer is to be sampled: the parts of protocol.Generate that people write. docs/PROTOCOL.md is the same in prose."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

from .bounds import number, shown, whole

MAX_STOPS: Final = 16
MAX_STOP_CHARS: Final = 256
MAX_BIASES: Final = 300
MAX_TOP_LOGPROBS: Final = 20
MAX_SCHEMA_CHARS: Final = 65_536

#: In the order in which their requests are served.
PRIORITIES: Final = ("interactive", "batch")


def _biases(pairs: tuple[tuple[int, float], ...]) -> None:
    if type(pairs) is not tuple or len(pairs) > MAX_BIASES or not all(type(pair) is tuple and len(pair) == 2 for pair in pairs):
        raise ValueError(f"logit_bias must be a tuple of at most {MAX_BIASES} pairs, each a token id and a number")
    for token, bias in pairs:
        if type(token) is not int or type(bias) not in (int, float):
            raise ValueError("logit_bias must be pairs of a token id and a number")
        whole("a token id in logit_bias", token, 0, 1 << 31, "a whole number, 0 or more")
        number("what logit_bias adds", bias, -100, 100, "between -100 and 100")
    if len({token for token, _ in pairs}) < len(pairs):
        raise ValueError("logit_bias must be one number for each token, and names one twice")


@dataclass(frozen=True, slots=True)
class ToolCall:
    """The assistant has called a tool."""

    #: by which the tool's answer says what it answers
    id: str
    name: str
    #: a JSON object, as text
    arguments: str


@dataclass(frozen=True, slots=True)
class ChatMessage:
    role: str
    content: str
    #: the assistant's thoughts of an earlier turn, for templates that take them
    reasoning: str | None = None
    #: what the assistant called
    tool_calls: tuple[ToolCall, ...] = ()
    #: of a message of the role "tool": which call it answers
    tool_call_id: str = ""
    #: of that tool, or of whoever speaks; templates that know no names leave it out
    name: str = ""


@dataclass(frozen=True, slots=True)
class Options:
    """How to sample; ``None`` leaves a value to the daemon ([sampling], then generation_config.json, then greedy)."""

    max_tokens: int | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    #: drawn by the daemon and reported where None
    seed: int | None = None
    #: the answer ends before the first of these; they are not part of it
    stop: tuple[str, ...] = ()
    #: passed to templates of models that think
    thinking: bool | None = None
    #: which of several answers to the same prompt and seed this is; they share the work of reading the prompt
    choice: int = 0
    #: a batch makes place for what is interactive, and goes on when that is done
    priority: Literal["interactive", "batch"] = "interactive"
    #: taken off a token's logit for each time that it stands in the answer so far, and once if it stands there at all
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    #: token ids, and what is added to the logit of each
    logit_bias: tuple[tuple[int, float], ...] = ()
    #: with each token comes its log probability, and that of so many of the likeliest tokens there; None: without
    top_logprobs: int | None = None
    #: the answer is JSON of this JSON Schema, or any JSON object; not its thoughts
    json_schema: str | None = None
    json_object: bool = False

    def __post_init__(self) -> None:
        whole("max_tokens", self.max_tokens, 1, 1 << 31, "a whole number of 1 or more")
        number("temperature", self.temperature, 0, 100, "between 0 and 100")
        whole("top_k", self.top_k, 0, 1 << 31, "a whole number, 0 (off) or more")
        number("top_p", self.top_p, 0, 1, "greater than 0 and at most 1")
        number("min_p", self.min_p, 0, 1, "between 0 and 1")
        number("repetition_penalty", self.repetition_penalty, 1e-3, 1e3, "between 0.001 and 1000")
        whole("seed", self.seed, 0, (1 << 63) - 1, "a whole number between 0 and 2^63 - 1")
        if self.top_p == 0:
            raise ValueError("top_p must be greater than 0 and at most 1, not 0")
        if type(self.stop) is not tuple or len(self.stop) > MAX_STOPS:
            raise ValueError(f"stop must be a tuple of at most {MAX_STOPS} strings")
        for text in self.stop:
            if not (isinstance(text, str) and 0 < len(text) <= MAX_STOP_CHARS):
                raise ValueError(f"a stop string has 1 to {MAX_STOP_CHARS} characters")
        if not (self.thinking is None or isinstance(self.thinking, bool)):
            raise ValueError("thinking must be true or false")
        whole("choice", self.choice, 0, 1 << 31, "a whole number, 0 or more")
        if self.priority not in PRIORITIES:
            raise ValueError(f"priority must be one of {', '.join(PRIORITIES)}, not {shown(self.priority)}")
        number("frequency_penalty", self.frequency_penalty, -2, 2, "between -2 and 2")
        number("presence_penalty", self.presence_penalty, -2, 2, "between -2 and 2")
        _biases(self.logit_bias)
        whole("top_logprobs", self.top_logprobs, 0, MAX_TOP_LOGPROBS, f"a whole number from 0 to {MAX_TOP_LOGPROBS}")
        schema = self.json_schema
        if not (schema is None or (isinstance(schema, str) and 0 < len(schema) <= MAX_SCHEMA_CHARS)):
            raise ValueError(f"json_schema must be a text of 1 to {MAX_SCHEMA_CHARS} characters")
        if not isinstance(self.json_object, bool):
            raise ValueError("json_object must be true or false")
        if self.json_object and schema is not None:
            raise ValueError("json_object must be false where there is a json_schema, which says more")
