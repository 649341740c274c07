"""The sections of the settings tree. Each key is declared here, once: its type, its default, what is allowed and the reason it exists make its
flag, its variable, its lines in config/potatod.toml and its checks."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from potato_client.paths import default_socket, state_directory

from . import bearer_token
from .address_keys import HOST_NAMES, ORIGINS, Listen, Remote, Socket
from .keys import Choice, Device, DraftModel, Duration, File, Folder, Folders, Kind, Number, Plain, Share, ShareOfTime, Size, Whole
from .sizes import Auto, Percent


def _key(
    default: Any, kind: Kind, reason: str, *, name: str = "", unset: str = "", example: Plain = None,
) -> Any:  # fmt: skip
    """Declares a key. ``default`` may be a function of no arguments, for what depends on the machine; ``unset`` says in
    words what then holds, ``example`` is what the commented file shows instead."""
    metadata = {"kind": kind, "reason": reason, "name": name, "unset": unset, "example": example}
    if callable(default):
        return field(default_factory=default, metadata=metadata)
    return field(default=default, metadata=metadata)


def _default_directory() -> str:
    return str(Path(default_socket().removeprefix("ipc://")).parent)


@dataclass(frozen=True, slots=True)
class Model:
    #: absolute, or empty where nobody has said yet
    path: str = _key(
        "", Folder(), "The model folder that is served, as `potatod prepare` made it.",
        unset="none: give it here, as --model, or as the argument of `potatod start`", example="/var/lib/potato/model",
    )  # fmt: skip
    mirrors: tuple[str, ...] = _key(
        (), Folders(), "The same model folder on other disks. All are read at the same time, each as fast as it is.", unset="none",
        example=["/mnt/second/model"],
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class OneOfModels:
    """An entry of [[models]]."""

    #: absolute
    path: str
    mirrors: tuple[str, ...] = ()
    #: as [speculation] draft; None: what that says
    draft: str | None = None


@dataclass(frozen=True, slots=True)
class Pool:
    #: bytes where it is a number
    size: int | Percent | Auto = _key(  # noqa: RUF009  a declaration; what it holds is frozen
        Auto(), Share("the RAM available at start"),
        "RAM for weights. What fits stays for good, the rest streams through it from disk for every token.",
    )  # fmt: skip
    reserve: int | Percent | Auto = _key(  # noqa: RUF009  as above
        Auto(), Share("the RAM available at start"),
        "RAM that is left to everything else where size is auto. auto leaves 256MiB, and 32MiB of a cgroup of the daemon's own.",
    )  # fmt: skip
    page_lock: bool | Literal["auto"] = _key(
        "auto", Choice(("auto", True, False)),
        "Whether the pool is page-locked for CUDA, so that uploads run beside the computation: auto where it can be, true or not at all. "
        "No effect on a CPU.",
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Kv:
    #: bytes where it is a number
    size: int | Percent | Auto = _key(  # noqa: RUF009  as above
        Auto(), Share("the RAM available at start, or the card's free memory"),
        "Memory for the KV cache of all texts, running or kept for the next turn of a chat. auto takes a tenth at most, and no more than "
        "max_sequences texts of max_context tokens.",
    )  # fmt: skip
    dtype: Literal["auto", "bfloat16", "float8"] = _key(
        "auto", Choice(("auto", "bfloat16", "float8")),
        "What keys and values are kept as. auto: in the model's own dtype, exactly. float8 holds twice the tokens of bf16 in the same memory and "
        "rounds each number to four bits, so that answers may differ.",
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Reader:
    io: Literal["auto", "direct", "buffered"] = _key(
        "auto", Choice(("auto", "direct", "buffered")),
        "How shards are read: past the page cache (direct), or through it (buffered), as network file systems need.",
    )  # fmt: skip
    in_flight: int = _key(
        4, Whole(1, 64, "reads"), "Reads under way at the same time. One leaves a fast disk idle between two of them."
    )
    #: bytes
    piece: int = _key(
        8 << 20, Size(64 << 10, 256 << 20, multiple=4096),
        "Larger parts are read as several requests of this size. Small ones cost rate, huge ones overlap.",
    )  # fmt: skip
    verify: Literal["auto", "always", "first", "never"] = _key(
        "auto", Choice(("auto", "always", "first", "never")),
        "When bytes are compared with their checksums: on every read, on the first of each part, or never. auto takes always, but first where "
        "that would cost more than a twentieth of a token's time.",
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Worker:
    device: str = _key("auto", Device(), "Where the model computes. auto takes a card where there is one; simulated is for trials without one.")
    #: bytes where it is a number
    vram: int | Percent | Auto = _key(  # noqa: RUF009  as above
        Auto(), Share("the card's free memory"),
        "Memory of the card that the worker may take: slots, KV cache and resident layers. No effect on a CPU.",
    )  # fmt: skip
    threads: int = _key(0, Whole(0, 1024, "threads"), "Threads that compute; 0 takes one per core.")
    kernels: Literal["invariant", "fast", "reference"] = _key(
        "invariant", Choice(("invariant", "fast", "reference")),
        "How exact the arithmetic is. invariant: a text is the same alone, batched, chunked or resumed. fast: the "
        "fastest kernel for each batch, texts may part at near-ties. reference: transformers' own operations, bit for "
        "bit, for one unchunked sequence.",
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Front:
    socket: str = _key(
        default_socket, Socket(), "Where clients connect. Only processes of the same user are let in.",
        unset="in the user's runtime directory, where potato-client looks too",
        example="ipc:///run/user/1000/potato/front.sock",
    )  # fmt: skip
    remote: str = _key(
        "", Remote(), "Where clients of other machines connect, encrypted, and only with keys that `potatod keys add` made. Nowhere where it is empty.",
    )  # fmt: skip
    keys: str = _key(
        lambda: str(state_directory() / "keys"), Folder(), "Where the keys of remote are.",
        unset="keys in the user's state directory, ~/.local/state/potato", example="/var/lib/potato/keys",
    )  # fmt: skip
    max_sequences: int = _key(
        16, Whole(1, 1024, "sequences"),
        "Answers that share each sweep, as far as the KV cache holds them. More of them hardly cost time while weights stream.",
    )
    prefill_share: float = _key(
        0.5, Number(0, 100), "While answers are written, prompts that come in may make a token take longer by this share of its time, and no more."
    )
    #: tokens; 0: the model's own
    max_context: int = _key(
        0, Whole(0, 1 << 24, "tokens"),
        "Longest prompt and answer together. 0 takes the model's own length, or what [kv] size holds.",
    )  # fmt: skip
    #: seconds
    switch_after_s: float = _key(
        600.0, Duration(1, 86400),
        "Where several models are served: jobs of one wait so long while another one still has work; then it is their model's turn.",
        name="switch_after",
    )  # fmt: skip
    max_queue: int = _key(
        1000, Whole(0, 100_000, "requests"),
        "Requests that may wait, for each model. One more is refused at once instead of waiting for days.",
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Speculation:
    enabled: bool = _key(
        True, Choice((True, False)),
        "Whether tokens are guessed, and verified many at a time by one sweep. The text is the same, to the token with invariant kernels.",
    )  # fmt: skip
    lookup: bool = _key(
        True, Choice((True, False)),
        "Guess what followed the same words earlier in the prompt, the answer, or answers before it. Costs nothing, and stops where it does not pay.",
    )
    draft: str = _key(
        "", DraftModel(),
        'A draft model that guesses, in memory for good: "self:int4" is a copy of the model that `potatod prepare MODEL --draft int4` makes; a path is '
        "that of another model folder with the same vocabulary.",
    )  # fmt: skip
    max_tokens: int = _key(64, Whole(1, 64, "tokens"), "Longest guess.")


@dataclass(frozen=True, slots=True)
class Jobs:
    path: str = _key(
        lambda: str(state_directory() / "jobs.db"), File(),
        "The database of jobs, from which they go on after a restart or a power cut. One for each daemon, on a disk of this machine.",
        unset="jobs.db in the user's state directory, ~/.local/state/potato", example="/var/lib/potato/jobs.db",
    )  # fmt: skip
    #: seconds
    keep_s: float = _key(
        30 * 86400.0, Duration(1, 3650 * 86400), "Jobs that are over, and files and batches of HTTP clients, are deleted after so long.", name="keep",
    )  # fmt: skip
    #: bytes
    size_bytes: int = _key(
        256 << 20, Size(1 << 20, 1 << 40), "Where the database becomes larger, jobs that are over are deleted before that, the oldest first.",
        name="size",
    )  # fmt: skip
    per_user: int = _key(1000, Whole(1, 100_000, "jobs"), "Jobs of one user that may be under way or wait.")


@dataclass(frozen=True, slots=True)
class Gateway:
    listen: str = _key(
        "", Listen(), "Where HTTP clients connect, as those of OpenAI do: 127.0.0.1:8089 for programs of this machine. Nowhere where it is empty."
    )
    token: str = _key(
        lambda: str(bearer_token.default_place()), File(),
        "The file of the token that HTTP clients must send; made at the first start, and printed by `potatod token`.",
        unset="gateway.token among the service's credentials where it is, else in the user's state directory, ~/.local/state/potato",
        example="/var/lib/potato/gateway.token",
    )  # fmt: skip
    hosts: tuple[str, ...] = _key(
        (), HOST_NAMES, "Names of this machine under which HTTP clients find it, beside its addresses and localhost. Others are refused.",
        unset="none", example=["potato.example.org"],
    )  # fmt: skip
    origins: tuple[str, ...] = _key(
        (), ORIGINS, "Pages that may ask from within a browser (CORS).", unset="none", example=["http://localhost:3000"],
    )  # fmt: skip
    path: str = _key(
        lambda: str(state_directory() / "gateway"), Folder(), "Where files and batches of HTTP clients are kept.",
        unset="gateway in the user's state directory, ~/.local/state/potato", example="/var/lib/potato/gateway",
    )  # fmt: skip


def _sampling(kind: Kind, reason: str, example: Plain) -> Any:
    return _key(None, kind, reason, unset="the model's generation_config.json, else greedy", example=example)


@dataclass(frozen=True, slots=True)
class Sampling:
    """What holds where a request says nothing; None leaves it to the model. Ranges are those of the client protocol."""

    temperature: float | None = _sampling(
        Number(0, 100), "Spread of the choice; 0 always takes the likeliest token.", 0.7
    )
    top_k: int | None = _sampling(Whole(0, 1 << 31), "Choose among so many likeliest tokens; 0 among all.", 40)
    top_p: float | None = _sampling(
        Number(0, 1, above_low=True), "Choose among the likeliest tokens that together have this probability.", 0.9
    )
    min_p: float | None = _sampling(
        Number(0, 1), "Leave out tokens less likely than this share of the likeliest one.", 0.05
    )
    repetition_penalty: float | None = _sampling(
        Number(1e-3, 1e3), "Above 1: tokens that have occurred become less likely.", 1.1
    )
    max_tokens: int | None = _key(
        None, Whole(1, 1 << 31, "tokens"), "Longest answer.",
        unset="the model's generation_config.json, else what the context leaves", example=1024,
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Log:
    level: Literal["debug", "info", "warning", "error"] = _key(
        "info", Choice(("debug", "info", "warning", "error")), "The least important event that is still logged."
    )
    format: Literal["text", "json"] = _key(
        "text", Choice(("text", "json")), "Lines on stderr for people (text) or for machines (json), one an event."
    )


@dataclass(frozen=True, slots=True)
class Run:
    directory: str = _key(
        _default_directory, Folder(holds_sockets=True),
        "Sockets between the daemon's own processes, and its lock. It must be the user's alone; one for each daemon.",
        unset="potato in the user's runtime directory", example="/run/user/1000/potato",
    )  # fmt: skip
    restarts: int = _key(
        5, Whole(1, 100, "deaths"),
        "So many deaths of the engine within restart_window, without a completed sweep between them, keep it down.",
    )  # fmt: skip
    #: seconds
    restart_window_s: float = _key(
        600.0, Duration(1, 86400), "The time in which so many deaths are too many.", name="restart_window"
    )
    nice: int = _key(0, Whole(0, 19), "How far reader and worker stand back where other processes compute: 0 not at all, 19 as far as can be.")
    io_priority: Literal["normal", "idle"] = _key(
        "normal", Choice(("normal", "idle")),
        "How reader and worker share the disk with other processes. idle: they take what the others leave, where the disk's scheduler heeds that.",
    )  # fmt: skip
    pause_on_battery: bool = _key(
        False, Choice((True, False)), "Whether jobs wait while this machine runs on battery."
    )
    pause_on_pressure: Percent | Literal["off"] = _key(  # noqa: RUF009  as above
        "off", ShareOfTime(),
        "Jobs wait while processes of this machine stand still for want of memory for so much of the time (PSI), until it is less than half of that.",
    )  # fmt: skip
