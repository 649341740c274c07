"""[[models]]: several models in one configuration."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from potatod import config_page
from potatod.config import Key, Settings, keys
from potatod.errors import ConfigError
from potatod.sections import OneOfModels
from potatod.sources import gather

TWO = '[[models]]\npath = "/a"\n\n[[models]]\npath = "b"\nmirrors = ["/m/b"]\ndraft = "self:int4"\n'


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "potatod.toml"


def key(label: str) -> Key:
    return next(each for each in keys() if each.label == label)


def test_each_entry_has_its_own_path_mirrors_and_draft_and_shares_all_else(file: Path) -> None:
    file.write_text('[speculation]\ndraft = "self:int8"\n[front]\nmax_queue = 7\n' + TWO)
    settings = gather(file, {}, {}).settings
    assert settings.models == (OneOfModels("/a"), OneOfModels(str(file.parent / "b"), ("/m/b",), "self:int4"))
    first, second = settings.each()
    assert (first.model.path, first.model.mirrors, first.speculation.draft) == ("/a", (), "self:int8")
    assert (second.model.path, second.model.mirrors, second.speculation.draft) == (str(file.parent / "b"), ("/m/b",), "self:int4")
    assert {each.front.max_queue for each in settings.each()} == {7}
    assert not first.models


def test_one_model_is_itself() -> None:
    settings = gather(None, {}, {key("[model] path"): "/m"}).settings
    assert settings.each() == (settings,)


def test_they_survive_the_way_to_the_stages(file: Path) -> None:
    file.write_text(TWO)
    settings = gather(file, {}, {}).settings
    assert Settings.from_json(settings.to_json()) == settings


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ('[[models]]\nmirrors = ["/m"]\n', "[[models]] number 1: path is missing, the model folder"),
        ('[[models]]\npath = "/a"\n[[models]]\npath = 3\n', "[[models]] number 2: [model] path must be the path of a folder, not 3"),
        ('[[models]]\npath = "/a"\ndraft = "self:int2"\n', "[[models]] number 1: [speculation] draft must be"),
        ('[[models]]\npaht = "/a"\n', '[[models]] number 1: unknown key "paht"; did you mean "path"?'),
        ('[models]\npath = "/a"\n', "write [[models]], with two brackets, before the keys of each model"),
        ('models = ["/a"]\n', "write [[models]], with two brackets, before the keys of each model"),
        (TWO + '[model]\npath = "/c"\n', "line 9: give [model] path for one model, or [[models]] for several, and not both"),
    ],
)
def test_what_is_wrong_is_said_with_where(file: Path, text: str, what: str) -> None:
    file.write_text(text)
    with pytest.raises(ConfigError) as error:
        gather(file, {}, {})
    assert str(file) in str(error.value)
    assert what in str(error.value)


def test_a_flag_a_variable_or_the_command_line_go_over_the_file(file: Path) -> None:
    file.write_text(TWO)
    flagged = gather(file, {}, {key("[model] path"): "/c"}).settings
    assert (flagged.model.path, flagged.models) == ("/c", ())
    by_variable = gather(file, {"POTATO_MODEL__PATH": "/d"}, {}).settings
    assert (by_variable.model.path, by_variable.models) == ("/d", ())
    named = gather(file, {"POTATO_MODEL__PATH": "/d"}, {}, ["/e", "/f"]).settings
    assert (named.model.path, named.models) == ("", (OneOfModels("/e"), OneOfModels("/f")))


def test_config_shows_them_with_their_origin(file: Path) -> None:
    file.write_text(TWO)
    gathered = gather(file, {}, {})
    shown = config_page.effective(gathered)
    assert f"[[models]]  # {file}" in shown
    file.write_text(shown)
    assert gather(file, {}, {}).settings == gathered.settings
    page = json.loads(config_page.effective_json(gathered))["models"]
    assert page["from"] == str(file)
    assert page["value"][1] == {"path": str(file.parent / "b"), "mirrors": ["/m/b"], "draft": "self:int4"}


def test_a_flag_for_the_draft_goes_over_every_entry(file: Path) -> None:
    file.write_text(TWO)
    settings = gather(file, {}, {key("[speculation] draft"): ""}).settings
    assert [each.speculation.draft for each in settings.each()] == ["", ""]
    file.write_text('[speculation]\ndraft = "self:int8"\n' + TWO)
    assert [each.speculation.draft for each in gather(file, {}, {}).settings.each()] == ["self:int8", "self:int4"]


def test_mirrors_of_one_model_are_not_forgotten_in_silence(file: Path) -> None:
    file.write_text('[model]\nmirrors = ["/m"]\n' + TWO)
    with pytest.raises(ConfigError, match=r"line 2: \[model\] mirrors are of one model"):
        gather(file, {}, {})
    file.write_text(TWO)
    with pytest.raises(ConfigError, match=r"POTATO_MODEL__MIRRORS: \[model\] mirrors are of one model"):
        gather(file, {"POTATO_MODEL__MIRRORS": "/m"}, {})


def test_the_settings_of_a_folder_are_those_of_its_entry(file: Path) -> None:
    file.write_text(TWO)
    settings = gather(file, {}, {}).settings
    assert settings.of(file.parent / "b").model.mirrors == ("/m/b",)
    assert settings.of(Path("/c")) == settings
