"""Where settings come from, and what is refused on the way."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path

import pytest

from potatod import config_page, places
from potatod.config import Key, Settings, keys
from potatod.errors import ConfigError
from potatod.sections import Front, Model, Run
from potatod.sizes import Percent
from potatod.sources import DEFAULT, Gathered, gather

KEYS = {f"{key.section}.{key.name}": key for key in keys()}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "cfg.toml"


def _flags(**texts: str) -> dict[Key, str]:
    return {KEYS[name.replace("__", ".")]: text for name, text in texts.items()}


def _refusal(file: Path | None = None, environment: dict[str, str] | None = None, **flags: str) -> str:
    with pytest.raises(ConfigError) as error:
        gather(file, environment or {}, _flags(**flags))
    return str(error.value)


def test_flag_goes_over_variable_over_file_over_default(file: Path) -> None:
    file.write_text('[pool]\nsize = "1GiB"\n[reader]\nin_flight = 2\n[front]\nmax_queue = 7\n')
    variables = {"POTATO_POOL__SIZE": "2GiB", "POTATO_READER__IN_FLIGHT": "3"}
    gathered = gather(file, variables, _flags(pool__size="50%"))
    assert gathered.settings.pool.size == Percent(50)
    assert gathered.settings.reader.in_flight == 3
    assert gathered.settings.front.max_queue == 7
    assert gathered.settings.front.max_sequences == 16
    assert gathered.origins["pool", "size"] == "flag --pool-size"
    assert gathered.origins["reader", "in_flight"] == "variable POTATO_READER__IN_FLIGHT"
    assert gathered.origins["front", "max_queue"] == f"{file}, line 6"
    assert gathered.origins["front", "max_sequences"] == DEFAULT


def test_nothing_given_is_the_default_tree() -> None:
    gathered = gather(None, {}, {})
    assert gathered.settings == Settings()
    assert set(gathered.origins.values()) == {DEFAULT}


def test_every_key_can_be_given_as_flag_as_variable_and_in_the_file(file: Path) -> None:
    page: dict[str, list[str]] = {}
    for key in keys():
        shown = key.example if key.unset else key.plain(key.default)
        page.setdefault(key.section, []).append(f"{key.name} = {config_page.toml(shown)}")
        text = ":".join(shown) if isinstance(shown, list) else config_page.toml(shown).strip('"')
        by_flag = gather(None, {}, {key: text})
        by_variable = gather(None, {key.variable: text}, {})
        assert by_flag.settings == by_variable.settings
        assert key.of(by_flag.settings) == key.parse(shown)
    file.write_text("\n".join(f"[{section}]\n" + "\n".join(lines) for section, lines in page.items()))
    gathered = gather(file, {}, {})
    for key in keys():
        assert key.of(gathered.settings) == key.parse(key.example if key.unset else key.plain(key.default))
        assert re.fullmatch(rf"{re.escape(str(file))}, line \d+", gathered.origins[key.section, key.name])


def test_text_of_a_variable_becomes_a_number_or_a_truth_value() -> None:
    variables = {"POTATO_POOL__PAGE_LOCK": "true", "POTATO_SAMPLING__TOP_P": "0.5", "POTATO_FRONT__MAX_QUEUE": "0"}
    settings = gather(None, variables, {}).settings
    assert (settings.pool.page_lock, settings.sampling.top_p, settings.front.max_queue) == (True, 0.5, 0)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('[pool]\nsise = "1GiB"\n', 'line 2: unknown key "sise" in [pool]; did you mean "size"?'),
        ("[pool]\nzzz = 1\n", 'line 2: unknown key "zzz" in [pool]; known are size, reserve, page_lock'),
        ("\n[pol]\nsize = 1\n", 'line 2: unknown section "pol"; did you mean "pool"?'),
        ("size = 1\n", 'line 1: unknown section "size"'),
        ("pool = 1\n", "line 1: write [pool] and below it its keys"),
        ("[[pool]]\nsize = 1\n", "write [pool] and below it its keys"),
        ('pool.sise = "1GiB"\n', 'line 1: unknown key "sise"'),
        (
            '[reader]\n# in_flight = 3\nin_flight = "many"  # at once\n',
            "line 3: [reader] in_flight must be a whole number",
        ),
        ('pool = {size = "x"}', '[pool] size "x" is not a size'),
        ("[pool\n", "is not TOML"),
        ("[pool]\nsize = 1\nsize = 2\n", "is not TOML"),
        ("[pool]\nsize = 2026-11-24\n", 'must be "auto", a size such as "4GiB"'),
        ("[pool.size]\nx = 1\n", "[pool] size must be"),
    ],
)
def test_a_mistake_in_the_file_is_told_with_its_line_and_what_is_known(file: Path, text: str, said: str) -> None:
    file.write_text(text)
    refusal = _refusal(file)
    assert str(file) in refusal
    assert said in refusal


def test_a_file_made_to_trouble_the_parser_is_refused_like_any_other(file: Path) -> None:
    for trouble in ("9" * 5000, "[" * 5000):
        file.write_text(f"[front]\nmax_queue = {trouble}")
        assert "is not TOML" in _refusal(file)


def test_a_bad_value_in_the_file_is_refused_even_where_a_flag_goes_over_it(file: Path) -> None:
    file.write_text('[pool]\nsize = "x"\n')
    assert "is not a size" in _refusal(file, pool__size="1GiB")


def test_an_unknown_variable_of_ours_is_refused_with_the_nearest() -> None:
    assert _refusal(environment={"POTATO_POOL__SIZ": "1"}) == (
        'variable POTATO_POOL__SIZ sets nothing that is known; did you mean "POTATO_POOL__SIZE"?'
    )


def test_variables_that_are_no_keys_are_left_alone() -> None:
    others = ("POTATO_SOCKET", "POTATO_HOME", "POTATO_DEBUG", "POTATO_TEST_A__B", "POOL__SIZE", "potato_pool__size")
    gathered = gather(None, dict.fromkeys(others, "x"), {})
    assert set(gathered.origins.values()) == {DEFAULT}


def test_a_bad_variable_or_flag_is_named() -> None:
    assert _refusal(environment={"POTATO_READER__IO": "fast"}).startswith(
        'variable POTATO_READER__IO: [reader] io must be "auto", "direct" or "buffered", not "fast"'
    )
    assert _refusal(reader__in_flight="1.5").startswith(
        "flag --reader-in-flight: [reader] in_flight must be a whole number"
    )


def test_a_file_that_is_not_there_or_not_text_is_told(file: Path, tmp_path: Path) -> None:
    assert _refusal(file) == f"there is no configuration file {file}"
    assert _refusal(tmp_path).startswith(f"cannot read the configuration file {tmp_path}: ")
    file.write_bytes(b"\xff\xfe")
    assert _refusal(file) == f"{file} is not UTF-8 text, which TOML is"


def test_relative_paths_are_meant_from_the_file_or_from_where_the_command_runs(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    file.write_text('[model]\npath = "m"\n')
    assert gather(file, {}, {}).settings.model.path == str(tmp_path / "m")
    assert gather(file, {}, _flags(model__path="m")).settings.model.path == str(elsewhere / "m")
    assert gather(None, {"POTATO_MODEL__PATH": "m"}, {}).settings.model.path == str(elsewhere / "m")


# the effective tree for people


def _gathered() -> Gathered:
    return gather(None, {"POTATO_SAMPLING__TOP_K": "40"}, _flags(pool__size="50%", model__path='/m/"quoted"'))


def test_the_effective_tree_is_a_file_that_gives_the_same_tree_again(file: Path) -> None:
    gathered = _gathered()
    file.write_text(config_page.effective(gathered))
    assert gather(file, {}, {}).settings == gathered.settings


def test_every_line_of_the_effective_tree_tells_its_origin() -> None:
    lines = config_page.effective(_gathered()).splitlines()
    assert 'size = "50%"        # flag --pool-size' in lines
    assert any(re.fullmatch(r"top_k = 40 +# variable POTATO_SAMPLING__TOP_K", line) for line in lines)
    assert any(re.fullmatch(r"#temperature = +# default", line) for line in lines)
    assert all(" # " in line for line in lines if line and not line.startswith("["))


def test_the_effective_tree_as_json_has_value_and_origin_of_every_key() -> None:
    page = json.loads(config_page.effective_json(_gathered()))
    assert page["pool"]["size"] == {"value": "50%", "from": "flag --pool-size"}
    assert page["sampling"]["temperature"] == {"value": None, "from": "default"}
    assert {(s, name) for s, entries in page.items() for name in entries} == {(k.section, k.name) for k in keys()}


def test_what_toml_writes_tomllib_reads() -> None:
    for value in ('a "b" \\ é\n\x7f', True, 3, 0.1, 1e-9, "auto"):
        assert tomllib.loads(f"x = {config_page.toml(value)}")["x"] == value


# places


def _places(tmp_path: Path, directory: Path | None = None, socket: Path | None = None) -> Settings:
    where = f"ipc://{socket or tmp_path / 'front.sock'}"
    return Settings(
        model=Model(path="/m"), front=Front(socket=where), run=Run(directory=str(directory or tmp_path / "run"))
    )


def test_places_of_our_own_or_that_can_be_made_are_fine(tmp_path: Path) -> None:
    places.check(_places(tmp_path))
    (tmp_path / "run").mkdir(mode=0o700)
    places.check(_places(tmp_path, socket=tmp_path / "deep" / "er" / "front.sock"))


@pytest.mark.parametrize(("mode", "said"), [(0o750, "can be entered by other users"), (0o701, "can be entered")])
def test_a_run_directory_that_others_may_enter_is_refused(tmp_path: Path, mode: int, said: str) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run").chmod(mode)
    with pytest.raises(ConfigError, match=rf"\[run\] directory .*{said}"):
        places.check(_places(tmp_path))


def test_a_socket_in_a_folder_that_others_may_write_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "open"
    folder.mkdir()
    folder.chmod(0o755)
    places.check(_places(tmp_path, socket=folder / "front.sock"))
    folder.chmod(0o1777)
    with pytest.raises(ConfigError, match=r"\[front\] socket, .* can be written by other users: chmod 700"):
        places.check(_places(tmp_path, socket=folder / "front.sock"))


def test_a_place_that_is_a_file_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    for settings, said in (
        (_places(tmp_path, directory=file), "is not a folder"),
        (_places(tmp_path, directory=file / "below"), "cannot be used: Not a directory"),
        (_places(tmp_path, socket=file), "is a file and not a socket"),
    ):
        with pytest.raises(ConfigError, match=said):
            places.check(settings)


def test_a_folder_of_another_user_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "run").mkdir(mode=0o700)
    monkeypatch.setattr("os.getuid", lambda: 4_000_000)
    with pytest.raises(ConfigError, match=r"\[run\] directory .* belongs to another user"):
        places.check(_places(tmp_path))


def test_a_folder_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"\[run\] directory /proc/sys/potato cannot be made: /proc/sys is not yours"):
        places.check(_places(tmp_path, directory=Path("/proc/sys/potato")))
