"""Where bytes lie: alignment, bands, padding, and files that safetensors itself reads."""

from __future__ import annotations

import math

import pytest
import xxhash
from factories import checkpoint, prepared_folder
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open

from potatod import model_folder
from potatod.store import shard_file
from potatod.store.layout import Value, band_rows, bands, layer_layout, matrix_layout
from potatod.store.prepare import prepare

SIZES = {"float32": 4, "bfloat16": 2, "uint8": 1}


def value(name: str, dtype: str, shape: tuple[int, ...]) -> Value:
    return Value(name, dtype, shape, math.prod(shape) * SIZES[dtype])


VALUES = st.lists(
    st.tuples(st.sampled_from(sorted(SIZES)), st.lists(st.integers(0, 300), max_size=2).map(tuple)), min_size=1, max_size=12
).map(lambda drawn: [value(f"t{n}.weight", dtype, shape) for n, (dtype, shape) in enumerate(drawn)])


@given(values=VALUES)
def test_every_part_is_one_aligned_read_and_every_tensor_lies_whole_in_one(values):
    layout = layer_layout("layer.0000.safetensors", values)
    places = {place.value.name: place.offset for place in layout.places}
    assert places.keys() == {v.name for v in values} and len(layout.header) % 4096 == layout.size % 4096 == 0
    end = len(layout.header)
    for part in layout.parts:
        assert part.offset == end and part.length > 0 and part.length % 4096 == 0
        end += part.length
        for tensor in part.tensors:
            assert tensor.offset % 64 == 0 and tensor.offset + tensor.length <= part.length
            assert part.offset + tensor.offset == places[tensor.name]
    assert end == layout.size
    large = [part for part in layout.parts if any(t.length >= 64 << 10 for t in part.tensors)]
    assert all(len(part.tensors) == 1 for part in large)
    assert len(layout.parts) - len(large) <= 1


@given(values=VALUES)
def test_safetensors_itself_reads_what_is_written(values, tmp_path_factory):
    folder = tmp_path_factory.mktemp("shard")
    layout = layer_layout("x.safetensors", values)
    stored = {v.name: bytes((n + len(v.name)) % 251 for n in range(v.nbytes)) for v in values}
    (parts,) = shard_file.write(folder, "x.safetensors", layout, ([stored[p.value.name]] for p in layout.places), layout.parts)
    data = (folder / "x.safetensors").read_bytes()
    assert len(data) == layout.size and [path.name for path in folder.iterdir()] == ["x.safetensors"]
    with safe_open(folder / "x.safetensors", "np" if all(v.dtype != "bfloat16" for v in values) else "pt") as opened:
        assert {name for name in opened.keys() if not name.startswith("__pad.")} == stored.keys()  # noqa: SIM118
    for part in parts:
        assert part.checksum == xxhash.xxh3_64_hexdigest(data[part.offset : part.offset + part.length])
        for tensor in part.tensors:
            start = part.offset + tensor.offset
            assert data[start : start + tensor.length] == stored[tensor.name]


@given(rows=st.integers(1, 5000), columns=st.integers(1, 3000), band_bytes=st.integers(1, 1 << 20))
def test_bands_are_whole_rows_from_aligned_places_and_cover_the_matrix(rows, columns, band_bytes):
    layout = matrix_layout("embed.safetensors", value("w", "bfloat16", (rows, columns)))
    parts = bands("embed.safetensors", layout, "w", band_bytes)
    row = 0
    for part in parts:
        (tensor,) = part.tensors
        assert part.offset % 4096 == 0 and part.offset == layout.places[0].offset + row * columns * 2
        assert tensor.first_row == row and tensor.length == tensor.shape[0] * columns * 2 <= part.length
        assert part.offset + part.length <= layout.size
        row += tensor.shape[0]
    assert row == rows


@pytest.mark.parametrize(("row_bytes", "band_bytes", "rows"), [
    (1152, 1 << 20, 896), (8192, 1 << 20, 128), (4096, 1, 1), (2 * 1537, 1 << 20, 2048), (16384, 32 << 20, 2048),
])  # fmt: skip
def test_a_band_is_about_the_size_asked_for_or_the_smallest_that_is_aligned(row_bytes, band_bytes, rows):
    assert band_rows(row_bytes, band_bytes) == rows
    assert rows * row_bytes % 4096 == 0


def test_a_long_tiling_gets_its_checksums_however_the_bytes_come(tmp_path):
    layout = matrix_layout("e.safetensors", value("w", "uint8", (64, 1024)))
    data = bytes(n * 7 % 256 for n in range(64 << 10))
    tilings = [bands("e.safetensors", layout, name, size) for name, size in (("w", 4096), ("h", 20000))]
    pieces = [data[at : at + 1000] for at in range(0, len(data), 1000)]
    for parts in shard_file.write(tmp_path, "e.safetensors", layout, [pieces], *tilings):
        written = (tmp_path / "e.safetensors").read_bytes()
        assert all(p.checksum == xxhash.xxh3_64_hexdigest(written[p.offset : p.offset + p.length]) for p in parts)


def test_a_real_folder_parses_and_its_head_has_as_many_bands_as_asked(tmp_path):
    source = checkpoint(tmp_path / "source", "Llama 2", "float32")
    prepare(source, tmp_path / "out", band_bytes=1 << 13)
    manifest = model_folder.load(tmp_path / "out")
    head = next(shard for shard in manifest.shards if shard.kind == "head")
    assert [part.tensors[0].shape for part in head.parts] == [(32, 64)] * 10
    assert manifest.files["head.safetensors"] == 4096 + 320 * 64 * 4


def test_the_factorys_folder_has_a_tokenizer_that_speaks(tmp_path):
    folder = prepared_folder(tmp_path)
    assert {"tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "manifest.json"} <= {p.name for p in folder.iterdir()}


@pytest.mark.parametrize(("rows", "columns"), [(4864, 896), (896, 4864), (1536, 8960), (8960, 1536), (4097, 520)])
def test_a_layers_matrix_is_cut_into_bands_that_differ_by_little(rows, columns):
    nbytes = rows * columns * 2
    layout = layer_layout("f", [Value("w", "bfloat16", (rows, columns), nbytes), Value("n", "bfloat16", (64,), 128)], 1 << 20)
    bands = [part.tensors[0] for part in layout.parts if part.tensors[0].name == "w"]
    heights = [band.shape[0] for band in bands]
    assert sum(heights) == rows and [band.first_row for band in bands] == [sum(heights[:n]) for n in range(len(heights))]
    assert len(heights) > 3 and min(heights) >= 0.6 * max(heights)
    assert all(part.offset % 4096 == 0 and part.length % 4096 == 0 for part in layout.parts)
