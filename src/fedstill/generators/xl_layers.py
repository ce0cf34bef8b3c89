"""The layers of StyleGAN-XL: mapping network, input features, synthesis.

After Karras et al., *Alias-Free Generative Adversarial Networks* (2021), and Sauer et al., *StyleGAN-XL* (2022).
"""

from __future__ import annotations

import math
from itertools import pairwise

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from fedstill.generators import winograd
from fedstill.generators.aliasfree import filtered
from fedstill.generators.filters import lowpass
from fedstill.generators.style import Dense, leaky, unit
from fedstill.generators.xl_options import XLInput, XLLayer, XLOptions

__all__ = ["XLMapping", "XLSynthesis", "XLWaves"]

_EPS = 1e-8
_SLOW = 0.01  # learning rate multiplier of the mapping network


class XLMapping(nn.Module):
    """z [n, z_width] and labels [n] → w [n, w_width].

    A class's embedding, which comes from a network that classifies images, is projected to the length of z; both are
    normalised and joined. Without classes there is z alone, and labels have no say.
    """

    def __init__(self, options: XLOptions) -> None:
        super().__init__()
        joined = options.z_width
        self.embedding: nn.Embedding | None = None
        self.projection: Dense | None = None
        if options.classes:
            self.embedding = nn.Embedding(options.class_rows, options.class_width)
            self.projection = Dense(options.class_width, options.z_width)
            joined *= 2
        widths = [joined] + [options.w_width] * options.mapping_layers
        self.layers = nn.ModuleList(Dense(before, after, rate=_SLOW) for before, after in pairwise(widths))

    def forward(self, z: Float[Tensor, "n z"], labels: Int[Tensor, " n"]) -> Float[Tensor, "n w"]:
        x = unit(z)
        if self.embedding is not None and self.projection is not None:
            x = torch.cat([x, unit(leaky(self.projection(self.embedding(labels))))], 1)
        for layer in self.layers:
            x = leaky(layer(x))
        return x


class XLWaves(nn.Module):
    """Input features: plane waves that a style turns and moves, mixed.

    Attributes:
        frequencies: [channels, 2], across and down, in periods a unit of length.
        phases: [channels], in periods.
        transform: [3, 3], a change of place that is the user's; identity.
    """

    frequencies: Tensor
    phases: Tensor
    transform: Tensor

    def __init__(self, plan: XLInput, style: int) -> None:
        super().__init__()
        self.plan = plan
        directions = F.normalize(torch.randn(plan.channels, 2))
        lengths = plan.bandwidth * torch.rand(plan.channels, 1).sqrt()  # even over the disc
        self.register_buffer("frequencies", directions * lengths)
        self.register_buffer("phases", torch.rand(plan.channels) - 0.5)
        self.register_buffer("transform", torch.eye(3))
        self.weight = nn.Parameter(torch.randn(plan.channels, plan.channels))
        self.style = Dense(style, 4)
        with torch.no_grad():  # at first no style turns or moves anything
            self.style.weight.zero_()
            self.style.bias[0] = 1

    def forward(self, w: Float[Tensor, "n d"]) -> Float[Tensor, "n c h w"]:
        plan = self.plan
        moved = self._placement(w) @ self.transform
        phases = self.phases + (self.frequencies @ moved[:, :2, 2:]).squeeze(2)
        frequencies = self.frequencies @ moved[:, :2, :2]
        # what the layers could not carry without aliasing fades out
        band = plan.rate / 2 - plan.bandwidth
        amplitudes = (1 - (frequencies.norm(dim=2) - plan.bandwidth) / band).clamp(0, 1)
        centres = (torch.arange(plan.size, device=w.device).to(w) + 0.5 - plan.size / 2) / plan.rate
        across = frequencies[:, None, :, 0] * centres[:, None]  # [n, size, channels]
        down = frequencies[:, None, :, 1] * centres[:, None] + phases[:, None]
        waves = torch.sin(2 * math.pi * (across[:, None] + down[:, :, None])) * amplitudes[:, None, None]
        mixed = waves @ (self.weight / math.sqrt(plan.channels)).T
        features: Tensor = mixed.permute(0, 3, 1, 2).contiguous()
        return features

    def _placement(self, w: Tensor) -> Float[Tensor, "n 3 3"]:
        """Turned by the style's first two numbers and, before that, moved by its last two."""
        style: Tensor = self.style(w)
        cosine, sine, right, below = (style / style[:, :2].norm(dim=1, keepdim=True)).unbind(1)
        zero, one = torch.zeros_like(cosine), torch.ones_like(cosine)
        turn = torch.stack([cosine, -sine, zero, sine, cosine, zero, zero, zero, one], 1).view(-1, 3, 3)
        move = torch.stack([one, zero, -right, zero, one, -below, zero, zero, one], 1).view(-1, 3, 3)
        return turn @ move


class XLSynthesis(nn.Module):
    """A modulated convolution and the filtered non-linearity.

    The style scales the input's channels and demodulation the output's, around one convolution that all images share; what
    normalises the weights is a factor of the output's channels too, so no weights are written. Where x has 16 bits they are: the
    convolution then takes numbers of about size one, and makes such. An image is made with the bits of w, whatever x has.

    Attributes:
        magnitude: mean square of the layer's inputs in training, whose root they are divided by.
        up_filter: [taps], or None; after spreading.
        down_filter: [taps] or, radial, [taps, taps], or None; before thinning out.
    """

    magnitude: Tensor
    up_filter: Tensor | None
    down_filter: Tensor | None

    def __init__(self, plan: XLLayer, style: int) -> None:
        super().__init__()
        self.plan = plan
        self.resampling = plan.resampling
        self.weight = nn.Parameter(torch.randn(plan.out_channels, plan.in_channels, plan.kernel, plan.kernel))
        self.bias = nn.Parameter(torch.zeros(plan.out_channels))
        self.style = Dense(style, plan.in_channels, bias=1.0)
        self.register_buffer("magnitude", torch.ones(()))
        up = down = None
        if plan.up_taps > 1:
            up = lowpass(plan.up_taps, cutoff=plan.in_cutoff, half_width=plan.in_half_width, rate=plan.wide_rate)
        if plan.down_taps > 1:
            down = lowpass(
                plan.down_taps,
                cutoff=plan.out_cutoff,
                half_width=plan.out_half_width,
                rate=plan.wide_rate,
                radial=plan.radial,
            )
        self.register_buffer("up_filter", None if up is None else up.to(self.bias))
        self.register_buffer("down_filter", None if down is None else down.to(self.bias))

    def forward(self, x: Float[Tensor, "n i h w"], w: Float[Tensor, "n d"]) -> Float[Tensor, "n o h2 w2"]:
        style = self.style(w)
        gain = self.magnitude.rsqrt()
        weight: Tensor = self.weight
        if self.plan.image:
            x = x.to(w)
            style = style / math.sqrt(weight[0].numel())
            scale = gain.expand(len(x), self.plan.out_channels)
        else:
            # one factor for the whole batch, which demodulation takes out again: it keeps the squares small
            style = style * style.square().mean().rsqrt()
            power = self.weight.square().sum((2, 3))
            unit_gain = self.weight[0].numel() / power.sum(1)
            demodulation = torch.rsqrt(style.square() @ (power * unit_gain[:, None]).T + _EPS)
            if x.dtype == w.dtype:
                scale = demodulation * unit_gain.sqrt() * gain
            else:
                entries = weight[0].numel()
                weight = (weight * (unit_gain / entries).sqrt()[:, None, None, None]).to(x.dtype)
                style, scale = style * gain, demodulation * math.sqrt(entries)
        made = self._convolved(x * style[:, :, None, None].to(x.dtype), weight)
        return filtered(made, scale, self.bias, self.up_filter, self.down_filter, self.resampling)

    def _convolved(self, x: Tensor, weight: Tensor) -> Tensor:
        padding = self.plan.kernel - 1
        if winograd.is_worth_it(x, weight):
            return winograd.convolved(x, weight, padding=padding)
        return F.conv2d(x, weight, padding=padding)
