"""What a chat template knows of tools: templates that write calls as families do, written for these tests."""

from __future__ import annotations

import re

import pytest

from potatod.front.reasoning import Reasoning, declared
from potatod.front.template import ChatTemplate
from potatod.front.tool_use import of

_LOOP = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% for c in m.tool_calls or [] %}CALL{% endfor %}<|end|>{% endfor %}"
_TOOLS = "{% if tools %}<|tools|>{{ tools | tojson }}<|end|>{% endif %}"
_PROMPT = "{% if add_generation_prompt %}<|assistant|>{% endif %}"


def use(source: str) -> str:
    template = ChatTemplate(source, {})

    def answer(prompt: str, said: str) -> str:
        reasoning = Reasoning(declared(template.source), prompt)
        return reasoning.push(re.sub(r"<\|.*?\|>", "", said))[1] + reasoning.flush()[1]

    return of(template, answer)


def template(call: str, prompt: str = _PROMPT) -> str:
    return _TOOLS + _LOOP.replace("CALL", call) + prompt


@pytest.mark.parametrize(
    "call",
    [
        '<tool_call>{"name": "{{ c.function.name }}", "arguments": {{ c.function.arguments | tojson }}}</tool_call>',
        '{"name": "{{ c.function.name }}", "parameters": {{ c.function.arguments | tojson }}}',
        '<|calls|>[{"name": "{{ c.function.name }}", "arguments": {{ c.function.arguments | tojson }}, "id": "{{ c.id }}"}]',
        "<|calls|>{{ c.function.name }}<|args|>{{ c.function.arguments | tojson }}",
        "<tool_call>{{ c.function.name }}{% for k, v in c.function.arguments.items() %}<arg_key>{{ k }}</arg_key>"
        "<arg_value>{{ v }}</arg_value>{% endfor %}</tool_call>",
        "[{{ c.function.name }}({% for k, v in c.function.arguments.items() %}{{ k }}='{{ v }}'{% endfor %})]",
    ],
)
def test_a_way_that_is_known_is_found_with_thoughts_begun_or_not(call: str) -> None:
    assert use(template(call)) == "calls"
    assert use(template(call, "{% if add_generation_prompt %}<|assistant|><think>{% endif %}") + "{# </think> #}") == "calls"


def test_a_way_that_is_not_known_is_text() -> None:
    assert use(template("please call {{ c.function.name }} for {{ c.function.arguments.city }}")) == "text"
    assert use(template("{{ raise_exception('one at a time') }}")) == "text"


def test_a_template_without_tools_knows_none() -> None:
    assert use(_LOOP.replace("CALL", "") + _PROMPT) == "none"
    assert use("{% if tools %}{{ raise_exception('no tools') }}{% endif %}" + _LOOP) == "none"
    assert of(None, lambda prompt, said: said) == "none"


def test_a_template_that_is_for_tools_alone_knows_them() -> None:
    call = '<tool_call>{"name": "{{ c.function.name }}", "arguments": {{ c.function.arguments | tojson }}}</tool_call>'
    assert use("{% for t in tools %}{{ t.function.name }}{% endfor %}" + template(call).replace("{% if tools %}", "{% if true %}")) == "calls"
