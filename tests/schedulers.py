"""Schedulers for tests, whose KV takes one byte a token: a budget is a number of tokens."""

from __future__ import annotations

from potatod.front.cost import CostModel
from potatod.front.guessing import Drafter
from potatod.front.ledger import Ledger
from potatod.front.scheduler import Scheduler
from potatod.kv_layout import KvGroup, KvLayout
from potatod.messages import Drop

LAYOUT = KvLayout((KvGroup(None, 1),))


def scheduler(
    *, running: int = 2, queue: int = 2, chunk: int = 4, border: int | None = None, kv: int = 1 << 20, may_cut: bool = True,
    costs: CostModel | None = None, share: float = 0.5, layout: KvLayout = LAYOUT,
    drafter: Drafter | None = None,
) -> Scheduler:  # fmt: skip
    """Streaming takes a second and computing hardly anything, where no ``costs`` are given."""
    return Scheduler(
        max_sequences=running, max_queue=queue, ledger=Ledger(layout, kv), costs=costs or CostModel(lambda tokens: 1e-6 * tokens, 1.0),
        prefill_chunk=chunk, prefill_share=share, rope_border=border, may_cut=may_cut, drafter=drafter,
    )  # fmt: skip


def drops(scheduler: Scheduler) -> list[int]:
    """What the worker is told to forget."""
    return [order.sequence for order in scheduler.orders() if isinstance(order, Drop)]
