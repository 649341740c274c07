"""The gateway as a real process before a real front; supervisor and engine are front_harness's."""

from __future__ import annotations

import http.client
import json
import socket
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import openai
import zmq
from stages import Started

from potatod import wire
from potatod.config import Settings, keys
from potatod.messages import Failed, Ready, Stop
from potatod.stage import Boot

from .front_harness import PATIENCE_S, Front, start_front

#: Closed connections are taken for good at once.
IMPATIENT = """
import sys
from potatod import stage
from potatod.gateway import gateway, questions
questions.GRACE_S = 0.3
sys.exit(stage.run("gateway", gateway.work))
"""

#: While the file "full" lies in the gateway's directory, its disk takes nothing.
FULL = f"""
import sys
from pathlib import Path
sys.path.insert(0, {str(Path(__file__).parents[1])!r})
from failing_disk import FailingDisk
from potatod import stage
from potatod.gateway import batch, gateway
batch._FULL_S = 0.2
place = Path(sys.argv[sys.argv.index("--boot") + 1]).parent
with FailingDisk(place / "kept", package="gateway", full=place / "full").under():
    sys.exit(stage.run("gateway", gateway.work))
"""

#: What is said is what is answered, message after message: "hello|" gives "hellohello…". Tools come behind the bar, with one behind them.
TEMPLATE = (
    "{% for m in messages %}{{ m.content }}"
    "{% for c in m.tool_calls or [] %}<tool_call>{{ c.function | tojson }}</tool_call>{% endfor %}"
    "{% if m.tool_call_id %}({{ m.tool_call_id }}){% endif %}{% endfor %}{% if tools %}{{ tools | tojson }}|{% endif %}"
)


class Gateway:
    """``python -m potatod.gateway``, with a supervisor of its own."""

    def __init__(self, front: Front, directory: Path, program: str = "", handed: socket.socket | None = None, **changes: Any) -> None:
        """``changes`` are keys of [gateway]; ``program``: Python that is run instead; ``handed``: a socket that listens."""
        directory.mkdir(exist_ok=True)
        boot = Boot.read(front.directory / "boot.front.json")
        values = {"listen": "127.0.0.1:0", "token": str(directory / "token"), "path": str(directory / "kept"), **changes}
        kinds = {key.name: key for key in keys() if key.section == "gateway"}
        section = replace(boot.settings.gateway, **{kinds[name].attribute: kinds[name].parse(value) for name, value in values.items()})
        settings: Settings = replace(boot.settings, gateway=section)
        self.directory = directory
        self.context: zmq.Context[Any] = zmq.Context()
        self.control = wire.control_router(self.context, directory)
        page = directory / "boot.json"
        replace(boot, settings=settings, directory=str(directory)).write(page)
        self.log_path = directory / "gateway.log"
        fds = {} if handed is None else {"listen": handed.fileno()}
        with self.log_path.open("ab") as log:
            self.process = Started("gateway", program or "import potatod.gateway.__main__", "--boot", str(page), log=log.fileno(), **fds)

    @property
    def log(self) -> str:
        return self.log_path.read_text()

    @property
    def token(self) -> str:
        return (self.directory / "token").read_text().strip()

    def wait_ready(self) -> Gateway:
        said = self.wait_said()
        assert isinstance(said, Ready), said
        self.url = said.note.removeprefix("listening at ")
        return self

    def wait_said(self) -> Ready | Failed:
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline:
            if self.control.socket.poll(50) and (said := self.control.receive()) is not None and isinstance(said[1], Ready | Failed):
                return said[1]
        raise AssertionError(f"the gateway said nothing: {self.log}")

    def connect(self) -> http.client.HTTPConnection:
        host, port = self.url.removeprefix("http://").rsplit(":", 1)
        return http.client.HTTPConnection(host, int(port), timeout=PATIENCE_S)

    @property
    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.token}", "Content-Type": "application/json"}

    def request(self, method: str, path: str, page: object = None, **headers: str) -> tuple[int, dict[str, str], Any]:
        """Status, headers in small letters, and the page of what is answered. ``headers``: with underscores for dashes; the token is sent besides."""
        connection = self.connect()
        sent = {"Authorization": f"Bearer {self.token}"} | {name.replace("_", "-"): value for name, value in headers.items()}
        body = page if isinstance(page, bytes) or page is None else json.dumps(page).encode()
        if body is not None:
            sent.setdefault("Content-Type", "application/json")
        try:
            connection.request(method, path, body, sent)
            answer = connection.getresponse()
            text = answer.read()
            got = {name.lower(): value for name, value in answer.getheaders()}
            return answer.status, got, json.loads(text) if text and got.get("content-type", "").startswith("application/json") else text.decode()
        finally:
            connection.close()

    def stop(self) -> int:
        self.control.send(b"gateway", Stop())
        return self.process.wait(PATIENCE_S)

    def close(self) -> None:
        """A second time does nothing."""
        if self.context.closed:
            return
        self.process.kill()
        self.process.wait()
        self.control.socket.close(linger=0)
        self.context.term()


class House:
    """A front, its engine and its gateway."""

    def __init__(self, directory: Path, *, gateway: dict[str, Any] | None = None, **changes: Any) -> None:
        """``changes`` are the front's, ``gateway`` keys of [gateway]."""
        self._directory = directory
        self._changes, self._gateway_changes = changes, gateway or {}
        self.front = self._front()
        self.gateway = self._gateway()

    def front_dies(self) -> None:
        """Killed, and started anew."""
        self.front.process.kill()
        self.front.process.wait()
        self.front.close()
        self.front = self._front()

    def gateway_dies(self) -> None:
        """Killed, and started anew, at another port."""
        self.gateway.close()
        self.gateway = self._gateway()

    def _front(self) -> Front:
        return start_front(self._directory, template=TEMPLATE, **self._changes)

    def _gateway(self) -> Gateway:
        return Gateway(self.front, self._directory / "gateway", **self._gateway_changes).wait_ready()

    def close(self) -> None:
        self.gateway.close()
        self.front.close()


def until(true: Callable[[], bool]) -> None:
    """Waits for it."""
    deadline = time.monotonic() + PATIENCE_S
    while not true():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def client_of(house: House, **more: Any) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{house.gateway.url}/v1", api_key=house.gateway.token, **{"max_retries": 0, **more})
