"""What a daemon says of itself: the parts of protocol.Report. docs/PROTOCOL.md is the same in prose."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Guesses:
    """Of one source; what two sources guess alike is counted for both."""

    #: "lookup": what followed the same words earlier; "draft": the draft model
    source: str
    drafted_tokens: int
    #: of those, the ones that were right
    accepted_tokens: int


@dataclass(frozen=True, slots=True)
class StageReport:
    name: str
    pid: int
    state: str
    rss_bytes: int
    uptime_s: float


#: Of a model's chat template: it knows none; it knows them, and how the model writes a call is not known here; it is
ToolUse = Literal["none", "text", "calls"]


@dataclass(frozen=True, slots=True)
class ModelReport:
    name: str
    architecture: str
    dtype: str
    layers: int
    weights_bytes: int
    resident_bytes: int
    streamed_bytes_per_sweep: int
    card_bytes: int = 0
    tools: ToolUse = "none"


@dataclass(frozen=True, slots=True)
class ServedReport:
    """One of the models that are served, whether it has the engine or not."""

    name: str
    #: it has the engine; it is being loaded; another one has it; it stays down until the daemon is restarted
    state: Literal["up", "loading", "waiting", "down"]
    running: int
    waiting: int
    max_context_tokens: int
    tools: ToolUse = "none"
    #: why it is down
    why: str = ""


@dataclass(frozen=True, slots=True)
class EngineReport:
    state: Literal["starting", "up", "restarting", "switching", "degraded", "stopping"]
    epoch: int
    restarts: int
    device: str
    kernels: str
    sweeps: int
    why: str = ""
    s_per_sweep: float | None = None
    #: what the plan expects a sweep like the last ones to take; None before the first
    expected_s_per_sweep: float | None = None
    #: of s_per_sweep: nothing could be computed since weights were still on their way
    waited_s_per_sweep: float | None = None
    #: over the last sweeps, wall time; None where nothing was read
    disk_bytes_per_s: float | None = None
    #: as in Finished
    disk_limit_bytes_per_s: float | None = None


@dataclass(frozen=True, slots=True)
class QueueReport:
    running: int
    waiting: int
    max_running: int
    max_waiting: int
    #: of the memory for the KV of all texts: what running ones take, what is kept for others to go on from besides, and all
    kv_running_bytes: int = 0
    kv_kept_bytes: int = 0
    kv_bytes: int = 0
    #: texts that are over and kept
    kept: int = 0
    #: prompt tokens that were asked for since the front started, and of those the ones that others had computed
    prompt_tokens: int = 0
    reused_tokens: int = 0
    #: how often an answer had to make place for others, and went on later
    set_aside: int = 0
    #: guessed since the front started, and of those the ones that were right
    drafted_tokens: int = 0
    accepted_tokens: int = 0
    #: the same by who guessed them
    guesses: tuple[Guesses, ...] = ()
    #: why the draft model guesses no more; empty where it does, or there is none
    draft_failed: str = ""
    #: why nothing is accepted and computed now: jobs cannot be written; empty where they can
    trouble: str = ""
    #: why no sweep begins now: the machine is to be left to others; empty where sweeps go on
    paused: str = ""
    #: said since the front started; by sweeps: tokens a sweep
    tokens: int = 0
    #: jobs that are over since then and of which it was said half-way when they would be; of these the ones that ended within what was said; and the
    #: sum of how far its middle was off
    etas: int = 0
    etas_kept: int = 0
    eta_error_s: float = 0.0
