"""Files in the official StyleGAN-XL format, made by stand-in classes of the names that official ones have."""

from __future__ import annotations

import functools
import importlib.machinery
import pickle
import sys
import types
import typing
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

SOURCE = "raise SystemExit('the source of a file was run')"


class EasyDict(dict[str, Any]):
    pass


def _reconstruct_persistent_obj(meta: Any) -> Any:
    raise AssertionError("nothing of a file is called")


class ProjectedDiscriminator(torch.nn.Module):
    pass


class Block(torch.nn.Module):
    pass


class Transpose(torch.nn.Module):
    pass


def forward_flex(*_: Any) -> Any:
    raise AssertionError("nothing of a file is called")


STAND_INS = {
    "torch_utils.persistence": _reconstruct_persistent_obj,
    "dnnlib.util": EasyDict,
    "pg_modules.discriminator": ProjectedDiscriminator,
    "timm.models.vision_transformer": Block,
    "feature_networks.vit": Transpose,
    "feature_networks.pretrained_builder": forward_flex,
}


class Made:
    """Pickles as a call of ``function``."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.made = function, arguments

    def __reduce__(self) -> Any:
        return self.made

    def __call__(self) -> None:
        """What is called may be made by a call itself."""


class Persistent:
    """Pickles as an official network does."""

    def __init__(self, class_name: str, **state: Any) -> None:
        self.meta = EasyDict(
            type="class", version=6, module_src=SOURCE, class_name=class_name, state={"training": False, **state}
        )

    def __reduce__(self) -> Any:
        return _reconstruct_persistent_obj, (self.meta,)


@contextmanager
def names() -> Iterator[None]:
    """Within it the stand-ins have their official names."""
    packages = {
        ".".join(parts[:count])
        for parts in (name.split(".") for name in STAND_INS)
        for count in range(1, len(parts) + 1)
    }
    held = {name: sys.modules.get(name) for name in packages}
    mine = {each: each.__module__ for each in STAND_INS.values()}
    try:
        for name in sorted(packages):
            sys.modules[name] = types.ModuleType(name)
            before, _, last = name.rpartition(".")
            if before:
                setattr(sys.modules[before], last, sys.modules[name])
        for name, each in STAND_INS.items():
            setattr(sys.modules[name], each.__name__, each)
            each.__module__ = name
        yield
    finally:
        for each, module_name in mine.items():
            each.__module__ = module_name
        for name, module in held.items():
            if module is None:
                sys.modules.pop(name, None)
            else:
                sys.modules[name] = module


def tensors(**values: Any) -> OrderedDict[str, Any]:
    return OrderedDict(values)


def dumped(snapshot: Mapping[str, Any], protocol: int = 4, *, by: Any = pickle) -> bytes:
    with names():
        content: bytes = by.dumps(dict(snapshot), protocol=protocol)
        return content


def small_network(**more: Any) -> Persistent:
    """A network of one layer, with all kinds of values that official ones hold."""
    import numpy as np

    layer = Persistent(
        "SynthesisLayer",
        _parameters=tensors(weight=torch.nn.Parameter(torch.arange(24.0).view(2, 3, 4).transpose(0, 1))),
        _buffers=tensors(magnitude_ema=torch.tensor(0.5), up_filter=None, steps=torch.tensor([3])),
        in_size=np.array([36, 36]),
        in_sampling_rate=np.float64(16.0),
        names={"a"},
    )
    embed = torch.nn.Embedding(3, 2)
    return Persistent("Generator", _modules=tensors(L0=layer, embed=embed), layer_names=["L0"], flag=None, **more)


def as_official(generator: Any) -> Persistent:
    """A generator of ours as the official classes would hold it; attributes and tensors have their official names."""
    import numpy as np

    def dense(layer: Any, rate: float = 1.0, activation: str = "linear") -> Persistent:
        return Persistent(
            "FullyConnectedLayer",
            _parameters=tensors(weight=layer.weight, bias=layer.bias),
            weight_gain=np.float64(rate / np.sqrt(layer.weight.shape[1])),
            bias_gain=rate,
            activation=activation,
        )

    options, modules = generator.options, tensors()
    if options.classes:
        modules["embed"] = generator.mapping.embedding
        modules["embed_proj"] = dense(generator.mapping.projection, activation="lrelu")
    else:  # it is there all the same, and not used
        modules["embed"] = torch.nn.Embedding(5, 320)
    for number, layer in enumerate(generator.mapping.layers):
        modules[f"fc{number}"] = dense(layer, 0.01, "lrelu")
    w_avg = generator.centres if options.classes else generator.centres[0]
    unused = {} if options.classes else {"embed_proj": None}
    mapping = Persistent(
        "MappingNetwork", _modules=modules, _buffers=tensors(w_avg=w_avg), num_ws=3, num_layers=number + 1, **unused
    )
    waves = generator.input
    layers = tensors(
        input=Persistent(
            "SynthesisInput",
            _parameters=tensors(weight=waves.weight),
            _buffers=tensors(transform=waves.transform, freqs=waves.frequencies, phases=waves.phases),
            _modules=tensors(affine=dense(waves.style)),
            channels=options.input.channels,
            size=np.broadcast_to(np.asarray(options.input.size), [2]),
            sampling_rate=np.float64(options.input.rate),
            bandwidth=np.float64(options.input.bandwidth),
        )
    )
    for plan, layer in zip(options.layers, generator.layers, strict=True):
        done = plan.resampling
        total = (plan.out_size - 1) * done.down + 1 - (plan.in_size + plan.kernel - 1) * done.up
        total += done.up_taps + done.down_taps - 2
        first = (total + done.up) // 2
        layers[plan.name] = Persistent(
            "SynthesisLayer",
            _parameters=tensors(weight=layer.weight, bias=layer.bias),
            _buffers=tensors(magnitude_ema=layer.magnitude, up_filter=layer.up_filter, down_filter=layer.down_filter),
            _modules=tensors(affine=dense(layer.style)),
            in_size=np.broadcast_to(np.asarray(plan.in_size), [2]),
            out_size=np.array([plan.out_size] * 2),
            in_sampling_rate=np.float64(plan.in_rate),
            out_sampling_rate=np.float64(plan.out_rate),
            in_cutoff=np.float64(plan.in_cutoff),
            in_half_width=np.float64(plan.in_half_width),
            out_cutoff=np.float64(plan.out_cutoff),
            out_half_width=np.float64(plan.out_half_width),
            is_torgb=plan.image,
            conv_clamp=256,
            in_channels=plan.in_channels,
            out_channels=plan.out_channels,
            conv_kernel=plan.kernel,
            up_factor=done.up,
            down_factor=done.down,
            padding=[first, total - first, first, total - first],
        )
    names = [plan.name for plan in options.layers]
    synthesis = Persistent("SynthesisNetwork", _modules=layers, layer_names=names, output_scale=0.25)
    return Persistent("Generator", _modules=tensors(synthesis=synthesis, mapping=mapping))


def discriminator() -> torch.nn.Module:
    """Shaped like the one of a full snapshot: two pretrained backbones with methods of their own, which dill writes in parts."""
    import dill
    import numpy as np

    parts = dill._dill
    code = Made(parts._create_code, 1, 0, b"", (None, frozenset({1}), 2**64 - 1), ("x",), SOURCE)
    method = Made(parts._create_function, code, {}, "forward", None, None)
    vit = torch.nn.Module()
    vit.blocks = torch.nn.Sequential(Block(), torch.nn.LayerNorm(4), torch.nn.GELU())
    vit.act_postprocess = torch.nn.Sequential(Transpose(), torch.nn.Unflatten(2, torch.Size([2, 2])))
    vit.forward_flex = Made(Made(parts._load_type, "MethodType"), forward_flex, vit)
    vit.forward = method
    vit.hints = [typing.Any, typing.Optional[torch.Tensor], tuple[int, ...], typing.Tuple[int, ...]]  # noqa: UP006, UP045
    vit.named = [functools.reduce, torch.Tensor, importlib.machinery.ModuleSpec, importlib.machinery.SourceFileLoader]
    critic = ProjectedDiscriminator()
    critic.feature_networks = torch.nn.ModuleDict({"deit": vit, "lite": torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3))})
    critic.main = torch.nn.utils.spectral_norm(torch.nn.Conv2d(3, 4, 3))
    critic.embed = torch.nn.Embedding(5, 4)
    critic.channels = np.array([64, 128])
    return critic
