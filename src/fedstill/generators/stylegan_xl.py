"""StyleGAN-XL: the published prior of large natural images.

After Sauer et al., *StyleGAN-XL: Scaling StyleGAN to Large Diverse Datasets* (2022), on the alias-free layers of Karras et
al. (2021). The architecture is rebuilt from :class:`~fedstill.generators.xl_options.XLOptions`.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from fedstill.generators.aliasfree import kept
from fedstill.generators.pixels import Latent
from fedstill.generators.precision import HALVES, Passage, Precision
from fedstill.generators.xl_layers import XLMapping, XLSynthesis, XLWaves
from fedstill.generators.xl_options import XLOptions
from fedstill.seeds import Seed

__all__ = ["StyleGANXL"]

_GRAPH = 2 * 2**30  # bytes that a chunk's graph may take
_INPUTS = 2  # times a layer's inputs are kept in the graph: as they come and scaled by the style


class StyleGANXL(nn.Module):
    """A StyleGAN-XL generator with its latent spaces F0 … F_depth.

    F0 holds the input features and the style vectors of all ``depth`` layers, Fk the features after k of them and the style
    vectors of the others, F_depth the image alone. k counts layers; it is not the number in a layer's name.

    Attributes:
        options: the architecture.
        truncation: ψ of ``draw``: w moves to ψ·w + (1 − ψ)·(its class's mean w); 1 leaves it.
        centres: mean w of every class, [classes, w_width]; [1, w_width] without classes. See :meth:`track_centres`.
        classes: None without classes: any labels will do.
        precision: of the features that layers pass on. With 16 bits latents, styles, what normalises, and the last layer stay
            in float32, and gradients of any size are right; it is for GPUs, and slow on most processors.
        chunk: images whose graph, from F0 on, takes about 2 GB; 1 at least.
    """

    centres: Tensor

    def __init__(self, options: XLOptions, *, truncation: float = 1.0) -> None:
        super().__init__()
        self.options = options
        self.truncation = truncation
        self.precision: Precision = "float32"
        self.channels = options.channels
        self.size = (options.size, options.size)
        self.classes: int | None = options.classes or None
        self.depth = len(options.layers)
        self.chunk = max(1, _GRAPH // _graph_bytes(options))
        self.mapping = XLMapping(options)
        self.input = XLWaves(options.input, options.w_width)
        self.layers = nn.ModuleList(XLSynthesis(plan, options.w_width) for plan in options.layers)
        self.register_buffer("centres", torch.zeros(options.classes or 1, options.w_width))

    def draw(self, labels: Int[Tensor, " n"], seed: Seed) -> Latent:
        """A latent at F0: z ~ N(0, I), drawn on the CPU, through the mapping network and the truncation."""
        labels = labels.to(self.centres.device)
        z = torch.randn(len(labels), self.options.z_width, generator=seed.torch()).to(self.centres)
        w = self.mapping(z, labels)
        if self.truncation != 1:
            w = torch.lerp(self.centres[labels if self.classes else torch.zeros_like(labels)], w, self.truncation)
        features = torch.cat([self.input(part) for part in torch.split(w, self.chunk)])
        return {"w": w.unsqueeze(1).repeat(1, self.depth, 1), "f": features}

    def lift(self, latent: Latent, space: int) -> Latent:
        """F0 → F_space."""
        return self._run(latent, 0, space)

    def render(self, latent: Latent, space: int) -> Float[Tensor, "n c h w"]:
        """F_space → images, about −1 … 1, not clamped. Differentiable."""
        return self._run(latent, space, self.depth)["f"]

    def _run(self, latent: Latent, first: int, last: int) -> Latent:
        assert 0 <= first <= last <= self.depth
        if first == last:
            return latent
        features, styles = latent["f"], latent["w"]
        half = HALVES.get(self.precision)
        if half is None:
            features = self._layers(features, styles, first, last)
        else:
            passage = Passage()
            made = self._layers(passage.enter(features).to(half), passage.enter(styles), first, last)
            features = passage.leave(made.to(features))
        if last < self.depth:
            return {"w": latent["w"][:, last - first :], "f": features}
        return {"f": features * self.options.output_scale}

    def _layers(self, features: Tensor, styles: Tensor, first: int, last: int) -> Tensor:
        for number in range(first, last):
            features = self.layers[number](features, styles[:, number - first])
        return features

    @torch.no_grad()
    def track_centres(self, seed: Seed, *, samples: int = 2000) -> None:
        """Set ``centres`` to the mean w of ``samples`` draws of z, the same for every class."""
        z = torch.randn(samples, self.options.z_width, generator=seed.torch()).to(self.centres)
        for label in range(len(self.centres)):
            self.centres[label] = self.mapping(z, z.new_full((samples,), label, dtype=torch.long)).mean(0)

    @torch.no_grad()
    def track_magnitudes(self, seed: Seed, *, samples: int = 8) -> None:
        """Set every layer's ``magnitude`` to its inputs' mean square over ``samples`` images, as training would have."""
        latent = self.draw(torch.arange(samples) % (self.classes or 1), seed)
        features = latent["f"]
        for number, layer in enumerate(self.layers):
            assert isinstance(layer, XLSynthesis)
            layer.magnitude.fill_(features.square().mean())
            features = layer(features, latent["w"][:, number])


def _graph_bytes(options: XLOptions) -> int:
    """What an image's graph takes in float32: a layer keeps its inputs, what its convolution made, and what filters keep."""
    numbers = sum(
        _INPUTS * plan.in_channels * plan.in_size**2
        + plan.out_channels * plan.resampling.inputs**2
        + kept(plan.resampling, plan.out_channels)
        for plan in options.layers
    )
    return 4 * numbers
