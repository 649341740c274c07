"""Machine code that puts new keys and values into blocks of KV: written as LLVM's intermediate code, compiled here. Run by native_attention.py.

    for each run                     rows of one sequence that come into the same block
      for each head and each row
        the key, dimension by dimension, and the value

Numbers are moved as they are. Only processes that end import this.
"""

from __future__ import annotations

from functools import cache
from typing import Final

import llvmlite.binding as llvm
from llvmlite import ir
from llvmlite.ir import IRBuilder as Builder
from llvmlite.ir import Value

from potatod.kv_layout import BLOCK

from ..native_attention import RUN, Append
from . import microkernel
from .emit import INT32, INT64, VOID, loop

_ENTRY: Final = "append"


@cache
def compiled(itemsize: int) -> bytes:
    """Machine code for this processor: one function, ``void append(Append *)``, for numbers of so many bytes."""
    return microkernel.assembled(_module(ir.IntType(8 * itemsize)))


def _module(kind: ir.Type) -> ir.Module:
    module = ir.Module(_ENTRY)
    module.triple = llvm.get_process_triple()
    numbers = kind.as_pointer()
    kinds = {"keys": numbers, "values": numbers, "runs": INT64.as_pointer()}
    call = ir.LiteralStructType([kinds.get(name, INT64) for name, *_ in Append._fields_])
    function = ir.Function(module, ir.FunctionType(VOID, [call.as_pointer()]), _ENTRY)
    b = Builder(function.append_basic_block())
    given = {name: b.load(b.gep(function.args[0], [INT32(0), INT32(number)])) for number, (name, *_) in enumerate(Append._fields_)}

    def run(number: Value) -> None:
        of_run = b.gep(given["runs"], [b.mul(number, INT64(len(RUN)))])
        told = {name: b.load(b.gep(of_run, [INT64(place)])) for place, name in enumerate(RUN)}
        keys, values = (b.inttoptr(told[name], numbers) for name in ("keys", "values"))

        def token(head: Value, i: Value) -> None:
            row, place = b.add(told["row"], i), b.add(told["place"], i)
            key = b.gep(given["keys"], [b.add(b.mul(head, given["key_head"]), b.mul(row, given["key_row"]))])
            value = b.gep(given["values"], [b.add(b.mul(head, given["value_head"]), b.mul(row, given["value_row"]))])

            def of_key(d: Value) -> None:
                line = b.add(b.mul(head, given["depth"]), d)
                b.store(b.load(b.gep(key, [d])), b.gep(keys, [b.add(b.mul(line, INT64(BLOCK)), place)]))

            def of_value(d: Value) -> None:
                line = b.add(b.mul(head, INT64(BLOCK)), place)
                b.store(b.load(b.gep(value, [d])), b.gep(values, [b.add(b.mul(line, given["width"]), d)]))

            loop(b, INT64(0), given["depth"], 1, of_key)
            loop(b, INT64(0), given["width"], 1, of_value)

        loop(b, INT64(0), given["kv_heads"], 1, lambda head: loop(b, INT64(0), told["rows"], 1, lambda i: token(head, i)))

    loop(b, INT64(0), given["count"], 1, run)
    b.ret_void()
    return module
