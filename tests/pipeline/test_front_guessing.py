"""What ends in the middle of what was guessed, and what breaks there: no text is another one, and nothing that was accepted is lost."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest

from potato_client.protocol import Report, Status
from potatod.messages import Draft, Drafted, Guessed
from potatod.trees import Tree

from .front_harness import Front, Heard, next_token

StartFront = Callable[..., Front]
PENALISED = {"repetition_penalty": 1.05, "frequency_penalty": 1.5, "presence_penalty": -0.5, "logit_bias": ((ord("q"), 1.5), (ord("z"), -100))}
OPTIONS: list[dict[str, Any]] = [{}, {"temperature": 1.0, "seed": 3}, PENALISED]
NAMES = ["greedy", "sampled", "penalised"]


class Guesses:
    """Mostly what comes, in the trunk or in a branch, and much that does not."""

    def __init__(self, wrong: int = 3) -> None:
        self.wrong = wrong
        self.chance = random.Random(0)
        self.asked = 0

    def __call__(self, ask: Draft) -> Drafted:
        self.asked += 1
        trees = {text.sequence: self.tree(list(text.tokens), text.most) for text in ask.texts if text.most}
        guessed = (Guessed(id, tuple(tree.tokens), tuple(tree.parents), tuple(tree.chances)) for id, tree in trees.items())
        return Drafted(ask.epoch, ask.number, tuple(guessed), 1e-6)

    def tree(self, tokens: list[int], most: int) -> Tree:
        coming = list(tokens)
        for _ in range(min(most, self.chance.randrange(12))):
            coming.append(next_token(coming))
        right = coming[len(tokens) :]
        paths = [right]
        for _ in range(self.wrong):
            begins = right[: self.chance.randrange(len(right) + 1)]
            paths.append([*begins, *(self.chance.randrange(ord("a"), ord("z")) for _ in range(self.chance.randrange(1, 14)))][:most])
        tree = Tree()
        for path in self.chance.sample(paths, len(paths)):
            tree.add_path(path, [0.9**place for place in range(len(path))], "test")
        return tree


def asked(front: Front, prompt: str, **options: Any) -> tuple[Any, ...]:
    heard = front.client().answer(prompt, **options)
    return heard.text, heard.token_ids, heard.last.reason, heard.last.completion_tokens


def with_and_without(start: StartFront, prompt: str, **options: Any) -> tuple[tuple[Any, ...], Any]:
    """The answer, which is the same with guesses; and how many of those were right."""
    front = start(draft=True, max_context=256)
    worker = front.engine_up(drafter=Guesses())
    guessed = asked(front, prompt, **options)
    assert worker.wrong is None
    client = front.client()
    client.send(Status(1))
    report = client.receive()
    assert isinstance(report, Report)
    front.close()
    front = start(speculation=False, max_context=256)
    front.engine_up()
    assert asked(front, prompt, **options) == guessed
    return guessed, report.queue.accepted_tokens


@pytest.mark.parametrize("options", OPTIONS, ids=NAMES)
@pytest.mark.parametrize("tokens", [1, 2, 7, 8])
def test_the_most_tokens_are_reached_inside_of_a_run(start: StartFront, options: dict[str, Any], tokens: int) -> None:
    answer, _ = with_and_without(start, "abcdefgh|", max_tokens=tokens, **options)
    assert answer[2:] == ("length", tokens)


@pytest.mark.parametrize("options", OPTIONS, ids=NAMES)
@pytest.mark.parametrize("stop", ["def", "h", "ghabcdefghab"])
def test_a_stop_word_ends_inside_of_a_run(start: StartFront, options: dict[str, Any], stop: str) -> None:
    answer, accepted = with_and_without(start, "abcdefgh|", max_tokens=60, stop=(stop,), **options)
    assert answer[0] == "abcdefgh"[: 3 if stop == "def" else 7 if stop == "h" else 6] and answer[2] == "stop"
    assert accepted > 0 or stop != "ghabcdefghab"


@pytest.mark.parametrize("options", OPTIONS, ids=NAMES)
def test_the_end_of_the_text_is_guessed(start: StartFront, options: dict[str, Any]) -> None:
    answer, _ = with_and_without(start, "abcab$|", max_tokens=60, **options)
    assert answer[0] == "abcab" and answer[2] == "stop"


@pytest.mark.parametrize("options", OPTIONS, ids=NAMES)
def test_a_text_is_guessed_to_the_end_of_the_context(start: StartFront, options: dict[str, Any]) -> None:
    prompt = "abcdefgh" * 28 + "|"
    answer, accepted = with_and_without(start, prompt, max_tokens=4096, **options)
    assert answer[2] == "length" and answer[3] == 256 - len(prompt) and accepted > 0


@pytest.mark.parametrize("options", OPTIONS, ids=NAMES)
def test_a_prompt_that_fills_the_whole_context(start: StartFront, options: dict[str, Any]) -> None:
    answer, _ = with_and_without(start, "abcdefgh" * 31 + "abcdef|", max_tokens=4096, **options)
    assert answer[2:] == ("length", 1)


def test_a_thousand_tiny_prompts_at_once(start: StartFront) -> None:
    front = start(draft=True, max_queue=1000, max_sequences=16)
    worker = front.engine_up(drafter=Guesses())
    clients = [front.client() for _ in range(10)]
    prompts = {}
    for number in range(1000):
        client = clients[number % 10]
        prompt = f"{chr(97 + number % 26)}{chr(97 + number // 26 % 26)}|"
        prompts[number % 10, client.ask(prompt, max_tokens=5)] = prompt
    for index, client in enumerate(clients):
        heard = client.hear(Heard(), "Finished", 100)
        jobs = {accepted.job: accepted.request for accepted in heard.of("Accepted")}
        for job, request in jobs.items():
            text = "".join(piece.text for piece in heard.of("Piece") if piece.job == job)
            assert text == (prompts[index, request][:2] * 3)[:5]
    assert worker.wrong is None


def test_an_answer_is_set_aside_twenty_times(start: StartFront) -> None:
    front = start(draft=True, max_sequences=1, max_queue=4, max_context=2048)
    worker = front.engine_up(delay_s=0.002, drafter=Guesses())
    client, other = front.client(), front.client()
    client.ask("abcdefgh|", max_tokens=1200, priority="batch")
    heard = client.hear(Heard(), "Piece", 1)
    for _ in range(20):
        assert other.answer("xy|", max_tokens=3).text == "xyx"
        client.hear(heard, "Piece", len(heard.of("Piece")) + 1)
    assert not heard.of("Finished")
    client.hear(heard, "Finished")
    assert heard.text == "abcdefgh" * 150
    assert worker.wrong is None


def test_a_draft_model_that_breaks_is_said_once_and_no_answer_fails(start: StartFront) -> None:
    front, guesses = start(draft=True, max_context=512), Guesses()

    def breaks(ask: Draft) -> Drafted:
        return guesses(ask) if guesses.asked < 3 else Drafted(ask.epoch, ask.number, (), 0.0, failed="it broke")

    front.engine_up(drafter=breaks)
    assert asked(front, "abcdefgh|", max_tokens=100) == ("abcdefgh" * 12 + "abcd", list(b"abcdefgh" * 12 + b"abcd"), "length", 100)
    assert asked(front, "xy|", max_tokens=4)[0] == "xyxy"
    client = front.client()
    client.send(Status(1))
    assert client.receive().queue.draft_failed == "it broke"
    assert front.log.count("the draft model has failed") == 1


def test_a_worker_that_dies_while_it_guesses_is_waited_for(start: StartFront) -> None:
    front, guesses = start(draft=True, max_context=512), Guesses()

    def dies(ask: Draft) -> Drafted:
        assert front.worker is not None
        if guesses.asked == 2:
            front.worker._die.set()
            return Drafted(ask.epoch - 1, ask.number, (), 0.0)
        return guesses(ask)

    worker = front.engine_up(drafter=dies)
    client = front.client()
    client.ask("abcdefgh|", max_tokens=100)
    worker.join(10)
    assert not worker.is_alive()
    front.engine_dies()
    front.engine_up(drafter=Guesses())
    assert client.hear(Heard(), "Finished").text == "abcdefgh" * 12 + "abcd"
