"""The models that a daemon serves: of each, before anything starts, what was found out about it and what is planned for it."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import drafts, identity, surroundings
from . import plan as plans
from .config import Settings
from .errors import ConfigError
from .forecast import Load, forecast
from .manifest import Manifest
from .model_folder import check_companions, check_files, check_mirror
from .model_folder import load as load_manifest
from .room import logits_rows, tokenizer_bytes
from .sizes import Auto, Percent
from .stage import BootModel
from .verdict import Verdict, probe


@dataclass(frozen=True, slots=True)
class Chosen:
    """One that is to be served; its files are whole."""

    #: of a daemon that serves it alone
    settings: Settings
    folder: Path
    manifest: Manifest

    @property
    def name(self) -> str:
        return self.folder.name

    @classmethod
    def of(cls, settings: Settings) -> Chosen:
        """Raises what tells what is wrong with it, where that is known before anything takes time."""
        folder = Path(settings.model.path)
        manifest = load_manifest(folder)
        check_files(folder, manifest)
        check_companions(folder, manifest)
        for mirror in settings.model.mirrors:
            check_mirror(folder, Path(mirror))
        drafts.folder_of(settings, folder)
        if not isinstance(settings.pool.size, Auto | Percent):
            plans.enough(manifest, int(settings.pool.size), card=settings.worker.device != "cpu")
        return cls(settings, folder.resolve(), manifest)

    def check_companions(self) -> None:
        """Before a process reads them anew. Raises :class:`ModelDataError` where one has been changed."""
        check_companions(self.folder, self.manifest)


@dataclass(frozen=True, slots=True)
class Served:
    chosen: Chosen
    verdict: Verdict

    @property
    def plan(self) -> plans.Plan:
        return self.verdict.plan

    @property
    def load(self) -> Load:
        return Load.of(self.plan, self.chosen.manifest.layers)

    @property
    def logits_bytes(self) -> int:
        """Of the region in which worker and front share rows of logits."""
        return logits_rows(self.chosen.settings) * self.verdict.vocabulary * 4

    def planned(self) -> dict[str, Any]:
        """What the log says of it."""
        plan, verdict = self.plan, self.verdict
        expected = forecast(plan, self.chosen.manifest.layers, verdict.rates)
        card = plan.card_bytes or plan.slots
        on_card = {"card_bytes": plan.card_bytes, "uploaded_bytes": plan.uploaded_bytes, "slots": plan.slots} if card else {}
        return {
            "pool_bytes": plan.pool_bytes, "resident_bytes": plan.resident_bytes, "ring_bytes": plan.ring_bytes, "streamed_bytes": plan.streamed_bytes,
            **on_card, "context_tokens": verdict.max_context, "prompt_tokens_per_sweep": verdict.prefill_chunk,
            "s_per_token": round(expected.token_s, 3), "waits_for": expected.bottleneck, "checked": verdict.findings.checked,
        }  # fmt: skip

    def surroundings(self) -> Iterator[str]:
        """Sentences about what will make it slower than it need be."""
        chosen = self.chosen
        return surroundings.before(chosen.folder, self.plan.streamed_bytes, self.verdict.rates.disk, chosen.settings.worker.threads)

    def page(self) -> BootModel:
        """What stages are told of it."""
        facts: dict[str, Any] = self.verdict.facts() | {
            "load": dataclasses.asdict(self.load), "resident_bytes": self.plan.resident_bytes, "card_bytes": self.plan.card_bytes,
            "checksum": identity.checksum_of(self.chosen.folder, self.chosen.manifest),
        }  # fmt: skip
        return BootModel(str(self.chosen.folder), self.chosen.settings, facts)


def choose(settings: Settings) -> tuple[Chosen, ...]:
    """Raises as :meth:`Chosen.of`, and :class:`ConfigError` where two could not be told from each other."""
    chosen = tuple(Chosen.of(each) for each in settings.each())
    name, count = Counter(each.name for each in chosen).most_common(1)[0]
    if count > 1:
        raise ConfigError(f"{count} models are called {name}, which is how clients ask for one: their folders need names that differ")
    if len(chosen) > 1:
        first: dict[str, Chosen] = {}
        for each in chosen:
            if (other := first.setdefault(identity.checksum_of(each.folder, each.manifest), each)) is not each:
                raise ConfigError(f"{other.folder} and {each.folder} are the same model, to which its jobs belong: serve one of them")
    return chosen


def look_into(chosen: Sequence[Chosen], directory: Path, cancelled: Callable[[], bool]) -> tuple[Served, ...]:
    """Raises as :func:`verdict.probe`. The front has the tokenizers of all of them, whichever has the memory."""
    tokenizers = sum(tokenizer_bytes(each.folder) for each in chosen)
    return tuple(Served(each, probe(each.settings, each.folder, each.manifest, directory, tokenizers, cancelled)) for each in chosen)
