"""The whole daemon on a card, simulated: what stays there, what is uploaded for every sweep, and that the text is the same."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
from daemons import Daemon, know_rates

from potatod import model_folder, rates, verdict
from potatod.config import Settings

#: Bytes a second; fast enough for a test.
DEVICE = "simulated:upload=2e9,compute=5e9,vram=1e9"


SHORT, LONG = "a prompt", "A text of many words. " * 6
SMALL = ("--pool-size", "300KiB", "--front-max-context", "256", "--worker-vram", "4MiB")


def known_as(device: str, model: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was found out with DEVICE holds for one that differs from it in what goes wrong later; where nobody has asked yet, the daemon will."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    manifest, settings = model_folder.load(model), {}
    for name in (DEVICE, device):
        worker = dataclasses.replace(Settings().worker, device=name, threads=1)
        settings[name] = dataclasses.replace(Settings(), worker=worker)
    if (findings := verdict._kept(settings[DEVICE], model, manifest).get()) is not None:
        verdict._kept(settings[device], model, manifest).put(findings | {"device": device})
    if (computing := rates.kept_compute(settings[DEVICE], "float32").get()) is not None:
        rates.kept_compute(settings[device], "float32").put(computing | {"device": device})


def text(running: Daemon, prompt: str = SHORT) -> str:
    return str(running.ask("ask", prompt, "--raw", "--max-tokens", "12", "--temperature", "0")["text"])


@pytest.fixture(scope="module")
def texts(tiny_model, probe_cache) -> dict[str, str]:
    """By prompt, what a cpu answers."""
    know_rates(probe_cache, DEVICE)
    with Daemon(tiny_model, probe_cache, "--pool-size", "700KiB", "--front-max-context", "256") as running:
        return {prompt: text(running, prompt) for prompt in (SHORT, LONG)}


@pytest.fixture
def expected(texts: dict[str, str]) -> str:
    return texts[SHORT]


@pytest.mark.slow
@pytest.mark.parametrize(("vram", "stays"), [("4248KiB", "little"), ("4648KiB", "some of it"), ("8MiB", "all of it")])
def test_through_a_cards_memory_the_text_is_that_of_the_cpu(tiny_model, probe_cache, expected, vram, stays):
    flags = ("--pool-size", "300KiB", "--front-max-context", "256", "--worker-device", DEVICE, "--worker-vram", vram)
    with Daemon(tiny_model, probe_cache, *flags) as running:
        assert text(running) == expected
        report = json.loads(running.client("status", "--json").stdout)
        assert report["engine"]["device"] == DEVICE
        model = report["model"]
        share = model["card_bytes"] / model["weights_bytes"]
        assert {"little": share < 0.2, "some of it": 0 < share < 1, "all of it": share == 1}[stays]
        assert model["card_bytes"] + model["resident_bytes"] + model["streamed_bytes_per_sweep"] == model["weights_bytes"]


@pytest.mark.slow
def test_a_worker_that_dies_with_its_card_is_replaced_and_the_text_goes_on(tiny_model, probe_cache, expected):
    with Daemon(tiny_model, probe_cache, *SMALL, "--worker-device", DEVICE) as running:
        assert text(running) == expected
        running.stages()["worker"].kill()
        assert text(running) == expected


@pytest.mark.slow
def test_a_sweep_for_which_the_card_has_not_the_memory_is_computed_in_smaller_pieces(tiny_model, probe_cache, texts, monkeypatch):
    known_as(device := f"{DEVICE},rows=40", tiny_model, probe_cache, monkeypatch)
    with Daemon(tiny_model, probe_cache, *SMALL, "--worker-device", device) as running:
        assert text(running, LONG) == texts[LONG]
        assert "computed anew in smaller pieces" in running.text()


@pytest.mark.slow
def test_a_text_for_which_no_piece_is_small_enough_is_refused_and_the_next_one_answered(tiny_model, probe_cache, expected, monkeypatch):
    known_as(device := f"{DEVICE},rows=15", tiny_model, probe_cache, monkeypatch)
    with Daemon(tiny_model, probe_cache, *SMALL, "--worker-device", device) as running:
        refused = running.client("ask", LONG, "--raw", "--max-tokens", "4", "--temperature", "0")
        assert refused.returncode != 0 and "the card's memory does not hold this text" in refused.stderr
        assert text(running) == expected
        assert running.alive


@pytest.mark.slow
def test_memory_of_the_card_that_is_gone_when_the_weights_come_is_said_with_its_numbers(tiny_model, probe_cache, monkeypatch):
    known_as(device := f"{DEVICE},taken=999999000", tiny_model, probe_cache, monkeypatch)
    with Daemon(tiny_model, probe_cache, *SMALL, "--worker-device", device, until="has taken memory of the card") as running:
        running.until(lambda: not running.alive, "its end")
        assert running.stop() == 71
        assert "are missing" in running.text()


def test_an_option_that_a_simulated_device_does_not_know_is_said(tiny_model, probe_cache):
    with Daemon(tiny_model, probe_cache, "--worker-device", "simulated:speed=1", until="a simulated device takes") as running:
        running.until(lambda: not running.alive, "its end")
        assert running.stop() == 78
