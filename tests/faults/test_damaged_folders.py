"""Model folders that are damaged at random: refused in a sentence, or the tokens of the undamaged one. POTATO_DAMAGES says how many (make torture)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from counts import portions

DAMAGES = int(os.environ.get("POTATO_DAMAGES", "30"))
SEED = int(os.environ.get("POTATO_SEED", "1"))
PROGRAM = Path(__file__).parents[1] / "torture" / "damaged.py"


def test_a_damaged_folder_is_refused_or_gives_the_tokens_of_the_undamaged_one(tiny_model: Path, tmp_path: Path) -> None:
    """And where checksums are not compared that is noticed."""
    for first, count in portions("damaged folders", DAMAGES, 200):
        page = tmp_path / f"{first}.json"
        options = ("--first", f"{first}", "--folders", f"{count}", "--seed", f"{SEED}", "--blind", "4", "--report", str(page))
        done = subprocess.run([sys.executable, str(PROGRAM), str(tiny_model), *options], capture_output=True, text=True, check=False)
        assert page.exists(), done.stderr
        said = json.loads(page.read_text())
        assert said["faults"] == []
        assert sum(said["ends"].values()) == count
        assert sum(ends for end, ends in said["ends"].items() if end.endswith(": refused")) > count / 2, said["ends"]
        assert said["noticed"] == 4
