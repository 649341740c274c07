"""Process 2 of the pipeline: tensors.

    pool ═▶ [worker: slots ─▶ layer ─▶ … ─▶ head] ─▶ rows

Law: never sees text. transformers' own code computes every layer; what is ours is when a layer's weights are there (weights.py), what
a sweep's tokens attend to (attention.py, kv.py), how a sweep becomes passes (passes.py, lockstep.py), and that a row's bits do not depend
on its neighbours (rows.py).
"""

from potatod.store.lean import import_transformers

import_transformers()
