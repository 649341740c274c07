"""Tiny GGUF files of random values, with the names, keys and order that llama.cpp gives them."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
from transformers.convert_slow_tokenizer import bytes_to_unicode

Q8, F16, F32 = gguf.GGMLQuantizationType.Q8_0, gguf.GGMLQuantizationType.F16, gguf.GGMLQuantizationType.F32
HIDDEN, MLP, EXPERT_MLP, HEADS, KV_HEADS, VOCABULARY, LAYERS, EXPERTS = 64, 96, 768, 4, 2, 300, 2, 4


def write_gguf(
    path: Path, architecture: str = "llama", kind=Q8, *, head: bool = False, theta: float = 10000.0, extra=lambda writer: None,
    tensors: dict[str, np.ndarray] | None = None,
) -> Path:  # fmt: skip
    """A tiny random model as llama.cpp would store it; ``extra`` adds keys, ``tensors`` come first, in fp32."""
    random = np.random.default_rng(0)
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_context_length(128)
    writer.add_embedding_length(HIDDEN)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(MLP)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(theta)
    writer.add_key_length(HIDDEN // HEADS)
    if architecture == "llama":
        writer.add_rope_dimension_count(HIDDEN // HEADS)
    if architecture == "qwen3moe":
        writer.add_expert_count(EXPERTS)
        writer.add_expert_used_count(2)
        writer.add_expert_feed_forward_length(EXPERT_MLP)  # transformers does not read it and takes Qwen3's own
    add_vocabulary(writer)
    extra(writer)

    def add(name: str, *shape: int, stored=kind) -> None:
        values = random.standard_normal(shape, dtype=np.float32)
        stored = F32 if len(shape) == 1 else stored
        writer.add_tensor(name, gguf.quantize(values, stored), raw_dtype=stored)

    for name, values in (tensors or {}).items():
        writer.add_tensor(name, values.astype(np.float32))
    kv = HIDDEN // HEADS * KV_HEADS
    add("token_embd.weight", VOCABULARY, HIDDEN)
    for n in range(LAYERS):
        add(f"blk.{n}.attn_norm.weight", HIDDEN)
        add(f"blk.{n}.ffn_norm.weight", HIDDEN)
        add(f"blk.{n}.attn_q.weight", HIDDEN, HIDDEN)
        add(f"blk.{n}.attn_k.weight", kv, HIDDEN)
        add(f"blk.{n}.attn_v.weight", kv, HIDDEN)
        add(f"blk.{n}.attn_output.weight", HIDDEN, HIDDEN)
        if architecture == "qwen3moe":
            add(f"blk.{n}.attn_q_norm.weight", HIDDEN // HEADS)
            add(f"blk.{n}.attn_k_norm.weight", HIDDEN // HEADS)
            add(f"blk.{n}.ffn_gate_inp.weight", EXPERTS, HIDDEN, stored=F32)
            add(f"blk.{n}.ffn_gate_exps.weight", EXPERTS, EXPERT_MLP, HIDDEN)
            add(f"blk.{n}.ffn_up_exps.weight", EXPERTS, EXPERT_MLP, HIDDEN)
            add(f"blk.{n}.ffn_down_exps.weight", EXPERTS, HIDDEN, EXPERT_MLP)
        else:
            if architecture == "gemma3":
                for norm in ("attn_q_norm", "attn_k_norm"):
                    add(f"blk.{n}.{norm}.weight", HIDDEN // HEADS)
                for norm in ("post_attention_norm", "post_ffw_norm"):
                    add(f"blk.{n}.{norm}.weight", HIDDEN)
            add(f"blk.{n}.ffn_gate.weight", MLP, HIDDEN)
            add(f"blk.{n}.ffn_up.weight", MLP, HIDDEN)
            add(f"blk.{n}.ffn_down.weight", HIDDEN, MLP)
    add("output_norm.weight", HIDDEN)
    if head:
        add("output.weight", VOCABULARY, HIDDEN)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def add_vocabulary(writer) -> None:
    alphabet = sorted(bytes_to_unicode().values())
    tokens = ["<pad>", "<|im_start|>", "<|im_end|>", *alphabet, "ab", "he"]
    tokens += [f"<unused{n}>" for n in range(VOCABULARY - len(tokens))]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(tokens)
    writer.add_token_merges(["a b", "h e"])
    writer.add_token_types([3, 3, 3] + [1] * (VOCABULARY - 3))
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_chat_template("{% for m in messages %}{{ m.content }}{% endfor %}")
