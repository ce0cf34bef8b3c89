"""What a StyleGAN-XL generator is made of, layer by layer, and the published rules that make such a plan.

After Karras et al., *Alias-Free Generative Adversarial Networks* (2021), section 3.2, and Sauer et al., *StyleGAN-XL* (2022):
a stem of low resolution, onto which super-resolution heads are set. A network read from a file has the plan that the file
holds; the rules are for networks of one's own.

Symbols: f_c ``cutoff``, f_t ``stopband``, f_h = max(f_t, s/2) − f_c ``half_width``, s ``rate``. Lengths are in units of the
image's side, so a rate is pixels a side, margins aside.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from pydantic import ConfigDict, Field

from fedstill.errors import InputError
from fedstill.generators.aliasfree import Resampling

__all__ = ["XLInput", "XLLayer", "XLOptions", "plan"]

MARGIN = 10
"""Pixels on every side beyond the image, so that borders stay out of it."""

_TAPS = 6  # of a filter, times its factor
_MOST = 16  # largest factor of a resampling
_SLOPE = 0.2
_FIRST_CUTOFF = 2.0
_FIRST_STOPBAND = 2.0**2.1
_STOPBAND = 2.0**0.3  # of the last layers, times their cutoff
_CRITICAL = 2  # layers at the end, sampled at no more than they need
_LEAVES = 3  # layers that a head takes the place of

Size = Annotated[int, Field(ge=1, le=4096)]
Width = Annotated[int, Field(ge=1, le=8192)]
Frequency = Annotated[float, Field(gt=0, le=8192, allow_inf_nan=False)]


@dataclass(frozen=True, kw_only=True)
class XLInput:
    """The input features: plane waves, mixed.

    Attributes:
        channels: number of waves, and of features.
        size: pixels a side.
        rate: pixels a unit of length.
        bandwidth: highest frequency of a wave before it is moved.
    """

    __pydantic_config__ = ConfigDict(extra="forbid")

    channels: Width
    size: Size
    rate: Size
    bandwidth: Frequency

    def __post_init__(self) -> None:
        if 2 * self.bandwidth >= self.rate:
            raise InputError(
                f"input features at a rate of {self.rate} hold waves below {self.rate / 2}: lower bandwidth"
            )


@dataclass(frozen=True, kw_only=True)
class XLLayer:
    """One synthesis layer.

    Attributes:
        name: what its weights are called.
        in_channels, out_channels: features.
        in_size, out_size: pixels a side.
        in_rate, out_rate: pixels a unit of length.
        in_cutoff, in_half_width: of the filter after spreading.
        out_cutoff, out_half_width: of the filter before thinning out.
        kernel: of the convolution, pixels a side.
        radial: whether the second filter is the same in every direction.
        image: whether it makes the image: no demodulation, non-linearity or filter.
        clamp: largest absolute value after the non-linearity; None for any.
    """

    __pydantic_config__ = ConfigDict(extra="forbid")

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_]{1,40}$")]
    in_channels: Width
    out_channels: Width
    in_size: Size
    out_size: Size
    in_rate: Size
    out_rate: Size
    in_cutoff: Frequency
    in_half_width: Frequency
    out_cutoff: Frequency
    out_half_width: Frequency
    kernel: Annotated[int, Field(ge=1, le=7)]
    radial: bool = False
    image: bool = False
    clamp: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = 256.0

    def __post_init__(self) -> None:
        for rate in (self.in_rate, self.out_rate):
            if self.wide_rate % rate or self.wide_rate > _MOST * rate:
                raise InputError(
                    f"layer {self.name} resamples from {self.in_rate} to {self.out_rate}: rates are whole multiples of each "
                    f"other, of at most {_MOST // (1 if self.image else 2)}"
                )
        if self.image and self.in_rate != self.out_rate:
            raise InputError(f"layer {self.name} makes the image and resamples: its rates are equal")
        for cutoff, half_width in ((self.in_cutoff, self.in_half_width), (self.out_cutoff, self.out_half_width)):
            if cutoff + half_width > self.wide_rate / 2 and not self.image:
                raise InputError(
                    f"layer {self.name} has a filter that has not fallen at {self.wide_rate / 2}, half of its rate: lower "
                    "its cutoff or half-width"
                )

    @property
    def wide_rate(self) -> int:
        """Pixels a unit of length at the non-linearity, which makes high frequencies."""
        return max(self.in_rate, self.out_rate) * (1 if self.image else 2)

    @property
    def up_taps(self) -> int:
        """Length of the first filter; 1 where there is none."""
        return _filter_taps(self.wide_rate // self.in_rate)

    @property
    def down_taps(self) -> int:
        """Length of the second filter a side; 1 where there is none."""
        return _filter_taps(self.wide_rate // self.out_rate)

    @property
    def resampling(self) -> Resampling:
        """Sizes and factors of what comes after the convolution, which pads by all that its kernel reaches."""
        return Resampling(
            inputs=self.in_size + self.kernel - 1,
            outputs=self.out_size,
            up=self.wide_rate // self.in_rate,
            down=self.wide_rate // self.out_rate,
            up_taps=self.up_taps,
            down_taps=self.down_taps,
            slope=1.0 if self.image else _SLOPE,
            gain=1.0 if self.image else math.sqrt(2),
            clamp=self.clamp,
        )


@dataclass(frozen=True, kw_only=True)
class XLOptions:
    """All that determines a :class:`~fedstill.generators.stylegan_xl.StyleGANXL` but its weights.

    Raises:
        InputError: the layers do not follow from each other.
    """

    __pydantic_config__ = ConfigDict(extra="forbid")

    input: XLInput
    layers: Annotated[tuple[XLLayer, ...], Field(min_length=1, max_length=200)]
    classes: Annotated[int, Field(ge=0, le=100_000, description="number of classes; 0: unconditional")]
    z_width: Annotated[int, Field(ge=1, le=8192, description="length of the noise vector z")] = 64
    w_width: Annotated[int, Field(ge=1, le=8192, description="length of a style vector w")] = 512
    class_width: Annotated[int, Field(ge=1, le=8192, description="length of a class's embedding")] = 320
    class_rows: Annotated[int, Field(ge=1, le=100_000, description="classes that are embedded")] = 1000
    mapping_layers: Annotated[int, Field(ge=1, le=16, description="layers of the mapping network")] = 2
    output_scale: Annotated[float, Field(gt=0, allow_inf_nan=False, description="of the last layer's result")] = 0.25

    def __post_init__(self) -> None:
        if not self.layers:
            raise InputError("a StyleGAN-XL generator has at least one layer")
        if self.classes > self.class_rows:
            raise InputError(f"{self.classes} classes need as many embeddings, not {self.class_rows}")
        before = (self.input.channels, self.input.size, self.input.rate)
        for layer in self.layers:
            takes = (layer.in_channels, layer.in_size, layer.in_rate)
            if takes != before:
                raise InputError(
                    f"layer {layer.name} takes {takes} channels, pixels a side and rate, but is given {before}"
                )
            if layer.image != (layer is self.layers[-1]):
                raise InputError(f"layer {layer.name}: the last layer, and no other, makes the image")
            before = (layer.out_channels, layer.out_size, layer.out_rate)
        if len({layer.name for layer in self.layers}) < len(self.layers):
            raise InputError("two layers have the same name")

    @property
    def channels(self) -> int:
        return self.layers[-1].out_channels

    @property
    def size(self) -> int:
        return self.layers[-1].out_size


def plan(
    sizes: Sequence[int],
    *,
    classes: int,
    layers: int = 10,
    head_layers: int = 7,
    kernel: int = 1,
    radial: bool = True,
    head_kernel: int = 3,
    widest: int = 1024,
    budget: int = 65536,
    channels: int = 3,
    class_rows: int = 1000,
) -> XLOptions:
    """The published rules: a stem for images of ``sizes[0]``, and a super-resolution head for each larger size.

    Args:
        sizes: pixels a side, rising powers of two from 16 on; the last one is the image's.
        classes: 0: unconditional.
        layers: of the stem, beside the one that makes its image.
        head_layers: of a head, beside the one that makes its image. A head takes the place of the last three layers before
            it, and its names skip a number, as the published networks' do.
        kernel: of the stem's convolutions; 1 with radial filters is the configuration "R", which turns images exactly.
        radial: whether the stem's filters are, those of critical layers aside; a head's are not.
        head_kernel: of a head's convolutions.
        widest: most channels of a layer.
        budget: channels times twice the cutoff, where that is less.
        channels: of an image.
        class_rows: classes that are embedded, used or not.

    Raises:
        InputError: the sizes do not rise by powers of two, or there are too few layers.
    """
    if not sizes or any(size < 16 or size & (size - 1) for size in sizes) or sorted(set(sizes)) != list(sizes):
        raise InputError(f"sizes of a StyleGAN-XL generator are rising powers of two from 16 on, not {tuple(sizes)}")
    if min(layers, head_layers) <= _LEAVES:
        raise InputError(f"a StyleGAN-XL generator has more than {_LEAVES} layers, and so has each of its heads")
    start = _Point(_FIRST_CUTOFF, _FIRST_STOPBAND, _rate(_FIRST_STOPBAND, sizes[0]))
    width = _channels(start, widest, budget)
    entry = XLInput(channels=width, size=start.rate + 2 * MARGIN, rate=start.rate, bandwidth=start.cutoff)
    kept: list[XLLayer] = []
    for size in sizes:
        is_head = bool(kept)
        last = head_layers if is_head else layers
        critical = last - _CRITICAL
        # a stage's first layer leaves the signal as it is, so only its second one may raise the rate
        points = [start, *(_point(start, size, min(number / critical, 1)) for number in range(1, last + 1))]
        stage: list[XLLayer] = []
        for number, (here, there) in enumerate(zip([start, *points], points, strict=False)):
            before = (kept + stage)[-1] if kept or stage else None
            stage.append(
                XLLayer(
                    name=f"L{number + len(kept) + is_head}",
                    in_channels=before.out_channels if before else entry.channels,
                    out_channels=channels if number == last else _channels(there, widest, budget),
                    in_size=before.out_size if before else entry.size,
                    out_size=size if number > critical else there.rate + 2 * MARGIN,
                    in_rate=here.rate,
                    out_rate=there.rate,
                    in_cutoff=here.cutoff,
                    in_half_width=here.half_width,
                    out_cutoff=there.cutoff,
                    out_half_width=there.half_width,
                    kernel=1 if number == last else head_kernel if is_head else kernel,
                    radial=radial and not is_head and number < critical,
                    image=number == last,
                )
            )
        made = kept + stage
        kept, start = made[:-_LEAVES], points[-_LEAVES - 1]
    return XLOptions(input=entry, layers=tuple(made), classes=classes, class_rows=class_rows)


@dataclass(frozen=True)
class _Point:
    """The signal between two layers: its band, where the filters have stopped, its rate."""

    cutoff: float
    stopband: float
    rate: int

    @property
    def half_width(self) -> float:
        return max(self.stopband, self.rate / 2) - self.cutoff


def _point(start: _Point, size: int, progress: float) -> _Point:
    """At ``progress`` 0 … 1 from ``start`` to the last layers, which hold all that images of ``size`` can."""
    cutoff = start.cutoff * (size / 2 / start.cutoff) ** progress
    stopband = start.stopband * (size / 2 * _STOPBAND / start.stopband) ** progress
    return _Point(cutoff, stopband, _rate(stopband, size))


def _rate(stopband: float, size: int) -> int:
    return int(2 ** math.ceil(math.log2(min(2 * stopband, size))))


def _channels(point: _Point, widest: int, budget: int) -> int:
    return round(min(budget / 2 / point.cutoff, widest))


def _filter_taps(factor: int) -> int:
    return _TAPS * factor if factor > 1 else 1
