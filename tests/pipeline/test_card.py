"""The whole daemon on a card, simulated: what stays there, what is uploaded for every sweep, and that the text is the same."""

from __future__ import annotations

import json

import pytest
from daemons import Daemon

#: Bytes a second; fast enough for a test.
DEVICE = "simulated:upload=2e9,compute=5e9,vram=1e9"


def text(running: Daemon) -> str:
    return str(running.ask("ask", "a prompt", "--raw", "--max-tokens", "12", "--temperature", "0")["text"])


@pytest.fixture(scope="module")
def expected(tiny_model, probe_cache) -> str:
    with Daemon(tiny_model, probe_cache, "--pool-size", "700KiB", "--front-max-context", "256") as running:
        return text(running)


@pytest.mark.slow
@pytest.mark.parametrize(("vram", "stays"), [("3500KiB", "little"), ("4MiB", "some of it"), ("8MiB", "all of it")])
def test_through_a_cards_memory_the_text_is_that_of_the_cpu(tiny_model, probe_cache, expected, vram, stays):
    flags = ("--pool-size", "300KiB", "--front-max-context", "256", "--worker-device", DEVICE, "--worker-vram", vram)
    with Daemon(tiny_model, probe_cache, *flags) as running:
        assert text(running) == expected
        report = json.loads(running.client("status", "--json").stdout)
        assert report["engine"]["device"] == DEVICE
        model = report["model"]
        share = model["card_bytes"] / model["weights_bytes"]
        assert {"little": share < 0.1, "some of it": 0 < share < 1, "all of it": share == 1}[stays]
        assert model["card_bytes"] + model["resident_bytes"] + model["streamed_bytes_per_sweep"] == model["weights_bytes"]


@pytest.mark.slow
def test_a_worker_that_dies_with_its_card_is_replaced_and_the_text_goes_on(tiny_model, probe_cache, expected):
    flags = ("--pool-size", "300KiB", "--front-max-context", "256", "--worker-device", DEVICE, "--worker-vram", "4MiB")
    with Daemon(tiny_model, probe_cache, *flags) as running:
        assert text(running) == expected
        running.stages()["worker"].kill()
        assert text(running) == expected


def test_an_option_that_a_simulated_device_does_not_know_is_said(tiny_model, probe_cache):
    with Daemon(tiny_model, probe_cache, "--worker-device", "simulated:speed=1", until="a simulated device takes") as running:
        running.until(lambda: not running.alive, "its end")
        assert running.stop() == 78
