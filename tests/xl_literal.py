"""StyleGAN-XL's formulas taken at their word: zeros are stuffed, padded and filtered; every image has its own weights."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from fedstill.generators.stylegan_xl import StyleGANXL
from fedstill.generators.xl_layers import XLMapping, XLSynthesis, XLWaves

Fir = Callable[[Tensor, Tensor], Tensor]


def fir_by_sums(x: Tensor, kernel: Tensor) -> Tensor:
    """The part of the convolution where ``kernel`` lies inside ``x``, tap by tap."""
    if kernel.ndim == 1:  # along one axis, then along the other
        return fir_by_sums(fir_by_sums(x, kernel[None]), kernel[:, None])
    rows, columns = (x.shape[2] - kernel.shape[0] + 1, x.shape[3] - kernel.shape[1] + 1)
    made = x.new_zeros(*x.shape[:2], rows, columns)
    for i in range(kernel.shape[0]):
        for j in range(kernel.shape[1]):
            first, left = kernel.shape[0] - 1 - i, kernel.shape[1] - 1 - j
            made = made + kernel[i, j] * x[:, :, first : first + rows, left : left + columns]
    return made


def fir_by_convolution(x: Tensor, kernel: Tensor) -> Tensor:
    """The same, as torch's depthwise convolutions: what a quick programmer would write."""
    channels = x.shape[1]
    turned = kernel.flip(*range(kernel.ndim))
    if kernel.ndim == 2:
        return F.conv2d(x, turned.expand(channels, 1, -1, -1), groups=channels)
    across = F.conv2d(x, turned.view(1, 1, 1, -1).expand(channels, -1, -1, -1), groups=channels)
    return F.conv2d(across, turned.view(1, 1, -1, 1).expand(channels, -1, -1, -1), groups=channels)


def dense(x: Tensor, weight: Tensor, bias: Tensor, rate: float = 1.0) -> Tensor:
    return x @ (weight * rate / math.sqrt(weight.shape[1])).T + bias * rate


def lrelu(x: Tensor) -> Tensor:
    return torch.where(x >= 0, x, 0.2 * x) * math.sqrt(2)


def nonlinear(x: Tensor, layer: XLSynthesis, fir: Fir = fir_by_sums) -> Tensor:
    """What follows the convolution and the bias."""
    plan = layer.plan
    wide = max(plan.in_rate, plan.out_rate) * (1 if plan.image else 2)
    up, down = wide // plan.in_rate, wide // plan.out_rate
    up_taps = 1 if layer.up_filter is None else len(layer.up_filter)
    down_taps = 1 if layer.down_filter is None else len(layer.down_filter)
    total = (plan.out_size - 1) * down + 1 - (plan.in_size + plan.kernel - 1) * up + up_taps + down_taps - 2
    low = (total + up) // 2
    stuffed = x.new_zeros(*x.shape[:2], x.shape[2] * up, x.shape[3] * up)
    stuffed[:, :, ::up, ::up] = x
    x = F.pad(stuffed, [low, total - low, low, total - low])
    if layer.up_filter is not None:
        x = fir(x, layer.up_filter * up)
    if not plan.image:
        x = lrelu(x)
    if plan.clamp is not None:
        x = x.clamp(-plan.clamp, plan.clamp)
    if layer.down_filter is not None:
        x = fir(x, layer.down_filter)
    return x[:, :, ::down, ::down]


def synthesis(layer: XLSynthesis, x: Tensor, w: Tensor, fir: Fir = fir_by_sums) -> Tensor:
    plan = layer.plan
    style = dense(w, layer.style.weight, layer.style.bias)
    weight = layer.weight
    if plan.image:
        style = style / math.sqrt(plan.in_channels * plan.kernel**2)
    else:
        weight = weight * weight.square().mean((1, 2, 3), keepdim=True).rsqrt()
        style = style * style.square().mean().rsqrt()
    weights = weight[None] * style[:, None, :, None, None]
    if not plan.image:
        weights = weights * (weights.square().sum((2, 3, 4), keepdim=True) + 1e-8).rsqrt()
    weights = weights * layer.magnitude.rsqrt()
    count = len(x)
    together = x.reshape(1, -1, *x.shape[2:])
    made = F.conv2d(together, weights.flatten(0, 1), padding=plan.kernel - 1, groups=count)
    made = made.view(count, plan.out_channels, *made.shape[2:]) + layer.bias[:, None, None]
    return nonlinear(made, layer, fir)


def waves(layer: XLWaves, w: Tensor) -> Tensor:
    plan = layer.plan
    t = dense(w, layer.style.weight, layer.style.bias)
    images = []
    for t0, t1, t2, t3 in (t / t[:, :2].square().sum(1, keepdim=True).sqrt()).tolist():
        turn = torch.tensor([[t0, -t1, 0], [t1, t0, 0], [0, 0, 1]], dtype=w.dtype)
        move = torch.tensor([[1, 0, -t2], [0, 1, -t3], [0, 0, 1]], dtype=w.dtype)
        moved = turn @ move @ layer.transform
        phases = layer.phases + layer.frequencies @ moved[:2, 2]
        frequencies = layer.frequencies @ moved[:2, :2]
        lengths = frequencies.square().sum(1).sqrt()
        amplitudes = (1 - (lengths - plan.bandwidth) / (plan.rate / 2 - plan.bandwidth)).clamp(0, 1)
        made = w.new_zeros(plan.size, plan.size, plan.channels)
        for row in range(plan.size):
            for column in range(plan.size):
                x, y = ((2 * (place + 0.5) / plan.size - 1) * 0.5 * plan.size / plan.rate for place in (column, row))
                angles = 2 * math.pi * (frequencies[:, 0] * x + frequencies[:, 1] * y + phases)
                made[row, column] = torch.sin(angles) * amplitudes
        images.append((made @ (layer.weight / math.sqrt(plan.channels)).T).permute(2, 0, 1))
    return torch.stack(images)


def unit(x: Tensor) -> Tensor:
    return x / (x.square().mean(1, keepdim=True) + 1e-8).sqrt()


def mapping(network: XLMapping, z: Tensor, labels: Tensor) -> Tensor:
    x = unit(z)
    if network.embedding is not None:
        projected = dense(network.embedding.weight[labels], network.projection.weight, network.projection.bias)
        x = torch.cat([x, unit(lrelu(projected))], 1)
    for layer in network.layers:
        x = lrelu(dense(x, layer.weight, layer.bias, 0.01))
    return x


def render(generator: StyleGANXL, features: Tensor, styles: Tensor, space: int, fir: Fir = fir_by_sums) -> Tensor:
    for number, layer in enumerate(generator.layers[space:]):
        features = synthesis(layer, features, styles[:, number], fir)
    return features * 0.25
