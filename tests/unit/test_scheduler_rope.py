"""A text that grows over the border of its rope is computed anew from its first token."""

from __future__ import annotations

from schedulers import drops
from schedulers import scheduler as new

from potatod.front.scheduler import Scheduler
from potatod.front.sequence import Sequence
from potatod.messages import Row, Step


def advance(scheduler: Scheduler, token: int) -> tuple[Step, ...]:
    sweep = scheduler.compose(1)
    assert sweep is not None
    rows = scheduler.completed(sweep.number, [Row(s.sequence, token=token) for s in sweep.steps if s.want != "nothing"])
    for sequence, _ in rows:
        scheduler.append(sequence, token)
    return sweep.steps


def test_the_kv_is_dropped_once_and_made_anew_with_the_whole_text_known():
    scheduler = new(running=2, queue=0, chunk=8, border=4)
    scheduler.add(Sequence(1, [10, 11, 12]))
    assert advance(scheduler, 13) == (Step(1, 0, (10, 11, 12), 3, "argmax"),)
    assert drops(scheduler) == []
    assert advance(scheduler, 14) == (Step(1, 3, (13,), 4, "argmax"),)
    assert drops(scheduler) == [1]
    assert advance(scheduler, 15) == (Step(1, 0, (10, 11, 12, 13, 14), 5, "argmax"),)
    assert drops(scheduler) == []
    assert advance(scheduler, 16) == (Step(1, 5, (15,), 6, "argmax"),)


def test_a_prompt_over_the_border_says_so_from_its_first_piece_on():
    scheduler = new(running=1, queue=0, chunk=2, border=4)
    scheduler.add(Sequence(1, [10, 11, 12, 13, 14]))
    assert [advance(scheduler, 9)[0].known for _ in range(3)] == [5, 5, 5]
    assert drops(scheduler) == []


def test_a_sequence_that_ends_while_its_kv_is_to_be_made_anew_is_dropped_once():
    scheduler = new(running=1, queue=0, chunk=8, border=2)
    scheduler.add(Sequence(1, [10, 11]))
    advance(scheduler, 12)
    scheduler.remove(1)
    assert drops(scheduler) == [1]
    assert scheduler.compose(1) is None
