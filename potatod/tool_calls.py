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
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

_TAGS: Final = ("tool_call", "tool_calls", "TOOLCALL")
_OPEN: Final = re.compile(rf"<({'|'.join(_TAGS)})>")
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


#: The tools that there are: by name, the JSON Schemas of their parameters by theirs.
Tools = Mapping[str, Mapping[str, Any]]


class Parser:
    """One answer, piece by piece. What may become a call is held back until that is certain."""

    def __init__(self, tools: Tools) -> None:
        self._tools = tools
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
        calls = () if self._begun else whole_calls(self._held, self._tools)
        if calls:
            self._held = ""
            return Found(calls)
        return self._tagged(last=True)

    def _may_be_whole(self, text: str) -> bool:
        return not text or text[0] in "{[" or any(name.startswith(text) or _named_so_far(name, text) for name in self._tools)

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
            found = tagged_calls(inner, self._tools) if end else ()  # one that was cut is none
            items += [before.rstrip() if found else before + tag[0] + inner + end, *found]
            self._held, self._called = after, bool(found)
        out = len(self._held) if last else len(_certain(self._held))
        items.append(self._held[:out])
        self._held = self._held[out:]
        self._called = self._called and not out
        return Found(tuple(item for item in items if item != ""))


def read(text: str, tools: Tools) -> Found:
    """Of an answer that is whole."""
    parser = Parser(tools)
    found = parser.feed(text), parser.finish()
    return Found(tuple(item for each in found for item in each.items))


def tagged_calls(inner: str, tools: Tools) -> tuple[Call, ...]:
    """What stands between two tags; nothing where it is no call."""
    try:
        text = inner.strip()
        if text.startswith("<function="):
            return (_of_elements(text, tools),)
        if "<arg_key>" in text:
            return (_of_pairs(text, tools),)
        return _of_json(text, None)
    except (ValueError, RecursionError):
        return ()


def whole_calls(text: str, tools: Tools) -> tuple[Call, ...]:
    """Of an answer that is nothing but calls of these tools; nothing where it is something else."""
    text = text.strip()
    for way in (_of_json, _named, _of_python):
        try:
            if calls := way(text, tools):
                return calls
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
    return ()


def call_id(job: str, number: int) -> str:
    """The same whenever the same answer is read. Nine letters and digits: some templates want just that."""
    digest = hashlib.sha256(f"{job}:{number}".encode()).digest()
    return "".join(_ID_CHARS[byte % len(_ID_CHARS)] for byte in digest[:9])


# Each of these raises ValueError, or what json and ast raise, where it is something else.


def _of_json(text: str, tools: Tools | None) -> tuple[Call, ...]:
    """``tools``: None takes any name."""
    pages: list[Any] = []
    decoder = json.JSONDecoder()
    while text:  # several stand one after the other, some with semicolons between
        page, end = decoder.raw_decode(text)
        pages += page if isinstance(page, list) else [page]
        text = text[end:].lstrip(" \n\r\t;,")
    calls = tuple(_call(page) for page in pages)
    if tools is not None and any(call.name not in tools for call in calls):
        raise ValueError
    return calls


def _call(page: Any) -> Call:
    if not isinstance(page, dict):
        raise ValueError
    name, arguments = page.get("name", page.get("tool_name")), page.get("arguments", page.get("parameters", {}))
    if isinstance(arguments, str):  # some write JSON within JSON
        arguments = json.loads(arguments)
    if not isinstance(name, str) or not isinstance(arguments, dict):
        raise ValueError
    return Call(name, _json(arguments))


def _of_elements(text: str, tools: Tools) -> Call:
    """<function=NAME> <parameter=KEY>VALUE</parameter> … </function>"""
    name, rest = _between(text, "<function=", ">")
    values = {}
    while (rest := rest.lstrip()).startswith("<parameter="):
        key, rest = _between(rest, "<parameter=", ">")
        value, rest = _between(rest, "", "</parameter>")
        values[key] = _value(value.removeprefix("\n").removesuffix("\n"), tools.get(name, {}).get(key))
    if rest.removeprefix("</function>").strip():
        raise ValueError
    return Call(name, _json(values))


def _of_pairs(text: str, tools: Tools) -> Call:
    """NAME <arg_key>KEY</arg_key> <arg_value>VALUE</arg_value> …"""
    name, rest = _between(text, "", "<arg_key>")
    name, rest, values = name.strip(), f"<arg_key>{rest}", {}
    while rest := rest.lstrip():
        key, rest = _between(rest, "<arg_key>", "</arg_key>")
        value, rest = _between(rest.lstrip(), "<arg_value>", "</arg_value>")
        values[key] = _value(value, tools.get(name, {}).get(key))
    return Call(name, _json(values))


def _between(text: str, opening: str, closing: str) -> tuple[str, str]:
    """What lies between, at the beginning, and what comes behind."""
    if not text.startswith(opening):
        raise ValueError
    found, mark, rest = text.removeprefix(opening).partition(closing)
    if not mark:
        raise ValueError
    return found, rest


def _named(text: str, tools: Tools) -> tuple[Call, ...]:
    calls = []
    while text:
        found = next((found for name in tools if (found := re.match(rf"({re.escape(name)})(?:{_ID})?(?=\{{)", text))), None)
        if found is None:
            raise ValueError
        arguments, end = json.JSONDecoder().raw_decode(text, found.end())
        calls.append(Call(found[1], _json(arguments)))
        text = text[end:].lstrip()
    return tuple(calls)


def _of_python(text: str, tools: Tools) -> tuple[Call, ...]:
    tree = ast.parse(text, mode="eval").body
    if not isinstance(tree, ast.List):
        raise ValueError
    return tuple(_python_call(node, tools) for node in tree.elts)


def _python_call(node: ast.expr, tools: Tools) -> Call:
    if not isinstance(node, ast.Call) or node.args:
        raise ValueError
    name = ast.unparse(node.func)
    if name not in tools:
        raise ValueError
    return Call(name, _json({keyword.arg: ast.literal_eval(keyword.value) for keyword in node.keywords if keyword.arg is not None}))


def _named_so_far(name: str, text: str) -> bool:
    """Whether it may become NAME{…}."""
    return text.startswith(name) and re.fullmatch(r"[A-Za-z0-9]{0,9}|[A-Za-z0-9]{9}\{.*|\{.*", text[len(name) :], re.DOTALL) is not None


def _value(text: str, schema: Any) -> Any:
    """A text that is JSON is what it says, unless the tool wants a text; any other is itself."""
    if isinstance(schema, Mapping) and schema.get("type") == "string":
        return text
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def _json(value: Any) -> str:
    """Raises ValueError where Python has what JSON has not: NaN, halves of characters, sets."""
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False)
        text.encode()
    except TypeError:
        raise ValueError from None
    return text


def _certain(text: str) -> str:
    """Without what may belong to a call that begins: a tag that is not closed, the beginning of one, and the blanks before it."""
    tag = _OPEN.search(text)
    if tag is not None:
        return text[: tag.start()].rstrip()
    begun = text[text.rfind("<") :] if "<" in text else ""
    cut = len(begun) if begun and any(f"<{name}>".startswith(begun) for name in _TAGS) else 0
    return text[: len(text) - cut].rstrip()
