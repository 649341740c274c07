"""What disks, copies and strangers do to a model folder, at random: each call of :func:`damage` does one thing to it.

A stranger who writes a config, tokenizer or template of his own writes its checksum too, every other time: then it is up to whoever reads it.
"""

from __future__ import annotations

import copy
import json
import os
import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import xxhash

MANIFEST = "manifest.json"
PAGES = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json")
BLOCK = 4096


@dataclass(frozen=True)
class Damage:
    #: of DAMAGES
    kind: str
    #: what was changed
    file: str
    what: str = ""
    #: whether the manifest has the checksum of what it is now
    signed: bool = False


def _signed(folder: Path, chance: random.Random, kind: str, file: str, what: str) -> Damage:
    if file == MANIFEST or chance.random() < 0.5:
        return Damage(kind, file, what)
    page, data = json.loads((folder / MANIFEST).read_text()), (folder / file).read_bytes()
    page["companions"][file] = {"length": len(data), "checksum": xxhash.xxh3_64_hexdigest(data)}
    (folder / MANIFEST).write_text(json.dumps(page))
    return Damage(kind, file, what, signed=True)


def damage(folder: Path, chance: random.Random) -> Damage:
    kind = chance.choice([kind for kind, weight in _WEIGHTS.items() for _ in range(weight)])
    return DAMAGES[kind](folder, chance)


def _any(folder: Path, chance: random.Random) -> Path:
    return chance.choice(sorted(folder.iterdir()))


def _shards(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.safetensors"))


def _bits(folder: Path, chance: random.Random) -> Damage:
    path = _any(folder, chance)
    data = bytearray(path.read_bytes())
    places = [chance.randrange(len(data)) for _ in range(chance.choice((1, 1, 1, 8, 200)))]
    for at in places:
        data[at] ^= 1 << chance.randrange(8)
    path.write_bytes(data)
    return Damage("bits", path.name, f"bytes {places[:8]}")


def _cut(folder: Path, chance: random.Random) -> Damage:
    path = _any(folder, chance)
    size = chance.choice((0, chance.randrange(path.stat().st_size), path.stat().st_size // BLOCK * BLOCK))
    os.truncate(path, size)
    return Damage("cut", path.name, f"to {size} bytes")


def _grown(folder: Path, chance: random.Random) -> Damage:
    path = _any(folder, chance)
    with path.open("ab") as file:
        file.write(chance.choice((bytes(BLOCK), chance.randbytes(BLOCK), b"\n", b"}")))
    return Damage("grown", path.name)


def _lost_block(folder: Path, chance: random.Random) -> Damage:
    """Zeros, or what was there before, where something was to be written."""
    path = _any(folder, chance)
    data = bytearray(path.read_bytes())
    at = chance.randrange(len(data)) // BLOCK * BLOCK
    length = len(data[at : at + BLOCK])
    data[at : at + length] = chance.choice((bytes(length), chance.randbytes(length)))
    path.write_bytes(data)
    return Damage("lost block", path.name, f"at {at}")


def _swapped_files(folder: Path, chance: random.Random) -> Damage:
    """Two layers of equal size, or embedding and head."""
    one, other = chance.sample(_shards(folder), 2)
    while one.stat().st_size != other.stat().st_size:
        one, other = chance.sample(_shards(folder), 2)
    aside = folder / "aside"
    one.rename(aside), other.rename(one), aside.rename(other)
    return Damage("swapped files", one.name, f"with {other.name}")


def _parts(folder: Path) -> list[dict[str, Any]]:
    page = json.loads((folder / MANIFEST).read_text())
    return [part for shard in page["shards"] for part in shard["parts"]]


def _swapped_parts(folder: Path, chance: random.Random) -> Damage:
    """Two that are equally long, or the beginnings of two."""
    one, other = chance.sample(_parts(folder), 2)
    length = min(one["length"], other["length"])
    data = [_read(folder, part, length) for part in (one, other)]
    if chance.random() < 0.3:
        data[0] = data[1]  # both are the one now
    for part, bytes_ in ((one, data[1]), (other, data[0])):
        with (folder / part["file"]).open("r+b") as file:
            file.seek(part["offset"])
            file.write(bytes_)
    return Damage("swapped parts", one["file"], f"at {one['offset']} with {other['file']} at {other['offset']}")


def _read(folder: Path, part: dict[str, Any], length: int) -> bytes:
    with (folder / part["file"]).open("rb") as file:
        file.seek(part["offset"])
        return file.read(length)


def _another_thing(folder: Path, chance: random.Random) -> Damage:
    """Gone, or no file any more."""
    path = _any(folder, chance)
    path.unlink()
    what = chance.choice(("gone", "folder", "fifo", "endless", "a link to nothing", "a link to itself", "empty"))
    if what == "folder":
        path.mkdir()
    elif what == "fifo":
        os.mkfifo(path)
    elif what == "empty":
        path.touch()
    elif what != "gone":
        path.symlink_to({"endless": "/dev/zero", "a link to nothing": folder / "nothing", "a link to itself": path}[what])
    return Damage("another thing", path.name, what)


def _deep(levels: int) -> Any:
    inner: Any = 1
    for level in range(levels):
        inner = [inner] if level % 2 else {"a": inner}
    return inner


def _junk(chance: random.Random) -> Any:
    return chance.choice((
        None, True, False, 0, 1, -1, 2, 63, 64, 4095, 4096, -4096, 2**31, 2**53 + 1, 2**63, -(2**63), 10**30, 10**400, 0.5, 1e308, -0.0,
        float("nan"), float("inf"), "", "..", "../../etc/passwd", "/etc/passwd", "a/b.safetensors", "\0", "\ud800", "é" * 300, "1", "raw",
        "int4", "bfloat16", [], {}, [[]], [0] * 1000, {"": {}}, ["a", 1, None], _deep(60), _deep(400), list(range(50)),
    ))  # fmt: skip


def _places(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [*([at] if at else []), *(place for key, item in items if len(at) < 30 for place in _places(item, (*at, key)))]


def _inside(page: Any, place: tuple[Any, ...]) -> Any:
    for key in place:
        page = page[key]
    return page


def mutated(page: Any, chance: random.Random) -> str:
    """Changes a parsed JSON somewhere; says where."""
    places = _places(page)
    place = chance.choice(places)
    if chance.random() < 0.4:  # as likely at the top as deep in a long list
        place = place[: chance.randint(1, len(place))]
    owner, key = _inside(page, place[:-1]), place[-1]
    match chance.randrange(6):
        case 0:
            del owner[key]
        case 1:
            owner[key] = copy.deepcopy(_inside(page, chance.choice(places)))
        case 2 if type(owner[key]) in (int, float):
            old = owner[key]
            owner[key] = chance.choice((old + 1, old - 1, -old, old * 2, old * 4096, old // 2, 10**12, old + 0.5))
        case 3 if isinstance(owner, dict):
            owner[chance.choice(("colour", "auto_map", "quantization_config", "__class__", "é"))] = _junk(chance)
        case 4 if isinstance(owner, list):
            owner.insert(chance.randrange(len(owner) + 1), copy.deepcopy(owner[key]) if chance.random() < 0.5 else _junk(chance))
        case _:
            owner[key] = _junk(chance)
    return ".".join(map(str, place))


def _mutated_page(name: str, kind: str) -> Callable[[Path, random.Random], Damage]:
    def change(folder: Path, chance: random.Random) -> Damage:
        page = json.loads((folder / name).read_text())
        places = []
        for _ in range(chance.choice((1, 1, 2, 5))):
            if not page:
                break
            places.append(mutated(page, chance))
        (folder / name).write_text(json.dumps(page))
        return _signed(folder, chance, kind, name, ", ".join(places))

    return change


def _any_page(folder: Path, chance: random.Random) -> Damage:
    return _mutated_page(chance.choice(PAGES), "hostile page")(folder, chance)


def _ranges(folder: Path, chance: random.Random) -> Damage:
    """Parts and tensors that lie where others do, beyond the end, or nowhere."""
    page = json.loads((folder / MANIFEST).read_text())
    parts = [part for shard in page["shards"] for part in shard["parts"]]
    part, other = chance.sample(parts, 2)
    one = chance.choice((part, chance.choice(part["tensors"])))
    key = chance.choice(("offset", "length"))
    one[key] = chance.choice((other[key], -one[key], one[key] + BLOCK, one[key] + 64, one[key] - BLOCK, 0, 2**40, 2**62, other["offset"] + BLOCK))
    if chance.random() < 0.2:
        part["file"] = other["file"]
    (folder / MANIFEST).write_text(json.dumps(page))
    return Damage("hostile ranges", MANIFEST, f"{part['file']} {key} {one[key]}")


def _text(folder: Path, chance: random.Random) -> Damage:
    """JSON that is none, or far too much of it."""
    name = chance.choice((MANIFEST, *PAGES))
    text = (folder / name).read_text()
    at = chance.randrange(len(text))
    made = chance.choice((
        text[:at] + "[" * 100_000, '{"a":' * 50_000, text[:at] + text[at + 1 :], text[:at] + text[: at + 50], text + text, "9" * 100_000,
        '"' + "a" * 10**6, "[" + "{}," * 10**5 + "{}]", text.replace(":", ":-", 1), "\ufeff" + text, "null", "[]",
    ))  # fmt: skip
    (folder / name).write_text(made)
    return _signed(folder, chance, "hostile text", name, f"{len(made)} characters")


_TEMPLATES = (
    b"{%", b"{{ ", b"\xff\xfe{{ x }}", b"{{ messages.__class__.__mro__ }}", b"{% for i in range(10**9) %}x{% endfor %}", b"{{ 'a' * 10**10 }}",
    b"{{ 10**10**10 }}", b"{{ " + b"(" * 3000 + b")" * 3000 + b" }}", b"{% include '/etc/passwd' %}", b"", b"{{ messages[0].content }}",
    b"{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    b"{{ raise_exception('no') }}", b"{% set x = namespace(a=[]) %}{% for i in range(9999) %}{% set x.a = x.a + [x.a] %}{% endfor %}{{ x.a }}",
    b"{% if 1 %}" * 500, b"{{ [1] | batch(10**9) | list }}", b"{{ '%999999999d' % 1 }}", b"{{ 'x'.center(10**10) }}",
)  # fmt: skip


def _template(folder: Path, chance: random.Random) -> Damage:
    path = folder / "chat_template.jinja"
    made = chance.choice(_TEMPLATES)
    if chance.random() < 0.3:
        text = bytearray(path.read_bytes())
        at = chance.randrange(len(text))
        text[at : at + chance.randint(0, 4)] = made[: chance.randint(1, 20)]
        made = bytes(text)
    path.write_bytes(made)
    return _signed(folder, chance, "hostile template", path.name, repr(made[:60]))


def _another_models(folder: Path, chance: random.Random) -> Damage:
    """A file of the folder under another one's name."""
    one, other = chance.sample(sorted(folder.iterdir()), 2)
    shutil.copyfile(one, other)
    return Damage("another one's", other.name, f"has what {one.name} has")


DAMAGES: dict[str, Callable[[Path, random.Random], Damage]] = {
    "bits": _bits,
    "cut": _cut,
    "grown": _grown,
    "lost block": _lost_block,
    "swapped files": _swapped_files,
    "swapped parts": _swapped_parts,
    "another thing": _another_thing,
    "another one's": _another_models,
    "hostile manifest": _mutated_page(MANIFEST, "hostile manifest"),
    "hostile ranges": _ranges,
    "hostile text": _text,
    "hostile page": _any_page,
    "hostile template": _template,
}
_WEIGHTS = {
    "bits": 5, "cut": 2, "grown": 1, "lost block": 3, "swapped files": 1, "swapped parts": 3, "another thing": 1, "another one's": 1,
    "hostile manifest": 4, "hostile ranges": 2, "hostile text": 1, "hostile page": 4, "hostile template": 1,
}  # fmt: skip
