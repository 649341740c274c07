"""`potatod pull` against a hub of our own: the same bytes as `prepare`, little disk, little traffic however often it is killed."""

from __future__ import annotations

import itertools
import random
import threading
from pathlib import Path
from typing import NamedTuple

import huggingface_hub
import pytest
from factories import checkpoint, contents
from hubs import COMMIT, Hub
from killed import killed_at_random_moments

from potatod import model_folder
from potatod.store import staging
from potatod.store.prepare import prepare
from potatod.store.pull import pull

ID = "tiny/llama"


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """Six files, of which no layer needs more than two, and what a pull must leave where it is."""
    files = checkpoint(tmp_path_factory.mktemp("hub") / "files", tokenizer=True, shard_size="250KB")
    (files / "pytorch_model.bin").write_bytes(b"\x80\x04evil.")
    (files / "modeling_evil.py").write_text("raise SystemExit")
    assert len(list(files.glob("*.safetensors"))) == 6
    return files


@pytest.fixture(scope="module")
def whole(tmp_path_factory, source):
    """What `prepare` makes of it."""
    out = tmp_path_factory.mktemp("whole") / "out"
    prepare(source, out, band_bytes=1 << 13)
    return out


@pytest.fixture
def hub(source, monkeypatch):
    with Hub(source) as hub:
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", hub.endpoint)
        monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.endpoint + "/{repo_id}/resolve/{revision}/{filename}")
        yield hub


def shards(folder: Path) -> dict[str, bytes]:
    """All but the manifest, which says where the model is from."""
    found = contents(folder)
    found.pop("manifest.json")
    return found


def weights(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_size for path in folder.glob("*.safetensors")}


def test_the_folder_is_what_prepare_makes_and_says_where_it_is_from(tmp_path, hub, source, whole):
    assert pull(ID, tmp_path / "out", band_bytes=1 << 13) is True
    assert shards(tmp_path / "out") == shards(whole)
    ours, local = model_folder.load(tmp_path / "out"), model_folder.load(whole)
    assert (ours.shards, ours.files, ours.companions) == (local.shards, local.files, local.companions)
    assert {key: ours.provenance[key] for key in ("source", "revision", "dtype")} == {"source": ID, "revision": COMMIT, "dtype": "auto"}
    assert not hub.leaked
    for name, size in weights(source).items():  # the head of it once more
        assert size <= hub.sent[name] <= size + min(size, 128 << 10)
    assert not {path for _, path, _ in hub.asked if path.endswith((".bin", ".py"))}
    hub.forget()
    assert pull(ID, tmp_path / "out", band_bytes=1 << 13) is False
    assert not hub.weights_asked()


class Sampler(threading.Thread):
    """Looks at a folder all the time: most bytes in it, and most whole files of the source at once."""

    def __init__(self, folder: Path) -> None:
        super().__init__(daemon=True)
        self.folder, self.over = folder, threading.Event()
        self.most_bytes = self.most_files = 0

    def run(self) -> None:
        while not self.over.wait(0.002):
            found = {path: size for path in self.folder.rglob("*") if (size := size_of(path)) is not None and path.name != "state"}
            self.most_bytes = max(self.most_bytes, sum(found.values()))
            names = {path.name.removesuffix(".partial") for path in found if path.parent.name == ".source"}
            self.most_files = max(self.most_files, sum(name.endswith(".safetensors") for name in names))


def size_of(path: Path) -> int | None:
    try:
        return path.stat().st_size if path.is_file() else None
    except OSError:  # it has just gone
        return None


def test_the_disk_holds_the_folder_and_two_files_of_the_source_at_the_most(tmp_path, hub, source, whole):
    hub.behaviour.bytes_per_s = 4e6
    sampler, terms = Sampler(tmp_path / "out"), []
    sampler.start()
    pull(ID, tmp_path / "out", band_bytes=1 << 13, agree=lambda _repository, said, _config: terms.append(said))
    sampler.over.set()
    sampler.join()
    made, largest = sum(weights(whole).values()), max(weights(source).values())
    beside = sum(path.stat().st_size for folder in (source, whole) for path in folder.iterdir() if path.suffix != ".safetensors")
    assert sampler.most_files == 2
    assert sampler.most_bytes <= terms[0].peak_bytes + beside
    assert terms[0].peak_bytes <= made + 2 * largest < made + sum(weights(source).values())
    assert terms[0].download_bytes == sum(weights(source).values()) and terms[0].files == len(weights(source))


#: As the command does, but sleeps after each shard, so that a kill can land anywhere.
SLOW = (
    "from potatod.store.pull import pull",
    "pull('tiny/llama', Path(sys.argv[1]), band_bytes=1 << 13, progress=lambda p, s: time.sleep(0.01))",
)


@pytest.mark.parametrize("seed", range(2))
def test_a_pull_killed_at_random_moments_ends_with_the_same_bytes_and_downloads_nothing_twice(tmp_path, hub, source, whole, monkeypatch, seed):
    monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
    hub.behaviour.bytes_per_s = 2e6
    out, files, looks = tmp_path / "out", weights(source), [Look(0, {}, False)]

    def look() -> None:
        assert not (out / "manifest.json").exists() or shards_there(out) == set(weights(whole))
        staged = out / ".source"
        came = {name: size_of(staged / name) or size_of(staged / f"{name}.partial") for name in files}
        done = {name for name, last in LAST_SHARD.items() if came[name] is None and last < len(shards_there(out))}
        sizes = {name: files[name] if name in done else size or 0 for name, size in came.items()}
        looks.append(Look(len(hub.asked), sizes, "heads" in staging.remembered(staged)))

    killed = killed_at_random_moments(*SLOW, out, chance=random.Random(seed), longest_s=0.6, look=look)
    assert killed > 3
    assert shards(out) == shards(whole)
    for last, following in itertools.pairwise([*looks, Look(len(hub.asked), {}, True)]):
        for _, path, asked in hub.asked[last.asked : following.asked]:
            name = path.split("/")[-1]
            if name in files and (last.heads or asked != f"bytes=0-{min(files[name], 128 << 10) - 1}"):
                assert int(asked.removeprefix("bytes=").split("-")[0]) >= last.came.get(name, 0), f"{name} {asked} after {last}"


class Look(NamedTuple):
    """At a pull that was killed."""

    #: so many requests before it
    asked: int
    #: bytes of each file; all where it is no longer needed
    came: dict[str, int]
    #: whether those of all files are known
    heads: bool


def shards_there(folder: Path) -> set[str]:
    return {path.name for path in folder.glob("*.safetensors")}


class Killed(Exception):
    pass


@pytest.mark.parametrize("shard", range(1, 8))
def test_interrupted_after_any_shard_only_files_of_the_others_are_downloaded(tmp_path, hub, source, whole, shard):
    left: set[str] = set()

    def stop(now, supply):
        if len(shards_there(tmp_path / "out")) == shard:
            left.update(path.name for path in (tmp_path / "out" / ".source").glob("*.safetensors"))
            raise Killed

    with pytest.raises(Killed):
        pull(ID, tmp_path / "out", band_bytes=1 << 13, progress=stop)
    hub.forget()
    again = []
    pull(ID, tmp_path / "out", band_bytes=1 << 13, agree=lambda *said: again.append(said))
    assert not again, "it was agreed to before"
    assert not [path for _, path, _ in hub.asked if path.startswith("/api/")], "the commit is known"
    done = {file for file, last in LAST_SHARD.items() if last < shard}
    assert not hub.weights_asked() & (done | left)
    assert shards(tmp_path / "out") == shards(whole)


#: By file, the last shard (the embedding is 0, the first layer 1) that is made of it; after the layers come head and norm.
LAST_SHARD = {f"model-{file:05}-of-00006.safetensors": last for file, last in ((1, 1), (2, 3), (3, 4), (4, 5), (5, 6), (6, 8))}


@pytest.mark.parametrize(("family", "options"), [("Mixtral", {"dtype": "int4"}), ("Gemma 2", {}), ("Qwen2", {"dtype": "float32,int8"})])
def test_shards_of_many_files_ties_and_other_dtypes_are_those_of_prepare(tmp_path, hub, monkeypatch, family, options):
    files = checkpoint(tmp_path / "files", family, "bfloat16", tokenizer=True, shard_size="100KB")
    hub.files = files
    prepare(files, tmp_path / "local", **options)
    pull(ID, tmp_path / "out", **options)
    assert shards(tmp_path / "out") == shards(tmp_path / "local")


def test_a_checkpoint_in_one_file_is_pulled_too(tmp_path, hub):
    hub.files = checkpoint(tmp_path / "files", "Llama 2", tokenizer=True)
    prepare(hub.files, tmp_path / "local")
    pull(ID, tmp_path / "out")
    assert shards(tmp_path / "out") == shards(tmp_path / "local")
    assert not (tmp_path / "out" / ".source").exists()
