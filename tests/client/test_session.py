"""The session alone: no socket, and the clock is what a test says it is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from potato_client.errors import BadRequest, ClientError, DaemonLost, NoDaemon, NotUnderstood, RequestRefused
from potato_client.protocol import (
    BURST_FRAMES,
    FRAMES_PER_S,
    FROM_CLIENT,
    FROM_FRONT,
    HEARTBEAT_S,
    PROTOCOL_VERSION,
    SILENCE_S,
    Accepted,
    Alive,
    Attach,
    Detach,
    Finished,
    Generate,
    Hello,
    Manage,
    Piece,
    Progress,
    Refused,
    Status,
    Welcome,
)
from potato_client.session import Session, encode

from .fake_front import finished, report

WELCOME = Welcome(PROTOCOL_VERSION, "boot-1", "potatod 0", "tiny", 2048)


class Talk:
    """A session and its clock."""

    def __init__(self, silence_s: float = SILENCE_S) -> None:
        self.session = Session("ipc:///x", "a test", silence_s=silence_s)
        self.now = 1000.0

    def ask(self, request: int, what: Any = None) -> None:
        message = what or Generate(request, prompt="x")
        self.session.ask(request, encode(message), self.now, followed=isinstance(message, Attach) or getattr(message, "follow", False))

    def hear(self, *messages: Any) -> None:
        for message in messages:
            frame = message if isinstance(message, bytes) else FROM_FRONT.encode(message)
            self.session.receive(frame, self.now)

    def sent(self) -> list[Any]:
        return [FROM_CLIENT.decode(frame) for frame in self.session.frames(self.now)]

    def events(self) -> list[tuple[int, Any]]:
        return [(event.request, event.what) for event in self.session.events()]

    def wait(self, seconds: float, answered: Callable[[Any], Any] = lambda sent: None) -> list[Any]:
        """Lets the time go by as an owner of a socket does: ticks when one is due. What was sent meanwhile."""
        end, sent = self.now + seconds, []
        while (due_s := self.session.due_in(self.now)) is not None and self.now + due_s <= end:
            self.now += due_s
            self.session.tick(self.now)
            for message in self.sent():
                sent.append(message)
                if (answer := answered(message)) is not None:
                    self.hear(answer)
        self.now = end
        return sent


@pytest.fixture
def talk() -> Talk:
    return Talk()


@pytest.fixture
def asked(talk: Talk) -> Talk:
    """One answer is under way."""
    talk.ask(1)
    talk.hear(WELCOME, Accepted(1, "a", 42, 7, 0))
    talk.sent()
    talk.events()
    return talk


def alive(message: Any) -> Any:
    return Alive("boot-1") if isinstance(message, Alive) else None


def only_error(talk: Talk) -> ClientError:
    ((_, what),) = talk.events()
    assert isinstance(what, ClientError)
    assert not talk.session.expecting
    return what


def test_nothing_is_asked_before_the_welcome(talk: Talk) -> None:
    talk.ask(1)
    talk.ask(2, Status(2))
    assert talk.sent() == [Hello(PROTOCOL_VERSION, "a test")]
    talk.hear(WELCOME)
    assert talk.sent() == [Generate(1, prompt="x"), Status(2)]


def test_what_is_said_about_a_job_reaches_whoever_asked(asked: Talk) -> None:
    asked.ask(2)
    asked.hear(Accepted(2, "b", 1, 1, 0), Piece("b", 0, "B", (1,)), Piece("a", 0, "A", (1,)), Progress("a", "decode"))
    asked.hear(finished("b", 1), finished("a", 1))
    assert [(request, type(what)) for request, what in asked.events()] == [
        (2, Accepted), (2, Piece), (1, Piece), (1, Progress), (2, Finished), (1, Finished),
    ]  # fmt: skip
    assert not asked.session.expecting


def test_the_last_event_of_a_request_says_so(asked: Talk) -> None:
    asked.hear(Piece("a", 0, "A", (1,)), finished("a", 1))
    assert [event.last for event in asked.session.events()] == [False, True]


def test_a_report_ends_its_request(talk: Talk) -> None:
    talk.ask(1, Status(1))
    talk.hear(WELCOME, report(1, "boot-1"))
    assert [type(what).__name__ for _, what in talk.events()] == ["Report"]
    assert not talk.session.expecting


def test_what_belongs_to_no_request_is_dropped(asked: Talk) -> None:
    asked.hear(finished("another", 1), Accepted(9, "z", 0, 1, 0), report(9, "boot-1"), Piece("z", 0, "", ()))
    assert asked.events() == []
    asked.hear(finished("a", 0))
    asked.hear(finished("a", 0))
    assert len(asked.events()) == 1


def test_heartbeats_go_out_while_something_is_expected_and_only_then(asked: Talk) -> None:
    assert asked.wait(60, alive) == [Alive()] * int(60 / HEARTBEAT_S)
    asked.hear(finished("a", 0))
    assert asked.session.due_in(asked.now) is None
    assert asked.wait(60) == []


def test_a_slow_answer_from_a_front_that_lives_is_waited_for_for_ever(asked: Talk) -> None:
    asked.wait(86_400, alive)
    assert asked.events() == []
    assert asked.session.expecting


def test_silence_means_that_the_daemon_is_lost(asked: Talk) -> None:
    asked.wait(SILENCE_S - 0.1)
    assert asked.events() == []
    asked.wait(0.2)
    error = only_error(asked)
    assert isinstance(error, DaemonLost)
    assert error.exit_code == 75
    assert "10 seconds" in str(error)


def test_somebody_who_never_says_welcome_is_no_daemon(talk: Talk) -> None:
    talk.ask(1)
    sent = talk.wait(SILENCE_S + 1)
    assert {type(message) for message in sent} == {Hello}, "each heartbeat greets again: the first may be lost"
    error = only_error(talk)
    assert isinstance(error, NoDaemon)
    assert error.exit_code == 69


@pytest.mark.parametrize("news", [Alive("boot-2"), Welcome(PROTOCOL_VERSION, "boot-2", "d", "m", 1)])
def test_another_front_is_asked_for_the_rest_of_an_answer(asked: Talk, news: Any) -> None:
    asked.hear(Piece("a", 0, "Aé", (1, 2)), Piece("a", 2, "", (3,), "thoughts"), news)
    sent = asked.sent()
    if isinstance(news, Alive):
        assert sent == [Hello(PROTOCOL_VERSION, "a test")], "it is greeted first"
        asked.hear(Welcome(PROTOCOL_VERSION, "boot-2", "d", "m", 1))
        sent = asked.sent()
    assert sent == [Attach(1, "a", 3, 2, 8)]
    asked.events()
    asked.hear(Accepted(1, "a", 42, 7, 0, known=True), Piece("a", 3, "B", (4,)), finished("a", 4))
    assert [type(what) for _, what in asked.events()] == [Accepted, Piece, Finished]


def test_another_front_is_asked_anew_for_what_has_no_name_yet(talk: Talk) -> None:
    talk.ask(1, Generate(1, prompt="x", key="k"))
    talk.ask(2, Status(2))
    talk.hear(WELCOME)
    talk.sent()
    talk.hear(Alive("boot-2"), Welcome(PROTOCOL_VERSION, "boot-2", "d", "m", 1))
    assert talk.sent()[1:] == [Generate(1, prompt="x", key="k"), Status(2)]
    assert talk.events() == []


def test_an_answer_that_was_cancelled_before_another_front_came_is_cancelled_there(asked: Talk) -> None:
    asked.session.cancel(1)
    asked.hear(Alive("boot-2"), Welcome(PROTOCOL_VERSION, "boot-2", "d", "m", 1))
    asked.sent()
    asked.hear(Accepted(1, "a", 42, 7, 0, known=True))
    assert asked.sent() == [Manage(0, "a", "cancel")]


def test_who_detaches_hears_no_more_and_cancels_nothing(asked: Talk) -> None:
    asked.session.detach(1, asked.now)
    assert asked.sent() == [Detach("a")]
    assert "detached" in str(only_error(asked))
    asked.session.close(asked.now)
    assert asked.sent() == []


def test_what_is_only_submitted_is_over_when_it_is_accepted_and_closing_leaves_it(talk: Talk) -> None:
    talk.ask(1, Generate(1, prompt="x", follow=False))
    talk.hear(WELCOME, Accepted(1, "a", 42, 7, 0))
    assert [type(what) for _, what in talk.events()] == [Accepted]
    assert not talk.session.expecting
    talk.ask(2, Generate(2, prompt="x", follow=False))
    talk.hear(WELCOME)
    talk.sent()
    talk.session.close(talk.now)
    assert talk.sent() == []


def test_one_job_is_followed_once(asked: Talk) -> None:
    asked.ask(2, Attach(2, "a"))
    asked.hear(Accepted(2, "a", 42, 7, 0, known=True))
    (request, error), = asked.events()
    assert request == 2
    assert isinstance(error, BadRequest)
    asked.hear(finished("a", 0))
    assert [request for request, _ in asked.events()] == [1]


def test_another_boot_is_nobody_s_loss_while_nothing_is_expected(asked: Talk) -> None:
    asked.hear(finished("a", 0), Alive("boot-2"))
    asked.events()
    asked.now += 1000
    asked.ask(2)
    assert asked.sent() == [Hello(PROTOCOL_VERSION, "a test")], "who is there now is settled anew"
    asked.hear(Alive("boot-1"))
    asked.hear(Welcome(PROTOCOL_VERSION, "boot-2", "d", "m", 1), Accepted(2, "b", 0, 1, 0))
    assert [request for request, _ in asked.events()] == [2]
    assert asked.session.expecting


def test_a_front_that_does_not_know_us_is_greeted(asked: Talk) -> None:
    asked.hear(Refused("hello_first", "say hello", 75, request=1))
    assert asked.sent() == [Hello(PROTOCOL_VERSION, "a test")]
    asked.hear(Welcome(PROTOCOL_VERSION, "boot-1", "d", "m", 1))
    assert asked.sent() == [Attach(1, "a")]
    assert asked.events() == []


def test_whoever_loses_the_daemon_is_told_how_to_come_back(asked: Talk) -> None:
    asked.wait(SILENCE_S)
    error = only_error(asked)
    assert isinstance(error, DaemonLost)
    assert "potato-client attach a" in str(error)


def test_a_client_that_was_stopped_itself_reads_what_came_meanwhile_before_it_judges(asked: Talk) -> None:
    asked.wait(3, alive)
    asked.now += 3600
    asked.session.tick(asked.now)
    assert asked.events() == []
    asked.hear(finished("a", 0))
    assert [type(what) for _, what in asked.events()] == [Finished]


def test_a_client_that_was_stopped_while_the_daemon_ended_finds_out(asked: Talk) -> None:
    asked.now += 3600
    asked.wait(SILENCE_S)
    assert isinstance(only_error(asked), DaemonLost)


def test_cancel_names_the_job(asked: Talk) -> None:
    asked.session.cancel(1)
    asked.session.cancel(1)
    assert asked.sent() == [Manage(0, "a", "cancel")]


def test_cancel_waits_for_the_job_s_name(talk: Talk) -> None:
    talk.ask(1)
    talk.hear(WELCOME)
    talk.session.cancel(1)
    talk.sent()
    talk.hear(Accepted(1, "a", 42, 7, 0))
    assert talk.sent() == [Manage(0, "a", "cancel")]


def test_cancel_of_what_is_over_says_nothing(asked: Talk) -> None:
    asked.hear(finished("a", 0))
    asked.session.cancel(1)
    asked.session.cancel(77)
    assert asked.sent() == []


@pytest.mark.parametrize("whom", [{"request": 1}, {"job": "a"}])
def test_a_refusal_ends_the_request_or_job_it_names(asked: Talk, whom: Any) -> None:
    asked.ask(2)
    asked.hear(Refused("internal", "our fault", 70, **whom))
    ((request, error),) = asked.events()
    assert request == 1
    assert isinstance(error, RequestRefused)
    assert (error.code, error.exit_code, str(error)) == ("internal", 70, "our fault")
    assert asked.session.expecting


def test_a_refusal_that_names_nothing_ends_everything(asked: Talk) -> None:
    asked.ask(2)
    asked.hear(Refused("bad_frame", "what?", 70))
    assert [request for request, _ in asked.events()] == [1, 2]
    assert not asked.session.expecting


def test_a_refusal_of_a_job_that_is_over_is_nothing(asked: Talk) -> None:
    asked.ask(2)
    asked.hear(finished("a", 0), Refused("unknown_job", "no such job", 64, job="a"))
    assert [type(what) for _, what in asked.events()] == [Finished]


@pytest.mark.parametrize("exit_code", [0, -1, 130, 300])
def test_an_exit_code_that_no_daemon_may_choose_is_replaced(asked: Talk, exit_code: int) -> None:
    asked.hear(Refused("queue_full", "full", exit_code, request=1))
    assert only_error(asked).exit_code == 75


def test_another_version_is_refused_and_both_are_named(talk: Talk) -> None:
    talk.ask(1)
    talk.hear(Welcome(7, "b", "d", "m", 1))
    error = only_error(talk)
    assert isinstance(error, RequestRefused)
    assert (error.code, error.exit_code) == ("bad_version", 69)
    assert "version 7" in str(error)
    assert f"version {PROTOCOL_VERSION}" in str(error)


def test_what_cannot_be_read_ends_everything_with_a_sentence(asked: Talk) -> None:
    asked.hear(b"\xc1garbage")
    error = only_error(asked)
    assert isinstance(error, NotUnderstood)
    assert error.exit_code == 70


def test_closing_cancels_and_tells_whoever_waits(asked: Talk) -> None:
    asked.session.close(asked.now)
    assert asked.sent() == [Manage(0, "a", "cancel")]
    assert "closed" in str(only_error(asked))


@pytest.mark.parametrize(
    ("message", "why"),
    [
        (Generate(1, prompt="\ud800"), "Unicode"),
        (Generate(1 << 70, prompt="x"), "out of range"),
        (Generate(1, prompt="x" * (17 << 20)), "at most 16777216"),
        (Generate(1, prompt=3), "prompt: must be str"),  # type: ignore[arg-type]
        (Generate(1, prompt={1, 2}), "set"),  # type: ignore[arg-type]
    ],
)
def test_what_the_front_would_not_read_is_not_sent(message: Generate, why: str) -> None:
    with pytest.raises(BadRequest, match=why):
        encode(message)


def test_frames_go_out_no_faster_than_a_front_takes_them(talk: Talk) -> None:
    talk.ask(1)
    talk.hear(WELCOME)
    sent = len(talk.sent())
    for number in range(2, 2002):
        talk.ask(number, Status(number))
    sent += len(talk.sent())
    assert sent <= BURST_FRAMES
    began = talk.now
    while sent < 2002:
        assert talk.session.due_in(talk.now) is not None
        talk.now += 0.1
        sent += len(talk.sent())
    assert (2002 - BURST_FRAMES) / FRAMES_PER_S <= talk.now - began <= 20


def test_last_words_that_nobody_takes_are_given_up(asked: Talk) -> None:
    asked.session.detach(1, asked.now)
    frames = asked.session.frames(asked.now)
    asked.session.put_back(frames)
    due_s = asked.session.due_in(asked.now)
    assert due_s is not None
    assert due_s > 0
    asked.now += SILENCE_S + 1
    asked.session.tick(asked.now)
    assert asked.session.due_in(asked.now) is None


def test_questions_one_after_the_other_need_one_greeting(talk: Talk) -> None:
    talk.ask(1, Status(1))
    talk.hear(WELCOME, report(1, "boot-1"))
    talk.sent()
    for number in range(2, 5):
        talk.ask(number, Status(number))
        assert talk.sent() == [Status(number)]
        talk.hear(report(number, "boot-1"))
    talk.now += HEARTBEAT_S + 1
    talk.ask(9, Status(9))
    assert talk.sent() == [Hello(PROTOCOL_VERSION, "a test")]


def test_what_comes_twice_is_dropped(asked: Talk) -> None:
    asked.hear(Piece("a", 0, "AB", (1, 2)), Piece("a", 0, "AB", (1, 2)), Piece("a", 2, "C", (3,)))
    assert [what.text for _, what in asked.events()] == ["AB", "C"]
