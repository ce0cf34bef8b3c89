"""Files in the official StyleGAN-XL format, made by stand-in classes of the names that official ones have."""

from __future__ import annotations

import pickle
import sys
import types
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
    modules = {"torch_utils.persistence": _reconstruct_persistent_obj, "dnnlib.util": EasyDict}
    held = {name: sys.modules.get(name) for name in (*modules, "torch_utils", "dnnlib")}
    mine = {each: (each.__module__, each.__qualname__) for each in modules.values()}
    try:
        for name, each in modules.items():
            package, module = types.ModuleType(name.partition(".")[0]), types.ModuleType(name)
            setattr(module, each.__name__, each)
            setattr(package, name.partition(".")[2], module)
            sys.modules[package.__name__], sys.modules[name] = package, module
            each.__module__ = name
        yield
    finally:
        for each, (module_name, _) in mine.items():
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

    def dense(layer: Any, rate: float = 1.0) -> Persistent:
        return Persistent(
            "FullyConnectedLayer",
            _parameters=tensors(weight=layer.weight, bias=layer.bias),
            weight_gain=np.float64(rate / np.sqrt(layer.weight.shape[1])),
            bias_gain=rate,
        )

    options, modules = generator.options, tensors()
    if options.classes:
        modules["embed"] = generator.mapping.embedding
        modules["embed_proj"] = dense(generator.mapping.projection)
    else:  # it is there all the same, and not used
        modules["embed"] = torch.nn.Embedding(5, 320)
    for number, layer in enumerate(generator.mapping.layers):
        modules[f"fc{number}"] = dense(layer, 0.01)
    w_avg = generator.centres if options.classes else generator.centres[0]
    unused = {} if options.classes else {"embed_proj": None}
    mapping = Persistent("MappingNetwork", _modules=modules, _buffers=tensors(w_avg=w_avg), num_ws=3, **unused)
    waves = generator.input
    layers = tensors(
        input=Persistent(
            "SynthesisInput",
            _parameters=tensors(weight=waves.weight),
            _buffers=tensors(transform=waves.transform, freqs=waves.frequencies, phases=waves.phases),
            _modules=tensors(affine=dense(waves.style)),
            size=np.broadcast_to(np.asarray(options.input.size), [2]),
            sampling_rate=np.float64(options.input.rate),
            bandwidth=np.float64(options.input.bandwidth),
        )
    )
    for plan, layer in zip(options.layers, generator.layers, strict=True):
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
        )
    names = [plan.name for plan in options.layers]
    synthesis = Persistent("SynthesisNetwork", _modules=layers, layer_names=names, output_scale=0.25)
    return Persistent("Generator", _modules=tensors(synthesis=synthesis, mapping=mapping))
