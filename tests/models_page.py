"""docs/MODELS.md, made from what the self-check says of every family: ``python tests/models_page.py > docs/MODELS.md``."""

from __future__ import annotations

import sys

from families import FAMILIES, Family

_HEAD = """# Models

Made by `python tests/models_page.py`; a test keeps it true. Each family is a small random model of the same architecture; `tests/reference/` runs those
that are served through the whole engine, most of the weights streaming, in fp32 and bf16.

- **streamed**: one sequence, weights from disk, has the bits of transformers (`kernels = "reference"`).
- **ragged, chunked**: several sequences in one sweep, prompts in pieces, and after a restart: the same bits as alone (`"invariant"`).
- **real**: real weights were tried, against transformers.

Whatever the self-check passes is served, listed here or not: it runs at the first start of each model, with the model's own config made small. What it
refuses is refused with the reason, and there is no switch to serve it anyway.

| family | `model_type` | streamed | ragged, chunked | real |
|---|---|---|---|---|
"""
_REAL = {"Llama 3": "SmolLM2-135M-Instruct (Llama architecture): 64 greedy tokens in fp32"}
_TAIL = """
## Refused

These compute attention, or state that is not attention, in code of their own that our cache does not reach:

"""


def render() -> str:
    import transformers

    from potatod.errors import UnsupportedModel
    from potatod.worker import selfcheck
    from potatod.worker.attention import PackedAttention

    transformers.logging.set_verbosity_error()
    attention = PackedAttention()

    def passes(family: Family, kernels: str) -> bool:
        try:
            selfcheck.check(family.config(), kernels, attention)
        except UnsupportedModel:
            return False
        return True

    rows, refused = [], []
    for family in FAMILIES:
        streamed, ragged = passes(family, "reference"), passes(family, "invariant")
        if streamed or ragged:
            marks = " | ".join("yes" if mark else "no" for mark in (streamed, ragged))
            rows.append(f"| {family.name} | `{family.model_type}` | {marks} | {_REAL.get(family.name, '')} |\n")
        else:
            refused.append(f"- {family.name} (`{family.model_type}`)\n")
    return _HEAD + "".join(rows) + _TAIL + "".join(refused)


if __name__ == "__main__":
    sys.stdout.write(render())
