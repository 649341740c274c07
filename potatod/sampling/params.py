"""How one answer is sampled: each value from the request, else ``[sampling]``, generation_config.json, greedy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Protocol

from potato_client.question import Options
from potatod.errors import ModelDataError

_GREEDY_BELOW: Final = 1e-6
#: A schema.
ANY_OBJECT: Final = '{"type": "object"}'


@dataclass(frozen=True, slots=True)
class Sampling:
    """The values that hold for one answer. A processor whose value is neutral (as here by default) is not applied."""

    temperature: float = 0.0
    #: 0: among all
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    #: 0 … 2^63 - 1, the first part of the noise's key
    seed: int = 0
    #: None: as many as the context leaves
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    #: token ids, and what is added to the logit of each
    logit_bias: tuple[tuple[int, float], ...] = ()
    #: likeliest tokens whose log probabilities are told with each token's own; None: none are
    top_logprobs: int | None = None
    #: tokens are those of JSON of this JSON Schema; None: of anything
    json_schema: str | None = None

    @property
    def greedy(self) -> bool:
        """Whether the likeliest token (after bias and penalties) is always taken.

        So it is at temperature 0, and just above it, where only differences of no meaning in fp32 would be drawn among.
        """
        return self.temperature < _GREEDY_BELOW


class SamplingDefaults(Protocol):
    """The ``[sampling]`` section: what holds where a request says nothing; None leaves it to the model."""

    @property
    def temperature(self) -> float | None: ...
    @property
    def top_k(self) -> int | None: ...
    @property
    def top_p(self) -> float | None: ...
    @property
    def min_p(self) -> float | None: ...
    @property
    def repetition_penalty(self) -> float | None: ...
    @property
    def max_tokens(self) -> int | None: ...


def resolve(
    options: Options, defaults: SamplingDefaults, generation_config: Mapping[str, Any], *, drawn_seed: int
) -> Sampling:
    """The values for a request. ``drawn_seed`` is taken where the request names none.

    Raises :class:`ModelDataError`, naming the key, where generation_config.json has a value without a meaning.
    """
    model = of_model(generation_config)

    def first(name: str) -> Any:
        for source in (options, defaults):
            value = getattr(source, name)
            if value is not None:
                return value
        return getattr(model, name)

    return Sampling(
        temperature=float(first("temperature")),
        top_k=first("top_k"),
        top_p=float(first("top_p")),
        min_p=float(first("min_p")),
        repetition_penalty=float(first("repetition_penalty")),
        seed=drawn_seed if options.seed is None else options.seed,
        max_tokens=first("max_tokens"),
        stop=options.stop,
        frequency_penalty=float(options.frequency_penalty or 0),
        presence_penalty=float(options.presence_penalty or 0),
        logit_bias=options.logit_bias,
        top_logprobs=options.top_logprobs,
        json_schema=ANY_OBJECT if options.json_object else options.json_schema,
    )


def of_model(generation_config: Mapping[str, Any]) -> Sampling:
    """What generation_config.json asks for, read as transformers' ``generate`` reads it.

    ``do_sample: true`` takes its sampling values, and transformers' defaults for those that are absent or null (among
    them top_k 50). Otherwise the model is greedy and its sampling values say nothing. The repetition penalty holds in
    both. Raises :class:`ModelDataError` as :func:`resolve` does.
    """
    penalty = _number(generation_config, "repetition_penalty", 1.0, "a number greater than 0", above=0)
    max_tokens = _whole(generation_config, "max_new_tokens", 1)
    do_sample = generation_config.get("do_sample")
    if do_sample not in (None, False, True):
        raise _wrong("do_sample", do_sample, "true or false")
    if not do_sample:
        return Sampling(repetition_penalty=penalty, max_tokens=max_tokens)
    top_k = _whole(generation_config, "top_k", 0)
    return Sampling(
        temperature=_number(generation_config, "temperature", 1.0, "a number of 0 or more"),
        top_k=_TRANSFORMERS_TOP_K if top_k is None else top_k,
        top_p=_number(generation_config, "top_p", 1.0, "greater than 0 and at most 1", above=0, high=1),
        min_p=_number(generation_config, "min_p", 0.0, "between 0 and 1", high=1),
        repetition_penalty=penalty,
        max_tokens=max_tokens,
    )


_TRANSFORMERS_TOP_K: Final = 50


def _number(
    config: Mapping[str, Any], key: str, default: float, what: str, *, above: float | None = None, high: float = 1e4
) -> float:
    """A value between 0 and ``high``, greater than ``above`` where that is given. NaN lies nowhere."""
    value = config.get(key)
    if value is None:
        return default
    good = type(value) in (int, float) and 0 <= value <= high and (above is None or value > above)
    if not good:
        raise _wrong(key, value, what)
    return float(value)


def _whole(config: Mapping[str, Any], key: str, low: int) -> int | None:
    value = config.get(key)
    if value is None:
        return None
    if type(value) is not int or not low <= value <= 1 << 31:
        raise _wrong(key, value, f"a whole number of {low} or more")
    return value


def _wrong(key: str, value: object, what: str) -> ModelDataError:
    return ModelDataError(f"generation_config.json: {key} is {str(value)[:60]!r} and must be {what}; mend the file")
