"""Distilled images as one file that says what it is: images, labels, who made which row, and how to learn from them.

    write("digits.safetensors", distilled)
    network = fit(network, read("digits.safetensors").shard, distilled.recipe, seed=…)

It is safetensors with three tensors (``images``, ``labels``, ``makers``) and one JSON object in the metadata;
docs/distilled-files.md has the format. Reading one runs no code, and what is read has been checked: shapes, types, counts.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from jaxtyping import Int64
from pydantic import BaseModel, ConfigDict, Field
from safetensors.torch import save
from torch import Tensor

from fedstill.data.augment import OPERATIONS
from fedstill.data.shard import Normalisation, Shard
from fedstill.data.whitening import TENSORS, pack, unpack
from fedstill.described import parse_card, read_described
from fedstill.errors import InputError
from fedstill.files import write_bytes
from fedstill.models.architecture import Architecture
from fedstill.train import Recipe

__all__ = ["FORMAT", "Distilled", "Maker", "Provenance", "Quantised", "Score", "is_distilled", "read", "write"]

FORMAT = 2
"""Version of the format; it grows when an older reader would misread a newer file."""

_UNWHITENED = 1
"""Version of a file without whitening, which older readers read."""

_CARD = "fedstill.distilled"
_WHAT = "a distilled file"
_FOREIGN = "is not a distilled file: give one that 'fedstill pack' wrote"

Hash = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=0)]

_RANGES: Mapping[str, tuple[float, float]] = {
    "epochs": (1, 10**6),
    "lr": (1e-12, 10**6),
    "batch": (1, 10**9),
    "momentum": (0, 1),
    "decay": (0, 10**3),
    "temperature": (1e-3, 10**3),
    "drop": (0, 10**3),
}
"""Of a recipe, both ends included: a file is not to make its reader train for ever."""

_STRENGTHS: Mapping[str, tuple[float, float]] = {
    "brightness": (0, 100),
    "saturation": (0, 100),
    "contrast": (0, 100),
    "crop": (0, 1),
    "cutout": (0, 1),
    "flip": (0, 1),
    "scale": (1, 100),
    "rotate": (0, 360),
}


@dataclass(frozen=True)
class Maker:
    """Who made some of the rows.

    Attributes:
        name: the client's, or a number that says nothing about it.
        images: how many rows.
        rate: α, the student's step size that was learnt with them; None where none was.
    """

    name: Annotated[str, Field(min_length=1, max_length=64)]
    images: Count
    rate: Annotated[float, Field(gt=0)] | None = None


@dataclass(frozen=True)
class Provenance:
    """Where the images come from; no path, no machine and nobody's name.

    Attributes:
        fedstill, torch: versions.
        method: the algorithm's name.
        round, seed: of the run.
        settings: SHA-256 of all that decides the run's results: settings, data, partition.
        data: SHA-256 of the run's images, labels, classes and normalisation.
        partition: SHA-256 of who held what.
    """

    fedstill: str
    torch: str
    method: str
    round: Count
    seed: Count
    settings: Hash
    data: Hash
    partition: Hash


@dataclass(frozen=True)
class Quantised:
    """That images were floats and are 256 levels now.

    Attributes:
        clipped: values that lay beyond 0 … 255 and were brought to its ends.
        values: of all images.
    """

    clipped: Count
    values: Count


@dataclass(frozen=True)
class Score:
    """What fresh networks of one kind came to that learnt from these images alone, by the file's recipe.

    Attributes:
        name: what results call the network.
        architecture: every option written out.
        accuracies: by seed, from 0.
        floats: the same with the images as they were before they were quantised; empty where that was not measured.
        test: SHA-256 of the test images, as :func:`fedstill.data.testing.fingerprint` takes it.
        images: how many test images.
    """

    name: str
    architecture: Architecture
    accuracies: tuple[float, ...]
    test: str
    images: int
    floats: tuple[float, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Distilled:
    """What a distilled file holds.

    Attributes:
        shard: the union of all makers' images: uint8, or float32 in units of the pixel range; labels int64 [n], or float32
            [n, classes], each row a distribution; names of the classes; normalisation.
        makers: who made them.
        rows: int64 [n]: the place in ``makers`` of each row's.
        fit: how the images that they stand for were brought to size: ``stretch`` or ``crop``, as ``data.fit`` has it.
        recipe: how networks are to learn from them.
        threads: compute threads that the scores were measured with; they change the last bits of a sum.
        provenance: where they come from.
        quantised: None where they are as they were made.
        scores: what was measured with them.
    """

    shard: Shard
    makers: tuple[Maker, ...]
    rows: Int64[Tensor, " n"]
    recipe: Recipe
    provenance: Provenance
    fit: Literal["stretch", "crop"] = "stretch"
    threads: int = 1
    quantised: Quantised | None = None
    scores: tuple[Score, ...] = ()


class _ScoreCard(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)

    name: Annotated[str, Field(min_length=1, max_length=200)]
    architecture: dict[str, Any]
    accuracies: Annotated[list[Share], Field(min_length=1)]
    test: Hash
    images: Annotated[int, Field(ge=1)]
    floats: list[Share]


class _NormalisationCard(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)

    mean: tuple[float, ...]
    std: tuple[float, ...]
    zca_epsilon: Annotated[float, Field(gt=0)] | None = None


class _Card(BaseModel):
    """The metadata of a distilled file."""

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)

    version: int
    classes: list[str]
    normalisation: _NormalisationCard
    histogram: list[int]
    makers: list[Maker]
    fit: Literal["stretch", "crop"]
    recipe: Recipe
    threads: Annotated[int, Field(ge=1, le=1024)]
    provenance: Provenance
    quantised: Quantised | None
    scores: list[_ScoreCard]


def write(path: str | Path, distilled: Distilled) -> None:
    """Write a distilled file, whole or not at all; equal contents give equal bytes.

    Raises:
        InputError: it does not add up, and no reader would take it.
        RunError: the disk refuses the file.
    """
    path = Path(path)
    shard, whitening = distilled.shard, distilled.shard.normalisation.whitening
    card = {
        "version": _UNWHITENED if whitening is None else FORMAT,
        "classes": list(shard.classes),
        "normalisation": shard.normalisation.to_json(),
        "histogram": [],
        "makers": [asdict(maker) for maker in distilled.makers],
        "fit": distilled.fit,
        "recipe": asdict(distilled.recipe),
        "threads": distilled.threads,
        "provenance": asdict(distilled.provenance),
        "quantised": None if distilled.quantised is None else asdict(distilled.quantised),
        "scores": [{**vars(each), "architecture": each.architecture.to_json()} for each in distilled.scores],
    }
    # cloned: safetensors refuses tensors that share memory
    tensors = {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, tensor in (("images", shard.images), ("labels", shard.labels), ("makers", distilled.rows))
    }
    place = f"cannot write {path}: it would be refused, for it"
    if (wrong := _wrong_tensors(tensors, classes=len(shard.classes), makers=len(distilled.makers))) is not None:
        raise InputError(f"{place} is damaged: {wrong}")
    tensors |= {} if whitening is None else pack(whitening)
    text = json.dumps(card | {"histogram": shard.histogram()})
    _understood(parse_card(text, card=_Card, newest=FORMAT, place=place), tensors, place)
    write_bytes(path, save(tensors, {_CARD: text}))


def read(path: str | Path) -> Distilled:
    """What :func:`write` wrote.

    Raises:
        InputError: the file is missing, not safetensors, not a distilled file, from a newer fedstill, or damaged: what it says
            of itself and what it holds do not agree, or cannot be meant.
    """
    path = Path(path)
    card, tensors = read_described(path, key=_CARD, card=_Card, newest=FORMAT, what=_WHAT, foreign=_FOREIGN)
    return _understood(card, tensors, str(path))


def is_distilled(path: Path) -> bool:
    """Whether a distilled file, whole or damaged, lies at ``path``: one that may be replaced."""
    try:
        with path.open("rb") as file:
            header = file.read(8)
            return f'"{_CARD}"'.encode() in file.read(min(int.from_bytes(header, "little"), 2**20))
    except OSError:
        return False


def _understood(card: _Card, tensors: Mapping[str, Tensor], place: str) -> Distilled:
    """The card and the tensors as one.

    Raises:
        InputError: they do not agree, or say what cannot be.
    """
    epsilon = card.normalisation.zca_epsilon
    of_rows = {name: tensor for name, tensor in tensors.items() if epsilon is None or name not in TENSORS}
    wrong = (
        _wrong_names("class", card.classes)
        or _wrong_names("maker", [maker.name for maker in card.makers])
        or (_wrong_names("score", [score.name for score in card.scores]) if card.scores else None)
        or _wrong_origin(card.provenance)
        or _wrong_tensors(of_rows, classes=len(card.classes), makers=len(card.makers))
        or _wrong_counts(card, of_rows)
        or _wrong_recipe(card.recipe)
    )
    if wrong is not None:
        raise InputError(f"{place} is damaged: {wrong}")
    images, labels, rows = (tensors[name].clone() for name in ("images", "labels", "makers"))
    whitening = None if epsilon is None else unpack(tensors, shape=images.shape[1:], epsilon=epsilon, place=place)
    normalisation = Normalisation(card.normalisation.mean, card.normalisation.std, whitening)
    return Distilled(
        shard=Shard(images, labels, tuple(card.classes), normalisation),
        makers=tuple(card.makers),
        rows=rows,
        fit=card.fit,
        recipe=card.recipe,
        threads=card.threads,
        provenance=card.provenance,
        quantised=card.quantised,
        scores=tuple(
            _score(each, images, len(card.classes), f"{place} is damaged: scores.{index}")
            for index, each in enumerate(card.scores)
        ),
    )


def _score(card: _ScoreCard, images: Tensor, classes: int, place: str) -> Score:
    architecture = Architecture.from_json(card.architecture, key=f"{place}: architecture")
    if (architecture.channels, *architecture.size, architecture.classes) != (*images.shape[1:], classes):
        raise InputError(f"{place}: '{card.name}' is no network for these images and classes")
    if card.floats and len(card.floats) != len(card.accuracies):
        raise InputError(f"{place}: {len(card.floats)} accuracies with floats for {len(card.accuracies)} without")
    return Score(card.name, architecture, tuple(card.accuracies), card.test, card.images, tuple(card.floats))


def _wrong_names(what: str, names: Sequence[str]) -> str | None:
    """Why these cannot be names; they are shown on terminals and looked up by."""
    if not names:
        return f"it names no {what}"
    if odd := [name for name in names if not name or len(name) > 200 or not name.isprintable()]:
        return f"a {what} is called {odd[0][:40]!a}"
    if len(set(names)) < len(names):
        return f"two of its {what} names are the same"
    return None


def _wrong_origin(origin: Provenance) -> str | None:
    """Why nobody would want to read these words."""
    for name, word in (("fedstill", origin.fedstill), ("torch", origin.torch), ("method", origin.method)):
        if not word or len(word) > 200 or not word.isprintable():
            return f"its provenance names {name} {word[:40]!a}"
    return None


def _wrong_tensors(tensors: Mapping[str, Tensor], *, classes: int, makers: int) -> str | None:
    """Why these are no labelled images; None where they are."""
    if tensors.keys() != {"images", "labels", "makers"}:
        return f"it holds {', '.join(sorted(tensors))[:80] or 'nothing'} where images, labels and makers are due"
    images, labels, rows = tensors["images"], tensors["labels"], tensors["makers"]
    if images.dim() != 4 or 0 in images.shape or images.dtype not in (torch.uint8, torch.float32):
        return f"its images are {_described(images)} where uint8 or float32 [n, c, h, w] is due"
    count = len(images)
    hard, soft = (torch.int64, (count,)), (torch.float32, (count, classes))
    if (labels.dtype, tuple(labels.shape)) not in (hard, soft):
        return f"its labels are {_described(labels)} for {count} images of {classes} classes"
    if (rows.dtype, tuple(rows.shape)) != hard:
        return f"its makers are {_described(rows)} where int64 [{count}] is due"
    if images.is_floating_point() and not bool(torch.isfinite(images).all()):
        return "its images are not finite"
    if bool(((rows < 0) | (rows >= makers)).any()):
        return f"its makers are not all of 0 to {makers - 1}"
    if labels.dim() == 1:
        if bool(((labels < 0) | (labels >= classes)).any()):
            return f"its labels are not all of 0 to {classes - 1}"
    # written so that NaN is refused
    elif not bool(((labels >= 0) & (labels <= 1)).all() and ((labels.sum(1) - 1).abs() < 1e-3).all()):
        return "its soft labels are no distributions over the classes"
    return None


def _described(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"


def _wrong_counts(card: _Card, tensors: Mapping[str, Tensor]) -> str | None:
    """Where the card does not fit the tensors."""
    images = tensors["images"]
    mean, std = card.normalisation.mean, card.normalisation.std
    if not len(mean) == len(std) == images.shape[1]:
        return f"its normalisation is of {len(mean)} and {len(std)} channels and its images are of {images.shape[1]}"
    if min(std) <= 0:
        return "its normalisation has a deviation that is not above 0"
    made = torch.bincount(tensors["makers"], minlength=len(card.makers)).tolist()
    for maker, count in zip(card.makers, made, strict=True):
        if maker.images != count:
            return f"it says that '{maker.name}' made {maker.images} images, and it holds {count} of them"
    held = Shard(images, tensors["labels"], tuple(card.classes), Normalisation(mean, std)).histogram()
    if card.histogram != held:
        return f"its histogram says {str(card.histogram)[:60]} images a class, and it holds {str(held)[:60]}"
    if card.quantised is not None and not (
        images.dtype == torch.uint8 and card.quantised.clipped <= card.quantised.values == images.numel()
    ):
        return "what it says of its quantisation does not fit its images"
    return None


def _wrong_recipe(recipe: Recipe) -> str | None:
    """Which setting nobody can train by."""
    for place, owner, ranges in (("recipe", recipe, _RANGES), ("recipe.augmentation", recipe.augmentation, _STRENGTHS)):
        for name in {each.name for each in fields(owner)} & ranges.keys():
            low, high = ranges[name]
            value = getattr(owner, name)
            if not low <= value <= high:  # which NaN never does
                return f"{place}.{name} = {str(value)[:20]} lies outside {low:g} to {high:g}"
    operations = recipe.augmentation.operations
    if set(operations) - set(OPERATIONS) or len(set(operations)) < len(operations):
        return f"recipe.augmentation.operations are not of {', '.join(OPERATIONS)}, each at most once"
    return None
