"""The model without weights: what the store cuts a checkpoint by, and what the worker runs.

transformers' own class, parameters on the meta device, buffers real: rope tables and the like are computed as they
would be in a whole model. Never remote code: a config that asks for it is refused.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import nn
from torch.overrides import TorchFunctionMode
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.initialization import no_init_weights

from potatod.errors import ModelDataError, UnsupportedModel
from potatod.json_file import read_json

#: Keys that would have transformers run code from the checkpoint or fetch kernels from a hub.
_CODE_KEYS: Final = ("auto_map", "custom_pipelines", "use_kernels", "kernel_config")


@dataclass(frozen=True)
class Skeleton:
    """A model in eval mode, its parameters on meta, and where its large parts are."""

    model: PreTrainedModel
    #: the decoder layers
    layers: nn.ModuleList
    #: the module path of ``layers``: "model.layers"
    layers_name: str
    #: full parameter names: "model.embed_tokens.weight", "lm_head.weight"
    embed_name: str
    head_name: str
    #: whether head and embedding are one tensor
    tied: bool


def load_config(folder: Path) -> PreTrainedConfig:
    """The text model's config of a folder with a config.json; raises NoSuchModel, ModelDataError or
    UnsupportedModel."""
    path = folder / "config.json"
    page = read_json(path)
    if page.get("quantization_config"):
        raise UnsupportedModel(f"{path} says that its weights are quantised; `potatod prepare` makes a folder of them that can be served")
    return config_of(page, path)


def config_of(page: dict[str, Any], where: Path) -> PreTrainedConfig:
    """The text model's config out of a parsed config.json."""
    for key in _CODE_KEYS:
        if page.get(key):
            raise UnsupportedModel(
                f'{where} has "{key}": this model needs code of its own, and potatod runs only what transformers itself implements'
            )
    model_type = page.get("model_type")
    if not isinstance(model_type, str):
        raise ModelDataError(f'{where} names no "model_type"')
    try:
        config = AutoConfig.for_model(**PreTrainedConfig._decode_special_floats(page))
    except ValueError as error:
        if "Unrecognized model identifier" in str(error) or "nrecognized" in str(error):
            raise UnsupportedModel(f'{where}: the architecture "{model_type}" is not known to the installed transformers') from None
        raise ModelDataError(f"{where}: {' '.join(str(error).split())}") from None
    except (TypeError, KeyError, AttributeError, StrictDataclassError) as error:
        raise ModelDataError(f"{where} is not a valid config for {model_type}: {' '.join(str(error).split())}") from None
    text: PreTrainedConfig = config.get_text_config(decoder=True)
    if text is not config:
        text.dtype = text.dtype or config.dtype
        # The whole model's config decides for the whole model, and the text's own often holds a default: where the
        # checkpoint has two different matrices `prepare` sees it.
        text.tie_word_embeddings = bool(config.tie_word_embeddings or text.tie_word_embeddings)
    if type(text) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise UnsupportedModel(f'{where}: "{text.model_type}" is not a language model that transformers can run as one')
    return text


def build(config: PreTrainedConfig, dtype: torch.dtype) -> Skeleton:
    """The skeleton for a config, parameters in ``dtype`` (but where the family keeps some in fp32)."""
    model = _on_meta(config, dtype)
    layers_name, layers = find_layers(model, config)
    embed, head = model.get_input_embeddings(), model.get_output_embeddings()
    if not isinstance(getattr(embed, "weight", None), torch.Tensor) or not isinstance(head, nn.Linear):
        raise UnsupportedModel(f"{type(model).__name__} has no embedding or no linear head where transformers puts them")
    tied = embed.weight is head.weight
    names = {id(module): name for name, module in model.named_modules()}
    head_name = f"{names[id(head)]}.weight"
    embed_name = f"{names[id(embed)]}.weight"
    return Skeleton(model, layers, layers_name, embed_name, head_name, tied)


def rope_sets(config: PreTrainedConfig) -> list[dict[str, Any]]:
    """The rope parameters: one set, or one for each kind of layer."""
    found = getattr(config, "rope_parameters", None) or {}
    return [found, *(value for value in found.values() if isinstance(value, dict))]


def fingerprint(skeleton: Skeleton) -> str:
    """Of the names and shapes of all tensors: another one means that the installed transformers builds this model
    otherwise."""
    shapes = sorted((name, list(value.shape)) for name, value in skeleton.model.state_dict().items())
    return hashlib.sha256(json.dumps(shapes).encode()).hexdigest()[:16]


def _on_meta(config: PreTrainedConfig, dtype: torch.dtype) -> PreTrainedModel:
    try:
        model = _construct(config, dtype).eval()
    except (ValueError, TypeError, KeyError, AttributeError, ImportError, RuntimeError, ZeroDivisionError) as error:
        raise UnsupportedModel(
            f"transformers cannot build a {config.model_type} from this config: {' '.join(str(error).split())}"
        ) from error
    model.tie_weights()
    _materialise_buffers(model)
    if hasattr(model, "set_experts_implementation"):
        model.set_experts_implementation("eager")
    return model


def _construct(config: PreTrainedConfig, dtype: torch.dtype) -> PreTrainedModel:
    """A model whose every tensor of a checkpoint is on meta."""
    try:
        with no_init_weights(), _ParametersOnMeta():
            model = _from_config(config, dtype)
    except RuntimeError:  # a family that computes with its parameters' own memory while it is built: then all of it is on meta
        with no_init_weights(), torch.device("meta"):
            return _from_config(config, dtype)
    saved = model.state_dict().keys()
    for prefix, owner in model.named_modules():
        for values in (owner._parameters, owner._buffers):
            for name, value in values.items():
                if value is not None and not value.is_meta and (f"{prefix}.{name}" if prefix else name) in saved:
                    values[name] = value.to("meta") if values is owner._buffers else nn.Parameter(value.to("meta"), value.requires_grad)
    return model


def _from_config(config: PreTrainedConfig, dtype: torch.dtype) -> PreTrainedModel:
    # eager: some families ask for it once, while they are built
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation="eager", trust_remote_code=False)
    return model


class _ParametersOnMeta(TorchFunctionMode):
    """What is about to be filled from a checkpoint takes no memory; what is computed (rope tables, slopes, masks) is computed for real.

    Everything on meta would do too, but arithmetic there loads torch's compiler: 70 MB and two seconds of a worker's start.
    """

    def __torch_function__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if kwargs.get("device") is None and (func in _UNFILLED or (func in _FILLED and _elements(args) > _MANY)):
            kwargs["device"] = "meta"
        return func(*args, **kwargs)


_UNFILLED: Final = frozenset({torch.empty, torch.rand, torch.randn})
_FILLED: Final = frozenset({torch.zeros, torch.ones})
_MANY: Final = 1 << 20


def _elements(sizes: tuple[Any, ...]) -> int:
    """Of a tensor of these sizes, given one by one or as one sequence."""
    numbers = sizes[0] if sizes and isinstance(sizes[0], Sequence) else sizes
    return math.prod(number for number in numbers if isinstance(number, int))


def _materialise_buffers(model: PreTrainedModel) -> None:
    """Computes what is in no checkpoint: non-persistent buffers, by the model's own initialisation, as from_pretrained
    does."""
    for name, buffer in list(model.named_non_persistent_buffers()):
        owner, _, key = name.rpartition(".")
        model.get_submodule(owner)._buffers[key] = torch.empty_like(buffer, device="cpu")
    for tensor in [*model.parameters(), *(b for b in model.buffers() if b.is_meta)]:
        tensor._is_hf_initialized = True
    model.initialize_weights()


def find_layers(model: PreTrainedModel, config: PreTrainedConfig) -> tuple[str, nn.ModuleList]:
    """The ModuleList of decoder layers and its path: where the decoder says, else the one of the right length and
    class."""
    names = {id(module): name for name, module in model.named_modules()}
    decoder = model.get_decoder()
    layers = getattr(decoder, "layers", None)
    if isinstance(layers, nn.ModuleList) and len(layers) == config.num_hidden_layers:
        return names[id(layers)], layers
    kinds = set(model._no_split_modules or ())
    for name, module in model.named_modules():
        is_list = isinstance(module, nn.ModuleList) and len(module) == config.num_hidden_layers
        if is_list and type(module[0]).__name__ in kinds:
            return name, module
    raise UnsupportedModel(f"{type(model).__name__} does not keep its layers in one list, so they cannot be streamed one by one")
