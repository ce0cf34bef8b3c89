"""Official StyleGAN-XL pickles, read without running anything of them.

The readers of :mod:`fedstill.generators.inert` for what such files hold. Source code that a file carries (``module_src``) is
passed over. Storages are pickles within the pickle, in torch's older format, read by a machine that knows storages alone.
Tensors come as numpy arrays that cannot be written to: views of the bytes that the file has, of which there is one copy.
"""

from __future__ import annotations

import io
import math
import struct
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.lib.stride_tricks import as_strided

from fedstill.errors import InputError, RunError, printable
from fedstill.generators.inert import Foreign, Machine, Reader, Shell, Unexpected, demand, unknown
from fedstill.runtime import ran_out

__all__ = ["Network", "memory_for", "read_network"]

_MOST_BYTES = 4 * 2**30
_MOST_LINE = 1000  # names of modules are no longer
_MOST_DIMENSIONS = 8
_MOST_IN_SETS = 10**6  # numbers and texts in all sets that lists are made into
_MAGIC = 0x1950A86A20F9469CFC6C  # of torch's older format
_MAGIC_BITS = 128
_TORCH_VERSION = 1001
# a discriminator's classes and functions, what dill writes a function's parts as, and what annotations and settings are made of
_LIBRARIES = (
    *("torch.", "torchvision.", "timm.", "pg_modules.", "feature_networks.", "training.", "torch_utils.", "dnnlib."),
    *("metrics.", "clip.", "scipy.", "PIL.", "numpy.", "dill.", "builtins."),
    *("collections.", "functools.", "_functools."),
    *("_operator.", "operator.", "itertools.", "math.", "types.", "typing.", "enum.", "abc.", "copy.", "copyreg."),
    *("re.", "warnings.", "logging.", "numbers.", "pathlib.", "urllib.parse.", "importlib.machinery."),
    *("_frozen_importlib.ModuleSpec", "_frozen_importlib_external.SourceFileLoader"),
)
# what no network is built of, however a name comes to it (torch.os.system)
_NEVER = frozenset(
    (
        *("os", "posix", "nt", "sys", "subprocess", "socket", "shutil", "ctypes", "pty", "runpy", "pickle"),
        *("eval", "exec", "compile", "open", "__import__", "import_module", "input", "breakpoint", "system", "popen"),
    )
)
_STORAGES = {
    "FloatStorage": "<f4",
    "DoubleStorage": "<f8",
    "HalfStorage": "<f2",
    "LongStorage": "<i8",
    "IntStorage": "<i4",
    "ShortStorage": "<i2",
    "CharStorage": "i1",
    "ByteStorage": "u1",
    "BoolStorage": "?",
}
_NUMPY = ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "b1")


@dataclass
class Network:
    """A network of the file: its class's name, and all that it held, by attribute."""

    class_name: str
    state: dict[str, Any]


@dataclass(frozen=True)
class _File:
    """A file as a machine may read it: a length that the file claims takes no memory, nor does a line without an end."""

    file: BinaryIO
    size: int

    def read(self, count: int, /) -> bytes:
        return self.file.read(min(count, self.size - self.tell()))

    def readline(self) -> bytes:
        return self.file.readline(_MOST_LINE)

    def tell(self) -> int:
        return self.file.tell()


def read_network(path: Path, key: str = "G_ema") -> Network:
    """The network under ``key`` of an official pickle. Nothing of the file is imported or run.

    What stands beside it (a discriminator, settings) may hold any objects of the libraries that such are built of; they are
    passed over. Under ``key`` every object is one that is known.

    Raises:
        InputError: the file cannot be read, is damaged, or holds something unexpected, which is named.
        RunError: there is not enough memory.
    """
    with memory_for(path):
        try:
            size = path.stat().st_size
            demand(size <= _MOST_BYTES, f"it has {size} bytes, more than {_MOST_BYTES}")
            with path.open("rb") as file:
                snapshot = Machine(_File(file, size), _outer(size), other=_other).run()
                demand(not file.read(1), "bytes follow its end")
            demand(isinstance(snapshot, dict) and key in snapshot, f"it has no '{key}'")
            network = snapshot[key]
            demand(isinstance(network, Network), f"its '{key}' is no network")
            _check_known(network)
        except OSError as error:
            raise InputError(f"cannot read {path}: {error.strerror or error}; give an official .pkl file") from error
        except Unexpected as error:
            raise InputError(f"{path} is not imported: {error}") from error
        except (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, struct.error) as error:
            raise InputError(f"{path} is damaged or no pickle of StyleGAN-XL: fetch it again") from error
    assert isinstance(network, Network)
    return network


@contextmanager
def memory_for(path: Path) -> Iterator[None]:
    """Within it, memory that does not suffice for the file ``path`` is a RunError."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if ran_out(error):
            raise RunError(
                f"{path} is not imported: memory does not suffice; free some, or use a larger machine"
            ) from error
        raise


def _other(name: str) -> Foreign:
    """What a name without a reader stands for: a library's is passed over, whose call does nothing; others are refused."""
    foreign = Foreign(name)
    if name.startswith(_LIBRARIES) and _NEVER.isdisjoint(name.split(".")):
        return foreign
    return unknown(name)


def _network(meta: Any) -> Network:
    demand(isinstance(meta, dict) and meta.get("type") == "class", "a network of it is not described as a class")
    name, state = meta["class_name"], meta["state"]
    demand(isinstance(name, str) and isinstance(state, dict), "a network of it has no name or no state")
    return Network(name, state)


@dataclass
class _Storages:
    """Reads storages, of no more bytes in all than the file has: each is there once."""

    left: int

    def __call__(self, content: Any) -> np.ndarray:
        demand(isinstance(content, bytes), "a storage is not made of bytes")
        self.left -= len(content)
        demand(self.left >= 0, "it reads a storage more than once")
        return _storage(content)


def _storage(content: bytes) -> np.ndarray:
    stream = io.BytesIO(content)
    held: list[tuple[str, np.dtype[Any], int]] = []

    def refer(name: Any) -> Foreign:
        demand(
            isinstance(name, tuple)
            and [type(each) for each in name] == [str, Reader, str, str, int, type(None)]
            and name[0] == "storage",
            "a storage refers to something that is no storage",
        )
        held.append((name[2], np.dtype(_STORAGES[name[1].name]), name[4]))
        return Foreign("storage")

    none: Mapping[tuple[str, str], Reader] = {}
    magic, version, system = (Machine(stream, none, most_bits=_MAGIC_BITS).run() for _ in range(3))
    demand(magic == _MAGIC and version == _TORCH_VERSION, "a storage is not in torch's older format")
    demand(isinstance(system, dict) and system.get("little_endian") is True, "a storage is not little-endian")
    Machine(stream, _INNER, persistent=refer).run()
    keys = Machine(stream, none).run()
    demand(len(held) == 1 and keys == [held[0][0]], "a storage holds not one storage")
    _, dtype, count = held[0]
    (stored,) = struct.unpack("<q", stream.read(8))
    begin = stream.tell()
    demand(
        stored == count >= 0 and len(content) - begin == count * dtype.itemsize,
        "a storage has not the size that it says",
    )
    return np.frombuffer(content, dtype, count, begin) if count else np.empty(0, dtype)


def _tensor(storage: Any, offset: Any, size: Any, stride: Any, requires_grad: Any, hooks: Any, *_: Any) -> np.ndarray:
    demand(
        isinstance(storage, np.ndarray) and storage.ndim == 1 and isinstance(size, tuple) and isinstance(stride, tuple),
        "a tensor has no data",
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
    if math.prod(size) == 0:
        return np.empty(size, storage.dtype)
    strides = [step * storage.itemsize for step in stride]
    return as_strided(
        storage[offset:], size, strides, writeable=False
    )  # memory that is there once, however often viewed


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


def _load_type(sets: _Sets, name: Any) -> Reader | Foreign:
    kinds: Mapping[str, Callable[..., Any]] = {"set": sets, "OrderedDict": _empty, "dict": _empty}
    demand(isinstance(name, str), "it names a type without a text")
    return Reader(name, kinds[name]) if name in kinds else Foreign(f"the type {name}")


@dataclass
class _Sets:
    """Makes lists into sets: copies, of which one list may ask for many."""

    left: int = _MOST_IN_SETS

    def __call__(self, values: Any = ()) -> set[Any]:
        demand(isinstance(values, list | tuple), "a set is made of no list")
        self.left -= len(values)
        demand(self.left >= 0, f"its sets hold more than {_MOST_IN_SETS} values")
        return {each for each in values if isinstance(each, str | int)}


def _array(*_: Any) -> Shell:
    return Shell("array", _filled_array)


_INNER = {("torch", name): Reader(name) for name in _STORAGES}


def _empty() -> dict[str, Any]:
    return {}


def _outer(size: int) -> Mapping[tuple[str, str], Reader]:
    """What names stand for in a file of ``size`` bytes."""
    sets = _Sets()
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
        "dill._dill._load_type": partial(_load_type, sets),
        "dill._dill._import_module": _import_module,
        "dill._dill._get_attr": _get_attr,
        "builtins.set": sets,
    }
    return {(name.rpartition(".")[0], name.rpartition(".")[2]): Reader(name, read) for name, read in table.items()}


# dill before 0.3.5 names numpy's two functions by their module, which is named in turn
_NUMPY_MODULES = tuple(
    f"numpy.{core}.{name}" for core in ("core", "_core") for name in ("multiarray", "_multiarray_umath")
)


def _import_module(name: Any, *_: Any) -> Reader | Foreign:
    demand(isinstance(name, str), "it names a module without a text")
    return Reader(name) if name in _NUMPY_MODULES else Foreign(name)


def _get_attr(module: Any, name: Any, *_: Any) -> Reader | Foreign:
    demand(isinstance(module, Reader | Foreign) and isinstance(name, str), "it takes a part of what is no module")
    if isinstance(module, Reader) and module.name in _NUMPY_MODULES and name in _NUMPY_FUNCTIONS:
        return Reader(f"{module.name}.{name}", _NUMPY_FUNCTIONS[name])
    return _other(f"{module.name}.{name}")


_NUMPY_FUNCTIONS: Mapping[str, Callable[..., Any]] = {"_reconstruct": _array, "scalar": _scalar}


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
