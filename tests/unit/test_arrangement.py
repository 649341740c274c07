"""How large a prompt's pieces are, and what that leaves for the pool."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from simulation import sweep_s

from potatod import plan
from potatod.arrangement import CHUNKS, arrange, layers_ahead, verified
from potatod.config import Settings
from potatod.errors import DoesNotFit
from potatod.forecast import Rates, forecast
from potatod.kv_layout import KvGroup, KvLayout
from potatod.memory import OWN_RESERVE, Available

from .test_plan import banded, model

MIB = 256
#: 28 layers of 84 MiB and a head of 120 MiB
MODEL = model([[2 * MIB, 2 * MIB, *[26 * MIB] * 3 + [2 * MIB]]] * 28, [30 * MIB] * 4)
NEEDS = SimpleNamespace(
    kv=KvLayout((KvGroup(None, 28_672),)), max_positions=4096, together="nothing", worker_bytes=300_000_000, draft_bytes=0, draft_on_card=(0, 0),
)  # fmt: skip
SETTINGS = dataclasses.replace(Settings(), front=dataclasses.replace(Settings().front, max_context=2048, max_sequences=1))


@pytest.fixture(autouse=True)
def shapes(monkeypatch):
    """Each layer gives a token 100,000 numbers to keep while it is computed."""
    monkeypatch.setattr("potatod.room.activation_bytes", lambda _, tokens: 400_000 * tokens)
    monkeypatch.setattr(MODEL, "layers", 28, raising=False)


def arranged(rates, ram=2_500_000_000, settings=SETTINGS, **more):
    return arrange(settings, MODEL, Available(ram, OWN_RESERVE), NEEDS, 1_000_000, rates, **more)


def per_token(rate: float) -> Rates:
    """A processor whose sweeps cost what their tokens cost: so many bytes of weights a second for one of them."""
    return Rates(5e8, tuple((rows, rate / rows) for rows in (1, 64, 256)), 0.0)


def test_where_computing_is_slow_a_piece_is_no_larger_than_what_reading_hides():
    slow = arranged(per_token(10e9))
    large = arranged(None)
    assert (slow.chunk, large.chunk) == (64, 512)
    assert slow.plan.streamed_bytes < large.plan.streamed_bytes
    assert slow.room.process_bytes == large.room.process_bytes - (512 - 64) * 400_000


def test_where_computing_is_fast_a_piece_is_as_large_as_reading_hides():
    rates = Rates(5e8, ((1, 1e12), (64, 200e9), (256, 9e8)), 0.0)
    found = arranged(rates)
    said = forecast(found.plan, 28, rates, found.chunk)
    smaller = forecast(found.plan, 28, rates, found.chunk // 2)
    assert found.chunk in (128, 256) and smaller.compute_s < smaller.disk_s <= said.compute_s
    assert arranged(Rates(5e8, ((1, 1e12), (256, 9e11)), 0.0)).chunk == 512


def test_a_piece_is_not_smaller_where_its_tokens_cost_more():
    """One of 256 costs no more than one of 64: a card, or a processor that is not busy below that."""
    rates = Rates(5e9, ((1, 2e9), (256, 2e9)), 0.0)
    assert arranged(rates).chunk > 64


def test_what_need_not_stream_takes_the_largest():
    assert arranged(per_token(10e9), ram=8_000_000_000).chunk == 512


def test_where_only_a_smaller_one_fits_it_is_taken_and_where_none_does_that_is_told():
    least = next(ram for ram in range(600_000_000, 2_000_000_000, 5_000_000) if _fits(ram))
    assert arranged(None, ram=least).chunk == 64
    assert arranged(None, ram=least + 448 * 400_000 + 5_000_000).chunk == 512
    with pytest.raises(DoesNotFit, match="more than the"):
        arranged(None, ram=least - 5_000_000)


def _fits(ram: int) -> bool:
    try:
        arranged(None, ram=ram)
    except DoesNotFit:
        return False
    return True


def test_tokens_that_are_computed_one_by_one_come_in_small_pieces_and_reference_cuts_nothing():
    assert arranged(None, by_token=True).chunk < CHUNKS[0]
    whole = dataclasses.replace(SETTINGS, worker=dataclasses.replace(SETTINGS.worker, kernels="reference"))
    assert arranged(per_token(10e9), settings=whole, ram=4_000_000_000).chunk == 2048


@pytest.mark.parametrize(
    ("disk", "checksum", "expected"),
    [(5e8, 5e9, "always"), (20e9, 5e9, "first"), (20e9, 500e9, "always")],
    ids=["hidden by the disk", "would show", "so fast that it does not"],
)
def test_every_read_is_compared_with_its_checksum_where_that_does_not_show(disk, checksum, expected):
    rates = dataclasses.replace(per_token(10e9), disk=disk, checksum=checksum)
    plan = arranged(rates).plan
    assert verified(Settings(), plan, 28, rates) == expected
    never = dataclasses.replace(Settings(), reader=dataclasses.replace(Settings().reader, verify="never"))
    assert verified(never, plan, 28, rates) == "never"


@given(share=st.floats(0.3, 0.9), compute=st.floats(0.02, 1.6))
@settings(max_examples=60, deadline=None)
def test_the_ring_is_large_enough_that_nothing_waits_without_need(share, compute):
    """``compute``: seconds of computing for a second of reading."""
    manifest = banded(28, [8, 8, 12, 12, 12], 7)
    manifest.layers = 28
    total = sum(part.length for _, part in plan.sweep_parts(manifest))

    def made(ahead: float) -> plan.Plan:
        return plan.make(manifest, int(share * total), layers_ahead=ahead)

    disk_s = made(layers_ahead(compute)).streamed_bytes / 5e8
    rate = total / (compute * disk_s)
    found = sweep_s(made(layers_ahead(compute)), 5e8, lambda parts: sum(part.length for part in parts) / rate)
    assert found <= 1.03 * max(disk_s, compute * disk_s)


def test_the_ring_is_little_more_than_a_layer_where_the_disk_is_much_slower_and_several_where_it_is_not():
    assert layers_ahead(0.02) == pytest.approx(1.17)
    assert [layers_ahead(each) for each in (0.3, 0.6, 0.9)] == sorted(layers_ahead(each) for each in (0.3, 0.6, 0.9))
    assert layers_ahead(1.0) == layers_ahead(50.0) == 4.0
