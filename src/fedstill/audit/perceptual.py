"""LPIPS (Zhang et al., "The unreasonable effectiveness of deep features as a perceptual metric", CVPR 2018), where it
is at hand.

It is a *distance*: a LOWER one means MORE alike, so an attack that finds images of lower LPIPS has found more. It needs
the package ``lpips`` and AlexNet's weights on this disk; nothing is fetched from anywhere. AlexNet sees no image below
some 60 pixels: smaller ones are enlarged to 64, so figures of them compare among themselves only.
"""

from __future__ import annotations

import importlib
import warnings
from functools import cache
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

__all__ = ["CITATION", "absent", "perceptual"]

CITATION = "Zhang et al., The unreasonable effectiveness of deep features as a perceptual metric, CVPR 2018"

LEAST_SIDE = 64
_WEIGHTS = "alexnet-owt-*.pth"


def absent() -> str | None:
    """Why there is no LPIPS here; None where there is."""
    try:
        _package()
    except (ImportError, RuntimeError) as error:  # the latter is torchvision's, where it does not fit torch
        return f"the package 'lpips' cannot be imported: {str(error).splitlines()[0]}"
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    if not any(folder.glob(_WEIGHTS)):
        return f"AlexNet's weights ({_WEIGHTS}) are not in torch's folder of checkpoints, and an audit fetches nothing"
    return None


def perceptual(x: Float[Tensor, "n c h w"], y: Float[Tensor, "n c h w"]) -> Float[Tensor, " n"]:
    """LPIPS with AlexNet of each pair of images, pixels in 0 … 1; only where :func:`absent` says nothing."""
    with torch.inference_mode():
        distances: Tensor = _metric()(_seen(x), _seen(y))
    return distances.flatten().cpu()


def _seen(images: Tensor) -> Tensor:
    """Three channels in −1 … 1, large enough."""
    colour = images.expand(-1, 3, -1, -1) * 2 - 1
    scale = LEAST_SIDE / min(images.shape[2:])
    return colour if scale <= 1 else F.interpolate(colour, scale_factor=scale, mode="bilinear", align_corners=False)


def _package() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the package's own imports
        return importlib.import_module("lpips")


@cache
def _metric() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it builds AlexNet by an option that torchvision has renamed
        return _package().LPIPS(net="alex", verbose=False).eval()
