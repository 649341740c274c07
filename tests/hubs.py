"""A hub of our own on this machine, which speaks as much of the real one's protocol as a download needs, and fails on purpose.

/api/models/ID and …/revision/REV say what a model consists of. /ID/resolve/COMMIT/FILE gives a small file itself; of one in LFS it gives its SHA-256
and sends on to storage under another name of this machine, which takes no tokens and knows ranges.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Behaviour:
    """What goes wrong, by the end of a path; each list is used up from its front."""

    #: answered instead
    codes: dict[str, list[int]] = field(default_factory=dict)
    #: so many bytes of the body, then the connection ends
    cuts: dict[str, list[int]] = field(default_factory=dict)
    #: so often a byte of the body is another one
    damages: dict[str, int] = field(default_factory=dict)
    #: headers of answers that are errors
    error_headers: dict[str, str] = field(default_factory=dict)
    #: who may read; nobody needs a token where it is empty
    token: str = ""
    gated: bool = False
    bytes_per_s: float = 0.0
    #: whether storage answers ranges with ranges
    ranges: bool = True
    #: names that are said to be there, and are not
    lies: tuple[str, ...] = ()
    card: dict[str, Any] = field(default_factory=lambda: {"license": "apache-2.0"})


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients are killed here: nothing to say."""


class Hub:
    """``with Hub(folder) as hub``: has tiny/llama, the files of a folder."""

    def __init__(self, files: Path) -> None:
        self.files = files
        self.behaviour = Behaviour()
        #: (method, path, range) of each request
        self.asked: list[tuple[str, str, str]] = []
        #: bytes of bodies that were sent, by file
        self.sent: Counter[str] = Counter()
        #: authorizations that reached storage, which must get none
        self.leaked: list[str] = []
        handler = type("Handler", (_Handler,), {"hub": self})
        self._server = _Server(("127.0.0.1", 0), handler)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}"
        self.storage = f"http://localhost:{self._server.server_port}/storage"
        self._sums: dict[tuple[Path, int], str] = {}

    def __enter__(self) -> Hub:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def sha256(self, path: Path) -> str:
        key = path, path.stat().st_mtime_ns
        if key not in self._sums:
            self._sums[key] = hashlib.sha256(path.read_bytes()).hexdigest()
        return self._sums[key]

    def forget(self) -> None:
        """What was asked and sent until now."""
        self.asked.clear()
        self.sent.clear()

    def weights_asked(self) -> set[str]:
        return {path.split("/")[-1] for _, path, _ in self.asked if path.endswith(".safetensors")}


def _in_lfs(path: Path) -> bool:
    return path.suffix == ".safetensors"


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_GET(self) -> None:
        self._answer()

    def do_HEAD(self) -> None:
        self._answer()

    def _answer(self) -> None:
        hub, said = self.hub, self.hub.behaviour
        path = self.path.split("?")[0]
        hub.asked.append((self.command, path, self.headers.get("Range", "")))
        for end, codes in said.codes.items():
            if path.endswith(end) and codes:
                self._send(b"{}", said.error_headers, codes.pop(0))
                return
        if path.startswith("/storage/"):
            self._storage(hub.files / path.split("/", 2)[2])
            return
        if said.token and self.headers.get("Authorization") != f"Bearer {said.token}" and not path.startswith("/api/"):
            self._send(b"{}", {"X-Error-Code": "GatedRepo"} if said.gated else {}, 403 if said.gated else 401)
        elif (found := re.fullmatch(r"/api/models/tiny/llama(?:/revision/(\w+))?", path)) is not None:
            if found[1] in (None, "main", COMMIT):
                self._send(json.dumps(self._info()).encode(), {"Content-Type": "application/json"})
            else:
                self._send(b"{}", {"X-Error-Code": "RevisionNotFound"}, 404)
        elif path.startswith("/tiny/llama/resolve/"):
            self._resolve(hub.files / path.split("/", 5)[5])
        else:
            self._send(b"{}", {"X-Error-Code": "RepoNotFound"}, 404)

    def _info(self) -> dict[str, Any]:
        siblings = []
        for path in sorted(self.hub.files.iterdir()):
            size = path.stat().st_size
            lfs = {"lfs": {"sha256": self.hub.sha256(path), "size": size, "pointerSize": 134}} if _in_lfs(path) else {}
            siblings.append({"rfilename": path.name, "size": size, "blobId": "0" * 40, **lfs})
        siblings += [{"rfilename": name, "size": 3} for name in self.hub.behaviour.lies]
        return {"id": "tiny/llama", "sha": COMMIT, "siblings": siblings, "cardData": self.hub.behaviour.card}

    def _resolve(self, path: Path) -> None:
        if not path.exists():
            self._send(b"{}", {"X-Error-Code": "EntryNotFound"}, 404)
            return
        digest = self.hub.sha256(path)
        headers = {"X-Repo-Commit": COMMIT, "ETag": f'"{digest}"'}
        if _in_lfs(path):
            headers |= {"X-Linked-Etag": f'"{digest}"', "X-Linked-Size": str(path.stat().st_size), "Location": f"{self.hub.storage}/{path.name}"}
            self._send(b"", headers, 302)
        else:
            self._ranged(path, headers)

    def _storage(self, path: Path) -> None:
        if (token := self.headers.get("Authorization")) is not None:
            self.hub.leaked.append(token)
        self._ranged(path, {})

    def _ranged(self, path: Path, headers: dict[str, str]) -> None:
        data, asked = path.read_bytes(), re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        if asked is None or not self.hub.behaviour.ranges:
            self._send(data, headers, file=path.name)
            return
        first, last = int(asked[1]), min(int(asked[2]), len(data) - 1)
        if first > last:
            self._send(b"", {"Content-Range": f"bytes */{len(data)}"}, 416)
            return
        self._send(data[first : last + 1], {**headers, "Content-Range": f"bytes {first}-{last}/{len(data)}"}, 206, path.name)

    def _send(self, data: bytes, headers: dict[str, str], code: int = 200, file: str = "") -> None:
        said = self.hub.behaviour
        self.send_response(code)
        for name, value in {**headers, "Content-Length": str(len(data))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        if said.damages.get(file, 0) and len(data) > 2000:
            said.damages[file] -= 1
            data = data[:-1] + bytes([data[-1] ^ 1])
        if said.cuts.get(file) and len(data) > 2000:
            data = data[: said.cuts[file].pop(0)]
            self.close_connection = True
        try:
            self._trickle(data, file)
        except OSError:
            self.close_connection = True

    def _trickle(self, data: bytes, file: str) -> None:
        step = 1 << 14 if self.hub.behaviour.bytes_per_s else max(1, len(data))
        for at in range(0, len(data), step):
            piece = data[at : at + step]
            self.wfile.write(piece)
            self.hub.sent[file] += len(piece)
            if self.hub.behaviour.bytes_per_s:
                time.sleep(len(piece) / self.hub.behaviour.bytes_per_s)

    def log_message(self, *_: object) -> None:
        pass
