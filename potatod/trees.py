"""Guessed tokens as a tree behind a text: which may follow, and which after those. Pure; whoever guesses grows it, and the front verifies it.

    … the cat ─┬─ sat ─┬─ on ── the        a sweep computes all nodes at once; the target's own token is sampled behind the text,
               │       └─ down             and as long as it is a child of where it was sampled, the next one is there already
               └─ is ─── a

A node's chance is that of its whole path: of being sampled, and all before it.

In a sweep the longest path is the *trunk*: it follows the text as if its tokens were known. What is left are *branches*, each a run of nodes
that follows some node of the trunk or of an earlier branch; its keys and values lie apart until it is known to be right (worker/kv.py).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

from .messages import Branch, Step

#: Where a tree's first nodes follow: the text itself.
ROOT: Final = -1


@dataclass(slots=True)
class Tree:
    """Nodes by number; a parent's is smaller than its children's."""

    tokens: list[int] = field(default_factory=list)
    parents: list[int] = field(default_factory=list)
    chances: list[float] = field(default_factory=list)
    #: who guessed each of them
    sources: list[frozenset[str]] = field(default_factory=list)
    _children: dict[tuple[int, int], int] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.tokens)

    def child(self, node: int, token: int) -> int | None:
        return self._children.get((node, token))

    def node(self, path: Sequence[int]) -> int | None:
        """The last one of these, behind the text."""
        node = ROOT
        for token in path:
            following = self.child(node, token)
            if following is None:
                return None
            node = following
        return node

    def add(self, parent: int, token: int, chance: float, *sources: str) -> int:
        """The node's number. One that is there already is as likely as the likelier source says."""
        node = self._children.get((parent, token))
        if node is not None:
            self.chances[node] = max(self.chances[node], chance)
            self.sources[node] |= frozenset(sources)
            return node
        node = self._children[parent, token] = len(self.tokens)
        self.tokens.append(token)
        self.parents.append(parent)
        self.chances.append(chance)
        self.sources.append(frozenset(sources))
        return node

    def add_path(self, tokens: Sequence[int], chances: Sequence[float], source: str) -> None:
        """A chain behind the text."""
        node = ROOT
        for token, chance in zip(tokens, chances, strict=True):
            node = self.add(node, token, chance, source)

    def merge(self, other: Tree) -> None:
        numbers = {ROOT: ROOT}
        for node, (token, parent, chance, sources) in enumerate(zip(other.tokens, other.parents, other.chances, other.sources, strict=True)):
            numbers[node] = self.add(numbers[parent], token, chance, *sources)

    def depth(self, node: int) -> int:
        """Tokens from the text to it; 0 of the text itself."""
        depth = 0
        while node != ROOT:
            node, depth = self.parents[node], depth + 1
        return depth

    def path(self, node: int) -> list[int]:
        """Tokens from the text to it."""
        path = []
        while node != ROOT:
            path.append(self.tokens[node])
            node = self.parents[node]
        return path[::-1]

    def likeliest(self) -> list[int]:
        """All nodes, the likeliest first, and none before its parent."""
        bounded = list(self.chances)
        for node, parent in enumerate(self.parents):
            if parent != ROOT:
                bounded[node] = min(bounded[node], bounded[parent])
        return sorted(range(len(self)), key=lambda node: (-bounded[node], node))

    def only(self, nodes: Sequence[int]) -> Tree:
        """Of these nodes, each with its parent, in the order in which a sweep has them: runs() one after the other."""
        numbers, out = {ROOT: ROOT}, Tree()
        for run in self._runs(set(nodes)):
            for node in run:
                numbers[node] = out.add(numbers[self.parents[node]], self.tokens[node], self.chances[node], *self.sources[node])
        return out

    def _runs(self, kept: set[int]) -> Iterator[list[int]]:
        """Paths: the longest first, then of what is left the one that begins nearest to the text, each as long as it can be."""
        below = dict.fromkeys(kept, 1)  # nodes on the longest path down from it, itself included
        longest: dict[int, int] = {}
        for node in sorted(kept, reverse=True):
            parent = self.parents[node]
            if below[node] >= below.get(longest.get(parent, -2), 0):  # of equally long ones the first that was guessed
                longest[parent] = node
                if parent != ROOT:
                    below[parent] = below[node] + 1
        left = sorted(kept)
        done: set[int] = set()
        first = longest.get(ROOT)
        for node in ([] if first is None else [first]) + left:
            if node in done:
                continue
            run = [node]
            while (following := longest.get(run[-1])) is not None:
                run.append(following)
            done |= set(run)
            yield run

    # a sweep's order

    def runs(self) -> list[tuple[int, int]]:
        """Of a tree in a sweep's order: (first node, end) of the trunk and of each branch."""
        firsts = [node for node, parent in enumerate(self.parents) if node == 0 or parent != node - 1]
        return list(itertools.pairwise([*firsts, len(self)]))

    def run_of(self, node: int) -> int:
        """Which of the runs a node lies in; the trunk where it is the text itself."""
        return max(0, sum(first <= node for first, _ in self.runs()) - 1)

    def trunk(self) -> list[int]:
        """Tokens that follow the text one after the other."""
        return self.tokens[: self.runs()[0][1]] if self.tokens else []

    def branches(self) -> tuple[Branch, ...]:
        return tuple(Branch(self.parents[first], tuple(self.tokens[first:end])) for first, end in self.runs()[1:])

    @classmethod
    def of(cls, step: Step) -> Tree:
        """What a step guesses, in its order."""
        tree = cls()
        node = ROOT
        for token in step.tokens[len(step.tokens) - step.drafted :]:
            node = tree.add(node, token, 0.0)
        for branch in step.branches:
            node = branch.after
            for token in branch.tokens:
                node = tree.add(node, token, 0.0)
        return tree
