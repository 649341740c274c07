"""How large a pool is, and what is said where the RAM does not hold it."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import pytest

from potatod.config import Settings
from potatod.errors import ConfigError, DoesNotFit
from potatod.kv_layout import BLOCK, KvGroup, KvLayout
from potatod.manifest import Part, Shard, Tensor
from potatod.memory import OWN_RESERVE, SHARED_RESERVE, Available
from potatod.room import activation_bytes, pool_bytes, put_together_bytes, share
from potatod.sizes import Auto, Percent

from .test_plan import KB4, banded, model

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
    assert pool_bytes(sized(Auto()), manifest, 8 * GIB, GIB, 256) == all_of_it
    left = all_of_it - 4096  # of which one byte in 161 is the kernel's, for the pool
    assert pool_bytes(sized(Auto()), manifest, GIB + 256 + left, GIB, 256) == left * 160 // 161


@pytest.mark.parametrize(
    ("size", "taken"),
    [(Auto(), None), (Percent(100), None), (64 * GIB, None), (Percent(50), 500)],
    ids=["auto", "all of it", "more than the model", "half of it"],
)
def test_what_the_ram_does_not_hold_is_refused_with_what_is_missing(manifest, size, taken):
    """Everything beside the pool counts: processes, and the KV of every text that may run."""
    need = total(manifest) if taken is None else taken
    with pytest.raises(DoesNotFit, match=r"more than the .* of RAM that are available"):
        pool_bytes(sized(size), manifest, 1000 if taken else need, 600, GIB)


def test_a_configured_size_is_taken_as_it_is_where_it_fits(manifest):
    assert pool_bytes(sized(2 * GIB), manifest, 8 * GIB, GIB, GIB) == 2 * GIB
    assert pool_bytes(sized(Percent(25)), manifest, 8 * GIB, GIB, GIB) == 2 * GIB


NEEDS = SimpleNamespace(
    kv=KvLayout((KvGroup(None, 1000),)), max_positions=512, together="nothing", worker_bytes=1 << 20, draft_bytes=0, draft_on_card=(0, 0),
)  # fmt: skip


@pytest.mark.parametrize(
    ("reserve", "of", "left"),
    [(Auto(), SHARED_RESERVE, SHARED_RESERVE), (Auto(), OWN_RESERVE, OWN_RESERVE), (GIB, OWN_RESERVE, GIB), (Percent(25), OWN_RESERVE, GIB)],
    ids=["of a machine", "of a cgroup", "a size", "a share"],
)
def test_what_is_left_alone_is_the_users_to_say_and_less_where_nobody_else_needs_it(manifest, reserve, of, left):
    settings = Settings()
    settings = dataclasses.replace(settings, pool=dataclasses.replace(settings.pool, reserve=reserve))
    assert share(settings, manifest, Available(4 * GIB, of), NEEDS, 0).reserve_bytes == left


def test_a_larger_vocabulary_leaves_less_for_the_pool(manifest):
    small, large = (share(sized(Auto()), manifest, Available(GIB, OWN_RESERVE), NEEDS, size) for size in (0, 10_000_000))
    assert large.process_bytes > small.process_bytes + 10_000_000


def test_what_is_computed_with_grows_with_the_tokens_and_the_widest_layer():
    def layer(*shapes: tuple[int, ...]) -> SimpleNamespace:
        tensors = [SimpleNamespace(name=str(number), shape=shape, first_row=None) for number, shape in enumerate(shapes)]
        return SimpleNamespace(kind="layer", parts=[SimpleNamespace(tensors=tensors)])

    narrow, wide = layer((64, 64), (64,)), layer((64, 64), (160, 64), (64, 160))
    experts = layer((64, 64), (128, 96, 64))
    assert activation_bytes(SimpleNamespace(shards=[narrow]), 10) == 10 * 64 * 4
    assert activation_bytes(SimpleNamespace(shards=[narrow, wide]), 10) == 10 * (64 + 160 + 160) * 4
    assert activation_bytes(SimpleNamespace(shards=[experts]), 1) == (64 + 8 * 96) * 4


def test_the_kernel_s_own_for_a_large_pool_is_counted(manifest):
    """Page tables of two processes and the memfd's index: 0.6 % of the pool, which no reserve of a fixed size covers."""
    assert pool_bytes(sized(60 * GIB), manifest, total(manifest) * 2, 0, 0) == 60 * GIB, "a pool larger than the model is not made"
    need = total(manifest)
    with pytest.raises(DoesNotFit):
        pool_bytes(sized(need), manifest, need + need // 200, 0, 0)
    assert pool_bytes(sized(need), manifest, need + need // 100, 0, 0) == need


def with_vram(vram, **front) -> Settings:
    settings = Settings()
    front = dataclasses.replace(settings.front, **front)
    return dataclasses.replace(settings, front=front, worker=dataclasses.replace(settings.worker, vram=vram))


def test_on_a_card_kv_and_what_is_computed_with_lie_in_its_memory(manifest):
    on_cpu = share(with_vram(Auto()), manifest, Available(4 * GIB, OWN_RESERVE), NEEDS, 0)
    on_card = share(with_vram(Auto()), manifest, Available(4 * GIB, OWN_RESERVE), NEEDS, 0, card=8 * GIB)
    assert on_cpu.card_bytes is None
    assert on_card.process_bytes < on_cpu.process_bytes, "what is computed with is not in RAM"
    taken = 8 * GIB - 8 * GIB // 20
    assert 0 < on_card.card_bytes < taken - on_card.kv_bytes


@pytest.mark.parametrize(("vram", "taken"), [(GIB, GIB), (Percent(25), GIB)])
def test_how_much_of_a_card_is_taken_is_the_users_to_say(manifest, vram, taken):
    room = share(with_vram(vram), manifest, Available(4 * GIB, OWN_RESERVE), NEEDS, 0, card=4 * GIB)
    assert taken - (64 << 20) < room.card_bytes + room.kv_bytes <= taken


def test_a_card_that_is_too_small_or_too_full_is_said(manifest):
    with pytest.raises(DoesNotFit, match=r"\[worker\] vram is 2.1GB and the card has 1.1GB free: 1.1GB are missing"):
        share(with_vram(2 * GIB), manifest, Available(4 * GIB, OWN_RESERVE), NEEDS, 0, card=GIB)
    with pytest.raises(DoesNotFit, match=r"of the card's memory .* may be taken, and the KV .* need"):
        share(with_vram(1 << 18), manifest, Available(4 * GIB, OWN_RESERVE), NEEDS, 0, card=GIB)


def test_without_a_configured_size_a_tenth_of_the_card_is_kvs(manifest):
    needs = SimpleNamespace(
        kv=KvLayout((KvGroup(None, 1 << 20),)), max_positions=1 << 20, together="nothing", worker_bytes=1 << 20, draft_bytes=0, draft_on_card=(0, 0),
    )  # fmt: skip
    room = share(with_vram(Auto(), max_sequences=1), manifest, Available(4 * GIB, OWN_RESERVE), needs, 0, card=20 * GIB)
    assert room.context == pytest.approx(19 * 1024 / 10, abs=BLOCK)
    assert room.kv_bytes == pytest.approx(1.9 * GIB, rel=0.01)


def with_kv(size, **front) -> Settings:
    settings = Settings()
    return dataclasses.replace(settings, kv=dataclasses.replace(settings.kv, size=size), front=dataclasses.replace(settings.front, **front))


def test_one_text_may_be_as_long_as_the_kv_of_all_holds(manifest):
    available = Available(4 * GIB, OWN_RESERVE)
    needs = SimpleNamespace(**vars(NEEDS) | {"max_positions": 100_000})
    assert share(with_kv(10 * BLOCK * 1000), manifest, available, needs, 0).context == 10 * BLOCK
    assert share(with_kv(Percent(1)), manifest, available, needs, 0).kv_bytes == 4 * GIB // 100
    most = share(with_kv(Auto(), max_sequences=3, max_context=BLOCK), manifest, available, NEEDS, 0)
    assert most.kv_bytes == 3 * BLOCK * 1000, "what max_sequences texts of max_context tokens take is enough"


def test_kv_that_does_not_hold_one_text_is_refused_with_what_is_missing(manifest):
    available = Available(4 * GIB, OWN_RESERVE)
    with pytest.raises(ConfigError, match=r"size of 256kB holds 256 tokens of one text: raise it by 128kB, or lower \[front\] max_context to 256"):
        share(with_kv(2 * BLOCK * 1000, max_context=300), manifest, available, NEEDS, 0)
    with pytest.raises(ConfigError, match=r"\[kv\] size of 1.0kB holds 0 tokens of one text: raise it by 255kB"):
        share(with_kv(1000), manifest, available, NEEDS, 0)


def test_families_with_kv_of_their_own_have_room_to_copy_a_layer_of_it(manifest):
    own = SimpleNamespace(**vars(NEEDS) | {"kv": KvLayout((KvGroup(None, 1000),), forks=False)})
    shared, copied = (share(Settings(), manifest, Available(4 * GIB, OWN_RESERVE), needs, 0) for needs in (NEEDS, own))
    assert copied.kv_bytes == shared.kv_bytes
    assert copied.process_bytes == shared.process_bytes + shared.kv_bytes // 8


def test_matrices_in_other_schemes_have_room_for_their_values():
    int4, raw = Tensor("w", "bfloat16", (1024, 1024), "int4", 0, 1024 * 592), Tensor("n", "bfloat16", (1024,), "raw", 0, 2048)
    other = Tensor("v", "bfloat16", (512, 1024), "int4", 0, 512 * 592)
    parts = [Part("f", 0, 606208, "0" * 16, (int4,)), Part("f", 606208, 4096, "0" * 16, (raw,)), Part("f", 610304, 303104, "0" * 16, (other,))]
    shards = [Shard("layer", 0, tuple(parts))]
    stored = SimpleNamespace(shards=shards)
    assert put_together_bytes(stored, "layer") == 3 << 20
    assert [put_together_bytes(stored, what) for what in ("matrix", "bands", "nothing")] == [0, 0, 0], "what is rounded becomes values row by row"


def test_what_is_bf16_in_another_way_has_room_for_a_matrix_at_a_time():
    def part(file: str, at: int, rows: int, name: str, first_row: int | None = None) -> Part:
        return Part(file, at, rows * 1416, "0" * 16, (Tensor(name, "bfloat16", (rows, 1024), "packed", 0, rows * 1416, first_row),))

    layer = Shard("layer", 0, (part("f", 0, 1024, "w"), part("f", 1 << 21, 512, "v")))
    small, large = (Shard("head", None, (part("h", 0, rows, "head", 0), part("h", 1 << 23, rows, "head", rows))) for rows in (256, 1024))
    for head, most in ((small, 2 << 20), (large, 2 << 20)):
        assert put_together_bytes(SimpleNamespace(layers=1, shards=[layer, head]), "matrix") == most
    assert put_together_bytes(SimpleNamespace(layers=1, shards=[layer, small]), "layer") == 3 << 20


def test_where_matrices_are_put_together_two_of_a_layer_have_room_once_more():
    cut = banded(3, [2, 7], 4)
    assert put_together_bytes(cut, "layer") == (8 + 28) * KB4, "one resident in part, one around the ring's end"
    assert put_together_bytes(model([[10, 20]] * 3, [5]), "layer") == 0, "wholes are computed with where they lie"
    settings = sized(Auto())
    needs = SimpleNamespace(**vars(NEEDS) | {"together": "layer"})
    available = Available(GIB, OWN_RESERVE)
    assert share(settings, cut, available, needs, 0).process_bytes == share(settings, cut, available, NEEDS, 0).process_bytes + 36 * KB4


def test_a_draft_model_takes_its_room_from_the_pool_and_is_named_where_it_does_not_fit(manifest):
    drafted = SimpleNamespace(**vars(NEEDS) | {"draft_bytes": 1 << 30, "draft_on_card": (1 << 30, 1 << 20)})
    available = Available(4 * GIB, OWN_RESERVE)
    without, beside = (share(Settings(), manifest, available, needs, 0) for needs in (NEEDS, drafted))
    assert beside.process_bytes == without.process_bytes + GIB and beside.context == without.context
    with pytest.raises(DoesNotFit, match=r"the draft model takes 1.1GB of them"):
        share(Settings(), manifest, Available(GIB, OWN_RESERVE), drafted, 0)
    beside, without = (share(with_vram(Auto()), manifest, available, needs, 0, card=8 * GIB) for needs in (drafted, NEEDS))
    assert beside.card_bytes == without.card_bytes - GIB
    assert beside.process_bytes == without.process_bytes + (1 << 20), "rows of the embedding come from RAM"
    with pytest.raises(DoesNotFit, match=r"of which the draft model takes 1.1GB"):
        share(with_vram(Auto()), manifest, available, drafted, 0, card=GIB)
