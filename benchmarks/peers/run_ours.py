"""A client of our daemon says what arrives, in the same words. The daemon is started by whoever starts this; ``model`` is its socket."""

from __future__ import annotations

import time

from arrivals import say
from click import argument, command, option

from potato_client import Client, NoDaemon


@command()
@argument("socket")
@option("--prompt", required=True)
@option("--tokens", required=True, type=int)
def main(socket: str, prompt: str, tokens: int) -> None:
    """Wait for the daemon, then ask. The prompt is text, since that is what a client says."""
    while True:
        try:
            client = Client(socket)
            client.status()
            break
        except NoDaemon:
            time.sleep(0.1)
    with client:
        for piece in client.generate(prompt, raw=True, max_tokens=tokens, temperature=0):
            for token in piece.token_ids:
                say(token)


if __name__ == "__main__":
    main()
