"""Contact sheets: many small images as one picture, each pixel enlarged to a square."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
import torch
from jaxtyping import Float, UInt8
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

__all__ = ["grid"]

_PAPER = (255, 255, 255)
_INK = (40, 40, 40)
_MARK = (214, 40, 40)


def grid(
    images: UInt8[Tensor, "n c h w"] | Float[Tensor, "n c h w"],
    *,
    columns: int,
    scale: int = 2,
    gap: int = 2,
    row_labels: Sequence[str] | None = None,
    marks: Collection[int] = (),
) -> Image.Image:
    """One RGB picture of ``images``, row by row.

    Args:
        images: uint8, or floats in 0…1; distilled ones may leave that range and are cut to it, NaN is drawn black.
            One channel or three.
        columns: images a row; the last row may be shorter.
        scale: side, in pixels, of the square that one pixel becomes.
        gap: pixels between images and around them.
        row_labels: a text for each row, drawn to its left.
        marks: positions of images that get a red frame, as wide as the gap.

    Raises:
        ValueError: there are no images, or ``row_labels`` does not fit the number of rows.
    """
    n, _, height, width = images.shape
    rows = -(-n // columns)
    if n == 0:
        raise ValueError("a grid of no images")
    if row_labels is not None and len(row_labels) != rows:
        raise ValueError(f"{len(row_labels)} row labels for {rows} rows")
    tile_height, tile_width = height * scale, width * scale
    font = ImageFont.load_default()
    widest = max((font.getbbox(text)[2] for text in row_labels or ()), default=0)
    margin = int(widest) + 3 * gap + 2 if row_labels else 0
    size = (margin + columns * (tile_width + gap) + gap, rows * (tile_height + gap) + gap)
    sheet = Image.new("RGB", size, _PAPER)
    pen = ImageDraw.Draw(sheet)
    for position, pixels in enumerate(_pixels(images)):
        row, column = divmod(position, columns)
        left, top = margin + gap + column * (tile_width + gap), gap + row * (tile_height + gap)
        if position in marks:
            pen.rectangle((left - gap, top - gap, left + tile_width + gap - 1, top + tile_height + gap - 1), fill=_MARK)
        tile = Image.fromarray(pixels).resize((tile_width, tile_height), Image.Resampling.NEAREST)
        sheet.paste(tile, (left, top))
    for row, text in enumerate(row_labels or ()):
        middle = gap + row * (tile_height + gap) + tile_height // 2
        pen.text((gap, middle), text, fill=_INK, font=font, anchor="lm")
    return sheet


def _pixels(images: Tensor) -> NDArray[np.uint8]:
    """uint8 [n, h, w, 3] on the CPU."""
    pixels = images.detach().cpu()
    if pixels.dtype != torch.uint8:
        pixels = pixels.float().nan_to_num(nan=0.0).clamp(0, 1).mul(255).round().to(torch.uint8)
    array: NDArray[np.uint8] = pixels.expand(-1, 3, -1, -1).permute(0, 2, 3, 1).contiguous().numpy()
    return array
