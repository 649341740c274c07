"""What OpenAI's clients read: pages of answers, whole or piece by piece. Pure.

An answer is one ``choice``; whoever streams reads a chunk a piece, then one with the reason why it ended, then (where asked) one with the usage.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

from potato_client.protocol import Finished, LikelyToken, Piece, TokenLogprob
from potatod import tool_calls

from .faults import Fault

Page = dict[str, Any]

#: Why an answer ended, in OpenAI's words.
_REASONS: Final = {"stop": "stop", "length": "length"}


@dataclass(frozen=True, slots=True)
class Head:
    """What all pages of one request begin with."""

    #: of the first answer's job
    job: str
    #: seconds since 1970
    created: int
    model: str
    #: changes when the model's bytes do
    fingerprint: str


class Whole(Protocol):
    """An answer that is over."""

    @property
    def text(self) -> str: ...
    @property
    def reasoning(self) -> str: ...
    @property
    def logprobs(self) -> tuple[TokenLogprob, ...]: ...
    @property
    def finished(self) -> Finished | None: ...


def finish_reason(finished: Finished) -> str:
    """Raises :class:`Fault` where the answer was cancelled: what there is of it is no answer."""
    if finished.reason == "cancelled":
        raise Fault(410, "the job of this answer was cancelled by somebody", code="cancelled")
    return _REASONS[finished.reason]


def usage(finished: Sequence[Finished], prompts: int) -> Page:
    """A prompt is read once for all its answers. ``finished``: of prompts one after the other."""
    each = len(finished) // prompts
    prompt_tokens = sum(finished[at * each].prompt_tokens for at in range(prompts))
    completion_tokens = sum(one.completion_tokens for one in finished)
    return {"prompt_tokens": prompt_tokens, "completion_tokens": completion_tokens, "total_tokens": prompt_tokens + completion_tokens}


class Format(Protocol):
    """How an endpoint shapes answers."""

    def whole(self, head: Head, answers: Sequence[Whole], prompts: int) -> Page: ...
    def first(self, head: Head, choice: int) -> list[Page]: ...
    def piece(self, head: Head, choice: int, piece: Piece) -> list[Page]: ...
    def last(self, head: Head, choice: int, job: str, reason: str) -> list[Page]: ...
    def usage(self, head: Head, usage: Page) -> Page: ...


class Chat:
    """/v1/chat/completions"""

    def __init__(self, tools: tool_calls.Tools | None = None) -> None:
        """``tools``: those that the model may call."""
        self._tools = tools or {}
        #: by choice, and how many calls it has found
        self._parsers: dict[int, tool_calls.Parser] = {}
        self._calls: dict[int, int] = {}

    def whole(self, head: Head, answers: Sequence[Whole], prompts: int) -> Page:
        choices = [self._choice(number, answer) for number, answer in enumerate(answers)]
        page = _page(head, "chatcmpl", "chat.completion", choices)
        return page | {"usage": usage([_finished(answer) for answer in answers], prompts)}

    def first(self, head: Head, choice: int) -> list[Page]:
        return [self._chunk(head, choice, {"role": "assistant", "content": ""})]

    def piece(self, head: Head, choice: int, piece: Piece) -> list[Page]:
        deltas: list[Page] = [{"reasoning_content": piece.reasoning}] if piece.reasoning else []
        found = tool_calls.Found((piece.text,)) if not self._tools else self._parser(choice).feed(piece.text)
        deltas += self._deltas(choice, piece.job, found)
        if piece.logprobs and not deltas:
            deltas.append({"content": ""})
        pages = [self._chunk(head, choice, delta) for delta in deltas]
        if pages:
            pages[-1]["choices"][0]["logprobs"] = self._logprobs(piece.logprobs)
        return pages

    def last(self, head: Head, choice: int, job: str, reason: str) -> list[Page]:
        deltas = self._deltas(choice, job, self._parser(choice).finish()) if self._tools else []
        reason = "tool_calls" if self._calls.get(choice) and reason == "stop" else reason
        return [*(self._chunk(head, choice, delta) for delta in deltas), self._chunk(head, choice, {}, reason)]

    def _parser(self, choice: int) -> tool_calls.Parser:
        return self._parsers.setdefault(choice, tool_calls.Parser(self._tools))

    def _deltas(self, choice: int, job: str, found: tool_calls.Found) -> list[Page]:
        first = self._calls.get(choice, 0)
        self._calls[choice] = first + len(found.calls)
        calls = [{"index": number} | _call(job, number, call) for number, call in enumerate(found.calls, first)]
        return [*([{"content": found.text}] if found.text else []), *([{"tool_calls": calls}] if calls else [])]

    def usage(self, head: Head, usage: Page) -> Page:
        return _page(head, "chatcmpl", "chat.completion.chunk", []) | {"usage": usage}

    def _choice(self, number: int, answer: Whole) -> Page:
        finished = _finished(answer)
        found = tool_calls.read(answer.text, self._tools) if self._tools else tool_calls.Found((answer.text,))
        text, calls = found.text, found.calls
        message: Page = {"role": "assistant", "content": text or None if calls else text, "refusal": None}
        if calls:
            message["tool_calls"] = [_call(finished.job, at, call) for at, call in enumerate(calls)]
        if answer.reasoning:
            message["reasoning_content"] = answer.reasoning
        reason = finish_reason(finished)
        reason = "tool_calls" if calls and reason == "stop" else reason
        return {"index": number, "message": message, "logprobs": self._logprobs(answer.logprobs), "finish_reason": reason}

    def _logprobs(self, logprobs: Sequence[TokenLogprob]) -> Page | None:
        if not logprobs:
            return None
        content = [_likely(token) | {"top_logprobs": [_likely(other) for other in token.alternatives]} for token in logprobs]
        return {"content": content, "refusal": None}

    def _chunk(self, head: Head, choice: int, delta: Page, reason: str | None = None) -> Page:
        choices = [{"index": choice, "delta": delta, "logprobs": None, "finish_reason": reason}]
        return _page(head, "chatcmpl", "chat.completion.chunk", choices)


class Completion:
    """/v1/completions"""

    def __init__(self, before: Sequence[str]) -> None:
        """``before``: what each choice begins with."""
        self._before = before
        #: characters of each choice that have gone out with logprobs
        self._said = [len(text) for text in before]

    def whole(self, head: Head, answers: Sequence[Whole], prompts: int) -> Page:
        choices = [
            self._choice(
                number, self._before[number] + answer.reasoning + answer.text, finish_reason(_finished(answer)), self._logprobs(number, answer.logprobs)
            )
            for number, answer in enumerate(answers)
        ]
        return _page(head, "cmpl", "text_completion", choices) | {"usage": usage([_finished(answer) for answer in answers], prompts)}

    def first(self, head: Head, choice: int) -> list[Page]:
        return [self._chunk(head, choice, self._before[choice])] if self._before[choice] else []

    def piece(self, head: Head, choice: int, piece: Piece) -> list[Page]:
        text, logprobs = piece.reasoning + piece.text, self._logprobs(choice, piece.logprobs)
        if not text and logprobs is None:
            return []
        return [_page(head, "cmpl", "text_completion", [self._choice(choice, text, None, logprobs)])]

    def last(self, head: Head, choice: int, job: str, reason: str) -> list[Page]:
        return [self._chunk(head, choice, "", reason)]

    def usage(self, head: Head, usage: Page) -> Page:
        return _page(head, "cmpl", "text_completion", []) | {"usage": usage}

    def _choice(self, number: int, text: str, reason: str | None, logprobs: Page | None = None) -> Page:
        return {"index": number, "text": text, "logprobs": logprobs, "finish_reason": reason}

    def _logprobs(self, choice: int, logprobs: Sequence[TokenLogprob]) -> Page | None:
        """In the old form: lists beside one another."""
        if not logprobs:
            return None
        tokens = [_text(token) for token in logprobs]
        offsets = []
        for text in tokens:
            offsets.append(self._said[choice])
            self._said[choice] += len(text)
        return {
            "tokens": tokens,
            "token_logprobs": [token.logprob for token in logprobs],
            "top_logprobs": [{_text(other): other.logprob for other in token.alternatives} for token in logprobs],
            "text_offset": offsets,
        }

    def _chunk(self, head: Head, choice: int, text: str, reason: str | None = None) -> Page:
        return _page(head, "cmpl", "text_completion", [self._choice(choice, text, reason)])


def _page(head: Head, prefix: str, kind: str, choices: list[Page]) -> Page:
    return {
        "id": f"{prefix}-{head.job}",
        "object": kind,
        "created": head.created,
        "model": head.model,
        "system_fingerprint": head.fingerprint,
        "choices": choices,
    }


def _call(job: str, number: int, call: tool_calls.Call) -> Page:
    return {"id": tool_calls.call_id(job, number), "type": "function", "function": {"name": call.name, "arguments": call.arguments}}


def _likely(token: TokenLogprob | LikelyToken) -> Page:
    return {"token": _text(token), "logprob": token.logprob, "bytes": list(token.text_bytes)}


def _text(token: TokenLogprob | LikelyToken) -> str:
    """Part of a character is shown as one that is no character; ``bytes`` has what it is."""
    return token.text_bytes.decode("utf-8", "replace")


def _finished(answer: Whole) -> Finished:
    assert answer.finished is not None, "whoever shapes it has waited for its end"
    return answer.finished
