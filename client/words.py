"""What is said to people about an answer, and text made fit for a terminal. Pure."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

from .protocol import Finished, Progress
from .status import Guesses
from .units import count, duration, human_size

_CONTROL: Final = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def harmless(text: str) -> str:
    """For a terminal, to which escape sequences are orders, and a model may say anything: shown, not obeyed."""
    return _CONTROL.sub(lambda found: _picture(ord(found[0])), text)


def _picture(code: int) -> str:
    """Unicode has a picture for each of the old control characters."""
    return chr(0x2400 + code) if code < 0x20 else "\u2421" if code == 0x7F else "\ufffd"


def one_line(text: str) -> str:
    return harmless(" ".join(text.split()))


def progress(now: Progress) -> str:
    """What is going on while nothing has come yet."""
    said = in_the_queue(now.place) if now.state == "queued" else _STATES[now.state]
    if now.why:
        return f"{said}: {now.why}"
    if now.state == "prefill":
        if now.prompt_tokens:
            said += f" {now.prefilled_tokens}/{now.prompt_tokens} tokens,"
        said += f" {now.layers_done}/{now.layers} layers"
    if now.s_per_token is not None:
        said += f" · {now.s_per_token:.3g} s/token"
    if now.eta_s is not None:
        said += f" · first token in about {duration(now.eta_s + 1)}"
    return said


def in_the_queue(place: int) -> str:
    return f"in the queue, {count(place, 'answer')} before this one" if place else "about to start"


_STATES: Final = {
    "prefill": "prefill",
    "decode": "decoding",
    "restarting": "engine restarting",
    "loading": "the model is being loaded",
    "paused": "paused",
}


def disk_share(bytes_per_s: float | None, limit_bytes_per_s: float | None) -> float | None:
    """Bytes ÷ wall time ÷ the most that was seen; None where nothing was read. What was read ahead before is no more than the whole disk."""
    return min(1.0, bytes_per_s / limit_bytes_per_s) if bytes_per_s and limit_bytes_per_s else None


def of_the_disk(bytes_per_s: float | None, limit_bytes_per_s: float | None) -> str:
    """That share in words; empty where there is none."""
    share = disk_share(bytes_per_s, limit_bytes_per_s)
    return "" if share is None else f"{share:.0%} of the disk's {human_size(limit_bytes_per_s or 0)}/s"


def summary(finished: Finished, s_per_token: float | None) -> str:
    """One line about an answer: tokens, speed, bytes read per sweep (which makes one token), share of the disk."""
    words = [_tokens(finished)]
    if s_per_token is not None:
        words.append(f"{s_per_token:.3g} s/token")
    if finished.accepted_tokens:
        per_sweep = finished.completion_tokens / max(1, finished.completion_tokens - finished.accepted_tokens)
        words.append(f"{per_sweep:.2g} tokens per sweep ({by_source(finished.guesses)})")
    if finished.sweeps and finished.completion_tokens:
        words.append(f"{human_size(finished.disk_bytes / finished.sweeps)} read from disk per sweep")
    if share := of_the_disk(finished.disk_bytes_per_s, finished.disk_limit_bytes_per_s):
        words.append(share)
    return " · ".join(words)


def by_source(guesses: Sequence[Guesses]) -> str:
    """How much of what each source guessed was right."""
    return ", ".join(f"{harmless(each.source)} {each.accepted_tokens} of {each.drafted_tokens}" for each in guesses)


def _tokens(finished: Finished) -> str:
    if finished.reason != "cancelled":
        return count(finished.completion_tokens, "token")
    return f"stopped after {count(finished.completion_tokens, 'token')}" if finished.completion_tokens else "stopped before the first token"
