"""Machine code for lists of steps: written as LLVM's intermediate code, compiled here. Run by steps.py.

One function, which takes one step after the other: products, for which it calls the team of threads with microkernel.py's code, and small
ones that it computes itself, LANES numbers at a time. They round where transformers rounds. A row's bits follow from that row alone: what is added up
of one is added in the order of its columns. Only processes that end import this.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Final

import llvmlite.binding as llvm
from llvmlite import ir
from llvmlite.ir import IRBuilder as Builder
from llvmlite.ir import Value

from ..native import LANES
from ..steps import Op, Step, Steps
from . import emit, microkernel
from .emit import BYTES, FLOAT, FLOATS, INT32, INT64, VOID, alike, loop, splat
from .exponential import Exponential
from .numbers import NUMBERS

_ENTRY: Final = "steps"


@cache
def compiled(dtype: str) -> bytes:
    """Machine code for this processor: one function, ``void steps(Steps *)``, where what lies between steps is of ``dtype`` if not of fp32."""
    return microkernel.assembled(_Code(dtype).module)


class _Code:
    def __init__(self, dtype: str) -> None:
        self._number = NUMBERS[dtype]
        self.module = ir.Module(_ENTRY)
        self.module.triple = llvm.get_process_triple()
        self._fma = ir.Function(self.module, ir.FunctionType(FLOATS, [FLOATS] * 3), f"llvm.fma.v{LANES}f32")
        self._magnitude = ir.Function(self.module, ir.FunctionType(FLOATS, [FLOATS]), f"llvm.fabs.v{LANES}f32")
        self._root = ir.Function(self.module, ir.FunctionType(FLOAT, [FLOAT]), "llvm.sqrt.f32")
        self._exp = Exponential(self.module, self._fma)
        self._step_type = ir.LiteralStructType([FLOAT if name == "epsilon" else INT64 for name, *_ in Step._fields_])
        function = ir.Function(self.module, ir.FunctionType(VOID, [ir.LiteralStructType([INT64] * len(Steps._fields_)).as_pointer()]), _ENTRY)
        self._walk(function)

    def _walk(self, function: ir.Function) -> None:
        self._b = b = Builder(function.append_basic_block())
        self._squares = b.alloca(FLOATS)  # here and not where it is used: what lies on the stack stays there
        said = {name: b.load(b.gep(function.args[0], [INT32(0), INT32(index)])) for index, (name, *_) in enumerate(Steps._fields_)}
        first = b.inttoptr(said["first"], self._step_type.as_pointer())
        bodies: dict[Op, Callable[[dict[str, Value]], None]] = {
            Op.PRODUCT: lambda step: self._product(step, said),
            Op.NORM: lambda step: self._norm(step, self._put_floats),
            Op.NORM_STORED: lambda step: self._norm(step, self._put_stored),
            Op.TURN: self._turn,
            Op.GATE: lambda step: self._gate(step, self._put_floats),
            Op.GATE_STORED: lambda step: self._gate(step, self._put_stored),
            Op.ADD: self._add,
            Op.WIDEN: self._widen,
        }

        def one(i: Value) -> None:
            place = b.gep(first, [i])
            step = {name: b.load(b.gep(place, [INT32(0), INT32(index)])) for index, (name, *_) in enumerate(Step._fields_)}
            after = b.append_basic_block()
            choice = b.switch(step["op"], after)
            for op, body in bodies.items():
                block = b.append_basic_block(op.name.lower())
                choice.add_case(INT64(op), block)
                b.position_at_end(block)
                body(step)
                b.branch(after)
            b.position_at_end(after)

        loop(b, INT64(0), said["count"], 1, one)
        b.ret_void()

    # a step each

    def _product(self, step: dict[str, Value], said: dict[str, Value]) -> None:
        b = self._b
        b.store(INT64(0), b.inttoptr(step["out"], INT64.as_pointer()))  # nobody has claimed an output yet
        kind = ir.FunctionType(VOID, [BYTES, BYTES, INT32, INT32]).as_pointer()
        function, call = (b.inttoptr(step[name], BYTES) for name in ("x", "other"))
        b.call(b.inttoptr(said["team"], kind), [function, call, b.trunc(said["threads"], INT32), INT32(0)])

    def _norm(self, step: dict[str, Value], put: Callable[[Value, Value, Value], None]) -> None:
        """``weight · (x ÷ √(mean of x² + epsilon))``, row by row."""
        b, width = self._b, step["width"]
        squares = self._squares

        def row(number: Value) -> None:
            start = b.mul(number, width)

            def square(i: Value) -> None:
                x = self._at(step["x"], b.add(start, i))
                b.store(b.call(self._fma, [x, x, b.load(squares)]), squares)

            b.store(alike(FLOAT, 0.0), squares)
            loop(b, INT64(0), width, LANES, square)
            mean = b.fdiv(emit.total(b, b.load(squares)), b.uitofp(width, FLOAT))
            root = splat(b, b.fdiv(FLOAT(1.0), b.call(self._root, [b.fadd(mean, step["epsilon"])])))

            def some(i: Value) -> None:
                normed = self._number.stored(b, b.fmul(self._at(step["x"], b.add(start, i)), root))
                put(step["out"], b.add(start, i), b.fmul(self._at(step["weight"], i), normed))

            loop(b, INT64(0), width, LANES, some)

        loop(b, INT64(0), b.mul(step["rows"], step["more"]), 1, row)

    def _turn(self, step: dict[str, Value]) -> None:
        """``x · cos + (−x₂, x₁) · sin`` for the halves x₁ and x₂ of every head; ``other`` and ``weight``: cos and sin, (rows, width)."""
        b, width, heads, stored = self._b, step["width"], step["more"], self._number.stored
        half = b.lshr(width, INT64(1))

        def head(number: Value) -> None:
            turned = b.mul(b.udiv(number, heads), width)
            low = b.mul(number, width)
            high = b.add(low, half)

            def some(i: Value) -> None:
                x = [self._at(step["x"], b.add(place, i)) for place in (low, high)]
                for place, angle, own, other in ((low, turned, x[0], b.fneg(x[1])), (high, b.add(turned, half), x[1], x[0])):
                    cos, sin = (self._at(step[name], b.add(angle, i)) for name in ("other", "weight"))
                    self._put_stored(step["out"], b.add(place, i), b.fadd(stored(b, b.fmul(own, cos)), stored(b, b.fmul(other, sin))))

            loop(b, INT64(0), half, LANES, some)

        loop(b, INT64(0), b.mul(step["rows"], heads), 1, head)

    def _gate(self, step: dict[str, Value], put: Callable[[Value, Value, Value], None]) -> None:
        """``x · sigmoid(x) · other``. The exponential is of no more than nought, whatever x is."""
        b, stored, one = self._b, self._number.stored, alike(FLOAT, 1.0)

        def some(i: Value) -> None:
            x = self._at(step["x"], i)
            e = self._exp(b, b.fneg(b.call(self._magnitude, [x])))
            top = b.select(b.fcmp_ordered("<", x, alike(FLOAT, 0.0)), e, one)
            active = stored(b, b.fdiv(b.fmul(x, top), b.fadd(one, e)))
            put(step["out"], i, b.fmul(active, self._at(step["other"], i)))

        self._all(step, some)

    def _add(self, step: dict[str, Value]) -> None:
        b = self._b
        self._all(step, lambda i: self._put_stored(step["out"], i, b.fadd(self._at(step["x"], i), self._at(step["other"], i))))

    def _widen(self, step: dict[str, Value]) -> None:
        self._all(step, lambda i: self._put_floats(step["out"], i, self._at(step["x"], i)))

    # numbers in memory

    def _all(self, step: dict[str, Value], some: Callable[[Value], None]) -> None:
        loop(self._b, INT64(0), self._b.mul(step["rows"], step["width"]), LANES, some)

    def _at(self, address: Value, index: Value) -> Value:
        """LANES of the dtype's as fp32."""
        return self._number.as_floats(self._b, self._b.gep(self._b.inttoptr(address, self._number.kind.as_pointer()), [index]))

    def _put_stored(self, address: Value, index: Value, values: Value) -> None:
        """Rounded, as the dtype's."""
        self._number.put(self._b, self._b.gep(self._b.inttoptr(address, self._number.kind.as_pointer()), [index]), values)

    def _put_floats(self, address: Value, index: Value, values: Value) -> None:
        """Rounded, and as fp32: what products take."""
        b = self._b
        place = b.bitcast(b.gep(b.inttoptr(address, FLOAT.as_pointer()), [index]), FLOATS.as_pointer())
        b.store(self._number.stored(b, values), place, align=4)
