"""`potatod trace`: what every stage of the running daemon did in some seconds, as a file that trace viewers open, and where time was lost.

    command ──Trace──▶ supervisor ──Trace──▶ stages … ──Traced──▶ supervisor ──Traced──▶ command
"""

from __future__ import annotations

import bisect
import json
import os
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import zmq

from . import wire
from .errors import Unavailable
from .messages import Span, Trace, Traced

#: Beyond the seconds asked for, a stage may take so long to answer.
_PATIENCE_S: Final = 15.0
_STAGES: Final = ("reader", "worker", "front")


def collect(directory: Path, seconds: float) -> dict[str, list[Span]]:
    """The spans of each stage over the next ``seconds``.

    Raises :class:`Unavailable` where no daemon runs in ``directory``, or a stage ends meanwhile.
    """
    if not (directory / "control").is_socket():
        raise Unavailable(f"no daemon runs in {directory}; name its configuration with --config, as for `potatod start`")
    context: zmq.Context[Any] = zmq.Context()
    control = wire.control_wire(context, directory, f"trace.{os.getpid()}")
    found: dict[str, list[Span]] = {stage: [] for stage in _STAGES}
    missing = set(_STAGES)
    try:
        control.send(Trace(seconds))
        until = time.monotonic() + seconds + _PATIENCE_S
        while missing:
            if not control.wait(max(0.0, until - time.monotonic())):
                raise Unavailable(f"the daemon in {directory} did not answer: {' and '.join(sorted(missing))} said nothing")
            said = control.receive()
            if isinstance(said, Traced) and said.stage in found:
                found[said.stage] += said.spans
                if said.last:
                    missing.discard(said.stage)
    finally:
        control.close()
        context.term()
    return found


def as_chrome(stages: dict[str, list[Span]]) -> str:
    """In the trace event format of Chrome: microseconds, a process for each stage, a thread for each track."""
    events: list[dict[str, Any]] = []
    first = min((span.began for spans in stages.values() for span in spans), default=0.0)
    for process, (stage, spans) in enumerate(stages.items(), 1):
        events.append({"ph": "M", "name": "process_name", "pid": process, "tid": 0, "args": {"name": stage}})
        tracks = {track: number for number, track in enumerate(sorted({span.track for span in spans}), 1)}
        events += [{"ph": "M", "name": "thread_name", "pid": process, "tid": n, "args": {"name": t}} for t, n in tracks.items()]
        events += [
            {
                "ph": "X", "name": span.name, "cat": span.track, "pid": process, "tid": tracks[span.track],
                "ts": round((span.began - first) * 1e6, 1), "dur": round(span.seconds * 1e6, 1),
            }
            for span in spans
        ]  # fmt: skip
    return json.dumps({"traceEvents": events, "displayTimeUnit": "ms"}) + "\n"


@dataclass(frozen=True, slots=True)
class Share:
    """Of the seconds that were watched, each a share of them."""

    #: a read was under way; the worker computed
    busy: float
    #: it had to wait for the other: the ring was full; weights were on their way, whatever it did meanwhile
    held: float
    #: of ``held``: what it did itself after its work, before it began to wait
    own: float = 0.0

    @property
    def lost(self) -> float:
        return max(0.0, 1 - self.busy - self.held)


def shares(stages: dict[str, list[Span]]) -> dict[str, Share]:
    """What the reader and the worker did with their time, from the first span of any to the last. What is neither busy nor held is lost."""
    every = [span for spans in stages.values() for span in spans]
    if not every:
        return {}
    first, last = min(span.began for span in every), max(span.began + span.seconds for span in every)
    reading, full = _of(stages["reader"], "request"), _of(stages["reader"], "ring")
    computing = _of(stages["worker"], "compute")
    waits = _of(stages["worker"], "wait")
    without_weights = _since_work(computing, waits)
    found = {}
    for stage, busy, held in (("reader", reading, full), ("worker", computing, without_weights)):
        working = _union(busy)
        found[stage] = Share(working / (last - first), (_union([*busy, *held]) - working) / (last - first))
    own = _union([*computing, *without_weights]) - _union([*computing, *waits])
    found["worker"] = replace(found["worker"], own=own / (last - first))
    return found


#: (began, ended)
_Interval = tuple[float, float]


def _of(spans: Iterable[Span], track: str) -> list[_Interval]:
    return [(span.began, span.began + span.seconds) for span in spans if span.track.startswith(track)]


def _since_work(work: Sequence[_Interval], waits: Sequence[_Interval]) -> list[_Interval]:
    """The waits, each from the end of the work before it on: weights that were not there when it began had not been there in between either."""
    ends = sorted(end for _, end in work)
    since = [ends[before - 1] if (before := bisect.bisect_right(ends, began)) else began for began, _ in waits]
    return [(began, ended) for began, (_, ended) in zip(since, waits, strict=True)]


def _union(intervals: Iterable[_Interval]) -> float:
    """Seconds in which any of them is."""
    total, end = 0.0, float("-inf")
    for began, ended in sorted(intervals):
        total += max(0.0, ended - max(began, end))
        end = max(end, ended)
    return total


def as_text(found: dict[str, Share], spans: Sequence[Span]) -> str:
    """A line for each stage."""
    if not found:
        return "nothing was done in that time: ask the daemon something meanwhile\n"
    reader, worker = found["reader"], found["worker"]
    return (
        f"{len(spans)} spans\n"
        f"  reader  {reader.busy:.1%} reading, {reader.held:.1%} held up by a full ring, {reader.lost:.1%} idle\n"
        f"  worker  {worker.busy:.1%} computing, {worker.held:.1%} waiting for weights, {worker.lost:.1%} idle\n"
    )
