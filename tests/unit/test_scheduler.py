"""The scheduler: which tokens go into the next sweep."""

from __future__ import annotations

import pytest
from schedulers import drops, scheduler

from potatod.front.cost import CostModel
from potatod.front.queue import MOST_PASSED, QueueFull
from potatod.front.scheduler import GOOD_SWEEPS, LEAST_CHUNK, WORTH_WAITING, Scheduler
from potatod.front.sequence import Sequence
from potatod.kv_layout import BLOCK
from potatod.messages import Drafted, Fork, Row, Step, Sweep
from potatod.trees import Tree


def prefilled(s: Scheduler, token: int = 7) -> None:
    """Sweeps until every running sequence has been given a token."""
    for _ in range(100):
        sweep = composed(s)
        for id, _ in s.completed(sweep.number, rows_of(sweep, token)):
            s.append(id, token)
        if all(step.want != "nothing" for step in sweep.steps):
            return
    raise AssertionError("prefill does not end")


def rows_of(sweep: Sweep, token: int = 7) -> list[Row]:
    return [Row(step.sequence, token=token) for step in sweep.steps if step.want != "nothing"]


def composed(s: Scheduler, epoch: int = 1) -> Sweep:
    sweep = s.compose(epoch)
    assert sweep is not None
    return sweep


def test_the_first_token_is_wanted_by_the_sweep_that_finishes_the_prefill() -> None:
    s = scheduler(chunk=4)
    s.add(Sequence(1, [10, 11, 12, 13, 14, 15]))
    first = composed(s)
    assert first.steps == (Step(1, 0, (10, 11, 12, 13), 6, "nothing"),)
    assert s.completed(first.number, rows_of(first)) == []
    second = composed(s)
    assert second.steps == (Step(1, 4, (14, 15), 6, "argmax"),)
    assert s.completed(second.number, rows_of(second)) == [(1, [Row(1, token=7)])]
    s.append(1, 7)
    assert composed(s).steps == (Step(1, 6, (7,), 7, "argmax"),)


def test_logits_are_wanted_only_where_sampling_needs_them() -> None:
    s = scheduler()
    s.add(Sequence(1, [5], needs_logits=True))
    s.add(Sequence(2, [6]))
    assert [step.want for step in composed(s).steps] == ["logits", "argmax"]


def test_decode_steps_ride_along_with_prefill_chunks_and_prefill_tokens_per_sweep_are_bounded() -> None:
    s = scheduler(running=4, chunk=4)
    s.add(Sequence(1, [1]))
    s.add(Sequence(2, [1, 2, 3]))
    s.add(Sequence(3, [1, 2, 3]))
    s.add(Sequence(4, [1, 2, 3]))
    steps = composed(s).steps
    assert [(step.sequence, len(step.tokens)) for step in steps] == [(1, 1), (2, 3), (3, 1)]


def test_only_one_sweep_is_under_way() -> None:
    s = scheduler()
    s.add(Sequence(1, [1]))
    composed(s)
    assert s.compose(1) is None


def test_nothing_to_compute_makes_no_sweep() -> None:
    assert scheduler().compose(1) is None


def test_the_queue_is_first_in_first_out_and_bounded() -> None:
    s = scheduler(running=1, queue=2)
    assert [s.add(Sequence(i, [i])) for i in (1, 2, 3)] == [0, 1, 2]
    with pytest.raises(QueueFull):
        s.add(Sequence(4, [4]))
    s.remove(1)
    assert composed(s).steps[0].sequence == 2
    assert (s.running, s.waiting) == ((2,), (3,))


def test_a_sequence_removed_while_it_waits_is_never_dropped_at_the_worker() -> None:
    s = scheduler(running=1)
    s.add(Sequence(1, [1]))
    s.add(Sequence(2, [2]))
    s.remove(2)
    assert (drops(s), s.waiting) == ([], ())


def test_a_sequence_that_fails_during_a_sweep_is_dropped_once_and_its_row_ignored() -> None:
    s = scheduler()
    s.add(Sequence(1, [1]))
    s.add(Sequence(2, [2]))
    sweep = composed(s)
    s.remove(1, keep=False)
    assert drops(s) == []
    assert s.completed(sweep.number, rows_of(sweep)) == [(2, [Row(2, token=7)])]
    assert drops(s) == [1]
    assert drops(s) == []


def test_rows_of_another_sweep_change_nothing() -> None:
    s = scheduler()
    s.add(Sequence(1, [1]))
    sweep = composed(s)
    assert s.completed(sweep.number + 1, rows_of(sweep)) == []
    assert s.in_flight is sweep


def test_after_a_restart_prompt_and_answer_are_prefilled_again_from_their_first_token() -> None:
    s = scheduler(chunk=8)
    s.add(Sequence(1, [1, 2]))
    sweep = composed(s)
    s.completed(sweep.number, rows_of(sweep, token=3))
    s.append(1, 3)
    lost = composed(s)
    s.restarted()
    assert s.completed(lost.number, rows_of(lost)) == [], "what the dead engine said is dropped"
    again = composed(s, epoch=2)
    assert again.epoch == 2
    assert again.number > lost.number
    assert again.steps == (Step(1, 0, (1, 2, 3), 3, "argmax"),)


def test_a_restart_forgets_what_the_dead_engine_should_have_dropped() -> None:
    s = scheduler()
    s.add(Sequence(1, [1]))
    composed(s)
    s.remove(1, keep=False)
    s.restarted()
    assert s.orders() == ()


def test_sweeps_to_go_counts_the_prefill_that_stands_before() -> None:
    s = scheduler(running=3, chunk=4)
    s.add(Sequence(1, list(range(8))))
    s.add(Sequence(2, list(range(3))))
    assert [s.sweeps_to_go(1), s.sweeps_to_go(2)] == [2, 3]


def test_a_sequence_that_outgrows_the_border_of_its_rope_is_computed_anew_once() -> None:
    s = scheduler(chunk=8, border=3)
    s.add(Sequence(1, [1, 2]))
    steps = []
    for token in (3, 4, 5):
        sweep = composed(s)
        steps.append(sweep.steps[0])
        s.completed(sweep.number, rows_of(sweep, token))
        s.append(1, token)
        assert drops(s) == ([1] if token == 4 else [])
    steps.append(composed(s).steps[0])
    assert [(step.start, step.tokens, step.known) for step in steps] == [(0, (1, 2), 2), (2, (3,), 3), (0, (1, 2, 3, 4), 4), (4, (5,), 5)]


def test_a_sweep_that_was_too_much_for_the_card_is_computed_anew_in_pieces_half_as_large() -> None:
    s = scheduler(running=2, chunk=64)
    s.add(Sequence(1, list(range(100))))
    assert s.exhausted(composed(s).number) is None
    assert [(step.start, len(step.tokens)) for step in composed(s).steps] == [(0, 32)]


def test_where_pieces_cannot_be_smaller_the_youngest_sequence_is_to_go() -> None:
    s = scheduler(running=2, chunk=17)
    s.add(Sequence(1, [1]))
    s.add(Sequence(2, list(range(40))))
    assert s.exhausted(composed(s).number) is None
    assert s.exhausted(composed(s).number) == 2
    s.remove(2)
    assert [(step.sequence, step.start) for step in composed(s).steps] == [(1, 0)]


def test_what_a_dead_engine_says_of_its_memory_changes_nothing() -> None:
    s = scheduler(chunk=64)
    s.add(Sequence(1, list(range(100))))
    sweep = composed(s)
    assert s.exhausted(sweep.number + 1) is None
    assert s.in_flight is sweep


def test_where_a_sweep_had_no_prompt_in_it_the_youngest_goes_at_once_and_pieces_stay_as_they_are() -> None:
    s = scheduler(running=2, chunk=64)
    for number in (1, 2):
        s.add(Sequence(number, [1]))
    assert s.exhausted(composed(s).number) == 2
    s.remove(2)
    s.add(Sequence(3, list(range(100))))
    assert [len(step.tokens) for step in composed(s).steps] == [1, 64]


def test_pieces_become_as_large_as_planned_again_after_many_good_sweeps_and_with_a_new_engine() -> None:
    s = scheduler(running=1, queue=200, chunk=64)
    s.add(Sequence(1, list(range(100))))
    assert s.exhausted(composed(s).number) is None
    sizes = []
    for number in range(2, 2 * GOOD_SWEEPS):
        sweep = composed(s)
        sizes.append(len(sweep.steps[0].tokens))
        s.completed(sweep.number, [])
        s.remove(sweep.steps[0].sequence)
        s.add(Sequence(number, [number] * 100))
    assert sizes[:3] == [32, 32, 32] and sizes[-1] == 64
    assert s.exhausted(composed(s).number) is None
    s.restarted()
    assert len(composed(s).steps[0].tokens) == 64


def test_a_prompt_that_may_not_be_cut_is_refused_instead() -> None:
    s = scheduler(running=1, queue=1, chunk=200, may_cut=False)
    s.add(Sequence(1, list(range(100))))
    assert s.exhausted(composed(s).number) == 1


# who goes first


def test_interactive_answers_go_before_batches_in_the_queue_and_in_a_sweep() -> None:
    s = scheduler(running=2, queue=4, chunk=3)
    for id, rank in ((1, 1), (2, 1), (3, 1), (4, 0)):
        s.add(Sequence(id, [id] * 3, rank=rank))
    assert s.running == (4, 1), "the youngest of the batch made place"
    assert s.waiting == (2, 3)
    assert [(step.sequence, len(step.tokens)) for step in composed(s).steps] == [(4, 3)]


def test_nobody_of_the_same_rank_makes_place() -> None:
    s = scheduler(running=1)
    s.add(Sequence(1, [1], rank=1))
    s.add(Sequence(2, [2], rank=1))
    assert (s.running, s.waiting) == ((1,), (2,))


def test_who_takes_part_in_the_sweep_under_way_makes_place_when_it_is_over() -> None:
    s = scheduler(running=1)
    s.add(Sequence(1, [1], rank=1))
    sweep = composed(s)
    s.add(Sequence(2, [2]))
    assert (s.running, s.waiting) == ((1,), (2,))
    s.completed(sweep.number, rows_of(sweep))
    s.append(1, 7)
    assert [step.sequence for step in composed(s).steps] == [2]
    assert s.waiting == (1,)


# what is free


def test_prompts_take_what_is_free_beside_those_that_decode_and_all_where_nobody_does() -> None:
    costs = CostModel(lambda tokens: 0.01 * tokens, 1.0)  # 95 tokens hide behind a second of streaming
    s = scheduler(running=2, chunk=512, costs=costs, share=0.0)
    s.add(Sequence(1, list(range(512))))
    assert [len(step.tokens) for step in composed(s).steps] == [512]
    s.completed(1, [Row(1, token=7)])
    s.append(1, 7)
    s.add(Sequence(2, list(range(1000, 2000))))
    assert [(step.sequence, len(step.tokens)) for step in composed(s).steps] == [(1, 1), (2, 99)]


def test_a_prompt_makes_who_decodes_wait_longer_by_the_configured_share_and_comes_on_by_some_tokens_all_the_same() -> None:
    costs = CostModel(lambda tokens: 0.1 + 0.01 * tokens, 0.0)  # everything is resident
    for share, tokens in ((1.0, 16), (3.0, 32)):
        s = scheduler(running=2, chunk=512, costs=costs, share=share)
        s.add(Sequence(1, [1]))
        prefilled(s)
        s.add(Sequence(2, list(range(1000, 2000))))
        assert [(step.sequence, len(step.tokens)) for step in composed(s).steps] == [(1, 1), (2, tokens)]


# beginning alike


def test_the_next_turn_of_a_chat_computes_its_new_tokens_only() -> None:
    s = scheduler(chunk=512)
    s.add(Sequence(1, list(range(200))))
    prefilled(s)
    prefilled(s)
    s.remove(1)
    s.add(Sequence(2, [*range(200), 7, 7, 50, 51]))
    sweep = composed(s)
    assert sweep.steps == (Step(2, 201, (7, 50, 51), 204, "argmax"),), "the last token sampled was never fed"
    assert s.orders() == (Fork(2, 1, 201),)


def test_the_same_prompt_once_more_computes_its_last_token() -> None:
    s = scheduler(chunk=512)
    s.add(Sequence(1, list(range(200))))
    prefilled(s)
    s.add(Sequence(2, list(range(200))))
    assert Step(2, 199, (199,), 200, "argmax") in composed(s).steps


def test_several_answers_to_one_prompt_wait_for_the_first_to_be_prefilled() -> None:
    s = scheduler(running=4, chunk=512)
    for id in (1, 2, 3):
        s.add(Sequence(id, list(range(100))))
    first = composed(s)
    assert [step.sequence for step in first.steps] == [1]
    s.completed(first.number, rows_of(first))
    s.append(1, 7)
    assert [(step.sequence, step.start, len(step.tokens)) for step in composed(s).steps] == [(1, 100, 1), (2, 99, 1), (3, 99, 1)]
    assert s.orders() == (Fork(2, 1, 99), Fork(3, 1, 99))


def test_a_short_beginning_is_not_waited_for() -> None:
    s = scheduler(running=2, chunk=512)
    shared = [5] * (WORTH_WAITING - 1)
    s.add(Sequence(1, [*shared, 1]))
    s.add(Sequence(2, [*shared, 2]))
    assert [step.sequence for step in composed(s).steps] == [1, 2]


def test_the_least_recently_used_text_makes_room_for_a_new_one() -> None:
    s = scheduler(running=1, chunk=512, kv=3 * BLOCK)
    for id in (1, 2, 3):
        s.add(Sequence(id, [id] * 100))
        prefilled(s)
        s.remove(id)
    s.add(Sequence(4, [1] * 99 + [4]))
    prefilled(s)
    s.remove(4)
    s.orders()
    s.add(Sequence(5, [5] * 100))
    composed(s)
    assert drops(s) == [3], "the second made room for what the fourth copied of the first"


def test_where_no_kv_is_left_the_youngest_is_set_aside_and_goes_on_with_the_same_tokens() -> None:
    s = scheduler(running=2, chunk=512, kv=4 * BLOCK)
    s.add(Sequence(1, list(range(BLOCK - 1))))
    s.add(Sequence(2, list(range(1000, 1000 + BLOCK - 1))))
    answers: dict[int, list[int]] = {1: [], 2: []}
    for number in range(1, 2 * BLOCK + 2):
        sweep = composed(s)
        for id, _ in s.completed(sweep.number, rows_of(sweep)):
            answers[id].append(number)
            s.append(id, number)
    assert s.waiting == (2,) and s.reuse.set_aside == 1
    s.remove(1)
    seen = composed(s).steps[0]
    assert (seen.sequence, seen.start + len(seen.tokens)) == (2, BLOCK - 1 + len(answers[2]))


def test_one_text_takes_the_whole_budget_where_it_must() -> None:
    s = scheduler(running=2, chunk=64, kv=2 * BLOCK)
    s.add(Sequence(1, [1] * 5))
    s.add(Sequence(2, list(range(2 * BLOCK - 1))))
    assert s.running == (1,)
    prefilled(s)
    s.remove(1)
    prefilled(s)
    assert s.running == (2,) and drops(s) == [1]


def fed(s: Scheduler, sweeps: int) -> None:
    for _ in range(sweeps):
        sweep = composed(s)
        for id, _ in s.completed(sweep.number, rows_of(sweep)):
            s.append(id, 7)


def test_a_text_for_which_there_is_no_room_beside_those_that_run_sets_nobody_aside() -> None:
    """Interactive ones of 20 and of 24 blocks, and four of a batch that fit beside the first."""
    s = scheduler(running=8, queue=8, chunk=512, kv=40 * BLOCK)
    s.add(Sequence(1, [1] * 20 * BLOCK))
    for id in (2, 3, 4, 5):
        s.add(Sequence(id, [id] * BLOCK, rank=1))
    fed(s, 8)
    s.add(Sequence(6, [6] * 24 * BLOCK))
    fed(s, 8)
    assert s.running == (1, 2, 3, 4, 5) and s.waiting == (6,)
    s.remove(1)
    fed(s, 1)
    assert s.running[0] == 6, "it goes first when there is room"


def test_who_fits_passes_who_does_not_but_not_for_ever() -> None:
    s = scheduler(running=2, queue=8, chunk=512, kv=20 * BLOCK)
    s.add(Sequence(1, [1] * 10 * BLOCK))
    s.add(Sequence(2, [2] * 15 * BLOCK))
    passed = 0
    for id in range(3, 3 + MOST_PASSED + 5):
        s.add(Sequence(id, [id]))
        if id not in s.running:
            break
        passed += 1
        fed(s, 1)
        s.remove(id)
    assert passed == MOST_PASSED


def test_what_is_kept_takes_room_when_a_text_goes_on_from_it() -> None:
    """One of 16 blocks is kept, one of 20 runs, and one that begins like the kept one has 21: both do not fit, and neither is set aside in vain."""
    s = scheduler(running=4, queue=4, chunk=512, kv=40 * BLOCK)
    s.add(Sequence(1, [1] * 16 * BLOCK))
    fed(s, 5)
    s.remove(1)
    s.add(Sequence(2, [2] * 20 * BLOCK))
    fed(s, 5)
    s.add(Sequence(3, [1] * 16 * BLOCK + [3] * 5 * BLOCK))
    fed(s, 20)
    assert s.running == (2,) and s.reuse.set_aside == 0


def test_a_card_s_memory_is_found_in_kept_texts_and_guesses_before_an_answer_fails() -> None:
    class Sure:
        def draft(self, texts: list[tuple[int, list[int], int]], most: int, sweep_s: object) -> dict[int, Tree]:
            tree = Tree()
            tree.add_path([9, 9], [1.0, 1.0], "sure")
            return {id: tree for id, _, _ in texts}

        def ask(self, epoch: int, texts: object, nodes: int, sweep_s: float) -> None:
            pass

        def told(self, drafted: Drafted) -> None:
            pass

        def verified(self, id: int, guesses: Tree, accepted: list[int]) -> dict[str, tuple[int, int]]:
            return {}

        def forget(self, id: int) -> None:
            pass

        def said(self, tokens: list[int]) -> None:
            pass

    s = scheduler(running=2, chunk=LEAST_CHUNK, drafter=Sure())
    s.add(Sequence(1, [1] * 5))
    fed(s, 1)
    s.remove(1)
    s.add(Sequence(2, [2]))
    fed(s, 1)
    assert s.exhausted(composed(s).number) is None and s.ledger.kept == 0
    fed(s, 1)
    guessed = composed(s)
    assert guessed.steps[0].drafted == 2
    assert s.exhausted(guessed.number) is None
    fed(s, 1)
    plain = composed(s)
    assert plain.steps[0].drafted == 0
    assert s.exhausted(plain.number) == 2


def test_tokens_that_were_there_already_are_counted_once() -> None:
    s = scheduler(running=3, chunk=64)
    for id in (1, 2, 3):
        s.add(Sequence(id, [id] * 100))
    fed(s, 6)
    s.restarted()
    fed(s, 6)
    assert (s.reuse.prompt_tokens, s.reuse.reused_tokens) == (300, 0)
