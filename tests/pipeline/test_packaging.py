"""What is handed out: a source archive, the wheel that is built from it, and both programs where that is installed."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
#: As `python -m build` does: it writes the archive's name.
SDIST = "import sys; from setuptools.build_meta import build_sdist; sys.stdout = sys.stderr; print(build_sdist(sys.argv[1]), file=sys.__stdout__)"
#: Not a part of what is handed out, or large.
LEFT = shutil.ignore_patterns(".*", "__pycache__", "*.egg-info", "build", "models", "shared", "bench-out", "node_modules")

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("setuptools") is None or importlib.util.find_spec("pip") is None, reason="setuptools and pip are not installed here"
)


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("source")
    shutil.copytree(ROOT, place / "tree", ignore=LEFT)
    built = subprocess.run([sys.executable, "-c", SDIST, str(place)], cwd=place / "tree", capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr[-3000:]
    return place / built.stdout.strip().splitlines()[-1]


@pytest.fixture(scope="module")
def installed(archive: Path) -> Path:
    """A folder with what the wheel puts there, and nothing that it depends on."""
    place = archive.parent / "installed"
    _pip("wheel", "--no-build-isolation", "--wheel-dir", str(archive.parent), str(archive))
    _pip("install", "--target", str(place), *map(str, archive.parent.glob("*.whl")))
    return place


def _pip(*words: str) -> None:
    command = [sys.executable, "-m", "pip", words[0], "--no-deps", "--no-index", "--disable-pip-version-check", "-q", *words[1:]]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]


def test_the_source_archive_has_what_a_packager_needs(archive: Path) -> None:
    with tarfile.open(archive) as opened:
        names = {name.partition("/")[2] for name in opened.getnames()}
    needed = {"LICENSE", "README.md", "CHANGELOG.md", "Makefile", "constraints.txt", "config/potatod.service", "config/potatod.toml"}
    needed |= {"docs/OPERATIONS.md", "tests/daemons.py", "tests/unit/test_docs.py", "potatod/cli.py", "client/cli.py"}
    assert not needed - names
    assert not [name for name in names if name.endswith(".pyc")]


def test_every_module_is_installed(installed: Path) -> None:
    for package, folder in (("potatod", "potatod"), ("potato_client", "client")):
        ours = {path.relative_to(ROOT / folder) for pattern in ("*.py", "py.typed") for path in (ROOT / folder).rglob(pattern)}
        there = {path.relative_to(installed / package) for path in (installed / package).rglob("*") if path.suffix != ".pyc" and path.is_file()}
        assert there == ours


@pytest.mark.parametrize("program", ["potatod", "potato-client"])
def test_both_programs_run_where_they_are_installed(installed: Path, program: str, tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    done = subprocess.run([installed / "bin" / program, "--version"], env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"{program} ")
    where = "import potatod, potato_client; print(potatod.__file__, potato_client.__file__)"
    seen = subprocess.run([sys.executable, "-c", where], env=environment, cwd=tmp_path, capture_output=True, text=True, check=True).stdout.split()
    assert all(Path(file).is_relative_to(installed) for file in seen)
