"""`potatod list` and `potatod rm`: what is shown, what is removed, and what never is."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from factories import checkpoint

from potatod.cli import main
from potatod.store.prepare import prepare


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    place = tmp_path_factory.mktemp("collection")
    prepare(checkpoint(place / "source", tokenizer=True), place / "model", dtype="int8")
    return place / "model"


@pytest.fixture
def home(tmp_path, model, monkeypatch):
    monkeypatch.setenv("POTATO_HOME", str(tmp_path))
    models = tmp_path / "models"
    for name in ("whole", "cut", "half"):
        shutil.copytree(model, models / name)
    (models / "cut" / "layer.0002.safetensors").unlink()
    (models / "half" / "manifest.json").unlink()
    (models / "half" / ".prepare.journal").touch()
    (models / "notes").mkdir()
    (models / "notes" / "thesis.txt").write_text("years of work")
    return models


def test_what_is_there_is_listed_with_its_dtype_size_and_state(home, capsys):
    assert main(["list"]) == 0
    rows = [line.split("  ") for line in capsys.readouterr().out.splitlines()]
    assert [(row[0].strip(), row[-1]) for row in rows] == [("cut", "damaged"), ("half", "interrupted"), ("whole", "complete")]
    assert "int8 of float32" in rows[2][1]
    main(["list", "--json"])
    page = json.loads(capsys.readouterr().out)
    assert page["folder"] == str(home)
    whole = next(each for each in page["models"] if each["name"] == "whole")
    assert whole["size_bytes"] == sum(path.stat().st_size for path in (home / "whole").iterdir())


def test_an_empty_home_says_how_to_get_a_model(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("POTATO_HOME", str(tmp_path))
    assert main(["list"]) == 0
    shown = capsys.readouterr()
    assert shown.out == "" and "`potatod pull ID` gets one" in shown.err


def test_a_model_is_removed_when_that_is_agreed_to_and_nothing_else_is(home, capsys):
    assert main(["rm", "whole"]) == 64
    assert "whole (" in (said := capsys.readouterr().err) and said.endswith("run it with -y\n")
    assert (home / "whole").exists()
    assert main(["rm", "whole", "-y"]) == main(["rm", "half", "-y"]) == 0
    assert sorted(path.name for path in home.iterdir()) == ["cut", "notes"]


@pytest.mark.parametrize(("name", "code"), [("notes", 66), ("..", 66), ("gone", 66), ("models/whole", 64), ("", 66)])
def test_what_is_no_model_with_a_name_is_never_removed(home, name, code):
    before = sorted(home.rglob("*"))
    assert main(["rm", name, "-y"]) == code
    assert sorted(home.rglob("*")) == before


def test_a_model_that_somebody_has_open_stays(home, capsys):
    program = "import sys; file = open(sys.argv[1]); print('open', flush=True); sys.stdin.read()"
    shard = home / "whole" / "layer.0000.safetensors"
    with subprocess.Popen([sys.executable, "-c", program, str(shard)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as user:
        assert user.stdout is not None and user.stdout.readline() == "open\n"
        assert main(["rm", "whole", "-y"]) == 75
        assert f"process {user.pid} has files of {home / 'whole'} open" in capsys.readouterr().err
        assert user.stdin is not None
        user.stdin.close()
        user.wait()
    assert Path(shard).exists()
    assert main(["rm", "whole", "-y"]) == 0
