"""AirLLM answers: layers from its own shards on disk, the next one prefetched while the present one computes.

With ``--tokens 0`` it only writes its shards, which it does once.
"""

from __future__ import annotations

import torch
from airllm import AutoModel
from arrivals import Saying, asked, cores


def main() -> None:
    """As its README does it, on the CPU."""
    ask = asked("shards")
    torch.set_num_threads(cores())
    model = AutoModel.from_pretrained(ask.model, device="cpu", layer_shards_saving_path=ask.shards, prefetching=True, compression=None)
    if ask.tokens:
        with torch.inference_mode():
            model.generate(
                torch.tensor([ask.prompt]), max_new_tokens=ask.tokens, min_new_tokens=ask.tokens, do_sample=False, use_cache=True, streamer=Saying()
            )


if __name__ == "__main__":
    main()
