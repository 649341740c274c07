"""Machine code for lists of steps: written as LLVM's intermediate code, compiled here. Run by steps.py.

One function, which takes one step after the other: products, for which it calls the team of threads with microkernel.py's code, and small
ones that it computes itself, LANES numbers at a time, or has the team compute where there is enough of it. They round where transformers rounds. A
row's bits follow from that row alone: what is added up of one is added in the order of its columns. Only processes that end import this.
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
#: Numbers from which calling the team is worth it, and the shares that there are for each of its threads.
_LARGE: Final = 1 << 15
_SHARES: Final = 2


@cache
def compiled(dtype: str, large: int = _LARGE) -> bytes:
    """Machine code for this processor: one function, ``void steps(Steps *)``, where what lies between steps is of ``dtype`` if not of fp32; ``large``:
    numbers from which the team computes a step."""
    return microkernel.assembled(_Code(dtype, large).module)


class _Code:
    def __init__(self, dtype: str, large: int) -> None:
        self._large = large
        self._number = NUMBERS[dtype]
        self.module = ir.Module(_ENTRY)
        self.module.triple = llvm.get_process_triple()
        self._fma = ir.Function(self.module, ir.FunctionType(FLOATS, [FLOATS] * 3), f"llvm.fma.v{LANES}f32")
        self._magnitude = ir.Function(self.module, ir.FunctionType(FLOATS, [FLOATS]), f"llvm.fabs.v{LANES}f32")
        self._root = ir.Function(self.module, ir.FunctionType(FLOAT, [FLOAT]), "llvm.sqrt.f32")
        self._exp = Exponential(self.module, self._fma)
        self._step_type = ir.LiteralStructType([FLOAT if name == "epsilon" else INT64 for name, *_ in Step._fields_])
        self._share_type = ir.LiteralStructType([self._step_type.as_pointer(), INT64, INT64])  # a step; rows of a share; rows that have been taken
        function = ir.Function(self.module, ir.FunctionType(VOID, [ir.LiteralStructType([INT64] * len(Steps._fields_)).as_pointer()]), _ENTRY)
        part = self._part()  # behind it: what is called is the first
        self._walk(function, part, self._share(part))

    def _walk(self, function: ir.Function, part: ir.Function, share: ir.Function) -> None:
        """All steps; ``part`` and ``share`` do what is no product."""
        b = Builder(function.append_basic_block())
        shared = b.alloca(self._share_type)  # here and not where it is used: what lies on the stack stays there
        said = {name: b.load(b.gep(function.args[0], [INT32(0), INT32(index)])) for index, (name, *_) in enumerate(Steps._fields_)}
        first = b.inttoptr(said["first"], self._step_type.as_pointer())

        def call_team(function: Value, data: Value) -> None:
            kind = ir.FunctionType(VOID, [BYTES, BYTES, INT32, INT32]).as_pointer()
            b.call(b.inttoptr(said["team"], kind), [function, data, b.trunc(said["threads"], INT32), INT32(0)])

        def one(i: Value) -> None:
            place = b.gep(first, [i])
            step = self._read(b, place)
            rows = step["rows"]
            size = b.mul(b.mul(rows, step["width"]), step["more"])
            large = b.and_(b.icmp_signed(">=", size, INT64(self._large)), b.icmp_signed(">", said["threads"], INT64(1)))
            with b.if_else(b.icmp_signed("==", step["op"], INT64(Op.PRODUCT))) as (product, other):
                with product:
                    b.store(INT64(0), b.inttoptr(step["out"], INT64.as_pointer()))  # nobody has claimed an output yet
                    call_team(b.inttoptr(step["x"], BYTES), b.inttoptr(step["other"], BYTES))
                with other, b.if_else(large) as (by_all, alone):
                    with by_all:
                        some = b.add(b.udiv(rows, b.mul(said["threads"], INT64(_SHARES))), INT64(1))
                        for number, value in enumerate((place, some, INT64(0))):
                            b.store(value, b.gep(shared, [INT32(0), INT32(number)]))
                        call_team(b.bitcast(share, BYTES), b.bitcast(shared, BYTES))
                    with alone:
                        b.call(part, [place, INT64(0), rows])

        loop(b, INT64(0), said["count"], 1, one)
        b.ret_void()

    def _read(self, b: Builder, place: Value) -> dict[str, Value]:
        return {name: b.load(b.gep(place, [INT32(0), INT32(index)])) for index, (name, *_) in enumerate(Step._fields_)}

    def _share(self, part: ir.Function) -> ir.Function:
        """What each thread of the team does: takes rows of a step until none are left."""
        function = ir.Function(self.module, ir.FunctionType(VOID, [self._share_type.as_pointer()]), "share")
        function.linkage = "internal"
        b = Builder(function.append_basic_block())
        place, some = (b.load(b.gep(function.args[0], [INT32(0), INT32(number)])) for number in (0, 1))
        taken = b.gep(function.args[0], [INT32(0), INT32(2)])
        rows = self._read(b, place)["rows"]

        def take(first: Value) -> Value:
            b.call(part, [place, first, emit.least(b, b.add(first, some), rows)])
            return b.atomic_rmw("add", taken, some, "monotonic")

        emit.walk(b, b.atomic_rmw("add", taken, some, "monotonic"), rows, take)
        b.ret_void()
        return function

    def _part(self) -> ir.Function:
        """``part(step, first, end)``: some rows of a step that is no product."""
        function = ir.Function(self.module, ir.FunctionType(VOID, [self._step_type.as_pointer(), INT64, INT64]), "part")
        function.linkage = "internal"
        self._b = b = Builder(function.append_basic_block())
        self._squares = b.alloca(FLOATS)
        place, self._first, self._end = function.args
        bodies: dict[Op, Callable[[dict[str, Value]], None]] = {
            Op.NORM: lambda step: self._norm(step, self._put_floats),
            Op.NORM_STORED: lambda step: self._norm(step, self._put_stored),
            Op.TURN: self._turn,
            Op.GATE: lambda step: self._gate(step, self._put_floats),
            Op.GATE_STORED: lambda step: self._gate(step, self._put_stored),
            Op.ADD: self._add,
            Op.WIDEN: self._widen,
        }
        step = self._read(b, place)
        after = b.append_basic_block()
        choice = b.switch(step["op"], after)
        for op, body in bodies.items():
            block = b.append_basic_block(op.name.lower())
            choice.add_case(INT64(op), block)
            b.position_at_end(block)
            body(step)
            b.branch(after)
        b.position_at_end(after)
        b.ret_void()
        return function

    # a step each

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

        self._rows(step["more"], 1, row)

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

        self._rows(heads, 1, head)

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
        self._rows(step["width"], LANES, some)

    def _rows(self, each: Value, step: int, body: Callable[[Value], None]) -> None:
        """Through as many as there are ``each`` of in the part's rows."""
        b = self._b
        loop(b, b.mul(self._first, each), b.mul(self._end, each), step, body)

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
