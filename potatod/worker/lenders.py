"""Which device this is, and which lender serves it: the pool itself on a cpu, the card's memory on anything else."""

from __future__ import annotations

import resource
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from potatod.config import Settings
from potatod.errors import ConfigError
from potatod.plan import Plan
from potatod.pool import Pool
from potatod.sizes import human_size

from . import simulated
from .device import Accelerator, Device
from .simulated import Simulated
from .slots import SlotLender
from .weights import Arrivals, Group, Lender, PoolLender


@dataclass(frozen=True, slots=True)
class Placement:
    """A lender and where its weights are."""

    lender: Lender
    torch_device: torch.device
    #: called before the worker waits for bytes; whether something may have come of it
    before_waiting: Callable[[], bool] = lambda: False
    #: waits for what has been computed
    finish: Callable[[], None] = lambda: None
    #: gives back what copies that are complete have held; whether others are still under way
    retire: Callable[[], bool] = lambda: False
    #: gives back memory of the device that nobody uses
    empty_cache: Callable[[], None] = lambda: None
    #: when nothing is computed any more
    close: Callable[[], None] = lambda: None


def open_device(name: str) -> Device | None:
    """By its name as device.find gives it; None for the cpu. Raises :class:`Unavailable` where there is none."""
    if name == "cpu":
        return None
    return Simulated.named(name) if name.startswith(simulated.NAME) else Accelerator(name)


def torch_device(name: str) -> torch.device:
    """Where tensors of the device of that name are; raises :class:`Unavailable` where there is none."""
    device = open_device(name)
    return torch.device("cpu") if device is None else device.torch_device


def place(
    device: Device | None, settings: Settings, pool: Pool, arrivals: Arrivals, plan: Plan, groups: Sequence[Group], log: Callable[..., None]
) -> Placement:
    if device is None:
        return Placement(PoolLender(pool, arrivals, plan), torch.device("cpu"))
    base = torch.frombuffer(pool.view, dtype=torch.uint8)
    if _overlap(device, settings, base, log) and plan.slots == 1:
        log(
            "the card has room for one layer at a time: uploads and computing take turns; with a second slot they would overlap",
            missing=human_size(plan.slot_bytes),
        )  # fmt: skip
    lender = SlotLender(device, base, arrivals, plan, groups)
    return Placement(
        lender, device.torch_device, lender.wait, device.finish, lender.retire, device.empty_cache, lambda: device.page_unlock(base.data_ptr())
    )


def _overlap(device: Device, settings: Settings, base: torch.Tensor, log: Callable[..., None]) -> bool:
    """Page-locks the pool, so that uploads run beside computing; whether they do."""
    if settings.pool.page_lock is False:
        return False
    if device.page_lock(base.data_ptr(), base.numel()):
        return True
    hint = "nothing can be done about that on this kind of card"
    if device.torch_device.type == "cuda":
        most, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
        limit = "there is no memlock limit" if most == resource.RLIM_INFINITY else f"the memlock limit is {human_size(most)}"
        hint = f"{limit}; raise it (ulimit -l, LimitMEMLOCK= of a unit)"
    if settings.pool.page_lock is True:
        size = human_size(base.numel())
        raise ConfigError(f'[pool] page_lock is true, and the pool of {size} could not be page-locked: {hint}, or set page_lock = "auto"')
    log(
        "the pool is not page-locked: uploads go through a small piece of locked memory, and computing waits for them",
        bytes=base.numel(), hint=f"{hint}, or set [pool] page_lock = false",
    )  # fmt: skip
    return False
