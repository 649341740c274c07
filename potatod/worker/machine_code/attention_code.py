"""Machine code for attention over KV in blocks: written as LLVM's intermediate code, compiled here. Run by native_attention.py.

    for each item                          some rows of one sequence that follow each other, claimed by whichever thread is free
      for each head of keys and values     the rows' queries of that head's group, side by side, QUERIES at most
        scores  = q · K                    LANES keys at a time: a block's keys lie dimension by dimension
        weights = exp(scores − their max)  keys that the row does not see weigh 0
        out     = weights · V ÷ Σ weights  LANES dimensions at a time

Sums are made in fp32, and rounded where transformers rounds: scores, scores that are scaled, weights, results. What is added up for one query is
added in the order of dimensions or of keys, in a chain of its own: a row's bits follow from its position and from the keys that it sees, and from
nothing else. Only processes that end import this.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from typing import Final

import llvmlite.binding as llvm
from llvmlite import ir
from llvmlite.ir import IRBuilder as Builder
from llvmlite.ir import Value

from potatod.kv_layout import BLOCK

from ..native import LANES
from ..native_attention import ITEM, KEYS, QUERIES, Attend
from . import emit, microkernel
from .emit import FLOAT, FLOATS, INT32, INT64, INTS, VOID, alike, least, load, loop, splat
from .exponential import Exponential
from .numbers import NUMBERS, READ

_ENTRY: Final = "attend"
#: Queries of a tile, and vectors of keys or of dimensions that it takes at a time: their sums, and what they are made of, fit sixteen registers.
TILES: Final = ((6, 2), (4, 2), (2, 4), (1, 8))


@cache
def compiled(dtype: str, kv: str | None = None) -> bytes:
    """Machine code for this processor: one function, ``void attend(Attend *)``, for queries and results of ``dtype``, and for KV of ``kv``, None for
    the same."""
    return microkernel.assembled(_Code(dtype, kv or dtype).module)


class _Code:
    def __init__(self, dtype: str, kv: str) -> None:
        number = self._number = NUMBERS[dtype]
        self._kept, self._as_floats = READ[kv]
        self.module = ir.Module(_ENTRY)
        self.module.triple = llvm.get_process_triple()
        self._fma = ir.Function(self.module, ir.FunctionType(FLOATS, [FLOATS] * 3), f"llvm.fma.v{LANES}f32")
        self._exp = Exponential(self.module, self._fma)
        self._scores = {queries: self._score_tile(queries, vectors) for queries, vectors in TILES}
        self._values = {queries: {some: self._value_tile(queries, some) for some in {min(vectors, 4), 1}} for queries, vectors in TILES}
        kinds = {"scaling": FLOAT, "queries": FLOAT.as_pointer(), "out": number.kind.as_pointer(), "scratch": FLOAT.as_pointer()}
        call = ir.LiteralStructType([kinds.get(name, INT64.as_pointer() if name in ("items", "blocks") else INT64) for name, *_ in Attend._fields_])
        function = ir.Function(self.module, ir.FunctionType(VOID, [call.as_pointer()]), _ENTRY)
        self._walk(function)

    def _score_tile(self, queries: int, vectors: int) -> ir.Function:
        """``scores[q][j] = Σ q[d] · keys[d][j]`` for ``vectors`` × LANES keys; rows of queries are ``depth`` long, of keys BLOCK, of scores
        ``room``."""
        signature = [FLOAT.as_pointer(), self._kept.as_pointer(), FLOAT.as_pointer(), INT64, INT64]
        function = self._internal(f"scores_{queries}", signature)
        q, keys, scores, depth, room = function.args
        before, inside, after = (function.append_basic_block(name) for name in ("before", "loop", "after"))
        b = Builder(before)
        rows = [b.gep(q, [b.mul(depth, INT64(row))]) for row in range(queries)]
        b.branch(inside)
        b.position_at_end(inside)
        d = b.phi(INT64)
        sums = [[b.phi(FLOATS) for _ in range(vectors)] for _ in rows]
        line = b.gep(keys, [b.mul(d, INT64(BLOCK))])
        values = [self._as_floats(b, b.gep(line, [INT64(LANES * vector)])) for vector in range(vectors)]
        added = []
        for row, totals in zip(rows, sums, strict=True):
            one = splat(b, b.load(b.gep(row, [d])))
            added.append([b.call(self._fma, [one, value, total]) for value, total in zip(values, totals, strict=True)])
        following = b.add(d, INT64(1))
        b.cbranch(b.icmp_signed("<", following, depth), inside, after)
        emit.flows(d, (before, INT64(0)), (inside, following))
        for totals, new in zip(sums, added, strict=True):
            for total, value in zip(totals, new, strict=True):
                emit.flows(total, (before, alike(FLOAT, 0.0)), (inside, value))
        b.position_at_end(after)
        for row_number, new in enumerate(added):
            for vector, value in enumerate(new):
                place = b.gep(scores, [b.add(b.mul(room, INT64(row_number)), INT64(LANES * vector))])
                b.store(value, b.bitcast(place, FLOATS.as_pointer()), align=4)
        b.ret_void()
        return function

    def _value_tile(self, queries: int, vectors: int) -> ir.Function:
        """``sums[q][d] += Σ weights[q][j] · values[j][d]`` for ``vectors`` × LANES dimensions and ``count`` keys; rows of weights are ``room`` long, of
        values and sums ``width``."""
        signature = [FLOAT.as_pointer(), self._kept.as_pointer(), FLOAT.as_pointer(), INT64, INT64, INT64]
        function = self._internal(f"values_{queries}x{vectors}", signature)
        weights, values, sums, count, width, room = function.args
        before, inside, after = (function.append_basic_block(name) for name in ("before", "loop", "after"))
        b = Builder(before)
        rows = [b.gep(weights, [b.mul(room, INT64(row))]) for row in range(queries)]
        places = [
            [b.bitcast(b.gep(sums, [b.add(b.mul(width, INT64(row)), INT64(LANES * vector))]), FLOATS.as_pointer()) for vector in range(vectors)]
            for row in range(queries)
        ]
        begun = [[b.load(place, align=4) for place in row] for row in places]
        b.branch(inside)
        b.position_at_end(inside)
        j = b.phi(INT64)
        totals = [[b.phi(FLOATS) for _ in range(vectors)] for _ in rows]
        line = b.gep(values, [b.mul(j, width)])
        some = [self._as_floats(b, b.gep(line, [INT64(LANES * vector)])) for vector in range(vectors)]
        added = []
        for row, of_row in zip(rows, totals, strict=True):
            one = splat(b, b.load(b.gep(row, [j])))
            added.append([b.call(self._fma, [one, value, total]) for value, total in zip(some, of_row, strict=True)])
        following = b.add(j, INT64(1))
        b.cbranch(b.icmp_signed("<", following, count), inside, after)
        emit.flows(j, (before, INT64(0)), (inside, following))
        for of_row, first, new in zip(totals, begun, added, strict=True):
            for total, start, value in zip(of_row, first, new, strict=True):
                emit.flows(total, (before, start), (inside, value))
        b.position_at_end(after)
        for new, of_places in zip(added, places, strict=True):
            for value, place in zip(new, of_places, strict=True):
                b.store(value, place, align=4)
        b.ret_void()
        return function

    def _internal(self, name: str, signature: list[ir.Type]) -> ir.Function:
        function = ir.Function(self.module, ir.FunctionType(VOID, signature), name)
        function.linkage = "internal"
        for pointer in function.args[:3]:
            pointer.add_attribute("noalias")
        return function

    # the way through all items

    def _walk(self, function: ir.Function) -> None:
        self._b = b = Builder(function.append_basic_block())
        place = {name: b.gep(function.args[0], [INT32(0), INT32(index)]) for index, (name, *_) in enumerate(Attend._fields_)}
        self._given = given = {name: b.load(where) for name, where in place.items() if name not in ("claimed", "threads")}
        self._most, self._total = (b.alloca(FLOATS) for _ in range(2))  # here and not where they are used: what lies on the stack stays there
        thread = b.atomic_rmw("add", place["threads"], INT64(1), "monotonic")
        own = b.gep(given["scratch"], [b.mul(thread, given["scratch_floats"])])
        self._queries = own
        self._sums = b.gep(own, [b.mul(INT64(QUERIES), given["depth"])])
        self._weights = b.gep(self._sums, [b.mul(INT64(QUERIES), given["width"])])
        claim, compute, done = (function.append_basic_block(name) for name in ("claim", "compute", "done"))
        b.branch(claim)
        b.position_at_end(claim)
        number = b.atomic_rmw("add", place["claimed"], INT64(1), "monotonic")
        b.cbranch(b.icmp_signed("<", number, given["count"]), compute, done)
        b.position_at_end(compute)
        item = b.gep(given["items"], [b.mul(b.udiv(number, given["kv_heads"]), INT64(len(ITEM)))])
        self._item({name: b.load(b.gep(item, [INT64(index)])) for index, name in enumerate(ITEM)}, b.urem(number, given["kv_heads"]))
        b.branch(claim)
        b.position_at_end(done)
        b.ret_void()

    def _item(self, item: dict[str, Value], head: Value) -> None:
        """``item``: its first row and how many, the first's position, the first key that is computed with, and where its blocks stand."""
        b, given = self._b, self._given
        queries = b.mul(item["rows"], given["group"])
        end = b.add(item["position"], item["rows"])  # keys of the last row
        whole = b.and_(b.add(b.sub(end, item["first"]), INT64(KEYS - 1)), INT64(-KEYS))

        def row_of(query: Value) -> Value:
            return b.udiv(query, given["group"])

        def place_of(query: Value, width: Value) -> Value:
            """Where a query's numbers stand among those of all rows and heads."""
            of_head = b.add(b.mul(head, given["group"]), b.urem(query, given["group"]))
            return b.mul(b.add(b.mul(b.add(item["row"], row_of(query)), given["heads"]), of_head), width)

        def gather(query: Value) -> None:
            source, own = b.gep(given["queries"], [place_of(query, given["depth"])]), b.gep(self._queries, [b.mul(query, given["depth"])])
            loop(b, INT64(0), given["depth"], LANES, lambda d: _put(b, own, d, load(b, b.gep(source, [d]), FLOAT)))
            sums = b.gep(self._sums, [b.mul(query, given["width"])])
            loop(b, INT64(0), given["width"], LANES, lambda d: _put(b, sums, d, alike(FLOAT, 0.0)))

        def finish(query: Value) -> None:
            sums = b.gep(self._sums, [b.mul(query, given["width"])])
            out = b.gep(given["out"], [place_of(query, given["width"])])

            def one(d: Value) -> None:
                b.store(self._number.rounded(b, b.load(b.gep(sums, [d]))), b.gep(out, [d]))

            loop(b, INT64(0), given["width"], 1, one)

        def weigh(query: Value) -> None:
            position = b.add(item["position"], row_of(query))
            seen = b.select(
                b.icmp_signed("==", given["window"], INT64(0)), INT64(0), b.add(b.sub(position, given["window"]), INT64(1))
            )  # the oldest that it sees; one below 0 is as good
            scores = b.gep(self._weights, [b.mul(query, given["room"])])
            self._softmax(scores, whole, b.sub(seen, item["first"]), b.sub(position, item["first"]))

        every = partial(loop, b, INT64(0), queries, 1)
        every(gather)
        self._by_tiles(queries, lambda size, query: self._score(size, query, item, head, whole))
        every(weigh)
        self._by_tiles(queries, lambda size, query: self._value(size, query, item, head, whole))
        every(finish)

    def _by_tiles(self, queries: Value, body: Callable[[int, Value], None]) -> None:
        query: Value = INT64(0)
        for size, _ in TILES:
            query = loop(self._b, query, queries, size, partial(body, size))

    def _score(self, size: int, query: Value, item: dict[str, Value], head: Value, whole: Value) -> None:
        b, given = self._b, self._given
        kind = self._kept.as_pointer()
        step = LANES * dict(TILES)[size]

        def some(key: Value) -> None:
            at_key = b.add(item["first"], key)
            keys = b.inttoptr(self._pointer(item, at_key, 0), kind)
            keys = b.gep(keys, [b.add(b.mul(head, b.mul(given["depth"], INT64(BLOCK))), b.and_(at_key, INT64(BLOCK - 1)))])
            scores = b.gep(self._weights, [b.add(b.mul(query, given["room"]), key)])
            b.call(self._scores[size], [b.gep(self._queries, [b.mul(query, given["depth"])]), keys, scores, given["depth"], given["room"]])

        loop(b, INT64(0), whole, step, some)

    def _value(self, size: int, query: Value, item: dict[str, Value], head: Value, whole: Value) -> None:
        b, given = self._b, self._given
        kind = self._kept.as_pointer()
        wide = max(self._values[size])

        def block(key: Value) -> Value:
            """Of the keys from ``key`` on, those that lie in its block."""
            at_key = b.add(item["first"], key)
            within = b.and_(at_key, INT64(BLOCK - 1))
            count = least(b, b.sub(INT64(BLOCK), within), b.sub(whole, key))
            values = b.inttoptr(self._pointer(item, at_key, 1), kind)
            values = b.gep(values, [b.mul(b.add(b.mul(head, INT64(BLOCK)), within), given["width"])])
            weights = b.gep(self._weights, [b.add(b.mul(query, given["room"]), key)])
            sums = b.gep(self._sums, [b.mul(query, given["width"])])

            def dimensions(vectors: int, d: Value) -> None:
                arguments = [weights, b.gep(values, [d]), b.gep(sums, [d]), count, given["width"], given["room"]]
                b.call(self._values[size][vectors], arguments)

            left = loop(b, INT64(0), given["width"], LANES * wide, partial(dimensions, wide))
            loop(b, left, given["width"], LANES, partial(dimensions, 1))
            return b.add(key, count)

        emit.walk(b, INT64(0), whole, block)

    def _pointer(self, item: dict[str, Value], key: Value, which: int) -> Value:
        """Of the block that a key lies in: its keys' or its values'. The first in the item's list is that of its first key."""
        b = self._b
        index = b.sub(b.lshr(key, INT64(BLOCK.bit_length() - 1)), b.lshr(item["first"], INT64(BLOCK.bit_length() - 1)))
        return b.load(b.gep(self._given["blocks"], [b.add(b.mul(b.add(item["blocks"], index), INT64(2)), INT64(which))]))

    def _softmax(self, scores: Value, whole: Value, first: Value, last: Value) -> None:
        """Makes weights of scores, 0 outside of ``first`` … ``last``."""
        b = self._b
        scaling = splat(b, self._given["scaling"])
        low, high = (splat(b, b.trunc(edge, INT32)) for edge in (first, last))
        numbered = ir.Constant(INTS, list(range(LANES)))

        def seen(i: Value) -> Value:
            at_lane = b.add(splat(b, b.trunc(i, INT32)), numbered)
            return b.and_(b.icmp_signed(">=", at_lane, low), b.icmp_signed("<=", at_lane, high))

        most, total = self._most, self._total
        b.store(alike(FLOAT, float("-inf")), most)
        b.store(alike(FLOAT, 0.0), total)

        def compare(i: Value) -> None:
            scaled = self._number.stored(b, b.fmul(self._number.stored(b, load(b, b.gep(scores, [i]), FLOAT)), scaling))
            _put(b, scores, i, scaled)
            value = b.select(seen(i), scaled, alike(FLOAT, float("-inf")))
            before = b.load(most)
            b.store(b.select(b.fcmp_ordered(">", value, before), value, before), most)

        loop(b, INT64(0), whole, LANES, compare)
        top = splat(b, emit.largest(b, b.load(most), lambda one, other: b.fcmp_ordered(">", one, other)))

        def weigh(i: Value) -> None:
            weight = b.select(seen(i), self._exp(b, b.fsub(load(b, b.gep(scores, [i]), FLOAT), top)), alike(FLOAT, 0.0))
            _put(b, scores, i, weight)
            b.store(b.fadd(b.load(total), weight), total)

        loop(b, INT64(0), whole, LANES, weigh)
        every = splat(b, emit.total(b, b.load(total)))

        def divide(i: Value) -> None:
            _put(b, scores, i, self._number.stored(b, b.fdiv(load(b, b.gep(scores, [i]), FLOAT), every)))

        loop(b, INT64(0), whole, LANES, divide)


def _put(b: Builder, pointer: Value, index: Value, values: Value) -> None:
    b.store(values, b.bitcast(b.gep(pointer, [index]), FLOATS.as_pointer()), align=4)
