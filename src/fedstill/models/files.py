"""Model files that say what they are: safetensors, whose metadata hold architecture, class names and normalisation.

Reading one runs no code, unless it names a user's own factory and the reader allows the import.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Literal, final

import torch
from jaxtyping import Float
from pydantic import BaseModel, ConfigDict, Field
from safetensors.torch import save
from torch import Tensor, nn

from fedstill import __version__
from fedstill.data.shard import Normalisation
from fedstill.data.whitening import TENSORS, pack, unpack
from fedstill.described import read_described
from fedstill.errors import InputError, RunError
from fedstill.files import write_bytes
from fedstill.models import MODELS
from fedstill.models.architecture import Architecture, Network
from fedstill.seeds import Seed

__all__ = ["FORMAT", "Classifier", "Note", "load_model", "save_model"]

FORMAT = 3
"""Version of the format; it grows when an older reader would misread a newer file."""

_UNWHITENED = 2
"""Version of a file without whitening, which older readers read."""

Note = str | float | None
Fit = Literal["stretch", "crop"]

_CARD = "fedstill.model"
_OVERWRITTEN = Seed(("overwritten",))  # of weights that a file's replace


class _Card(BaseModel):
    """The metadata of a model file."""

    model_config = ConfigDict(strict=True, extra="forbid")

    version: int
    architecture: dict[str, Any]
    classes: list[str]
    mean: list[Annotated[float, Field(allow_inf_nan=False)]]
    std: list[Annotated[float, Field(gt=0, allow_inf_nan=False)]]
    zca_epsilon: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    fit: Fit = "stretch"  # format 1 did not say
    notes: dict[str, Note]


@final
class Classifier(nn.Module):
    """A trained network that takes plain pixels and knows the names of its classes; in evaluation mode, frozen.

    Attributes:
        network: logits from normalised images.
        architecture: of ``network``.
        classes: their names, in the order of the logits.
        normalisation: which ``forward`` applies.
        fit: how the images it learnt from were brought to size: ``stretch`` or ``crop``, as ``data.fit`` has it.
        notes: what the writer said of it: method, round, accuracy, version of fedstill.
    """

    def __init__(
        self,
        network: Network,
        *,
        architecture: Architecture,
        classes: tuple[str, ...],
        normalisation: Normalisation,
        fit: Fit = "stretch",
        notes: Mapping[str, Note] = MappingProxyType({}),
    ) -> None:
        super().__init__()
        self.network = network
        self.architecture = architecture
        self.classes = classes
        self.normalisation = normalisation
        self.fit = fit
        self.notes = dict(notes)
        self.eval().requires_grad_(False)

    def forward(self, pixels: Float[Tensor, "n c h w"]) -> Float[Tensor, "n classes"]:
        """Pixels in 0 … 1 → logits.

        Raises:
            InputError: the pixels are not floats, or not of the architecture's channels and size.
        """
        shape = (self.architecture.channels, *self.architecture.size)
        if pixels.dim() != 4 or tuple(pixels.shape[1:]) != shape or not pixels.is_floating_point():
            kind = str(pixels.dtype).removeprefix("torch.")
            raise InputError(
                f"this model takes pixels as floats in 0 to 1 of shape [n, {', '.join(map(str, shape))}], "
                f"not {kind} of shape {list(pixels.shape)}"
            )
        logits: Tensor = self.network(self.normalisation.apply(pixels))
        return logits

    def label(self, pixels: Float[Tensor, "n c h w"]) -> list[tuple[str, float]]:
        """The likeliest class of every image and its probability (softmax).

        Raises:
            InputError: as :meth:`forward`.
        """
        with torch.inference_mode():
            best = self(pixels).softmax(1).max(1)
        return [(self.classes[i], p) for i, p in zip(best.indices.tolist(), best.values.tolist(), strict=True)]


def save_model(
    path: str | Path,
    state: Mapping[str, Tensor],
    *,
    architecture: Architecture,
    classes: tuple[str, ...],
    normalisation: Normalisation,
    fit: Fit = "stretch",
    notes: Mapping[str, Note] = MappingProxyType({}),
) -> None:
    """Write a model file, whole or not at all.

    Args:
        path: by custom ``NAME.safetensors``.
        state: the network's ``state_dict``.
        architecture: written with every default.
        classes: names, in the order of the logits.
        normalisation: of the network's inputs.
        fit: how images were brought to the architecture's size; whoever predicts must do the same.
        notes: kept beside; a number that is not finite is written as null. The version of fedstill is added.

    Raises:
        InputError: state, classes or normalisation do not fit the architecture.
        RunError: a weight is not finite, or the disk refuses the file.
    """
    path = Path(path)
    _check_counts(architecture, classes, normalisation, f"cannot write {path}")
    _empty(architecture, state, f"cannot write {path}")
    if bad := _not_finite(state):
        raise RunError(f"cannot write {path}: the weights '{bad}' are not finite; use a smaller learning rate")
    whitening = normalisation.whitening
    card = {
        "version": _UNWHITENED if whitening is None else FORMAT,
        "architecture": architecture.resolved().to_json(),
        "classes": list(classes),
        **normalisation.to_json(),
        "fit": fit,
        "notes": {name: _note(value) for name, value in {"fedstill": __version__, **notes}.items()},
    }
    # cloned: safetensors refuses tensors that share memory
    flat = {name: state[name].detach().cpu().clone(memory_format=torch.contiguous_format) for name in sorted(state)}
    beside = {} if whitening is None else pack(whitening)
    assert not flat.keys() & beside.keys()
    write_bytes(path, save(flat | beside, {_CARD: json.dumps(card, allow_nan=False)}))


def load_model(path: str | Path, device: str = "cpu", *, allow_import: bool = False) -> Classifier:
    """Read what :func:`save_model` wrote.

    Args:
        path: of the file.
        device: where the classifier is to compute.
        allow_import: whether a file may name a user's own ``package.module:factory``, whose code is then run.

    Raises:
        InputError: the file is missing, not safetensors, not from fedstill, from a newer fedstill, or damaged; it needs
            an import that is not allowed; its weights do not fit its architecture or are not finite; there is no such
            device.
    """
    path = Path(path)
    card, state = read_described(
        path,
        key=_CARD,
        card=_Card,
        newest=FORMAT,
        what="a model file",
        foreign="was not written by fedstill as a model: it does not say what network its tensors are weights of",
    )
    architecture = Architecture.from_json(card.architecture, key=f"{path}: model")
    if architecture.name not in MODELS and not allow_import:
        raise InputError(
            f"{path} names the network '{architecture.name}', which is not fedstill's own, and loading it would run "
            "that code: pass allow_import=True if you trust the file and have the code"
        )
    classes, normalisation = tuple(card.classes), Normalisation(tuple(card.mean), tuple(card.std))
    if card.zca_epsilon is not None:
        shape = (architecture.channels, *architecture.size)
        whitening = unpack(state, shape=shape, epsilon=card.zca_epsilon, place=str(path))
        normalisation = replace(normalisation, whitening=whitening)
        state = {name: tensor for name, tensor in state.items() if name not in TENSORS}
    _check_counts(architecture, classes, normalisation, str(path))
    network = _empty(architecture, state, str(path))
    if bad := _not_finite(state):
        raise InputError(f"{path}: the weights '{bad}' are not finite, so the model is of no use; take an earlier one")
    network = network.to_empty(device="cpu") if architecture.name in MODELS else network
    network.load_state_dict(state)
    try:
        network, normalisation = network.to(device), normalisation.to(device)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"device = '{device}': {str(error).splitlines()[0]}") from error
    return Classifier(
        network,
        architecture=architecture,
        classes=classes,
        normalisation=normalisation,
        fit=card.fit,
        notes=card.notes,
    )


def _check_counts(architecture: Architecture, classes: tuple[str, ...], norm: Normalisation, place: str) -> None:
    for what, given, wanted in (
        ("names of classes", len(classes), architecture.classes),
        ("means of the normalisation", len(norm.mean), architecture.channels),
        ("deviations of the normalisation", len(norm.std), architecture.channels),
    ):
        if given != wanted:
            raise InputError(f"{place}: {given} {what} do not fit the architecture, which has {wanted}")


def _empty(architecture: Architecture, state: Mapping[str, Tensor], place: str) -> Network:
    """A network that ``state`` fits; fedstill's own on the meta device, so that a hostile file claims no memory."""
    if architecture.name in MODELS:
        try:
            with torch.device("meta"):
                network = architecture.build(_OVERWRITTEN)
        except (RuntimeError, TypeError, OverflowError) as error:
            reason = str(error).splitlines()[0]
            raise InputError(f"{place}: no network '{architecture.name}' can be so large ({reason})") from error
    else:
        network = architecture.build(_OVERWRITTEN)
    wanted = network.state_dict()
    for name in sorted(wanted.keys() | state.keys()):
        if name not in state or name not in wanted:
            trouble = f"'{name}' is missing" if name not in state else f"'{name}' is none of its weights"
        elif state[name].shape != wanted[name].shape or state[name].dtype != wanted[name].dtype:
            trouble = f"'{name}' is {_described(state[name])} and not {_described(wanted[name])}"
        else:
            continue
        raise InputError(f"{place}: the weights do not fit the architecture '{architecture.name}': {trouble}")
    return network


def _described(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"


def _not_finite(state: Mapping[str, Tensor]) -> str | None:
    return next((name for name, tensor in sorted(state.items()) if not bool(torch.isfinite(tensor).all())), None)


def _note(value: Note) -> Note:
    return None if isinstance(value, float) and not math.isfinite(value) else value
