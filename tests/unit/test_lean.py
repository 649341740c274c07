"""The worker's processes load transformers without torch's compiler, and leave everything as it was."""

from __future__ import annotations

import subprocess
import sys

import pytest

pytestmark = pytest.mark.slow

_WORKER = """
import sys
import potatod.worker.worker, potatod.worker.probe
import torch, transformers
from potatod.store import skeleton
config = transformers.LlamaConfig(num_hidden_layers=2, hidden_size=64, num_attention_heads=4)
skeleton.build(config, torch.bfloat16)
print([name for name in ("torch._dynamo", "sympy", "torch.distributed.tensor", "torch._inductor") if name in sys.modules])
potatod.worker.probe.kept(config, torch.bfloat16, "invariant", "packed", potatod.worker.attention.PackedAttention())
print([name for name in ("torch._dynamo", "torch.distributed.tensor", "torch._inductor") if name in sys.modules])
print(torch.compiler.disable.__module__, torch.distributed.is_available())
print(torch._dynamo.__file__ is not None, torch.compile(lambda x: x + 1, backend="eager")(torch.ones(1)).item())
"""
_AFTER_ANOTHER = """
import sys, torch, torch._dynamo
compiler = torch._dynamo
import potatod.worker.worker
print(torch._dynamo is compiler, sys.modules["torch._dynamo"] is compiler)
"""


@pytest.mark.parametrize(
    ("program", "says"),
    [(_WORKER, "[]\n[]\ntorch.compiler True\nTrue 2.0\n"), (_AFTER_ANOTHER, "True True\n")],
    ids=["a worker of its own", "where the compiler is loaded already"],
)
def test_the_compiler_is_not_loaded_and_can_be_afterwards(program: str, says: str):
    done = subprocess.run([sys.executable, "-W", "error", "-c", program], capture_output=True, text=True, check=False, timeout=120)
    assert (done.stdout, done.returncode) == (says, 0), done.stderr
