"""Where chat templates run: jinja's immutable sandbox, set up as transformers sets it up, with a budget for each rendering.

Templates come with models, from strangers, and a rendering cannot be interrupted from outside. So nothing is free whose cost
depends on a value; it pays from the budget for what goes in, and for what comes out. Where the result can be much larger
than that (foresight.py) it pays before there is one.

    loop                 items × size of its body; recursive loops are refused
    macro                size of its body
    filter, test         its operand, its arguments, its result
    function             its arguments, its result
    method               the same and its object; only the methods below, of texts, lists, tuples and dicts
    operator             its operands, its result; comparisons and ``in`` their operands
    slice, [a, b], ~     the result
    output               its length, also where a macro or a ``set`` block collects it

Whole values pay by their unrolled size, what only takes items over (``list``, ``map``, slices) by their number; what looks at a
length or at one item pays one step. What a template of a real model does costs some steps for each message. The tree of a
template is rewritten when it is parsed, so that all of this passes by the budget; no tracing, no threads and no signals are
involved. The sandbox itself keeps templates from Python's internals.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from types import BuiltinMethodType
from typing import Any, Final

import jinja2
import jinja2.ext
from jinja2 import nodes
from jinja2.exceptions import SecurityError, TemplateError
from jinja2.parser import Parser
from jinja2.runtime import Context, Macro, Undefined
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace, pass_context

from .budget import CHARS_PER_STEP, Budget
from .foresight import GROWING, chars_after, check_numbers, repeated, size
from .rewriter import Rewriter

#: Methods that a template may call. Those missing have no place in a chat, and cost what is hard to foresee.
_METHODS: Final[Mapping[type, frozenset[str]]] = {
    str: frozenset({name for name in dir(str) if not name.startswith("_")} - {"encode", "format_map", "maketrans", "translate"}),
    list: frozenset({"copy", "count", "index"}),
    tuple: frozenset({"count", "index"}),
    dict: frozenset({"copy", "get", "items", "keys", "values"}),
}
#: Look for every character of an argument at every place: Python searches backwards, and strips, without any cleverness.
_SEARCHING: Final = frozenset({"strip", "lstrip", "rstrip", "trim", "rfind", "rindex", "rsplit", "rpartition"})

#: Take no part in chat templates, and what they cost is hard to foresee.
_NO_FILTERS: Final = ("pprint", "urlize", "xmlattr", "slice", "batch", "center", "wordwrap", "striptags")
#: Look at a length or at one item, whatever the value.
_LOOKING_FILTERS: Final = frozenset({"length", "count", "first", "last", "default", "d", "attr", "random", "safe"})
#: Take items over as they are.
_MOVING_FILTERS: Final = frozenset({"list", "map", "select", "reject", "selectattr", "rejectattr", "reverse", "items", "sum"})
#: Look into a value; all others ask what it is.
_COMPARING_TESTS: Final = frozenset(
    {"in", "eq", "==", "equalto", "ne", "!=", "gt", ">", "greaterthan", "ge", ">=", "lt", "<", "lessthan", "le", "<=", "lower", "upper"}
)
#: Go through a text word by word, in Python.
_WORDY_FILTERS: Final = frozenset({"title", "wordcount"})
_CHARS_PER_WORD: Final = 4
#: A namespace is an object with a dict of its own.
_NAMESPACE_STEPS: Final = 16
_MAX_INDENT: Final = 16
_MAX_DECIMALS: Final = 64
#: A date is never longer than so many times its form: there Python stops.
_DATE_CHARS_PER_CHAR: Final = 256
#: A filter may go down a path of attributes at every item: "a.b.c".
_PATH_CHARS_PER_STEP: Final = 8


class Environment(ImmutableSandboxedEnvironment):
    """Compiles chat templates. Holds the budget of the rendering under way: one at a time."""

    intercepted_binops = frozenset({"+", "-", "*", "/", "//", "%", "**"})

    def __init__(self) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, jinja2.ext.loopcontrols])
        self.budget = Budget(0)
        for name in _NO_FILTERS:
            del self.filters[name]
        self.filters = {name: self._paying_filter(name, plain) for name, plain in self.filters.items()}
        self.filters |= {"tojson": self._tojson, **self._rewritten()}
        self.tests = {name: self._paying_test(name, plain) for name, plain in dict[str, Any](self.tests).items()}
        del self.globals["lipsum"]
        self.globals |= {
            "raise_exception": _raise_exception, "strftime_now": self._strftime_now, "dict": _Dict(), "namespace": _Namespace,
        }  # fmt: skip

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree: nodes.Template = Rewriter().visit(super()._parse(source, name, filename))
        tree.set_environment(self)
        return tree

    # operators, items, calls: as jinja's sandbox hands them over

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        check_numbers(operator, left, right)
        if operator == "%" and isinstance(left, str):
            self.budget.pay(right)
            self.budget.fit(chars_after("format", left, [right]))
        elif operator == "*":
            self.budget.fit(repeated(left, right))
        self.budget.pay_items(left)
        self.budget.pay_items(right)
        return self.budget.pay(super().call_binop(context, operator, left, right))

    def getitem(self, obj: Any, argument: Any) -> Any:
        if isinstance(argument, tuple):  # is hashed
            self.budget.pay(argument)
        return super().getitem(obj, argument)

    # jinja passes names of the template's own as keywords, so these three must not be called like any of them
    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        __self.budget.spend(1 + len(args) + len(kwargs))
        if not isinstance(__obj, Macro):  # which pays for its body
            args = __self._before_call(__obj, args, [*kwargs.values()])
        return __self.budget.pay(super().call(__context, __obj, *args, **kwargs))

    def _before_call(self, called: Any, args: tuple[Any, ...], more: list[Any]) -> tuple[Any, ...]:
        """Pays; returns the arguments, an iterator among them made a list where its length decides."""
        self.budget.pay([*args, *more])
        if called is _Namespace:
            self.budget.spend(_NAMESPACE_STEPS)
        method = getattr(called, "__wrapped__", called)  # the sandbox wraps str.format
        owner, name = getattr(method, "__self__", None), getattr(method, "__name__", "")
        kind = next((kind for kind in _METHODS if isinstance(owner, kind)), None)
        if name not in _METHODS[kind] if kind else isinstance(method, BuiltinMethodType):
            raise SecurityError(f"it calls {name[:40]!r} of a {type(owner).__name__}, which no chat template needs")
        if isinstance(owner, str):
            args = (_counted(args[0]), *args[1:]) if name == "join" and args else args
            self._before_text(name, owner, [*args, *more])
        elif isinstance(owner, list | tuple):
            self.budget.pay(owner)
        return args

    def _before_text(self, operation: str, text: str, arguments: Sequence[Any]) -> None:
        """Of a method or a filter, beside its arguments."""
        self.budget.fit(len(text))
        if operation in GROWING:
            self.budget.fit(chars_after(operation, text, arguments))
        elif operation in _SEARCHING:
            self.budget.spend(len(text) // CHARS_PER_STEP * max((size(a) for a in arguments if isinstance(a, str)), default=1))

    # filters and tests

    def _paying_filter(self, name: str, plain: Callable[..., Any]) -> Callable[..., Any]:
        """The same filter, paid for. Its value may follow an argument of jinja's own."""
        at = 1 if getattr(plain, "jinja_pass_arg", None) else 0

        @functools.wraps(plain)
        def paid(*args: Any, **kwargs: Any) -> Any:
            value, arguments = args[at], [*args[at + 1 :], *kwargs.values()]
            self.budget.pay(arguments)
            if name in _LOOKING_FILTERS:
                return plain(*args, **kwargs)
            value = self._before_filter(name, value, arguments)
            return self.budget.pay_items(plain(*args[:at], value, *args[at + 1 :], **kwargs))

        return paid

    def _before_filter(self, name: str, value: Any, arguments: list[Any]) -> Any:
        """Pays; returns the value, an iterator made a list where its length decides."""
        if name in _MOVING_FILTERS:
            path_chars = sum(len(argument) for argument in arguments if isinstance(argument, str))
            value = self.budget.pay_items(value, each=1 + path_chars // _PATH_CHARS_PER_STEP)
        else:
            value = self.budget.pay(_counted(value) if name == "join" else value)
        if name == "join":
            separator = arguments[0] if arguments and isinstance(arguments[0], str) else ""
            self.budget.fit(chars_after(name, separator, [value]))
        elif name in _WORDY_FILTERS:
            self.budget.spend(len(str(value)) // _CHARS_PER_WORD)
        elif name in GROWING or name in _SEARCHING:
            self._before_text(name, str(value), arguments)
        elif name == "sum" and any(isinstance(argument, list | tuple) for argument in arguments):
            raise SecurityError("it sums lists, which no chat template needs")
        elif name == "round" and any(isinstance(argument, int) and abs(argument) > _MAX_DECIMALS for argument in arguments):
            raise SecurityError("it rounds to more decimals than a chat template needs")
        return value

    def _paying_test(self, name: str, plain: Callable[..., Any]) -> Callable[..., Any]:
        at = 1 if getattr(plain, "jinja_pass_arg", None) else 0

        @functools.wraps(plain)
        def paid(*args: Any, **kwargs: Any) -> Any:
            self.budget.spend(1)
            if name in _COMPARING_TESTS:
                self.budget.pay([*args[at:], *kwargs.values()])
            return plain(*args, **kwargs)

        return paid

    def _tojson(self, value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False) -> str:
        """Plain JSON (jinja's own filter escapes for HTML), made piece by piece: indentation can outgrow the value."""
        if indent is not None and size(indent) > _MAX_INDENT:
            raise SecurityError("it indents further than a chat template needs to")
        encoder = json.JSONEncoder(ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
        return "".join(self.budget.passed(encoder.iterencode(self.budget.pay(value))))

    # what the Rewriter lets pass by the budget

    def _rewritten(self) -> dict[str, Callable[..., Any]]:
        """By the names of the filters that do it; none of these is computed when the template is parsed."""
        return {
            "_visited": self._visited, "_whole": self._whole, "_items": self._items, "_searched": self._searched, "_entered": self._entered,
        }  # fmt: skip

    @pass_context
    def _visited(self, _context: Context, items: Any, body_steps: int) -> Any:
        """What a loop is about to visit; an iterator becomes a list, so that it can be counted."""
        if isinstance(items, Undefined) or not hasattr(items, "__iter__"):
            return items
        items = _counted(items)
        self.budget.spend(1 + len(items) * body_steps)
        return items

    @pass_context
    def _whole(self, _context: Context, value: Any) -> Any:
        return self.budget.pay(value)

    @pass_context
    def _items(self, _context: Context, value: Any) -> Any:
        return self.budget.pay_items(value)

    @pass_context
    def _searched(self, _context: Context, value: Any) -> Any:
        """Where something is looked for: a mapping knows at once, all else looks at every item."""
        if isinstance(value, Mapping):
            self.budget.spend(1)
            return value
        return self.budget.pay(value)

    @pass_context
    def _entered(self, _context: Context, value: Any, steps: int) -> Any:
        self.budget.spend(steps)
        return value

    def _strftime_now(self, form: str) -> str:
        self.budget.fit(_DATE_CHARS_PER_CHAR * len(form))
        return datetime.now().strftime(form)


def _counted(value: Any) -> Any:
    return value if hasattr(value, "__len__") or not hasattr(value, "__iter__") else list(value)


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
