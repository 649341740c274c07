"""Process 1 of the pipeline: bytes.

    disk ─▶ [reader] ═▶ pool

Law: never sees a tensor. It knows files, offsets, lengths and checksums; in cyclic order, for ever, it brings the parts that the plan
homed on disk into the ring, as far ahead as free bytes allow, across the borders of sweeps. On the way of the first pass it also
loads the residents. Nobody requests anything: the order is known.
"""
