"""Model folders that are damaged at random, by the thousand: each ends in a sentence, or in the token that the undamaged one gives.

    python tests/torture/damaged.py MODEL --folders 2000 --seed 1 --report report.json

Each folder is a process of its own, with all in it that a daemon does before its first token: manifest, files, config and skeleton as the probe looks
at them, tokenizer and chat template as the front loads them, reader, worker, pool. Those of --blind have no checksums, and that must be noticed.
Only what a stranger wrote, checksums and all, may give other tokens; a changed file beside the weights whose checksum was not written anew is refused.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import random
import resource
import select
import shutil
import signal
import sys
import tempfile
import traceback
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

os.environ |= {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}  # a thread would not come along into a child
sys.path.insert(0, str(Path(__file__).parents[1]))

import click
import torch
from damages import DAMAGES, MANIFEST, Damage, damage
from engine import Engine

from potato_client.protocol import Generate
from potato_client.question import ChatMessage
from potatod import identity, model_folder
from potatod import manifest as manifests
from potatod.companions import NAMES
from potatod.config import Settings
from potatod.errors import EXIT_INTERNAL, PotatoError
from potatod.front.admission import Admission
from potatod.front.refusal import Refusal
from potatod.reader import requests
from potatod.room import vocabulary_of
from potatod.store import skeleton as skeletons
from potatod.worker import selfcheck, weights, worker
from potatod.worker.attention import PackedAttention
from potatod.worker.model import conform
from potatod.worker.probe import kept, max_positions, rope_border, weight_shapes

POOL_BYTES = 560 << 10
CONTEXT = 128
#: One more than that is stuck; and a child that takes so much more than its mother is too large.
LONGEST_S = 60.0
MOST_BYTES = 256 << 20
#: A row of each band of the embedding.
ROWS = tuple(range(0, 320, 8))


def first_tokens(folder: Path) -> str:
    """A digest of all that a client could see, and of the logits. Raises what a daemon ends with."""
    manifest = model_folder.load(folder)
    model_folder.check_files(folder, manifest)
    model_folder.check_companions(folder, manifest)
    dtype = getattr(torch, manifest.dtype)
    config = skeletons.load_config(folder)  # from here on as the probe does
    conform(skeletons.build(config, dtype), manifest, folder)
    found: list[Any] = [max_positions(config), rope_border(config), weight_shapes(manifest)]
    found.append(_probed((folder / "config.json").read_text(), manifest.dtype))
    identity.checksum_of(folder, manifest)
    admission = Admission(folder, Settings().sampling, CONTEXT, vocabulary_of(manifest, "embed"), vocabulary_of(manifest))
    asks = (Generate(1, prompt="Hello"), Generate(1, messages=(ChatMessage("user", "Hi"),)))
    admitted = [admission.admit(ask) for ask in asks]
    with Engine(folder, POOL_BYTES, kernels="reference") as engine:
        logits = engine.sweep({0: list(ROWS)})[0]
        assert isinstance(logits, torch.Tensor)
        found.append(hashlib.sha256(logits.numpy().tobytes()).hexdigest())
        for number, each in enumerate(admitted, 1):
            token = engine.sweep({number: list(each.ask.prompt_ids)}, "argmax")[number]
            if isinstance(token, torch.Tensor):
                raise Refusal("bad_request", "the model's logits are no numbers")  # the front fails the job
            found.append([each.ask.prompt_ids, each.limit_tokens, token, admission.text(each.ask).push(token).text, token in admission.end_ids])
    return hashlib.sha256(repr(found).encode()).hexdigest()


@functools.cache
def _probed(config: str, dtype: str) -> str:
    """Whether it can be served, and what a sequence keeps, as the probe finds it: of an undamaged config a child knows it."""
    page = skeletons.config_of(json.loads(config), Path("config.json"))
    batching, _ = selfcheck.check(page, "reference", PackedAttention())
    return json.dumps([batching, kept(page, getattr(torch, dtype), "reference", batching, PackedAttention()).to_json()])


def blind() -> None:
    """No checksum is looked at."""
    requests._compare = lambda fetch: None

    def read_part(fd: int, path: Path, part: manifests.Part, memory: memoryview) -> None:
        weights.fill(fd, path, part.offset, memory)

    weights.read_part = read_part
    sys.modules["potatod.worker.embedding"].read_part = read_part  # type: ignore[attr-defined]


@dataclass
class Report:
    #: how many of each kind ended how: "bits: refused"
    ends: dict[str, int] = field(default_factory=dict)
    #: gave other tokens, and nothing could tell: a stranger wrote manifest or pages, and their checksums
    believed: list[str] = field(default_factory=list)
    #: what must not be
    faults: list[str] = field(default_factory=list)
    #: the most that one has taken more than an undamaged folder
    most_bytes: int = 0
    #: of those that compared nothing, how many gave other tokens
    noticed: int = 0


def _child(folder: Path, pipe: int) -> None:
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + (8 << 30), size + (8 << 30)))  # for the machine's sake, should one want all of it
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
    try:
        said = ["tokens", first_tokens(folder)]
    except PotatoError as error:
        said = ["refused" if error.exit_code != EXIT_INTERNAL else "our own fault", f"{type(error).__name__}: {error}"]
    except Refusal as refusal:
        said = ["refused" if refusal.code != "internal" else "our own fault", f"{refusal.code}: {refusal.message}"]
    except BaseException:
        said = ["crashed", traceback.format_exc()[-1500:]]
    os.write(pipe, json.dumps(said).encode()[:60_000])


def end_of(folder: Path, *, compares: bool = True) -> tuple[str, str, int]:
    """How a process ends that serves this folder; what it says; the most memory that it had, bytes."""
    ours, its = os.pipe()
    if not (pid := os.fork()):
        try:
            if not compares:
                blind()
            _child(folder, its)
        finally:
            os._exit(0)
    os.close(its)
    try:
        said = select.poll()  # select() knows no descriptor beyond 1023
        said.register(ours, select.POLLIN)
        come = said.poll(1000 * LONGEST_S)
        if not come:
            os.kill(pid, signal.SIGKILL)
        with open(ours, "rb") as pipe:
            text = pipe.read()
    finally:
        _, status, usage = os.wait4(pid, 0)
    if not come:
        return "hung", f"it took more than {LONGEST_S:.0f} s", 0
    if not text:
        return "crashed", f"it ended with {os.waitstatus_to_exitcode(status)}", 0
    end, what = json.loads(text)
    return end, what, usage.ru_maxrss << 10


def judge(report: Report, damaged: Damage, number: int, truth: str, least_bytes: int, ended: tuple[str, str, int], *, changed: bool) -> None:
    """``changed``: whether the file's bytes are others now."""
    end, what, size_bytes = ended
    where = f"{number}: {damaged.kind}, {damaged.file} {damaged.what}"[:300]
    if end == "tokens":
        end = "the same tokens" if what == truth else "other tokens"
    strangers = damaged.signed or (damaged.file == MANIFEST and damaged.kind.startswith("hostile"))
    if end == "other tokens" and strangers:
        report.believed.append(where)
    elif end != "refused" and changed and damaged.file in NAMES and not damaged.signed:
        report.faults.append(f"{where}: {end}, and it has another checksum")
    elif end not in ("refused", "the same tokens"):
        report.faults.append(f"{where}: {end}: {what}")
    more = size_bytes - least_bytes
    report.most_bytes = max(report.most_bytes, more)
    if more > MOST_BYTES:
        report.faults.append(f"{where}: took {more >> 20} MiB more than an undamaged folder")
    key = f"{damaged.kind}: {end}"
    report.ends[key] = report.ends.get(key, 0) + 1


def _alike(one: Path, other: Path) -> bool:
    return one.is_file() and one.read_bytes() == other.read_bytes()


def _copied(model: Path, folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    return Path(shutil.copytree(model, folder))


@click.command()
@click.argument("model", type=click.Path(path_type=Path))
@click.option("--folders", default=2000, show_default=True)
@click.option("--first", default=0, show_default=True, help="The number of the first: with --folders 1 one that had a fault is tried again.")
@click.option("--seed", default=1, show_default=True)
@click.option("--blind", "blinds", default=0, show_default=True, help="So many more, that have two shards swapped and compare nothing.")
@click.option("--report", "page", type=click.Path(path_type=Path), help="Where the counts are written as JSON.")
def main(model: Path, folders: int, first: int, seed: int, blinds: int, page: Path | None) -> None:
    worker._PATIENCE_MS = 20  # type: ignore[misc]  # how soon a worker sees that the reader has ended
    truth = first_tokens(model)  # and what it loads its children have
    end, _, least_bytes = end_of(model)
    assert end == "tokens", end
    report = Report()
    with tempfile.TemporaryDirectory(prefix="pt-damaged-") as place:
        folder = Path(place) / model.name
        for number in range(first, first + folders):
            damaged = damage(_copied(model, folder), random.Random(f"{seed} {number}"))
            changed = not _alike(folder / damaged.file, model / damaged.file)
            judge(report, damaged, number, truth, least_bytes, end_of(folder), changed=changed)
        for number in range(blinds):
            DAMAGES["swapped files"](_copied(model, folder), random.Random(f"{seed} {number}"))
            end, what, _ = end_of(folder, compares=False)
            report.noticed += end == "tokens" and what != truth
    click.echo(json.dumps(asdict(report), indent=1))
    if page is not None:
        page.write_text(json.dumps(asdict(report)))
    sys.exit(bool(report.faults))


if __name__ == "__main__":
    main()
