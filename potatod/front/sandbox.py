"""Where chat templates run: jinja's immutable sandbox, set up as transformers sets it up, with a budget for each rendering.

Templates come with models, from strangers, and a rendering cannot be interrupted from outside. So the tree of a template is
rewritten when it is parsed, and what can grow pays from the budget before it grows:

    every loop        the items that it is about to visit (recursive loops are refused)
    every call        one step: recursion of macros ends, and so do loops made of calls
    every container   its size when it is unrolled: ``[a, a]`` again and again doubles without any loop
    every output      its length, also where a macro or a ``set`` block collects it
    + * % ** ~        the size of the result, where it can be foreseen before there is one
    replace and such  the size of the result that their arguments allow at most

What a template of a real model does costs a few steps for each message. The sandbox itself keeps templates from Python's
internals; no tracing, no threads and no signals are involved.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any, Final

import jinja2
import jinja2.ext
from jinja2 import nodes
from jinja2.exceptions import SecurityError, TemplateError
from jinja2.parser import Parser
from jinja2.runtime import Context, Macro, Undefined
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace, pass_context
from jinja2.visitor import NodeTransformer

#: Steps of one rendering beside those for its input: about two seconds at the worst.
_BASE_STEPS: Final = 1_000_000
_STEPS_PER_CHAR: Final = 4
#: Longest text in a rendering, beside what its input allows.
_BASE_CHARS: Final = 1 << 20
_CHARS_PER_CHAR: Final = 8
#: Copying so many characters counts as one step.
_CHARS_PER_STEP: Final = 64
_MAX_NUMBER_BITS: Final = 4096
_MAX_INDENT: Final = 16
#: Widths in format strings that no template needs: of five digits, or taken from an argument.
_WIDE: Final = re.compile(r"\d{5}|\{[^{}]*\{|%[^a-zA-Z%]*\*")

#: Methods of strings, and filters, whose result can be far larger than what goes in.
_GROWING_METHODS: Final = frozenset(
    {"center", "ljust", "rjust", "zfill", "expandtabs", "replace", "join", "translate", "format", "format_map"}
)
_GROWING_FILTERS: Final = ("replace", "indent", "join", "format")
#: Take no part in chat templates, and their growth is hard to foresee.
_NO_FILTERS: Final = ("pprint", "urlize", "xmlattr", "slice", "batch", "center", "wordwrap")


class Budget:
    """What one rendering may still do."""

    def __init__(self, input_chars: int) -> None:
        self.steps = _BASE_STEPS + _STEPS_PER_CHAR * input_chars
        self.chars = _BASE_CHARS + _CHARS_PER_CHAR * input_chars

    def spend(self, steps: int) -> None:
        self.steps -= steps
        if self.steps < 0:
            raise SecurityError("it does more than a chat template may")

    def fit(self, chars: int) -> None:
        """A text of this length is about to be, or has just been made."""
        if chars > self.chars:
            raise SecurityError("it makes more text than a chat template may")
        self.spend(1 + chars // _CHARS_PER_STEP)

    def passed(self, pieces: Iterable[str]) -> Iterator[str]:
        """Pieces of one text, each only while the text is not too long."""
        length = 0
        for piece in pieces:
            length += len(piece)
            if length > self.chars:
                raise SecurityError("it makes more text than a chat template may")
            self.spend(1)
            yield piece

    def hold(self, value: Any) -> Any:
        """A value that has just been made, paid for by its unrolled size."""
        if isinstance(value, str):
            self.fit(len(value))
        elif isinstance(value, Mapping):
            self.spend(1)
            for key, item in value.items():
                self.hold(key)
                self.hold(item)
        elif isinstance(value, list | tuple | set):
            self.spend(1)
            for item in value:
                self.hold(item)
        return value


class Environment(ImmutableSandboxedEnvironment):
    """Compiles chat templates. Holds the budget of the rendering under way: one at a time."""

    intercepted_binops = frozenset({"+", "*", "%", "**"})

    def __init__(self) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, jinja2.ext.loopcontrols])
        self.budget = Budget(0)
        for name in _GROWING_FILTERS:
            self.filters[name] = self._growing(name, self.filters[name])
        for name in _NO_FILTERS:
            del self.filters[name]
        self.filters |= {"tojson": self._tojson, "_visited": self._visited, "_held": self._held}
        del self.globals["lipsum"]
        self.globals |= {
            "raise_exception": _raise_exception, "strftime_now": _strftime_now, "dict": _Dict(), "namespace": _Namespace,
        }  # fmt: skip

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree: nodes.Template = _Rewriter().visit(super()._parse(source, name, filename))
        tree.set_environment(self)
        return tree

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        self._foresee(operator, left, right)
        return self.budget.hold(super().call_binop(context, operator, left, right))

    def _foresee(self, operator: str, left: Any, right: Any) -> None:
        if operator == "%" and isinstance(left, str):
            self.budget.fit(_foreseen("%", left, [right]))
        for number, other in ((left, right), (right, left)):
            if not isinstance(number, int):
                continue
            if operator == "*" and isinstance(other, str | list | tuple):
                self.budget.fit(len(other) * max(number, 0))
            if operator in ("*", "**") and isinstance(other, int):
                power = abs(right) if operator == "**" else 2
                if power * max(number.bit_length(), other.bit_length()) > _MAX_NUMBER_BITS:
                    raise SecurityError("it computes with numbers larger than a chat template may")

    # jinja passes names of the template's own as keywords, so these three must not be called like any of them
    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        __self.budget.spend(1)
        method = getattr(__obj, "__wrapped__", __obj)  # the sandbox wraps str.format
        text, name = getattr(method, "__self__", None), getattr(method, "__name__", "")
        if isinstance(text, str) and name in _GROWING_METHODS:
            __self.budget.fit(_foreseen(name, text, [*args, *kwargs.values()]))
        return __self.budget.hold(super().call(__context, __obj, *args, **kwargs))

    def _growing(self, name: str, plain: Callable[..., Any]) -> Callable[..., Any]:
        """A filter that is refused where its result may be too long. Its value may follow an argument of jinja's own."""
        at = 1 if getattr(plain, "jinja_pass_arg", None) else 0

        @functools.wraps(plain)
        def guarded(*args: Any, **kwargs: Any) -> Any:
            value, arguments = args[at], [*args[at + 1 :], *kwargs.values()]
            if name == "join":
                value = value if hasattr(value, "__len__") else list(value)
                separator = arguments[0] if arguments and isinstance(arguments[0], str) else ""
                self.budget.fit(_foreseen(name, separator, [value]))
            else:
                self.budget.fit(_foreseen(name, str(value), arguments))
            return self.budget.hold(plain(*args[:at], value, *args[at + 1 :], **kwargs))

        return guarded

    def _tojson(self, value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False) -> str:
        """Plain JSON (jinja's own filter escapes for HTML), made piece by piece: indentation can outgrow the value."""
        if _size(indent) > _MAX_INDENT and indent is not None:
            raise SecurityError("it indents further than a chat template needs to")
        encoder = json.JSONEncoder(ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
        return "".join(self.budget.passed(encoder.iterencode(value)))

    @pass_context
    def _visited(self, context: Context, items: Any) -> Any:
        """What a loop is about to visit; a generator becomes a list, so that it can be counted."""
        if isinstance(items, Undefined) or not hasattr(items, "__iter__"):
            return items
        if not hasattr(items, "__len__"):
            items = list(items)
        self.budget.spend(1 + len(items))
        return items

    @pass_context
    def _held(self, context: Context, value: Any) -> Any:
        return self.budget.hold(value)


class _Rewriter(NodeTransformer):
    """Lets everything that grows pass by the budget."""

    def visit_For(self, node: nodes.For) -> nodes.Node:
        if node.recursive:
            raise SecurityError("it loops recursively, which no chat template needs")
        self.generic_visit(node)
        node.iter = _filtered("_visited", node.iter)
        return node

    def _pays(self, node: nodes.Expr) -> nodes.Node:
        self.generic_visit(node)
        return _filtered("_held", node)

    def visit_Tuple(self, node: nodes.Tuple) -> nodes.Node:
        return self._pays(node) if node.ctx == "load" else node

    def visit_TemplateData(self, node: nodes.TemplateData) -> nodes.Node:
        return nodes.Const(node.data, lineno=node.lineno)  # in an Output, which pays

    def visit_Output(self, node: nodes.Output) -> nodes.Node:
        self.generic_visit(node)
        node.nodes = [_filtered("_held", child) for child in node.nodes]
        return node

    visit_List = visit_Dict = visit_Concat = _pays


def _filtered(name: str, node: nodes.Node) -> nodes.Filter:
    assert isinstance(node, nodes.Expr), "only values pass by the budget"
    return nodes.Filter(node, name, [], [], None, None, lineno=node.lineno)


def _foreseen(operation: str, text: str, arguments: Sequence[Any]) -> int:
    """Characters that an operation on a text makes at most. Every place in the text takes one argument, the longest."""
    if operation in ("format", "format_map", "%"):
        if _WIDE.search(text):
            raise SecurityError("it formats to a width that no chat template needs")
        places = text.count("%") + text.count("{")
        return len(text) + places * max((_size(argument, number=400) for argument in arguments), default=0)
    longest = max((_size(argument) for argument in arguments), default=0)
    if operation == "join":
        items = arguments[0] if arguments else ()
        return longest + len(text) * (len(items) if hasattr(items, "__len__") else 0)
    places = {
        "replace": text.count(arguments[0]) if arguments and isinstance(arguments[0], str) else len(text),
        "expandtabs": text.count("\t"), "translate": len(text), "indent": text.count("\n") + 1,
    }.get(operation, 1)  # fmt: skip
    return len(text) + places * longest


def _size(value: Any, number: int | None = None) -> int:
    """Characters that a value stands for. A number may be a width or a count: itself, unless ``number`` says otherwise."""
    if isinstance(value, str):
        return len(value)
    if isinstance(value, int) and not isinstance(value, bool):
        return abs(value) if number is None else number
    if isinstance(value, Mapping):
        return sum(_size(key, number) + _size(item, number) + 6 for key, item in value.items())
    if isinstance(value, list | tuple | set):
        return sum(_size(item, number) + 2 for item in value)
    return 32


class _Generation(jinja2.ext.Extension):
    """``{% generation %}…{% endgeneration %}`` marks what the assistant says, for training. Here it is its content."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_content"), [], [], body).set_lineno(line)

    def _content(self, caller: Macro) -> str:
        return str(caller())


def _raise_exception(message: str) -> None:
    raise TemplateError(message)


def _strftime_now(form: str) -> str:
    return datetime.now().strftime(form)


class _Dict:
    """``dict`` without the class behind it."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)

    def fromkeys(self, *args: Any) -> dict[Any, Any]:
        return dict.fromkeys(*args)


class _Namespace(Namespace):
    """A namespace keeps no names that lead into Python's own, and is not unrolled when it is written out."""

    def __init__(*args: Any, **kwargs: Any) -> None:
        self, *rest = args
        values = dict(*rest, **kwargs)
        for name in values:
            _check_name(name)
        Namespace.__init__(self, values)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        super().__setitem__(name, value)

    def __repr__(self) -> str:
        return "<Namespace>"


def _check_name(name: object) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError(f"it sets {name[:40]!r} on a namespace: names there begin with a letter")
