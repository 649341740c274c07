"""Potato LM: runs language models that do not fit.

The weights lie on disk, one shard per layer. For every forward pass (a *sweep*) they flow through, the next always on its way while the
present one computes:

    disk                     RAM (pool)                    VRAM                                     client
      │                         │                            │                                         │
    part  ─ O_DIRECT ───▶ ring extent ─ async copy ─▶ slot A/B ─▶ layer ─▶ … ─▶ logits ─▶ sampler ─▶ text
      └── reader ───────────────┘└──────────────── worker ──────────────────────┘└──── front ──────────┘

On a cpu there is no upload: layers compute from the pool's own bytes. What fits stays resident and is read once.

Who owns what:

    supervisor   the stages' lives, the epoch, the pool's creation       never imports torch
    reader       the ring's book-keeping, the files                      never sees a tensor
    worker       KV, the order of computing                              never sees text
    front        sequences, jobs, sampling, the clients' socket          never sees a weight
    gateway      HTTP, where it is wanted                                a client of the front like any other

The laws, each with a test:

- Ownership of bytes travels by message (messages.py). There is no lock in the pool, and back-pressure is a consequence.
- A sweep always finishes. Reader and worker never disagree on the order, which is cyclic and known from the plan.
- Every engine has an epoch; what comes from a dead one is dropped.
- torch only under worker/, store/ and schemes/; transformers only under the first two. The stages never import one another.
- Every wait has an end.
"""
