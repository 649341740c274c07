"""Any process of a whole daemon is killed at any moment: a sample of what `make torture` does for hours."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

KILLS = int(os.environ.get("POTATO_ANY_KILLS", "12"))


@pytest.mark.timeout(900)
def test_kills_of_any_process_lose_no_job_and_change_no_token() -> None:
    torture = Path(__file__).parents[1] / "torture" / "kills.py"
    done = subprocess.run([sys.executable, torture, "--kills", str(KILLS)], capture_output=True, text=True, check=False)
    assert (done.returncode, "FAULT" in done.stderr) == (0, False), done.stderr[-5000:]
    assert f"{KILLS} kills" in done.stdout and "0 faults" in done.stdout
