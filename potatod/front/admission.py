"""From a Generate to a sequence that can run, or to the sentence that says why not."""

from __future__ import annotations

import secrets
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from potato_client.codec import MAX_FRAME_BYTES
from potato_client.protocol import FROM_CLIENT, Generate
from potato_client.question import PRIORITIES
from potato_client.status import ToolUse
from potatod.jobs.job import Ask
from potatod.sampling.params import Sampling, of_model, resolve
from potatod.sections import Sampling as Defaults

from . import detokenizer, generation, reasoning, tool_use
from .detokenizer import Detokenizer
from .grammar import Constraint, Grammars
from .reasoning import Reasoning
from .refusal import Refusal
from .stops import Stops
from .template import ChatTemplate, json_object
from .text import Text
from .tokenizer import Tokenizer

#: More text than this for each token of the context is refused before it is tokenised: prose, code and even blanks stay
#: far below it.
_MAX_CHARS_PER_TOKEN: Final = 32


#: So much less than a frame may have that the job's description, which has it again, is no longer than one.
_MAX_ASK_BYTES: Final = MAX_FRAME_BYTES - (64 << 10)
#: Of the text that a chat template made: its end says whether a thought has begun.
_TAIL_CHARS: Final = 64


@dataclass(frozen=True, slots=True)
class Admitted:
    ask: Ask
    #: tokens that the answer may have
    limit_tokens: int
    #: which of several answers to one prompt it is
    choice: int = 0
    #: 0 goes before 1
    rank: int = 0


class Admission:
    """Knows the model's tokenizer, template and limits; keeps nothing about any request."""

    def __init__(self, folder: Path, defaults: Defaults, max_context: int, embed_rows: int, vocabulary: int) -> None:
        """``embed_rows``: tokens that the model can read; a tokenizer may know more. ``vocabulary``: tokens that it has logits of."""
        self.max_context = max_context
        self._vocabulary = vocabulary
        self._embed_rows = embed_rows
        self.defaults = defaults
        self._generation_config = generation.generation_config(folder)
        of_model(self._generation_config)  # what is wrong with it is told now, not to the first client
        self._tokenizer = Tokenizer.load(folder)
        self._template = ChatTemplate.load(folder)
        self._tool_template = ChatTemplate.load(folder, "tool_use") or self._template
        detokenizer.check(self._tokenizer)
        self.end_ids = generation.end_ids(folder)
        self._marks = reasoning.declared(self._template.source, self._tokenizer.added_tokens) if self._template else None
        self._grammars = Grammars(self._tokenizer, vocabulary, self.end_ids, self._marks)
        #: what the model's template knows of tools
        self.tool_use = self._look_at_tools()

    def _look_at_tools(self) -> ToolUse:
        def answer(prompt: str, said: str) -> str:
            text = self._text(True, prompt.rstrip()[-_TAIL_CHARS:], ())
            shown = [text.push(id).text for id in self._tokenizer.encode(said, add_special_tokens=False)]
            return "".join(shown) + text.finish().text

        return tool_use.of(self._tool_template, answer)

    def admit(self, ask: Generate) -> Admitted:
        """Raises :class:`Refusal`."""
        sampling = self._sampling(ask)
        prompt_ids, prompt = self._prompt(ask)
        room = self.max_context - len(prompt_ids)
        if not prompt_ids:
            raise Refusal("empty_prompt", "the prompt is empty: there is nothing to go on from")
        if (beyond := max(prompt_ids)) >= self._embed_rows:
            token = self._tokenizer.token(beyond)
            raise Refusal("bad_request", f"the model has no weights for the token {token!r} ({beyond}) of its tokenizer: leave it out of the prompt")
        if room < 1:
            raise Refusal(
                "prompt_too_long",
                f"the prompt has {len(prompt_ids)} tokens and the context {self.max_context}: no room for an answer",
            )
        limit = room if sampling.max_tokens is None else min(room, sampling.max_tokens)
        options = ask.options
        frame = frame_of(ask)
        if len(frame) > _MAX_ASK_BYTES:
            raise Refusal("prompt_too_long", f"the request has {len(frame):,} bytes; at most {_MAX_ASK_BYTES:,} can be kept")
        understood = Ask(frame, tuple(prompt_ids), sampling, prompt is not None, (prompt or "").rstrip()[-_TAIL_CHARS:])
        return Admitted(understood, limit, options.choice, PRIORITIES.index(options.priority))

    def text(self, ask: Ask) -> Text:
        """Of an answer that has not begun. A chat's template may have opened a thought; a raw prompt's answer is not split."""
        schema = ask.sampling.json_schema
        opened = ask.chat and self._marks is not None and ask.tail.endswith(self._marks.opening)
        constraint = None if schema is None else self._grammars.constraint(schema, ask.chat, opened)
        return self._text(ask.chat, ask.tail, ask.sampling.stop, constraint)

    def _text(self, chat: bool, tail: str, stop: tuple[str, ...], constraint: Constraint | None = None) -> Text:
        marks = self._marks if chat else None
        ids = (self._tokenizer.id(mark) for mark in (marks.opening, marks.closing)) if marks else ()
        keep = frozenset(id for id in ids if id is not None)
        return Text(Detokenizer(self._tokenizer, keep=keep), Stops(stop), Reasoning(marks, tail), constraint)

    def _sampling(self, ask: Generate) -> Sampling:
        beyond = [token for token, _ in ask.options.logit_bias if token >= self._vocabulary]
        if beyond:
            why = f"logit_bias names the token {beyond[0]}, and the model's vocabulary has {self._vocabulary}: ids are 0 to {self._vocabulary - 1}"
            raise Refusal("bad_request", why)
        sampling = resolve(ask.options, self.defaults, self._generation_config, drawn_seed=secrets.randbits(63))
        if sampling.json_schema is not None:
            self._grammars.check(sampling.json_schema)
        return sampling

    def _prompt(self, ask: Generate) -> tuple[list[int], str | None]:
        """Ids, and the text its template made of a chat. A chat's special tokens are its template's; a raw prompt gets the tokenizer's,
        as in transformers."""
        if ask.prompt is not None:
            self._check_size(ask.prompt)
            return self._tokenizer.encode(ask.prompt, add_special_tokens=True), None
        if self._template is None:
            raise Refusal("no_template", "this model has no chat template: send the prompt as it is (--raw)")
        for message in ask.messages:
            for text in (message.role, message.content, message.reasoning or "", *(call.arguments for call in message.tool_calls)):
                self._check_size(text)
        text = self._template.render(ask.messages, thinking=ask.options.thinking) if not ask.tools else self._with_tools(ask)
        self._check_size(text)
        return self._tokenizer.encode(text, add_special_tokens=False), text

    def _with_tools(self, ask: Generate) -> str:
        """Raises :class:`Refusal`."""
        if self._tool_template is None or self.tool_use == "none":
            raise Refusal("bad_request", "this model's chat template knows no tools: ask without them")
        for tool in ask.tools:
            self._check_size(tool)
        tools = [json_object(tool, "a tool") for tool in ask.tools]
        return self._tool_template.render(ask.messages, thinking=ask.options.thinking, tools=tools)

    def _check_size(self, text: str) -> None:
        if len(text) > self.max_context * _MAX_CHARS_PER_TOKEN:
            raise Refusal(
                "prompt_too_long",
                f"the prompt has {len(text)} characters, far more than the context of {self.max_context} tokens holds",
            )


def frame_of(ask: Generate) -> bytes:
    """What was asked, without the name that it had on its way."""
    return FROM_CLIENT.encode(replace(ask, request=0, key="", follow=True))
