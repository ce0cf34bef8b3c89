"""Data sets in the files that their authors publish, as rows: what ``fedstill data prepare`` reads.

Nothing here is unpickled or extracted to disk, links inside an archive are not followed, and what is unpacked is bounded.
"""

from __future__ import annotations

import bz2
import gzip
import lzma
import math
import struct
import tarfile
import tokenize
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from fedstill.data.corruptions import CORRUPTIONS
from fedstill.data.sources import Raw, Rows
from fedstill.errors import InputError

__all__ = ["cifar10", "cifar10c", "idx", "svhn", "usps"]

DIGITS = tuple(str(digit) for digit in range(10))
CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")

_RECORD = 1 + 3 * 32 * 32  # a label and three planes
_CIFAR_TRAIN = tuple(f"data_batch_{number}.bin" for number in range(1, 6))
_CIFAR_TEST = ("test_batch.bin",)
_MOST = 2**31  # bytes of one idx array, far more than any published set has
_MOST_BATCH = 2**27  # bytes of one CIFAR batch; a published one has a quarter of that
_MOST_TAR = 2**29  # bytes of an unpacked CIFAR archive, three times the published one
_MOST_DIGITS = 10**6  # images of one SVHN file; the largest published one has 531,131
_CIFAR_C_TRAIN = 8000  # of the 10,000 images; the published set has no split
_USPS_SIDE = 16
_USPS_ROWS = 100_000
_USPS_LINE = 20_000  # characters; 256 numbers need some 5,000


def cifar10(path: Path) -> Raw:
    """CIFAR-10, "binary version": cifar-10-binary.tar.gz, or the folder with data_batch_1.bin … test_batch.bin.

    Raises:
        InputError: it is the version for Python, which is pickled, or a file is missing or has another length.
    """
    wanted = (*_CIFAR_TRAIN, *_CIFAR_TEST)
    contents = _folder_members(path, wanted) if path.is_dir() else _tar_members(path, wanted)
    train, test = ([contents[name] for name in names] for names in (_CIFAR_TRAIN, _CIFAR_TEST))
    return Raw(_cifar_rows(train, path), _cifar_rows(test, path), CIFAR10)


def _folder_members(path: Path, wanted: Sequence[str]) -> Mapping[str, bytes]:
    missing = [name for name in wanted if not (path / name).is_file()]
    if missing:
        raise _not_binary(path, missing[0], pickled=(path / "data_batch_1").exists())
    return {name: (path / name).read_bytes() for name in wanted}


def _tar_members(path: Path, wanted: Sequence[str]) -> Mapping[str, bytes]:
    found: dict[str, bytes] = {}
    pickled = False
    try:
        # as a stream: read once, and not beyond what is allowed
        with _unpacked(path) as content, _tar(_Bounded(content, path)) as archive:
            for member in archive:
                name = member.name.rpartition("/")[2]
                pickled = pickled or name == "data_batch_1"
                if name in wanted and member.isfile():
                    if member.size > _MOST_BATCH:
                        raise InputError(f"{path}: {name} has {member.size} bytes, far more than a batch of CIFAR-10")
                    batch = archive.extractfile(member)
                    found[name] = batch.read() if batch else b""
    except (OSError, EOFError, ValueError, tarfile.TarError, zlib.error, lzma.LZMAError) as error:
        raise InputError(f"{path} cannot be read as a tar archive ({_first_line(error)})") from error
    missing = [name for name in wanted if name not in found]
    if missing:
        raise _not_binary(path, missing[0], pickled=pickled)
    return found


_PACKINGS: Mapping[bytes, Callable[..., Any]] = MappingProxyType(
    {b"\x1f\x8b": gzip.open, b"BZ": bz2.open, b"\xfd7": lzma.open}
)


def _unpacked(path: Path) -> BinaryIO:
    with path.open("rb") as stream:
        opener = _PACKINGS.get(stream.read(2), open)
    unpacked: BinaryIO = opener(path, "rb")
    return unpacked


def _tar(stream: _Bounded) -> tarfile.TarFile:
    readable: Any = stream  # tarfile reads a stream and does nothing else with it
    return tarfile.open(fileobj=readable, mode="r|")


class _Bounded:
    """A stream that ends with an error where it holds more than an archive of CIFAR-10 may: a small file can unpack to any
    size, also in what tarfile reads for itself, such as a long name."""

    def __init__(self, stream: BinaryIO, path: Path) -> None:
        self._stream = stream
        self._path = path
        self._read = 0

    def read(self, size: int) -> bytes:
        block = self._stream.read(size)
        self._read += len(block)
        if self._read > _MOST_TAR:
            raise InputError(f"{self._path} unpacks to more than {_MOST_TAR} bytes, far more than CIFAR-10")
        return block


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]


def _not_binary(path: Path, missing: str, *, pickled: bool) -> InputError:
    if pickled:
        return InputError(
            f"{path} is CIFAR-10 for Python, which is pickled, and unpickling runs whatever code a file holds: "
            "take the binary version, cifar-10-binary.tar.gz"
        )
    return InputError(f"{path} lacks {missing}; it should be cifar-10-binary.tar.gz, or the folder that it holds")


def _cifar_rows(contents: Sequence[bytes], path: Path) -> Rows:
    for content in contents:
        if not content or len(content) % _RECORD:
            raise InputError(f"{path}: a batch has {len(content)} bytes, which is no number of {_RECORD}-byte records")
    records = np.concatenate([np.frombuffer(content, np.uint8).reshape(-1, _RECORD) for content in contents])
    labels = _labels(records[:, 0], len(CIFAR10), path)
    pixels = records[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    return _array_rows(pixels, labels, path)


def idx(path: Path, classes: tuple[str, ...]) -> Raw:
    """MNIST and its likes: a folder with train-images-idx3-ubyte, train-labels-idx1-ubyte, t10k-…, also as .gz.

    Raises:
        InputError: a file is missing or damaged, or images and labels differ in number.
    """
    if not path.is_dir():
        raise InputError(
            f"{path} is no folder; it should be the folder with train-images-idx3-ubyte.gz and its three fellows"
        )
    splits = []
    for prefix in ("train", "t10k"):
        pixels = _idx_array(path, f"{prefix}-images-idx3-ubyte", 3)
        labels = _labels(_idx_array(path, f"{prefix}-labels-idx1-ubyte", 1), len(classes), path)
        splits.append(_array_rows(pixels[..., None], labels, path / prefix))
    return Raw(splits[0], splits[1], classes)


def _idx_array(folder: Path, name: str, dimensions: int) -> NDArray[np.uint8]:
    # some copies have a dot where the original has a dash
    names = (f"{name}.gz", name, name.replace("-idx", ".idx"))
    file = next((folder / each for each in names if (folder / each).is_file()), None)
    if file is None:
        raise InputError(f"{folder} lacks {name}.gz (or unpacked {name})")
    opener: Callable[..., Any] = gzip.open if file.suffix == ".gz" else open
    try:
        with opener(file, "rb") as stream:
            header = stream.read(4 + 4 * dimensions)
            magic, *shape = struct.unpack(f">{1 + dimensions}i", header)
            count = int(np.prod([int(side) for side in shape], dtype=object))
            if magic != 0x800 + dimensions or min(shape) < 1 or count > _MOST:
                raise InputError(f"{file} is no idx file of {dimensions} dimensions and bytes")
            content = stream.read(count + 1)
    except (OSError, EOFError, struct.error, zlib.error) as error:
        raise InputError(f"{file} cannot be read ({error})") from error
    if len(content) != count:
        raise InputError(f"{file} is {'longer' if len(content) > count else 'shorter'} than its header says")
    return np.frombuffer(content, np.uint8).reshape(shape)


def svhn(path: Path) -> Raw:
    """SVHN, cropped digits: the folder with train_32x32.mat and test_32x32.mat. Label 10 is the digit 0.

    Raises:
        InputError: a file is missing or holds something else.
    """
    return Raw(_svhn_rows(path / "train_32x32.mat"), _svhn_rows(path / "test_32x32.mat"), DIGITS)


def _svhn_rows(file: Path) -> Rows:
    from scipy.io import loadmat, whosmat

    if not file.is_file():
        raise InputError(f"{file} is missing; the folder should hold train_32x32.mat and test_32x32.mat")
    try:
        # headers first: what the arrays say of themselves bounds what is unpacked
        shapes = {name: shape for name, shape, _ in whosmat(file)}
        if max(math.prod(shapes["X"]) // 32**2 // 3, math.prod(shapes["y"])) > _MOST_DIGITS:
            raise ValueError(f"X {shapes['X']} and y {shapes['y']} are more than {_MOST_DIGITS} images")
        found = loadmat(file, variable_names=["X", "y"])
        images, labels = np.asarray(found["X"]), np.asarray(found["y"]).ravel()
    except Exception as error:  # of many types: SciPy's reader answers damage with whatever it stumbles over
        raise InputError(f"{file} cannot be read as SVHN's X and y ({str(error) or type(error).__name__})") from error
    if images.dtype != np.uint8 or images.shape[:3] != (32, 32, 3) or images.shape[3:] != labels.shape:
        raise InputError(
            f"{file} holds X {images.dtype} {images.shape} and y {labels.shape}; not SVHN's 32 x 32 digits"
        )
    if not np.isin(labels, np.arange(1, 11)).all():
        raise InputError(f"{file}: labels must be 1 to 10")
    return _array_rows(images.transpose(3, 0, 1, 2), labels.astype(np.int64) % 10, file)


def usps(path: Path) -> Raw:
    """USPS in LIBSVM's format: the folder with usps.bz2 and usps.t.bz2. Classes 1 to 10 are the digits 0 to 9.

    Values in −1 … 1 become 0 … 255, rounded.

    Raises:
        InputError: a file is missing or holds something else.
    """
    return Raw(_usps_rows(path / "usps.bz2"), _usps_rows(path / "usps.t.bz2"), DIGITS)


def _usps_rows(file: Path) -> Rows:
    if not file.is_file():
        raise InputError(f"{file} is missing; the folder should hold usps.bz2 and usps.t.bz2")
    labels: list[int] = []
    pixels: list[NDArray[np.uint8]] = []
    try:
        with bz2.open(file, "rt", encoding="ascii") as stream:
            while line := stream.readline(_USPS_LINE):
                label, *cells = line.split()
                values = np.full(_USPS_SIDE**2, -1.0)
                for cell in cells:
                    column, _, value = cell.partition(":")
                    if int(column) < 1:
                        raise ValueError(f"column {column}")
                    values[int(column) - 1] = float(value)
                if len(labels) == _USPS_ROWS or not (np.abs(values) <= 1).all() or not 1 <= int(label) <= 10:
                    raise ValueError("too many rows, or a number out of range")
                labels.append(int(label) - 1)
                pixels.append(np.rint((values + 1) * 127.5).astype(np.uint8).reshape(_USPS_SIDE, _USPS_SIDE, 1))
    except (OSError, EOFError, ValueError, IndexError) as error:
        raise InputError(f"{file}, row {len(labels)}: not USPS in LIBSVM's format ({error})") from error
    if not labels:
        raise InputError(f"{file} holds no row")
    return _array_rows(np.stack(pixels), np.array(labels, np.int64), file)


def cifar10c(path: Path, severity: int) -> Raw:
    """The published CIFAR-10-C: the folder with fog.npy and eighteen more, and labels.npy; one severity of it.

    The set has no training images. Of its 10,000 pictures the first 8,000 become training images under every
    corruption, and the last 2,000 test images, so that no picture is on both sides. Groups are corruptions.

    Raises:
        InputError: a file is missing or holds something else.
    """
    labels = _labels(_numbers(path / "labels.npy"), len(CIFAR10), path)
    arrays = {name: _numbers(path / f"{name}.npy") for name in CORRUPTIONS}
    each = len(labels) // 5
    for name, array in arrays.items():
        if array.dtype != np.uint8 or array.shape != (len(labels), 32, 32, 3) or len(labels) % 5:
            raise InputError(
                f"{path / name}.npy holds {array.dtype} {array.shape}; it should be uint8 (50000, 32, 32, 3)"
            )
    cut = each * _CIFAR_C_TRAIN // 10_000
    first = each * (severity - 1)

    def split(start: int, stop: int) -> Rows:
        count = stop - start
        names = list(arrays)

        def picture(row: int) -> NDArray[np.uint8]:
            which, at = divmod(row, count)
            return np.asarray(arrays[names[which]][first + start + at])

        groups = tuple(name for name in names for _ in range(count))
        own = np.tile(labels[first + start : first + stop], len(names))
        return Rows(own, picture, lambda row: f"{path}, {groups[row]} {start + row % count}", groups)

    return Raw(split(0, cut), split(cut, each), CIFAR10)


def _numbers(file: Path) -> NDArray[Any]:
    if not file.is_file():
        raise InputError(f"{file} is missing; the folder should hold labels.npy and {', '.join(CORRUPTIONS)} as .npy")
    try:
        # mapped: a severity is a fifth of each file; and this reader knows neither pickles nor archives
        return np.asarray(np.lib.format.open_memmap(file, mode="r"))
    except (OSError, ValueError, EOFError, OverflowError, tokenize.TokenError) as error:
        raise InputError(f"{file} cannot be read as plain numbers ({error})") from error


def _labels(values: NDArray[Any], classes: int, where: Path) -> NDArray[np.int64]:
    if (
        values.ndim != 1
        or values.dtype.kind not in "iu"
        or (len(values) and not 0 <= values.min() <= values.max() < classes)
    ):
        raise InputError(f"{where}: labels must be whole numbers from 0 to {classes - 1}, one a row")
    return values.astype(np.int64)


def _array_rows(pixels: NDArray[np.uint8], labels: NDArray[np.int64], where: Path) -> Rows:
    if len(pixels) != len(labels):
        raise InputError(f"{where} has {len(pixels)} images and {len(labels)} labels")
    return Rows(labels, lambda row: pixels[row], lambda row: f"{where}, image {row}")
