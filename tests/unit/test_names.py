"""Names of models: where they lie, and what a name means."""

from __future__ import annotations

from pathlib import Path

import pytest

from potatod import names

HOME = {"POTATO_HOME": "/potatoes"}


@pytest.mark.parametrize(("environment", "place"), [
    ({"POTATO_HOME": "/potatoes", "XDG_DATA_HOME": "/data"}, Path("/potatoes/models")),
    ({"XDG_DATA_HOME": "/data"}, Path("/data/potato/models")),
    ({"POTATO_HOME": "", "XDG_DATA_HOME": ""}, Path.home() / ".local/share/potato/models"),
    ({"POTATO_HOME": "~/p"}, Path.home() / "p/models"),
])  # fmt: skip
def test_models_lie_in_the_potato_home(environment, place):
    assert names.models(environment) == place


@pytest.mark.parametrize(("model_id", "dtype", "name"), [
    ("HuggingFaceTB/SmolLM2-135M-Instruct", "auto", "smollm2-135m-instruct"),
    ("HuggingFaceTB/SmolLM2-135M-Instruct", "int4", "smollm2-135m-instruct:int4"),
    ("a/b", "float32,*.down_proj.weight=int8", "b:float32-.down_proj.weight-int8"),
])  # fmt: skip
def test_a_name_is_the_last_part_of_the_id_and_the_dtype(model_id, dtype, name):
    assert names.name_of(model_id, dtype) == name


@pytest.mark.parametrize(("text", "means"), [
    ("smollm2:int4", "/potatoes/models/smollm2:int4"),
    ("SmolLM2:int4", "/potatoes/models/smollm2:int4"),
    ("Mine", "/potatoes/models/Mine"),
    ("unknown", "unknown"),
    ("here", "here"),
    ("./smollm2:int4", "./smollm2:int4"),
    ("org/smollm2:int4", "org/smollm2:int4"),
    ("..", ".."),
    ("", ""),
])  # fmt: skip
def test_a_name_means_its_folder_and_a_path_that_is_there_itself(text, means):
    there = {f"/potatoes/models/{name}" for name in ("smollm2:int4", "Mine", "here", "..")} | {"here"}
    assert names.folder_of(text, HOME, lambda path: str(path) in there) == means
