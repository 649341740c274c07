"""From logits to a token. Law: pure and numpy only, so that front and worker get the same token from the same logits.

    logits ─▶ processors (bias, penalties, temperature, top-k, top-p, min-p) ─▶ + noise ─▶ argmax

``logprobs`` tells how likely it was. ``params`` decides which values hold for a request; ``noise`` is a function of (seed, choice, position) and of
nothing else, so neither batching, nor speculation, nor a restart changes what is drawn.
"""
