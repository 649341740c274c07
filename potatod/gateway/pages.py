"""What OpenAI's clients read: pages of answers, whole or piece by piece. Pure.

An answer is one ``choice``; whoever streams reads a chunk a piece, then one with the reason why it ended, then (where asked) one with the usage.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

from potato_client.protocol import Finished, Piece

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
    def last(self, head: Head, choice: int, reason: str) -> Page: ...
    def usage(self, head: Head, usage: Page) -> Page: ...


class Chat:
    """/v1/chat/completions"""

    def whole(self, head: Head, answers: Sequence[Whole], prompts: int) -> Page:
        choices = [self._choice(number, answer) for number, answer in enumerate(answers)]
        page = _page(head, "chatcmpl", "chat.completion", choices)
        return page | {"usage": usage([_finished(answer) for answer in answers], prompts)}

    def first(self, head: Head, choice: int) -> list[Page]:
        return [self._chunk(head, choice, {"role": "assistant", "content": ""})]

    def piece(self, head: Head, choice: int, piece: Piece) -> list[Page]:
        pages = []
        if piece.reasoning:
            pages.append(self._chunk(head, choice, {"reasoning_content": piece.reasoning}))
        if piece.text:
            pages.append(self._chunk(head, choice, {"content": piece.text}))
        return pages

    def last(self, head: Head, choice: int, reason: str) -> Page:
        return self._chunk(head, choice, {}, reason)

    def usage(self, head: Head, usage: Page) -> Page:
        return _page(head, "chatcmpl", "chat.completion.chunk", []) | {"usage": usage}

    def _choice(self, number: int, answer: Whole) -> Page:
        message: Page = {"role": "assistant", "content": answer.text, "refusal": None}
        if answer.reasoning:
            message["reasoning_content"] = answer.reasoning
        return {"index": number, "message": message, "logprobs": None, "finish_reason": finish_reason(_finished(answer))}

    def _chunk(self, head: Head, choice: int, delta: Page, reason: str | None = None) -> Page:
        choices = [{"index": choice, "delta": delta, "logprobs": None, "finish_reason": reason}]
        return _page(head, "chatcmpl", "chat.completion.chunk", choices)


class Completion:
    """/v1/completions"""

    def __init__(self, before: Sequence[str]) -> None:
        """``before``: what each choice begins with."""
        self._before = before

    def whole(self, head: Head, answers: Sequence[Whole], prompts: int) -> Page:
        choices = [
            self._choice(number, self._before[number] + answer.reasoning + answer.text, finish_reason(_finished(answer)))
            for number, answer in enumerate(answers)
        ]
        return _page(head, "cmpl", "text_completion", choices) | {"usage": usage([_finished(answer) for answer in answers], prompts)}

    def first(self, head: Head, choice: int) -> list[Page]:
        return [self._chunk(head, choice, self._before[choice])] if self._before[choice] else []

    def piece(self, head: Head, choice: int, piece: Piece) -> list[Page]:
        text = piece.reasoning + piece.text
        return [self._chunk(head, choice, text)] if text else []

    def last(self, head: Head, choice: int, reason: str) -> Page:
        return self._chunk(head, choice, "", reason)

    def usage(self, head: Head, usage: Page) -> Page:
        return _page(head, "cmpl", "text_completion", []) | {"usage": usage}

    def _choice(self, number: int, text: str, reason: str | None) -> Page:
        return {"index": number, "text": text, "logprobs": None, "finish_reason": reason}

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


def _finished(answer: Whole) -> Finished:
    assert answer.finished is not None, "whoever shapes it has waited for its end"
    return answer.finished
