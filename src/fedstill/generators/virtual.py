"""Virtual images of an untrained generator: classes that nobody's data have, and everybody can make.

After Tang et al., *Virtual Homogeneity Learning* (ICML 2022), whose generator is a StyleGAN 2 that nobody has trained. Ours
is :class:`~fedstill.generators.style.StyleGenerator`: it has fewer channels and no noise inputs, and a class enters through
the mean of its latents alone.

    μ_k ~ N(0, s²) for every class,   z ~ N(μ_k, e²) for every image,   image = G(z)

Symbols: s ``class_spread``, e ``sample_spread``.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from jaxtyping import UInt8
from torch import Tensor
from torch.nn import functional as F

from fedstill.generators.style import SIZES, StyleGenerator, StyleOptions
from fedstill.seeds import Seed

__all__ = ["virtual_images"]

CHUNK = 100  # images through the generator at a time
DEVIATIONS = 2.0  # of the images' pixels that the pixel range takes in, on either side of their mean


@lru_cache(maxsize=1)
def virtual_images(
    *,
    channels: int,
    size: tuple[int, int],
    classes: int,
    each: int,
    class_spread: float,
    sample_spread: float,
    seed: Seed,
) -> UInt8[Tensor, "n c h w"]:
    """``each`` images of every class, class by class; the same for the same arguments.

    The generator makes its nearest size that is not smaller (or its largest), and images are brought to ``size`` from there.
    Each channel is spread over the pixel range by its mean and deviation over all images.

    The last set is kept, because a process works for many clients; whoever gets it must not change it.

    Raises:
        InputError: ``channels`` is neither 1 nor 3.
    """
    side = next((side for side in SIZES if side >= max(size)), SIZES[-1])
    with seed.at("generator").scope():
        generator = StyleGenerator(StyleOptions(channels=channels, size=side, classes=1))
    width = generator.options.z_width
    centres = class_spread * torch.randn(classes, width, generator=seed.at("centres").torch())
    noise = torch.randn(classes * each, width, generator=seed.at("images").torch())
    latents = centres.repeat_interleave(each, 0) + sample_spread * noise
    with torch.inference_mode():
        images = torch.cat([_render(generator, part, size) for part in torch.split(latents, CHUNK)])
        deviation, mean = torch.std_mean(images, (0, 2, 3), correction=0, keepdim=True)
        pixels = 0.5 + (images - mean) / (2 * DEVIATIONS * deviation)
        quantised = (255 * pixels.clamp(0, 1)).round().to(torch.uint8)
    return quantised.clone()  # outside inference mode, so that it can be trained on


def _render(generator: StyleGenerator, latents: Tensor, size: tuple[int, int]) -> Tensor:
    count = len(latents)
    styles = generator.mapping(latents, torch.zeros(count, dtype=torch.long))
    images = generator.render({"w": styles.unsqueeze(1).repeat(1, generator.depth, 1), "f": generator.input(count)}, 0)
    if images.shape[2:] == size:
        return images
    return F.interpolate(images, size=size, mode="bilinear", align_corners=False, antialias=True)
