"""llama.cpp answers: the file is mapped, and the kernel keeps of it what it can."""

from __future__ import annotations

from itertools import islice

from arrivals import asked, cores, say
from llama_cpp import Llama


def main() -> None:
    """Its defaults, but as many threads as cores, and batches no larger than the prompt needs, which leaves more RAM for the file."""
    ask = asked()
    model = Llama(
        ask.model, n_ctx=512, n_batch=64, n_ubatch=64, n_threads=cores(), n_threads_batch=cores(), use_mmap=True, use_mlock=False, verbose=False
    )
    for token in islice(model.generate(ask.prompt, temp=0.0), ask.tokens):
        say(token)


if __name__ == "__main__":
    main()
