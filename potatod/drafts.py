"""The draft model beside a model: which folder it is, what it takes, and whether the two speak of the same tokens.

    [speculation] draft = ""               none
                          "self:int4"      a coarser copy of the model itself, in its own folder: `potatod prepare MODEL --draft int4` makes it
                          "/path/to/it"    the folder of another model with the same vocabulary
"""

from __future__ import annotations

import filecmp
import hashlib
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

from . import errand, model_folder
from .config import Settings
from .dtypes import RAW
from .errors import ConfigError, ModelDataError, NoSuchModel, UnsupportedModel
from .forms import has_more
from .keys import SELF
from .kv_layout import BLOCK, KvLayout
from .manifest import Manifest, Part, Tensor
from .plan import sweep_parts
from .room import Needs, Together, activation_bytes, put_together_bytes

#: Of a text the draft model reads so many tokens at a time, at most, and fewer where the scores of attention would take more than these bytes.
READS_AT_ONCE: Final = 256
SCORES_BYTES: Final = 32 << 20
#: Blocks of KV, in every layer, that it takes for one draft beside those of the texts: a fork has one of its own, and another behind its end.
FORKED_BLOCKS: Final = 32
#: Tokens that it computes with at once, at most.
_ROWS: Final = READS_AT_ONCE + 64
#: What the folder of a copy begins with, and the file in it that says of which weights it is.
_COPY: Final = "draft."
_OF: Final = "copy_of"
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
        return self._computing_bytes + resident_bytes(self.draft_manifest)

    @property
    def draft_on_card(self) -> tuple[int, int]:
        """Where a card computes: bytes of its memory, and of RAM, where rows of the embedding come from."""
        kept = [part for part, _ in decoded_from(self.draft_manifest)] or _embedding(self.draft_manifest)
        return self._computing_bytes + _weights_bytes(self.draft_manifest), sum(part.length for part in kept)

    @property
    def _computing_bytes(self) -> int:
        manifest = self.draft_manifest
        forks = FORKED_BLOCKS * BLOCK * self.draft.kv.bytes_per_token
        return activation_bytes(manifest, _ROWS) + SCORES_BYTES + forks + put_together_bytes(manifest, self.draft.together)


def together(model: KvLayout, draft: KvLayout) -> KvLayout:
    groups = (*model.groups, *(replace(group, of_draft=True) for group in draft.groups))
    return replace(model, groups=groups, state_bytes=model.state_bytes + draft.state_bytes)


def decoded_from(manifest: Manifest) -> list[tuple[Part, Tensor]]:
    """The head's bands, where rows of the embedding are decoded from them: they are the same matrix, and the head's takes fewer bytes."""
    bands = [(part, band) for shard in manifest.shards if shard.kind == "head" for part in shard.parts for band in part.tensors]
    return bands if manifest.tied and all(band.scheme != RAW and not has_more(band.scheme) for _, band in bands) else []


def resident_bytes(manifest: Manifest) -> int:
    """All weights, and the embedding where it is no part of them."""
    head = {part.file for shard in manifest.shards if shard.kind == "head" for part in shard.parts}
    embedding = _embedding(manifest)
    apart = not decoded_from(manifest) and embedding[0].file not in head
    return _weights_bytes(manifest) + (sum(part.length for part in embedding) if apart else 0)


def _weights_bytes(manifest: Manifest) -> int:
    return sum(part.length for _, part in sweep_parts(manifest))


def _embedding(manifest: Manifest) -> list[Part]:
    return [part for shard in manifest.shards if shard.kind == "embed" for part in shard.parts]


def named(folder: Path, form: str) -> Path:
    """Where a copy of the model in ``folder`` lies that is stored in this form."""
    return folder / f"{_COPY}{form}"


def folder_of(settings: Settings, folder: Path) -> Path | None:
    """Of the draft model for the model in ``folder``; None where none is wanted. Raises :class:`NoSuchModel` where it is not there."""
    wanted = settings.speculation.draft
    if not wanted or not settings.speculation.enabled:
        return None
    if wanted.startswith(SELF):
        form = wanted.removeprefix(SELF)
        own = named(folder, form)
        if not (own / model_folder.NAME).is_file():
            raise NoSuchModel(
                f'[speculation] draft is "{wanted}", and {folder} has no such copy: make it with `potatod prepare {folder} --draft {form}`'
            )
        return own
    if not (Path(wanted) / model_folder.NAME).is_file():
        raise NoSuchModel(f"[speculation] draft names {wanted}, which is no model folder: make one with `potatod prepare SOURCE {wanted}`")
    if Path(wanted).resolve() == folder.resolve():
        raise ConfigError('[speculation] draft names the model itself, which guesses nothing sooner; "self:int4" is a copy of it that does')
    return Path(wanted)


def says_of(copy: Path, model: Manifest) -> None:
    """Writes down which weights a copy was made of."""
    (copy / _OF).write_text(_weights_of(model) + "\n")


def is_of(copy: Path, model: Manifest) -> bool:
    """Whether a copy was made of this model's weights."""
    try:
        return (copy / _OF).read_text().strip() == _weights_of(model)
    except OSError:
        return False


def _weights_of(model: Manifest) -> str:
    checksums = (part.checksum for shard in model.shards for part in shard.parts)
    return hashlib.sha256("\n".join(checksums).encode()).hexdigest()


def check(folder: Path, draft: Path) -> Manifest:
    """The draft model's manifest, where its files are whole and its tokens are the model's; a copy of the model was made of the weights that are there
    now. Raises what tells what is wrong."""
    manifest = model_folder.load(draft)
    model_folder.check_files(draft, manifest)
    model_folder.check_companions(draft, manifest)
    if draft.parent == folder and draft.name.startswith(_COPY) and not is_of(draft, model_folder.load(folder)):
        form = draft.name.removeprefix(_COPY)
        raise ModelDataError(f"{draft} is a copy of other weights than {folder} has now: make it anew with `potatod prepare {folder} --draft {form}`")
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


def useless(kernels: str, batching: str, draft_batching: str, forks: bool) -> str | None:
    """Why a draft model is of no use to a model that is computed with these kernels; None where it is."""
    if kernels == "reference":
        return 'under [worker] kernels = "reference" one token is computed after the other, so nothing can be guessed'
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

