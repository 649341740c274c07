"""The disk fails at each thing that prepare and pull ask of it: a sentence says what to do, the source stays, the next run ends with the same bytes.

`make test` tries each place in our code once. POTATO_DISK_CALLS says how many calls more; make torture wants every one, with three errors, alone and
with all that follow.
"""

from __future__ import annotations

import errno
import itertools
import os
import random
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

import huggingface_hub
import pytest
from factories import checkpoint, contents
from failing_disk import ERRORS, FailingDisk, Fault, Site
from hubs import Hub

from potatod import model_folder
from potatod.errors import DoesNotFit, InternalError, PotatoError
from potatod.store import hub_files
from potatod.store.prepare import prepare
from potatod.store.pull import pull

CALLS = int(os.environ.get("POTATO_DISK_CALLS", "0"))
SEED = int(os.environ.get("POTATO_SEED", "1"))
BAND_BYTES = 1 << 13


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoint(tmp_path_factory.mktemp("disk") / "source", tokenizer=True, shard_size="80KB", num_hidden_layers=2)


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """Where a folder is made, and where temporary files lie: both on the disk that fails."""
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    return tmp_path / "made", temporary


@pytest.fixture
def hub(source: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with Hub(source) as hub:
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", hub.endpoint)
        monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.endpoint + "/{repo_id}/resolve/{revision}/{filename}")
        monkeypatch.setattr(hub_files, "_CHUNK_BYTES", 1 << 14)
        yield hub


class Steps:
    """What a run has said of how far it was."""

    def __init__(self) -> None:
        self.before_bytes = self.done_bytes = 0

    def __call__(self, progress: object, _supply: object = None) -> None:
        self.before_bytes, self.done_bytes = progress.bytes_before, progress.bytes_done  # type: ignore[attr-defined]


def test_a_prepare_survives_a_disk_that_fails_at_any_call(source: Path, places: tuple[Path, Path]) -> None:
    def make(out: Path, steps: Steps) -> None:
        prepare(source, out, band_bytes=BAND_BYTES, progress=steps)

    met = fail_everywhere(make, source, places, asked_of(make, places))
    assert {site.what for site in met} >= {"open", "write", "flush", "close", "fsync", "replace", "mkdir", "unlink"}
    assert {site.file for site in met} >= {"shard_file.py", "journal.py", "companions.py"}


def test_a_pull_survives_a_disk_that_fails_at_any_call(source: Path, places: tuple[Path, Path], hub: Hub) -> None:
    def make(out: Path, steps: Steps) -> None:
        pull("tiny/llama", out, band_bytes=BAND_BYTES, progress=steps)

    of_prepare = asked_of(lambda out, _: prepare(source, out, band_bytes=BAND_BYTES), places)
    shutil.rmtree(places[0])
    met = fail_everywhere(make, source, places, asked_of(make, places), {site for site in of_prepare if site.what != "unlink"})
    assert {site.file for site in met} >= {"hub_files.py", "staging.py", "shard_file.py"}


def asked_of(make: Callable[[Path, Steps], object], places: tuple[Path, Path]) -> Counter[Site]:
    """How often a run that nothing disturbs asks what of the disk. What it makes stays."""
    with FailingDisk(*places).under() as disk:
        make(places[0], Steps())
    return disk.calls


def fail_everywhere(
    make: Callable[[Path, Steps], None], source: Path, places: tuple[Path, Path], calls: Counter[Site], others: Collection[Site] = ()
) -> set[Site]:
    """Tries the faults of this run; returns the sites at which one was met. ``others``: sites that another test's sample has."""
    out, temporary = places
    before = {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in source.iterdir()}
    whole = contents(out)
    met: set[Site] = set()
    for fault in faults(calls, others):
        shutil.rmtree(out)
        first, second = Steps(), Steps()
        error: PotatoError | None = None
        with FailingDisk(out, temporary).under(fault) as failing:
            try:
                make(out, first)
            except PotatoError as raised:
                error = raised
        if failing.met:
            met.add(fault.site)
        if error is None:  # it did without; what could not be removed goes when it is run again
            assert {name: (out / name).read_bytes() for name in whole} == whole, fault
        else:
            assert isinstance(error, InternalError if fault.number == errno.EIO else DoesNotFit), f"{fault}: {error!r}"
            assert "run the same command again" in str(error), f"{fault}: {error}"
            assert f"{out}" in str(error) or f"{temporary}" in str(error), f"{fault}: {error}"
        if (out / model_folder.NAME).exists():
            model_folder.check_files(out, model_folder.load(out))
        assert {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in source.iterdir()} == before, fault
        make(out, second)
        assert contents(out) == whole, fault
        assert second.before_bytes >= first.done_bytes or not second.done_bytes, f"{fault}: what was said to be done is done again"
        shutil.rmtree(temporary)  # a library's own, where even they could not be removed
        temporary.mkdir()
    return met


def faults(calls: Counter[Site], others: Collection[Site]) -> Iterator[Fault]:
    """Each site once, with another error in each run that has another seed; then as many of all as are asked for."""
    chance = random.Random(SEED)
    for index, site in enumerate(sorted(calls.keys() - others)):
        yield Fault(site, chance.randrange(calls[site]), ERRORS[(index + SEED) % len(ERRORS)], (index // len(ERRORS) + SEED) % 2 == 0)
    every = [
        Fault(site, nth, number, lasts)
        for site, count in sorted(calls.items()) for nth, number, lasts in itertools.product(range(count), ERRORS, (False, True))
    ]  # fmt: skip
    chance.shuffle(every)
    yield from every[:CALLS]
