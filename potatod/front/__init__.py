"""Process 3: tokens. Law: it never sees a weight and never imports torch.

    clients ⇄ server ─▶ admission ─▶ answers ─▶ scheduler ─▶ Sweep ─▶ engine_link ⇄ worker
                ▲              cost, speculation ─┘ └ ledger ─▶ Fork, Cut, │ Rows
                │                                              Drop        │
                └── Piece ◀── text ◀── sampler ◀── logits ◀────────────────┘

It owns every job and every sequence's tokens, and counts the KV that the worker stores. So an engine may die at any time: the
sequences are prefilled again and go on. Decisions (scheduler, ledger, cost, speculation, jobs, answers, text) open no socket; server and
engine_link do; front is the loop that joins them.
"""
