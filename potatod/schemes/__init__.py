"""How a tensor's values lie in a shard: one small pure file per way.

Law: a scheme knows bytes and values of one tensor, and nothing of files, parts, the pipeline or the model.
``get(name)`` gives a scheme by the name the manifest uses.
"""

from __future__ import annotations

from typing import Protocol

import torch

from potatod.errors import ModelDataError

from . import raw


class Scheme(Protocol):
    """One way of storing values. ``dtype`` is torch's name of the reference dtype ("bfloat16")."""

    def nbytes(self, dtype: str, shape: tuple[int, ...]) -> int:
        """Bytes of a packed tensor."""

    def pack(self, tensor: torch.Tensor) -> memoryview:
        """The bytes to store; values that the scheme cannot hold exactly are rounded as its file says."""

    def view(self, lies: torch.Tensor, dtype: str, shape: tuple[int, ...]) -> torch.Tensor:
        """The reference tensor out of uint8 ``lies``; shares memory with it where the scheme allows."""


_SCHEMES: dict[str, Scheme] = {"raw": raw.Raw()}


def get(name: str) -> Scheme:
    try:
        return _SCHEMES[name]
    except KeyError:
        raise ModelDataError(
            f"the scheme {name[:40]!r} is not known to this potatod (known: {', '.join(_SCHEMES)}); a newer one may have written the folder"
        ) from None
