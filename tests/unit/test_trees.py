"""Guesses as trees."""

from __future__ import annotations

import random

from guessing import branches_of, paths_of
from hypothesis import given
from hypothesis import strategies as st

from potatod.messages import Branch, Step
from potatod.trees import ROOT, Tree


def grown(paths: list[list[int]]) -> Tree:
    tree = Tree()
    for path in paths:
        tree.add_path(path, [0.5**depth for depth in range(len(path))], "test")
    return tree


def test_the_longest_path_is_the_trunk_and_others_branch_off_from_it_and_from_each_other() -> None:
    tree = grown([[1, 2], [1, 3, 4, 5], [1, 3, 6, 7], [1, 3, 6, 8], [9]])
    laid = tree.only(range(len(tree)))
    assert laid.trunk() == [1, 3, 4, 5]
    assert laid.branches() == (Branch(0, (2,)), Branch(1, (6, 7)), Branch(5, (8,)), Branch(ROOT, (9,)))
    assert [laid.run_of(node) for node in range(len(laid))] == [0, 0, 0, 0, 1, 2, 2, 3, 4]


def test_what_two_guess_alike_is_guessed_once_and_as_likely_as_the_likelier_says() -> None:
    tree = Tree()
    tree.add_path([1, 2], [0.9, 0.2], "lookup")
    other = Tree()
    other.add_path([1, 2, 3], [0.5, 0.4, 0.3], "draft")
    tree.merge(other)
    assert (tree.tokens, tree.parents, tree.chances) == ([1, 2, 3], [ROOT, 0, 1], [0.9, 0.4, 0.3])
    assert tree.sources == [{"lookup", "draft"}, {"lookup", "draft"}, {"draft"}]


def test_the_likeliest_nodes_are_a_tree_even_where_a_child_is_said_to_be_likelier_than_its_parent() -> None:
    tree = Tree()
    tree.add_path([1, 2], [0.1, 0.9], "test")
    tree.add_path([3], [0.5], "test")
    assert [tree.tokens[node] for node in tree.likeliest()] == [3, 1, 2]


@given(st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=7), max_size=8), st.integers(0, 99), st.integers(0, 40))
def test_in_a_step_every_node_stands_behind_its_own_path(paths: list[list[int]], seed: int, count: int) -> None:
    tree = grown(paths)
    for node in range(len(tree)):
        tree.chances[node] = random.Random(seed + node).random()
    laid = tree.only(tree.likeliest()[:count])
    assert len(laid) == min(count, len(tree))
    trunk = laid.trunk()
    step = Step(1, 9, (7, *trunk), 10, "argmax", len(trunk), laid.branches())
    assert step.rows == 1 + len(laid) and step.wanted == 1 + len(laid)
    assert [laid.path(node) for node in range(len(laid))] == paths_of(step)[1:]
    assert all(len(branch) <= len(trunk) for branch in branches_of(step))
    again = Tree.of(step)
    assert (again.tokens, again.parents) == (laid.tokens, laid.parents)
    for node in range(len(laid)):
        assert laid.node(laid.path(node)) == node and laid.child(laid.parents[node], laid.tokens[node]) == node
        assert laid.depth(node) == len(laid.path(node))
