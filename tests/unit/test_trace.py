"""Traces: what is noted down, where time was lost, and the file."""

from __future__ import annotations

import json

import pytest

from potatod import trace
from potatod.errors import Unavailable
from potatod.messages import Span
from potatod.spans import Spans


def test_nothing_is_noted_down_where_nobody_watches():
    spans = Spans()
    spans.add("compute", "layer 0", 1.0, 2.0)
    assert spans.over(100.0) is None
    spans.begin(10.0)
    spans.add("compute", "layer 1", 3.0, 5.0)
    assert spans.over(9.9) is None
    assert spans.over(10.0) == [Span("compute", "layer 1", 3.0, 2.0)]
    spans.add("compute", "layer 2", 10.0, 11.0)
    assert spans.over(12.0) is None


def test_shares_are_of_the_time_in_which_anything_was_done_and_what_overlaps_counts_once():
    stages = {
        "reader": [
            Span("request 0", "part 0", 0.0, 4.0), Span("request 1", "part 0", 2.0, 4.0),
            Span("ring", "full", 5.0, 3.0), Span("checksum 0", "part 0", 6.0, 1.0),
        ],
        "worker": [Span("wait", "weights", 0.0, 5.0), Span("compute", "layer 0", 5.0, 2.5)],
        "front": [Span("sample", "sweep 1", 9.0, 1.0)],
    }  # fmt: skip
    found = trace.shares(stages)
    assert (found["reader"].busy, found["reader"].held, found["reader"].lost) == pytest.approx((0.6, 0.2, 0.2))
    assert (found["worker"].busy, found["worker"].held, found["worker"].lost) == pytest.approx((0.25, 0.5, 0.25))
    assert "60.0% reading, 20.0% held up by a full ring, 20.0% idle" in trace.as_text(found, [])


def test_what_a_worker_does_between_its_work_and_a_wait_is_not_lost_for_no_weights_were_there():
    compute = [Span("compute", "layer 0", 1.0, 1.0), Span("compute", "layer 1", 4.0, 1.0), Span("compute", "layer 2", 6.0, 2.0)]
    worker = [Span("wait", "weights", 0.5, 0.5), compute[0], Span("embedding", "1 rows", 2.25, 0.5), Span("wait", "weights", 3.0, 0.5), *compute[1:]]
    found = trace.shares({"reader": [Span("request 0", "part 0", 0.0, 10.0)], "worker": worker, "front": []})
    held, lost = 0.5 + 1.5, 0.5 + 0.5 + 1.0 + 2.0  # before layer 1 it did other things for a second first; what comes before and after all is nobody's
    assert (found["worker"].busy, found["worker"].held, found["worker"].lost) == pytest.approx((0.4, held / 10, lost / 10))
    assert found["worker"].own == pytest.approx(0.1)


def test_a_time_in_which_nothing_was_done_has_no_shares():
    nothing: dict[str, list[Span]] = {"reader": [], "worker": [], "front": []}
    assert trace.shares(nothing) == {}
    assert "ask the daemon something" in trace.as_text({}, [])


def test_the_file_has_a_process_for_each_stage_and_a_thread_for_each_track():
    compute, wait = Span("compute", "layer 0", 10.0, 0.5), Span("wait", "weights", 10.5, 1.0)
    stages = {"reader": [Span("request 0", "part 3", 10.5, 0.25)], "worker": [compute, wait]}
    events = json.loads(trace.as_chrome(stages))["traceEvents"]
    names = {(e["pid"], e["tid"]): e["args"]["name"] for e in events if e["ph"] == "M"}
    assert names == {(1, 0): "reader", (1, 1): "request 0", (2, 0): "worker", (2, 1): "compute", (2, 2): "wait"}
    spans = {e["name"]: (e["ts"], e["dur"], e["pid"]) for e in events if e["ph"] == "X"}
    assert spans == {"part 3": (500_000.0, 250_000.0, 1), "layer 0": (0.0, 500_000.0, 2), "weights": (500_000.0, 1_000_000.0, 2)}


def test_where_no_daemon_runs_that_is_told(tmp_path):
    with pytest.raises(Unavailable, match="no daemon runs in"):
        trace.collect(tmp_path, 1.0)
