"""The front as a process: answers, restarts of the engine, queue, cancel, status."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from potato_client.protocol import PROTOCOL_VERSION, Alive, Hello, Manage, Refused, Report, Status, Welcome
from potato_client.question import ChatMessage
from potatod.messages import Counted, Queued

from .front_harness import VOCABULARY, Client, Front, Heard

StartFront = Callable[..., Front]


# answers


def test_an_answer_comes_in_order_and_without_gaps(start: StartFront) -> None:
    front = start()
    front.engine_up()
    heard = front.client().answer("hello|", max_tokens=12)
    assert heard.text == "hellohellohe"
    assert heard.token_ids == list(b"hellohellohe")
    shown = 0
    for piece in heard.of("Piece"):
        assert piece.index == shown
        shown += len(piece.token_ids)
    last = heard.last
    assert (last.reason, last.prompt_tokens, last.completion_tokens, last.sweeps) == ("length", 6, 12, 12)
    assert (last.disk_bytes, last.disk_limit_bytes_per_s) == (12000, 1e6)
    assert last.disk_bytes_per_s == pytest.approx(12000 / (last.prefill_s + last.decode_s))


def test_the_first_token_comes_out_of_the_sweep_that_finishes_the_prefill(start: StartFront) -> None:
    front = start(prefill_chunk=4)
    worker = front.engine_up()
    front.client().answer("abcdefgh|", max_tokens=1)
    assert [[len(step.tokens) for step in sweep.steps] for sweep in worker.sweeps] == [[4], [4], [1]]
    assert [sweep.steps[0].want for sweep in worker.sweeps] == ["nothing", "nothing", "argmax"]


def test_the_end_of_text_is_neither_shown_nor_counted(start: StartFront) -> None:
    front = start()
    front.engine_up()
    heard = front.client().answer("bye$|")
    assert (heard.text, heard.token_ids, heard.last.reason, heard.last.completion_tokens) == (
        "bye",
        list(b"bye"),
        "stop",
        3,
    )


def test_an_answer_that_is_only_an_end_is_empty(start: StartFront) -> None:
    front = start()
    front.engine_up()
    heard = front.client().answer("$|")
    assert (heard.text, heard.token_ids, heard.last.reason) == ("", [], "stop")


def test_text_ends_before_a_stop_string_that_spans_tokens(start: StartFront) -> None:
    front = start()
    front.engine_up()
    heard = front.client().answer("one two three|", stop=("two t",))
    assert (heard.text, heard.token_ids, heard.last.reason) == ("one ", list(b"one "), "stop")
    assert heard.last.completion_tokens == 4


def test_what_only_looked_like_a_stop_string_is_shown_in_the_end(start: StartFront) -> None:
    front = start()
    front.engine_up()
    heard = front.client().answer("one two$|", stop=("two three",))
    assert (heard.text, heard.token_ids) == ("one two", list(b"one two"))


def test_characters_of_several_tokens_are_shown_whole(start: StartFront) -> None:
    front = start()
    front.engine_up()
    heard = front.client().answer("a€ö$|")
    assert heard.text == "a€ö"
    assert heard.token_ids == list("a€ö".encode())
    assert all("\ufffd" not in piece.text for piece in heard.of("Piece"))


def test_without_max_tokens_an_answer_ends_where_the_context_is_full(start: StartFront) -> None:
    front = start(max_context=32)
    front.engine_up()
    heard = front.client().answer("endless|")
    assert (heard.last.reason, heard.last.completion_tokens) == ("length", 32 - 8)


def test_a_seed_is_drawn_and_reported_and_gives_the_same_answer_again(start: StartFront) -> None:
    front = start()
    front.engine_up()
    client = front.client()
    first = client.answer("?x|", temperature=1.0, max_tokens=20)
    seed = first.of("Accepted")[0].seed
    again = client.answer("?x|", temperature=1.0, max_tokens=20, seed=seed)
    other = client.answer("?x|", temperature=1.0, max_tokens=20, seed=seed + 1)
    assert again.text == first.text
    assert other.text != first.text


def test_a_seed_gives_the_same_text_alone_in_a_batch_and_across_restarts(start: StartFront) -> None:
    front = start(max_sequences=3, prefill_chunk=5)
    front.engine_up(delay_s=0.002)
    options = {"temperature": 0.9, "repetition_penalty": 1.1, "max_tokens": 40}
    prompts = [f"?{'xyz' * n}|" for n in range(1, 6)]
    alone = [front.client().answer(prompt, seed=n, **options).text for n, prompt in enumerate(prompts)]
    clients = [front.client() for _ in prompts]
    for n, (client, prompt) in enumerate(zip(clients, prompts, strict=True)):
        client.ask(prompt, seed=n, **options)
    heard = [Heard() for _ in prompts]
    clients[0].hear(heard[0], "Piece", 10)
    for _ in range(2):
        front.engine_dies()
        front.engine_up(delay_s=0.002)
    for client, each in zip(clients, heard, strict=True):
        client.hear(each, "Finished")
    assert [each.text for each in heard] == alone
    assert front.worker is not None
    assert front.worker.wrong is None


def test_a_client_sees_a_pause_and_not_an_error_when_the_engine_dies(start: StartFront) -> None:
    front = start(speculation=False)  # so that the answer is not over before the engine is
    worker = front.engine_up(delay_s=0.05)
    client = front.client()
    client.ask("hello|", max_tokens=30)
    heard = client.hear(Heard(), "Piece", 5)
    worker.hold.set()
    front.engine_dies()
    client.hear(heard, "Progress", len(heard.of("Progress")) + 1)
    assert heard.last.state == "restarting"
    again = front.engine_up()
    client.hear(heard, "Finished")
    assert heard.text == "hello" * 6
    assert heard.token_ids == list(b"hello" * 6)
    first = again.sweeps[0].steps[0]
    assert (first.start, bytes(first.tokens[:6])) == (0, b"hello|"), "prompt and answer are prefilled again"
    assert len(first.tokens) > 6


def test_one_answer_fails_alone_where_its_sampling_fails(start: StartFront) -> None:
    front = start()
    front.engine_up(delay_s=0.005)
    good, bad = front.client(), front.client()
    good.ask("fine|", max_tokens=40)
    heard = good.hear(Heard(), "Piece")
    bad.ask("!|", max_tokens=4)
    refused = bad.hear(Heard(), "Refused").last
    assert (refused.code, refused.exit_code) == ("internal", 70)
    assert refused.job is not None
    assert good.hear(heard, "Finished").text == "fine" * 10


# the queue


def test_places_in_the_queue_are_told_and_move_up(start: StartFront) -> None:
    front = start(max_sequences=1, max_queue=2)
    worker = front.engine_up(delay_s=0.005)
    worker.hold.set()
    clients = [front.client() for _ in range(3)]
    heard = []
    for client in clients:
        client.ask("abc|", max_tokens=5)
        heard.append(client.hear(Heard(), "Accepted"))
    assert [each.last.place for each in heard] == [0, 1, 2]
    clients[2].hear(heard[2], "Progress")
    clients[0].send(Manage(0, heard[0].last.job, "cancel"))
    clients[2].hear(heard[2], "Progress", 2)
    assert [(p.state, p.place) for p in heard[2].of("Progress")] == [("queued", 2), ("queued", 1)]
    worker.hold.clear()
    for client, each in zip(clients, heard, strict=True):
        client.hear(each, "Finished")
    assert [each.text for each in heard] == ["", "abcab", "abcab"]
    assert heard[2].last.queued_s > heard[1].last.queued_s


def test_a_full_queue_refuses_with_75(start: StartFront) -> None:
    front = start(max_sequences=1, max_queue=1)
    client = front.client()
    for _ in range(2):
        client.ask("abc|")
    heard = client.hear(Heard(), "Accepted", 2)
    request = client.ask("abc|")
    refused = client.hear(heard, "Refused").last
    assert (refused.code, refused.exit_code, refused.request) == ("queue_full", 75, request)


def test_jobs_wait_for_an_engine_that_is_still_starting(start: StartFront) -> None:
    front = start()
    client = front.client()
    client.ask("abc|", max_tokens=3)
    heard = client.hear(Heard(), "Progress")
    assert heard.last.state == "queued"
    front.engine_up()
    assert client.hear(heard, "Finished").text == "abc"


def test_prefill_tells_its_layers_and_tokens(start: StartFront) -> None:
    front = start(prefill_chunk=2)
    front.engine_up(delay_s=0.2)
    client = front.client()
    client.ask("abcdefghijklmnop|", max_tokens=2)
    heard = client.hear(Heard(), "Finished")
    prefill = [p for p in heard.of("Progress") if p.state == "prefill"]
    assert {(p.prompt_tokens, p.layers) for p in prefill} == {(17, 4)}
    assert max(p.prefilled_tokens for p in prefill) > min(p.prefilled_tokens for p in prefill)
    assert any(p.layers_done == 1 for p in prefill)
    assert prefill[-1].eta_s is not None


# cancel


def test_cancel_ends_a_running_answer_between_sweeps(start: StartFront) -> None:
    front = start(max_context=4096)
    worker = front.engine_up(delay_s=0.002)
    client = front.client()
    client.ask("abc|")
    heard = client.hear(Heard(), "Piece", 3)
    assert list(worker.kv) == [1]
    client.send(Manage(0, heard.of("Accepted")[0].job, "cancel"))
    client.hear(heard, "Finished")
    assert heard.last.reason == "cancelled"
    assert heard.last.completion_tokens == len(heard.token_ids)
    assert client.answer("xy|", max_tokens=4).text == "xyxy"
    assert client.answer("abc|", max_tokens=5).text == "abcab"
    assert [(fork.of, fork.length) for fork in worker.forks] == [(1, 3)], "what it had computed is gone on from"


def test_the_next_turn_computes_its_new_tokens_only_and_room_is_made_for_others(start: StartFront) -> None:
    front = start(kv_bytes=256, max_context=256)
    worker = front.engine_up()
    client = front.client()
    first = client.answer("abc|", max_tokens=8)
    assert client.answer("abc|" + first.text + "!?", max_tokens=1).text, "goes on"
    assert [(fork.of, fork.length) for fork in worker.forks] == [(1, 11)], "the last token of the answer was never fed"
    client.answer("x" * 130 + "|", max_tokens=2)
    assert list(worker.kv) == [3]
    assert worker.wrong is None


def test_a_batch_makes_place_for_who_waits_and_goes_on_with_the_same_text(start: StartFront) -> None:
    front = start(max_sequences=1, max_queue=4, max_context=2048)
    worker = front.engine_up(delay_s=0.005)
    client = front.client()
    client.ask("abc|", max_tokens=150, priority="batch")
    heard = client.hear(Heard(), "Piece", 3)
    other = front.client()
    assert other.answer("xy|", max_tokens=4).text == "xyxy"
    assert not heard.of("Finished")
    client.hear(heard, "Finished")
    assert heard.text == "abc" * 50
    assert worker.wrong is None


COUNTED = {"frequency_penalty": 0.4, "presence_penalty": 0.3, "logit_bias": ((ord("q"), 2.0), (ord("z"), -100))}


@pytest.mark.parametrize(
    "options",
    [{}, {"temperature": 1.0, "seed": 3}, {"repetition_penalty": 1.05}, COUNTED, COUNTED | {"temperature": 1.0, "seed": 3}],
    ids=["greedy", "sampled", "penalised", "counted", "counted and sampled"],
)
@pytest.mark.parametrize("prompt", ["abcdefgh|", "?aaaa|", "abcab$|"], ids=["repeats itself", "by chance", "ends"])
def test_guessed_tokens_change_no_text(start: StartFront, prompt: str, options: dict[str, Any]) -> None:
    """And where a text repeats itself they spare most sweeps."""
    said, sweeps = {}, {}
    for enabled in (True, False):
        front = start(speculation=enabled, max_context=512)
        worker = front.engine_up()
        answer = front.client().answer(prompt, max_tokens=80, stop=("cabcab",), **options)
        said[enabled] = (answer.text, answer.token_ids, answer.last.reason, answer.last.completion_tokens)
        sweeps[enabled] = len(worker.sweeps)
        assert worker.wrong is None
        front.close()
        if not enabled:
            assert answer.last.drafted_tokens == 0 and not any(step.drafted for sweep in worker.sweeps for step in sweep.steps)
    assert said[True] == said[False]
    if prompt.startswith("abcdefgh"):
        assert sweeps[True] < sweeps[False] / 2


def test_answers_to_one_prompt_share_its_computation_and_differ_by_their_choice(start: StartFront) -> None:
    front = start(max_context=2048)
    worker = front.engine_up()
    client = front.client()
    prompt = "?" + "a" * 60 + "|"
    texts = {}
    for choice in (0, 1, 2):
        texts[choice] = client.answer(prompt, max_tokens=12, temperature=1.0, seed=5, choice=choice).text
    assert len(set(texts.values())) == 3
    for choice in (0, 1, 2):
        client.ask(prompt, max_tokens=12, temperature=1.0, seed=5, choice=choice)
    together = client.hear(Heard(), "Finished", 3)
    by_job = {accepted.job: choice for choice, accepted in enumerate(together.of("Accepted"))}
    for job, choice in by_job.items():
        assert "".join(piece.text for piece in together.of("Piece") if piece.job == job) == texts[choice]
    assert sum(len(step.tokens) for sweep in worker.sweeps for step in sweep.steps if step.start == 0) == len(prompt), "computed once"
    assert worker.wrong is None


def test_cancel_ends_an_answer_that_waits(start: StartFront) -> None:
    front = start(max_sequences=1)
    client = front.client()
    client.ask("abc|", max_tokens=3)
    client.ask("xyz|", max_tokens=3)
    heard = client.hear(Heard(), "Accepted", 2)
    second = heard.of("Accepted")[1].job
    client.send(Manage(0, second, "cancel"))
    client.hear(heard, "Finished")
    assert (heard.last.job, heard.last.reason, heard.last.completion_tokens) == (second, "cancelled", 0)
    front.engine_up()
    assert client.hear(Heard(heard.messages[:0]), "Finished").last.reason == "length"


# the daemon's states


def test_a_degraded_engine_parts_from_who_waits_and_refuses_new_ones_but_reports(start: StartFront) -> None:
    front = start(max_sequences=1)
    worker = front.engine_up()
    worker.hold.set()
    client = front.client()
    client.ask("abc|")
    client.ask("xyz|")
    heard = client.hear(Heard(), "Accepted", 2)
    front.epoch += 1
    front.tell("degraded", "the worker was killed five times")
    client.hear(heard, "Refused", 2)
    client.ask("new|")
    client.hear(heard, "Refused", 3)
    refused = heard.of("Refused")
    assert {(r.code, r.exit_code) for r in refused} == {("degraded", 75)}
    assert all("killed five times" in r.message for r in refused)
    client.send(Status(9))
    report = client.receive()
    assert isinstance(report, Report)
    assert (report.engine.state, report.engine.why, report.queue.running) == (
        "degraded",
        "the worker was killed five times",
        1,
    )


def test_status_names_model_engine_queue_and_stages(start: StartFront) -> None:
    front = start()
    front.engine_up()
    client = front.client()
    client.answer("abc|", max_tokens=6)
    client.send(Status(4))
    report = client.receive()
    assert isinstance(report, Report)
    assert (report.request, report.model.layers, report.model.streamed_bytes_per_sweep) == (4, 4, 1000)
    assert (report.engine.state, report.engine.epoch, report.engine.sweeps) == ("up", 1, 6)
    assert (report.engine.disk_limit_bytes_per_s, report.queue.running, report.queue.waiting) == (1e6, 0, 0)
    assert report.engine.disk_bytes_per_s is not None
    stages = {stage.name: stage for stage in report.stages}
    assert stages["front"].pid == front.process.pid
    assert stages["front"].state == stages["supervisor"].state == "up"
    assert stages["front"].rss_bytes > 1 << 20
    assert stages["worker"].state == "gone"


def test_sweeps_are_counted_for_the_supervisor(start: StartFront) -> None:
    front = start()
    front.engine_up()
    front.client().answer("abc|", max_tokens=3)
    counted = front.wait_for(lambda message: isinstance(message, Counted) and message.sweeps > 0)
    assert counted.sweeps <= 3
    assert counted.read_bytes == counted.sweeps * 1000


def test_the_supervisor_is_told_what_is_to_be_computed_and_when_that_is_nothing(start: StartFront) -> None:
    front = start(max_sequences=1)
    worker = front.engine_up()
    worker.hold.set()
    client = front.client()
    for _ in range(3):
        client.ask("abc|", max_tokens=2)
    told = front.wait_for(lambda message: isinstance(message, Queued) and message.running)
    assert (told.running, told.waiting, told.held, told.s_per_token) == (1, 2, False, None)
    worker.hold.clear()
    told = front.wait_for(lambda message: isinstance(message, Queued) and not message.running)
    assert (told.pid, told.waiting, told.s_per_token > 0) == (front.process.pid, 0, True)


def test_no_sweep_begins_while_the_machine_is_left_to_others_and_afterwards_all_goes_on(start: StartFront) -> None:
    front = start(max_sequences=1)
    worker = front.engine_up()
    worker.hold.set()
    client, why = front.client(), "this machine runs on battery"
    for _ in range(2):
        client.ask("abc|", max_tokens=40)
    front.wait_for(lambda message: isinstance(message, Queued) and message.running)
    front.tell("up", paused=why)
    told = front.wait_for(lambda message: isinstance(message, Queued))
    assert (told.running, told.paused) == (1, ""), "a sweep that has begun comes to its end"
    worker.hold.clear()
    told = front.wait_for(lambda message: isinstance(message, Queued) and message.paused)
    assert (told.running, told.waiting, told.paused) == (1, 1, why)
    sweeps = len(worker.sweeps)
    assert front.client().request(Status).queue.paused == why
    front.wait_for(lambda message: isinstance(message, Queued))
    assert len(worker.sweeps) == sweeps
    front.tell("up")
    heard = client.hear(Heard(), "Finished", 2)
    assert len(heard.token_ids) == 80
    assert {(progress.place, progress.why) for progress in heard.of("Progress") if progress.state == "paused"} == {(0, why), (1, why)}


def test_a_front_that_stops_says_so_to_whoever_waits_and_leaves_no_file(start: StartFront) -> None:
    front = start()
    front.engine_up(delay_s=0.01)
    client = front.client()
    client.ask("abc|")
    heard = client.hear(Heard(), "Piece")
    assert front.stop() == 0
    refused = client.hear(heard, "Refused").last
    assert (refused.code, refused.exit_code) == ("stopping", 75)
    path = Path(front.socket.removeprefix("ipc://"))
    assert not path.exists()
    assert not path.with_name(path.name + ".lock").exists()


def test_a_restarted_daemon_has_another_boot_and_takes_over_a_stale_socket(start: StartFront, tmp_path: Path) -> None:
    first = start()
    client = first.client()
    boot = _boot(client)
    first.process.kill()
    first.process.wait()
    second = start()
    assert Path(second.socket.removeprefix("ipc://")).is_socket()
    assert _boot(second.client()) != boot


def _boot(client: Client) -> str:
    client.send(Alive())
    answer = client.receive()
    assert isinstance(answer, Alive)
    return answer.boot


def test_heartbeats_are_answered_with_the_boot_of_the_welcome(start: StartFront) -> None:
    client = start().client(hello=False)
    client.send(Hello(PROTOCOL_VERSION))
    welcome = client.receive()
    assert isinstance(welcome, Welcome)
    assert welcome.max_context_tokens == 256
    assert _boot(client) == welcome.boot


def test_the_front_holds_no_torch(start: StartFront) -> None:
    front = start()
    maps = Path(f"/proc/{front.process.pid}/maps").read_text()
    assert "tokenizers" in maps
    assert "libtorch" not in maps


def test_a_chat_needs_a_template_and_the_refusal_names_raw(start: StartFront) -> None:
    client = start().client()
    client.ask(messages=(ChatMessage("user", "hello"),))
    refused = client.receive()
    assert isinstance(refused, Refused)
    assert refused.code == "no_template"
    assert "--raw" in refused.message


def test_a_bias_for_a_token_that_the_model_does_not_have_is_refused(start: StartFront) -> None:
    front = start()
    front.engine_up()
    client = front.client()
    client.ask("ab|", logit_bias=((5, 1.0), (VOCABULARY, 1.0)))
    refused = client.receive()
    assert (refused.code, refused.message) == ("bad_request", "logit_bias names the token 260, and the model's vocabulary has 260: ids are 0 to 259")
    assert client.answer("ab|", logit_bias=((VOCABULARY - 1, 1.0),), max_tokens=2).text == "ab"


def test_penalties_count_the_answer_and_not_the_prompt(start: StartFront) -> None:
    """A repeated letter loses its place when it has been said often enough, and the letters of the prompt lose nothing."""
    front = start()
    front.engine_up()
    prompt = "a" * 60 + "|"
    said = front.client().answer(prompt, max_tokens=40, frequency_penalty=2.0).text
    assert said.startswith("a" * 20) and set(said[30:]) - {"a"}
    assert front.client().answer(prompt, max_tokens=40).text == "a" * 40
