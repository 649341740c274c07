"""The public protocol: what a client and the daemon's front say to each other. docs/PROTOCOL.md is the same in prose.

    client                                front
      Hello(version)              ───▶
                                  ◀───    Welcome(version, boot, model, …)     or Refused
      Generate(request, …)        ───▶
                                  ◀───    Accepted(request, job, seed, …)      or Refused(request)
                                  ◀───    Progress(job, …) *
                                  ◀───    Piece(job, index, text, …) *
                                  ◀───    Finished(job, reason, …)             or Refused(job)
      Attach(request, job, …)     ───▶    as Generate, from where the client is
      Detach(job)                 ───▶    nothing more of it, which goes on
      Manage(request, job, what)  ───▶
                                  ◀───    Managed(request, report)             or Refused(request)
      List(request, …)            ───▶
                                  ◀───    Listed(request, reports, more)
      Show(request, job)          ───▶
                                  ◀───    Described(request, report, …)        or Refused(request)
      Alive()                     ───▶    every few seconds while anything is expected
                                  ◀───    Alive(boot)
      Status(request)             ───▶
                                  ◀───    Report(request, …)

One ZeroMQ message of one frame each way, a DEALER at the client, a ROUTER at the front. Imports only the standard
library, the codec and the exit codes, so that both sides share it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal, get_args

from .bounds import whole
from .codec import Codec
from .exit_codes import EXIT_INTERNAL, EXIT_NO_INPUT, EXIT_TRY_AGAIN, EXIT_UNAVAILABLE, EXIT_USAGE
from .job_report import JobReport, JobState
from .question import ChatMessage, Options
from .status import EngineReport, Guesses, ModelReport, QueueReport, ServedReport, StageReport

#: Raised by one whenever an old peer could misunderstand a new one. The front refuses what it does not speak.
PROTOCOL_VERSION: Final = 3

#: A client that expects something sends Alive this often; the front answers each.
HEARTBEAT_S: Final = 2.0
#: Nothing heard for this long: the front the client spoke to is gone.
SILENCE_S: Final = 10.0
#: The front says no more to a client it has not heard of for this long. Its jobs go on.
VANISHED_S: Final = 30.0

#: Of one client: so many frames a second, and so many at once after a pause. What is more is dropped.
FRAMES_PER_S: Final = 256
BURST_FRAMES: Final = 512
#: Of one client, followed at once.
MAX_FOLLOWED: Final = 256
#: Messages that a client may leave unread; then it has vanished.
MAX_UNREAD: Final = 1024
#: Progress that says nothing but other figures comes no more often.
PROGRESS_EVERY_S: Final = 0.5

MAX_MESSAGES: Final = 10_000
MAX_TOOLS: Final = 128
MAX_KEY_CHARS: Final = 128
MAX_MODEL_CHARS: Final = 255
#: In one Listed.
MAX_LISTED: Final = 1000


# client → front


@dataclass(frozen=True, slots=True)
class Hello:
    version: int
    #: for the log: "potato-client 0.1.0"
    client: str = ""


@dataclass(frozen=True, slots=True)
class Generate:
    """Ask for an answer. Either ``messages`` (through the model's chat template) or ``prompt`` (as it is)."""

    #: chosen by the client, echoed in Accepted or Refused
    request: int
    messages: tuple[ChatMessage, ...] = ()
    prompt: str | None = None
    options: Options = Options()  # noqa: RUF009  frozen
    #: a name for this request that the client has never used before: asked for a second time, it is the same job
    key: str = ""
    #: whether the client wants to hear of it beyond Accepted
    follow: bool = True
    #: what the model may call, each a JSON object as text, for its chat template. The answer comes as the model writes it
    tools: tuple[str, ...] = ()
    #: which of Welcome's models; the first where it is empty
    model: str = ""

    def __post_init__(self) -> None:
        if (self.prompt is None) == (not self.messages):
            raise ValueError("give either messages or prompt, not both and not neither")
        if self.tools and not self.messages:
            raise ValueError("tools go with messages: a prompt is taken as it is")
        if len(self.tools) > MAX_TOOLS:
            raise ValueError(f"at most {MAX_TOOLS} tools")
        if len(self.messages) > MAX_MESSAGES:
            raise ValueError(f"at most {MAX_MESSAGES} messages")
        if len(self.key) > MAX_KEY_CHARS:
            raise ValueError(f"key must have at most {MAX_KEY_CHARS} characters")
        if len(self.model) > MAX_MODEL_CHARS:
            raise ValueError(f"model must have at most {MAX_MODEL_CHARS} characters")


@dataclass(frozen=True, slots=True)
class Attach:
    """Hear of a job that was asked for earlier: what there is beyond what the client has, and what comes."""

    request: int
    #: its id, or the beginning of it where that is no other's
    job: str
    #: tokens that the client has, and characters of answer and reasoning
    tokens: int = 0
    text_chars: int = 0
    reasoning_chars: int = 0

    def __post_init__(self) -> None:
        for name in ("tokens", "text_chars", "reasoning_chars"):
            whole(name, getattr(self, name), 0, 1 << 40, "a whole number, 0 or more")


@dataclass(frozen=True, slots=True)
class Detach:
    job: str


JobAction = Literal["cancel", "pause", "resume", "retry", "delete"]


@dataclass(frozen=True, slots=True)
class Manage:
    #: 0 where no answer is wanted
    request: int
    job: str
    action: JobAction


@dataclass(frozen=True, slots=True)
class List:
    request: int
    #: of these states; all where there is none
    states: tuple[JobState, ...] = ()
    #: only jobs that arrived before the one of this number; 0: the newest
    before: int = 0
    limit: int = 100

    def __post_init__(self) -> None:
        whole("before", self.before, 0, 1 << 62, "a whole number, 0 or more")
        whole("limit", self.limit, 1, MAX_LISTED, f"a whole number from 1 to {MAX_LISTED}")


@dataclass(frozen=True, slots=True)
class Show:
    request: int
    job: str


@dataclass(frozen=True, slots=True)
class Status:
    request: int


# both ways


@dataclass(frozen=True, slots=True)
class Alive:
    #: the front's boot id in its answers, empty from a client
    boot: str = ""


# front → client


@dataclass(frozen=True, slots=True)
class Welcome:
    version: int
    #: another one means another front: what was asked of the old one is gone
    boot: str
    daemon: str
    #: the one that is asked where nobody says which, and tokens that its texts may have
    model: str
    max_context_tokens: int
    #: all that are served, by name
    models: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Accepted:
    request: int
    job: str
    seed: int
    prompt_tokens: int
    #: answers before this one; 0 runs now
    place: int
    #: whether it was there already: asked for with the same key, or attached to
    known: bool = False


@dataclass(frozen=True, slots=True)
class Progress:
    """Sent now and then while a job waits or is prefilled, and after a restart of the engine."""

    job: str
    state: Literal["queued", "prefill", "decode", "restarting", "loading", "paused"]
    place: int = 0
    #: of the sweep under way
    layers_done: int = 0
    layers: int = 0
    #: prompt tokens that have been prefilled, of all
    prefilled_tokens: int = 0
    prompt_tokens: int = 0
    #: seconds per sweep, None until one is known
    s_per_token: float | None = None
    #: seconds until this job's first token, None where nobody knows
    eta_s: float | None = None
    #: where nothing of any job is computed for now: why
    why: str = ""


@dataclass(frozen=True, slots=True)
class LikelyToken:
    token_id: int
    #: natural, of the model's own logits: before bias, penalties and temperature; -9999 where it is less
    logprob: float
    #: of its text behind other text: UTF-8, and in many tokens only a part of a character
    text_bytes: bytes


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """Of a token of the answer; fields as in LikelyToken."""

    token_id: int
    logprob: float
    text_bytes: bytes
    #: the likeliest tokens in its place, itself among them where it is one, the likeliest first
    alternatives: tuple[LikelyToken, ...] = ()


@dataclass(frozen=True, slots=True)
class Piece:
    job: str
    #: of the first token in this piece, counted from 0 over the whole answer; pieces arrive in order and without gaps
    index: int
    text: str
    token_ids: tuple[int, ...]
    #: text that belongs to the model's thoughts, not to its answer
    reasoning: str = ""
    #: one for each of token_ids where Options.top_logprobs asks for them, else none
    logprobs: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True, slots=True)
class Finished:
    job: str
    #: stop: end of text or a stop string; length: max_tokens or the context is full
    reason: Literal["stop", "length", "cancelled"]
    prompt_tokens: int
    #: tokens in the answer; an end-of-text token is not counted
    completion_tokens: int
    #: from Accepted to the first sweep with this job in it
    queued_s: float
    #: from then to the first token
    prefill_s: float
    #: from then to the end
    decode_s: float
    #: sweeps this job took part in
    sweeps: int = 0
    #: read from disk during those sweeps
    disk_bytes: int = 0
    #: disk_bytes ÷ (prefill_s + decode_s); None where nothing was read
    disk_bytes_per_s: float | None = None
    #: the most that was seen since the front started, while reads were under way; None where nothing was read
    disk_limit_bytes_per_s: float | None = None
    #: guessed in these sweeps, and of those the ones that were right: each of them spared a sweep
    drafted_tokens: int = 0
    accepted_tokens: int = 0
    #: the same by who guessed them
    guesses: tuple[Guesses, ...] = ()


RefusalCode = Literal[
    "bad_frame", "too_fast", "bad_version", "hello_first", "bad_request", "prompt_too_long", "empty_prompt", "no_template",
    "queue_full", "degraded", "stopping", "storage", "unknown_job", "ambiguous_job", "not_now", "key_used", "other_model", "poisoned", "internal",
]  # fmt: skip

#: What a command-line client ends with; Refused carries it, so that whoever passes it on needs no table.
REFUSAL_EXIT_CODES: Final[Mapping[RefusalCode, int]] = {
    "bad_frame": EXIT_INTERNAL,
    "too_fast": EXIT_TRY_AGAIN,
    "bad_version": EXIT_UNAVAILABLE,
    "hello_first": EXIT_TRY_AGAIN,
    "bad_request": EXIT_USAGE,
    "prompt_too_long": EXIT_USAGE,
    "empty_prompt": EXIT_USAGE,
    "no_template": EXIT_USAGE,
    "queue_full": EXIT_TRY_AGAIN,
    "degraded": EXIT_TRY_AGAIN,
    "stopping": EXIT_TRY_AGAIN,
    "storage": EXIT_TRY_AGAIN,
    "unknown_job": EXIT_NO_INPUT,
    "ambiguous_job": EXIT_USAGE,
    "not_now": EXIT_USAGE,
    "key_used": EXIT_USAGE,
    "other_model": EXIT_NO_INPUT,
    "poisoned": EXIT_INTERNAL,
    "internal": EXIT_INTERNAL,
}
assert set(REFUSAL_EXIT_CODES) == set(get_args(RefusalCode))


@dataclass(frozen=True, slots=True)
class Refused:
    """The request or job comes to nothing, for a reason that a person understands.

    Without ``request`` and ``job`` nothing that this client asked for will come.
    """

    code: RefusalCode
    message: str
    #: of REFUSAL_EXIT_CODES
    exit_code: int
    request: int | None = None
    job: str | None = None

    @classmethod
    def because(cls, code: RefusalCode, message: str, *, request: int | None = None, job: str | None = None) -> Refused:
        """With the exit code that belongs to the code."""
        return cls(code, message, REFUSAL_EXIT_CODES[code], request, job)


@dataclass(frozen=True, slots=True)
class Managed:
    request: int
    #: as it is now; of a job that has been deleted, as it was
    report: JobReport


@dataclass(frozen=True, slots=True)
class Listed:
    request: int
    #: the newest first
    reports: tuple[JobReport, ...]
    #: whether there are older ones
    more: bool


@dataclass(frozen=True, slots=True)
class Described:
    """A job and what was asked. What was answered comes with Attach."""

    request: int
    report: JobReport
    seed: int
    messages: tuple[ChatMessage, ...]
    prompt: str | None
    options: Options
    tools: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Report:
    request: int
    daemon: str
    boot: str
    uptime_s: float
    #: the one that has the engine
    model: ModelReport
    engine: EngineReport
    queue: QueueReport
    stages: tuple[StageReport, ...]
    #: all that are served
    models: tuple[ServedReport, ...] = ()


FROM_CLIENT: Final = Codec(Hello, Generate, Attach, Detach, Manage, List, Show, Status, Alive, max_items=MAX_MESSAGES)
FROM_FRONT: Final = Codec(Welcome, Accepted, Progress, Piece, Finished, Refused, Managed, Listed, Described, Report, Alive)
