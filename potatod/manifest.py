"""The index of a model folder: which bytes of which file hold which tensor.

    manifest.json ─▶ Manifest ─▶ shards (embed, layer 0 … n, head, resident) ─▶ parts ─▶ tensors

A **part** is the unit of everything: read, checked, placed, lent, resident. It starts at a multiple of 4096 bytes in
its file and is padded to one, so it is one aligned read. Parsing is pure and trusts nothing; model_folder.py holds a parsed
manifest against the files themselves.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import re
from dataclasses import dataclass
from typing import Final, Literal

from . import companions
from .companions import Companion
from .dtypes import RAW
from .errors import ModelDataError
from .forms import FORMS, fits, has_more, refusal
from .typed_json import build

FORMAT: Final = 1
ALIGNMENT: Final = 4096

Kind = Literal["embed", "layer", "head", "resident"]


@dataclass(frozen=True, slots=True)
class Tensor:
    """A tensor, or a band of its rows, inside a part."""

    #: of a layer's tensor: as the layer's module calls it ("self_attn.q_proj.weight"); elsewhere as the whole model
    #: does
    name: str
    #: torch's name of the reference dtype: "bfloat16", "float32", …
    dtype: str
    #: of what lies here: a band of n rows of a (rows, columns) tensor has shape (n, columns)
    shape: tuple[int, ...]
    #: how the values lie: a name in potatod.schemes ("raw": the dtype's own bytes)
    scheme: str
    #: bytes from the start of the part
    offset: int
    length: int
    #: first row of a band, which is alone in its part; None where the tensor is whole
    first_row: int | None = None


@dataclass(frozen=True, slots=True)
class Part:
    file: str
    #: bytes from the start of the file, a multiple of ALIGNMENT
    offset: int
    #: bytes, a multiple of ALIGNMENT, padding included
    length: int
    #: XXH3-64 of the ``length`` bytes, 16 hex digits
    checksum: str
    tensors: tuple[Tensor, ...]


@dataclass(frozen=True, slots=True)
class Shard:
    kind: Kind
    #: of a layer, counted from 0; 0 elsewhere
    layer: int
    parts: tuple[Part, ...]


@dataclass(frozen=True, slots=True)
class Manifest:
    """A model folder's index, parsed and found consistent in itself."""

    format: int
    #: versions of what wrote it
    potatod: str
    transformers: str
    #: transformers' class: "LlamaForCausalLM"
    architecture: str
    model_type: str
    #: reference dtype of the model: "bfloat16"
    dtype: str
    layers: int
    #: where transformers keeps its layers, embedding and head: "model.layers", "model.embed_tokens.weight",
    #: "lm_head.weight"
    layers_name: str
    embed_name: str
    head_name: str
    #: whether the head is the embedding's own bytes
    tied: bool
    #: of the module names and shapes, so that a transformers that renames them is noticed
    fingerprint: str
    #: bytes of every file that shards lie in
    files: dict[str, int]
    shards: tuple[Shard, ...]
    #: what it was made from, for people
    provenance: dict[str, str]
    #: the files beside the weights; None in a manifest that was written before they had checksums
    companions: dict[str, Companion] | None = None


def shapes_of(shard: Shard) -> dict[str, tuple[int, ...]]:
    """The shard's tensors by name, those in bands as wholes."""
    shapes: dict[str, tuple[int, ...]] = {}
    for part in shard.parts:
        for tensor in part.tensors:
            rows = (tensor.first_row or 0) + tensor.shape[0] if tensor.shape else 0
            shapes[tensor.name] = (rows, *tensor.shape[1:]) if tensor.first_row is not None else tensor.shape
    return shapes


def values_bytes(tensor: Tensor) -> int:
    """Of its values in its dtype, however they are stored."""
    return math.prod(tensor.shape) * _DTYPE_BYTES[tensor.dtype]


def schemes_of(manifest: Manifest) -> dict[str, int]:
    """Bytes by scheme, of the matrices that every sweep multiplies with: layers' and the head's."""
    found: dict[str, int] = {}
    for shard in manifest.shards:
        if shard.kind in ("layer", "head"):
            for part in shard.parts:
                for tensor in (each for each in part.tensors if len(each.shape) > 1):
                    found[tensor.scheme] = found.get(tensor.scheme, 0) + tensor.length
    return found


def stored_as(manifest: Manifest) -> str:
    """How most of what a sweep multiplies with is stored: "bfloat16", or "int4 of bfloat16"."""
    found = schemes_of(manifest)
    scheme = max(found, key=lambda each: found[each], default=RAW)
    return manifest.dtype if scheme == RAW else f"{scheme} of {manifest.dtype}"


_FILE_NAME: Final = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}\.safetensors")
_TENSOR_NAME: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.]{0,254}")
_CHECKSUM: Final = re.compile(r"[0-9a-f]{16}")
_DTYPE_BYTES: Final = {
    "float64": 8, "float32": 4, "bfloat16": 2, "float16": 2, "int64": 8, "int32": 4, "int16": 2, "int8": 1, "uint8": 1,
    "bool": 1,
}  # fmt: skip
#: Objects and lists take far more memory than the bytes they are written with; ours are never written with so few.
_MANY: Final = 100_000
_BYTES_EACH: Final = 24
_MAX_DIMENSION: Final = 1 << 40


def dumps(manifest: Manifest) -> str:
    return json.dumps(dataclasses.asdict(manifest), indent=1)


def parse(text: str) -> Manifest:
    """Checks everything that can be checked without the files; raises :class:`ModelDataError` naming what is wrong."""
    if (count := text.count("{") + text.count("[")) > _MANY and count * _BYTES_EACH > len(text):
        raise ModelDataError(f"{count} objects and lists in {len(text)} bytes are no manifest")
    try:
        page = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ModelDataError(f"not JSON ({error})") from None
    if isinstance(page, dict) and page.get("format") != FORMAT:
        raise ModelDataError(f"format {page.get('format')!r} where this potatod reads format {FORMAT}")
    if isinstance(page, dict):
        page.setdefault("companions", None)
    manifest: Manifest = build(Manifest, page, "manifest")
    _check_shards(manifest)
    companions.check(manifest.companions or {})
    return manifest


def _check_shards(manifest: Manifest) -> None:
    for name, size in manifest.files.items():
        if not _FILE_NAME.fullmatch(name):
            raise ModelDataError(f"{name[:80]!r} is not a name for a shard's file")
        if size <= 0 or size % ALIGNMENT:
            raise ModelDataError(f"file {name}: {size} bytes are not a positive multiple of {ALIGNMENT}")
    for name in (manifest.layers_name, manifest.embed_name, manifest.head_name):
        if not _TENSOR_NAME.fullmatch(name):
            raise ModelDataError(f"{name[:80]!r} is not a name for a module or tensor")
    if manifest.dtype not in _DTYPE_BYTES:
        raise ModelDataError(f"unknown dtype {manifest.dtype[:40]!r}")
    seen: set[tuple[Kind, int]] = set()
    for shard in manifest.shards:
        if (shard.kind, shard.layer) in seen:
            raise ModelDataError(f"shard {_label(shard)} occurs twice")
        seen.add((shard.kind, shard.layer))
        _check_parts(manifest, shard)
    if not 0 < manifest.layers <= 10_000 or {n for kind, n in seen if kind == "layer"} != set(range(manifest.layers)):
        raise ModelDataError(f"there must be one shard for each of {manifest.layers} layers")
    for kind in ("embed", "head", "resident"):
        if {n for k, n in seen if k == kind} != {0}:
            raise ModelDataError(f"there must be one shard of kind {kind}")


def _check_parts(manifest: Manifest, shard: Shard) -> None:
    label = _label(shard)
    if shard.kind != "resident" and not shard.parts:
        raise ModelDataError(f"shard {label} has no parts")
    taken: dict[str, list[tuple[int, int]]] = {}
    for part in shard.parts:
        size = manifest.files.get(part.file)
        if size is None:
            raise ModelDataError(f"shard {label} lies in {part.file[:80]!r}, which is not among the files")
        if part.offset < 0 or part.offset % ALIGNMENT or part.length <= 0 or part.length % ALIGNMENT:
            raise ModelDataError(f"shard {label}: a part at offset {part.offset} of {part.length} bytes is not aligned to {ALIGNMENT}")
        if part.offset + part.length > size:
            raise ModelDataError(f"shard {label}: a part ends at {part.offset + part.length}, {part.file} has {size} bytes")
        if not _CHECKSUM.fullmatch(part.checksum):
            raise ModelDataError(f"shard {label}: {part.checksum[:40]!r} is not a checksum")
        taken.setdefault(part.file, []).append((part.offset, part.offset + part.length))
        _check_tensors(part, label)
    for spans in taken.values():
        _check_disjoint(spans, f"shard {label}: parts")
    if shard.kind in ("embed", "head"):
        _check_matrix(manifest, shard)
    else:
        _check_names(shard)


def _check_names(shard: Shard) -> None:
    """Every tensor once, as a whole or in bands that follow each other."""
    tensors = [(tensor, part) for part in shard.parts for tensor in part.tensors]
    for name, several in itertools.groupby(tensors, lambda pair: pair[0].name):
        bands = list(several)
        row, first = 0, bands[0][0]
        if first.first_row is None and len(bands) > 1:
            raise ModelDataError(f"shard {_label(shard)} names a tensor twice")
        for number, (band, part) in enumerate(bands if first.first_row is not None else ()):
            fills = band.length == part.length or has_more(band.scheme) or number == len(bands) - 1
            alike = band.shape[1:] == first.shape[1:] and (band.dtype, band.scheme) == (first.dtype, first.scheme)
            if band.first_row != row or len(part.tensors) > 1 or band.offset or not fills or not band.shape or not alike or band.shape[0] == 0:
                raise ModelDataError(f"shard {_label(shard)}: the bands of {name} must follow each other from row 0 on, and fill their parts")
            row += band.shape[0]
    names = [name for name, _ in itertools.groupby(tensor.name for tensor, _ in tensors)]
    if len(names) != len(set(names)):
        raise ModelDataError(f"shard {_label(shard)} names a tensor twice")


def _check_tensors(part: Part, label: str) -> None:
    if not part.tensors:
        raise ModelDataError(f"shard {label}: the part at offset {part.offset} holds no tensor")
    for tensor in part.tensors:
        name = tensor.name
        if not _TENSOR_NAME.fullmatch(name):
            raise ModelDataError(f"shard {label}: {name[:80]!r} is not a name for a tensor")
        if tensor.dtype not in _DTYPE_BYTES:
            raise ModelDataError(f"{name}: unknown dtype {tensor.dtype[:40]!r}")
        if any(not 0 <= size < _MAX_DIMENSION for size in tensor.shape) or len(tensor.shape) > 8:
            raise ModelDataError(f"{name}: {tensor.shape} is not a shape")
        if tensor.scheme != "raw":
            _check_scheme(tensor)
        elif tensor.length != values_bytes(tensor):
            raise ModelDataError(f"{name}: {tensor.length} bytes are not those of {tensor.dtype} {list(tensor.shape)}")
        if tensor.offset < 0 or tensor.offset % 64 or tensor.length < 0 or tensor.offset + tensor.length > part.length:
            raise ModelDataError(f"{name}: bytes {tensor.offset} to {tensor.offset + tensor.length} do not lie well in its part")
    _check_disjoint([(t.offset, t.offset + t.length) for t in part.tensors if t.length], f"shard {label}: tensors")


def _check_scheme(tensor: Tensor) -> None:
    name, scheme = tensor.name, tensor.scheme
    if scheme not in FORMS:
        raise ModelDataError(f"{name}: its scheme {scheme[:40]!r} is not known to this potatod; a newer one may have written the folder")
    if len(tensor.shape) != 2 or tensor.dtype not in ("bfloat16", "float16", "float32"):
        raise ModelDataError(f"{name}: {tensor.dtype} {list(tensor.shape)} cannot be stored as {scheme}")
    rows, columns = tensor.shape
    if (why := refusal(scheme, columns)) is not None:
        raise ModelDataError(f"{name}: {why}")
    if not fits(scheme, rows, columns, tensor.length):
        raise ModelDataError(f"{name}: {tensor.length} bytes are not those of {scheme} {list(tensor.shape)}")


def _check_matrix(manifest: Manifest, shard: Shard) -> None:
    """Embedding and head: bands of rows of one matrix, in order and without gaps, each but the last equally high.

    Rows of the embedding are read from where they lie in its file."""
    name = manifest.embed_name if shard.kind == "embed" else manifest.head_name
    row, first = 0, shard.parts[0].tensors[0]
    file, at = shard.parts[0].file, shard.parts[0].offset
    for part in shard.parts:
        band = part.tensors[0]
        whole = len(part.tensors) == 1 and band.name == name and len(band.shape) == 2 and band.first_row == row
        alike = (band.shape[1:], band.dtype, band.scheme) == (first.shape[1:], first.dtype, first.scheme)
        if not whole or not alike or band.shape[0] == 0:
            raise ModelDataError(f"shard {_label(shard)}: the bands of {name} must follow each other from row 0 on")
        if part is not shard.parts[-1] and band.shape[0] != first.shape[0]:
            raise ModelDataError(f"shard {_label(shard)}: only the last band of {name} may be of another height")
        if shard.kind == "embed" and band.scheme != "raw":
            raise ModelDataError(f"{name} is stored as {band.scheme[:40]}, and rows are gathered from an embedding that is raw")
        if shard.kind == "embed" and (part.file, part.offset, band.offset) != (file, at, 0):
            raise ModelDataError(f"shard {_label(shard)}: the bands of {name} must lie behind each other in one file")
        row, at = row + band.shape[0], at + band.length


def _check_disjoint(spans: list[tuple[int, int]], what: str) -> None:
    spans = sorted(spans)
    for (_, end), (start, _) in itertools.pairwise(spans):
        if start < end:
            raise ModelDataError(f"{what} overlap at byte {start}")


def _label(shard: Shard) -> str:
    return f"layer {shard.layer}" if shard.kind == "layer" else shard.kind
