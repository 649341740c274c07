"""The configuration read again: what holds at once, what waits, and what is wrong."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from potatod import log, reload
from potatod.config import Settings, build, keys
from potatod.errors import ConfigError
from potatod.notify import Systemd
from potatod.reload import LIVE, Reloader, Terminal, merge
from potatod.sections import OneOfModels
from potatod.sizes import Percent
from potatod.sources import gather

LABELS = {key.label for key in keys()}


@pytest.fixture(autouse=True)
def own_log() -> Iterator[None]:
    """The process's own log is as it was afterwards."""
    root, ours = logging.getLogger(), logging.getLogger("potatod")
    before = list(root.handlers), root.level, ours.level
    yield
    root.handlers[:], root.level, ours.level = before
    logging.captureWarnings(False)


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    caplog.set_level(logging.INFO, "potatod.supervisor")
    return lambda: [f"{record.getMessage()} {getattr(record, 'potato_fields', {})}" for record in caplog.records]


def test_what_holds_at_once_are_keys_that_there_are() -> None:
    assert LIVE <= LABELS


def test_of_what_differs_the_live_keys_change_and_the_others_wait() -> None:
    holding = build({("pool", "size"): 1 << 30, ("log", "level"): "info", ("jobs", "keep"): 5.0})
    read = build({("pool", "size"): 2 << 30, ("log", "level"): "debug", ("jobs", "keep"): 5.0, ("run", "nice"): 3})
    merged = merge(holding, read)
    assert merged.changed == ("[log] level",)
    assert merged.waiting == ("[pool] size", "[run] nice")
    assert merged.settings == build({("pool", "size"): 1 << 30, ("log", "level"): "debug", ("jobs", "keep"): 5.0})


def test_the_models_that_are_served_wait() -> None:
    holding = build({}, (OneOfModels("/a"),))
    merged = merge(holding, build({("log", "level"): "debug"}, (OneOfModels("/a"), OneOfModels("/b"))))
    assert (merged.changed, merged.waiting, merged.settings.models) == (("[log] level",), ("[[models]]",), holding.models)


@pytest.mark.parametrize("key", list(keys()), ids=lambda key: key.label)
def test_each_key_is_live_or_waits_and_never_both(key) -> None:
    other = key.parse(_other(key))
    merged = merge(Settings(), build({(key.section, key.name): other}))
    assert (merged.changed, merged.waiting) == (((key.label,), ()) if key.label in LIVE else ((), (key.label,)))
    assert key.of(merged.settings) == (other if key.label in LIVE else key.default)


def _other(key):
    """Something that is allowed and not the default."""
    choices = [key.example, *getattr(key.kind, "values", ()), getattr(key.kind, "high", None), 2]
    choices += ["20%", "1s", "127.0.0.1:1", "tcp://0.0.0.0:1", "cpu", "self:int4", "/other"]
    for choice in choices:
        try:
            if choice is not None and key.parse(choice) != key.default:
                return choice
        except ValueError:
            pass
    raise AssertionError(f"no other value for {key.label}")


def test_a_configuration_that_is_wrong_changes_nothing_and_the_log_says_why(tmp_path: Path, said: Callable[[], list[str]]) -> None:
    file = tmp_path / "potatod.toml"
    file.write_text('[log]\nlevel = "loud"\n')
    assert reload.read_again(lambda: gather(file, {}, {}).settings, Settings()) is None
    (sentence,) = said()
    assert "nothing changes" in sentence and f"{file}, line 2: [log] level must be" in sentence


def test_the_log_names_what_changed_and_what_waits(said: Callable[[], list[str]]) -> None:
    read = dataclasses.replace(Settings(), pool=dataclasses.replace(Settings().pool, size=Percent(50)))
    assert reload.read_again(lambda: read, Settings()) == Settings()
    assert reload.read_again(Settings, Settings()) == Settings()
    assert ["'waits_for_a_restart': '[pool] size'" in sentence for sentence in said()] == [True, False]
    assert all("'changed': 'nothing'" in sentence for sentence in said())


# the signal


@pytest.fixture
def told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], list[str]]]:
    """What systemd was told."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ours:
        ours.bind(str(tmp_path / "notify"))
        ours.setblocking(False)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        monkeypatch.delenv("WATCHDOG_USEC", raising=False)

        def said() -> list[str]:
            found = []
            while True:
                try:
                    found.append(ours.recv(4096).decode())
                except BlockingIOError:
                    return found

        yield said


@pytest.mark.parametrize("wrong", [False, True])
def test_systemd_is_told_before_and_after_and_once_for_each_signal(told: Callable[[], list[str]], wrong: bool) -> None:
    read = dataclasses.replace(Settings(), log=dataclasses.replace(Settings().log, level="debug"))

    def reading() -> Settings:
        assert told()[-1].startswith("RELOADING=1\nMONOTONIC_USEC=")
        if wrong:
            raise ConfigError("it is wrong")
        return read

    systemd, reloader = Systemd("llama", 100.0), Reloader(reading)
    systemd.look(0.0, "up", "", set())
    assert reloader.look(Settings(), systemd) is None
    assert told() == ["READY=1", "STATUS=serving llama"]
    reloader.hung_up()
    assert reloader.look(Settings(), systemd) == (None if wrong else read)
    assert told() == ["READY=1"]
    assert reloader.done is not wrong
    assert reloader.look(Settings(), systemd) is None
    assert told() == []


def test_what_is_not_ready_yet_does_not_become_it_by_reading_again(told: Callable[[], list[str]]) -> None:
    reloader = Reloader(Settings)
    reloader.hung_up()
    assert reloader.look(Settings(), Systemd("llama", 100.0)) == Settings()
    assert told() == []


def test_this_processs_log_follows(monkeypatch: pytest.MonkeyPatch) -> None:
    configured = []
    monkeypatch.setattr(log, "configure", lambda *about: configured.append(about))
    reloader = Reloader(lambda: build({("log", "level"): "error", ("log", "format"): "json"}))
    reloader.hung_up()
    reloader.look(Settings(), Systemd("llama", 100.0))
    assert configured == [("supervisor", "error", "json")]


def test_a_terminal_that_is_closed_means_the_end_and_no_terminal_does_not() -> None:
    ours, theirs = os.openpty()
    try:
        terminal = Terminal(theirs)
        assert not terminal.gone
        os.close(ours)
        ours = -1
        assert terminal.gone
    finally:
        os.close(theirs)
        if ours >= 0:
            os.close(ours)
    read, write = os.pipe()
    nowhere = Terminal(read)
    os.close(write)
    assert not nowhere.gone
    os.close(read)


def test_stages_read_the_same_settings_that_the_supervisor_has() -> None:
    merged = merge(Settings(), build({("sampling", "temperature"): 0.7}))
    assert Settings.from_json(json.loads(json.dumps(merged.settings.to_json()))) == merged.settings
