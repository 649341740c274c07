"""What a plan knows of a model that is not prepared: the same as what `prepare` then writes."""

from __future__ import annotations

import dataclasses
import json
import shutil

import pytest
from factories import checkpoint
from ggufs import write_gguf

from potatod import manifest as manifests
from potatod import model_folder
from potatod.errors import ModelDataError, NoSuchModel, UnsupportedModel, UsageError
from potatod.manifest import Manifest
from potatod.store.outline import outline
from potatod.store.prepare import prepare

#: Untied and tied, experts, layers of different kinds, things outside the layers, parameters kept in fp32, layers without weights of some kind.
FAMILIES = ("Llama 2", "Qwen2", "Mixtral", "GPT-2", "gpt-oss", "DeepSeek-V3", "Gemma 3n", "Falcon-H1", "Mamba 2", "LFM2")


def unchecked(manifest: Manifest) -> dict[str, object]:
    """Without what only a prepared folder has."""
    page = dataclasses.asdict(manifest)
    del page["provenance"], page["companions"]
    for shard in page["shards"]:
        for part in shard["parts"]:
            del part["checksum"]
    return page


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("family", FAMILIES)
def test_an_outline_is_the_manifest_that_prepare_writes(tmp_path, family, dtype):
    source = checkpoint(tmp_path / "source", family)
    prepare(source, tmp_path / "model", dtype=dtype)
    written = model_folder.load(tmp_path / "model")
    drawn, config = outline(str(source / "config.json"), dtype)
    assert unchecked(drawn) == unchecked(written)
    assert config.model_type == written.model_type
    assert manifests.parse(json.dumps(dataclasses.asdict(drawn))) == drawn, "it can be handed on as a page"


def test_a_folder_a_config_and_a_model_folder_give_the_same(tmp_path):
    source = checkpoint(tmp_path / "source", "Llama 3")
    prepare(source, tmp_path / "model")
    (tmp_path / "bare").mkdir()
    shutil.copy(source / "config.json", tmp_path / "bare")
    pages = [
        unchecked(outline(str(place))[0]) for place in (source, source / "config.json", tmp_path / "bare", tmp_path / "model")
    ]
    assert pages[0] == pages[1] == pages[2] == pages[3]


def test_a_gguf_file_is_outlined_from_its_head(tmp_path):
    file = write_gguf(tmp_path / "model.gguf")
    prepare(file, tmp_path / "model")
    assert unchecked(outline(str(file))[0]) == unchecked(model_folder.load(tmp_path / "model"))


def test_weights_that_are_stored_in_fewer_bits_are_outlined_as_prepare_dequantises_them(tmp_path):
    source = checkpoint(tmp_path / "source", "Llama 2")
    page = json.loads((source / "config.json").read_text())
    page |= {"dtype": "float16", "quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]}}
    (tmp_path / "config.json").write_text(json.dumps(page))
    assert outline(str(tmp_path / "config.json"))[0].dtype == "float16"


@pytest.mark.parametrize(
    ("page", "error", "says"),
    [
        ('{"model_type": "llama", "auto_map"', ModelDataError, "config.json"),
        ('{"model_type": "nothing_known"}', UnsupportedModel, "not known to the installed transformers"),
        ("{}", ModelDataError, "names no"),
    ],
)
def test_a_config_that_is_none_is_refused_by_name(tmp_path, page, error, says):
    (tmp_path / "config.json").write_text(page)
    with pytest.raises(error, match=says):
        outline(str(tmp_path / "config.json"))


def test_what_is_not_there_or_no_model_is_said(tmp_path):
    with pytest.raises(NoSuchModel, match="neither a file, nor a folder, nor a hub id"):
        outline(str(tmp_path / "nothing"))
    with pytest.raises(NoSuchModel):
        outline(str(tmp_path))
    prepare(checkpoint(tmp_path / "source"), tmp_path / "model")
    with pytest.raises(UsageError, match="model folder already"):
        outline(str(tmp_path / "model"), "float32")
