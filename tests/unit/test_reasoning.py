"""Thoughts and answer apart, no part of a mark in either."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from potatod.front.reasoning import Marks, Reasoning, declared

MARKS = Marks("<think>", "</think>")


def _split(text: str, prompt: str = "", sizes: tuple[int, ...] = (), marks: Marks | None = MARKS) -> tuple[str, str]:
    reasoning, thoughts, answer, at = Reasoning(marks, prompt), "", "", 0
    for size in [*sizes, len(text)]:
        thought, said = reasoning.push(text[at : at + size])
        thoughts, answer, at = thoughts + thought, answer + said, at + size
    thought, said = reasoning.flush()
    return thoughts + thought, answer + said


@pytest.mark.parametrize(
    ("text", "thoughts", "answer"),
    [
        ("<think>\nso\nand so\n</think>\n\nYes.\n", "so\nand so", "Yes.\n"),
        ("\n <think>so</think>Yes", "so", "Yes"),
        ("<think>\n\n</think>\n\nYes", "", "Yes"),
        ("Yes, plainly", "", "Yes, plainly"),
        ("  Yes", "", "  Yes"),
        ("Yes <think>no</think>", "", "Yes <think>no</think>"),
        ("<think>a</think>b<think>c</think>", "a", "b<think>c</think>"),
        ("<think>never done </th", "never done </th", ""),
        ("<think>a < b and </thin> air</think>c", "a < b and </thin> air", "c"),
        ("<thi", "", "<thi"),
        ("", "", ""),
        ("<think>", "", ""),
        ("<think>a</think>\n", "a", ""),
    ],
)
@given(sizes=st.lists(st.integers(0, 5), max_size=40).map(tuple))
def test_thoughts_and_answer_come_apart_however_the_text_is_cut(text: str, thoughts: str, answer: str, sizes: tuple[int, ...]) -> None:
    assert _split(text, sizes=sizes) == (thoughts, answer)


@given(st.lists(st.integers(0, 5), max_size=20).map(tuple))
def test_where_the_prompt_opened_the_thoughts_the_answer_begins_inside_them(sizes: tuple[int, ...]) -> None:
    assert _split("so it is\n</think>\n\nYes", "…<|assistant|><think>\n", sizes) == ("so it is", "Yes")


def test_where_the_prompt_closed_the_thoughts_again_all_is_answer() -> None:
    assert _split("Yes", "…<|assistant|><think>\n\n</think>\n\n") == ("", "Yes")


def test_a_model_that_does_not_think_only_answers() -> None:
    assert _split("<think>a</think>b", marks=None) == ("", "<think>a</think>b")


@given(st.text("<>/think \n", max_size=60), st.lists(st.integers(0, 5), max_size=20).map(tuple))
def test_cutting_never_matters(text: str, sizes: tuple[int, ...]) -> None:
    assert _split(text, sizes=sizes) == _split(text)
    assert _split(text, "<think>", sizes) == _split(text, "<think>")


@given(st.text("<>/thinkab \n", max_size=60))
def test_a_thought_is_shown_as_soon_as_it_can_be_no_mark(text: str) -> None:
    reasoning, shown = Reasoning(MARKS, "<think>"), ""
    for at, character in enumerate(text):
        thought, answer = reasoning.push(character)
        shown += thought
        if answer or "</think>" in text[: at + 1]:
            return
        held = text[: at + 1].lstrip()[len(shown) :].lstrip()
        assert MARKS.closing.startswith(held)


@pytest.mark.parametrize(
    ("template", "tokens", "marks"),
    [
        ("{% if '</think>' in content %}", (), MARKS),
        ("plain", ("<think>", "</think>"), MARKS),
        ("[THINK]{{ x }}[/THINK]", (), Marks("[THINK]", "[/THINK]")),
        ("plain", ("<think>",), None),
        ("plain", (), None),
    ],
)
def test_template_and_tokenizer_declare_the_marks(template: str, tokens: tuple[str, ...], marks: Marks | None) -> None:
    assert declared(template, tokens) == marks
