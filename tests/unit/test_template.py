"""Chat templates: where they come from, what they are given, and that a hostile one ends soon."""

# ruff: noqa: E501 -- a hostile template is a line of its own in the list

from __future__ import annotations

import json
import resource
from pathlib import Path

import pytest

from potato_client.question import ChatMessage, ToolCall
from potatod.errors import ModelDataError
from potatod.front.budget import Budget
from potatod.front.refusal import Refusal
from potatod.front.template import ChatTemplate

HELLO = [ChatMessage("user", "Hello")]


def _render(source: str, messages: list[ChatMessage] = HELLO, **switches: bool) -> str:
    return ChatTemplate(source, {"bos_token": "<s>"}).render(messages, **switches)


def _folder(folder: Path, *, jinja: str | None = None, config: object = None) -> Path:
    if jinja is not None:
        (folder / "chat_template.jinja").write_text(jinja)
    if config is not None:
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def test_a_template_of_its_own_file_comes_before_the_one_in_the_config(tmp_path: Path) -> None:
    template = ChatTemplate.load(_folder(tmp_path, jinja="file", config={"chat_template": "config"}))
    assert template is not None
    assert template.render(HELLO) == "file"


def test_of_several_named_templates_the_default_is_taken(tmp_path: Path) -> None:
    named = [{"name": "tool_use", "template": "tools"}, {"name": "default", "template": "default"}]
    template = ChatTemplate.load(_folder(tmp_path, config={"chat_template": named, "bos_token": {"content": "<b>"}}))
    assert template is not None
    assert template.render(HELLO) == "default"


@pytest.mark.parametrize("config", [None, {}, {"chat_template": None}, {"chat_template": [{"name": "rag", "template": "x"}]}])
def test_a_model_may_have_no_template(config: object, tmp_path: Path) -> None:
    assert ChatTemplate.load(_folder(tmp_path, config=config)) is None


def test_special_tokens_reach_the_template_by_name(tmp_path: Path) -> None:
    config = {"chat_template": "{{ bos_token }}{{ eos_token is defined }}", "bos_token": {"content": "<b>"}}
    template = ChatTemplate.load(_folder(tmp_path, config=config))
    assert template is not None
    assert template.render(HELLO) == "<b>False"


def test_thinking_has_both_names_in_use_and_none_where_nobody_asked() -> None:
    source = "{{ enable_thinking is defined }} {{ enable_thinking }} {{ thinking }}"
    assert _render(source, thinking=False) == "True False False"
    assert _render(source) == "False  "


def test_thoughts_of_an_earlier_turn_have_both_names_in_use() -> None:
    source = "{{ messages[0].reasoning_content }}|{{ messages[0].thinking }}|{{ messages[1].thinking is defined }}"
    assert _render(source, [ChatMessage("assistant", "b", reasoning="a"), *HELLO]) == "a|a|False"


def test_a_templates_own_refusal_becomes_a_sentence() -> None:
    with pytest.raises(Refusal, match=r"refuses this chat: roles must alternate") as caught:
        _render("{{ raise_exception('roles must alternate') }}")
    assert caught.value.code == "bad_request"


def test_half_a_character_in_a_tools_arguments_or_in_the_template_is_refused_before_a_tokenizer_sees_it() -> None:
    called = ChatMessage("assistant", "", tool_calls=(ToolCall("1", "f", '{"city": "\\ud800"}'),))
    with pytest.raises(Refusal, match=r"refuses this chat.*surrogates"):
        _render("{{ messages[0].tool_calls[0].function.arguments.city }}", [called])
    with pytest.raises(Refusal, match=r"refuses this chat.*surrogates"):
        _render('{{ "\\ud800" }}')


@pytest.mark.parametrize(
    "source", ["{{ messages[7].content }}", "{{ 1 / 0 }}", "{{ 'a' + 1 }}", "{{ none.x.y }}", "{{ messages|sum }}", "{{ nope() }}"]
)
def test_a_template_that_fails_becomes_a_refusal(source: str) -> None:
    with pytest.raises(Refusal, match="refuses this chat"):
        _render(source)


@pytest.mark.parametrize(
    "source",
    [
        "{% if %}", "{{", "{% unknown %}", "{{ x|unknown }}", "{% for a in b recursive %}{{ loop(a) }}{% endfor %}",
        "{% include 'x' %}{% if", "(" * 50 + "{{ " + "(" * 100_000,
    ],
)  # fmt: skip
def test_a_source_that_is_no_template_is_refused_when_it_is_loaded(source: str) -> None:
    with pytest.raises(ModelDataError, match="chat template cannot be read"):
        ChatTemplate(source, {})


HOSTILE = {
    "loops in loops": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "loops in loops over a literal": "{% for a in [1,2,3,4,5,6,7,8] %}" * 9 + "x" + "{% endfor %}" * 9,
    "a macro that calls itself twice": "{% macro f(n) %}{% if n %}{{ f(n-1) }}{{ f(n-1) }}{% endif %}{% endmacro %}{{ f(200) }}",
    "a macro without end": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "a long text": "{{ 'a' * 10**10 }}",
    "a long list": "{{ ([1] * 10**10)|length }}",
    "a huge number": "{{ 10 ** (10 ** 10) }}",
    "a huge product": "{% set ns = namespace(n=10**9) %}{% for i in range(9999) %}{% set ns.n = ns.n * ns.n %}{% endfor %}",
    "text doubled by ~": "{% set ns = namespace(s='abc') %}{% for i in range(99) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}",
    "text doubled by +": "{% set ns = namespace(s='abc') %}{% for i in range(99) %}{% set ns.s = ns.s + ns.s %}{% endfor %}",
    "text doubled by a block": "{% set s = 'abc' %}" + "{% set s %}{{ s }}{{ s }}{% endset %}" * 99,
    "a list in itself": "{% set ns = namespace(a=[]) %}{% for i in range(99) %}{% set ns.a = [ns.a, ns.a] %}{% endfor %}{{ ns.a }}",
    "a dict in itself": "{% set ns = namespace(a={}) %}{% for i in range(99) %}{% set ns.a = {1: ns.a, 2: ns.a} %}{% endfor %}{{ ns.a|tojson }}",
    "a tuple in itself": "{% set ns = namespace(a=1) %}{% for i in range(99) %}{% set ns.a = (ns.a, ns.a) %}{% endfor %}{{ ns.a }}",
    "dict() in itself": "{% set ns = namespace(a=1) %}{% for i in range(99) %}{% set ns.a = dict(b=ns.a, c=ns.a) %}{% endfor %}{{ ns.a }}",
    "a wide format": "{{ '{:>1000000000}'.format(1) }}",
    "a wide format from outside": "{{ '{:>{}}'.format(1, 10**9) }}",
    "a wide old format": "{{ '%1000000000d' % 1 }}",
    "a wide old format from outside": "{{ '%*d' % (10**9, 1) }}",
    "a wide filter": "{{ '%1000000000d'|format(1) }}",
    "padding": "{{ 'a'.center(10**10) }}",
    "zeros": "{{ 'a'.zfill(10**10) }}",
    "replacing": "{% set a = 'a' * 99999 %}{{ a.replace('a', a) }}",
    "replacing by a filter": "{% set a = 'a' * 99999 %}{{ a|replace('a', a) }}",
    "joining": "{% set a = 'a' * 99999 %}{{ a.join(a) }}",
    "joining by a filter": "{% set a = 'a' * 99999 %}{{ a|join(a) }}",
    "joining a generator": "{% set a = 'a' * 99999 %}{{ a|map('upper')|join(a) }}",
    "indenting": "{{ ('a\n' * 9999)|indent(10**9) }}",
    "indented json": "{{ messages|tojson(indent=10**9) }}",
    "json of json": "{% set ns = namespace(s='\"') %}{% for i in range(99) %}{% set ns.s = ns.s|tojson %}{% endfor %}",
    "output without end": "{% for a in range(99999) %}" + "x" * 999 + "{% endfor %}",
    "a macro's output without end": "{% macro f() %}{% for a in range(99999) %}" + "x" * 9999 + "{% endfor %}{% endmacro %}{{ f()|length }}",
    "expanding tabs": "{{ ('\t' * 9999).expandtabs(10**9) }}",
    "Python's insides": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "changing its input": "{{ messages.append(1) }}",
    "a namespace in itself": "{% set ns = namespace(a=1) %}{% for i in range(40) %}{% set n2 = namespace(b=ns, c=ns) %}{% set ns.a = n2 %}{% endfor %}{{ ns.a.b.a.c|tojson }}",
    "sums in a loop": "{% for i in range(10000) %}{{ range(99999)|sum }}{% endfor %}",
    "a chain of lists": "{% set c = namespace(x=none) %}{% for i in range(90000) %}"
    "{% set c.x = namespace(p=c.x, l=range(99999)|list) %}{% endfor %}",
    "a chain of slices": "{% set a = range(99999)|list %}{% set c = namespace(x=none) %}{% for i in range(90000) %}"
    "{% set c.x = namespace(p=c.x, l=a[1:]) %}{% endfor %}",
    "a filter on a long text": "{% set s = 'ab' * 500000 %}{% for i in range(90000) %}{% set t = s|upper %}{% endfor %}",
    "a method on a long text": "{% set s = 'ab' * 500000 %}{% for i in range(90000) %}{% set t = s.count('ba') %}{% endfor %}",
    "a test on a long text": "{% set s = 'ab' * 500000 %}{% for i in range(90000) %}{% set t = s is lower %}{% endfor %}",
    "a test of a long list": "{% set a = range(99999)|list %}{% for i in range(90000) %}{% set t = -1 is in a %}{% endfor %}",
    "comparing long texts": "{% set s = 'ab' * 500000 %}{% set t = 'ab' * 500000 %}{% for i in range(90000) %}{% set x = s == t %}{% endfor %}",
    "looking into a long list": "{% set a = range(99999)|list %}{% for i in range(90000) %}{% set t = -1 in a %}{% endfor %}",
    "hashing a long key": "{% set a = [1] * 99999 %}{% set d = {1: 1} %}{% macro f() %}{{ d[varargs] }}{% endmacro %}"
    "{% for i in range(90000) %}{{ f(*a) }}{% endfor %}",
    "a long body of a loop": "{% for i in range(99999) %}" + "{% set a = i %}" * 9999 + "{% endfor %}",
    "a long body of a macro": "{% macro f() %}" + "{% set a = 1 %}" * 9999 + "{% endmacro %}{% for i in range(99999) %}{{ f() }}{% endfor %}",
    "words of a long text": "{% set s = 'ab ' * 300000 %}{% for i in range(90000) %}{% set t = s|title %}{% endfor %}",
    "namespaces without end": "{% set c = namespace(x=none) %}{% for i in range(90000) %}{% for j in range(10) %}"
    "{% set c.x = namespace(p=c.x) %}{% endfor %}{% endfor %}",
    "a long path": "{% set p = 'a.' * 99999 %}{{ range(99999)|map(attribute=p)|list }}",
    "lists of lists summed": "{{ ([[1]] * 200000)|sum(start=[]) }}",
    "rounding to a million places": "{{ 1|round(10**8) }}{{ 1|round(-(10**8)) }}",
    "searching backwards": "{% set s = 'a' * 900000 %}{{ s.rfind('b' ~ s[:400000]) }}",
    "stripping": "{% set s = 'a' * 900000 %}{{ s.strip('b' * 400000 ~ 'a') }}",
    "stripping by a filter": "{% set s = 'a' * 900000 %}{{ s|trim('b' * 400000 ~ 'a') }}",
    "bytes": "{{ 'a'.encode().center(10**10)|length }}",
    "a number's bytes": "{{ (1).to_bytes(10**10)|length }}",
    "a number out of a text": "{{ ('f' * 99999)|int(base=16) }}",
    "comments in tags": "{{ ('<!---->' * 99999)|striptags }}",
    "many wide places": "{{ ('{0:9999}' * 30000).format('')|length }}",
    "many wide old places": "{{ ('%9999s' * 30000) % (('',) * 30000) }}",
    "a block in itself": "{% block b %}{{ self.b() }}{{ self.b() }}{% endblock %}",
    "a wide date": "{{ strftime_now('%9999d' * 99999) }}",
}  # fmt: skip

MEGABYTES = 400


@pytest.mark.slow
@pytest.mark.timeout(60)
@pytest.mark.parametrize("name", sorted(HOSTILE))
def test_a_hostile_template_is_refused_and_not_obeyed(name: str) -> None:
    """Without a limit each of these runs for hours or takes all memory; with one it ends soon, and has not taken much."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(
        (Refusal, ModelDataError),
        match=r"than a chat template|no chat template needs|template fails|is unsafe|belong to pages|not JSON serializable|No filter named",
    ):
        _render(HOSTILE[name])
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < MEGABYTES * 1024


@pytest.mark.slow
def test_a_long_chat_is_no_hostility() -> None:
    """Thousands of turns, megabytes of text, and a template that looks through all turns at each of them."""
    source = (
        "{% for m in messages %}{{ '<' + m.role + '>' ~ m.content|trim|replace('a', 'b') }}{{ m | tojson }}"
        "{% for other in messages[:300] %}{% if other.role == 'x' %}{{ other.content }}{% endif %}{% endfor %}{% endfor %}"
    )
    messages = [ChatMessage("user", "a long text of no meaning " * 40)] * 2000
    text = _render(source, messages)
    assert text.count("<user>") == 2000


def test_a_hostile_template_has_no_more_time_because_the_chat_is_long() -> None:
    """Clients take a front for dead that says nothing for ten seconds, and the front renders in its only thread."""
    assert Budget(0).steps < Budget(100_000).steps <= Budget(10**9).steps <= 4 * Budget(0).steps


def test_each_rendering_has_a_budget_of_its_own() -> None:
    template = ChatTemplate("{% for a in range(90000) %}{% endfor %}done", {})
    assert {template.render(HELLO) for _ in range(30)} == {"done"}
