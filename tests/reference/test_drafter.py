"""The draft model: what it guesses is what it would say, whatever it read, guessed and forked before."""

from __future__ import annotations

import random
import weakref
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from engine import Engine
from families import by_name

from potatod.messages import Draft, Drafted, DraftText, Drawn
from potatod.spans import Spans
from potatod.worker.arithmetic import PLAIN
from potatod.worker.attention import PackedAttention
from potatod.worker.draft_model import DraftModel
from potatod.worker.draft_texts import Looked
from potatod.worker.drafter import Drafter

PROMPT = [5, 17, 42, 8, 99, 23, 61, 7, 30, 12, 77, 54, 3, 18, 66] * 8
VOCABULARY = 320
GREEDY = Drawn()
SAMPLED = Drawn(temperature=0.8, seed=7)


@pytest.fixture(scope="module", params=["Llama 3", "Gemma 3"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from .conftest import make_tiny

    return make_tiny(by_name(request.param), torch.float32, tmp_path_factory.mktemp("draft")).folder


@pytest.fixture
def attention() -> PackedAttention:
    """One for a process: the one that was registered last is called."""
    return PackedAttention()


@pytest.fixture
def drafter(folder: Path, attention: PackedAttention) -> Callable[[], Drafter]:
    return lambda: Drafter(folder, {"arithmetic": PLAIN.to_json()}, VOCABULARY, torch.device("cpu"), attention, Spans())


def asked(of: Drafter, *texts: DraftText, reads: int = 1 << 20, number: int = 1, spare_s: float = 0.0, sweep_s: float = 1e6) -> Drafted:
    return of.draft(Draft(1, number, texts, 24, reads, sweep_s, spare_s), lambda: None)


def text(tokens: list[int], drawn: Drawn = GREEDY, sequence: int = 1, most: int = 8, room: int = 99) -> DraftText:
    return DraftText(sequence, tuple(tokens), most, room, drawn)


def looked_at(of: Drafter, sequence: int = 1) -> dict[tuple[int, ...], Looked]:
    """By what lies before it."""
    looked = of._texts[sequence].looked
    return {} if looked is None else {tuple(each.read.tokens[: each.length]): each for each in looked.every()}


def likeliest(drafted: Drafted) -> list[int]:
    """The path of likeliest children."""
    (guessed,) = drafted.guessed
    path, node = [], -1
    while children := [child for child, parent in enumerate(guessed.parents) if parent == node]:
        node = max(children, key=lambda child: (guessed.chances[child], -child))
        path.append(guessed.tokens[node])
    return path


def test_a_draft_model_that_is_the_model_itself_guesses_what_it_says(folder: Path, drafter: Callable[[], Drafter]) -> None:
    guessed = likeliest(asked(drafter(), text(PROMPT)))
    with Engine(folder, 1 << 22) as engine:
        assert guessed == engine.greedy(1, PROMPT, len(guessed)) and guessed


@pytest.mark.parametrize("ahead", [False, True], ids=["between", "ahead"])
@pytest.mark.parametrize("drawn", [GREEDY, SAMPLED], ids=["T=0", "T=0.8"])
def test_what_was_right_and_wrong_before_changes_nothing(drafter: Callable[[], Drafter], drawn: Drawn, ahead: bool) -> None:
    """Paths that are gone on with, in the middle and at their ends, over the borders of blocks; and what was looked at ahead."""
    chance, lasting = random.Random(2), drafter()
    tokens = PROMPT[:118]
    for number in range(12):
        drafted = asked(lasting, text(tokens, drawn), number=number)
        while ahead and number % 3 and lasting.ahead(1e6):  # the next draft begins with that
            pass
        lasting.verified({1: 1 << 20})
        kept = looked_at(lasting)
        fresh = drafter()
        asked(fresh, text(tokens, drawn))
        for path, looked in looked_at(fresh).items():
            if path in kept:
                assert kept[path].tokens[:3] == looked.tokens[:3]
                assert kept[path].gaps == pytest.approx(looked.gaps, abs=1e-3)
        path = likeliest(drafted)
        tokens = [*tokens, *path[: chance.randrange(len(path) + 1)], chance.randrange(3, 90)]


def test_a_text_that_begins_like_another_is_gone_on_with_from_there(drafter: Callable[[], Drafter]) -> None:
    of, tokens = drafter(), PROMPT
    asked(of, text(tokens))
    of.fork(2, 1, 100)
    other = [*tokens[:100], 3, 4, 5]
    drafted = asked(of, text(other, sequence=2))
    assert drafted.read_tokens == 0 and likeliest(drafted) == likeliest(asked(drafter(), text(other)))
    assert likeliest(asked(of, text(tokens))) == likeliest(asked(drafter(), text(tokens))), "the first one is as it was"


def test_long_texts_are_read_a_piece_at_a_time_and_guessed_when_they_have_been_read(drafter: Callable[[], Drafter]) -> None:
    of, tokens = drafter(), PROMPT
    reads = [asked(of, text(tokens), reads=50, number=number) for number in range(3)]
    assert [drafted.read_tokens for drafted in reads] == [50, 50, len(tokens) - 1 - 100]
    assert [len(drafted.guessed) for drafted in reads] == [0, 0, 1]
    assert likeliest(reads[2]) == likeliest(asked(drafter(), text(tokens)))


def test_a_text_is_gone_on_with_from_what_was_read_of_another_that_begins_alike(drafter: Callable[[], Drafter]) -> None:
    of, tokens = drafter(), PROMPT
    texts = [text([*tokens, *range(3, 3 + number)], sequence=number) for number in range(1, 5)]
    drafted = asked(of, *texts)
    assert drafted.read_tokens < len(tokens) + 8 and len(drafted.guessed) == 4
    alone = {each.sequence: asked(drafter(), each).guessed[0] for each in texts}
    for guessed in drafted.guessed:
        assert guessed.tokens[:2] == alone[guessed.sequence].tokens[:2]


def test_there_are_no_more_forks_than_were_planned(drafter: Callable[[], Drafter], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("potatod.worker.drafter.FORKED_BLOCKS", 3)
    of = drafter()
    (guessed,) = asked(of, text(PROMPT[:60])).guessed
    assert guessed.tokens and forks(of, 1) == 3
    while of.ahead(1e6):
        assert of._texts[1].forked_blocks() <= 3
    (guessed,) = asked(of, text(PROMPT * 2, sequence=2)).guessed
    assert guessed.tokens and forks(of, 2) <= 3, "behind its end there is a block more"
    assert sum(each.forked_blocks() for each in of._texts.values()) <= 3


def forks(of: Drafter, sequence: int) -> int:
    return len({id(looked.read) for looked in looked_at(of, sequence).values()}) - 1


def test_what_was_looked_at_ahead_is_not_looked_at_again(drafter: Callable[[], Drafter], monkeypatch: pytest.MonkeyPatch) -> None:
    passes, read = [], DraftModel.read
    monkeypatch.setattr(DraftModel, "read", lambda self, parts: passes.append(len(parts)) or read(self, parts))
    of, fresh = drafter(), drafter()
    tokens = [*PROMPT, *likeliest(asked(of, text(PROMPT, most=3)))]
    while of.ahead(1e6):
        pass
    passes.clear()
    behind = likeliest(asked(of, text(tokens, most=3), sweep_s=1e-9))
    assert passes == [], "its end was known, and with that what is guessed where nothing may take any time"
    anew = likeliest(asked(fresh, text(tokens, most=3), sweep_s=1e-9))
    assert len(passes) >= 1 and behind[: len(anew)] == anew


def test_nothing_is_looked_at_ahead_where_a_text_ends_or_there_is_no_time_or_all_has_been_verified(drafter: Callable[[], Drafter]) -> None:
    of = drafter()
    assert not of.ahead(1e6)
    asked(of, text(PROMPT, most=3, room=3))
    while of.ahead(1e6):
        pass
    assert max(map(len, looked_at(of))) == len(PROMPT) + 2
    asked(of, text(PROMPT, most=3))
    assert not of.ahead(1e-9)
    of.forget(1)
    assert not of.ahead(1e6), "of a text that has ended"
    asked(of, text(PROMPT, most=3, sequence=2))
    of.verified({2: 1 << 20})
    assert not of.ahead(1e6)


def test_a_text_that_is_forgotten_or_has_not_begun_leaves_nothing_behind(drafter: Callable[[], Drafter]) -> None:
    of = drafter()
    asked(of, text(PROMPT), text(PROMPT[3:], sequence=2), text(PROMPT[5:], sequence=3, most=0), spare_s=1.0)
    kept = [weakref.ref(tensor) for tensor in of._texts[1].read.kv.tensors()]
    of.forget(1)
    assert kept and all(tensor() is None for tensor in kept), "the sweep that follows has its memory"
    while of.ahead(1e6):
        pass
    assert of._texts[3].known > 60, "it was read ahead"
    of.verified({2: 117})
    assert of._texts.keys() == {2}, "the target holds nothing of the third"


def test_where_rounds_between_sweeps_are_short_enough_those_ahead_are_tried_and_slow_ones_tried_again(drafter: Callable[[], Drafter]) -> None:
    of = drafter()
    asked(of, text(PROMPT))
    of._round_s._seen = {1: 1e-4}
    assert of.ahead(2e-4), "as long as those between sweeps are"
    of._ahead_s._seen = {1: 10.0}
    tries = 0
    for number in range(40):
        asked(of, text([*PROMPT, 4 + number]))
        tries += of.ahead(1.0)
        of.verified({1: 1 << 20})
    assert 0 < tries < 30


def test_of_a_prompt_that_the_sweep_did_not_take_nothing_stays(drafter: Callable[[], Drafter]) -> None:
    of = drafter()
    asked(of, text(PROMPT, most=0), spare_s=1.0)
    assert of.ahead(1e6) and of._texts[1].known > 100
    of.verified({1: 64})
    assert of._texts[1].known == of._texts[1].read.kv.length == 64
    assert likeliest(asked(of, text(PROMPT))) == likeliest(asked(drafter(), text(PROMPT)))


def test_what_was_looked_at_of_a_text_that_nobody_goes_on_with_is_forgotten(drafter: Callable[[], Drafter]) -> None:
    of = drafter()
    asked(of, text(PROMPT))
    while of.ahead(1e6):
        pass
    asked(of, text(PROMPT[7:], sequence=2))
    read = of._texts[1].read
    assert len(read.tokens) == read.kv.length == len(PROMPT) and of._texts[1].forked_blocks() == 0
    assert likeliest(asked(of, text([*PROMPT, 5]))) == likeliest(asked(drafter(), text([*PROMPT, 5])))


def test_however_far_it_looked_ahead_no_text_is_read_again(drafter: Callable[[], Drafter], monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows leave behind what they have moved on over."""
    monkeypatch.setattr("potatod.worker.growth.Spread.chances", lambda _, gaps: [0.995, *[0.0006] * (len(gaps) - 1)])
    for length in range(130, 259, 43):
        of, tokens = drafter(), (PROMPT * 3)[:length]
        for number in range(2):
            drafted = asked(of, text(tokens, most=60, room=130), number=number)
            assert drafted.read_tokens == (0 if number else len(tokens) - 1)
            while of.ahead(1e6):
                pass
            assert max(map(len, looked_at(of))) > len(tokens) + 90
            of.verified({1: 1 << 20})
            path = likeliest(drafted)
            tokens = [*tokens, *path[: 5 * number], (path[5 * number] + 1) % 90 + 3]


def test_prompts_are_read_ahead_where_weights_are_waited_for(drafter: Callable[[], Drafter]) -> None:
    of = drafter()
    assert asked(of, text(PROMPT, most=0), spare_s=1.0).read_tokens == 0
    reads = 0
    while of.ahead(1e6):
        reads += 1
    asked(of, text([*PROMPT, 7], most=0), spare_s=1.0)
    assert not of.ahead(1e-9) and of._texts[1].known == len(PROMPT) - 1, "there is no time for it"
    drafted = asked(of, text(PROMPT))
    assert reads == 1 and drafted.read_tokens == 0 and likeliest(drafted) == likeliest(asked(drafter(), text(PROMPT)))
    assert asked(drafter(), text(PROMPT, most=0)).read_tokens == len(PROMPT) - 1, "where they are not they are read between sweeps"


def test_a_text_with_tokens_that_it_cannot_read_is_left_out(drafter: Callable[[], Drafter]) -> None:
    """Of two models with one tokenizer the larger may have rows for more."""
    drafted = asked(drafter(), text([5, 6, VOCABULARY]), text([5, 6, 7], sequence=2))
    assert [guessed.sequence for guessed in drafted.guessed] == [2]


def test_a_card_that_has_not_the_memory_ends_it_only_when_it_never_has(drafter: Callable[[], Drafter], monkeypatch: pytest.MonkeyPatch) -> None:
    of, run = drafter(), DraftModel.read

    def exhausted(*_: object) -> None:
        raise torch.OutOfMemoryError

    for _ in range(2):
        monkeypatch.setattr(DraftModel, "read", exhausted)
        assert [asked(of, text([*PROMPT, 5])).guessed for _ in range(2)] == [(), ()]
        monkeypatch.setattr(DraftModel, "read", run)
        assert asked(of, text(PROMPT)).guessed
    asked(of, text(PROMPT))
    monkeypatch.setattr(DraftModel, "read", exhausted)
    assert not of.ahead(1e6) and of._texts == {}
    with pytest.raises(torch.OutOfMemoryError):
        [asked(of, text(PROMPT)) for _ in range(2)]


def test_tokens_that_the_target_does_not_know_are_never_guessed(folder: Path, attention: PackedAttention) -> None:
    narrow = Drafter(folder, {"arithmetic": PLAIN.to_json()}, 40, torch.device("cpu"), attention, Spans())
    (guessed,) = asked(narrow, text([5, 6, 7])).guessed
    assert guessed.tokens and max(guessed.tokens) < 40
