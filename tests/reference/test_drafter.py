"""The draft model: what it guesses is what it would say, whatever it read, guessed and forked before."""

from __future__ import annotations

import random
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


def asked(of: Drafter, *texts: DraftText, reads: int = 1 << 20, number: int = 1) -> Drafted:
    return of.draft(Draft(1, number, texts, 24, reads, 1e6), lambda: None)


def text(tokens: list[int], drawn: Drawn = GREEDY, sequence: int = 1, most: int = 8) -> DraftText:
    return DraftText(sequence, tuple(tokens), most, drawn)


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


@pytest.mark.parametrize("drawn", [GREEDY, SAMPLED], ids=["T=0", "T=0.8"])
def test_what_was_right_and_wrong_before_changes_nothing(drafter: Callable[[], Drafter], drawn: Drawn) -> None:
    """Paths that are gone on with, in the middle and at their ends, over the borders of blocks; and another text beside."""
    chance, lasting = random.Random(2), drafter()
    tokens = PROMPT[:118]
    for number in range(12):
        drafted = asked(lasting, text(tokens, drawn), number=number)
        kept = lasting._texts[1].looked
        fresh = drafter()
        asked(fresh, text(tokens, drawn))
        for path, looked in fresh._texts[1].looked.items():
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
    assert guessed.tokens and len(of._texts[1].paths) == 3
    (guessed,) = asked(of, text(PROMPT * 2, sequence=2)).guessed
    assert guessed.tokens and len(of._texts[2].paths) <= 3, "behind its end there is a block more"


def test_a_text_with_tokens_that_it_cannot_read_is_left_out(drafter: Callable[[], Drafter]) -> None:
    """Of two models with one tokenizer the larger may have rows for more."""
    drafted = asked(drafter(), text([5, 6, VOCABULARY]), text([5, 6, 7], sequence=2))
    assert [guessed.sequence for guessed in drafted.guessed] == [2]


def test_a_card_that_has_not_the_memory_ends_it_only_when_it_never_has(drafter: Callable[[], Drafter], monkeypatch: pytest.MonkeyPatch) -> None:
    of, run = drafter(), Drafter._pass

    def exhausted(*_: object) -> None:
        raise torch.OutOfMemoryError

    for _ in range(2):
        monkeypatch.setattr(Drafter, "_pass", exhausted)
        assert [asked(of, text(PROMPT)).guessed for _ in range(2)] == [(), ()]
        monkeypatch.setattr(Drafter, "_pass", run)
        assert asked(of, text(PROMPT)).guessed
    monkeypatch.setattr(Drafter, "_pass", exhausted)
    with pytest.raises(torch.OutOfMemoryError):
        [asked(of, text(PROMPT)) for _ in range(3)]


def test_tokens_that_the_target_does_not_know_are_never_guessed(folder: Path, attention: PackedAttention) -> None:
    narrow = Drafter(folder, {"arithmetic": PLAIN.to_json()}, 40, torch.device("cpu"), attention, Spans())
    (guessed,) = asked(narrow, text([5, 6, 7])).guessed
    assert guessed.tokens and max(guessed.tokens) < 40
