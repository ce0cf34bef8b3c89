"""Official StyleGAN-XL pickles, read without running anything of them.

The readers of :mod:`fedstill.generators.inert` for what such files hold. Source code that a file carries (``module_src``) is
passed over. Storages are pickles within the pickle, in torch's older format, read by a machine that knows storages alone.
"""

from __future__ import annotations

import io
import math
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedstill.errors import InputError, printable
from fedstill.generators.inert import Foreign, Machine, Reader, Shell, Unexpected, demand

__all__ = ["Network", "read_network"]

_MOST_BYTES = 4 * 2**30
_MOST_DIMENSIONS = 8
_MAGIC = 0x1950A86A20F9469CFC6C  # of torch's older format
_TORCH_VERSION = 1001
_PASSED_OVER = (
    *("timm.", "pg_modules.", "feature_networks.", "torch.nn.", "torchvision.", "dill.", "training."),
    *("builtins.getattr", "builtins.setattr"),
)
_STORAGES = {
    "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64,
    "HalfStorage": torch.float16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}
_NUMPY = ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "b1")


@dataclass
class Network:
    """A network of the file: its class's name, and all that it held, by attribute."""

    class_name: str
    state: dict[str, Any]


def read_network(path: Path, key: str = "G_ema") -> Network:
    """The network under ``key`` of an official pickle. Nothing of the file is imported or run.

    What stands beside it (a discriminator, settings) may hold objects of the libraries it is known to be built of; they are
    passed over. Under ``key`` every object is one that is known.

    Raises:
        InputError: the file cannot be read, is damaged, or holds something unexpected, which is named.
    """
    try:
        size = path.stat().st_size
        content = path.read_bytes() if size <= _MOST_BYTES else b""
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}; give an official .pkl file") from error
    try:
        demand(size <= _MOST_BYTES, f"it has {size} bytes, more than {_MOST_BYTES}")
        stream = io.BytesIO(content)
        snapshot = Machine(stream, _outer(size), passes_over=_PASSED_OVER).run()
        demand(not stream.read(1), "bytes follow its end")
        demand(isinstance(snapshot, dict) and key in snapshot, f"it has no '{key}'")
        network = snapshot[key]
        demand(isinstance(network, Network), f"its '{key}' is no network")
        _check_known(network)
    except Unexpected as error:
        raise InputError(f"{path} is not imported: {error}") from error
    except (ValueError, IndexError, KeyError, TypeError, AttributeError, OverflowError, struct.error) as error:
        raise InputError(f"{path} is damaged or no pickle of StyleGAN-XL: fetch it again") from error
    assert isinstance(network, Network)
    return network


def _network(meta: Any) -> Network:
    demand(isinstance(meta, dict) and meta.get("type") == "class", "a network of it is not described as a class")
    name, state = meta["class_name"], meta["state"]
    demand(isinstance(name, str) and isinstance(state, dict), "a network of it has no name or no state")
    return Network(name, state)


@dataclass
class _Storages:
    """Reads storages, of no more bytes in all than the file has: each is there once."""

    left: int

    def __call__(self, content: Any) -> Tensor:
        demand(isinstance(content, bytes), "a storage is not made of bytes")
        self.left -= len(content)
        demand(self.left >= 0, "it reads a storage more than once")
        return _storage(content)


def _storage(content: bytes) -> Tensor:
    stream = io.BytesIO(content)
    held: list[tuple[str, torch.dtype, int]] = []

    def refer(name: Any) -> Foreign:
        demand(
            isinstance(name, tuple)
            and [type(each) for each in name] == [str, Reader, str, str, int, type(None)]
            and name[0] == "storage",
            "a storage refers to something that is no storage",
        )
        held.append((name[2], _STORAGES[name[1].name], name[4]))
        return Foreign("storage")

    none: Mapping[tuple[str, str], Reader] = {}
    magic, version, system = (Machine(stream, none).run() for _ in range(3))
    demand(magic == _MAGIC and version == _TORCH_VERSION, "a storage is not in torch's older format")
    demand(isinstance(system, dict) and system.get("little_endian") is True, "a storage is not little-endian")
    Machine(stream, _INNER, persistent=refer).run()
    keys = Machine(stream, none).run()
    demand(len(held) == 1 and keys == [held[0][0]], "a storage holds not one storage")
    _, dtype, count = held[0]
    (stored,) = struct.unpack("<q", stream.read(8))
    data = stream.read()
    demand(stored == count >= 0 and len(data) == count * dtype.itemsize, "a storage has not the size that it says")
    return torch.frombuffer(bytearray(data), dtype=dtype) if count else torch.empty(0, dtype=dtype)


def _tensor(storage: Any, offset: Any, size: Any, stride: Any, requires_grad: Any, hooks: Any, *_: Any) -> Tensor:
    demand(
        isinstance(storage, Tensor) and isinstance(size, tuple) and isinstance(stride, tuple), "a tensor has no data"
    )
    numbers = (offset, *size, *stride)
    demand(
        len(size) == len(stride) <= _MOST_DIMENSIONS and all(type(each) is int and each >= 0 for each in numbers),
        "a tensor's shape is none",
    )
    last = offset + sum((many - 1) * step for many, step in zip(size, stride, strict=True))
    demand(
        math.prod(size) == 0 or (last < len(storage) and math.prod(size) <= len(storage)),
        "a tensor claims more numbers than its storage has",
    )
    view: Tensor = storage.as_strided(size, stride, offset) if math.prod(size) else storage.new_empty(size)
    return view  # of memory that is there once, however often it is viewed


def _dtype_of(text: Any, *_: Any) -> Shell:
    demand(isinstance(text, str) and text in _NUMPY, "a numpy array is not of plain numbers")
    return Shell("dtype", _filled_dtype, np.dtype(text).newbyteorder("<"))


def _filled_dtype(shell: Shell, state: Any) -> Any:
    demand(isinstance(state, tuple) and len(state) > 1 and state[1] in ("<", "|", "="), "a numpy type is unusual")
    return shell.value


def _filled_array(shell: Shell, state: Any) -> Any:
    _, shape, dtype, is_fortran, data = state
    demand(
        isinstance(dtype, Shell) and dtype.kind == "dtype" and isinstance(data, bytes) and isinstance(shape, tuple),
        "a numpy array is not of plain numbers",
    )
    demand(
        len(shape) <= _MOST_DIMENSIONS
        and all(type(each) is int and each >= 0 for each in shape)
        and math.prod(shape) * dtype.value.itemsize == len(data),
        "a numpy array has not the size that it says",
    )
    return np.frombuffer(data, dtype.value).reshape(shape, order="F" if is_fortran else "C")


def _scalar(dtype: Any, data: Any) -> Any:
    demand(isinstance(dtype, Shell) and dtype.kind == "dtype" and isinstance(data, bytes), "a number is none")
    return np.frombuffer(data, dtype.value, count=1)[0].item()


def _filled_module(shell: Shell, state: Any) -> Any:
    demand(isinstance(state, dict), "a layer has no state")
    return state


def _load_type(name: Any) -> Reader:
    kinds = {"set": set, "OrderedDict": dict, "dict": dict}
    demand(name in kinds, "it names a type that such files do not")
    return Reader(name, lambda: kinds[name]())


def _array(*_: Any) -> Shell:
    return Shell("array", _filled_array)


_INNER = {("torch", name): Reader(name) for name in _STORAGES}


def _empty() -> dict[str, Any]:
    return {}


def _outer(size: int) -> Mapping[tuple[str, str], Reader]:
    """What names stand for in a file of ``size`` bytes."""
    table: Mapping[str, Callable[..., Any] | None] = {
        "torch_utils.persistence._reconstruct_persistent_obj": _network,
        "dnnlib.util.EasyDict": _empty,
        "collections.OrderedDict": _empty,
        "torch._utils._rebuild_tensor_v2": _tensor,
        "torch._utils._rebuild_parameter": lambda data, requires_grad, hooks: data,
        "torch.storage._load_from_bytes": _Storages(size),
        "torch.nn.modules.sparse.Embedding": lambda: Shell("module", _filled_module),
        "numpy.ndarray": None,
        "numpy.dtype": _dtype_of,
        "numpy.core.multiarray._reconstruct": _array,
        "numpy._core.multiarray._reconstruct": _array,
        "numpy.core.multiarray.scalar": _scalar,
        "numpy._core.multiarray.scalar": _scalar,
        "dill._dill._create_array": lambda made_by, arguments, state, *_: _create_array(state),
        "dill._dill._load_type": _load_type,
        "builtins.set": lambda values=(): {each for each in values if isinstance(each, str | int)},
    }
    return {(name.rpartition(".")[0], name.rpartition(".")[2]): Reader(name, read) for name, read in table.items()}


def _create_array(state: Any) -> Shell:
    shell = Shell("array", _filled_array)
    shell.value = _filled_array(shell, state)
    return shell


def _check_known(network: Network) -> None:
    """Refuse foreign objects below ``network``, by name."""
    seen: set[int] = set()
    ahead: list[Any] = [network]
    while ahead:
        value = ahead.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, Foreign):
            raise Unexpected(f"it holds {printable(value.name, 80)} in the generator")
        if isinstance(value, Network):
            ahead.append(value.state)
        elif isinstance(value, Shell):
            ahead.append(value.value)
        elif isinstance(value, dict):
            ahead.extend(value.values())
        elif isinstance(value, list | tuple):
            ahead.extend(value)
