"""What tests of several folders share."""

from __future__ import annotations

import gc
import os
import signal
import tempfile
from collections.abc import Generator, Iterator
from pathlib import Path

import hypothesis
import pytest
from forked import Potatod

# Several test processes share the cores, and OpenMP threads that wait for each other spin.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# A daemon's jobs outlive it, and those of a test have no business in the home of whoever runs it.
_STATE = tempfile.TemporaryDirectory(prefix="pt-state-")
os.environ["XDG_STATE_HOME"] = _STATE.name

# A machine that does other things too is slow now and then, and that is no fault of an example.
hypothesis.settings.register_profile("whenever", deadline=None)
hypothesis.settings.load_profile("whenever")

# A shell that starts us in the background has SIGINT ignored, and so would every program that a test presses Ctrl-C on.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """What is imported here, torch and transformers and all tests, stays: looking through it for what does not would take a tenth of all time."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()
        gc.freeze()


@pytest.fixture(scope="session")
def potatod() -> Iterator[Potatod]:
    """Runs a command line of it."""
    with Potatod() as potatod:
        yield potatod


@pytest.fixture(scope="session")
def probe_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Daemons of one test run probe each model once, whichever of xdist's processes starts them."""
    from daemons import know_rates

    place = tmp_path_factory.getbasetemp()
    cache = (place.parent if "PYTEST_XDIST_WORKER" in os.environ else place) / "cache"
    know_rates(cache)
    return cache


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama 3 with a byte-level tokenizer, prepared: six layers, fp32."""
    from daemons import make_model

    return make_model(tmp_path_factory.mktemp("tiny"))
