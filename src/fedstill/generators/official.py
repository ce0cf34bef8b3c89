"""From an official StyleGAN-XL pickle to a prior of fedstill.

The architecture is what the file holds: the layers in the order of ``layer_names``, each with its own attributes, tensors with
their own shapes. What else the file says of itself is not asked: in files with super-resolution heads it describes the stem.
"""

from __future__ import annotations

import hashlib
import math
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError
from torch import Tensor

from fedstill.errors import InputError
from fedstill.generators.files import rebuilt, save_prior
from fedstill.generators.inert import Shell
from fedstill.generators.snapshot import Network, read_network
from fedstill.generators.stylegan_xl import StyleGANXL
from fedstill.generators.xl_options import XLInput, XLLayer, XLOptions

__all__ = ["convert", "import_prior"]

_SLOW = 0.01


def import_prior(path: Path, out: Path, *, half: bool = False) -> StyleGANXL:
    """Read the official pickle ``path``, write it to ``out`` as a prior, and give its generator.

    Raises:
        InputError: ``path`` is no such file, or holds something unexpected; ``out`` is a link.
        RunError: ``out`` cannot be written, or a weight leaves half precision's range.
    """
    if out.is_symlink():
        raise InputError(f"{out} is a link: give the path of a file")
    generator = convert(read_network(path), str(path))
    content = hashlib.sha256(path.read_bytes()).hexdigest()
    count = generator.options.classes or 1
    card = {
        "classes": [str(label) for label in range(count)],
        "trained_on": "see the publication of the file it was imported from",
        "imported_from": path.name,
        "imported_sha256": content,
    }
    save_prior(out, generator, card, half=half)
    return generator


def convert(network: Network, source: str) -> StyleGANXL:
    """The generator that ``network`` holds, in float32 on the CPU. ``source`` is quoted in errors.

    Raises:
        InputError: a part is missing, or the parts make no network.
    """
    try:
        options, tensors = _parts(network)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise InputError(
            f"{source} describes a network that fedstill cannot build ({where}: {first['msg']})"
        ) from error
    except (KeyError, AttributeError, TypeError, ValueError, IndexError) as error:
        raise InputError(f"{source} holds no StyleGAN-XL generator: {type(error).__name__} at {error}") from error
    generator = rebuilt(options, tensors, source)
    assert isinstance(generator, StyleGANXL)
    return generator


def _parts(network: Network) -> tuple[XLOptions, dict[str, Tensor]]:
    mapping, synthesis = (_child(network, name) for name in ("mapping", "synthesis"))
    tensors: dict[str, Tensor] = {}
    is_conditional = "embed" in mapping.state["_modules"]
    if is_conditional:
        embedding = mapping.state["_modules"]["embed"]
        tensors["mapping.embedding.weight"] = embedding.value["_parameters"]["weight"]
        tensors |= _dense("mapping.projection", _child(mapping, "embed_proj"), 1.0)
    depth = sum(name.startswith("fc") for name in mapping.state["_modules"])
    for number in range(depth):
        tensors |= _dense(f"mapping.layers.{number}", _child(mapping, f"fc{number}"), _SLOW)
    centres = mapping.state["_buffers"]["w_avg"]
    tensors["centres"] = centres.reshape(-1, centres.shape[-1])

    waves = _child(synthesis, "input")
    tensors["input.weight"] = waves.state["_parameters"]["weight"]
    buffers = waves.state["_buffers"]
    for mine, theirs in (("frequencies", "freqs"), ("phases", "phases"), ("transform", "transform")):
        tensors[f"input.{mine}"] = buffers[theirs]
    tensors |= _dense("input.style", _child(waves, "affine"), 1.0)

    plans = []
    for number, name in enumerate(synthesis.state["layer_names"]):
        layer = _child(synthesis, name)
        plans.append(_plan(name, layer))
        for own in ("weight", "bias"):
            tensors[f"layers.{number}.{own}"] = layer.state["_parameters"][own]
        tensors |= _dense(f"layers.{number}.style", _child(layer, "affine"), 1.0)
        held = layer.state["_buffers"]
        tensors[f"layers.{number}.magnitude"] = held["magnitude_ema"]
        for own in ("up_filter", "down_filter"):
            if held.get(own) is not None:
                tensors[f"layers.{number}.{own}"] = held[own]
    first = tensors["mapping.layers.0.weight"]
    embedded = tensors.get("mapping.embedding.weight")
    options = XLOptions(
        input=XLInput(
            channels=len(buffers["freqs"]),
            size=_side(waves.state["size"]),
            rate=_whole(waves.state["sampling_rate"]),
            bandwidth=float(waves.state["bandwidth"]),
        ),
        layers=tuple(plans),
        classes=len(tensors["centres"]) if is_conditional else 0,
        z_width=first.shape[1] // (2 if is_conditional else 1),
        w_width=first.shape[0],
        mapping_layers=depth,
        output_scale=float(synthesis.state["output_scale"]),
        **({} if embedded is None else {"class_rows": embedded.shape[0], "class_width": embedded.shape[1]}),
    )
    return options, {name: tensor.float() for name, tensor in tensors.items()}


def _plan(name: str, layer: Network) -> XLLayer:
    state = layer.state
    weight = state["_parameters"]["weight"]
    down = state["_buffers"].get("down_filter")
    clamp = state["conv_clamp"]
    return XLLayer(
        name=name,
        in_channels=weight.shape[1],
        out_channels=weight.shape[0],
        in_size=_side(state["in_size"]),
        out_size=_side(state["out_size"]),
        in_rate=_whole(state["in_sampling_rate"]),
        out_rate=_whole(state["out_sampling_rate"]),
        in_cutoff=float(state["in_cutoff"]),
        in_half_width=float(state["in_half_width"]),
        out_cutoff=float(state["out_cutoff"]),
        out_half_width=float(state["out_half_width"]),
        kernel=weight.shape[2],
        radial=down is not None and down.ndim == 2,
        image=bool(state["is_torgb"]),
        clamp=None if clamp is None else float(clamp),
    )


def _child(network: Network, name: str) -> Network:
    child = network.state["_modules"][name]
    if not isinstance(child, Network):
        raise TypeError(name)
    return child


def _dense(name: str, layer: Network, rate: float) -> dict[str, Tensor]:
    """A fully connected layer; gains other than its place's are taken into the weights."""
    weight, bias = (layer.state["_parameters"][own] for own in ("weight", "bias"))
    gain, usual = float(layer.state["weight_gain"]), rate / math.sqrt(weight.shape[1])
    bias_gain = float(layer.state["bias_gain"])
    if not math.isclose(gain, usual, rel_tol=1e-6):
        weight = weight * (gain / usual)
    if not math.isclose(bias_gain, rate, rel_tol=1e-6):
        bias = bias * (bias_gain / rate)
    return {f"{name}.weight": weight, f"{name}.bias": bias}


def _side(value: Any) -> int:
    """Pixels a side, given as a number or as width and height."""
    sides = np.atleast_1d(value.value if isinstance(value, Shell) else value)
    if len({*map(float, sides)}) != 1:
        raise ValueError(f"a size that is no square: {sides}")
    return _whole(sides[0])


def _whole(value: Any) -> int:
    if float(value) != int(value):
        raise ValueError(f"{value} is no whole number")
    return int(value)
