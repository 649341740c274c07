"""Machine code that the worker runs, written as LLVM's intermediate code and compiled by the probe: only processes that end import this.

    microkernel.py, attention_code.py, steps_code.py    a whole function each: products, attention, lists of steps
    walk.py, integer_walk.py                            the way through a matrix
    tiles.py, nibbles.py, registers.py                  the innermost loops, and what their sums lie in
    codings.py, unpacking.py, spot.py, rounding.py      weights and rows on their way into registers
    emit.py, numbers.py, exponential.py, elf.py         what all of it is written with
"""
