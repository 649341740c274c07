"""Hub ids, against a hub of our own on this machine: what is fetched, what never is, and what is said when it cannot be."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from factories import checkpoint, contents

from potatod.store import hub

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub(BaseHTTPRequestHandler):
    """As much of the hub's interface as a download needs; repositories are folders of ``files``."""

    files: Path
    asked: list[str]
    code = 200

    def do_GET(self) -> None:
        self.answer(body=True)

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def answer(self, body: bool) -> None:
        path = self.path.split("?")[0]
        self.asked.append(path)
        if path.startswith(("/api/models/tiny/llama/tree/", "/api/models/tiny/llama/revision/")) or path == "/api/models/tiny/llama":
            self.send(json.dumps(self.tree() if "/tree/" in path else self.info()).encode(), body, {"Content-Type": "application/json"})
        elif path.startswith("/tiny/llama/resolve/"):
            file = self.files / path.split("/", 5)[5]
            if not file.exists():
                self.send(b"{}", body, {"X-Error-Code": "EntryNotFound"}, 404)
                return
            data = file.read_bytes()
            digest = hashlib.sha256(data).hexdigest()
            self.send(data, body, {"X-Repo-Commit": COMMIT, "ETag": f'"{digest}"', "X-Linked-Size": str(len(data))})
        else:
            self.send(b"{}", body, {"X-Error-Code": "RepoNotFound"}, 404)

    def info(self) -> dict[str, object]:
        siblings = [{"rfilename": path.name} for path in sorted(self.files.iterdir())]
        return {"_id": "1", "id": "tiny/llama", "modelId": "tiny/llama", "sha": COMMIT, "siblings": siblings, "private": False, "tags": []}

    def tree(self) -> list[dict[str, object]]:
        return [
            {"type": "file", "path": path.name, "size": path.stat().st_size, "oid": hashlib.sha1(path.name.encode()).hexdigest()}
            for path in sorted(self.files.iterdir())
        ]

    def send(self, data: bytes, body: bool, headers: dict[str, str], code: int = 200) -> None:
        self.send_response(code)
        for name, value in {**headers, "Content-Length": str(len(data))}.items():
            self.send_header(name, value)
        self.end_headers()
        if body:
            self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def served(tmp_path):
    """(address, handler class) of a hub that has tiny/llama."""
    files = checkpoint(tmp_path / "hub", tokenizer=True)
    (files / "pytorch_model.bin").write_bytes(b"\x80\x04evil.")
    (files / "modeling_evil.py").write_text("raise SystemExit")
    handler = type("Handler", (Hub,), {"files": files, "asked": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", handler
    server.shutdown()
    thread.join()
    server.server_close()


def potatod(*arguments: object, endpoint: str, home: Path) -> subprocess.CompletedProcess[str]:
    return run("import sys; from potatod.cli import main; sys.exit(main())", *arguments, endpoint=endpoint, home=home)


def run(program: str, *arguments: object, endpoint: str, home: Path) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": "/usr/bin:/bin", "HF_ENDPOINT": endpoint, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1", "HOME": str(home)}
    command = [sys.executable, "-c", program, *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def test_a_hub_id_is_fetched_and_prepared_without_pickles_or_code(tmp_path, served):
    endpoint, handler = served
    done = potatod("prepare", "tiny/llama", tmp_path / "out", endpoint=endpoint, home=tmp_path / "home")
    assert done.returncode == 0, done.stderr
    fetched = {path.split("/")[-1] for path in handler.asked if "/resolve/" in path}
    assert "model.safetensors" in fetched and "tokenizer.json" in fetched
    assert not fetched & {"pytorch_model.bin", "modeling_evil.py"}
    from potatod.store.prepare import prepare

    prepare(handler.files, tmp_path / "local")
    ours, local = contents(tmp_path / "out"), contents(tmp_path / "local")
    assert {n: b for n, b in ours.items() if n != "manifest.json"} == {n: b for n, b in local.items() if n != "manifest.json"}


def test_of_an_id_that_is_planned_only_the_config_is_fetched(tmp_path, served):
    endpoint, handler = served
    program = "import sys; from potatod.worker.outline import main; sys.exit(main(sys.argv[1:]))"
    done = run(program, "tiny/llama", "auto", endpoint=endpoint, home=tmp_path / "home")
    assert done.returncode == 0, done.stderr
    assert {path.split("/")[-1] for path in handler.asked if "/resolve/" in path} == {"config.json"}
    page = json.loads(done.stdout.splitlines()[-1])
    assert page["kv"]["groups"][0]["bytes_per_token"] > 0
    (handler.files / "config.json").unlink()
    done = run(program, "tiny/llama", "auto", endpoint=endpoint, home=tmp_path / "another")
    assert done.returncode == 66
    assert "tiny/llama has no config.json" in json.loads(done.stdout.splitlines()[-1])["error"]


def test_an_id_that_is_not_there_is_said(tmp_path, served):
    endpoint, _ = served
    done = potatod("prepare", "tiny/nothing", tmp_path / "out", endpoint=endpoint, home=tmp_path / "home")
    assert done.returncode == 66
    assert "there is no model tiny/nothing at the hub" in done.stderr and "Traceback" not in done.stderr


def test_a_hub_that_cannot_be_reached_is_said(tmp_path):
    done = potatod("prepare", "tiny/llama", tmp_path / "out", endpoint="http://127.0.0.1:9", home=tmp_path / "home")
    assert done.returncode == 69
    assert "cannot download tiny/llama" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize(("text", "is_id"), [
    ("meta-llama/Llama-3.1-8B", True), ("a/b", True), ("model", False), ("/abs/path", False), ("../up", False), ("a/b/c", False),
])  # fmt: skip
def test_what_is_taken_for_a_hub_id(tmp_path, monkeypatch, text, is_id):
    monkeypatch.chdir(tmp_path)
    assert hub.looks_like_id(text) is is_id


def test_a_folder_that_is_there_is_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "org" / "model").mkdir(parents=True)
    assert not hub.looks_like_id("org/model")
