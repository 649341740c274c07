"""Passes that go through the layers together."""

from __future__ import annotations

import pytest

from potatod.errors import InternalError
from potatod.worker.lockstep import Lockstep


class Passes:
    """``n`` passes over ``layers`` layers, and what happened in which order."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.lockstep = Lockstep(lambda: self.said.append("step"))

    def one(self, name: str, layers: int):
        def run() -> str:
            for layer in range(layers):
                self.lockstep.arrive()
                self.said.append(f"{name}{layer}")
            return name

        return run


def test_no_pass_enters_a_layer_before_all_have_left_the_last_one():
    passes = Passes()
    assert passes.lockstep.run([passes.one(name, 2) for name in "abc"]) == ["a", "b", "c"]
    assert passes.said == ["step", "a0", "b0", "c0", "step", "a1", "b1", "c1"]


def test_a_single_pass_takes_the_steps_itself():
    passes = Passes()
    assert passes.lockstep.run([passes.one("a", 2)]) == ["a"]
    assert passes.said == ["step", "a0", "step", "a1"]


def test_hundreds_of_passes_do_not_pile_up_on_one_stack():
    passes = Passes()

    def deep(depth: int = 20):
        if depth:
            return deep(depth - 1)
        passes.lockstep.arrive()
        return depth

    assert passes.lockstep.run([deep] * 500) == [0] * 500


def test_a_pass_that_raises_ends_the_others_and_the_next_run_is_whole():
    passes = Passes()
    left = []

    def waiting() -> None:
        try:
            passes.lockstep.arrive()
        finally:
            left.append(True)

    def failing() -> None:
        raise ValueError("mine")

    with pytest.raises(ValueError, match="mine"):
        passes.lockstep.run([waiting, failing])
    assert left == [True]
    assert passes.lockstep.run([passes.one(name, 1) for name in "ab"]) == ["a", "b"]


def test_passes_of_different_lengths_are_an_internal_error():
    passes = Passes()
    with pytest.raises(InternalError, match="did not all arrive"):
        passes.lockstep.run([passes.one("a", 1), passes.one("b", 2)])
