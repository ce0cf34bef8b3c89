"""An architecture is a value: a name, what the data decide, and options. Building it from a seed gives a network."""

from __future__ import annotations

import inspect
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, cast, get_args

import torch
from jaxtyping import Float
from pydantic import TypeAdapter, ValidationError
from torch import Tensor, nn

from fedstill.errors import InputError, suggestion, unknown
from fedstill.models import MODELS
from fedstill.runtime import available_memory
from fedstill.seeds import Seed
from fedstill.tables import resolve

__all__ = ["Architecture", "Network", "Option"]

Option = int | float | str | bool
_GIVEN = ("channels", "size", "classes")


class Network(nn.Module, ABC):
    """A classifier in two parts: ``forward(x)`` is ``classify(features(x))``.

    A module of a user's own factory need not derive from this class: it is enough that it has both methods.
    """

    @abstractmethod
    def features(self, inputs: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d"]:
        """Normalised images → feature vectors."""

    @abstractmethod
    def classify(self, features: Float[Tensor, "n d"]) -> Float[Tensor, "n classes"]:
        """Feature vectors → logits."""

    def forward(self, inputs: Float[Tensor, "n c h w"]) -> Float[Tensor, "n classes"]:
        return self.classify(self.features(inputs))


@dataclass(frozen=True)
class Architecture:
    """All that determines a network but its weights.

    Attributes:
        name: of the table, or the user's own ``package.module:factory``.
        channels: of the images.
        size: height and width in pixels.
        classes: how many.
        options: the factory's own; what is absent has the factory's default.
        key: where the user wrote it, for the texts of errors; no part of the value.

    Raises:
        InputError: a number that the data decide is below 1.
    """

    name: str
    channels: int
    size: tuple[int, int]
    classes: int
    options: Mapping[str, Option] = field(default_factory=dict, hash=False)
    key: str = field(default="model", compare=False, repr=False)

    def __post_init__(self) -> None:
        if min(self.channels, *self.size, self.classes) < 1:
            height, width = self.size
            raise InputError(
                f"{self.key}: no network takes {self.channels} x {height} x {width} pixels and gives {self.classes} "
                "classes: channels, size and classes are at least 1"
            )
        object.__setattr__(self, "options", dict(self.options))  # the caller's may change; plain, so that it pickles

    def build(self, seed: Seed) -> Network:
        """A fresh network in training mode; the same seed gives the same bits.

        Raises:
            InputError: the name or an option is unknown, an option has a wrong type or value, the network cannot take
                images of this size, or the user's own factory gives no module with ``features`` and ``classify``.
        """
        factory, options = self._validated()
        try:
            with seed.scope():
                network = factory(channels=self.channels, size=self.size, classes=self.classes, **options)
        except ValueError as error:
            text = str(error)
            place = f"{self.key}." if text.split(" ")[0] in options else f"{self.key}.name = '{self.name}': "
            raise InputError(place + text) from error
        lacking = [name for name in ("features", "classify") if not callable(getattr(network, name, None))]
        if lacking or not isinstance(network, nn.Module):
            raise InputError(
                f"{self.key}.name = '{self.name}': it gives a {type(network).__name__} "
                + (f"without {' and '.join(lacking)}" if lacking else "that is no torch.nn.Module")
                + "; fedstill needs a torch.nn.Module with features(x) -> [n, d] and classify(f) -> [n, classes]"
            )
        return cast(Network, network)

    def check(self) -> None:
        """Build once and classify one blank image, so that an error is said before a run and not hours into it.

        Raises:
            InputError: as :meth:`build`; or the network is too large for this machine's memory, fails on such an image, or gives
                something else than logits.
        """
        self._check_room()
        network = self.build(Seed(("check",))).eval()
        shape = (self.channels, *self.size)
        place = f"{self.key}.name = '{self.name}': on one image of {' x '.join(map(str, shape))}"
        try:
            with torch.inference_mode():
                features = network.features(torch.zeros(1, *shape))
                logits = network.classify(features)
        except RuntimeError as error:
            raise InputError(f"{place} it fails: {str(error).splitlines()[0]}") from error
        for what, tensor, wanted in (
            ("features", features, features.dim() == 2 and len(features) == 1),
            ("classify", logits, logits.shape == (1, self.classes)),
        ):
            if not wanted:
                columns = "d" if what == "features" else self.classes
                raise InputError(f"{place}, {what} gives the shape {list(tensor.shape)} and not [1, {columns}]")

    def _check_room(self) -> None:
        """Refuse one of fedstill's own networks whose weights alone take more than is free; a file may have named it."""
        if self.name not in MODELS:
            return
        with torch.device("meta"):  # takes no memory
            network = self.build(Seed(("check",)))
        needed, free = sum(tensor.nbytes for tensor in network.state_dict().values()), available_memory()
        if free is not None and needed > free:
            raise InputError(
                f"{self.key}.name = '{self.name}': its weights take {needed / 1e9:.1f} GB, and {free / 1e9:.1f} GB of "
                "memory are free: choose a smaller network"
            )

    def resolved(self) -> Architecture:
        """The same architecture with every default written out, as it goes into files.

        A default of a user's own factory that is no plain value (None, a tuple) stays the factory's.

        Raises:
            InputError: as :meth:`build`, for names and options.
        """
        return replace(self, options={k: v for k, v in self._validated()[1].items() if _is_option(v)})

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "name": self.name,
            "channels": self.channels,
            "size": list(self.size),
            "classes": self.classes,
            "options": dict(self.options),
        }

    @classmethod
    def from_json(cls, value: object, *, key: str = "model") -> Architecture:
        """What :meth:`to_json` gave; nothing is imported, and the options are looked at when it is built.

        Raises:
            InputError: ``value`` is something else.
        """
        match value:
            case {
                "name": str(name),
                "channels": int(channels),
                "size": [int(height), int(width)],
                "classes": int(classes),
                "options": dict(options),
            } if all(isinstance(k, str) and _is_option(v) for k, v in options.items()):
                return cls(name, channels, (height, width), classes, options, key)
        raise InputError(f"{key}: not an architecture, which has name, channels, size, classes and options")

    def _validated(self) -> tuple[Callable[..., object], dict[str, Option]]:
        """The factory, and all its options."""
        factory = resolve(MODELS, self.name, f"{self.key}.name")
        parameters = _parameters(factory, f"{self.key}.name = '{self.name}'")
        options: dict[str, Option] = {}
        for name, value in self.options.items():
            if name in _GIVEN:
                raise InputError(f"{self.key}.{name} = {value!r}: the data decide it; remove this line")
            if name not in parameters:
                hint = suggestion(name, parameters) if parameters else "this network has no options"
                raise InputError(f"{self.key}.{name} = {value!r}: {hint}")
            options[name] = _validated_option(f"{self.key}.{name}", value, parameters[name].annotation)
        for name, parameter in parameters.items():
            if name not in options:
                if parameter.default is inspect.Parameter.empty:
                    raise InputError(f"{self.key}.{name} is missing: '{self.name}' has no default for it")
                options[name] = parameter.default
        return factory, {name: options[name] for name in parameters}


def _parameters(factory: object, place: str) -> dict[str, inspect.Parameter]:
    """The options of a factory, by name."""
    if not callable(factory):
        raise InputError(f"{place}: it is a {type(factory).__name__} and not a function that builds a network")
    try:
        signature = inspect.signature(factory, eval_str=True)
    except (NameError, ValueError, TypeError) as error:
        raise InputError(f"{place}: its parameters cannot be read ({error})") from error
    named = {
        name: parameter
        for name, parameter in signature.parameters.items()
        if parameter.kind in (inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    }
    missing = [name for name in _GIVEN if name not in named]
    if missing:
        raise InputError(
            f"{place}: it does not take {' and '.join(missing)}; a factory takes {', '.join(_GIVEN)} by keyword"
        )
    return {name: parameter for name, parameter in named.items() if name not in _GIVEN}


def _validated_option(place: str, value: Option, annotation: Any) -> Option:
    choices = [choice for choice in get_args(annotation) if isinstance(choice, str)]
    if isinstance(value, str) and choices and value not in choices:
        raise unknown(place, value, choices)
    adapter = TypeAdapter[Any](Any if annotation is inspect.Parameter.empty else annotation)
    try:
        valid = adapter.validate_python(value, strict=True)
    except ValidationError as error:
        reason = error.errors()[0]["msg"].replace("Input should be", "it must be")
        raise InputError(f"{place} = {value!r}: {reason}") from error
    return cast(Option, valid)


def _is_option(value: object) -> bool:
    return isinstance(value, int | str) or (isinstance(value, float) and math.isfinite(value))
