"""A source's model without weights, and what converts its tensors for it: tied as the weights are, whatever the config says."""

from __future__ import annotations

import torch

from potatod.errors import ModelDataError

from . import skeleton
from .convert import Converter
from .skeleton import Skeleton
from .source import Source
from .supply import Supply


def fitted(source: Source, dtype: torch.dtype, supply: Supply) -> tuple[Skeleton, Converter]:
    """Skeleton and converter, tied as the checkpoint itself is: configs are wrong about that, and from_pretrained looks
    too."""
    built = skeleton.build(source.config, dtype)
    converter = Converter(built, source.tensors(built, dtype), dtype)
    both = converter.has(built.embed_name) and converter.has(built.head_name)
    if built.tied and both and not supply.same(lambda: _same(built, converter)):
        source.config.tie_word_embeddings = False
        built = skeleton.build(source.config, dtype)
        converter = Converter(built, source.tensors(built, dtype), dtype)
    if not converter.has(built.embed_name) and not (built.tied and converter.has(built.head_name)):
        raise ModelDataError(f"{source.path} has nothing for {built.embed_name}, which {source.config.model_type} needs: it is incomplete")
    if not built.tied and not converter.has(built.head_name):
        raise ModelDataError(
            f"{source.path} has nothing for {built.head_name}; if head and embedding are one in this model, its "
            "config.json must say "
            '"tie_word_embeddings": true'
        )
    return built, converter


def _same(built: Skeleton, converter: Converter) -> bool:
    pairs = zip(converter.matrix(built.embed_name), converter.matrix(built.head_name), strict=True)
    return all(torch.equal(embed, head) for embed, head in pairs)
