"""Runs steps_code.py's machine code: lists of steps that are written once and taken many times, products with weights and what lies between them.

Called from Python each would cost more than it computes: a row of a small model is two thirds Python and torch's operations.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Mapping
from enum import IntEnum, auto
from typing import Final

import torch

from . import native
from .native import Call


class Op(IntEnum):
    """What a step does; steps_code.py says how."""

    #: ``x``: microkernel.py's code; ``other``: its Call; ``out``: where that counts what is claimed
    PRODUCT = auto()
    #: root mean square normalisation of (rows · more, width) with ``weight`` (width) → fp32
    NORM = auto()
    #: the same, not in fp32
    NORM_STORED = auto()
    #: (rows, more, width) turned by their positions; ``other`` and ``weight``: cos and sin, (rows, width)
    TURN = auto()
    #: silu(x) · other, (rows, width) → fp32
    GATE = auto()
    #: the same, not in fp32
    GATE_STORED = auto()
    #: x + other, (rows, width)
    ADD = auto()
    #: (rows, width) → fp32
    WIDEN = auto()


class Step(ctypes.Structure):
    """What the code is told of each: addresses, then counts."""

    _fields_ = [  # ctypes reads it
        ("op", ctypes.c_int64),
        ("x", ctypes.c_void_p),
        ("other", ctypes.c_void_p),
        ("weight", ctypes.c_void_p),
        ("out", ctypes.c_void_p),
        ("rows", ctypes.c_int64),
        ("width", ctypes.c_int64),
        ("more", ctypes.c_int64),
        ("epsilon", ctypes.c_float),
    ]


class Steps(ctypes.Structure):
    """What the code is told."""

    _fields_ = [  # ctypes reads it
        ("first", ctypes.c_void_p),
        ("count", ctypes.c_int64),
        #: GOMP_parallel
        ("team", ctypes.c_void_p),
        ("threads", ctypes.c_int64),
    ]


class StepsCode:
    """steps_code.py's function."""

    def __init__(self, code: bytes, dtype: torch.dtype) -> None:
        """``dtype``: of what lies between steps, where it is not fp32."""
        self.code = code
        self.dtype = dtype
        self._memory = native.executable(code)
        self._function = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(native.address(self._memory))
        self.team = ctypes.cast(native.team(), ctypes.c_void_p).value

    def __call__(self, steps: int) -> None:
        """``steps``: where Steps lie."""
        self._function(steps)


#: Where a Call counts what has been claimed.
_CLAIMED: Final = Call.claimed.offset


class Listing:
    """A list that is being written."""

    def __init__(self) -> None:
        self.steps: list[Step] = []
        self.calls: list[Call] = []

    def step(self, op: Op, x: int = 0, other: int = 0, weight: int = 0, *, out: int = 0, width: int, more: int = 1, epsilon: float = 0.0) -> int:
        """The step's number. Addresses that are not known yet are 0."""
        self.steps.append(Step(op, x, other, weight, out, 0, width, more, epsilon))
        return len(self.steps) - 1

    def product(self, code: int, call: Call) -> None:
        """With the ``code`` at that address."""
        at = ctypes.addressof(call)
        self.calls.append(call)
        self.step(Op.PRODUCT, code, at, out=at + _CLAIMED, width=0)


class Listed:
    """A list that can be taken."""

    def __init__(self, code: StepsCode, listing: Listing) -> None:
        self._code = code
        self._memory = (Step * len(listing.steps))(*listing.steps)
        #: by number: what is written to them is what the code reads
        self.steps = list(self._memory)
        self._calls = listing.calls
        self._rows = 0
        self._said = Steps(ctypes.addressof(self._memory), len(self.steps), code.team, torch.get_num_threads())
        self._at = ctypes.addressof(self._said)

    def at(self, number: int, **addresses: torch.Tensor) -> None:
        """Where some of what a step is told of lies."""
        step = self.steps[number]
        for name, tensor in addresses.items():
            setattr(step, name, tensor.data_ptr())

    def take(self, rows: int) -> None:
        if self._rows != rows:
            for each in (*self.steps, *self._calls):
                each.rows = rows
            self._rows = rows
        self._code(self._at)


class Desk:
    """Memory that all layers of a model compute in, one after the other: what lies there is over when the layer is. It grows and is kept."""

    def __init__(self, dtype: torch.dtype) -> None:
        self._dtype = dtype
        self._lies: dict[str, torch.Tensor] = {}
        #: times that it has grown: addresses from before are not valid any more
        self.grown = 0

    def make_room(self, rows: int, widths: Mapping[str, int]) -> None:
        """For so many rows of so many numbers each, by name; where the name ends in ``32``, of fp32."""
        for name, width in widths.items():
            if name not in self._lies or self._lies[name].numel() < rows * width:
                self._lies[name] = torch.empty(rows * width, dtype=torch.float32 if name.endswith("32") else self._dtype)
                self.grown += 1

    def rows(self, name: str, *shape: int) -> torch.Tensor:
        """What lies there, as so much of it as has this shape."""
        return self._lies[name][: math.prod(shape)].view(shape)

    def address(self, name: str) -> int:
        return self._lies[name].data_ptr()
