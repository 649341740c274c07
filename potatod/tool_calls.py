"""What a model writes to call a tool, found in its text. Pure.

Each family has its own way, which its chat template teaches it:

    <tool_call>{"name": …, "arguments": {…}}</tool_call>          Qwen, Hermes, SmolLM, Granite 4, …; a list as well; also tool_calls, TOOLCALL
    <tool_call><function=NAME><parameter=KEY>VALUE</parameter>…   Qwen Coder and 3.5, Nemotron 3, Step
    <tool_call>NAME<arg_key>KEY</arg_key><arg_value>VALUE…        GLM
    {"name": …, "parameters": {…}}                                Llama 3, and nothing besides
    [{"name": …, "arguments": {…}}]                               Mistral; Command R with tool_name; behind tokens that are not shown
    NAME{…}                                                       Mistral since 2025, between tokens that are not shown, some with an id of nine
    [NAME(KEY=VALUE, …)]                                          Llama 3.2 and 4, LFM 2.5

The first three may stand anywhere, with text around them. The others are the whole answer, and call tools that there are, or they are text. What looks
like a call and is none stays text, as it was written.
"""

from __future__ import annotations

import ast
import hashlib
import json
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any, Final

_TAGS: Final = ("tool_call", "tool_calls", "TOOLCALL")
_OPEN: Final = re.compile(rf"<({'|'.join(_TAGS)})>")
_FUNCTION: Final = re.compile(r"\s*<function=([^>\s]+)>(.*?)(?:</function>)?\s*", re.DOTALL)
_PARAMETER: Final = re.compile(r"<parameter=([^>\s]+)>\n?(.*?)\n?</parameter>", re.DOTALL)
_ARGUMENTS: Final = re.compile(r"\s*([^\s<{\[]+)((?:\s*<arg_key>.*?</arg_key>\s*<arg_value>.*?</arg_value>)*)\s*", re.DOTALL)
_ARGUMENT: Final = re.compile(r"<arg_key>(.*?)</arg_key>\s*<arg_value>(.*?)</arg_value>", re.DOTALL)
_ID: Final = "[A-Za-z0-9]{9}"
_ID_CHARS: Final = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"


@dataclass(frozen=True, slots=True)
class Call:
    name: str
    #: a JSON object, as text
    arguments: str


@dataclass(frozen=True, slots=True)
class Found:
    """What has become certain: texts, none of them empty, and calls, in their order."""

    items: tuple[str | Call, ...] = ()

    @property
    def text(self) -> str:
        return "".join(item for item in self.items if isinstance(item, str))

    @property
    def calls(self) -> tuple[Call, ...]:
        return tuple(item for item in self.items if isinstance(item, Call))


class Parser:
    """One answer, piece by piece. What may become a call is held back until that is certain."""

    def __init__(self, names: Collection[str]) -> None:
        """``names``: of the tools that there are."""
        self._names = frozenset(names)
        self._held = ""
        #: whether text has been let out: then the answer as a whole is no call
        self._begun = False
        #: whether a call was the last that came: blanks behind it are nobody's
        self._called = False

    def feed(self, text: str) -> Found:
        self._held += text
        if not self._begun and self._may_be_whole(self._held.lstrip()):
            return Found()
        self._begun = True
        return self._tagged(last=False)

    def finish(self) -> Found:
        calls = () if self._begun else tuple(whole_calls(self._held, self._names))
        if calls:
            self._held = ""
            return Found(calls)
        return self._tagged(last=True)

    def _may_be_whole(self, text: str) -> bool:
        return not text or text[0] in "{[" or any(name.startswith(text) or _named_so_far(name, text) for name in self._names)

    def _tagged(self, *, last: bool) -> Found:
        """Calls between tags, and the text before, between and behind them but for the blanks around the tags."""
        items: list[str | Call] = []
        while True:
            if self._called:
                self._held = self._held.lstrip()
            tag = _OPEN.search(self._held)
            if tag is None:
                break
            before = self._held[: tag.start()]
            inner, end, after = self._held[tag.end() :].partition(f"</{tag[1]}>")
            if not end and not last:
                break
            found = list(tagged_calls(inner))
            items += [before.rstrip() if found else before + tag[0] + inner + end, *found]
            self._held, self._called = after, bool(found)
        out = len(self._held) if last else len(_certain(self._held))
        items.append(self._held[:out])
        self._held = self._held[out:]
        self._called = self._called and not out
        return Found(tuple(item for item in items if item != ""))


def read(text: str, names: Collection[str]) -> Found:
    """Of an answer that is whole."""
    parser = Parser(names)
    found = parser.feed(text), parser.finish()
    return Found(tuple(item for each in found for item in each.items))


def tagged_calls(inner: str) -> Iterator[Call]:
    """What stands between two tags; nothing where it is no call."""
    function = _FUNCTION.fullmatch(inner)
    if function is not None:
        values = {key: _value(text) for key, text in _PARAMETER.findall(function[2])}
        yield Call(function[1], _json(values))
        return
    named = _ARGUMENTS.fullmatch(inner)
    if named is not None and named[2]:
        yield Call(named[1], _json({key: _value(text) for key, text in _ARGUMENT.findall(named[2])}))
        return
    yield from _of_json(inner, None)


def whole_calls(text: str, names: Collection[str]) -> Iterator[Call]:
    """Of an answer that is nothing but calls of these tools; nothing where it is something else."""
    text = text.strip()
    found = list(_of_json(text, names)) or list(_named(text, names)) or list(_of_python(text, names))
    yield from found


def call_id(job: str, number: int) -> str:
    """The same whenever the same answer is read. Nine letters and digits: some templates want just that."""
    digest = hashlib.sha256(f"{job}:{number}".encode()).digest()
    return "".join(_ID_CHARS[byte % len(_ID_CHARS)] for byte in digest[:9])


def _of_json(text: str, names: Collection[str] | None) -> Iterator[Call]:
    """``names``: None takes any."""
    pages: list[Any] = []
    decoder = json.JSONDecoder()
    rest = text.strip()
    try:
        while rest:  # several stand one after the other, some with semicolons between
            page, end = decoder.raw_decode(rest)
            pages += page if isinstance(page, list) else [page]
            rest = rest[end:].lstrip(" \n\r\t;,")
    except (ValueError, RecursionError):
        return
    calls = [_call(page) for page in pages]
    if all(call is not None and (names is None or call.name in names) for call in calls):
        yield from (call for call in calls if call is not None)


def _call(page: Any) -> Call | None:
    if not isinstance(page, dict):
        return None
    name = page.get("name", page.get("tool_name"))
    if not isinstance(name, str):
        return None
    arguments = page.get("arguments", page.get("parameters", {}))
    if isinstance(arguments, str):  # some write JSON within JSON
        try:
            arguments = json.loads(arguments)
        except (ValueError, RecursionError):
            return None
    return Call(name, _json(arguments)) if isinstance(arguments, dict) else None


def _named(text: str, names: Collection[str]) -> Iterator[Call]:
    calls = []
    rest = text
    while rest:
        found = next((found for name in names if (found := re.match(rf"({re.escape(name)})(?:{_ID})?(?=\{{)", rest))), None)
        if found is None:
            return
        try:
            arguments, end = json.JSONDecoder().raw_decode(rest, found.end())
        except (ValueError, RecursionError):
            return
        calls.append(Call(found[1], _json(arguments)))
        rest = rest[end:].lstrip()
    yield from calls


def _of_python(text: str, names: Collection[str]) -> Iterator[Call]:
    try:
        tree = ast.parse(text, mode="eval").body
        calls = [_python_call(node, names) for node in tree.elts] if isinstance(tree, ast.List) else []
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return
    yield from calls


def _python_call(node: ast.expr, names: Collection[str]) -> Call:
    """Raises ValueError where it is another expression."""
    if not isinstance(node, ast.Call) or node.args:
        raise ValueError
    name = ast.unparse(node.func)
    if name not in names:
        raise ValueError
    return Call(name, _json({keyword.arg: ast.literal_eval(keyword.value) for keyword in node.keywords if keyword.arg is not None}))


def _named_so_far(name: str, text: str) -> bool:
    """Whether it may become NAME{…}."""
    return text.startswith(name) and re.fullmatch(r"[A-Za-z0-9]{0,9}|[A-Za-z0-9]{9}\{.*|\{.*", text[len(name) :], re.DOTALL) is not None


def _value(text: str) -> Any:
    """A text that is JSON is what it says; any other is itself."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def _json(value: Any) -> str:
    """Raises ValueError where Python has what JSON has not."""
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False)
    except TypeError:
        raise ValueError from None


def _certain(text: str) -> str:
    """Without what may belong to a call that begins: a tag that is not closed, the beginning of one, and the blanks before it."""
    tag = _OPEN.search(text)
    if tag is not None:
        return text[: tag.start()].rstrip()
    begun = text[text.rfind("<") :] if "<" in text else ""
    cut = len(begun) if begun and any(f"<{name}>".startswith(begun) for name in _TAGS) else 0
    return text[: len(text) - cut].rstrip()
