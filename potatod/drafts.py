"""The draft model beside a model: which folder it is, what it takes, and whether the two speak of the same tokens.

    [speculation] draft = ""               none
                          "self:int4"      a coarser copy of the model itself, in its own folder: `potatod prepare MODEL --draft int4` makes it
                          "/path/to/it"    the folder of another model with the same vocabulary
"""

from __future__ import annotations

import filecmp
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

from . import errand
from . import manifest as manifests
from .config import Settings
from .dtypes import RAW
from .errors import ConfigError, ModelDataError, NoSuchModel, UnsupportedModel
from .forms import has_more
from .keys import SELF
from .kv_layout import KvGroup, KvLayout
from .manifest import Manifest, Part, Tensor
from .plan import sweep_parts
from .room import Needs, Together, activation_bytes, put_together_bytes

#: Tokens that the draft model computes with at once, at most: worker.drafter.
_ROWS: Final = 256 + 64
#: Comparing two vocabularies takes seconds.
_LIMIT_S: Final = 120.0


@dataclass(frozen=True, slots=True)
class Both:
    """A model and its draft model: room.Needs of the two together."""

    model: Needs
    draft_manifest: Manifest
    draft: Needs

    @property
    def kv(self) -> KvLayout:
        """A sequence has both's."""
        return together(self.model.kv, self.draft.kv)

    @property
    def max_positions(self) -> int:
        return self.model.max_positions

    @property
    def together(self) -> Together:
        return self.model.together

    @property
    def worker_bytes(self) -> int:
        return self.model.worker_bytes

    @property
    def draft_bytes(self) -> int:
        """Weights and embedding, and what is computed with."""
        return resident_bytes(self.draft_manifest) + activation_bytes(self.draft_manifest, _ROWS) + put_together_bytes(
            self.draft_manifest, self.draft.together
        )  # fmt: skip


def together(model: KvLayout, draft: KvLayout) -> KvLayout:
    sums: dict[int | None, int] = {}
    for group in (*model.groups, *draft.groups):
        sums[group.window] = sums.get(group.window, 0) + group.bytes_per_token
    groups = tuple(KvGroup(window, size) for window, size in sorted(sums.items(), key=lambda item: item[0] or 0))
    return replace(model, groups=groups, state_bytes=model.state_bytes + draft.state_bytes)


def decoded_from(manifest: Manifest) -> list[tuple[Part, Tensor]]:
    """The head's bands, where rows of the embedding are decoded from them: they are the same matrix, and the head's takes fewer bytes."""
    bands = [(part, band) for shard in manifest.shards if shard.kind == "head" for part in shard.parts for band in part.tensors]
    return bands if manifest.tied and all(band.scheme != RAW and not has_more(band.scheme) for _, band in bands) else []


def resident_bytes(manifest: Manifest) -> int:
    """All weights, and the embedding where it is no part of them."""
    weights = sum(part.length for _, part in sweep_parts(manifest))
    head = {part.file for shard in manifest.shards if shard.kind == "head" for part in shard.parts}
    embedding = [part for shard in manifest.shards if shard.kind == "embed" for part in shard.parts]
    apart = not decoded_from(manifest) and embedding[0].file not in head
    return weights + (sum(part.length for part in embedding) if apart else 0)


def named(folder: Path, form: str) -> Path:
    """Where a copy of the model in ``folder`` lies that is stored in this form."""
    return folder / f"draft.{form}"


def folder_of(settings: Settings, folder: Path) -> Path | None:
    """Of the draft model for the model in ``folder``; None where none is wanted. Raises :class:`NoSuchModel` where it is not there."""
    wanted = settings.speculation.draft
    if not wanted or not settings.speculation.enabled:
        return None
    if wanted.startswith(SELF):
        form = wanted.removeprefix(SELF)
        own = named(folder, form)
        if not (own / manifests.NAME).is_file():
            raise NoSuchModel(
                f'[speculation] draft is "{wanted}", and {folder} has no such copy: make it with `potatod prepare {folder} --draft {form}`'
            )
        return own
    if not (Path(wanted) / manifests.NAME).is_file():
        raise NoSuchModel(f"[speculation] draft names {wanted}, which is no model folder: make one with `potatod prepare SOURCE {wanted}`")
    if Path(wanted).resolve() == folder.resolve():
        raise ConfigError('[speculation] draft names the model itself, which guesses nothing sooner; "self:int4" is a copy of it that does')
    return Path(wanted)


def check(folder: Path, draft: Path) -> Manifest:
    """The draft model's manifest, where its files are whole and its tokens are the model's. Raises what tells what is wrong."""
    manifest = manifests.load(draft)
    manifests.check_files(draft, manifest)
    if not _alike(folder / "tokenizer.json", draft / "tokenizer.json"):
        said = errand.run("front.vocabulary", str(folder), str(draft), limit_s=_LIMIT_S)
        if (why := said["differs"]) is not None:
            raise ModelDataError(f"{draft} cannot guess for {folder.name}: {why}")
    return manifest


def _alike(one: Path, other: Path) -> bool:
    try:
        return filecmp.cmp(one, other, shallow=False)
    except OSError:
        return False  # whoever looks closer says what is wrong


def useless(batching: str, draft_batching: str, forks: bool) -> str | None:
    """Why a draft model is of no use to a model; None where it is."""
    if batching != "packed" or not forks:
        return "the model's family keeps states that cannot be taken back, so nothing can be guessed for it"
    if draft_batching != "packed":
        return "the draft model's family keeps states that cannot be taken back"
    return None


def refuse(why: str) -> UnsupportedModel:
    return UnsupportedModel(f'[speculation] draft: {why}; set it to ""')


def facts(folder: Path, findings: Any) -> dict[str, Any]:
    """For the worker's boot page."""
    return {"folder": str(folder), **asdict(findings)}

