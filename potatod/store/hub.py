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
#: Configs and tokenizers; no pickles, no code.
SMALL: Final = ("*.json", "*.jinja", "tokenizer.model", "*.tiktoken", "merges.txt", "vocab.txt")
_WANTED: Final = ("*.safetensors", *SMALL)
_NO_CONFIG: Final = ": it is no checkpoint for transformers; if it holds GGUF files download one and name that"
_WHY: Final = {429: "the hub takes no more requests from here for a while (429)"}


def looks_like_id(text: str) -> bool:
    """Whether ``text`` could be "organisation/model" and is no path that exists."""
    return bool(_ID.fullmatch(text)) and not Path(text).exists()


def fetch(model_id: str, revision: str | None = None) -> Path:
    """The folder of the downloaded snapshot; goes on where an earlier download stopped."""
    with explained(model_id, revision):
        return Path(huggingface_hub.snapshot_download(model_id, revision=revision, allow_patterns=list(_WANTED)))


def fetch_config(model_id: str, revision: str | None = None) -> Path:
    """Its config.json, and nothing else."""
    with explained(model_id, revision):
        return Path(huggingface_hub.hf_hub_download(model_id, "config.json", revision=revision))


@contextmanager
def explained(model_id: str, revision: str | None, file: str = "config.json") -> Iterator[None]:
    """What the hub's library raises, in our words."""
    try:
        yield
    except errors.GatedRepoError:
        raise NoSuchModel(
            f"{model_id} is gated: accept its licence at {page(model_id)}, then log in (`hf auth login`) and try again"
        ) from None
    except errors.RevisionNotFoundError:
        raise NoSuchModel(f"{model_id} has no revision {revision!r}") from None
    except errors.RepositoryNotFoundError:
        raise NoSuchModel(f"there is no model {model_id} at the hub, or it is private and you are not logged in") from None
    except errors.RemoteEntryNotFoundError:
        raise NoSuchModel(f"{model_id} has no {file}{_NO_CONFIG if file == 'config.json' else ''}") from None
    except errors.OfflineModeIsEnabled:
        raise Unavailable(f"cannot download {model_id}: HF_HUB_OFFLINE is set; unset it and try again, it goes on where it stopped") from None
    except (errors.HTTPError, errors.LocalEntryNotFoundError, OSError) as error:
        code = error.response.status_code if isinstance(error, errors.HfHubHTTPError) else 0
        if code in (401, 403):
            raise NoSuchModel(
                f"the hub lets you not read {model_id} ({code}): see {page(model_id)}, and log in (`hf auth login`) with a token that may read it"
            ) from None
        why = _WHY.get(code) or (f"the hub is out of order ({code})" if code >= 500 else first_line(error).strip() or type(error).__name__)
        raise Unavailable(f"cannot download {model_id}: {why}; try again, it goes on where it stopped") from error


def page(model_id: str) -> str:
    """Where people read of it, and accept its licence."""
    return f"{huggingface_hub.constants.ENDPOINT}/{model_id}"
