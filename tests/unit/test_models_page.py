"""docs/MODELS.md lists the families that the tests run."""

from __future__ import annotations

from pathlib import Path

import models_page
from families import FAMILIES

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "MODELS.md"


def test_the_page_is_made_from_the_families_that_are_tested():
    assert PAGE.read_text() == models_page.render(), "python tests/models_page.py > docs/MODELS.md"


def test_the_readme_counts_them():
    text = (ROOT / "README.md").read_text()
    assert f"{len(FAMILIES)} families against transformers" in text
    assert f"fp32 and bf16 | {len(FAMILIES)} |" in text
