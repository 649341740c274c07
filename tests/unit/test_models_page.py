"""docs/MODELS.md lists the families that the tests run."""

from __future__ import annotations

from pathlib import Path

import models_page

PAGE = Path(__file__).resolve().parents[2] / "docs" / "MODELS.md"


def test_the_page_is_made_from_the_families_that_are_tested():
    assert PAGE.read_text() == models_page.render(), "python tests/models_page.py > docs/MODELS.md"
