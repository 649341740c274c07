"""docs/MODELS.md, made from the families that the tests run: ``python tests/models_page.py > docs/MODELS.md``."""

from __future__ import annotations

import sys

from families import FAMILIES, Family

_HEAD = """# Models

Made by `python tests/models_page.py` from the families that `tests/reference/` runs through the whole engine, most of the weights streaming, in fp32
and bf16: small random models of the same architecture. A test keeps the page true; a family whose test fails fails the suite.

- **streamed**: one sequence, weights from disk, has the bits of transformers (`kernels = "reference"`), and so have its 32 greedy tokens.
- **ragged, chunked**: several sequences in one sweep, prompts in pieces, and after a restart: the same bits as alone (`"invariant"`), and
  the tokens of transformers.
- **how**: *packed*, all sequences' tokens in one pass; *abreast*, a pass for each sequence where that is enough and one for each token where bits must
  not depend on anything else. Abreast a long prompt takes longer: its tokens do not share the products.
- **real**: real weights were tried, against transformers.

Whatever the self-check passes is served, listed here or not: it runs at the first start of each model, with the model's own config made small and with
its first layer as it is. What it refuses is refused with the reason, and there is no switch to serve it anyway.

| family | `model_type` | streamed | ragged, chunked | how | real |
|---|---|---|---|---|---|
"""
_REAL = {"Llama 3": "SmolLM2-135M-Instruct (Llama architecture): 64 greedy tokens in fp32"}
_HOW = {"packed": "packed", "tokens": "abreast"}
_TAIL = """
## Refused

Among those tried: Bamba and RecurrentGemma, whose answers in transformers itself depend on how a prompt is cut; MiniMax-Text-01, which takes no cache
but its own; DeepSeek-V3.2, whose indexer keeps a state that our cache does not reach.
"""


def render() -> str:
    return _HEAD + "".join(map(_row, FAMILIES)) + _TAIL


def _row(family: Family) -> str:
    return f"| {family.name} | `{family.model_type}` | yes | yes | {_HOW[family.invariant_batching]} | {_REAL.get(family.name, '')} |\n"


if __name__ == "__main__":
    sys.stdout.write(render())
