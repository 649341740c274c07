"""Where a module's parameters and buffers live, so that weights come and go by assignment.

NOTE [ parameters that require gradients ]
Nothing is trained here, and torch.matmul still asks: a weight that requires a gradient is folded into one product where another is multiplied
batch by batch, and the bits differ. In transformers parameters require gradients, so ours do.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn


@dataclass(frozen=True, slots=True)
class Place:
    """Where a parameter or buffer lives in its module: binding is one assignment."""

    values: dict[str, Any]
    key: str
    #: NOTE [ parameters that require gradients ]
    requires_grad: bool

    def bind(self, value: torch.Tensor) -> None:
        self.values[self.key] = value.requires_grad_() if self.requires_grad else value

    def bind_again(self) -> None:
        """Binds what is bound, as a tensor that nobody has marked."""
        if (value := self.values[self.key]) is not None:
            self.bind(value.detach())

    @property
    def empty(self) -> bool:
        value = self.values[self.key]
        return value is not None and value.is_meta


def places_of(module: nn.Module) -> dict[str, Place]:
    """Of every parameter and buffer, by name."""
    places: dict[str, Place] = {}
    for prefix, owner in module.named_modules():
        for values in (owner._parameters, owner._buffers):
            for name, value in values.items():
                places[f"{prefix}.{name}" if prefix else name] = Place(values, name, value is not None and value.requires_grad)
    return places
