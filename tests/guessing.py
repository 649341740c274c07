"""What a step's guesses are, read from the message alone."""

from __future__ import annotations

from potatod.messages import Step


def paths_of(step: Step) -> list[list[int]]:
    """For each row that is returned: the guesses that it stands behind, itself the last of them."""
    guesses = list(step.tokens[len(step.tokens) - step.drafted :])
    paths = [guesses[:end] for end in range(len(guesses) + 1)]
    for branch in step.branches:
        before = paths[branch.after + 1]
        paths += [[*before, *branch.tokens[:end]] for end in range(1, len(branch.tokens) + 1)]
    return paths


def branches_of(step: Step) -> list[list[int]]:
    """Of each branch: all guesses up to its end."""
    paths, ends, end = paths_of(step), [], step.drafted
    for branch in step.branches:
        end += len(branch.tokens)
        ends.append(paths[end])
    return ends
