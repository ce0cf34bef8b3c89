"""A small class-conditional style generator, built to be quick on a CPU.

After Karras et al., *Analyzing and Improving the Image Quality of StyleGAN* (2020), without noise inputs and with one
image at the end instead of a sum of images; the class enters the mapping network as a normalised embedding beside z, as
in Sauer et al., *StyleGAN-XL* (2022).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from pydantic import ConfigDict, Field
from torch import Tensor, nn

from fedstill.errors import InputError
from fedstill.generators.pixels import Latent
from fedstill.seeds import Seed

__all__ = ["SIZES", "Dense", "StyleGenerator", "StyleOptions", "leaky", "unit"]

_EPS = 1e-8
SIZES = (16, 20, 24, 28, 32)


@dataclass(frozen=True, kw_only=True)
class StyleOptions:
    """All that determines a :class:`StyleGenerator` but its weights.

    Raises:
        InputError: no network can be built for that size or number of channels.
    """

    __pydantic_config__ = ConfigDict(extra="forbid")

    channels: Annotated[int, Field(description="1 for grey, 3 for colour")]
    size: Annotated[int, Field(description="height and width in pixels: 16, 20, 24, 28 or 32")]
    classes: Annotated[int, Field(ge=1, le=10_000, description="number of classes")]
    width: Annotated[int, Field(ge=4, le=1024, description="feature channels at full size")] = 32
    z_width: Annotated[int, Field(ge=1, le=1024, description="length of the noise vector z")] = 64
    w_width: Annotated[int, Field(ge=1, le=1024, description="length of a style vector w")] = 96
    input: Annotated[
        Literal["constant", "fourier"],
        Field(description="input features: learned numbers a place, or a learned mix of plane waves"),
    ] = "constant"

    def __post_init__(self) -> None:
        if self.channels not in (1, 3):
            raise InputError(f"a style prior has 1 or 3 channels, not {self.channels}: set data.channels")
        if self.size not in SIZES:
            raise InputError(
                f"a style prior has a size of {', '.join(map(str, SIZES))} pixels, not {self.size}: set data.size"
            )

    @property
    def widths(self) -> tuple[int, int, int]:
        """Feature channels at a quarter, half and full size."""
        return 3 * self.width, 2 * self.width, self.width


class StyleGenerator(nn.Module):
    """A style generator with its latent spaces F0 … F_depth.

    A synthesis layer takes its style vector and turns the features of one space into those of the next; the last one
    makes the image. So F0 holds the input features and all ``depth`` style vectors, Fk features and ``depth − k`` style
    vectors, and F_depth the image alone.

    Attributes:
        options: the architecture.
        truncation: ψ of ``draw``: w moves to ψ·w + (1 − ψ)·(its class's mean w); 1 leaves it.
        centres: mean w of every class, [classes, w_width]; see :meth:`track_centres`.
    """

    centres: Tensor

    def __init__(self, options: StyleOptions, *, truncation: float = 1.0) -> None:
        super().__init__()
        self.options = options
        self.truncation = truncation
        self.channels = options.channels
        self.size = (options.size, options.size)
        self.classes: int | None = options.classes
        quarter, half, full = options.widths
        style = options.w_width
        self.mapping = Mapping(options)
        start = Constant if options.input == "constant" else Fourier
        self.input = start(quarter, options.size // 4)
        self.layers = nn.ModuleList(
            [
                StyleLayer(quarter, quarter, style),
                StyleLayer(quarter, half, style, up=True),
                StyleLayer(half, half, style),
                StyleLayer(half, full, style, up=True),
                StyleLayer(full, full, style),
                ToImage(full, options.channels, style),
            ]
        )
        self.depth = len(self.layers)
        self.register_buffer("centres", torch.zeros(options.classes, style))

    def draw(self, labels: Int[Tensor, " n"], seed: Seed) -> Latent:
        """A latent at F0: z ~ N(0, I), drawn on the CPU, through the mapping network and the truncation."""
        labels = labels.to(self.centres.device)
        z = torch.randn(len(labels), self.options.z_width, generator=seed.torch()).to(self.centres)
        w = self.mapping(z, labels)
        if self.truncation != 1:
            w = torch.lerp(self.centres[labels], w, self.truncation)
        return {"w": w.unsqueeze(1).repeat(1, self.depth, 1), "f": self.input(len(labels))}

    def lift(self, latent: Latent, space: int) -> Latent:
        """F0 → F_space."""
        return self._run(latent, 0, space)

    def render(self, latent: Latent, space: int) -> Float[Tensor, "n c h w"]:
        """F_space → images, about −1 … 1, not clamped."""
        return self._run(latent, space, self.depth)["f"]

    def _run(self, latent: Latent, first: int, last: int) -> Latent:
        assert 0 <= first <= last <= self.depth
        features = latent["f"]
        for number in range(first, last):
            features = self.layers[number](features, latent["w"][:, number - first])
        return {"f": features} if last == self.depth else {"w": latent["w"][:, last - first :], "f": features}

    @torch.no_grad()
    def track_centres(self, seed: Seed, *, samples: int = 2000) -> None:
        """Set ``centres`` to the mean w of ``samples`` draws of z, the same for every class."""
        z = torch.randn(samples, self.options.z_width, generator=seed.torch()).to(self.centres)
        for label in range(self.options.classes):
            self.centres[label] = self.mapping(z, z.new_full((samples,), label, dtype=torch.long)).mean(0)


class Mapping(nn.Module):
    """z [n, z_width] and labels [n] → w [n, w_width]: both normalised, concatenated, two slow layers."""

    def __init__(self, options: StyleOptions) -> None:
        super().__init__()
        self.embedding = nn.Embedding(options.classes, options.z_width)
        self.first = Dense(2 * options.z_width, options.w_width, rate=0.01)
        self.second = Dense(options.w_width, options.w_width, rate=0.01)

    def forward(self, z: Float[Tensor, "n z"], labels: Int[Tensor, " n"]) -> Float[Tensor, "n w"]:
        joined = torch.cat([unit(z), unit(self.embedding(labels))], 1)
        return leaky(self.second(leaky(self.first(joined))))


class Dense(nn.Module):
    """A fully connected layer whose weights are N(0, 1) at first and scaled in use, so that Adam moves all layers at
    the same relative speed; ``rate`` slows this one down (the learning rate multiplier of StyleGAN).
    """

    def __init__(self, inputs: int, outputs: int, *, bias: float = 0.0, rate: float = 1.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs) / rate)
        self.bias = nn.Parameter(torch.full((outputs,), bias / rate))
        self.rate = rate
        self.gain = rate / math.sqrt(inputs)

    def forward(self, x: Float[Tensor, "n i"]) -> Float[Tensor, "n o"]:
        return F.linear(x, self.weight * self.gain, self.bias * self.rate)


class Constant(nn.Module):
    """Input features that are learned numbers, the same for every image."""

    def __init__(self, channels: int, size: int) -> None:
        super().__init__()
        self.values = nn.Parameter(torch.randn(channels, size, size))

    def forward(self, count: int) -> Float[Tensor, "n c s s"]:
        return self.values.repeat(count, 1, 1, 1)


class Fourier(nn.Module):
    """Input features that are a learned mix of plane waves of up to two periods across the image."""

    waves: Tensor

    def __init__(self, channels: int, size: int) -> None:
        super().__init__()
        centres = (torch.arange(size) + 0.5) / size
        frequencies = torch.randn(channels, 2)
        frequencies = 2 * frequencies / frequencies.norm(dim=1, keepdim=True) * torch.rand(channels, 1).sqrt()
        down, across = torch.meshgrid(centres, centres, indexing="ij")
        turns = torch.einsum("cd,dhw->chw", frequencies, torch.stack([across, down])) + torch.rand(channels, 1, 1)
        self.register_buffer("waves", torch.sin(2 * math.pi * turns) * math.sqrt(2))
        self.mix = nn.Parameter(torch.randn(channels, channels))

    def forward(self, count: int) -> Float[Tensor, "n c s s"]:
        values = torch.einsum("oc,chw->ohw", self.mix / math.sqrt(len(self.mix)), self.waves)
        return values.repeat(count, 1, 1, 1)


class StyleLayer(nn.Module):
    """A modulated 3 × 3 convolution with demodulation, bias and leaky ReLU; ``up`` doubles the size.

    The style scales the input's channels and demodulation the output's, around one convolution that all images share:
    what StyleGAN 2 writes as one convolution a image with its own weights, which a CPU does several times slower.
    The doubling comes after the convolution, where it costs a quarter, and before the non-linearity.
    """

    def __init__(self, inputs: int, outputs: int, style: int, *, up: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs, 3, 3))
        self.bias = nn.Parameter(torch.zeros(outputs))
        self.style = Dense(style, inputs, bias=1.0)
        self.gain = 1 / math.sqrt(9 * inputs)
        self.up = up

    def forward(self, x: Float[Tensor, "n i h w"], w: Float[Tensor, "n d"]) -> Float[Tensor, "n o h2 w2"]:
        scale = self.style(w)
        weight = self.weight * self.gain
        demodulation = torch.rsqrt(scale.square() @ weight.square().sum((2, 3)).T + _EPS)
        x = F.conv2d(x * scale[:, :, None, None], weight, padding=1) * demodulation[:, :, None, None]
        if self.up:
            x = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
        return leaky(x + self.bias[:, None, None])


class ToImage(nn.Module):
    """A modulated 1 × 1 convolution without demodulation: features → images."""

    def __init__(self, inputs: int, channels: int, style: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(channels, inputs, 1, 1))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.style = Dense(style, inputs, bias=1.0)
        self.gain = 1 / math.sqrt(inputs)

    def forward(self, x: Float[Tensor, "n i h w"], w: Float[Tensor, "n d"]) -> Float[Tensor, "n c h w"]:
        return F.conv2d(x * self.style(w)[:, :, None, None], self.weight * self.gain, self.bias)


def leaky(x: Tensor) -> Tensor:
    """Leaky ReLU of slope 0.2, times √2 to keep the variance."""
    return F.leaky_relu(x, 0.2) * math.sqrt(2)


def unit(x: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
    """Each row scaled to a mean square of 1."""
    return x * torch.rsqrt(x.square().mean(1, keepdim=True) + _EPS)
