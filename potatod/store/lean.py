"""transformers without torch's compiler, which would take 70 MB of a worker's memory and a third of the time it takes to start.

While it is imported transformers marks functions for the compiler, and with the first mark torch loads it; and where torch can distribute,
transformers loads distributed tensors, which load the compiler's algebra too. Nothing here is compiled or distributed. So while transformers' modules
for models are imported, marks mean nothing and torch says that it cannot distribute. Afterwards torch is as it was, and whoever does need the compiler
loads it then; transformers' own functions stay unmarked for as long as the process lives. Arithmetic with tensors that have no values (meta) marks its
functions when it is first done, and is done in the same way.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any, Final

import torch

_COMPILER: Final = "torch._dynamo"
#: What every model needs, and what imports the rest.
_MODULES: Final = ("transformers.modeling_utils", "transformers.masking_utils", "transformers.generation")


def _unmarked(function: Callable[..., Any] | None = None, *_: Any, **__: Any) -> Callable[..., Any]:
    """Stands for every decorator of the compiler, with arguments and without."""
    return function if callable(function) else _unmarked


class _NoCompiler(ModuleType):
    """Has every decorator. Its submodules are the real ones: masks are made with a class that lies there."""

    def __init__(self) -> None:
        super().__init__(_COMPILER)
        spec = importlib.util.find_spec(_COMPILER)
        assert spec is not None and spec.submodule_search_locations is not None
        self.__path__ = list(spec.submodule_search_locations)

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name.startswith("__"):
            raise AttributeError(name)
        return _unmarked


@contextmanager
def without_compiler() -> Iterator[None]:
    """Marks mean nothing in here. Changes nothing where somebody has imported the compiler already."""
    if _COMPILER in sys.modules:
        yield
        return
    disable, can_distribute = torch.compiler.disable, torch.distributed.is_available
    sys.modules[_COMPILER] = _NoCompiler()
    torch.compiler.disable = _unmarked  # type: ignore[assignment]
    torch.distributed.is_available = lambda: False
    try:
        yield
    finally:
        torch.compiler.disable, torch.distributed.is_available = disable, can_distribute
        del sys.modules[_COMPILER]


def import_transformers() -> None:
    """Does nothing where somebody has imported them, or the compiler, already."""
    if _COMPILER in sys.modules or _MODULES[0] in sys.modules:
        return
    with without_compiler():
        for name in _MODULES:
            importlib.import_module(name)
