"""transformers with accelerate answers: as many layers as there is room for stay in RAM, the others are read from the checkpoint at every token.

``device_map="auto"`` with ``max_memory`` would leave room for one more copy of the largest part, here the embedding of 0.47 GB; the map we write is
the same without that. What it places in RAM transformers 5 only maps from the checkpoint when no conversion of type is needed, so the kernel evicts it
like everything else. ``--copy`` makes copies of it, which stay: a line that is neither accelerate's nor in its documentation, and makes it much faster.
"""

from __future__ import annotations

import torch
from accelerate import init_empty_weights
from arrivals import Saying, asked, cores
from transformers import AutoConfig, AutoModelForCausalLM


def main() -> None:
    """``--room``: bytes of weights that are placed in RAM; ``--offload``: a folder of its own; ``--copy``: see above."""
    ask = asked("room", "offload", flags=("copy",))
    torch.set_num_threads(cores())
    model = AutoModelForCausalLM.from_pretrained(
        ask.model, dtype=torch.bfloat16, device_map=device_map(ask.model, int(ask.room)), offload_folder=ask.offload, local_files_only=True
    ).eval()
    for parameter in model.parameters() if ask.copy else ():
        if parameter.device.type == "cpu":
            parameter.data = parameter.data.clone()
    ids = torch.tensor([ask.prompt])
    with torch.inference_mode():
        model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=ask.tokens, min_new_tokens=ask.tokens, do_sample=False, streamer=Saying()
        )


def device_map(folder: str, room_bytes: int) -> dict[str, str]:
    """``cpu`` while there is room, else ``disk``: what is outside the layers first, then the layers in order."""
    with init_empty_weights():
        inner = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder), dtype=torch.bfloat16)
    inner.tie_weights()
    layers = list(inner.model.layers)
    layer_bytes = [_bytes(layer) for layer in layers]
    room_bytes -= _bytes(inner) - sum(layer_bytes)  # parameters(), and so _bytes, counts a tied one once
    outside = "cpu" if room_bytes >= 0 else "disk"  # then nothing of the layers fits either, or hardly
    places = dict.fromkeys(("model.embed_tokens", "model.norm", "model.rotary_emb", "lm_head"), outside)
    for number, size in enumerate(layer_bytes):
        room_bytes -= size
        places[f"model.layers.{number}"] = "cpu" if room_bytes >= 0 else "disk"
    return places


def _bytes(module: torch.nn.Module) -> int:
    return sum(parameter.numel() * parameter.element_size() for parameter in module.parameters())


if __name__ == "__main__":
    main()
