"""What the networks share: normalisation, activation, pooling, and the class of all that end in one linear layer."""

from __future__ import annotations

from typing import Annotated, Any, Literal, final

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from fedstill.models.architecture import Network

__all__ = [
    "BATCH_NORMS",
    "Activation",
    "BatchNorm",
    "Groups",
    "Headed",
    "InstanceNorm",
    "MeanPool",
    "Norm",
    "Width",
    "activation_layer",
    "best_layout",
    "halvings",
    "norm_layer",
]

BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
Activation = Literal["relu", "silu", "leaky_relu", "softplus", "gelu", "elu", "tanh"]
Norm = Literal["instance", "group", "batch", "none"]
Groups = Annotated[int, Field(ge=1, le=1024, description="groups of feature channels; norm = 'group' alone reads it")]
Width = Annotated[int, Field(ge=1, le=4096, description="feature channels of the first layer")]


@final
class Headed(Network):
    """A body that gives feature vectors, and a linear layer on them.

    Attributes:
        body: [n, c, h, w] → [n, d].
        head: [n, d] → [n, classes].
    """

    def __init__(self, body: nn.Module, head: nn.Linear) -> None:
        super().__init__()
        self.body = body
        self.head = head

    def features(self, inputs: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d"]:
        features: Tensor = self.body(inputs)
        return features

    def classify(self, features: Float[Tensor, "n d"]) -> Float[Tensor, "n classes"]:
        logits: Tensor = self.head(features)
        return logits


@final
class InstanceNorm(nn.GroupNorm):
    """GroupNorm with one channel a group, affine: the InstanceNorm of the distillation literature.

    On channels-last maps of a CPU, where no gradient is wanted, it takes a way of its own: PyTorch's is some twenty times
    slower there than on contiguous maps. The two agree to rounding.
    """

    def __init__(self, channels: int) -> None:
        super().__init__(channels, channels)

    def forward(self, maps: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        if torch.is_grad_enabled() or not _is_channels_last(maps):
            normalised: Tensor = super().forward(maps)
            return normalised
        n, channels, height, width = maps.shape
        rows = maps.permute(0, 2, 3, 1).reshape(n, height * width, channels)  # a view
        rows = rows - rows.mean(1, keepdim=True)
        scale = (rows * rows).mean(1, keepdim=True).add_(self.eps).rsqrt_().mul_(self.weight)
        torch.addcmul(self.bias, rows, scale, out=rows)
        return rows.view(n, height, width, channels).permute(0, 3, 1, 2)


@final
class BatchNorm(nn.BatchNorm2d):
    """``nn.BatchNorm2d``, but for one number a channel, which has no deviation and which torch refuses to train on.

    One image whose map is a single pixel, as the last batch of an epoch may be, is normalised by the running statistics and
    leaves them as they are.
    """

    def forward(self, maps: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        if not self.training or maps.numel() != self.num_features:
            normalised: Tensor = super().forward(maps)
            return normalised
        return F.batch_norm(maps, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)


@final
class MeanPool(nn.Module):
    """The mean of each square of 2 × 2; an odd row or column at the end is left out.

    It is ``nn.AvgPool2d(2)`` to the bit, forwards and backwards; on a CPU, contiguous maps take a third of its time.
    """

    def forward(self, maps: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h2 w2"]:
        if (
            # first, for it asks nothing of a size that is still open: an exported file has the one node that every runtime knows
            torch.compiler.is_compiling()
            or maps.numel() < _FEW
            or maps.device.type != "cpu"
            or maps.dtype not in (torch.float32, torch.float64)
            or not maps.is_contiguous()
        ):
            return F.avg_pool2d(maps, 2)
        pooled: Tensor = _Means.apply(maps)  # type: ignore[no-untyped-call]
        return pooled


_FEW = 2**14  # numbers: below, torch's one call costs less than several faster ones


class _Means(torch.autograd.Function):
    """Linear, and so is its transpose, :class:`_Shares`; each is the other's derivative."""

    generate_vmap_rule = True

    @staticmethod
    def forward(maps: Tensor) -> Tensor:
        height, width = (side // 2 * 2 for side in maps.shape[-2:])
        # one after the other, as avg_pool2d adds them: another order has other last bits
        total = maps[..., 0:height:2, 0:width:2] + maps[..., 0:height:2, 1:width:2]
        total += maps[..., 1:height:2, 0:width:2]
        total += maps[..., 1:height:2, 1:width:2]
        total *= 0.25
        return total

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.sides = tuple(inputs[0].shape[-2:])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        shares: Tensor = _Shares.apply(grad, ctx.sides)  # type: ignore[no-untyped-call]
        return shares


class _Shares(torch.autograd.Function):
    """A quarter of every mean to each of its four places, nothing to an odd row or column at the end."""

    generate_vmap_rule = True

    @staticmethod
    def forward(means: Tensor, sides: tuple[int, int]) -> Tensor:
        *batch, rows, columns = means.shape
        quarters = means * 0.25
        squares = means.new_empty(*batch, rows, 2, columns, 2)
        squares[..., 0, :, 0] = quarters
        squares[..., 0, :, 1] = quarters
        squares[..., 1, :, :] = squares[..., 0, :, :]  # a whole row at a time
        shares = squares.view(*batch, 2 * rows, 2 * columns)
        odd = (0, sides[1] - 2 * columns, 0, sides[0] - 2 * rows)
        return F.pad(shares, odd) if any(odd) else shares

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, tuple[int, int]], output: Tensor) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        means: Tensor = _Means.apply(grad)  # type: ignore[no-untyped-call]
        return means, None


def best_layout(network: nn.Module, device: torch.device) -> torch.memory_format:
    """The layout of images with which ``network`` works fastest where no gradient is wanted; results agree to rounding.

    On a CPU it is channels last for the networks here, unless a layer is slow on it. A user's own network may not take it at all.
    """
    slow = any(type(module) is nn.GroupNorm for module in network.modules())
    if device.type != "cpu" or slow or not isinstance(network, Headed):
        return torch.contiguous_format
    return torch.channels_last


def activation_layer(name: Activation) -> nn.Module:
    """Softplus has β = 4: near ReLU and yet smooth. None works in place, so that all differentiate twice."""
    match name:
        case "relu":
            return nn.ReLU()
        case "silu":
            return nn.SiLU()
        case "leaky_relu":
            return nn.LeakyReLU()
        case "softplus":
            return nn.Softplus(beta=4)
        case "gelu":
            return nn.GELU()
        case "elu":
            return nn.ELU()
        case "tanh":
            return nn.Tanh()


def norm_layer(name: Norm, channels: int, groups: int) -> nn.Module:
    """The layer of that name.

    Raises:
        ValueError: ``groups`` does not divide ``channels``.
    """
    match name:
        case "instance":
            return InstanceNorm(channels)
        case "group":
            if channels % groups:
                raise ValueError(
                    f"groups = {groups} does not divide {channels} feature channels: use a divisor of them"
                )
            return nn.GroupNorm(groups, channels)
        case "batch":
            return BatchNorm(channels)
        case "none":
            return nn.Identity()


def halvings(size: tuple[int, int]) -> int:
    """How often both sides can be halved, rounding down, with a pixel left."""
    return min(size).bit_length() - 1


def _is_channels_last(maps: Tensor) -> bool:
    return (
        maps.device.type == "cpu" and maps.is_contiguous(memory_format=torch.channels_last) and not maps.is_contiguous()
    )
