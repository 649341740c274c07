"""The manifest's checksums of config, tokenizer and chat template: who writes them, who compares them, and how a change is taken."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner
from factories import CHAT_TEMPLATE, checkpoint, contents, prepared_folder
from ggufs import write_gguf

from potatod import companions, drafts, identity, model_folder, served
from potatod import manifest as manifests
from potatod.config import build
from potatod.errors import EXIT_DATA, ModelDataError, TryAgain, UsageError
from potatod.store import commands, journal
from potatod.store import draft as drafting
from potatod.store.prepare import Progress, prepare
from potatod.store.upgrade import upgrade
from potatod.store.verify import Checked, accept, verify

#: As prepared_folder cuts.
BANDS = 1 << 13
TEMPLATE = "chat_template.jinja"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return prepared_folder(tmp_path_factory.mktemp("beside"), "Llama 2")


@pytest.fixture
def folder(made, tmp_path):
    return Path(shutil.copytree(made, tmp_path / "model"))


def damage(path: Path) -> None:
    """It still parses, and says something else."""
    text = path.read_text()
    path.write_text(text.replace("<|im_start|>", "<|im_stars|>", 1) if path.name == TEMPLATE else text.replace("1", "2", 1))
    assert path.read_text() != text


def of_before(folder: Path) -> None:
    """As a potatod made it that knew no such checksums."""
    page = json.loads((folder / model_folder.NAME).read_text())
    del page["companions"]
    (folder / model_folder.NAME).write_text(json.dumps(page, indent=1))


def test_prepare_writes_the_checksum_of_each(folder):
    recorded = model_folder.load(folder).companions
    assert recorded == companions.found(folder) and recorded.keys() == {*companions.NAMES}
    assert {path.name for path in folder.iterdir() if path.suffix != ".safetensors"} == {model_folder.NAME, *recorded}


def test_and_of_those_that_are_made_of_a_gguf_file(tmp_path):
    prepare(write_gguf(tmp_path / "model.gguf"), tmp_path / "out")
    assert model_folder.load(tmp_path / "out").companions == companions.found(tmp_path / "out") != {}


def test_what_changes_while_the_weights_are_made_does_not_get_a_checksum(tmp_path):
    out = tmp_path / "out"

    def progress(p: Progress) -> None:
        if p.layers_done == 2:
            damage(out / "tokenizer.json")

    source = checkpoint(tmp_path / "source", tokenizer=True)
    with pytest.raises(ModelDataError, match=r"tokenizer\.json is not as the manifest has it"):
        prepare(source, out, progress=progress)
    assert not (out / model_folder.NAME).exists()
    prepare(source, out)
    verify(out)


def test_a_draft_copy_has_its_own_and_is_refused_where_they_differ(folder):
    drafting.make(folder, folder, "int8")
    copy = drafts.named(folder, "int8")
    assert model_folder.load(copy).companions == companions.found(copy) != {}
    drafts.check(folder, copy)
    damage(copy / "config.json")
    with pytest.raises(ModelDataError, match=rf"{copy}/config\.json is not as .* --accept {copy}`"):
        drafts.check(folder, copy)


def test_no_copy_is_made_of_a_damaged_config(folder, tmp_path):
    damage(folder / "tokenizer.json")
    for make in (lambda: drafting.make(folder, folder, "int8"), lambda: prepare(folder, tmp_path / "other", dtype="int8")):
        with pytest.raises(ModelDataError, match=r"tokenizer\.json is not as the manifest has it"):
            make()


def test_an_upgrade_keeps_them_compares_them_and_writes_them_where_there_were_none(folder):
    new = contents(folder)
    for companions_of in (model_folder.load(folder).companions, None):
        old = dataclasses.replace(model_folder.load(folder), fingerprint="0" * 16, companions=companions_of)
        (folder / model_folder.NAME).write_text(manifests.dumps(old))
        upgrade(folder, band_bytes=BANDS)
        assert contents(folder) == new
    damage(folder / "generation_config.json")
    with pytest.raises(ModelDataError, match=r"generation_config\.json is not as the manifest has it"):
        upgrade(folder)


@pytest.mark.parametrize("name", companions.NAMES)
def test_each_that_is_damaged_keeps_a_daemon_from_starting_and_verify_names_it(folder, name):
    settings = build({("model", "path"): str(folder)})
    assert served.choose(settings)[0].manifest == model_folder.load(folder)
    damage(folder / name)
    with pytest.raises(ModelDataError, match=rf"{folder}/{name} is not as .* `potatod verify --accept {folder}`") as refused:
        served.choose(settings)
    assert refused.value.exit_code == EXIT_DATA
    with pytest.raises(ModelDataError, match=rf"{folder} is damaged: {name} is not as .* `potatod verify --accept {folder}`"):
        verify(folder)


def test_verify_names_them_and_shards_together_and_then_there_is_nothing_to_accept(folder):
    damage(folder / TEMPLATE)
    path = folder / "layer.0001.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(ModelDataError, match=rf"{TEMPLATE} is not as .*, layer 1 \(.*; prepare the model again$"):
        verify(folder)


def test_a_change_that_is_accepted_is_served_and_nothing_else_of_the_manifest_changes(folder, made):
    before = model_folder.load(folder)
    (folder / TEMPLATE).write_text("{{ 'mine' }}")
    assert accept(folder) == [TEMPLATE]
    after = model_folder.load(folder)
    assert dataclasses.replace(after, companions=before.companions) == before
    assert served.choose(build({("model", "path"): str(folder)}))[0].manifest == after
    verify(folder)
    assert identity.checksum_of(folder, after) == identity.checksum_of(made, before), "jobs go on: it is no matter of the template"
    assert accept(folder) == []
    (folder / TEMPLATE).write_text(CHAT_TEMPLATE)
    accept(folder)
    assert contents(folder) == contents(made)


def test_one_that_is_gone_or_new_can_be_accepted_too_but_not_that_there_is_no_config(folder):
    (folder / TEMPLATE).unlink()
    assert accept(folder) == [TEMPLATE]
    (folder / TEMPLATE).write_text("")
    with pytest.raises(ModelDataError, match=rf"{TEMPLATE} is not in the manifest: it was put there later"):
        served.choose(build({("model", "path"): str(folder)}))
    assert accept(folder) == [TEMPLATE]
    verify(folder)
    (folder / "config.json").unlink()
    with pytest.raises(ModelDataError, match=r"config\.json is missing"):
        accept(folder)
    assert "config.json" in (model_folder.load(folder).companions or {})


def test_a_damaged_shard_is_not_accepted(folder):
    path = folder / "layer.0001.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    assert accept(folder) == []
    with pytest.raises(ModelDataError, match="layer 1"):
        verify(folder)


def test_a_folder_of_before_is_served_as_it_is_and_can_be_given_checksums(folder, made):
    whole = identity.checksum_of(folder, model_folder.load(folder))
    of_before(folder)
    assert identity.checksum_of(folder, model_folder.load(folder)) == whole
    damage(folder / TEMPLATE)
    assert served.choose(build({("model", "path"): str(folder)}))[0].manifest.companions is None
    assert verify(folder) == Checked(verify(made).size_bytes, None)
    shutil.copy(made / TEMPLATE, folder / TEMPLATE)
    assert accept(folder) == [*companions.NAMES]
    assert contents(folder) == contents(made)


def test_what_verify_says_of_a_folder_of_before_and_which_options_go_together(folder):
    of_before(folder)
    said = CliRunner().invoke(commands.verify, [str(folder)])
    assert said.exit_code == 0 and f"were not checked; `potatod verify --accept {folder}`" in said.output
    accepted = CliRunner().invoke(commands.verify, ["--accept", str(folder)])
    assert accepted.exit_code == 0 and accepted.output == f"{folder}: {', '.join(companions.NAMES)} taken as now\n"
    assert "were not checked" not in CliRunner().invoke(commands.verify, [str(folder)]).output
    assert "nothing to do" in CliRunner().invoke(commands.verify, ["--accept", str(folder)]).output
    assert isinstance(CliRunner().invoke(commands.verify, ["--accept", "--repair", str(folder)]).exception, UsageError)


def test_nothing_is_accepted_while_something_is_made_there(folder):
    damage(folder / TEMPLATE)
    with journal.Journal(folder, "key", upgrading=True), pytest.raises(TryAgain, match=f"something is being made in {folder}"):
        accept(folder)


def test_prepare_does_not_call_a_changed_folder_finished_and_makes_it_anew_with_force(folder, made):
    source = made.parent / "source"
    assert prepare(source, folder, band_bytes=BANDS) is False
    damage(folder / TEMPLATE)
    with pytest.raises(UsageError, match=rf"is a damaged model folder \(.*{TEMPLATE} is not as .*\); --force makes it anew"):
        prepare(source, folder, band_bytes=BANDS)
    assert prepare(source, folder, band_bytes=BANDS, force=True) is True
    assert contents(folder) == contents(made)
