"""Chat templates in the manner of well-known families, rendered by us and by transformers: the same text.

The templates are ours, written after each family's documented format with the constructs that its own template uses.
"""

# ruff: noqa: E501 -- a template that a family writes in one line stays in one line

from __future__ import annotations

import dataclasses
import json
import re
from datetime import datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from potato_client.question import ChatMessage, ToolCall
from potatod.front import sandbox
from potatod.front.refusal import Refusal
from potatod.front.template import ChatTemplate

SPECIAL = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "image_token": "<img>"}

FAMILIES = {
    "Llama 2": """\
{%- if messages[0]['role'] == 'system' %}
    {%- set system = '<<SYS>>\\n' + messages[0]['content'].strip() + '\\n<</SYS>>\\n\\n' %}
    {%- set turns = messages[1:] %}
{%- else %}
    {%- set system = '' %}
    {%- set turns = messages %}
{%- endif %}
{%- for turn in turns %}
    {%- if (turn['role'] == 'user') != (loop.index0 % 2 == 0) %}
        {{- raise_exception('user and assistant must take turns, the user first') }}
    {%- endif %}
    {%- if turn['role'] == 'user' %}
        {{- bos_token + '[INST] ' + (system if loop.first else '') + turn['content'].strip() + ' [/INST]' }}
    {%- else %}
        {{- ' ' + turn['content'].strip() + ' ' + eos_token }}
    {%- endif %}
{%- endfor %}""",
    "Llama 3": """\
{% for message in messages %}
{% set text = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' + message['content'] | trim + '<|eot_id|>' %}
{% if loop.index0 == 0 %}{% set text = bos_token + text %}{% endif %}
{{ text }}
{% endfor %}
{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}""",
    "Llama 3.1, tools and date": """\
{{- bos_token }}
{%- if not date_string is defined %}
    {%- if strftime_now is defined %}{%- set date_string = strftime_now('%d %b %Y') %}
    {%- else %}{%- set date_string = '26 Jul 2024' %}{%- endif %}
{%- endif %}
{%- if not tools is defined %}{%- set tools = none %}{%- endif %}
{%- if messages[0].role == 'system' %}
    {%- set system = messages[0].content | trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system = '' %}
{%- endif %}
{{- '<|start_header_id|>system<|end_header_id|>\\n\\n' }}
{%- if tools is not none %}
    {{- 'Environment: ipython\\n' }}
{%- endif %}
{{- 'Cutting Knowledge Date: December 2023\\nToday Date: ' + date_string + '\\n\\n' }}
{%- if tools is not none %}
    {{- 'You may call these functions:\\n\\n' }}
    {%- for tool in tools %}{{- tool | tojson(indent=4) }}{{- '\\n\\n' }}{%- endfor %}
{%- endif %}
{{- system + '<|eot_id|>' }}
{%- for message in messages %}
    {%- if not (message.role == 'ipython' or message.role == 'tool' or 'tool_calls' in message) %}
        {{- '<|start_header_id|>' + message.role + '<|end_header_id|>\\n\\n' + message.content | trim + '<|eot_id|>' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{%- endif %}""",
    "Mistral": """\
{%- if messages[0]["role"] == "system" %}
    {%- set system_message = messages[0]["content"] %}
    {%- set loop_messages = messages[1:] %}
{%- else %}
    {%- set loop_messages = messages %}
{%- endif %}
{%- set user_messages = loop_messages | selectattr("role", "equalto", "user") | list %}
{%- set ns = namespace() %}
{%- set ns.index = 0 %}
{%- for message in loop_messages %}
    {%- if (message["role"] == "user") != (ns.index % 2 == 0) %}
        {{- raise_exception("After the optional system message, roles must alternate user/assistant") }}
    {%- endif %}
    {%- set ns.index = ns.index + 1 %}
{%- endfor %}
{{- bos_token }}
{%- for message in loop_messages %}
    {%- if message["role"] == "user" %}
        {%- if loop.last and system_message is defined %}
            {{- "[INST] " + system_message + "\\n\\n" + message["content"] + "[/INST]" }}
        {%- else %}
            {{- "[INST] " + message["content"] + "[/INST]" }}
        {%- endif %}
    {%- elif message["role"] == "assistant" %}
        {{- " " + message["content"] | trim + eos_token }}
    {%- else %}
        {{- raise_exception("Only user and assistant roles are supported") }}
    {%- endif %}
{%- endfor %}
{{- '' if user_messages else 'nobody asked' }}""",
    "ChatML, Qwen 2": """\
{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' }}{% endif %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}""",
    "Qwen 3, thinking": """\
{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- if messages[0].role == 'system' %}{{- messages[0].content + '\\n\\n' }}{%- endif %}
    {{- "# Tools\\n\\n<tools>" }}
    {%- for tool in tools %}{{- "\\n" }}{{- tool | tojson }}{%- endfor %}
    {{- "\\n</tools><|im_end|>\\n" }}
{%- elif messages[0].role == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
{%- endif %}
{%- set ns = namespace(multi_step_tool=true, last_query_index=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.multi_step_tool and message.role == "user" and message.content is string and not(message.content.startswith('<tool_response>') and message.content.endswith('</tool_response>')) %}
        {%- set ns.multi_step_tool = false %}
        {%- set ns.last_query_index = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if message.content is string %}{%- set content = message.content %}{%- else %}{%- set content = '' %}{%- endif %}
    {%- if (message.role == "user") or (message.role == "system" and not loop.first) %}
        {{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>' + '\\n' }}
    {%- elif message.role == "assistant" %}
        {%- set reasoning_content = '' %}
        {%- if message.reasoning_content is string %}
            {%- set reasoning_content = message.reasoning_content %}
        {%- elif '</think>' in content %}
            {%- set reasoning_content = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}
            {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
        {%- endif %}
        {%- if loop.index0 > ns.last_query_index or (loop.last and reasoning_content) %}
            {{- '<|im_start|>assistant\\n<think>\\n' + reasoning_content.strip('\\n') + '\\n</think>\\n\\n' + content.lstrip('\\n') }}
        {%- else %}
            {{- '<|im_start|>assistant\\n' + content }}
        {%- endif %}
        {{- '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}
{%- endif %}""",
    "Gemma": """\
{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}{% if (message['role'] == 'assistant') %}{% set role = 'model' %}{% else %}{% set role = message['role'] %}{% endif %}{{ '<start_of_turn>' + role + '\\n' + message['content'] | trim + '<end_of_turn>\\n' }}{% endfor %}{% if add_generation_prompt %}{{'<start_of_turn>model\\n'}}{% endif %}""",
    "Gemma 3, content parts": """\
{{ bos_token }}
{%- if messages[0]['role'] == 'system' -%}
    {%- if messages[0]['content'] is string -%}
        {%- set first_user_prefix = messages[0]['content'] + '\\n\\n' -%}
    {%- else -%}
        {%- set first_user_prefix = messages[0]['content'][0]['text'] + '\\n\\n' -%}
    {%- endif -%}
    {%- set loop_messages = messages[1:] -%}
{%- else -%}
    {%- set first_user_prefix = "" -%}
    {%- set loop_messages = messages -%}
{%- endif -%}
{%- for message in loop_messages -%}
    {%- set role = "model" if message['role'] == 'assistant' else message['role'] -%}
    {{ '<start_of_turn>' + role + '\\n' + (first_user_prefix if loop.first else "") }}
    {%- if message['content'] is string -%}
        {{ message['content'] | trim }}
    {%- elif message['content'] is iterable -%}
        {%- for item in message['content'] -%}
            {%- if item['type'] == 'text' -%}{{ item['text'] | trim }}{%- endif -%}
        {%- endfor -%}
    {%- else -%}
        {{ raise_exception("Invalid content type") }}
    {%- endif -%}
    {{ '<end_of_turn>\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<start_of_turn>model\\n' }}{%- endif -%}""",
    "Phi-3": """\
{% for message in messages %}{% if message['role'] == 'system' and message['content'] %}{{'<|system|>\\n' + message['content'] + '<|end|>\\n'}}{% elif message['role'] == 'user' %}{{'<|user|>\\n' + message['content'] + '<|end|>\\n'}}{% elif message['role'] == 'assistant' %}{{'<|assistant|>\\n' + message['content'] + '<|end|>\\n'}}{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% else %}{{ eos_token }}{% endif %}""",
    "Phi-4": """\
{% for message in messages %}{% if (message['role'] == 'system') %}{{'<|im_start|>system<|im_sep|>' + message['content'] + '<|im_end|>'}}{% elif (message['role'] == 'user') %}{{'<|im_start|>user<|im_sep|>' + message['content'] + '<|im_end|>'}}{% elif (message['role'] == 'assistant') %}{{'<|im_start|>assistant<|im_sep|>'}}{% generation %}{{message['content'] + '<|im_end|>'}}{% endgeneration %}{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant<|im_sep|>' }}{% endif %}""",
    "Cohere": """\
{{ bos_token }}{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}{% set system_message = messages[0]['content'] %}{% elif false == true %}{% set loop_messages = messages %}{% set system_message = 'You are Command-R.' %}{% else %}{% set loop_messages = messages %}{% set system_message = false %}{% endif %}{% if system_message != false %}{{ '<|START_OF_TURN_TOKEN|><|SYSTEM_TOKEN|>' + system_message + '<|END_OF_TURN_TOKEN|>' }}{% endif %}{% for message in loop_messages %}{% set content = message['content'] %}{% if message['role'] == 'user' %}{{ '<|START_OF_TURN_TOKEN|><|USER_TOKEN|>' + content.strip() + '<|END_OF_TURN_TOKEN|>' }}{% elif message['role'] == 'assistant' %}{{ '<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>'  + content.strip() + '<|END_OF_TURN_TOKEN|>' }}{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>' }}{% endif %}""",
    "Granite": """\
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message, loop_messages = messages[0]['content'], messages[1:] %}
{%- else %}
    {%- set system_message = "Knowledge Cutoff Date: April 2024.\\nToday's Date: " + strftime_now('%B %d, %Y') + ".\\nYou are Granite." %}
    {%- if thinking %}{%- set system_message = system_message + " Write your thoughts between <think></think>." %}{%- endif %}
    {%- set loop_messages = messages %}
{%- endif %}
{{- '<|start_of_role|>system<|end_of_role|>' + system_message + '<|end_of_text|>\\n' }}
{%- for message in loop_messages %}
    {{- '<|start_of_role|>' + message['role'] + '<|end_of_role|>' + message['content'] + '<|end_of_text|>\\n' }}
    {%- if loop.last and add_generation_prompt %}
        {{- '<|start_of_role|>assistant' }}
        {%- if controls %}{{- ' ' + controls | tojson() }}{%- endif %}
        {{- '<|end_of_role|>' }}
    {%- endif %}
{%- endfor %}""",
    "DeepSeek": """\
{% if not add_generation_prompt is defined %}{% set add_generation_prompt = false %}{% endif %}{% set ns = namespace(is_first=false, system_prompt='', is_last_user=false) %}{%- for message in messages %}{%- if message['role'] == 'system' %}{% set ns.system_prompt = ns.system_prompt ~ message['content'] %}{%- endif %}{%- endfor %}{{ bos_token }}{{ ns.system_prompt }}{%- for message in messages %}{%- if message['role'] == 'user' %}{%- set ns.is_last_user = true -%}{{'<|User|>' + message['content']}}{%- endif %}{%- if message['role'] == 'assistant' and message['content'] is not none %}{%- set ns.is_last_user = false -%}{% set content = message['content'] %}{% if '</think>' in content %}{% set content = content.split('</think>')[-1] %}{% endif %}{{'<|Assistant|>' + content + eos_token}}{%- endif %}{%- endfor -%}{% if add_generation_prompt and ns.is_last_user %}{{'<|Assistant|><think>\\n'}}{% endif %}""",
    "gpt-oss, macros": """\
{%- macro described(property) -%}
    {%- if property.type == 'array' -%}{{- described(property['items']) + '[]' -}}
    {%- elif property.type == 'string' -%}{{- 'string' -}}
    {%- else -%}{{- property.type | default('any') -}}{%- endif -%}
{%- endmacro -%}
{%- macro functions(name, tools) -%}
    {{- '## ' + name + '\\n\\nnamespace ' + name + ' {\\n\\n' }}
    {%- for tool in tools %}
        {%- set tool = tool.function %}
        {{- '// ' + tool.description + '\\ntype ' + tool.name + ' = (_: {' }}
        {%- for name, property in tool.parameters.properties.items() %}
            {{- '\\n' + name + ('' if name in (tool.parameters.required or []) else '?') + ': ' + described(property) }}
            {%- if not loop.last %},{% endif %}
        {%- endfor %}
        {{- '\\n}) => any;\\n' }}
    {%- endfor %}
    {{- '\\n} // namespace ' + name }}
{%- endmacro -%}
{{- '<|start|>system<|message|>Current date: ' + strftime_now('%Y-%m-%d') + '\\n\\nReasoning: ' + reasoning_effort | default('medium') }}
{{- '\\n\\n# Valid channels: analysis, commentary, final.<|end|>' }}
{%- if messages[0].role in ['developer', 'system'] %}
    {%- set developer, rest = messages[0].content, messages[1:] %}
{%- else %}
    {%- set developer, rest = '', messages %}
{%- endif %}
{%- if developer or tools %}
    {{- '<|start|>developer<|message|># Instructions\\n\\n' + developer }}
    {%- if tools %}{{- '\\n\\n# Tools\\n\\n' + functions('functions', tools) }}{%- endif %}
    {{- '<|end|>' }}
{%- endif %}
{%- for message in rest %}
    {%- if message.role == 'assistant' %}
        {%- if loop.last and message.thinking is defined %}
            {{- '<|start|>assistant<|channel|>analysis<|message|>' + message.thinking + '<|end|>' }}
        {%- endif %}
        {{- '<|start|>assistant<|channel|>final<|message|>' + message.content + ('<|return|>' if loop.last else '<|end|>') }}
    {%- elif message.role == 'user' %}
        {{- '<|start|>user<|message|>' + message.content + '<|end|>' }}
    {%- else %}{%- continue %}{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}<|start|>assistant{% endif %}""",
    "SmolLM3": """\
{%- set reasoning_mode = '/think' if enable_thinking | default(true) else '/no_think' %}
{%- if messages[0].role == 'system' %}
    {%- set system_message = messages[0].content %}
    {%- if "/no_think" in system_message %}{%- set reasoning_mode = "/no_think" %}{%- endif %}
    {%- set custom_instructions = system_message.replace("/no_think", "").replace("/think", "").rstrip() %}
{%- endif %}
<|im_start|>system
## Metadata

Today Date: {{ strftime_now("%d %B %Y") }}
Reasoning Mode: {{ reasoning_mode }}

## Custom Instructions

{% if custom_instructions %}
{{ custom_instructions }}

{% else %}
You are a helpful AI assistant named SmolLM.

{% endif %}
<|im_end|>
{% for message in messages -%}
    {%- if message.role == "user" %}
        {{- "<|im_start|>user\\n" + message.content + "<|im_end|>\\n" }}
    {%- elif message.role == "assistant" %}
        {% generation %}
        {%- if reasoning_mode == "/think" %}
            {{- "<|im_start|>assistant\\n" + message.content.lstrip("\\n") + "<|im_end|>\\n" }}
        {%- else %}
            {{- "<|im_start|>assistant\\n<think>\\n\\n</think>\\n" + message.content.lstrip("\\n") + "<|im_end|>\\n" }}
        {%- endif %}
        {% endgeneration %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- "<|im_start|>assistant\\n" ~ ("" if reasoning_mode == "/think" else "<think>\\n\\n</think>\\n") }}
{%- endif %}""",
    "Zephyr": """\
{% for message in messages %}
{% if message['role'] == 'user' %}
{{ '<|user|>\\n' + message['content'] + eos_token }}
{% elif message['role'] == 'system' %}
{{ '<|system|>\\n' + message['content'] + eos_token }}
{% elif message['role'] == 'assistant' %}
{{ '<|assistant|>\\n'  + message['content'] + eos_token }}
{% endif %}
{% if loop.last and add_generation_prompt %}
{{ '<|assistant|>' }}
{% endif %}
{% endfor %}""",
    "odd constructs": """\
{%- set ns = namespace(found=false, words=[]) -%}
{%- for key, value in dict(b=1, a='ü<&').items() | sort %}{{ key }}={{ value | tojson }};{% endfor -%}
{%- for m in messages if m.role != 'system' -%}
    {%- if loop.index > 3 %}{% break %}{% endif -%}
    {{- loop.cycle('odd', 'even') }} {{ loop.length }} {{ loop.revindex }} {{ loop.previtem.role if not loop.first }}
    {%- set ns.words = ns.words + m.content.split() %}
{%- else %}nobody{% endfor %}
{{ ns.words | map('upper') | join(', ') }} {{ ns.words | unique | list }} {{ messages | map(attribute='role') | list }}
{{ messages | groupby('role') | length }} {{ '%s/%d' % ('a', 3) }} {{ '{}-{:>4}'.format('x', 7) }} {{ 'a\\nb' | indent(2) }}
{{ messages | tojson(indent=2, sort_keys=true) }} {{ [1, (2, 3), {'k': none}] }} {{ undefined_thing | default('d') }}
{% macro twice(x, y='!') %}{{ x }}{{ x }}{{ y }}{{ caller() if caller }}{% endmacro %}{{ twice('a') }}{% call twice('b', y='?') %}in{% endcall %}
{% filter upper %}shout{% endfilter %} {% with a = 1, b = 2 %}{{ a + b }}{% endwith %} {{ 7 // 2 }} {{ 7 % 4 }} {{ 2 ** 5 }}
{% set block %}kept {{ bos_token }}{% endset %}{{ block | length }} {{ messages[-1].content[:2] }} {{ image_token }}
{# a comment #}{%- raw %}{{ raw }}{% endraw %} {{ namespace(a=1).a }} {{ range(3) | list }} {{ 'a' in 'abc' }} {{ not true }}
""",
}

Chat = list[dict[str, Any]]


def _turns(*contents: str, system: str | None = None) -> list[ChatMessage]:
    roles = ["user", "assistant"] * len(contents)
    turns = [ChatMessage(role, content) for role, content in zip(roles, contents, strict=False)]
    return [*([ChatMessage("system", system)] if system is not None else []), *turns]


CHATS = {
    "one": _turns("What is the capital of France?"),
    "system": _turns("Hi", system="Be brief. /no_think"),
    "turns": _turns(" Hello \n", "\nHi there\n", "And 東京 🙂?", "Tokyo <b>&", "Thanks"),
    "answered": _turns("Hello", "<think>\nhm\n</think>\n\nHi"),
    "thoughts": [*_turns("Hello"), ChatMessage("assistant", "Hi", reasoning="a greeting"), *_turns("Again")],
    "last thoughts": [*_turns("Hello"), ChatMessage("assistant", "Hi", reasoning="a greeting")],
    "wrong order": [ChatMessage("assistant", "Hi"), ChatMessage("assistant", "Hi"), ChatMessage("tool", "x")],
    "blank": _turns(""),
    "a call and its answer": [
        *_turns("How is it?"),
        ChatMessage("assistant", "", tool_calls=(ToolCall("abcdefghi", "weather", '{"city": "Zürich", "days": [1, 2]}'),)),
        ChatMessage("tool", "warm", tool_call_id="abcdefghi", name="weather"),
    ],
}
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "The weather in <a city> of Ünterland",
            "parameters": {
                "type": "object",
                "properties": {"city": {"type": "string"}, "days": {"type": "array", "items": {"type": "integer"}}},
                "required": ["city"],
            },
        },
    }
]


def _theirs(source: str, chat: list[ChatMessage], tools: Any = None, **switches: Any) -> str:
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({"<unk>": 0}, "<unk>")), **SPECIAL)
    page = [_page(message) for message in chat]
    text = tokenizer.apply_chat_template(page, chat_template=source, tokenize=False, tools=tools, **switches)
    assert isinstance(text, str)
    return text


def _page(message: ChatMessage) -> dict[str, Any]:
    page: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.reasoning is not None:
        page["reasoning_content"] = message.reasoning
    if message.tool_calls:
        page["tool_calls"] = [
            {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": json.loads(call.arguments)}} for call in message.tool_calls
        ]
    return page | {name: value for name in ("tool_call_id", "name") if (value := getattr(message, name))}


def _compare(source: str, chat: list[ChatMessage], tools: Any = None, **switches: Any) -> None:
    asked = {**switches, **({} if "thinking" not in switches else {"enable_thinking": switches["thinking"]})}
    expected, refusal = None, None
    try:
        expected = _theirs(source, chat, tools, **asked)
    except Exception as error:  # whatever transformers lets through: ours must refuse as well, with its words
        refusal = str(error)
    template = ChatTemplate(source, SPECIAL)
    if refusal is None:
        assert template.render(chat, tools=tools, **switches) == expected
    else:
        with pytest.raises(Refusal, match=re.escape(refusal)):
            template.render(chat, tools=tools, **switches)


@pytest.mark.parametrize("chat", sorted(CHATS))
@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_a_familys_template_renders_as_in_transformers(family: str, chat: str) -> None:
    for generation in (True, False):
        _compare(FAMILIES[family], CHATS[chat], add_generation_prompt=generation)


@pytest.mark.parametrize("thinking", [True, False])
@pytest.mark.parametrize("family", ["Qwen 3, thinking", "SmolLM3", "Granite"])
def test_the_switch_for_thinking_does_what_it_does_in_transformers(family: str, thinking: bool) -> None:
    for chat in CHATS.values():
        _compare(FAMILIES[family], chat, add_generation_prompt=True, thinking=thinking)


def test_the_switch_for_thinking_changes_what_it_should() -> None:
    template = ChatTemplate(FAMILIES["Qwen 3, thinking"], SPECIAL)
    assert template.render(CHATS["one"], thinking=False).endswith("<think>\n\n</think>\n\n")
    assert template.render(CHATS["one"], thinking=True).endswith("assistant\n")


@pytest.mark.parametrize("family", ["Llama 3.1, tools and date", "Qwen 3, thinking", "gpt-oss, macros"])
def test_tools_are_written_as_in_transformers(family: str) -> None:
    for chat in CHATS.values():
        _compare(FAMILIES[family], chat, tools=TOOLS, add_generation_prompt=True)


def test_todays_date_is_the_machines(monkeypatch: pytest.MonkeyPatch) -> None:
    class Fixed(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> datetime:
            return datetime(2031, 2, 3)

    monkeypatch.setattr(sandbox, "datetime", Fixed)
    text = ChatTemplate(FAMILIES["Llama 3.1, tools and date"], SPECIAL).render(CHATS["one"])
    assert "Today Date: 03 Feb 2031" in text


@given(
    st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=20), min_size=1, max_size=5),
    st.one_of(st.none(), st.text(max_size=10)), st.sampled_from(sorted(FAMILIES)), st.booleans(),
)  # fmt: skip
def test_any_contents_render_as_in_transformers(contents: list[str], system: str | None, family: str, generation: bool) -> None:
    _compare(FAMILIES[family], _turns(*contents, system=system), add_generation_prompt=generation)


def test_every_field_of_a_message_is_passed_on_or_has_no_place_in_a_template() -> None:
    known = {"role", "content", "reasoning", "tool_calls", "tool_call_id", "name"}
    assert {field.name for field in dataclasses.fields(ChatMessage)} == known
