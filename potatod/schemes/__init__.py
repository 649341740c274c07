"""How a tensor's values lie in a shard: one small pure file per way.

Law: a scheme knows bytes and values of one tensor, and nothing of files, parts, the pipeline or the model.
``get(name)`` gives a scheme by the name the manifest uses; forms.py has the sizes.
"""

from __future__ import annotations

from typing import Final, Protocol

import torch

from potatod.errors import ModelDataError

from . import int4, int8, packed, raw
from .ggml import GGML
from .packed import Unpackable

__all__ = ["GGML", "Scheme", "Unpackable", "get"]


class Scheme(Protocol):
    """One way of storing values. ``dtype`` is torch's name of the reference dtype ("bfloat16")."""

    def pack(self, tensor: torch.Tensor) -> torch.Tensor:
        """The bytes to store, flat uint8; values that the scheme cannot hold exactly are rounded as its file says."""

    def view(self, lies: torch.Tensor, dtype: str, shape: tuple[int, ...]) -> torch.Tensor:
        """The reference tensor out of uint8 ``lies``, on the device where it lies; shares memory with it where the scheme allows."""


_SCHEMES: Final[dict[str, Scheme]] = {"raw": raw.Raw(), "packed": packed.Packed(), "int8": int8.Int8(), "int4": int4.Int4(), **GGML}


def get(name: str) -> Scheme:
    try:
        return _SCHEMES[name]
    except KeyError:
        raise ModelDataError(
            f"the scheme {name[:40]!r} is not known to this potatod (known: {', '.join(_SCHEMES)}); a newer one may have written the folder"
        ) from None
