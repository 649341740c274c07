"""`potatod plan`: what it is made of, and what it says."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from potatod import cli, draft_forecast, outline, plan_grid, plan_page, planning, rates
from potatod import manifest as manifests
from potatod.config import Settings
from potatod.errors import DoesNotFit, UnsupportedModel
from potatod.kv_layout import KvGroup, KvLayout
from potatod.outline import Outline
from potatod.planning import Machine
from potatod.rates import Computing

from .test_plan import model

#: 28 layers of 84 MiB and a head of 120 MiB.
MIB = 256
MODEL = model([[2 * MIB, 2 * MIB, *[26 * MIB] * 3 + [2 * MIB]]] * 28, [30 * MIB] * 4)
HERE = Computing(((1, 10e9), (16, 8e9)), 0.0005, None, "cpu")
WEIGHTS = sum(part.length for shard in MODEL.shards for part in shard.parts)


@pytest.fixture(autouse=True)
def known(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every source is MODEL; ten gigabytes a second are computed with, and half of one is read."""
    for name, value in {"architecture": "LlamaForCausalLM", "dtype": "bfloat16", "layers": 28, "files": {"x": WEIGHTS}}.items():
        monkeypatch.setattr(MODEL, name, value, raising=False)
    needs = Outline(MODEL, kv=KvLayout((KvGroup(None, 28_672),)), max_positions=4096, together="nothing", worker_bytes=300_000_000)
    monkeypatch.setattr(outline, "of", lambda *_: needs)
    monkeypatch.setattr(rates, "compute", lambda *_, **__: HERE)
    monkeypatch.setattr(rates, "disk", lambda *_, **__: 5e8)


def test_a_given_disk_is_taken_and_a_model_folder_s_own_is_measured(tmp_path):
    assert planning.make("m", Settings(), Machine(ram=2_500_000_000, disk=2e9)).disk_is == "given"
    (tmp_path / "manifest.json").touch()
    planned = planning.make(str(tmp_path), Settings(), Machine(ram=2_500_000_000))
    assert (planned.disk_is, planned.outlooks[0].disk_bytes_per_s) == ("measured", 5e8)


def test_where_no_disk_is_known_several_are_supposed():
    planned = planning.make("m", Settings(), Machine(ram=2_500_000_000))
    assert planned.disk_is == "supposed"
    assert [outlook.disk_bytes_per_s for outlook in planned.outlooks] == list(planning.DISKS)


def test_what_streams_is_read_for_every_sweep_and_shared_by_the_sequences_in_it():
    planned = planning.make("m", Settings(), Machine(ram=2_500_000_000, disk=5e8))
    one, many = planned.outlooks[0].forecasts[:2]
    assert 0 < planned.plan.streamed_bytes < WEIGHTS
    assert one.token_s == one.disk_s == planned.plan.streamed_bytes / 5e8
    assert many.rows == Settings().front.max_sequences == 16
    assert many.token_s == max(one.token_s, many.compute_s) / 16


def test_advice_names_what_saves_most_first_and_nothing_that_saves_nothing():
    planned = planning.make("m", Settings(), Machine(ram=2_500_000_000, disk=5e8))
    now = planned.outlooks[0].forecasts[0].token_s
    assert [advice.token_s for advice in planned.advice] == sorted(advice.token_s for advice in planned.advice)
    assert all(advice.token_s < now for advice in planned.advice)
    assert "so that nothing streams" in planned.advice[0].what
    assert planned.advice[0].token_s == planned.outlooks[0].forecasts[0].compute_s
    assert planning.make("m", Settings(), Machine(ram=8_000_000_000, disk=5e8)).advice == ()


def test_advice_keeps_the_context_that_was_planned():
    """What more RAM would bring if KV took its share of it is another question."""
    planned = planning.make("m", Settings(), Machine(ram=1_100_000_000, disk=5e8))
    assert planned.room.context < 4096
    assert planned.advice[0].token_s == planned.outlooks[0].forecasts[0].compute_s


def test_where_the_size_is_given_nothing_is_left_alone(monkeypatch):
    settings = dataclasses.replace(Settings(), pool=dataclasses.replace(Settings().pool, size=1 << 30))
    assert planning.make("m", settings, Machine(ram=2_500_000_000, disk=5e8)).room.reserve_bytes == 0


def test_a_described_card_holds_what_it_can_and_the_rest_is_uploaded_for_every_sweep():
    planned = planning.make("m", Settings(), Machine(ram=4_000_000_000, vram=2_000_000_000, disk=5e8, pcie=4e9))
    plan, one = planned.plan, planned.outlooks[0].forecasts[0]
    assert 0 < plan.card_bytes < 2_000_000_000 - 2 * plan.slot_bytes
    assert plan.slots == 2 and plan.uploaded_bytes == WEIGHTS - plan.card_bytes
    assert one.upload_s == plan.uploaded_bytes / 4e9
    assert one.bottleneck == "upload" and one.sweep_s == one.upload_s
    text = plan_page.as_text(planned)
    assert "are uploaded for every sweep" in text and "uploads to the card (uploading " in text
    assert "The card is supposed to be a modest one, and 4.0GB/s to reach it" in text
    assert planned.advice[0].what == "4.3GB more memory of the card"


def test_a_card_with_room_for_one_layer_says_what_a_second_slot_would_bring():
    kv = dataclasses.replace(Settings(), front=dataclasses.replace(Settings().front, max_context=256, max_sequences=1))
    planned = planning.make("m", kv, Machine(ram=4_000_000_000, vram=400_000_000, disk=5e9, pcie=4e9))
    assert planned.plan.slots == 1
    one = planned.outlooks[0].forecasts[0]
    assert one.sweep_s == one.upload_s + one.compute_s, "they take turns"
    assert any("for a second slot" in advice.what for advice in planned.advice)


def test_a_card_here_is_asked_for_its_free_memory(monkeypatch):
    monkeypatch.setattr(rates, "compute", lambda *_, **__: Computing(((1, 1e12),), 0.0, 20e9, "cuda:0"))
    monkeypatch.setattr("potatod.card.free_bytes", lambda device: {"cuda:0": 6 << 30}[device])
    planned = planning.make("m", Settings(), Machine(ram=2_500_000_000, disk=5e8))
    assert planned.vram == 6 << 30 and planned.plan.slots == 0, "it holds everything"
    assert planned.outlooks[0].forecasts[0].upload_s == 0


def test_where_the_pool_cannot_be_page_locked_uploads_and_computing_take_turns(monkeypatch):
    monkeypatch.setattr(rates, "compute", lambda *_, **__: Computing(((1, 1e12),), 0.0, 20e9, "cuda:0", overlaps=False))
    monkeypatch.setattr("potatod.card.free_bytes", lambda device: 2 << 30)
    planned = planning.make("m", Settings(), Machine(ram=4_000_000_000, disk=5e10))
    one = planned.outlooks[0].forecasts[0]
    assert planned.plan.slots == 2 and one.upload_s > 0
    assert one.sweep_s == one.upload_s + one.compute_s
    assert ", one after the other)" in plan_page.as_text(planned)


def test_more_sequences_are_forecast_with_the_memory_that_they_are_computed_with(monkeypatch):
    monkeypatch.setattr("potatod.room.vocabulary_of", lambda _: 1_000_000)
    planned = planning.make("m", Settings(), Machine(ram=2_500_000_000, disk=5e8))
    one, _, many = planned.outlooks[0].forecasts
    assert many.rows == 64
    assert many.disk_s > one.disk_s, "less stays resident"
    assert "64 sequences need [front] max_sequences = 64" in plan_page.as_text(planned)


def test_more_sequences_for_whose_logits_there_is_no_memory_are_not_forecast(monkeypatch):
    for vocabulary, rows in ((32_000, [1, 16, 64]), (2_000_000, [1, 16])):
        monkeypatch.setattr("potatod.room.vocabulary_of", lambda _, size=vocabulary: size)
        planned = planning.make("m", Settings(), Machine(ram=1_400_000_000, disk=5e8))
        assert [each.rows for each in planned.outlooks[0].forecasts] == rows


def test_a_grid_is_a_table_for_each_scheme(monkeypatch):
    planner = planning.Planner("m", Settings())
    text = plan_grid.as_text("m", [("bfloat16", planner)])
    lines = text.splitlines()
    assert lines[0].startswith("m in bfloat16, ")
    assert len(lines) == 2 + len(plan_grid.RAMS) * len(plan_grid.VRAMS) + 1
    assert lines[2].split()[:3] == ["16", "GiB", "none"]


def test_a_model_that_fits_waits_for_computing_and_reads_nothing():
    planned = planning.make("m", Settings(), Machine(ram=8_000_000_000, disk=5e8))
    assert planned.plan.streamed_bytes == 0
    assert "holds all weights" in plan_page.as_text(planned)


def test_what_does_not_fit_says_what_is_missing():
    with pytest.raises(DoesNotFit, match="more than the"):
        planning.make("m", Settings(), Machine(ram=500_000_000, disk=5e8))


def test_the_page_says_what_stays_what_streams_and_what_it_waits_for():
    text = plan_page.as_text(planning.make("m", Settings(), Machine(ram=2_500_000_000, disk=5e8)))
    lines = text.splitlines()
    assert lines[0].startswith("model   m: LlamaForCausalLM, bfloat16, 28 layers; ")
    assert lines[1].startswith("RAM     2.5GB: ") and "one text of 4096 tokens" in lines[1]
    assert "resident" in lines[2] and "are read for every sweep" in lines[2]
    assert "500MB/s" in text and "the disk (reading " in text
    assert "What would help one sequence most:" in text
    assert all(len(line) < 180 for line in lines)


def test_as_json_it_is_one_object_in_bytes_and_seconds():
    planned = planning.make("m", Settings(), Machine(ram=2_500_000_000, disk=5e8))
    page = json.loads(plan_page.as_json(planned))
    assert page["resident_bytes"] + page["streamed_bytes_per_sweep"] == page["weights_bytes"] == WEIGHTS
    assert page["pool_bytes"] == page["resident_bytes"] + page["ring_bytes"]
    taken = page["pool_bytes"] + page["kv_bytes"] + page["process_bytes"] + page["reserve_bytes"]
    assert taken <= page["available_bytes"]
    assert taken + page["pool_bytes"] / 160 == pytest.approx(page["available_bytes"], abs=4096), "the kernel's own is for the pool"
    assert [each["sequences"] for each in page["outlooks"][0]["forecasts"]][:2] == [1, 16]


def test_the_command_takes_sizes_rates_and_the_daemon_s_own_settings(monkeypatch, capsys, tmp_path):
    seen = {}

    class Planner:
        def __init__(self, source, settings, **options):
            assert options.pop("notice") and options.pop("anew") is False
            seen.update(options, source=source, context=settings.front.max_context, sequences=settings.front.max_sequences)

        def plan(self, machine):
            seen.update(dataclasses.asdict(machine))
            raise DoesNotFit("no")

    monkeypatch.setattr(planning, "Planner", Planner)
    words = ["plan", "a/b", "--ram", "16GiB", "--disk", "3.5GB/s", "--vram", "8GiB", "--pcie", "12GB/s",
             "--context", "8192", "--sequences", "2", "--dtype", "float16"]  # fmt: skip
    assert cli.main(words) == 71
    assert capsys.readouterr().err == "potatod: no\n"
    assert seen == {
        "source": "a/b", "ram": 16 << 30, "disk": 3_500_000_000, "context": 8192, "sequences": 2, "dtype": "float16", "revision": None,
        "vram": 8 << 30, "pcie": 12_000_000_000,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (["--ram", "much"], 64, '--ram "much" is not a size'),
        (["--ram", "0"], 64, "must be more than nothing"),
        (["--disk", "2GB/h"], 64, '--disk "2GB/h" is not a size'),
        (["--pcie", "12GB/s"], 64, "--pcie is the way to a card that --vram describes"),
        (["--grid", "--ram", "8GiB"], 64, "--grid chooses machines and dtypes itself"),
        (["--context", "long"], 78, "max_context"),
        (["--sequences", "0"], 78, "max_sequences"),
    ],
)
def test_a_bad_amount_is_one_sentence(capsys, words, code, says):
    assert cli.main(["plan", "m", *words]) == code
    said = capsys.readouterr().err
    assert says in said and len(said.splitlines()) == 1


def test_what_was_measured_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.undo()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    asked = []

    def run(module, *_arguments, limit_s, cancelled):
        asked.append(module)
        computing = {"compute": [[1, 2e9]], "layer_s": 0.001, "device": "cpu", "upload": None, "overlaps": True}
        return {"bytes_per_s": 1e9, "checksum_bytes_per_s": 5e9} | computing

    monkeypatch.setattr("potatod.errand.run", run)
    told: list[str] = []
    for _ in range(2):
        assert rates.disk(tmp_path, Settings(), told.append) == 1e9
        assert rates.compute(Settings(), "bfloat16", told.append) == Computing(((1, 2e9),), 0.001, None, "cpu")
    assert asked == ["reader.measure", "worker.measure"]
    assert len(told) == 2, "whoever waits is told, and who does not is not"
    assert rates.compute(Settings(), "float32", told.append)
    assert len(asked) == 3
    assert rates.disk(tmp_path, Settings(), told.append, anew=True) == 1e9
    assert len(asked) == 4


class TestDraft:
    @pytest.fixture(autouse=True)
    def known(self, known: None, monkeypatch: pytest.MonkeyPatch) -> None:
        """A copy in int4 is a sixteenth of the model."""
        small = model([[2 * MIB]] * 28, [MIB])
        for name, value in {"architecture": "LlamaForCausalLM", "dtype": "bfloat16", "layers": 28, "files": {"x": 1}, "tied": False}.items():
            monkeypatch.setattr(small, name, value, raising=False)
        small.shards.append(manifests.Shard("embed", None, (manifests.Part("embed", 0, MIB, "0" * 16, ()),)))
        whole = outline.of("m", "auto", None, Settings())
        copy = dataclasses.replace(whole, manifest=small)
        monkeypatch.setattr(outline, "of", lambda _source, dtype, *_: copy if dtype == "int4" else whole)
        monkeypatch.setattr(manifests, "shapes_of", lambda shard: {"w": (1024, 1024)})

    def planned(self, ram: int) -> planning.Planned:
        settings = dataclasses.replace(Settings(), speculation=dataclasses.replace(Settings().speculation, draft="self:int4"))
        return planning.make("m", settings, Machine(ram=ram, disk=5e8))

    def test_it_is_recommended_where_weights_stream(self) -> None:
        planned = self.planned(2_500_000_000)
        draft = planned.draft
        assert draft is not None and draft.pays and draft.guessing.tokens > 5
        without = planning.make("m", Settings(), Machine(ram=2_500_000_000, disk=5e8))
        assert draft.without_s == without.outlooks[0].forecasts[0].token_s < planned.outlooks[0].forecasts[0].token_s, "its memory held weights"
        assert draft.made_by == "potatod prepare FOLDER --draft int4"
        page = plan_page.as_text(planned)
        assert 'Recommended: [speculation] draft = "self:int4", made by `potatod prepare FOLDER --draft int4`.' in page
        assert json.loads(plan_page.as_json(planned))["draft"]["recommended"] is True

    def test_and_not_where_nothing_streams_and_rows_are_dear(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(rates, "compute", lambda *_, **__: Computing(((1, 10e9), (16, 0.7e9)), 0.0005, None, "cpu"))
        planned = self.planned(16_000_000_000)
        assert planned.draft is not None and not planned.draft.pays
        assert 'Recommended: no draft model, [speculation] draft = "".' in plan_page.as_text(planned)

    def test_a_family_whose_states_cannot_be_taken_back_is_refused(self, monkeypatch: pytest.MonkeyPatch) -> None:
        states = dataclasses.replace(outline.of("m", "auto", None, Settings()), kv=KvLayout((KvGroup(None, 28_672),), forks=False))
        monkeypatch.setattr(outline, "of", lambda *_: states)
        with pytest.raises(UnsupportedModel, match="cannot be taken back"):
            self.planned(2_500_000_000)


def test_guesses_go_as_far_as_makes_a_token_the_shortest() -> None:
    def free(rows: int) -> float:
        return 1.0

    short, long = (draft_forecast.best(free, round_s, 64, 64) for round_s in (lambda nodes: 0.2, lambda nodes: 0.01 * nodes))
    assert short.tokens < long.tokens < 1 / (1 - 0.88)
    assert draft_forecast.best(free, lambda nodes: 0.01, 3, 64).tokens <= 1 + 0.88 + 0.88**2 + 0.88**3
    assert draft_forecast.best(lambda rows: float(rows), lambda nodes: 0.01, 64, 64).tokens == 1, "where a row costs a sweep nothing is guessed"
