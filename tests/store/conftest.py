"""Quiet transformers, one thread: these tests compare bytes."""

from __future__ import annotations

import pytest
import torch
import transformers

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    torch.set_num_threads(1)
