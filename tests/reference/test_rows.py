"""What the watch over rows looks at, and when it need not look any more."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch.nn import functional
from torch.overrides import _get_current_function_mode

from potatod.worker import cpu
from potatod.worker.rows import BY_FIXED, GroupedRows, Grouping, Watch, find_groupings

WEIGHT = torch.randn(128, 64, generator=torch.Generator().manual_seed(0))
ROW = torch.randn(1, 64, generator=torch.Generator().manual_seed(1))


def sweep(watch: Watch, rows: torch.Tensor = ROW, wanted: int = 1, function: Callable[..., torch.Tensor] | None = None) -> tuple[torch.Tensor, bool]:
    """What a sweep computes, and whether it was watched."""
    with watch.around(len(rows), wanted):
        watched = _get_current_function_mode() is not None
        return (function or functional.linear)(rows, WEIGHT), watched


def watching(rows: int) -> Watch:
    return Watch({(128, 64): Grouping(rows, fixed=False)})


def test_a_sweep_of_one_token_that_needed_no_grouping_is_watched_once():
    watch = watching(1)
    first, watched = sweep(watch)
    again, watched_again = sweep(watch)
    assert (watched, watched_again) == (True, False)
    assert torch.equal(first, again)


def test_where_a_row_needs_others_beside_it_every_sweep_is_watched():
    watch = watching(2)
    pair = functional.linear(torch.cat([ROW, torch.zeros_like(ROW)]), WEIGHT)[:1]
    for _ in range(3):
        out, watched = sweep(watch)
        assert watched and torch.equal(out, pair)


def test_a_product_of_an_unknown_weight_is_watched_every_time():
    watch = Watch({})
    group = functional.linear(torch.cat([ROW, ROW.new_zeros(BY_FIXED.rows - 1, 64)]), WEIGHT)[:1]
    for _ in range(2):
        out, watched = sweep(watch)
        assert watched and torch.equal(out, group)


@pytest.mark.parametrize("width", [63, 70])
def test_a_function_with_a_remainder_is_watched_every_time(width):
    watch = watching(1)
    rows = torch.linspace(-3, 3, width).view(1, width)
    assert [sweep(watch, rows, function=lambda x, _: torch.sigmoid(x))[1] for _ in range(3)] == [True, True, True]


def test_sweeps_of_several_tokens_are_watched_whatever_came_before():
    watch = watching(1)
    assert [sweep(watch, ROW.expand(rows, 64))[1] for rows in (1, 1, 2, 2, 3, 1)] == [True, False, True, True, True, False]


def test_what_gave_no_logits_says_nothing_of_one_that_does():
    watch = watching(1)
    assert [sweep(watch, wanted=wanted)[1] for wanted in (0, 0, 1, 1, 0)] == [True, False, True, False, False]


def test_a_sweep_that_ended_in_the_middle_says_nothing():
    watch = watching(1)
    with pytest.raises(ZeroDivisionError), watch.around(1, 1):
        1 / 0  # noqa: B018
    assert sweep(watch)[1]
    assert _get_current_function_mode() is None


@pytest.mark.skipif(not cpu.multiplies(torch.bfloat16), reason="elsewhere a product of so many rows in bf16 takes minutes")
def test_of_large_weights_as_many_rows_are_tried_as_a_sweep_may_have():
    """There is another kernel for 35 rows than for 32."""
    shape = (1536, 8960)
    generator = torch.Generator().manual_seed(4)
    weight = (torch.randn(shape, generator=generator) / 90).bfloat16()
    rows = torch.randn(150, shape[1], generator=generator).bfloat16()
    table = find_groupings([shape], torch.bfloat16, torch.device("cpu"))

    def product(some: torch.Tensor) -> torch.Tensor:
        with GroupedRows(table):
            return functional.linear(some, weight)

    alone = torch.cat([product(row[None]) for row in rows])
    for count in (2, 17, 33, 37, 45, 77, 150):
        assert torch.equal(product(rows[:count]), alone[:count])
