"""A hub id as a source: what the model needs is downloaded by huggingface_hub, and nothing that could run."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import huggingface_hub
from huggingface_hub import errors

from potatod.errors import NoSuchModel, Unavailable, first_line

_ID: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}/[A-Za-z0-9._-]{1,96}")
#: Weights as safetensors, configs and tokenizers; no pickles, no code.
_WANTED: Final = ("*.safetensors", "*.json", "*.jinja", "tokenizer.model", "*.tiktoken", "merges.txt", "vocab.txt")


def looks_like_id(text: str) -> bool:
    """Whether ``text`` could be "organisation/model" and is no path that exists."""
    return bool(_ID.fullmatch(text)) and not Path(text).exists()


def fetch(model_id: str, revision: str | None = None) -> Path:
    """The folder of the downloaded snapshot; goes on where an earlier download stopped."""
    with _explained(model_id, revision):
        return Path(huggingface_hub.snapshot_download(model_id, revision=revision, allow_patterns=list(_WANTED)))


def fetch_config(model_id: str, revision: str | None = None) -> Path:
    """Its config.json, and nothing else."""
    with _explained(model_id, revision):
        return Path(huggingface_hub.hf_hub_download(model_id, "config.json", revision=revision))


@contextmanager
def _explained(model_id: str, revision: str | None) -> Iterator[None]:
    """What the hub's library raises, in our words."""
    try:
        yield
    except errors.GatedRepoError:
        raise NoSuchModel(
            f"{model_id} is gated: accept its licence on its page at the hub, then log in (`hf auth login`) and try again"
        ) from None
    except errors.RevisionNotFoundError:
        raise NoSuchModel(f"{model_id} has no revision {revision!r}") from None
    except errors.RepositoryNotFoundError:
        raise NoSuchModel(f"there is no model {model_id} at the hub, or it is private and you are not logged in") from None
    except errors.RemoteEntryNotFoundError:
        raise NoSuchModel(
            f"{model_id} has no config.json: it is no checkpoint for transformers; if it holds GGUF files download one and name that"
        ) from None
    except (errors.HfHubHTTPError, errors.LocalEntryNotFoundError, OSError) as error:
        raise Unavailable(f"cannot download {model_id}: {first_line(error)}; try again, it goes on where it stopped") from error
