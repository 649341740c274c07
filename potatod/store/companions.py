"""The files beside the weights: configs, tokenizer, chat template. The front reads these and nothing else of the
folder."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any, Final

from transformers import AutoTokenizer, GenerationConfig, PreTrainedConfig, PreTrainedTokenizerFast
from transformers.integrations.gguf import convert_gguf_tokenizer, get_gguf_tokenizer

from potatod.companions import CONFIG, Companion, of_bytes
from potatod.errors import InternalError, ModelDataError, UnsupportedModel, first_line
from potatod.json_file import parse_json, read_json

from .shard_file import AGAIN, explained, write_text

#: Any of these and transformers can make a tokenizer.json.
_OTHER_TOKENIZERS: Final = ("tokenizer.model", "vocab.json", "spiece.model", "tiktoken.model", "vocab.txt")
_MAX_BYTES: Final = 64 << 20
#: Of config.json: what would make transformers do other things than build this model.
_NOT_OURS: Final = ("auto_map", "custom_pipelines", "quantization_config", "_name_or_path", "transformers_weights")


#: What has a tokenizer has this.
TOKENIZER: Final = "tokenizer.json"


class _Folder:
    """Where they are written, and what has been: what the manifest is to say of them, whatever the disk makes of it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.written: dict[str, Companion] = {}

    def write(self, name: str, text: str) -> None:
        write_text(self.path, name, text)
        self.written[name] = of_bytes(text.encode())


def write(source: Path, config: PreTrainedConfig, architecture: str, dtype: str, out: Path) -> dict[str, Companion]:
    """Writes them all, and says what was written; no TOKENIZER where the source has none. Raises ModelDataError or UnsupportedModel."""
    folder = _Folder(out)
    _write_config(config, architecture, dtype, folder)
    _write_generation_config(source, config, folder)
    _write_gguf_tokenizer(source, folder) if source.is_file() else _write_tokenizer(source, folder)
    return folder.written


def _write_config(config: PreTrainedConfig, architecture: str, dtype: str, out: _Folder) -> None:
    """config.json of the text model alone, defaults spelled out, so that a later transformers builds the same model
    from it."""
    whole = json.loads(config.to_json_string(use_diff=False))
    page = {key: value for key, value in whole.items() if key not in _NOT_OURS}
    page |= {"architectures": [architecture], "dtype": dtype}
    _write_json(out, CONFIG, page)


def _write_generation_config(source: Path, config: PreTrainedConfig, out: _Folder) -> None:
    """The source's, else what transformers would derive from the config: the ids that end a text, mostly."""
    path = source / "generation_config.json"
    page = read_json(path, _MAX_BYTES) if path.is_file() else GenerationConfig.from_model_config(config).to_diff_dict()
    _write_json(out, path.name, page)


def _write_tokenizer(source: Path, out: _Folder) -> None:
    """tokenizer.json as transformers makes it of what there is: for some classes (Llama's) it rebuilds parts of a tokenizer.json, and only what
    it then saves gives the same ids. What it cannot load is refused: taken as it is, a file could give other ids than there."""
    if (source / "tokenizer.json").is_file():
        read_json(source / "tokenizer.json", _MAX_BYTES)  # its size and form, before anything else reads it
    elif not any((source / name).is_file() for name in _OTHER_TOKENIZERS) and not any(source.glob("*.tiktoken")):
        return
    settings = _convert_tokenizer(source, out)
    path = source / "tokenizer_config.json"
    settings |= read_json(path, _MAX_BYTES) if path.is_file() else {}
    _write_template(_template_of(source, settings), out)
    for key in ("auto_map", "chat_template"):
        settings.pop(key, None)
    _write_json(out, "tokenizer_config.json", settings)


def _convert_tokenizer(source: Path, out: _Folder) -> dict[str, Any]:
    """tokenizer.json out of whatever tokenizer is there; returns the settings that go with it."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False, local_files_only=True)
    except Exception as error:  # transformers has no common type for what a damaged vocabulary makes of it
        raise ModelDataError(f"transformers cannot load the tokenizer in {source}: {first_line(error)}") from error
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise UnsupportedModel(f"the tokenizer in {source} ({type(tokenizer).__name__}) cannot be converted to a tokenizer.json")
    return _save(tokenizer, out)


def _write_gguf_tokenizer(file: Path, out: _Folder) -> None:
    """The vocabulary in the file's metadata, as transformers makes a tokenizer of it."""
    try:
        architecture, vocabulary, settings = get_gguf_tokenizer(str(file))
        if "tokens" not in vocabulary:
            return
        backend, _ = convert_gguf_tokenizer(architecture, vocabulary)
    except Exception as error:  # tokenizers has no type of its own for what a damaged vocabulary makes of it
        raise UnsupportedModel(f"{file}: its tokenizer cannot be read ({first_line(error)})") from error
    template = settings.pop("chat_template", None)
    _write_json(out, "tokenizer_config.json", _save(PreTrainedTokenizerFast(tokenizer_object=backend, **settings), out))
    _write_template(template, out)


def _save(tokenizer: PreTrainedTokenizerFast, out: _Folder) -> dict[str, Any]:
    """Writes tokenizer.json; returns tokenizer_config.json's content."""
    try:
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as place:
            tokenizer.save_pretrained(place)
            text, page = ((Path(place) / name).read_text(encoding="utf-8") for name in (TOKENIZER, "tokenizer_config.json"))
    except OSError as error:
        raise explained(error, Path(error.filename or tempfile.gettempdir())) from None
    except Exception as error:  # tokenizers writes by itself, and has no type of its own for a full disk
        raise InternalError(f"cannot write a tokenizer to {tempfile.gettempdir()}: {first_line(error)}; {AGAIN}") from error
    out.write(TOKENIZER, text)
    settings = parse_json(page, out.path / "tokenizer_config.json")
    return {key: value for key, value in settings.items() if key not in ("is_local", "local_files_only", "name_or_path")}


def _template_of(source: Path, settings: dict[str, Any]) -> str | None:
    """The chat template: a file of its own, or within the tokenizer's config, alone or as one of several."""
    for name in ("chat_template.jinja", "chat_template.json"):
        path = source / name
        if path.is_file() and name.endswith(".jinja"):
            return path.read_text(encoding="utf-8")
        if path.is_file():
            return _chosen(read_json(path, _MAX_BYTES).get("chat_template"))
    return _chosen(settings.get("chat_template"))


def _chosen(template: Any) -> str | None:
    if isinstance(template, list):
        named = {entry.get("name"): entry.get("template") for entry in template if isinstance(entry, dict)}
        template = named.get("default", next(iter(named.values()), None))
    return template if isinstance(template, str) else None


def _write_template(template: str | None, out: _Folder) -> None:
    if template is not None:
        out.write("chat_template.jinja", template)


def _write_json(out: _Folder, name: str, page: dict[str, Any]) -> None:
    out.write(name, json.dumps(page, indent=2, sort_keys=True, ensure_ascii=False) + "\n")
