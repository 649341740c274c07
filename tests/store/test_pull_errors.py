"""A hub that refuses, is too busy, cuts connections or sends other bytes: what comes of a pull then, and that it goes on when it is run again."""

from __future__ import annotations

import hashlib

import huggingface_hub
import pytest
from factories import checkpoint, contents
from hubs import Hub

from potatod.errors import DoesNotFit, ModelDataError, NoSuchModel, TryAgain, Unavailable, UsageError
from potatod.store import fetched, hub_files, shards, staging
from potatod.store.pull import pull

ID = "tiny/llama"
THIRD = "model-00003-of-00006.safetensors"


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return checkpoint(tmp_path_factory.mktemp("hub") / "files", tokenizer=True, shard_size="250KB")


@pytest.fixture(scope="module")
def whole(tmp_path_factory, source):
    """What a pull makes where nothing goes wrong."""
    with Hub(source) as hub, pytest.MonkeyPatch.context() as patch:
        patched(patch, hub)
        pull(ID, tmp_path_factory.mktemp("whole") / "out")
    return contents(next(tmp_path_factory.getbasetemp().glob("whole*/out")))


@pytest.fixture
def waits(monkeypatch):
    """Seconds that were waited for, without waiting for them."""
    found: list[float] = []
    monkeypatch.setattr(hub_files.time, "sleep", lambda seconds: found.append(seconds) if seconds >= 1 else None)
    return found


@pytest.fixture
def hub(source, monkeypatch):
    with Hub(source) as hub:
        patched(monkeypatch, hub)
        yield hub


def patched(patch, hub):
    patch.setattr(huggingface_hub.constants, "ENDPOINT", hub.endpoint)
    patch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.endpoint + "/{repo_id}/resolve/{revision}/{filename}")


def test_connections_that_break_go_on_where_they_broke(tmp_path, hub, waits, whole, source):
    hub.behaviour.cuts = {THIRD: [5000, 3000, 70000]}
    pull(ID, tmp_path / "out")
    assert contents(tmp_path / "out") == whole
    size = (source / THIRD).stat().st_size
    assert hub.sent[THIRD] <= size + min(size, 128 << 10), "nothing comes twice"
    assert waits


def test_a_storage_without_ranges_is_read_from_the_start(tmp_path, hub, waits, whole):
    hub.behaviour.ranges = False
    hub.behaviour.cuts = {THIRD: [150000, 200000]}
    pull(ID, tmp_path / "out")
    assert contents(tmp_path / "out") == whole


def test_connections_that_break_without_a_byte_end_it_in_a_sentence_and_the_next_run_goes_on(tmp_path, hub, waits, whole):
    def cut(_repository, _terms, _config):
        hub.behaviour.cuts = {THIRD: [0] * 9}

    with pytest.raises(Unavailable, match=rf"cannot download {THIRD} of tiny/llama: .*; run the same command again, it goes on where it stopped"):
        pull(ID, tmp_path / "out", agree=cut)
    assert waits == [1, 2, 4, 8, 8]
    hub.behaviour.cuts = {}
    hub.forget()
    pull(ID, tmp_path / "out")
    assert contents(tmp_path / "out") == whole
    assert "model-00001-of-00006.safetensors" not in hub.weights_asked()


@pytest.mark.parametrize("code", [429, 500, 503])
def test_a_busy_hub_is_waited_for_as_long_as_it_says(tmp_path, hub, waits, whole, code):
    hub.behaviour.error_headers = {"Retry-After": "7"}
    hub.behaviour.codes = {THIRD: [code, code], "/api/models/tiny/llama": [code]}
    pull(ID, tmp_path / "out")
    assert waits == [8, 8, 8]  # a second more than it says
    assert contents(tmp_path / "out") == whole


@pytest.mark.parametrize(("code", "why"), [(429, "the hub takes no more requests from here for a while"), (503, "the hub is out of order")])
def test_a_hub_that_stays_busy_is_said_and_the_next_run_goes_on(tmp_path, hub, waits, whole, code, why):
    def busy(_repository, _terms, _config):
        hub.behaviour.codes = {THIRD: [code] * 9}

    with pytest.raises(Unavailable, match=rf"cannot download tiny/llama: {why} \({code}\); try again, it goes on where it stopped"):
        pull(ID, tmp_path / "out", agree=busy)
    hub.behaviour.codes = {}
    pull(ID, tmp_path / "out")
    assert contents(tmp_path / "out") == whole


def test_a_file_that_comes_wrong_is_downloaded_once_more(tmp_path, hub, whole, source):
    hub.behaviour.damages = {THIRD: 2}  # its head is asked for first
    pull(ID, tmp_path / "out")
    assert contents(tmp_path / "out") == whole
    assert hub.sent[THIRD] > 2 * (source / THIRD).stat().st_size


def test_a_file_that_comes_wrong_twice_is_refused_and_nothing_of_it_stays(tmp_path, hub, source):
    hub.behaviour.damages = {THIRD: 9}
    with pytest.raises(ModelDataError, match=f"{THIRD} of tiny/llama came twice with another SHA-256") as error:
        pull(ID, tmp_path / "out")
    assert hashlib.sha256((source / THIRD).read_bytes()).hexdigest() in str(error.value)
    there = tmp_path / "out" / ".source" / THIRD
    assert not there.exists() and hub_files.partial_of(there).stat().st_size == 0


def test_a_part_of_a_file_that_was_damaged_here_is_noticed(tmp_path, hub, whole, source):
    partial = hub_files.partial_of(tmp_path / "out" / ".source" / THIRD)

    def damage(_repository, _terms, _config):
        partial.write_bytes(b"x" + (source / THIRD).read_bytes()[1:100_000])

    pull(ID, tmp_path / "out", agree=damage)
    assert contents(tmp_path / "out") == whole


def test_gated_models_name_the_page_of_their_licence_and_tokens_are_sent_to_the_hub_alone(tmp_path, hub, monkeypatch, whole):
    hub.behaviour.token, hub.behaviour.gated = "hf_right", True
    with pytest.raises(NoSuchModel, match=rf"tiny/llama is gated: accept its licence at {hub.endpoint}/tiny/llama"):
        pull(ID, tmp_path / "out")
    hub.behaviour.gated = False
    with pytest.raises(NoSuchModel, match=rf"\(401\): see {hub.endpoint}/tiny/llama, and log in"):
        pull(ID, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    monkeypatch.setenv("HF_TOKEN", "hf_right")
    pull(ID, tmp_path / "out")
    assert contents(tmp_path / "out") == whole
    assert not hub.leaked


@pytest.mark.parametrize(("model_id", "revision", "sentence"), [
    ("tiny/nothing", None, "there is no model tiny/nothing at the hub"),
    (ID, "nothing", "tiny/llama has no revision 'nothing'"),
])  # fmt: skip
def test_what_is_not_there_is_said_and_leaves_nothing(tmp_path, hub, model_id, revision, sentence):
    with pytest.raises(NoSuchModel, match=sentence):
        pull(model_id, tmp_path / "out", revision=revision)
    assert not (tmp_path / "out").exists()


def test_without_weights_in_safetensors_it_is_said(tmp_path, hub, source):
    hub.files = tmp_path / "files"
    hub.files.mkdir()
    (hub.files / "config.json").write_bytes((source / "config.json").read_bytes())
    (hub.files / "pytorch_model.bin").write_bytes(b"\x80\x04evil.")
    with pytest.raises(ModelDataError, match="pickle"):
        pull(ID, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_offline_is_said(tmp_path, hub, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(Unavailable, match="HF_HUB_OFFLINE is set"):
        pull(ID, tmp_path / "out")


def test_a_hub_that_is_not_there_is_said(tmp_path, monkeypatch, waits):
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(Unavailable, match=r"cannot download tiny/llama: .*; try again"):
        pull(ID, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_is_no_hub_is_said(tmp_path, hub, monkeypatch):
    hub.behaviour.card = {}
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", hub.endpoint + "/tiny/llama/resolve/main/config.json?")
    with pytest.raises(Unavailable, match="is not what a hub says"):
        pull(ID, tmp_path / "out")


def test_heads_that_are_damaged_are_refused_before_anything_is_agreed_to(tmp_path, hub, source):
    hub.files = tmp_path / "files"
    hub.files.mkdir()
    for path in source.iterdir():
        (hub.files / path.name).write_bytes(path.read_bytes())
    data = bytearray((source / THIRD).read_bytes())
    for damaged in (b"\xff" * 8 + data[8:], data[:8] + data[8:].replace(b"[0,", b"[9,", 1), data[:8] + b"[" + data[9:], bytes(3)):
        (hub.files / THIRD).write_bytes(damaged)
        with pytest.raises(ModelDataError, match=f"{THIRD} of tiny/llama"):
            pull(ID, tmp_path / "out", agree=lambda *_: pytest.fail("it was asked"))
        assert not (tmp_path / "out").exists()


def test_names_that_lead_elsewhere_or_are_ours_are_not_followed(tmp_path, hub, whole, source):
    hub.behaviour.lies = ("../../evil.json", "/tmp/evil.json", ".prepare.journal", ".hidden.json", "state", "consumed", "sub/config.json", "..")
    pull(ID, tmp_path / "out")
    assert contents(tmp_path / "out") == whole
    assert {path.split("/")[-1] for _, path, _ in hub.asked if "/resolve/" in path} <= {path.name for path in source.iterdir()}


def test_an_index_that_names_files_elsewhere_is_refused(tmp_path, hub, source):
    hub.files = tmp_path / "files"
    hub.files.mkdir()
    for path in source.iterdir():
        (hub.files / path.name).write_bytes(path.read_bytes())
    index = hub.files / "model.safetensors.index.json"
    index.write_text(index.read_text().replace(THIRD, f"../{THIRD}"))
    with pytest.raises(ModelDataError, match="which is not a safetensors file of the folder"):
        pull(ID, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_too_small_a_disk_is_said_before_weights_are_downloaded(tmp_path, hub, monkeypatch):
    monkeypatch.setattr(shards.shutil, "disk_usage", lambda _: type("usage", (), {"free": 17 << 20}))
    with pytest.raises(DoesNotFit, match=r"needs \d+ more bytes of disk and 17825792 are free: \d+ bytes .* missing"):
        pull(ID, tmp_path / "out", agree=lambda *_: pytest.fail("it was asked"))
    assert not (tmp_path / "out").exists()


def test_a_disk_that_fills_up_is_a_sentence_and_the_next_run_goes_on(tmp_path, hub, monkeypatch, whole):
    written: list[int] = []
    append = hub_files._Partial.append

    def full(partial, data):
        written.append(len(data))
        if sum(written) > 700_000:
            with partial._explained():
                raise OSError(28, "No space left on device")
        append(partial, data)

    monkeypatch.setattr(hub_files._Partial, "append", full)
    with pytest.raises(DoesNotFit, match="disk is full while writing"):
        pull(ID, tmp_path / "out")
    monkeypatch.setattr(hub_files._Partial, "append", append)
    pull(ID, tmp_path / "out")
    assert contents(tmp_path / "out") == whole


def test_what_is_not_agreed_to_leaves_nothing(tmp_path, hub):
    class Declined(Exception):
        pass

    def no(_repository, _terms, _config):
        raise Declined

    with pytest.raises(Declined):
        pull(ID, tmp_path / "out", agree=no)
    assert not (tmp_path / "out").exists() and not {name for name in hub.sent if hub.sent[name] > 140_000}


def test_two_pulls_into_one_folder_do_not_meet(tmp_path, hub):
    with staging.held(tmp_path / "out"), pytest.raises(TryAgain, match="another"):
        pull(ID, tmp_path / "out")


def test_a_folder_with_other_things_in_it_is_not_touched(tmp_path, hub):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("years of work")
    with pytest.raises(UsageError, match="other things"):
        pull(ID, tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["thesis.txt"]


def test_what_has_to_see_all_weights_first_is_refused(tmp_path, hub):
    with pytest.raises(UsageError, match="potatod prepare tiny/llama"):
        pull(ID, tmp_path / "out", dtype="keep")


def test_another_header_than_was_planned_with_is_refused(tmp_path, hub, monkeypatch):
    monkeypatch.setattr(fetched, "head_of", lambda path: ({}, 0))
    with pytest.raises(ModelDataError, match="another header"):
        pull(ID, tmp_path / "out")
    assert not list((tmp_path / "out" / ".source").glob("model-*.safetensors"))
