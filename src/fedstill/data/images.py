"""Pictures in, uint8 arrays out: finding, decoding, resizing; the same for training and for ``fedstill predict``."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import UInt8
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from fedstill.errors import InputError

__all__ = [
    "SUFFIXES",
    "Decoded",
    "FolderImages",
    "Form",
    "Picture",
    "decode",
    "find_images",
    "load_folder_images",
    "stack",
]

Picture = bytes | Path | NDArray[np.uint8]
"""An encoded file's content, its path, or pixels [h, w, channels]."""

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".pgm", ".ppm")
# never every format that Pillow knows: its EPS reader starts Ghostscript
_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
_GREY = frozenset({"1", "L", "LA", "La"})
_SIXTEEN = frozenset({"I;16", "I;16L", "I;16B", "I;16N", "I"})
_MAX_PIXELS = 2**26  # 8192 × 8192; a small file can claim more and fill the memory
_CHUNK = 128  # pictures a task: hides the pool's own cost, and a bad picture is told early
_MAX_THREADS = 8


@dataclass(frozen=True, kw_only=True)
class Form:
    """What every picture is brought to.

    Attributes:
        size: height and width in pixels; None leaves pictures as they are.
        channels: 1 (luma of ITU-R 601) or 3; None leaves them.
        fit: ``stretch`` ignores the aspect ratio, ``crop`` keeps it and cuts to the centre.
    """

    size: tuple[int, int] | None = None
    channels: Literal[1, 3] | None = None
    fit: Literal["stretch", "crop"] = "stretch"


@dataclass(frozen=True)
class Decoded:
    """Pictures of a split.

    Attributes:
        pixels: uint8 [h, w, channels] each; they need not agree yet.
        kept: row number of each.
        skipped: (name, reason) of each row that could not be decoded.
    """

    pixels: list[NDArray[np.uint8]]
    kept: NDArray[np.int64]
    skipped: tuple[tuple[str, str], ...]


class FolderImages(NamedTuple):
    """Unlabelled pictures: names relative to the folder, uint8 [n, c, h, w], and (name, reason) of those left out."""

    names: tuple[str, ...]
    images: UInt8[Tensor, "n c h w"]
    skipped: tuple[tuple[str, str], ...]


def find_images(folder: Path) -> list[Path]:
    """Picture files at any depth below ``folder``, by suffix, sorted; hidden files and folders are passed over.

    Raises:
        InputError: a folder cannot be listed.
    """

    def refuse(error: OSError) -> None:
        raise InputError(f"cannot list {error.filename}: {error.strerror}") from error

    found: list[Path] = []
    for place, folders, files in os.walk(folder, onerror=refuse):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [Path(place, name) for name in files if name.lower().endswith(SUFFIXES) and not name.startswith(".")]
    return sorted(found, key=lambda path: path.relative_to(folder).parts)


def decode(
    picture: Callable[[int], Picture],
    name: Callable[[int], str],
    rows: NDArray[np.int64],
    form: Form,
    *,
    skip_bad: bool,
) -> Decoded:
    """Decode ``picture(row)`` for every row, in order, in threads.

    Orientation tags are obeyed; 16-bit grey is divided by 257; transparency is dropped. Large JPEG files that are
    to be made small are decoded at reduced scale, never below twice the wanted size.

    Raises:
        InputError: a picture cannot be decoded and ``skip_bad`` is false; ``name(row)`` says which.
    """
    chunks = [rows[start : start + _CHUNK] for start in range(0, len(rows), _CHUNK)]
    pixels: list[NDArray[np.uint8]] = []
    kept: list[int] = []
    skipped: list[tuple[str, str]] = []
    pool = ThreadPoolExecutor(min(os.cpu_count() or 1, _MAX_THREADS))
    try:
        with warnings.catch_warnings():
            # pixel counts are checked here, with a sentence instead of a warning; odd metadata harms no pixel
            warnings.simplefilter("ignore")
            for chunk, results in zip(
                chunks,
                pool.map(lambda chunk: [_attempt(picture, int(row), form) for row in chunk], chunks),
                strict=True,
            ):
                for row, result in zip(chunk.tolist(), results, strict=True):
                    if not isinstance(result, str):
                        pixels.append(result)
                        kept.append(row)
                    elif skip_bad:
                        skipped.append((name(row), result))
                    else:
                        raise InputError(
                            f"{name(row)}: {result}; mend or remove it, or leave such pictures out with skip_bad"
                        )
    finally:
        pool.shutdown(cancel_futures=True)
    return Decoded(pixels, np.asarray(kept, np.int64), tuple(skipped))


def stack(
    pixels: Sequence[NDArray[np.uint8]], name: Callable[[int], str], *, channels: int | None = None
) -> UInt8[Tensor, "n c h w"]:
    """One tensor of pictures that agree in size; grey ones among colour ones become colour.

    Raises:
        InputError: there is none, or two sizes differ; ``name(position)`` says which.
    """
    if not pixels:
        raise InputError("no image is left: every one was unreadable")
    height, width = pixels[0].shape[:2]
    for position, each in enumerate(pixels):
        if each.shape[:2] != (height, width):
            raise InputError(
                f"{name(position)} is {each.shape[0]}x{each.shape[1]} pixels (height x width) and {name(0)} is "
                f"{height}x{width}: set data.size, so that all are brought to one size"
            )
    images = np.empty((len(pixels), channels or max(each.shape[2] for each in pixels), height, width), np.uint8)
    for position, each in enumerate(pixels):
        images[position] = each.transpose(2, 0, 1)  # one channel spreads over three
    return torch.from_numpy(images)


def load_folder_images(
    path: Path,
    *,
    size: tuple[int, int],
    channels: Literal[1, 3],
    fit: Literal["stretch", "crop"] = "stretch",
    skip_bad: bool = False,
) -> FolderImages:
    """Unlabelled pictures for prediction: one file, or all below a folder.

    Raises:
        InputError: the path is missing or holds no picture, or a picture is bad and ``skip_bad`` is false.
    """
    if path.is_dir():
        files = find_images(path)
        names = [file.relative_to(path).as_posix() for file in files]
    elif path.is_file():
        files, names = [path], [path.name]
    else:
        raise InputError(f"{path}: there is no such file or folder")
    if not files:
        raise InputError(f"{path} holds no image at any depth (looked for {' '.join(SUFFIXES)})")
    form = Form(size=size, channels=channels, fit=fit)
    decoded = decode(
        lambda row: files[row], lambda row: str(files[row]), np.arange(len(files)), form, skip_bad=skip_bad
    )
    images = stack(decoded.pixels, lambda position: str(files[decoded.kept[position]]), channels=channels)
    return FolderImages(tuple(names[row] for row in decoded.kept), images, decoded.skipped)


def _attempt(picture: Callable[[int], Picture], row: int, form: Form) -> NDArray[np.uint8] | str:
    """The pixels, or the reason why there are none."""
    try:
        source = picture(row)
        if isinstance(source, np.ndarray):
            return _shaped(source, form)
        with Image.open(BytesIO(source) if isinstance(source, bytes) else source, formats=_FORMATS) as image:
            return _pixels(image, form)
    except UnidentifiedImageError:
        return f"is not an image in a known format ({', '.join(_FORMATS)})"
    except (
        Exception
    ) as error:  # Pillow's readers answer damage with many types, SyntaxError and struct.error among them
        return f"cannot be decoded as an image ({getattr(error, 'strerror', None) or error or type(error).__name__})"


def _shaped(pixels: NDArray[np.uint8], form: Form) -> NDArray[np.uint8]:
    if form.size in (None, pixels.shape[:2]) and form.channels in (None, pixels.shape[2]):
        return pixels
    return _pixels(Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels), form)


def _pixels(image: Image.Image, form: Form) -> NDArray[np.uint8]:
    if image.width * image.height > _MAX_PIXELS:
        raise ValueError(f"{image.width} x {image.height} pixels; more than {_MAX_PIXELS:,} are refused")
    if form.size is not None:
        side = 2 * max(form.size)
        image.draft(None, (side, side))  # JPEG alone can do it; others ignore it
    upright = ImageOps.exif_transpose(image) if "exif" in image.info else image
    ready = _eight_bits(upright, form.channels)
    if form.size is not None and ready.size != (form.size[1], form.size[0]):
        target = (form.size[1], form.size[0])
        if form.fit == "crop":
            ready = ImageOps.fit(ready, target, Image.Resampling.LANCZOS)
        else:
            ready = ready.resize(target, Image.Resampling.LANCZOS)  # widens its kernel when shrinking: no aliasing
    pixels = np.array(ready, dtype=np.uint8)
    return pixels if pixels.ndim == 3 else pixels[:, :, None]


def _eight_bits(image: Image.Image, channels: int | None) -> Image.Image:
    """Mode L or RGB. Pillow's own conversion would clip 16-bit grey at 255."""
    if image.mode == "F":
        raise ValueError("floating-point pixels have no known range")
    if image.mode in _SIXTEEN:
        values = np.asarray(image, dtype=np.int64)
        if values.min() < 0 or values.max() > 65535:
            raise ValueError(f"pixels from {values.min()} to {values.max()} fit neither 8 nor 16 bits")
        image = Image.fromarray(((values + 128) // 257).astype(np.uint8))
    mode = "L" if channels == 1 or (channels is None and image.mode in _GREY) else "RGB"
    return image if image.mode == mode else image.convert(mode)
