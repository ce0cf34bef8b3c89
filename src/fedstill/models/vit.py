"""ViT, the vision transformer (Dosovitskiy et al., *An Image is Worth 16x16 Words*, 2021), at the scale of CIFAR."""

from __future__ import annotations

from typing import Annotated, final

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from fedstill.models.layers import Headed

__all__ = ["vit"]

_EMBEDDING_STD = 0.02  # the paper's, for position embeddings


def vit(
    *,
    channels: int,
    size: tuple[int, int],
    classes: int,
    patch: Annotated[int, Field(ge=1, le=1024, description="height and width of a patch in pixels")] = 4,
    dim: Annotated[int, Field(ge=1, le=8192, description="length of a token")] = 512,
    depth: Annotated[int, Field(ge=1, le=100, description="blocks of attention and perceptron")] = 6,
    heads: Annotated[int, Field(ge=1, le=256, description="attention heads")] = 8,
    head_dim: Annotated[int, Field(ge=1, le=1024, description="length of a head's queries, keys and values")] = 64,
    mlp: Annotated[int, Field(ge=1, le=65536, description="hidden units of the perceptron")] = 512,
    dropout: Annotated[float, Field(ge=0, lt=1, description="share of activations dropped in training")] = 0.1,
) -> Headed:
    """Pre-norm blocks over patches and a class token, whose last state, normalised, is the feature vector: [n, dim].

    Raises:
        ValueError: the patches do not tile the image.
    """
    height, width = size
    if height % patch or width % patch:
        raise ValueError(
            f"patch = {patch} does not divide {height} x {width} pixels: use a common divisor of both sides"
        )
    body = nn.Sequential()
    body.add_module("tokens", _Tokens(channels, patch, (height // patch) * (width // patch), dim))
    body.add_module("dropout", nn.Dropout(dropout))
    for number in range(1, depth + 1):
        body.add_module(f"block{number}", _Block(dim, heads, head_dim, mlp, dropout))
    body.add_module("first", _First())
    body.add_module("norm", nn.LayerNorm(dim))
    return Headed(body, nn.Linear(dim, classes))


@final
class _Tokens(nn.Module):
    """Images → a class token and one token a patch, with position embeddings added.

    Nothing is drawn in here: Opacus runs a layer that has parameters beside its parts a second time, image by image.
    """

    def __init__(self, channels: int, patch: int, patches: int, dim: int) -> None:
        super().__init__()
        self.patches = nn.Conv2d(channels, dim, kernel_size=patch, stride=patch)
        self.first = nn.Parameter(torch.zeros(1, 1, dim))
        self.positions = nn.Parameter(nn.init.normal_(torch.empty(1 + patches, dim), std=_EMBEDDING_STD))

    def forward(self, inputs: Float[Tensor, "n c h w"]) -> Float[Tensor, "n t d"]:
        patches = self.patches(inputs).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.first.expand(patches.shape[0], -1, -1), patches], dim=1)
        outputs: Tensor = tokens + self.positions
        return outputs


@final
class _Block(nn.Module):
    """x + attention(norm(x)), then x + perceptron(norm(x))."""

    def __init__(self, dim: int, heads: int, head_dim: int, mlp: int, dropout: float) -> None:
        super().__init__()
        self.attention = nn.Sequential(nn.LayerNorm(dim), _Attention(dim, heads, head_dim, dropout))
        self.perceptron = nn.Sequential(
            nn.LayerNorm(dim),
            nn.Linear(dim, mlp),
            nn.GELU(),
            nn.Dropout(dropout),
            nn.Linear(mlp, dim),
            nn.Dropout(dropout),
        )

    def forward(self, tokens: Float[Tensor, "n t d"]) -> Float[Tensor, "n t d"]:
        tokens = tokens + self.attention(tokens)
        outputs: Tensor = tokens + self.perceptron(tokens)
        return outputs


@final
class _Attention(nn.Module):
    """softmax(q kᵀ / √head_dim) v in every head, then a linear layer over all heads.

    Written out, because the fused kernels cannot be differentiated twice, which trajectory matching does.
    """

    def __init__(self, dim: int, heads: int, head_dim: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.scale = head_dim**-0.5
        self.qkv = nn.Linear(dim, 3 * heads * head_dim, bias=False)
        self.out = nn.Sequential(nn.Linear(heads * head_dim, dim), nn.Dropout(dropout))

    def forward(self, tokens: Float[Tensor, "n t d"]) -> Float[Tensor, "n t d"]:
        # [n, t, 3 · heads · head_dim] → three of [n, heads, t, head_dim]
        q, k, v = self.qkv(tokens).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        weights = (q @ k.transpose(-2, -1) * self.scale).softmax(-1)
        outputs: Tensor = self.out((weights @ v).transpose(1, 2).flatten(2))
        return outputs


@final
class _First(nn.Module):
    """The class token alone."""

    def forward(self, tokens: Float[Tensor, "n t d"]) -> Float[Tensor, "n d"]:
        return tokens[:, 0]
