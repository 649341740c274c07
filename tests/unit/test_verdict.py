"""How large a pool is, and what is said where the RAM does not hold it."""

from __future__ import annotations

import dataclasses

import pytest

from potatod.config import Settings
from potatod.errors import DoesNotFit
from potatod.sizes import Auto, Percent
from potatod.verdict import RESERVE_BYTES, pool_bytes

from .test_plan import model

GIB = 1 << 30


@pytest.fixture(scope="module")
def manifest():
    return model([[10, 20]] * 6, [5, 5])


def sized(size) -> Settings:
    settings = Settings()
    return dataclasses.replace(settings, pool=dataclasses.replace(settings.pool, size=size))


def total(manifest) -> int:
    return sum(part.length for shard in manifest.shards if shard.kind in ("layer", "head") for part in shard.parts)


def test_auto_takes_what_others_leave_and_no_more_than_the_model(manifest):
    all_of_it = total(manifest)
    assert pool_bytes(sized(Auto()), manifest, 8 * GIB, GIB) == all_of_it
    assert pool_bytes(sized(Auto()), manifest, GIB + RESERVE_BYTES + all_of_it - 4096, GIB) == all_of_it - 4096


@pytest.mark.parametrize(
    ("size", "taken"),
    [(Auto(), None), (Percent(100), None), (64 * GIB, None), (Percent(50), 500)],
    ids=["auto", "all of it", "more than the model", "half of it"],
)
def test_what_the_ram_does_not_hold_is_refused_with_what_is_missing(manifest, size, taken):
    """Everything beside the pool counts: processes, and the KV of every text that may run."""
    need = total(manifest) if taken is None else taken
    with pytest.raises(DoesNotFit, match=r"more than the .* of RAM that are available"):
        pool_bytes(sized(size), manifest, 1000 if taken else need, 600)


def test_a_configured_size_is_taken_as_it_is_where_it_fits(manifest):
    assert pool_bytes(sized(2 * GIB), manifest, 8 * GIB, GIB) == 2 * GIB
    assert pool_bytes(sized(Percent(25)), manifest, 8 * GIB, GIB) == 2 * GIB
