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
import torch

from fedstill.errors import InputError, printable
from fedstill.files import sweep
from fedstill.generators.files import XL, described, rebuilt, save_prior
from fedstill.generators.inert import Shell
from fedstill.generators.snapshot import Network, read_network
from fedstill.generators.stylegan_xl import StyleGANXL

__all__ = ["convert", "import_prior"]

_SLOW = 0.01
_MOST_LAYERS = 200


def import_prior(
    path: Path, out: Path, *, half: bool = False, sha256: str | None = None, origin: str = ""
) -> StyleGANXL:
    """Read the official pickle ``path``, write it to ``out`` as a prior, and give its generator.

    Args:
        path: the pickle.
        out: the prior's file.
        half: store what was learned as float16.
        sha256: what the pickle's hash must be, in hexadecimal digits; None: any.
        origin: where the pickle is from, for the prior's card; empty: its name.

    Raises:
        InputError: ``path`` is no such file, has another hash, or holds something unexpected; ``out`` is a link or a folder.
        RunError: ``out`` cannot be written, a weight leaves half precision's range, or memory does not suffice.
    """
    if out.is_symlink() or out.is_dir():
        raise InputError(f"{out} is a {'link' if out.is_symlink() else 'folder'}: give the path of a file")
    sweep(out)  # what an import left that was killed
    found = _hash(path)
    if sha256 is not None and found != sha256.lower():
        raise InputError(f"{path} is not imported: its SHA-256 is {found}, not {sha256.lower()}; fetch it again")
    generator = convert(read_network(path), str(path), most=path.stat().st_size)
    count = generator.options.classes or 1
    card = {
        "classes": [str(label) for label in range(count)],
        "trained_on": "see the publication of the file it was imported from",
        "imported_from": origin or path.name,
        "imported_sha256": found,
    }
    save_prior(out, generator, card, half=half)
    return generator


def _hash(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}; give an official .pkl file") from error


def convert(network: Network, source: str, *, most: int) -> StyleGANXL:
    """The generator that ``network`` holds, in float32 on the CPU. ``source`` is quoted in errors.

    Args:
        network: as the file has it.
        source: the file.
        most: bytes that its weights may have in all, which are those of the file: a number may be named there over and over.

    Raises:
        InputError: a part is missing, or the parts make no network.
    """
    try:
        plain, arrays, factors = _parts(network)
        total = sum(array.nbytes for array in arrays.values())
        if total > most:
            raise ValueError(f"{total} bytes of weights in a file of {most}")
        # copies: an array is a view of the file's bytes
        with np.errstate(over="ignore"):  # what is not finite is refused below
            tensors = {name: torch.from_numpy(array.astype(np.float32, order="C")) for name, array in arrays.items()}
        for name, factor in factors.items():
            tensors[name] *= factor
    except (LookupError, AttributeError, TypeError, ValueError, ArithmeticError) as error:
        reason = printable(f"{type(error).__name__} at {error}", 120)
        raise InputError(f"{source} holds no StyleGAN-XL generator: {reason}") from error
    generator = rebuilt(described({"network": XL, "options": plain}, source), tensors, source)
    assert isinstance(generator, StyleGANXL)
    return generator


def _parts(network: Network) -> tuple[dict[str, Any], dict[str, np.ndarray], dict[str, float]]:
    """The options of the network, not checked yet; its weights by our names; what some are to be multiplied by."""
    mapping, synthesis = (_child(network, name) for name in ("mapping", "synthesis"))
    tensors: dict[str, Any] = {}
    factors: dict[str, float] = {}

    def dense(name: str, layer: Network, rate: float) -> None:
        for own in ("weight", "bias"):
            tensors[f"{name}.{own}"] = layer.state["_parameters"][own]
        factors.update(_factors(name, layer, rate))

    # a network without classes holds an embedding too, and nothing that leads on from it
    is_conditional = mapping.state["_modules"].get("embed_proj") is not None
    if is_conditional:
        embedding = mapping.state["_modules"]["embed"]
        tensors["mapping.embedding.weight"] = embedding.value["_parameters"]["weight"]
        dense("mapping.projection", _child(mapping, "embed_proj"), 1.0)
    depth = sum(name.startswith("fc") for name in mapping.state["_modules"])
    for number in range(depth):
        dense(f"mapping.layers.{number}", _child(mapping, f"fc{number}"), _SLOW)
    centres = mapping.state["_buffers"]["w_avg"]
    tensors["centres"] = centres if is_conditional else centres.reshape(1, -1)

    waves = _child(synthesis, "input")
    tensors["input.weight"] = waves.state["_parameters"]["weight"]
    buffers = waves.state["_buffers"]
    for mine, theirs in (("frequencies", "freqs"), ("phases", "phases"), ("transform", "transform")):
        tensors[f"input.{mine}"] = buffers[theirs]
    dense("input.style", _child(waves, "affine"), 1.0)

    plans = []
    names = synthesis.state["layer_names"]
    if not isinstance(names, list) or len(names) > _MOST_LAYERS:
        raise ValueError("layer_names")
    for number, name in enumerate(names):
        layer = _child(synthesis, name)
        plans.append(_plan(name, layer))
        for own in ("weight", "bias"):
            tensors[f"layers.{number}.{own}"] = layer.state["_parameters"][own]
        dense(f"layers.{number}.style", _child(layer, "affine"), 1.0)
        held = layer.state["_buffers"]
        tensors[f"layers.{number}.magnitude"] = held["magnitude_ema"]
        for own in ("up_filter", "down_filter"):
            if held.get(own) is not None:
                tensors[f"layers.{number}.{own}"] = held[own]
    for name, tensor in tensors.items():
        if not isinstance(tensor, np.ndarray):
            raise TypeError(f"{name}, which is no tensor")
    first = tensors["mapping.layers.0.weight"]
    embedded = tensors.get("mapping.embedding.weight")
    options: dict[str, Any] = {
        "input": {
            "channels": len(buffers["freqs"]),
            "size": _side(waves.state["size"]),
            "rate": _whole(waves.state["sampling_rate"]),
            "bandwidth": _number(waves.state["bandwidth"]),
        },
        "layers": plans,
        "classes": len(centres) if is_conditional else 0,
        "z_width": first.shape[1] // (2 if is_conditional else 1),
        "w_width": first.shape[0],
        "mapping_layers": depth,
        "output_scale": _number(synthesis.state["output_scale"]),
    }
    if embedded is not None:
        options |= {"class_rows": embedded.shape[0], "class_width": embedded.shape[1]}
    return options, tensors, factors


def _plan(name: str, layer: Network) -> dict[str, Any]:
    state = layer.state
    weight = state["_parameters"]["weight"]
    down = state["_buffers"].get("down_filter")
    clamp = state["conv_clamp"]
    return {
        "name": name,
        "in_channels": weight.shape[1],
        "out_channels": weight.shape[0],
        **{key: _side(state[key]) for key in ("in_size", "out_size")},
        **{f"{end}_rate": _whole(state[f"{end}_sampling_rate"]) for end in ("in", "out")},
        **{key: _number(state[key]) for key in ("in_cutoff", "in_half_width", "out_cutoff", "out_half_width")},
        "kernel": weight.shape[2],
        "radial": down is not None and down.ndim == 2,
        "image": bool(state["is_torgb"]),
        "clamp": None if clamp is None else _number(clamp),
    }


def _child(network: Network, name: Any) -> Network:
    if not isinstance(name, str):  # to look up a tuple of tuples may take for ever
        raise TypeError(f"a layer's name that is a {type(name).__name__}")
    child = network.state["_modules"][name]
    if not isinstance(child, Network):
        raise TypeError(name)
    return child


def _factors(name: str, layer: Network, rate: float) -> dict[str, float]:
    """A fully connected layer's gains, where they are other than its place's: they are taken into its weights."""
    usual = rate / math.sqrt(layer.state["_parameters"]["weight"].shape[1])
    gains = {"weight": (layer.state["weight_gain"], usual), "bias": (layer.state["bias_gain"], rate)}
    return {
        f"{name}.{own}": _number(gain) / due
        for own, (gain, due) in gains.items()
        if not math.isclose(_number(gain), due, rel_tol=1e-6)
    }


def _number(value: Any) -> float:
    if not isinstance(value, int | float):
        raise TypeError(f"a {type(value).__name__} in place of a number")
    return float(value)


def _whole(value: Any) -> int:
    if _number(value) != int(value):
        raise ValueError(f"{value} is no whole number")
    return int(value)


def _side(value: Any) -> int:
    """Pixels a side, given as a number or as width and height."""
    if not isinstance(value, Shell):
        return _whole(value)
    width, height = value.value.tolist()
    if width != height:
        raise ValueError(f"a size that is no square: {width} x {height}")
    return _whole(width)
