"""A client's own virtual images: where they begin, and a canvas to move them on.

FedLGD (Huang et al., TMLR) begins with noise that has the colours of its class: for a class k that the client holds,

    s ~ N(μ_k, σ_k²) for every pixel and image,      μ_k, σ_k by channel, over all pixels of the client's images of class k

It takes one image. A class that the client lacks has no such numbers: it gets no images, or (``missing = "overall"``) images from
those of all its images together, which distribution matching then leaves as they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from fedstill.data.shard import Shard, hard_labels
from fedstill.distill.canvas import Canvas, Strokes
from fedstill.generators.pixels import Pixels
from fedstill.seeds import Seed

__all__ = ["Missing", "Start", "begin", "canvas_of", "some_rows"]

Start = Literal["statistics", "noise", "real", "mean"]
Missing = Literal["none", "overall"]


def begin(real: Shard, *, ipc: int, start: Start, missing: Missing, seed: Seed) -> Shard:
    """``ipc`` images of every class, class by class, float32 in units of the pixel range, not clamped; on the CPU.

    Args:
        real: at least one image; labels may be soft and count for their largest entry.
        ipc: images a class, however many real ones there are.
        start: ``statistics`` of the class; ``noise`` N(0, 1) as networks see images; ``real`` images, each in turn where there
            are fewer than ``ipc``; ``mean`` of as many real ones as there are for each, no two from the same where there are
            as many as ``ipc``.
        missing: what becomes of a class without real images.
        seed: class k is drawn from ``seed.at(k)``, so that it does not depend on the others.
    """
    hard = hard_labels(real.labels)
    held = torch.bincount(hard, minlength=len(real.classes)).tolist()
    classes = [k for k, count in enumerate(held) if count or missing == "overall"]
    parts = []
    for k in classes:
        of_class = (hard == k).nonzero().flatten() if held[k] else torch.arange(len(real), device=hard.device)
        way = start if held[k] else "statistics"
        if way == "real":
            parts.append(real.inputs(some_rows(real, [k], ipc, seed.at(k))).cpu())
            continue
        if way == "mean":
            order = of_class[torch.randperm(len(of_class), generator=seed.at(k).torch()).to(of_class.device)]
            rows = [order[j % len(order) :: ipc] for j in range(ipc)]
            parts.append(torch.stack([real.inputs(some).mean(0) for some in rows]).cpu())
            continue
        draw = torch.randn(ipc, real.channels, *real.size, generator=seed.at(k).torch())
        if way == "statistics":
            # in float64: a sum over all pixels of a class
            deviation, mean = torch.std_mean(
                real.inputs(of_class).cpu().double(), (0, 2, 3), correction=0, keepdim=True
            )
            draw = (mean + deviation * draw.double()).float()
        parts.append(draw)
    labels = torch.tensor(classes).repeat_interleave(ipc)
    return Shard(real.normalisation.undo(torch.cat(parts)), labels, real.classes, real.normalisation)


def canvas_of(images: Shard, *, lr: float, momentum: float, device: str) -> Canvas:
    """A canvas of pixels that holds ``images``."""
    pixels = Pixels(images.channels, images.size, images.normalisation.to(device))
    return Canvas(
        pixels,
        pixels.depth,
        {"f": images.inputs().to(device)},
        images.labels.to(device),
        normalisation=images.normalisation,
        strokes=Strokes(features=lr, styles=0.0, rate=0.0, momentum=momentum),
        rate=0.0,
    )


def some_rows(real: Shard, classes: Sequence[int], each: int, seed: Seed) -> Tensor:
    """``each`` rows of every one of ``classes``, without repetition where there are as many, else each in turn."""
    hard = hard_labels(real.labels)
    generator = seed.torch()
    chosen = []
    for label in classes:
        rows = (hard == label).nonzero().flatten().cpu()
        order = torch.randperm(len(rows), generator=generator)
        chosen.append(rows[order[torch.arange(each) % len(rows)]])
    return torch.cat(chosen)
