"""What is served: it does not change while the gateway lives."""

from __future__ import annotations

from dataclasses import dataclass

from .faults import Fault


@dataclass(frozen=True, slots=True)
class Served:
    model: str
    #: the model's checksum
    checksum: str
    #: seconds since 1970
    since: int

    @property
    def fingerprint(self) -> str:
        """Another one where the same question may have another answer."""
        return f"potato-{self.checksum[:12]}"

    def check(self, model: str) -> None:
        """Raises :class:`Fault` where it is another that is asked for."""
        if model != self.model:
            raise Fault(404, f"there is no model {model[:200]!r}: {self.model!r} is served", code="model_not_found", param="model")
