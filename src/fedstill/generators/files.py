"""Priors as files: safetensors whose metadata says all that is needed to rebuild and to judge them.

Nothing is unpickled. The metadata holds one JSON object under ``fedstill``: ``format``, ``version``, ``network`` (from version 2
on; ``style`` before), ``options`` (of that network) and ``card`` (class names, what it was trained on, the recipe).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from importlib.resources import files
from pathlib import Path
from typing import Any, cast

import torch
from pydantic import TypeAdapter, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from fedstill.errors import InputError, RunError, printable
from fedstill.files import write_bytes
from fedstill.generators import PRIORS
from fedstill.generators.style import StyleGenerator, StyleOptions
from fedstill.generators.stylegan_xl import StyleGANXL
from fedstill.generators.xl_options import XLOptions

__all__ = ["XL", "Prior", "described", "load_prior", "prior_hash", "read_card", "rebuilt", "save_prior"]

_FORMAT = "fedstill.prior"
_VERSION = 2
_MOST_HEAD = 100 * 10**6  # as safetensors has it
_KEY = "fedstill"
_STYLE, XL = "style", "stylegan-xl"

Prior = StyleGenerator | StyleGANXL


def save_prior(path: Path, generator: Prior, card: Mapping[str, Any], *, half: bool = True) -> None:
    """Write ``generator`` and its ``card`` (JSON values) to ``path``, whole or not at all.

    ``half`` stores what was learned as float16: half the size, and images that differ by about one of 256 grey levels at
    most. Filters and running means stay as they are.

    Raises:
        RunError: a weight leaves float16's range, or the file cannot be written.
    """
    learned = {name for name, _ in generator.named_parameters()} if half else set()
    tensors = {
        name: tensor.detach().cpu().to(torch.float16 if name in learned else torch.float32).contiguous()
        for name, tensor in generator.state_dict().items()
    }
    if not _finite(tensors):
        raise RunError(
            f"{path} is not written: a weight is not finite, or too large for half precision; set half = false"
        )
    # an older fedstill reads version 1, and a style prior is nothing else
    about = {"version": 1} if isinstance(generator, StyleGenerator) else {"version": _VERSION, "network": XL}
    head = {"format": _FORMAT, **about, "options": asdict(generator.options), "card": dict(card)}
    write_bytes(path, save(tensors, {_KEY: json.dumps(head, allow_nan=False)}))


def load_prior(path_or_name: str | Path, *, truncation: float = 1.0, classes: Sequence[int] | None = None) -> Prior:
    """A frozen generator in float32 on the CPU, from a file or a shipped prior's name.

    Args:
        path_or_name: the file, or the name.
        truncation: ψ of its mapping network; 1 switches it off.
        classes: numbers of the classes that it is to have, which are then counted from 0; None: all.

    Raises:
        InputError: the file is missing, damaged, no prior, of a newer format, its weights are not finite, or it has no such
            class.
    """
    content, source = _content(path_or_name)
    head = _head(content, source)
    options = described(head, source)
    try:
        tensors = {name: tensor.float() for name, tensor in load(content).items()}
    except SafetensorError as error:
        raise InputError(f"{source} is damaged ({error}): fetch or train it again") from error
    whole = rebuilt(options, tensors, source, truncation=truncation)
    return whole if classes is None else _reduced(whole, classes, source)


def _reduced(prior: Prior, classes: Sequence[int], source: str) -> Prior:
    """The prior of these classes alone: what it holds of a class is a row of two tables."""
    known = prior.classes or 0
    if beyond := [number for number in classes if not 0 <= number < known]:
        has = f"classes 0 to {known - 1}" if known else "no classes"
        raise InputError(f"{source} has {has}, and class {beyond[0]} is asked for: choose others, or another prior")
    rows = torch.tensor(classes)
    tables = {name: prior.state_dict()[name][rows] for name in ("mapping.embedding.weight", "centres")}
    if isinstance(prior, StyleGANXL):
        options: StyleOptions | XLOptions = replace(prior.options, classes=len(classes), class_rows=len(classes))
    else:
        options = replace(prior.options, classes=len(classes))
    return rebuilt(options, {**prior.state_dict(), **tables}, source, truncation=prior.truncation)


def rebuilt(
    options: StyleOptions | XLOptions, tensors: Mapping[str, Tensor], source: str, *, truncation: float = 1.0
) -> Prior:
    """The frozen generator of ``options`` with these float32 weights; ``source`` is quoted in errors.

    Raises:
        InputError: weights are missing, too many, of other shapes, or not finite.
    """
    if not _finite(tensors):
        raise InputError(f"{source} holds weights that are not finite: fetch or train it again")
    with torch.device("meta"):  # no memory is taken for what the file may only claim
        generator: Prior = (
            StyleGANXL(options, truncation=truncation)
            if isinstance(options, XLOptions)
            else StyleGenerator(options, truncation=truncation)
        )
    _check_shapes(generator.state_dict(), tensors, source)
    generator.load_state_dict(tensors, assign=True)
    return generator.requires_grad_(False).eval()


def read_card(path_or_name: str | Path) -> dict[str, Any]:
    """The card of a prior: class names, what it was trained on, the recipe.

    Raises:
        InputError: the file is missing, damaged, no prior, or of a newer format.
    """
    content, source = _content(path_or_name, head_only=True)
    return cast(dict[str, Any], _head(content, source)["card"])


def prior_hash(path_or_name: str | Path) -> str:
    """SHA-256 of a prior's file, the user's own or a shipped one.

    Raises:
        InputError: the file cannot be read.
    """
    return hashlib.sha256(_content(path_or_name)[0]).hexdigest()


def _content(path_or_name: str | Path, *, head_only: bool = False) -> tuple[bytes, str]:
    """The file's bytes, or those before its weights, and what to call it."""
    shipped = isinstance(path_or_name, str) and path_or_name in PRIORS
    place = (
        files("fedstill.generators").joinpath("priors", PRIORS[str(path_or_name)]) if shipped else Path(path_or_name)
    )
    try:
        with place.open("rb") as file:
            content = file.read(8) if head_only else file.read()
            if head_only:
                content += file.read(min(int.from_bytes(content, "little"), _MOST_HEAD))
    except OSError as error:
        known = ", ".join(f"'{name}'" for name in PRIORS)
        raise InputError(
            f"cannot read the prior {path_or_name}: {error.strerror or error}; give the path of a prior's file, "
            f"or a shipped one's name: {known}"
        ) from error
    return content, f"the shipped prior '{path_or_name}'" if shipped else str(path_or_name)


def _head(content: bytes, source: str) -> dict[str, Any]:
    no_prior = f"{source} is damaged or not a prior of fedstill: give a file that 'fedstill prior' wrote"
    try:
        size = int.from_bytes(content[:8], "little")
        head = json.loads(json.loads(content[8 : 8 + size])["__metadata__"][_KEY])
        kind, version = head["format"], int(head["version"])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(no_prior) from error
    if kind != _FORMAT:
        raise InputError(no_prior)
    if version > _VERSION:
        raise InputError(
            f"{source} has format version {version} and this fedstill reads up to {_VERSION}: upgrade fedstill"
        )
    if not isinstance(head.get("card"), dict):
        raise InputError(no_prior)
    return cast(dict[str, Any], head)


def described(head: Mapping[str, Any], source: str) -> StyleOptions | XLOptions:
    """The network that a file's ``head`` describes; ``source`` is quoted in errors.

    Raises:
        InputError: it cannot be built.
    """
    network = str(head.get("network", _STYLE))
    known: dict[str, TypeAdapter[StyleOptions] | TypeAdapter[XLOptions]] = {
        _STYLE: TypeAdapter(StyleOptions),
        XL: TypeAdapter(XLOptions),
    }
    try:
        if network not in known:
            raise InputError(f"network: {printable(network)}")
        return known[network].validate_python(head.get("options"))
    except ValidationError as error:
        first = error.errors()[0]
        reason = f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
    except InputError as error:
        reason = str(error)
    raise InputError(f"{source} describes a network that fedstill cannot build ({reason})")


def _finite(tensors: Mapping[str, Tensor]) -> bool:
    return all(bool(torch.isfinite(tensor).all()) for tensor in tensors.values())


def _check_shapes(wanted: Mapping[str, Tensor], found: Mapping[str, Tensor], source: str) -> None:
    for name in sorted(wanted.keys() | found.keys()):
        there = tuple(found[name].shape) if name in found else None
        due = tuple(wanted[name].shape) if name in wanted else None
        if there != due:
            raise InputError(
                f"{source} does not fit its own description: '{name}' is {there}, not {due}; fetch it again"
            )
