"""Which lender serves this device: the pool itself on a cpu, slots in VRAM on anything else."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from potatod.config import Settings
from potatod.errors import DoesNotFit
from potatod.plan import Plan
from potatod.pool import Pool

from .device import Accelerator, Device
from .simulated import Simulated
from .slots import SlotLender
from .weights import Arrivals, Group, Lender, PoolLender

#: Slots that overlap copy and compute; more would only hold more.
_SLOTS = 2


@dataclass(frozen=True, slots=True)
class Placement:
    """A lender and where its weights are."""

    lender: Lender
    torch_device: torch.device
    #: called before the worker waits for bytes; whether something may have come of it
    before_waiting: Callable[[], bool]


def place(
    name: str, settings: Settings, pool: Pool, arrivals: Arrivals, plan: Plan, groups: Sequence[Group], log: Callable[..., None]
) -> Placement:
    """``name`` is a device as torch writes it, without its description."""
    if name == "cpu":
        return Placement(PoolLender(pool, arrivals, plan), torch.device("cpu"), lambda: False)
    device: Device = Simulated() if name == "simulated" else Accelerator(name)
    base = torch.frombuffer(pool.view, dtype=torch.uint8)
    _page_lock(device, settings, base, log)
    lender = SlotLender(device, base, arrivals, groups, _slots(device, max(group.nbytes for group in groups), settings, log))
    return Placement(lender, device.torch_device, lender.wait)


def _page_lock(device: Device, settings: Settings, base: torch.Tensor, log: Callable[..., None]) -> None:
    if settings.pool.page_lock is False:
        return
    if not device.page_lock(base.data_ptr(), base.numel()):
        log(
            "the pool is not page-locked: uploads go through the driver's own buffer and wait for compute",
            bytes=base.numel(), hint="raise the memlock limit (ulimit -l), or set [pool] page_lock = false",
        )  # fmt: skip


def _slots(device: Device, slot_bytes: int, settings: Settings, log: Callable[..., None]) -> int:
    budget = _vram_budget(device, settings)
    if budget is None or budget >= _SLOTS * slot_bytes:
        return _SLOTS
    if budget < slot_bytes:
        raise DoesNotFit(
            f"[worker] vram leaves {budget} bytes on {device.torch_device} and one slot needs {slot_bytes}: {slot_bytes - budget} bytes "
            'are missing; free memory of the card, or set [worker] device = "cpu"'
        )
    log("only one slot fits: uploads and compute take turns", missing=_SLOTS * slot_bytes - budget)
    return 1


def _vram_budget(device: Device, settings: Settings) -> int | None:
    """Bytes for slots; None where the device has no memory of its own to speak of."""
    if device.torch_device.type == "cpu":
        return None
    free, _total = torch.get_device_module(device.torch_device).mem_get_info(device.torch_device)
    wanted: Any = settings.worker.vram
    if isinstance(wanted, int):
        return min(wanted, int(free))
    share = getattr(wanted, "percent", 90.0) / 100  # KV and activations need some of the rest
    return int(free * share)
