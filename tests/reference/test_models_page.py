"""docs/MODELS.md says what the self-check says."""

from __future__ import annotations

from pathlib import Path

import models_page
from families import FAMILIES

PAGE = Path(__file__).resolve().parents[2] / "docs" / "MODELS.md"


def test_the_page_is_what_the_self_check_finds_today():
    assert PAGE.read_text() == models_page.render(), "python tests/models_page.py > docs/MODELS.md"


def test_a_family_is_called_served_exactly_where_the_page_says_so():
    text = PAGE.read_text().split("## Refused")[0]
    for family in FAMILIES:
        assert (f"| {family.name} | `{family.model_type}` | yes | yes |" in text) == family.served, family.name
