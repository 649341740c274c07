"""Killed, cut off or started twice: OUT is either whole or not a model folder, and the next run goes on."""

from __future__ import annotations

import fcntl
import os
import random

import pytest
from factories import checkpoint, contents
from killed import killed_at_random_moments

from potatod import model_folder
from potatod.errors import DoesNotFit, InternalError, NoSuchModel, TryAgain, UsageError
from potatod.store import journal, shard_file, shards, verify
from potatod.store.prepare import Progress, prepare

#: Prepares as the command does, but sleeps after each shard, so that a kill can land anywhere.
SLOW = (
    "from potatod.store.prepare import prepare",
    "prepare(Path(sys.argv[1]), Path(sys.argv[2]), band_bytes=1 << 13, progress=lambda p: time.sleep(0.01))",
)


class Killed(Exception):
    pass


def stop_after(shards: int):
    """A progress that ends the run as an interrupt would, after so many shards."""
    seen = []

    def progress(p: Progress) -> None:
        seen.append(p)
        if len(seen) == shards + 1:
            raise Killed

    return progress


def test_a_prepare_killed_at_random_moments_ends_with_the_same_bytes(tmp_path):
    source = checkpoint(tmp_path / "source", "Mixtral", "bfloat16", tokenizer=True)
    prepare(source, tmp_path / "whole", band_bytes=1 << 13)
    out = tmp_path / "out"

    def look() -> None:
        if not (out / "manifest.json").exists():
            with pytest.raises(NoSuchModel, match="potatod prepare"):
                model_folder.load(out)

    assert killed_at_random_moments(*SLOW, source, out, chance=random.Random(7), longest_s=0.3, look=look) > 0
    assert contents(out) == contents(tmp_path / "whole")


@pytest.mark.parametrize("shards", range(9))
def test_interrupted_after_any_shard_the_next_run_writes_only_the_rest(tmp_path, shards):
    source = checkpoint(tmp_path / "source", tokenizer=True)
    prepare(source, tmp_path / "whole")
    with pytest.raises(Killed):
        prepare(source, tmp_path / "out", progress=stop_after(shards))
    with pytest.raises(NoSuchModel):
        model_folder.load(tmp_path / "out")
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*.safetensors")}
    steps: list[Progress] = []
    prepare(source, tmp_path / "out", progress=steps.append)
    assert len(before) == shards
    assert steps[0].bytes_done == steps[0].bytes_before == sum((tmp_path / "out" / name).stat().st_size for name in before)
    assert all((tmp_path / "out" / name).stat().st_mtime_ns == time_ns for name, time_ns in before.items())
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_a_journal_line_cut_by_a_crash_costs_only_its_shard(tmp_path):
    source = checkpoint(tmp_path / "source")
    prepare(source, tmp_path / "whole")
    with pytest.raises(Killed):
        prepare(source, tmp_path / "out", progress=stop_after(4))
    journal = tmp_path / "out" / ".prepare.journal"
    journal.write_bytes(journal.read_bytes()[:-30])
    steps: list[Progress] = []
    prepare(source, tmp_path / "out", progress=steps.append)
    assert steps[0].layers_done == 2
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_a_run_that_ends_while_it_writes_its_journal_anew_loses_nothing(tmp_path, monkeypatch):
    source = checkpoint(tmp_path / "source")
    with pytest.raises(Killed):
        prepare(source, tmp_path / "out", progress=stop_after(4))

    def killed(*_: object) -> None:
        raise Killed

    for moment in ("replace", "fsync"):
        with monkeypatch.context() as patch:
            patch.setattr(journal.os, moment, killed)
            with pytest.raises(Killed):
                prepare(source, tmp_path / "out")
    steps: list[Progress] = []
    prepare(source, tmp_path / "out", progress=steps.append)
    assert steps[0].bytes_before > 0 and steps[0].layers_done == 3
    assert not list((tmp_path / "out").glob(".*"))


def test_a_source_that_changed_meanwhile_is_begun_anew(tmp_path):
    source = checkpoint(tmp_path / "source")
    with pytest.raises(Killed):
        prepare(source, tmp_path / "out", progress=stop_after(5))
    checkpoint(tmp_path / "source", seed=1)
    steps: list[Progress] = []
    prepare(source, tmp_path / "out", progress=steps.append)
    prepare(source, tmp_path / "whole")
    assert steps[0].bytes_before == 0
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_a_finished_folder_of_the_same_source_and_options_is_left_alone(tmp_path):
    source = checkpoint(tmp_path / "source")
    assert prepare(source, tmp_path / "out") is True
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}
    assert prepare(source, tmp_path / "out") is False
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()} == before


def test_other_options_are_refused_until_forced(tmp_path):
    source = checkpoint(tmp_path / "source", tokenizer=True)
    prepare(source, tmp_path / "out")
    with pytest.raises(UsageError, match="--force"):
        prepare(source, tmp_path / "out", dtype="bfloat16")
    assert model_folder.load(tmp_path / "out").dtype == "float32"
    prepare(source, tmp_path / "out", dtype="bfloat16", force=True)
    assert model_folder.load(tmp_path / "out").dtype == "bfloat16"
    assert not (tmp_path / "out" / ".prepare.journal").exists()


def test_force_leaves_other_peoples_files_and_takes_the_manifest_away_first(tmp_path):
    source = checkpoint(tmp_path / "source")
    prepare(source, tmp_path / "out")
    (tmp_path / "out" / "notes.txt").write_text("mine")
    with pytest.raises(Killed):
        prepare(source, tmp_path / "out", dtype="bfloat16", force=True, progress=stop_after(0))
    with pytest.raises(NoSuchModel):
        model_folder.load(tmp_path / "out")
    assert (tmp_path / "out" / "notes.txt").read_text() == "mine"


def test_a_folder_with_other_things_in_it_is_not_touched(tmp_path):
    source = checkpoint(tmp_path / "source")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("years of work")
    for force in (False, True):
        with pytest.raises(UsageError, match="other things"):
            prepare(source, tmp_path / "out", force=force)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["thesis.txt"]


def test_the_source_is_never_written_to(tmp_path):
    source = checkpoint(tmp_path / "source")
    before = contents(source)
    with pytest.raises(UsageError, match="never written to"):
        prepare(source, source, force=True)
    prepare(source, tmp_path / "out")
    assert contents(source) == before


def test_two_prepares_in_one_folder_do_not_meet(tmp_path):
    source = checkpoint(tmp_path / "source")
    with pytest.raises(Killed):
        prepare(source, tmp_path / "out", progress=stop_after(1))
    with open(tmp_path / "out" / ".prepare.journal") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(TryAgain, match="another"):
            prepare(source, tmp_path / "out")
    assert prepare(source, tmp_path / "out")


def test_too_little_room_is_said_before_anything_is_written(tmp_path, monkeypatch):
    source = checkpoint(tmp_path / "source")
    usage = type("usage", (), {"free": 1 << 20})
    monkeypatch.setattr(shards.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(DoesNotFit, match=r"needs \d+ more bytes of disk and 1048576 are free: \d+ bytes .* missing"):
        prepare(source, tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == [".prepare.journal"]


def test_a_disk_that_fills_up_is_a_sentence_and_the_next_run_goes_on(tmp_path, monkeypatch):
    source = checkpoint(tmp_path / "source")
    prepare(source, tmp_path / "whole")
    real, calls = os.fsync, []

    def full(descriptor: int) -> None:
        calls.append(descriptor)
        if len(calls) == 15:
            raise OSError(28, "No space left on device")
        real(descriptor)

    monkeypatch.setattr(shard_file.os, "fsync", full)
    with pytest.raises(DoesNotFit, match=r"disk is full while writing.*goes on where it stopped"):
        prepare(source, tmp_path / "out")
    monkeypatch.undo()
    assert not list((tmp_path / "out").glob(".*.partial"))
    steps: list[Progress] = []
    prepare(source, tmp_path / "out", progress=steps.append)
    assert steps[0].bytes_before > 0
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


@pytest.mark.parametrize("write", [lambda folder: shard_file.write_text(folder, "manifest.json", "{}"), verify.accept])
def test_a_link_in_a_model_folder_is_never_written_through(tmp_path, write):
    """Whoever unpacks a stranger's folder and works on it loses no file elsewhere; and where it is ours to remove, it is gone."""
    prepare(checkpoint(tmp_path / "source", "Llama 3", "bfloat16"), tmp_path / "out")
    (tmp_path / "elsewhere").write_text("mine")
    (tmp_path / "out" / "generation_config.json").write_text("{}")
    (tmp_path / "out" / ".manifest.json.partial").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(InternalError, match="a link lies in its place"):
        write(tmp_path / "out")
    assert (tmp_path / "elsewhere").read_text() == "mine"
    write(tmp_path / "out")
