"""The accelerator's path without an accelerator: slots and events on the simulated device, where copies land late and freed slots are NaN."""

from __future__ import annotations

import itertools
import random
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from types import SimpleNamespace

import pytest
import torch
from engine import Engine
from families import by_name

from potatod import model_folder
from potatod import plan as plans
from potatod.errors import ConfigError, DoesNotFit
from potatod.manifest import Part, Shard, Tensor
from potatod.pool import Ring
from potatod.worker.simulated import Fault, Simulated
from potatod.worker.slots import SlotLender
from potatod.worker.weights import Group, groups_of

from .test_families import PROMPT, expected_tokens, small_pool

SIZE = 4096
#: Which of the two takes its time: each hides faults that the other shows.
REGIMES = {"slow copies": {"copy_s": 0.002, "compute_s": 0.0}, "slow computing": {"copy_s": 0.0001, "compute_s": 0.003}}
regimes = pytest.mark.parametrize("regime", REGIMES.values(), ids=REGIMES.keys())


def _weights(folder) -> tuple[int, int]:
    """Bytes of all parts, and of the largest layer."""
    lengths = [(stop, part.length) for stop, part in plans.sweep_parts(model_folder.load(folder))]
    layers = [sum(n for s, n in lengths if s == stop) for stop in range(max(s for s, _ in lengths))]
    return sum(n for _, n in lengths), max(layers)


@regimes
@pytest.mark.parametrize("card", ["one slot", "two slots", "some of it stays", "all of it stays"])
@pytest.mark.parametrize("name", ["Llama 2", "Gemma 3", "Mixtral", "GPT-2", "Qwen3-Next"])
def test_through_a_cards_memory_the_tokens_are_transformers_own(tiny, name, card, regime):
    made = tiny(by_name(name), torch.float32)
    tokens = expected_tokens(made.model, PROMPT[:20], 5)
    total, layer = _weights(made.banded)
    card_bytes = {"one slot": layer, "two slots": 2 * layer, "some of it stays": 2 * layer + (total - 2 * layer) // 2, "all of it stays": total}[card]
    options = f"simulated:seed={len(name + card)},copy_s={regime['copy_s'] / 4},compute_s={regime['compute_s'] / 4}"
    batching = by_name(name).batching
    with Engine(made.banded, small_pool(made.banded), kernels="reference", batching=batching, device=options, card_bytes=card_bytes) as engine:
        plan = engine.plan
        assert (plan.slots, plan.card_bytes > 0) == {
            "one slot": (1, False), "two slots": (2, False), "some of it stays": (2, True), "all of it stays": (0, True)
        }[card]  # fmt: skip
        assert engine.greedy(1, PROMPT[:20], 5) == tokens


def test_a_ring_that_holds_all_that_streams_is_read_into_once_a_sweep(tiny):
    """Where a card keeps much, what is left over of the pool may be more than what streams."""
    made = tiny(by_name("Llama 2"), torch.float32)
    manifest = model_folder.load(made.banded)
    total, layer = _weights(made.banded)
    card = 2 * layer + (total - 2 * layer) // 2
    pools = range(small_pool(made.banded), total, 4096)
    pool = next(pool for pool in pools if 0 < (plan := plans.make(manifest, pool, card)).streamed_bytes <= plan.ring_bytes)
    with Engine(made.banded, pool, kernels="reference", device="simulated", card_bytes=card) as engine:
        assert 0 < engine.plan.streamed_bytes <= engine.plan.ring_bytes
        assert engine.greedy(1, PROMPT[:20], 4) == expected_tokens(made.model, PROMPT[:20], 4)


def test_a_sweep_for_which_the_card_has_not_the_memory_passes_by_and_the_next_one_is_right(tiny):
    made = tiny(by_name("Llama 2"), torch.float32)
    tokens = expected_tokens(made.model, PROMPT[:20], 3)
    with Engine(made.banded, small_pool(made.banded), kernels="reference", device="simulated", card_bytes=2 * _weights(made.banded)[1]) as engine:
        layer = engine.worker._model._skeleton.layers[2]
        forward = layer.forward

        def too_much(*_args, **_kwargs):
            layer.forward = forward
            raise torch.OutOfMemoryError("CUDA out of memory")

        layer.forward = too_much
        assert engine.sweep({1: PROMPT[:20]}, "argmax") == {}
        assert engine.exhausted
        assert engine.greedy(2, PROMPT[:20], 3) == tokens
        assert not engine.exhausted


def test_a_process_ends_well_in_the_middle_of_copies():
    program = (
        "import torch; from potatod.worker.simulated import Simulated; device = Simulated(copy_s=0.0)\n"
        "source = torch.zeros(1 << 24, dtype=torch.uint8)\n"
        "for _ in range(500): device.copy(torch.empty_like(source), source)"
    )
    for _ in range(3):
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (0, "")


def test_a_simulated_device_says_what_it_takes():
    with pytest.raises(ConfigError, match="seed, copy_s"):
        Simulated.named("simulated:speed=3")
    with pytest.raises(ConfigError, match="each with a number"):
        Simulated.named("simulated:seed=x")
    assert Simulated.named("simulated:vram=1e9").free_bytes() == 1_000_000_000


# without a model: a lender, and a stand-in for all that is before it


def _manifest(seed: int) -> SimpleNamespace:
    """Seven layers of three or four parts of different sizes, a head of three bands."""
    drawn = random.Random(seed)
    shards = []
    for layer in range(8):
        lengths = [SIZE * drawn.randint(1, 4) for _ in range(3 if layer == 7 else drawn.randint(3, 4))]
        parts, at = [], 0
        for number, length in enumerate(lengths):
            tensor = Tensor(f"w{number}", "uint8", (length,), "raw", 0, length)
            parts.append(Part(f"layer.{layer}", at, length, "0" * 16, (tensor,)))
            at += length
        shards.append(Shard("head" if layer == 7 else "layer", 0 if layer == 7 else layer, tuple(parts)))
    return SimpleNamespace(layers=7, shards=shards)


class _Reader:
    """Stands for reader and arrivals: brings parts in cyclic order as far as the ring has room. What comes back is overwritten at once."""

    def __init__(self, plan: plans.Plan) -> None:
        self._plan = plan
        self.memory = torch.zeros(plan.pool_bytes, dtype=torch.uint8)
        self._ring = Ring(plan.ring_offset, plan.ring_bytes)
        streamed = [i for i, part in enumerate(plan.parts) if part.home == "disk"]
        self._order = itertools.chain(range(len(plan.parts)), itertools.cycle(streamed) if streamed else ())
        self._wanted: int | None = next(self._order)
        self._here: dict[int, int] = {}
        self._waiting: deque[tuple[int, int]] = deque()
        #: what the worker does before it waits
        self.before_waiting: Callable[[], bool] = lambda: False

    @staticmethod
    def byte_of(index: int) -> int:
        return 1 + index % 190

    def await_parts(self, indices: Sequence[int]) -> list[int]:
        while not self.here(indices):
            assert self.before_waiting(), "nothing moves any more"
        return [self._here[index] for index in indices]

    def here(self, indices: Iterable[int]) -> bool:
        while self._wanted is not None:
            part = self._plan.parts[self._wanted]
            if self._wanted in self._here:
                break  # as the reader does
            offset = part.home_offset if part.home == "ram" else self._ring.take(part.length)
            if offset is None:
                break
            self.memory[offset : offset + part.length] = self.byte_of(self._wanted)
            self._here[self._wanted] = offset
            self._wanted = next(self._order, None)
        return all(index in self._here for index in indices)

    def free(self, indices: Iterable[int]) -> None:
        for index in indices:
            part = self._plan.parts[index]
            if part.home != "ram":
                offset = self._here.pop(index)
                self.memory[offset : offset + part.length] = 200
                self._ring.give(offset)


class _Bench:
    """A lender of a plan of a kind, and sweeps over it as Model._sweep goes."""

    def __init__(self, seed: int, card: str, regime: dict[str, float]) -> None:
        manifest = _manifest(seed)
        lengths = [(stop, part.length) for stop, part in plans.sweep_parts(manifest)]
        total, layer = sum(n for _, n in lengths), max(sum(n for s, n in lengths if s == stop) for stop in range(7))
        card_bytes = {"one slot": layer, "two slots": 2 * layer, "some stays": 2 * layer + (total - 2 * layer) // 3}[card]
        pool = plans.smallest_pool(lengths, card=True) + random.Random(seed).choice([0, 3 * SIZE, total // 3])
        self.plan = plans.make(manifest, pool, card_bytes)
        self.groups = groups_of(manifest)
        self.device = Simulated(seed=seed, **regime)
        self.reader = _Reader(self.plan)
        self.lender = SlotLender(self.device, self.reader.memory, self.reader, self.plan, self.groups)
        self.reader.before_waiting = self.lender.wait

    def good(self, sweeps: int = 3) -> bool:
        """Whether every group's weights were its own while it was lent, and no slot changed under a layer."""
        good = True
        try:
            for _ in range(sweeps):
                for group, ahead in itertools.pairwise([*self.groups, self.groups[0]]):
                    self.lender.upload(ahead)
                    with self.lender.lend(group) as weights:
                        good &= self._own(group, [value for _, value, _ in weights])
                self.device.finish()
                while self.lender.retire():
                    pass
        except (Fault, AssertionError):
            return False
        return good

    def _own(self, group: Group, values: list[torch.Tensor]) -> bool:
        return all(bool((value == _Reader.byte_of(index)).all()) for index, value in zip(group.indices, values, strict=True))


@regimes
@pytest.mark.parametrize("card", ["one slot", "two slots", "some stays"])
@pytest.mark.parametrize("seed", range(40))
def test_whatever_the_delays_every_group_is_lent_with_its_own_bytes(card, seed, regime):
    regime = {name: seconds / 8 for name, seconds in regime.items()}
    assert _Bench(seed, card, regime).good()


def _compute_before_copy(bench: _Bench) -> None:
    bench.device.compute_waits_for = lambda event: None


def _slot_filled_before_it_is_computed(bench: _Bench) -> None:
    bench.device.copies_wait_for = lambda event: None


def _extent_freed_before_its_copy(bench: _Bench) -> None:
    lender = bench.lender

    def retire() -> bool:
        while lender._copying:
            lender._arrivals.free(lender._copying.popleft()[1])
        return False

    lender.retire = retire


def _wrong_slot(bench: _Bench) -> None:
    lender = bench.lender
    lies = lender._lies

    def other(index: int, slot):
        memory, at = lies(index, slot)
        return (memory, at) if memory is lender._kept else (next(s for s in lender._slots if s is not slot).memory, at)

    lend = SlotLender.lend

    def lend_wrongly(group: Group):
        lender._filled(group) or lender._fill(group)
        lender._lies = other
        return lend(lender, group)

    def upload_rightly(group: Group) -> None:
        lender._lies = lies
        SlotLender.upload(lender, group)

    lender.lend, lender.upload = lend_wrongly, upload_rightly


def _event_of_the_compute_stream_for_a_copy(bench: _Bench) -> None:
    bench.device.copied = bench.device._compute.record


def _event_of_the_copy_stream_for_computing(bench: _Bench) -> None:
    computed = bench.device.computed

    def wrong(read, emptied):
        computed(read, emptied)
        return bench.device._copies.record()

    bench.device.computed = wrong


@pytest.mark.parametrize(
    ("plant", "shows_in"),
    [
        (_compute_before_copy, "slow copies"),
        (_slot_filled_before_it_is_computed, "slow computing"),
        (_extent_freed_before_its_copy, "slow copies"),
        (_wrong_slot, "slow copies"),
        (_event_of_the_compute_stream_for_a_copy, "slow copies"),
        (_event_of_the_copy_stream_for_computing, "slow computing"),
    ],
)
def test_a_planted_fault_in_the_protocol_is_found(plant, shows_in: str):
    for seed in range(9):
        if seed == 4:
            continue  # nothing streams through that one's ring
        bench = _Bench(seed, "two slots", {name: 4 * seconds for name, seconds in REGIMES[shows_in].items()})
        plant(bench)
        assert not bench.good(), f"not found with seed {seed}"


def test_a_card_that_has_not_room_for_a_layer_is_said_with_the_missing_bytes():
    manifest = _manifest(0)
    with pytest.raises(DoesNotFit, match=r"the card has 4.1kB for weights and a layer needs .* are missing"):
        plans.make(manifest, 1 << 20, 4096)
