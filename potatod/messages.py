"""Every message between the daemon's processes, by wire, in the order of the data path. Standard library only.

    disk ─▶ reader ══ bytes ══▶ worker ══ sweeps ══▶ front ══ clients ══▶ potato-client
                 └───────────────┴─ control, events ─┴──▶ supervisor

The public messages of the ``clients`` wire live in ``potato_client.protocol``; these here never leave the machine's daemon.
Offsets and lengths are bytes, counted from the start of the pool.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

# ── bytes: reader ⇄ worker ────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class Loaded:
    """reader → worker: the pool's ``[offset, offset + length)`` holds that part. The bytes are the worker's now."""

    #: index into the plan's parts
    part: int
    offset: int
    length: int


@dataclass(frozen=True, slots=True)
class Passed:
    """reader → worker: one cyclic pass over the disk-homed parts has been read (the first pass also loads the residents)."""

    number: int
    read_bytes: int
    #: seconds in which at least one read was under way
    busy_s: float


@dataclass(frozen=True, slots=True)
class Freed:
    """worker → reader: the use of the parts that lie there is complete. Their bytes are the reader's again."""

    offsets: tuple[int, ...]


# ── sweeps: front ⇄ worker ────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class Branch:
    """Guesses beside a step's own tokens."""

    #: the guess that they follow, counted from 0 over the step's ``drafted`` tokens and those of the branches before; −1: what comes before all guesses
    after: int
    tokens: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Step:
    """One sequence's part in a sweep: its tokens from position ``start`` on."""

    sequence: int
    #: position of ``tokens[0]``; equals the number of tokens whose KV the worker holds for this sequence
    start: int
    tokens: tuple[int, ...]
    #: tokens of the sequence that exist by now, those that later sweeps will bring included
    known: int
    #: what to return for the last of these tokens, and with guesses for each of the last 1 + ``drafted``, then for each of the branches' tokens
    want: Literal["nothing", "argmax", "logits"]
    #: of these tokens the last so many are guesses
    drafted: int = 0
    #: no longer, each, than it leaves the sequence with more tokens than ``tokens`` do
    branches: tuple[Branch, ...] = ()

    @property
    def rows(self) -> int:
        """Tokens that are computed."""
        return len(self.tokens) + sum(len(branch.tokens) for branch in self.branches)

    @property
    def wanted(self) -> int:
        """Rows that are returned."""
        return 0 if self.want == "nothing" else 1 + self.drafted + self.rows - len(self.tokens)


@dataclass(frozen=True, slots=True)
class Sweep:
    """front → worker: advance these sequences once. Sending sweep n + 1 gives back the rows of sweep n."""

    epoch: int
    number: int
    steps: tuple[Step, ...]


@dataclass(frozen=True, slots=True)
class Drop:
    """front → worker: forget the KV of this sequence. Acts between sweeps."""

    sequence: int


@dataclass(frozen=True, slots=True)
class Cut:
    """front → worker: forget the KV of this sequence behind its first ``length`` tokens: guesses that were wrong. Acts between sweeps."""

    sequence: int
    length: int
    #: its tokens behind those that were known are those of this branch of its last step, and before it of the branches that it follows; None: of none
    branch: int | None = None


@dataclass(frozen=True, slots=True)
class Fork:
    """front → worker: a new sequence that begins with the first ``length`` tokens of another one, whose KV is there. Acts between sweeps."""

    sequence: int
    of: int
    length: int


@dataclass(frozen=True, slots=True)
class Drawn:
    """How a text's tokens are sampled: potatod.sampling.params, and which of several answers it is."""

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int = 0
    choice: int = 0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    #: token ids, and what is added to the logit of each
    logit_bias: tuple[tuple[int, float], ...] = ()
    #: tokens before the answer
    prompt_tokens: int = 0


@dataclass(frozen=True, slots=True)
class DraftText:
    """A text that the draft model is to go on with."""

    sequence: int
    #: all that are known; where it is only to be read no more than are held, and the sweep may bring
    tokens: tuple[int, ...]
    #: tokens that guesses may be ahead of it; 0: the draft model is only to read it
    most: int
    #: tokens that may follow altogether
    room: int
    drawn: Drawn


@dataclass(frozen=True, slots=True)
class Draft:
    """front → worker, between two sweeps: guess how these texts go on, as long as that makes tokens per second more."""

    epoch: int
    number: int
    texts: tuple[DraftText, ...]
    #: guesses, of all texts together
    nodes: int
    #: tokens that the draft model reads at most, beside the last one of each text: what it has not seen of prompts
    reads: int
    #: seconds that the next sweep will take; and wait for weights, so that what is only to be read can be read then
    sweep_s: float
    spare_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Guessed:
    """A tree of guesses: see trees.py."""

    sequence: int
    tokens: tuple[int, ...]
    parents: tuple[int, ...]
    chances: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Drafted:
    """worker → front: what the draft model guesses."""

    epoch: int
    number: int
    guessed: tuple[Guessed, ...]
    seconds: float
    #: of these it took to read so many tokens that it had not seen
    read_s: float = 0.0
    read_tokens: int = 0
    #: why there is no draft model any more; empty while there is
    failed: str = ""


@dataclass(frozen=True, slots=True)
class Row:
    """What a step wanted: the likeliest token, or where its logits lie. Those of guesses follow each other in the step's order."""

    sequence: int
    token: int | None = None
    #: index of the row in the shared logits region, fp32, vocabulary long
    logits_row: int | None = None


@dataclass(frozen=True, slots=True)
class Rows:
    """worker → front: sweep ``number`` is complete."""

    epoch: int
    number: int
    rows: tuple[Row, ...]
    seconds: float
    #: bytes that came from disk for this sweep
    read_bytes: int
    #: read_bytes ÷ seconds with a read under way, over the reader's last pass; None before one is complete
    read_bytes_per_s: float | None
    #: of the seconds: the worker had nothing to compute with
    waited_s: float = 0.0
    #: the card had not the memory for so much at once: there are no rows, and no KV of the sweep's sequences any more
    exhausted: bool = False


@dataclass(frozen=True, slots=True)
class LayerDone:
    """worker → front, a few times a second: how far sweep ``number`` has come."""

    epoch: int
    number: int
    layers_done: int
    layers: int


# ── control: supervisor → stages; events: stages → supervisor ─────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class StageProcess:
    name: str
    pid: int
    #: seconds since the epoch of time.time()
    started: float


#: Of an engine: see supervisor.NOTE [ states of the engine ].
State = Literal["starting", "up", "restarting", "switching", "degraded", "stopping"]


@dataclass(frozen=True, slots=True)
class Engine:
    """supervisor → front: what the engine is now. KV of an earlier epoch is gone."""

    epoch: int
    state: State
    restarts: int
    why: str
    stages: tuple[StageProcess, ...]
    #: which of the models that are served it has, or is to have
    model: int = 0
    #: why no sweep begins though it is up, a sentence; empty where sweeps go on. See pausing.py: jobs keep their places
    paused: str = ""


@dataclass(frozen=True, slots=True)
class Reload:
    """supervisor → stages: these settings hold from now on. They differ from a stage's only where reload.LIVE lets them."""

    #: Settings.to_json
    settings: str


@dataclass(frozen=True, slots=True)
class Stop:
    """supervisor → stages: end now, in order."""


@dataclass(frozen=True, slots=True)
class Ready:
    """stage → supervisor: it can do its work."""

    stage: str
    pid: int
    #: a line for the log: what it did to get ready
    note: str


@dataclass(frozen=True, slots=True)
class Failed:
    """stage → supervisor: it cannot go on and ends with this exit code."""

    stage: str
    pid: int
    exit_code: int
    why: str


@dataclass(frozen=True, slots=True)
class Counted:
    """stage → supervisor, about once a second whatever it does: it lives. One that is silent for long is killed (stages.SILENT_S)."""

    stage: str
    pid: int
    #: over its life
    sweeps: int
    read_bytes: int
    #: that were computed, a draft model's passes too
    layers: int = 0


@dataclass(frozen=True, slots=True)
class Queued:
    """front → supervisor, after each of its Counted: what is to be computed, and how fast that goes."""

    pid: int
    running: int
    waiting: int
    #: none of them is computed: jobs cannot be written
    held: bool
    #: of late; None before the first sweep
    s_per_token: float | None
    #: why none of them is computed though it could be, and no sweep is under way: as in Engine
    paused: str = ""


@dataclass(frozen=True, slots=True)
class Parted:
    """front → supervisor: for long, sweeps have not taken what was expected of them; what this machine does is to be tried out anew."""

    pid: int
    expected_s: float
    real_s: float


@dataclass(frozen=True, slots=True)
class Switch:
    """front → supervisor: this of the models that are served is to have the engine now; no sweep is under way."""

    pid: int
    model: int


@dataclass(frozen=True, slots=True)
class Poisoned:
    """front → supervisor: a job has failed since engines died of it, so that what they died of is gone."""

    pid: int


@dataclass(frozen=True, slots=True)
class Trace:
    """whoever watches → supervisor → stages: for so long from now, note down what you do when."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Span:
    """Something that a stage did."""

    #: what of the stage was busy with it
    track: str
    name: str
    #: time.monotonic()
    began: float
    seconds: float


@dataclass(frozen=True, slots=True)
class Traced:
    """stage → supervisor → whoever watches: what it noted down, some of it at a time."""

    stage: str
    pid: int
    spans: tuple[Span, ...]
    last: bool


BYTES_WIRE = (Loaded, Passed, Freed)
SWEEPS_WIRE = (Sweep, Drop, Fork, Cut, Draft, Drafted, Rows, LayerDone)
CONTROL_WIRE = (Engine, Reload, Stop, Ready, Failed, Counted, Queued, Parted, Poisoned, Switch, Trace, Traced)
