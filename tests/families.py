"""Tiny random models of every family that is tried: the same architecture as the real ones, seconds to make.

Six layers each and windows shorter than the test prompts, so that sliding, chunked and dense/sparse patterns all occur.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

#: Whether everything is tried in every combination (`make test-all`), or every value of everything in fewer of them. Each place says which.
ALL = os.environ.get("POTATO_ALL") == "1"

VOCABULARY = 320
_SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}


@dataclass(frozen=True)
class Family:
    #: as docs/MODELS.md shows it
    name: str
    #: model_type in config.json
    model_type: str
    #: beyond _SIZES
    overrides: dict[str, Any]
    #: the batching that serves it under "reference"; see worker/passes.py
    batching: str = "packed"
    #: the one under "invariant"; empty where it follows from the other
    invariant: str = ""

    @property
    def invariant_batching(self) -> str:
        return self.invariant or ("packed" if self.batching == "packed" else "tokens")

    def config(self) -> Any:
        import transformers

        sizes = dict(_SIZES)
        for key in self.overrides.get("_without", ()):
            sizes.pop(key)
        values = {**sizes, **{k: v for k, v in self.overrides.items() if not k.startswith("_")}}
        cls: Callable[..., Any] = type(transformers.AutoConfig.for_model(self.model_type))
        return cls(**values)


_LLAMA3_ROPE = {
    "rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}  # fmt: skip
_MOE = {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 48}
_MLA = {
    "q_lora_rank": 32, "kv_lora_rank": 16, "qk_nope_head_dim": 16, "qk_rope_head_dim": 8, "v_head_dim": 16,
    "num_key_value_heads": 4, "n_routed_experts": 8, "num_experts_per_tok": 2, "n_shared_experts": 1,
    "moe_intermediate_size": 48, "first_k_dense_replace": 2, "n_group": 2, "topk_group": 1,
}  # fmt: skip


#: The scan computes whole chunks of the models' 256 tokens, however few there are: in smaller ones tests have several of them, and far less to compute.
_CHUNK = 16
_SSM = {"mamba_n_heads": 8, "mamba_d_head": 16, "mamba_d_state": 16, "mamba_expand": 2, "mamba_chunk_size": _CHUNK}
_DELTA = {
    "head_dim": 16, "linear_num_value_heads": 4, "linear_num_key_heads": 2, "linear_key_head_dim": 16, "linear_value_head_dim": 16,
}  # fmt: skip
_PER_LAYER_INPUT = {
    "head_dim": 16, "sliding_window": 16, "num_kv_shared_layers": 2, "vocab_size_per_layer_input": VOCABULARY,
    "hidden_size_per_layer_input": 16, "layer_types": ["sliding_attention", "full_attention"] * 3,
}  # fmt: skip
#: for families that have names of their own for these
_NO_SIZES = {"_without": tuple(name for name in _SIZES if name not in ("vocab_size", "bos_token_id", "eos_token_id", "pad_token_id"))}


def longrope(long: float, original: int) -> dict[str, Any]:
    return {
        "rope_type": "longrope", "rope_theta": 10000.0, "original_max_position_embeddings": original, "factor": 2.0,
        "short_factor": [1.0 + 0.01 * i for i in range(8)], "long_factor": [long + 0.1 * i for i in range(8)],
    }  # fmt: skip


FAMILIES = [
    Family("Llama 2", "llama", {"num_key_value_heads": 4}),
    Family("Llama 3", "llama", {"rope_parameters": {"rope_type": "default", "rope_theta": 500000.0}}),
    Family("Llama 3.1, 3.2", "llama", {"rope_parameters": _LLAMA3_ROPE, "tie_word_embeddings": True}),
    Family("Mistral", "mistral", {"sliding_window": 16}),
    Family("Mixtral", "mixtral", {"num_local_experts": 4, "num_experts_per_tok": 2}),
    Family("Qwen2", "qwen2", {"tie_word_embeddings": True}),
    Family("Qwen2-MoE", "qwen2_moe", {**_MOE, "shared_expert_intermediate_size": 48}),
    Family("Qwen3", "qwen3", {"head_dim": 32}),
    Family("Qwen3-MoE", "qwen3_moe", {**_MOE, "head_dim": 32}),
    Family("Gemma", "gemma", {"head_dim": 32}),
    Family("Gemma 2", "gemma2", {"head_dim": 32, "sliding_window": 16, "query_pre_attn_scalar": 32}),
    Family("Gemma 3", "gemma3_text", {"head_dim": 32, "sliding_window": 16, "query_pre_attn_scalar": 32}),
    Family("Phi-3 (short rope)", "phi3", {"rope_parameters": longrope(4.0, 256), "original_max_position_embeddings": 256}),
    Family("Phi-3 (long rope)", "phi3", {"rope_parameters": longrope(4.0, 4), "original_max_position_embeddings": 4}),
    Family("Phi-4", "phi3", {"num_key_value_heads": 4}),
    Family("Phi-2", "phi", {"num_key_value_heads": 4}),
    Family("GPT-2", "gpt2", {"n_inner": 160}),
    Family("GPT-NeoX", "gpt_neox", {"rotary_pct": 0.5}),
    Family("Falcon", "falcon", {"new_decoder_architecture": True, "num_kv_heads": 2}, batching="sequences"),
    Family("StableLM", "stablelm", {"use_qkv_bias": True}),
    Family("OLMo", "olmo", {}),
    Family("OLMo 2", "olmo2", {}),
    Family("OLMoE", "olmoe", {**_MOE, "num_key_value_heads": 4}),
    Family("Cohere", "cohere", {}),
    Family("Cohere 2", "cohere2", {"sliding_window": 16}),
    Family("Granite", "granite", {"logits_scaling": 2.0, "residual_multiplier": 0.5}),
    Family("Granite-MoE", "granitemoe", {"num_local_experts": 4, "num_experts_per_tok": 2}),
    Family("SmolLM3", "smollm3", {}),
    Family("DeepSeek-V2", "deepseek_v2", {**_MLA, "topk_method": "greedy", "head_dim": 8}),
    Family("DeepSeek-V3", "deepseek_v3", _MLA),
    Family("gpt-oss", "gpt_oss", {
        "head_dim": 16, "sliding_window": 16, "num_local_experts": 4, "num_experts_per_tok": 2,
    }),
    Family("GLM-4", "glm4", {"head_dim": 16, "pad_token_id": 0}),
    Family("StarCoder2", "starcoder2", {"sliding_window": 16}),
    Family("Nemotron", "nemotron", {}),
    Family("EXAONE 4", "exaone4", {"sliding_window": 16, "sliding_window_pattern": 4}),
    Family("OPT", "opt", {"ffn_dim": 160, "word_embed_proj_dim": 64}),
    Family("Llama 4", "llama4_text", {
        "num_local_experts": 4, "num_experts_per_tok": 1, "intermediate_size_mlp": 160, "attention_chunk_size": 16,
        "head_dim": 16, "interleave_moe_layer_step": 2,
    }),
    Family("Gemma 3n", "gemma3n_text", {**_PER_LAYER_INPUT, "altup_num_inputs": 2, "laurel_rank": 8, "activation_sparsity_pattern": [0.0] * 6},
           batching="sequences", invariant="packed"),
    Family("Gemma 4", "gemma4_text", {**_PER_LAYER_INPUT, "global_head_dim": 32}, batching="sequences", invariant="packed"),
    Family("GLM-4.5", "glm4_moe", {
        "head_dim": 16, "moe_intermediate_size": 48, "n_routed_experts": 8, "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1,
    }),
    Family("OLMo 3", "olmo3", {"sliding_window": 16}),
    Family("Seed-OSS", "seed_oss", {"head_dim": 16}),
    Family("ERNIE 4.5", "ernie4_5", {"head_dim": 16}),
    Family("Hunyuan", "hunyuan_v1_dense", {"head_dim": 16}),
    Family("Ministral", "ministral", {"head_dim": 16, "sliding_window": 16}),
    Family("MiniMax M2", "minimax_m2", {"head_dim": 16, "num_local_experts": 4, "num_experts_per_tok": 2}),
    Family("Phi-3.5-MoE", "phimoe", {"num_local_experts": 4, "num_experts_per_tok": 2}),
    Family("DBRX", "dbrx", {
        **_NO_SIZES, "d_model": 64, "n_heads": 4, "n_layers": 6, "max_seq_len": 512,
        "attn_config": {"kv_n_heads": 2, "rope_theta": 10000.0, "clip_qkv": 8.0},
        "ffn_config": {"ffn_hidden_size": 96, "moe_num_experts": 4, "moe_top_k": 2},
    }),
    Family("GPT-J", "gptj", {"rotary_dim": 8}, batching="sequences"),
    Family("CodeGen", "codegen", {"rotary_dim": 8}, batching="sequences"),
    Family("MPT", "mpt", {**_NO_SIZES, "d_model": 64, "n_heads": 4, "n_layers": 6, "max_seq_len": 512}, batching="sequences"),
    Family("Qwen3-Next", "qwen3_next", {**_DELTA, **_MOE, "shared_expert_intermediate_size": 48}, batching="sequences"),
    Family("Qwen3.5", "qwen3_5_text", _DELTA, batching="sequences"),
    Family("LFM2", "lfm2", {"layer_types": ["conv", "full_attention"] * 3}, batching="sequences"),
    Family("Granite 4 (hybrid)", "granitemoehybrid", {
        **_SSM, "layer_types": ["mamba", "attention"] * 3, "shared_intermediate_size": 48, "num_local_experts": 4, "num_experts_per_tok": 2,
    }, batching="sequences"),
    Family("Falcon-H1", "falcon_h1", {"mamba_d_ssm": 128, "mamba_n_heads": 8, "mamba_d_head": 16, "mamba_d_state": 16, "mamba_chunk_size": _CHUNK},
           batching="sequences"),
    Family("Bloom", "bloom", {"_without": ("intermediate_size",), "n_layer": 6, "n_head": 4}, batching="sequences"),
    Family("Mamba 2", "mamba2", {"state_size": 16, "num_heads": 8, "head_dim": 16, "n_groups": 2, "expand": 2, "chunk_size": _CHUNK},
           batching="sequences"),
    Family("Mamba", "mamba", {"state_size": 16, "expand": 2, "conv_kernel": 4}, batching="prompts"),
    Family("Falcon-Mamba", "falcon_mamba", {"state_size": 16, "expand": 2, "conv_kernel": 4}, batching="prompts"),
    Family("Nemotron-H", "nemotron_h", {
        "_without": ("num_hidden_layers",), "layers_block_type": ["linear_attention", "mlp", "full_attention", "moe", "linear_attention", "mlp"],
        "head_dim": 16,
        "ssm_state_size": 16, "mamba_num_heads": 8, "mamba_head_dim": 16, "n_groups": 2, "chunk_size": _CHUNK, "use_mamba_kernels": False,
        "moe_intermediate_size": 48, "moe_shared_expert_intermediate_size": 48, "n_routed_experts": 4,
    }, batching="sequences"),
    Family("Jamba", "jamba", {"num_experts": 4, "attn_layer_period": 3, "attn_layer_offset": 1, "use_mamba_kernels": False}, batching="prompts"),
]  # fmt: skip


def by_name(name: str) -> Family:
    return next(family for family in FAMILIES if family.name == name)
