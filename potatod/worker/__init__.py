"""Process 2 of the pipeline: tensors.

    pool ═▶ [worker: slots ─▶ layer ─▶ … ─▶ head] ─▶ rows

Law: never sees text. transformers' own code computes every layer; what is ours is when a layer's weights are there (weights.py), what
a sweep's tokens attend to (attention.py, kv.py), how a sweep becomes passes (passes.py, lockstep.py), and that a row's bits do not depend
on its neighbours (rows.py).
"""

import gc

_COLLECTS = gc.isenabled()
gc.disable()  # what is imported stays, and looking through it again and again would be a tenth of a worker's start

from potatod.store.lean import import_transformers  # noqa: E402

import_transformers()
gc.freeze()
if _COLLECTS:
    gc.enable()
