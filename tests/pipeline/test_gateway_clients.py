"""docs/CLIENTS.md, run: what it shows of each tool, by that tool as it is.

`make test` installs those for Python into an environment of their own, `make test-clients` that for node too, which needs npm. Where one is not
installed its test is skipped.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from .gateway_harness import House

README = (Path(__file__).parents[2] / "README.md").read_text()
TEXT = (Path(__file__).parents[2] / "docs" / "CLIENTS.md").read_text()
#: A folder with bin/python, bin/llm and node_modules.
CLIENTS = Path(__file__).parents[2] / ".venv-clients"
#: Everything shown asks one of these, and the model says it over and over.
ECHO = re.compile(r"(Why is the sky blue\?|Tell me a long story\.|What is \{n\} squared\?)")


def blocks(title: str, language: str) -> list[str]:
    section = TEXT.split(f"\n## {title}\n")[1].split("\n## ")[0]
    return re.findall(rf"```{language}\n(.*?)```", section, re.DOTALL)


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    made = House(tmp_path_factory.mktemp("house"), max_sequences=8)
    made.front.engine_up()
    yield made
    made.close()


def run(house: House, place: Path, *command: str, text: str = "") -> str:
    """What it prints, to a daemon whose model is called otherwise than in the page."""
    home = {"HOME": str(place), "XDG_CONFIG_HOME": str(place), "LLM_USER_PATH": str(place / "llm")}
    environment = {**os.environ, **home, "OPENAI_BASE_URL": f"{house.gateway.url}/v1", "OPENAI_API_KEY": house.gateway.token, "NO_COLOR": "1"}
    done = subprocess.run(command, input=text, env=environment, cwd=place, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def asked(house: House, text: str) -> str:
    """The same for our model, which answers what ends with a bar."""
    text = ECHO.sub(r"\1|", text)
    return text.replace("http://127.0.0.1:8089", house.gateway.url).replace('"openai/llama"', '"openai/model"').replace('"llama"', '"model"')


def said(question: str) -> str:
    return (question * 64)[:64]


@pytest.mark.parametrize(("number", "question"), list(enumerate(("Why is the sky blue?", "Tell me a long story.", "Tell me a long story."))))
def test_openai_for_python(house: House, tmp_path: Path, number: int, question: str) -> None:
    printed = run(house, tmp_path, sys.executable, "-c", asked(house, blocks("openai (Python)", "python")[number]))
    assert printed.strip() == said(question).strip()


def test_openai_for_python_asks_a_batch(house: House, tmp_path: Path) -> None:
    printed = run(house, tmp_path, sys.executable, "-c", asked(house, blocks("openai (Python)", "python")[3]))
    assert sorted(printed.splitlines()) == [f"question {n} {said(f'What is {n} squared?')}" for n in range(3)]


def test_openai_for_python_reads_a_form(house: House, tmp_path: Path) -> None:
    printed = run(house, tmp_path, sys.executable, "-c", asked(house, blocks("openai (Python)", "python")[4]))
    assert re.fullmatch(r"name=['\"].*['\"] legs=[0-8]", printed.strip())


def test_openai_as_the_readme_shows_it(house: House, tmp_path: Path) -> None:
    (shown,) = [block for block in re.findall(r"```python\n(.*?)```", README, re.DOTALL) if "from openai" in block]
    printed = run(house, tmp_path, sys.executable, "-c", asked(house, shown).replace('"qwen2.5-7b-instruct"', '"model", max_tokens=64'))
    assert printed.strip() == said("Why is the sky blue?").strip()


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_curl(house: House, tmp_path: Path) -> None:
    streamed, submitted = (run(house, tmp_path, "bash", "-c", asked(house, block)) for block in blocks("curl", "sh"))
    assert "".join(re.findall(r'"content":"(.*?)"', streamed)) == said("Why is the sky blue?")
    assert streamed.rstrip().endswith("data: [DONE]")
    assert '"jobs":[' in submitted


needs_clients = pytest.mark.skipif(not (CLIENTS / ".installed").exists(), reason="`make test` installs these")


@needs_clients
@pytest.mark.parametrize("title", ["litellm", "LangChain"])
def test_libraries_for_python(house: House, tmp_path: Path, title: str) -> None:
    assert run(house, tmp_path, f"{CLIENTS}/bin/python", "-c", asked(house, blocks(title, "python")[0])).strip() == said("Why is the sky blue?").strip()


@needs_clients
def test_llm(house: House, tmp_path: Path) -> None:
    (tmp_path / "llm").mkdir()
    yaml = asked(house, blocks("llm", "yaml")[0]).replace("model_name: llama", "model_name: model")
    (tmp_path / "llm" / "extra-openai-models.yaml").write_text(yaml)
    lines = asked(house, blocks("llm", "sh")[0]).replace("llm ", f"{CLIENTS}/bin/llm ")
    assert run(house, tmp_path, "bash", "-ec", lines).strip() == said("Why is the sky blue?").strip()


@pytest.mark.skipif(not (CLIENTS / "node_modules" / "openai").exists(), reason="`make test-clients` installs it")
def test_openai_for_node(house: House, tmp_path: Path) -> None:
    (tmp_path / "node_modules").symlink_to(CLIENTS / "node_modules")
    (tmp_path / "ask.mjs").write_text(asked(house, blocks("openai (npm)", "js")[0]).replace('"llama"', '"model"'))
    assert run(house, tmp_path, "node", "ask.mjs") == said("Why is the sky blue?")
