"""Models whose weights are stored in fewer bytes, through the whole engine: the logits are transformers' with the values that are stored."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import gguf
import pytest
import torch
import transformers
from engine import Engine
from ggufs import write_gguf

from potatod import model_folder
from potatod import plan as plans
from potatod.store import skeleton as skeletons
from potatod.store.prepare import prepare
from potatod.worker.banded import Banded
from potatod.worker.weights import read_parts

PROMPT = list(range(5, 40))
#: Of the largest logit: transformers rounds what a scheme holds to bf16 before it multiplies with it, and we do not.
TOLERANCE = 0.04
SCHEMES = ("packed", "int8", "int4")


def config(**overrides) -> transformers.PretrainedConfig:
    return transformers.LlamaConfig(
        hidden_size=256, intermediate_size=640, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2, vocab_size=320,
        max_position_embeddings=256, **overrides,
    )  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Callable[[str, bool], Path]:
    """A model folder of random bf16 weights, stored in a scheme; tied or not."""
    place = tmp_path_factory.mktemp("stored")

    def make(scheme: str, tied: bool = False) -> Path:
        source = place / f"source-{tied}"
        if not source.exists():
            torch.manual_seed(0)
            model = transformers.AutoModelForCausalLM.from_config(config(tie_word_embeddings=tied), dtype=torch.bfloat16)
            for parameter in model.parameters():
                parameter.data.normal_(std=0.08) if parameter.dim() > 1 else parameter.data.normal_(1, 0.1)
            model.save_pretrained(source)
        out = place / f"{scheme}-{tied}"
        prepare(source, out, dtype=scheme, band_bytes=1 << 15)
        return out

    return make


def with_its_values(folder: Path) -> transformers.PreTrainedModel:
    """transformers' model, filled with what the folder's schemes hold."""
    manifest = model_folder.load(folder)
    model = transformers.AutoModelForCausalLM.from_config(
        skeletons.load_config(folder), dtype=getattr(torch, manifest.dtype), attn_implementation="eager"
    ).eval()
    values = {}
    for shard in manifest.shards:
        prefix = f"{manifest.layers_name}.{shard.layer}." if shard.kind == "layer" else ""
        for name, value in read_parts(folder, shard.parts):
            values[prefix + name] = (value.together() if isinstance(value, Banded) else value).detach().clone()
    if manifest.tied:  # a head of its own bytes is another matrix
        model.lm_head.weight = torch.nn.Parameter(values[manifest.head_name])
    model.load_state_dict(values, strict=True)
    return model


@torch.inference_mode()
def expected(folder: Path, prompt: list[int]) -> torch.Tensor:
    return with_its_values(folder)(torch.tensor([prompt])).logits[0, -1].float()


def pools(folder: Path) -> tuple[int, int]:
    """The smallest, and one in which everything stays."""
    lengths = [(stop, part.length) for stop, part in plans.sweep_parts(model_folder.load(folder))]
    return plans.smallest_pool(lengths), sum(length for _, length in lengths)


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_reference_kernels_have_transformers_bits(made, scheme, tied):
    folder = made(scheme, tied)
    for pool in pools(folder):
        with Engine(folder, pool, kernels="reference") as engine:
            assert torch.equal(engine.sweep({1: PROMPT})[1], expected(folder, PROMPT))


@pytest.mark.parametrize("kernels", ["invariant", "fast"])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_ours_are_near_and_under_invariant_do_not_depend_on_the_batch(made, scheme, kernels):
    folder = made(scheme)
    wanted = expected(folder, PROMPT)
    small, whole = pools(folder)
    for pool in (small, (small + whole) // 2, whole):
        with Engine(folder, pool, kernels=kernels) as engine:
            alone = engine.sweep({1: PROMPT})[1]
            assert (alone - wanted).abs().max() <= TOLERANCE * wanted.abs().max()
            engine.sweep({2: PROMPT[:9], 3: PROMPT[7:]}, known={2: len(PROMPT)})
            beside = engine.sweep({3: [8], 2: PROMPT[9:], 4: PROMPT[:20]})[2]
            assert kernels == "fast" or torch.equal(beside, alone)


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_packed_has_the_bits_of_bf16(made, tied):
    plain, packed = made("bfloat16", tied), made("packed", tied)
    (small, _), (_, whole) = pools(packed), pools(plain)
    for kernels, rows in (("reference", 35), ("invariant", 35), ("fast", 24)):  # more rows in bf16 may be torch's in `fast`, with bits of its own
        found = []
        for folder, pool in ((plain, whole), (packed, small)):
            with Engine(folder, pool, kernels=kernels) as engine:
                logits = engine.sweep({1: PROMPT[:rows], 2: PROMPT[3:9]})
                found.append((logits[1].tolist(), logits[2].tolist(), engine.greedy(3, PROMPT[:rows], 6)))
        assert found[0] == found[1]


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_card_decodes_what_is_uploaded(made, scheme):
    folder = made(scheme)
    small, whole = pools(folder)
    wanted = expected(folder, PROMPT)
    for seed in (1, 2):
        with Engine(folder, small, kernels="fast", device=f"simulated:seed={seed}", card_bytes=whole // 2) as engine:
            got = engine.sweep({1: PROMPT})[1]
            assert (got - wanted).abs().max() <= TOLERANCE * wanted.abs().max()
            assert torch.equal(engine.sweep({2: PROMPT})[2], got)


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"])
def test_a_gguf_files_blocks_are_kept_with_their_values(tmp_path, kind):
    """Permuted rows of queries and keys included; in fp32 values are to the bit those that are dequantised."""
    file = write_gguf(tmp_path / "model.gguf", kind=getattr(gguf.GGMLQuantizationType, kind))
    prepare(file, tmp_path / "plain", dtype="float32")
    prepare(file, tmp_path / "kept", dtype="float32,keep,*.o_proj.weight=raw")
    manifest = model_folder.load(tmp_path / "kept")
    found = {t.name: t.scheme for shard in manifest.shards for part in shard.parts for t in part.tensors if shard.kind in ("layer", "head")}
    assert found["self_attn.q_proj.weight"] == found["mlp.down_proj.weight"] == found["lm_head.weight"] == kind.lower()
    assert found["self_attn.o_proj.weight"] == found["input_layernorm.weight"] == "raw"
    plain, kept = (with_its_values(tmp_path / name).state_dict() for name in ("plain", "kept"))
    for name, value in plain.items():
        assert torch.equal(kept[name], value.to(kept[name].dtype)), name
    logits = expected(tmp_path / "kept", PROMPT)
    with Engine(tmp_path / "kept", pools(tmp_path / "kept")[0], kernels="invariant") as engine:
        assert (engine.sweep({1: PROMPT})[1] - logits).abs().max() <= 1e-4 * logits.abs().max()
