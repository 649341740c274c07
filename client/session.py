"""Every decision of a client, without a socket: frames and the time go in, frames and events come out.

    ask(request, message) ──┐                       ┌─▶ frames()   to be sent
    cancel, detach  ────────┼─▶   Session    ───────┤
    receive(frame)  ────────┤                       └─▶ events()   for whoever asked
    tick()  ────────────────┘      due_in() says when tick is wanted

Two clients act on it, one with a thread and one with asyncio; neither knows versions, boots, heartbeats or silence.
The clock is an argument.

NOTE [ another front ]
A ZeroMQ socket reconnects silently, so the front that answers may not be the one that was asked. Each front has a boot
id: where another one shows up, it is greeted and asked again. A job that has a name is attached to, from where we are; what has none yet
is asked for with the same key, so that it is the same job where the front before had it already. While nothing is expected nobody
listens; so whoever asks after that says Hello again, and the answer to it settles who is there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from .codec import BadFrame
from .errors import BadRequest, ClientError, DaemonLost, FollowedAlready, NoDaemon, NotUnderstood, RequestRefused
from .protocol import (
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
    Described,
    Detach,
    Finished,
    Generate,
    Hello,
    List,
    Listed,
    Manage,
    Managed,
    Piece,
    Progress,
    Refused,
    Report,
    Show,
    Status,
    Welcome,
)

Question = Generate | Attach | Manage | List | Show | Status
Message = Accepted | Progress | Piece | Finished | Managed | Listed | Described | Report

#: Said where no answer is wanted.
_NOBODY: Final = 0
#: Frames a second, and at once after a pause: less than a front takes, whose clock may be slower.
_PACE: Final = 0.8 * FRAMES_PER_S
_BURST: Final = 0.8 * BURST_FRAMES
#: Frames that wait are tried again.
_SOON_S: Final = 0.01


@dataclass(frozen=True, slots=True)
class Event:
    """Something for whoever asked ``request``."""

    request: int
    what: Message | ClientError
    #: when it arrived, on the clock that the session is given
    at_s: float
    #: nothing follows for this request
    last: bool = False


@dataclass(slots=True)
class _Open:
    """A request that is not over."""

    frame: bytes
    #: whether pieces come for it until it is over; of anything else the first answer is the last
    followed: bool = False
    #: whether it was there before us and stays when we go
    kept: bool = False
    sent: bool = False
    job: str | None = None
    cancelled: bool = False
    #: what has come of a followed job
    tokens: int = 0
    text_chars: int = 0
    reasoning_chars: int = 0

    def again(self, request: int) -> bytes:
        """What another front is asked."""
        if not self.followed or self.job is None:
            return self.frame
        return FROM_CLIENT.encode(Attach(request, self.job, self.tokens, self.text_chars, self.reasoning_chars))

    def take(self, piece: Piece) -> None:
        self.tokens = piece.index + len(piece.token_ids)
        self.text_chars += len(piece.text)
        self.reasoning_chars += len(piece.reasoning)


class Session:
    """``silence_s``: a front that says nothing for so long is gone."""

    def __init__(self, address: str, client: str = "", *, silence_s: float = SILENCE_S) -> None:
        self._address = address
        self._hello = FROM_CLIENT.encode(Hello(PROTOCOL_VERSION, client))
        self._silence_s = silence_s
        self._heartbeat_s = min(HEARTBEAT_S, silence_s / 4)
        self._open: dict[int, _Open] = {}
        self._jobs: dict[str, int] = {}
        self._frames: list[bytes] = []
        self._events: list[Event] = []
        #: the front's boot id; None until Welcome
        self._boot: str | None = None
        self._greeted = False
        self._heard_at = self._said_at = self._ticked_at = self._paced_at = 0.0
        #: frames that may be sent now
        self._allowance = _BURST

    # what is wanted

    @property
    def expecting(self) -> bool:
        """Whether anything is asked and not over."""
        return bool(self._open)

    def ask(self, request: int, frame: bytes, now: float, *, followed: bool = False, kept: bool = False) -> None:
        """Sends an encoded question, after the greeting. ``request``, its number, must be new. What is ``kept`` is not cancelled at the end."""
        assert request not in self._open, "a request's number is used once"
        if not self.expecting:  # NOTE [ another front ]
            if not self._greeted or now - self._heard_at > self._heartbeat_s:
                self._greeted, self._boot = False, None
                self._frames.append(self._hello)
            self._heard_at = self._said_at = self._ticked_at = now
        self._open[request] = _Open(frame, followed, kept)
        self._send_open()

    def cancel(self, request: int) -> None:
        """Asks the daemon to stop it, now or as soon as it has a name. Harmless when it is over."""
        asked = self._open.get(request)
        if asked is None or asked.cancelled:
            return
        asked.cancelled = True
        if asked.job is not None:
            self._frames.append(_cancelling(asked.job))

    def detach(self, request: int, now: float) -> None:
        """Hears no more of a job that has a name; it goes on."""
        asked = self._open.get(request)
        if asked is not None and asked.job is not None:
            self._frames.append(FROM_CLIENT.encode(Detach(asked.job)))
            self._tell(request, ClientError(f"detached from job {asked.job}"), now, last=True)

    # what the owner of the socket tells

    def receive(self, frame: bytes, now: float) -> None:
        self._heard_at = now
        try:
            message = FROM_FRONT.decode(frame)
        except BadFrame as error:
            why = f"the daemon at {self._address} sent what cannot be read ({error}); install the same release of both"
            self._fail(NotUnderstood(why), now)
            return
        if isinstance(message, Welcome):
            self._welcome(message, now)
        elif isinstance(message, Alive):
            self._is_boot(message.boot)
        elif isinstance(message, Refused):
            self._refused(message, now)
        else:
            self._about_request(message, now)

    def tick(self, now: float) -> None:
        """Says that we live, and notices that the front does not."""
        if not self.expecting:
            if now - self._said_at > self._silence_s:
                self._frames.clear()  # last words that nobody took
            return
        if now - self._ticked_at > self._silence_s / 2:
            self._heard_at = max(
                self._heard_at, now - self._heartbeat_s
            )  # we were stopped ourselves: what came meanwhile is still to be read
        self._ticked_at = now
        if now - self._heard_at >= self._silence_s:
            self._frames.clear()
            self._fail(self._silent(), now)
        elif now - self._said_at >= self._heartbeat_s:
            self._said_at = now
            self._frames.append(FROM_CLIENT.encode(Alive()) if self._greeted else self._hello)

    def close(self, now: float) -> None:
        """Nothing more will come: the socket is about to close. What was asked here, is followed and has a name is cancelled."""
        for request, asked in self._open.items():
            if asked.followed and not asked.kept:
                self.cancel(request)
        self._fail(ClientError("the client was closed before the answer was complete"), now)

    # what it answers

    def due_in(self, now: float) -> float | None:
        """Seconds until ``tick`` or ``frames`` has something to do; None while nothing is expected or waits to be sent."""
        if not self.expecting:
            return _SOON_S if self._frames else None
        due_s = min(self._said_at + self._heartbeat_s, self._heard_at + self._silence_s) - now
        return max(0.0, min(due_s, _SOON_S) if self._frames else due_s)

    def frames(self, now: float) -> list[bytes]:
        """To be sent, in this order; they are handed out once, and no faster than a front takes them."""
        self._allowance = min(_BURST, self._allowance + _PACE * max(0.0, now - self._paced_at))
        self._paced_at = now
        count = min(len(self._frames), int(self._allowance))
        self._allowance -= count
        frames, self._frames = self._frames[:count], self._frames[count:]
        return frames

    def put_back(self, frames: list[bytes]) -> None:
        """They could not be sent."""
        self._frames[:0] = frames
        self._allowance += len(frames)

    def events(self) -> list[Event]:
        """In the order they happened; they are handed out once."""
        events, self._events = self._events, []
        return events

    # one message each

    def _welcome(self, welcome: Welcome, now: float) -> None:
        if welcome.version != PROTOCOL_VERSION:
            why = (
                f"the daemon speaks version {welcome.version} of the protocol and this client version "
                f"{PROTOCOL_VERSION}: install the same release of both"
            )
            self._fail(RequestRefused("bad_version", why), now)
        elif self._open:
            if welcome.boot != self._boot:
                self._ask_again()
            self._boot, self._greeted = welcome.boot, True
            self._send_open()

    def _is_boot(self, boot: str) -> None:
        """Another one than we know has heard nothing of what was asked."""
        if self._open and self._boot is not None and boot != self._boot:
            self._greet()

    def _greet(self) -> None:
        self._boot, self._greeted = None, False
        self._ask_again()
        self._frames.append(self._hello)

    def _ask_again(self) -> None:
        for request, asked in self._open.items():
            asked.frame, asked.sent = asked.again(request), False

    def _refused(self, refused: Refused, now: float) -> None:
        if refused.code == "hello_first" and self._open:
            if self._greeted:
                self._greet()
        elif refused.request is None and refused.job is None:
            self._fail(RequestRefused.of(refused), now)
        else:
            request = self._jobs.get(refused.job or "") if refused.request is None else refused.request
            self._tell(request, RequestRefused.of(refused), now, last=True)

    def _about_request(self, message: Message, now: float) -> None:
        if isinstance(message, Accepted):
            self._accepted(message, now)
        request = self._jobs.get(message.job) if isinstance(message, Progress | Piece | Finished) else message.request
        asked = self._open.get(request) if request is not None else None
        if request is None or asked is None:
            return  # it belongs to nobody (any more)
        if isinstance(message, Piece):
            if message.index < asked.tokens:
                return  # of another Attach to the same job, which has been refused here
            asked.take(message)
        self._tell(request, message, now, last=isinstance(message, Finished) or not asked.followed)

    def _accepted(self, accepted: Accepted, now: float) -> None:
        asked = self._open.get(accepted.request)
        if asked is None:
            return
        asked.job = accepted.job
        if asked.followed and self._jobs.setdefault(accepted.job, accepted.request) != accepted.request:
            asked.job = None
            self._tell(accepted.request, FollowedAlready(f"job {accepted.job} is followed already by this client"), now, last=True)
            return
        if asked.cancelled:
            self._frames.append(_cancelling(accepted.job))

    # means

    def _send_open(self) -> None:
        if not self._greeted:
            return
        for asked in self._open.values():
            if not asked.sent:
                asked.sent = True
                self._frames.append(asked.frame)

    def _tell(self, request: int | None, what: Message | ClientError, now: float, *, last: bool) -> None:
        """To whoever asked; what belongs to nobody (any more) is dropped."""
        asked = self._open.get(request) if request is not None else None
        if request is None or asked is None:
            return
        self._events.append(Event(request, what, now, last))
        if last:
            del self._open[request]
            if asked.job is not None:
                self._jobs.pop(asked.job, None)

    def _fail(self, error: ClientError, now: float) -> None:
        self._events.extend(Event(request, error, now, last=True) for request in self._open)
        self._open.clear()
        self._jobs.clear()
        self._greeted, self._boot = False, None

    def _silent(self) -> ClientError:
        for_s = f"for {self._silence_s:g} seconds"
        if self._boot is not None or any(asked.job is not None for asked in self._open.values()):
            jobs = [asked.job for asked in self._open.values() if asked.job is not None]
            then = "ask again when it is back"
            if jobs:
                then = f"what it accepted goes on when it is back: potato-client attach {jobs[0]}"
            return DaemonLost(f"the daemon at {self._address} has said nothing {for_s}; {then}")
        if self._address.startswith("tcp://"):
            return NoDaemon(f"nobody has answered at {self._address} {for_s}: no daemon is there, or it does not let this key in")
        return NoDaemon(f"somebody listens at {self._address} and has not answered {for_s}: it hangs, or is no potatod")


def _cancelling(job: str) -> bytes:
    return FROM_CLIENT.encode(Manage(_NOBODY, job, "cancel"))


def encode(message: Question) -> bytes:
    """The frame to ask with. What we would not read ourselves is not sent: :class:`BadRequest` says why."""
    try:
        frame = FROM_CLIENT.encode(message)
        FROM_CLIENT.decode(frame)
    except UnicodeEncodeError:
        raise BadRequest(
            "the text holds characters that are no Unicode (half a surrogate pair); was it read in the wrong encoding?"
        ) from None
    except (BadFrame, OverflowError, TypeError) as error:
        raise BadRequest(str(error)) from None
    return frame
