"""The settings tree: what it holds, how it travels, what it refuses."""

from __future__ import annotations

import dataclasses
import json
import re
import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from potato_client.question import Options
from potatod.config import Key, Settings, build, keys
from potatod.errors import ConfigError
from potatod.keys import Choice, Duration, Number, Plain, Share, ShareOfTime, Size, Whole
from potatod.sections import OneOfModels
from potatod.sizes import Auto, Percent

KEYS = {f"{key.section}.{key.name}": key for key in keys()}
ROOT = Path(__file__).resolve().parents[2]


def _values_of(key: Key) -> st.SearchStrategy[Plain]:
    """Everything that may be written for a key."""
    kind = key.kind
    if isinstance(kind, Whole):
        return st.integers(kind.low, kind.high)
    if isinstance(kind, Number):
        return st.floats(kind.low, kind.high, exclude_min=kind.above_low)
    if isinstance(kind, Choice):
        return st.sampled_from(kind.values)
    if isinstance(kind, Size):
        return st.integers(kind.low // kind.multiple, kind.high // kind.multiple).map(lambda n: n * kind.multiple)
    if isinstance(kind, Share):
        return st.one_of(st.just("auto"), st.integers(1, 1 << 59), st.integers(1, 100).map(lambda n: f"{n}%"))
    if isinstance(kind, ShareOfTime):
        return st.one_of(st.just("off"), st.integers(1, 100).map(lambda n: f"{n}%"))
    if isinstance(kind, Duration):
        return st.floats(kind.low_s, kind.high_s)
    names = st.text("abcdefghi-_é", min_size=1, max_size=12)
    if key.name == "device":
        return st.sampled_from(["auto", "cpu", "cuda", "cuda:3"])
    if key.name == "remote":
        return st.sampled_from(["", "tcp://0.0.0.0:7575", "tcp://[::1]:1", "tcp://host.example:65535"])
    if key.name == "listen":
        return st.sampled_from(["", "127.0.0.1:8089", "[::1]:0", "localhost:65535"])
    if key.name == "hosts":
        return st.lists(st.sampled_from(["potato.example.org", "potato"]), max_size=3)
    if key.name == "origins":
        return st.lists(st.sampled_from(["http://localhost:3000", "https://chat.example.org"]), max_size=3)
    if key.name == "mirrors":
        return st.lists(names.map(lambda name: f"/mnt/{name}"), max_size=3)
    return names.map(lambda name: f"ipc:///run/{name}" if key.name == "socket" else f"/run/{name}")


_trees = st.fixed_dictionaries({}, optional={(key.section, key.name): _values_of(key) for key in keys()}).map(
    lambda written: build({(s, n): KEYS[f"{s}.{n}"].parse(value) for (s, n), value in written.items()})
)


@given(_trees)
def test_a_tree_written_as_json_reads_back_equal(settings: Settings) -> None:
    assert Settings.from_json(settings.to_json()) == settings


def test_the_default_tree_reads_back_equal() -> None:
    assert Settings.from_json(Settings().to_json()) == Settings()


def test_a_page_that_is_not_complete_is_refused() -> None:
    page = json.loads(Settings().to_json())
    del page["pool"]["size"]
    for text in (json.dumps(page), "[]", "{", '{"pool": 3}'):
        with pytest.raises(ConfigError, match="not complete"):
            Settings.from_json(text)


def test_the_tree_is_frozen_and_slotted_all_the_way_down() -> None:
    settings = Settings()
    for place in (settings, *(getattr(settings, field.name) for field in dataclasses.fields(settings) if field.name != "models"), OneOfModels("/m")):
        assert not hasattr(place, "__dict__")
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(place, dataclasses.fields(place)[0].name, None)


def test_every_key_has_a_reason_and_says_what_is_allowed() -> None:
    for key in keys():
        assert key.reason.endswith("."), key.label
        assert key.kind.allowed, key.label
        assert bool(key.unset) == (key.example is not None), f"{key.label}: an unset key is shown by an example"


def test_every_default_is_allowed_where_there_is_one() -> None:
    for key in keys():
        assert key.parse(key.plain(key.default)) == key.default, key.label


def test_every_example_is_allowed() -> None:
    for key in keys():
        if key.example is not None:
            key.parse(key.example)


def test_no_two_keys_share_a_flag_or_a_variable() -> None:
    assert len({key.flag for key in keys()}) == len({key.variable for key in keys()}) == len(list(keys()))


def test_the_defaults_are_those_the_design_names() -> None:
    settings = Settings()
    assert (settings.pool.size, settings.pool.page_lock) == (Auto(), "auto")
    assert (settings.reader.io, settings.reader.in_flight, settings.reader.piece) == ("auto", 4, 8 << 20)
    assert (settings.worker.device, settings.worker.vram, settings.worker.threads) == ("auto", Auto(), 0)
    assert settings.worker.kernels == "invariant"
    assert (settings.front.max_sequences, settings.front.max_context, settings.front.max_queue) == (16, 0, 1000)
    assert (settings.run.restarts, settings.run.restart_window_s) == (5, 600.0)


def test_the_daemons_directory_lies_beside_the_default_socket() -> None:
    settings = Settings()
    assert Path(settings.front.socket.removeprefix("ipc://")).parent == Path(settings.run.directory)


def test_sampling_ranges_are_those_of_the_client_protocol() -> None:
    """Whatever [sampling] allows, a request may ask for, at the ends of every range too."""
    for key in keys():
        if key.section == "sampling":
            kind = key.kind
            assert isinstance(kind, Whole | Number)
            low = 1e-9 if isinstance(kind, Number) and kind.above_low else kind.low
            for value in (low, kind.high):
                Options(**{key.attribute: key.parse(value)})


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("pool.size", "4 apples", '[pool] size "4 apples" is not a size'),
        ("pool.size", "0", '[pool] size must be "auto", a size such as "4GiB", or a share of the RAM'),
        ("pool.size", "120%", "[pool] size a share lies above 0% and at most at 100%"),
        ("pool.size", 1.5, "not 1.5"),
        ("pool.page_lock", "yes", 'must be "auto", true or false, not "yes"'),
        ("pool.page_lock", 1, "not 1"),
        ("reader.in_flight", 0, "[reader] in_flight must be a whole number of reads from 1 to 64, not 0"),
        ("reader.in_flight", True, "not true"),
        ("reader.in_flight", "4", 'not "4"'),
        ("reader.in_flight", 4.0, "not 4.0"),
        ("reader.piece", "5000", "a multiple of 4KiB"),
        ("reader.piece", "1KiB", "up to 256MiB"),
        ("worker.device", "gpu", '"auto", "cpu", "cuda" or "xpu", one card of several such as "cuda:1", or "simulated", not "gpu"'),
        ("worker.device", "cuda:", "must be"),
        ("worker.kernels", "exact", '"invariant", "fast" or "reference", not "exact"'),
        ("sampling.temperature", -1, "a number from 0 to 100, not -1"),
        ("sampling.temperature", float("nan"), "not NaN"),
        ("sampling.temperature", True, "not true"),
        ("sampling.top_p", 0, "a number above 0 and at most 1, not 0"),
        ("sampling.max_tokens", 0, "a whole number of tokens from 1"),
        ("front.socket", "tcp://127.0.0.1:5555", "is refused"),
        ("gateway.listen", "8089", "must be"),
        ("gateway.listen", "127.0.0.1:99999", "must be"),
        ("gateway.listen", "http://127.0.0.1:8089", "must be"),
        ("gateway.hosts", ["potato:80"], "[gateway] hosts must be a list of host names"),
        ("gateway.hosts", "potato", "must be a list"),
        ("gateway.origins", ["localhost:3000"], "[gateway] origins must be a list of origins"),
        ("gateway.origins", ["http://localhost:3000/"], "must be"),
        ("front.socket", "/run/x.sock", 'must be "ipc://" and the path of a socket'),
        ("front.socket", "ipc://@abstract", "must be"),
        ("front.socket", "ipc://", "must be"),
        ("front.socket", "ipc:///run/", "must be"),
        ("front.socket", "ipc:///" + "x" * 107, "is a path of 108 bytes; the system takes 107"),
        ("front.socket", "ipc:///" + "é" * 54, "is a path of 109 bytes"),
        ("run.directory", "/" + "x" * 90, "is a path of 91 bytes; at most 87"),
        ("run.directory", "", "must be the path of a folder"),
        ("model.path", "a\0b", "must be the path of a folder"),
        ("model.path", "\udcff", "is not valid UTF-8"),
        ("model.path", "~nobody-of-that-name/x", "names a user who does not exist"),
        ("run.restart_window", "0s", 'a duration such as "10min", from 1s to 1d, not "0s"'),
        ("run.restart_window", "soon", "is not a duration"),
    ],
)
def test_a_value_that_is_not_allowed_is_told_with_key_value_and_what_is(name: str, value: object, said: str) -> None:
    with pytest.raises(ValueError, match=re.escape(said)) as error:
        KEYS[name].parse(value)
    assert str(error.value).startswith(KEYS[name].label)


@pytest.mark.slow
@given(
    st.sampled_from(list(KEYS.values())),
    st.recursive(
        st.one_of(st.text(), st.integers(), st.floats(), st.booleans(), st.datetimes(), st.just(10**400)),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    ),
)
def test_whatever_a_file_holds_a_key_takes_it_or_refuses_it_with_its_name(key: Key, value: object) -> None:
    try:
        taken = key.parse(value)
    except ValueError as error:
        assert str(error).startswith(f"{key.label} ")  # noqa: PT017  both ends are fine, each with its own claim
    else:
        assert key.parse(key.plain(taken)) == taken


def test_the_longest_socket_path_is_allowed() -> None:
    assert KEYS["front.socket"].parse("ipc:///" + "x" * 106) == "ipc:///" + "x" * 106


def test_paths_are_absolute_in_the_tree_and_home_is_expanded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/somebody")
    assert KEYS["model.path"].parse("models/m", Path("/etc/potato")) == "/etc/potato/models/m"
    assert KEYS["model.path"].parse("/models/m", Path("/etc/potato")) == "/models/m"
    assert KEYS["model.path"].parse("~/m", Path("/etc/potato")) == "/home/somebody/m"
    assert KEYS["front.socket"].parse("ipc://f.sock", Path("/run/p")) == "ipc:///run/p/f.sock"


def test_a_share_stays_symbolic_until_somebody_knows_what_it_is_a_share_of() -> None:
    assert build({("pool", "size"): KEYS["pool.size"].parse("50%")}).pool.size == Percent(50)


def test_the_shipped_file_is_what_the_code_prints() -> None:
    from potatod.config_page import commented_file

    assert (ROOT / "config" / "potatod.toml").read_text() == commented_file()


def test_the_shipped_file_sets_nothing_and_uncommented_it_sets_every_key_to_what_it_shows() -> None:
    text = (ROOT / "config" / "potatod.toml").read_text()
    assert not any(tomllib.loads(text).values())
    page = tomllib.loads(re.sub(r"^#(?=\w+ = )", "", text, flags=re.MULTILINE))
    assert {(s, name) for s, entries in page.items() for name in entries} == {(k.section, k.name) for k in keys()}
    for key in keys():
        shown = key.parse(page[key.section][key.name])
        assert shown == (key.parse(key.example) if key.unset else key.default), key.label
