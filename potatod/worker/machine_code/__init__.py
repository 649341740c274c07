"""Machine code that the worker runs, written as LLVM's intermediate code and compiled by the probe: only processes that end import this.

    microkernel.py, attention_code.py, append_code.py, steps_code.py    a whole function each: products, attention, new KV, lists of steps
    walk.py, float_walk.py, integer_walk.py, amx_walk.py                the ways through a matrix
    tiles.py, nibbles.py, amx.py, registers.py                          the innermost loops, and what their sums lie in
    codings.py, unpacking.py, spot.py                                   weights on their way into registers
    rounding.py, pairs.py                                               and rows
    emit.py, numbers.py, exponential.py, elf.py                         what all of it is written with
"""
