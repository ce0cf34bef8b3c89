"""Feature spaces in which clients' images are compared. They stay as they are while clients' models move.

``random`` is a network that nobody has trained, the same for every run: it favours no client and no method, and its
features keep more of an image's shapes than pixels do. Figures of two runs compare in it, where the images are as large.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from numpy import float32
from numpy.typing import NDArray

from fedstill.data.shard import Shard
from fedstill.errors import InputError
from fedstill.models.architecture import Architecture, Network
from fedstill.models.files import load_model
from fedstill.models.layers import halvings
from fedstill.seeds import Seed
from fedstill.train import embed

__all__ = ["Space", "model_space", "pixel_space", "random_space"]

DEPTH, WIDTH = 3, 128
_SEED = Seed(("evaluate", "random features"))  # of no experiment, so that runs share the network


@dataclass(frozen=True)
class Space:
    """A fixed map from images to vectors.

    Attributes:
        name: what a figure's caption calls it.
        features: rows of a shard → [n, d].
    """

    name: str
    features: Callable[[Shard], NDArray[float32]]


def pixel_space() -> Space:
    """The normalised pixels themselves."""
    return Space("pixels", lambda shard: shard.inputs().flatten(1).cpu().numpy())


def random_space(*, channels: int, size: tuple[int, int], device: str = "cpu") -> Space:
    """An untrained ConvNet of depth 3 and width 128, as FedLGD measures with; less deep where images are too small for it.

    Raises:
        InputError: images have a side of one pixel.
    """
    depth = min(DEPTH, halvings(size))
    architecture = Architecture(
        name="convnet",
        channels=channels,
        size=size,
        classes=2,  # of a layer that features do not reach
        options={"depth": depth, "width": WIDTH},
        key="features",
    )
    network = architecture.build(_SEED)
    return Space(f"untrained convnet, depth {depth}, width {WIDTH}", _through(network, device))


def model_space(path: Path, like: Shard, *, name: str, device: str = "cpu", allow_import: bool = False) -> Space:
    """The features of a trained model, of images normalised as it learnt them.

    Args:
        path: of a model file.
        like: images that are to be embedded.
        name: of the space; the round is added where the file says it.
        device: where to compute.
        allow_import: as :func:`fedstill.models.files.load_model`.

    Raises:
        InputError: the file is no model, or takes other images.
    """
    classifier = load_model(path, device, allow_import=allow_import)
    takes = (classifier.architecture.channels, *classifier.architecture.size)
    if takes != (have := (like.channels, *like.size)):
        raise InputError(f"{path} takes images of {_shape(takes)}, and those of the run are {_shape(have)}")
    through = _through(classifier.network, device)
    number = classifier.notes.get("round")
    name = f"{name} of round {number:.0f}" if isinstance(number, float) else name
    return Space(name, lambda shard: through(replace(shard, normalisation=classifier.normalisation)))


def _through(network: Network, device: str) -> Callable[[Shard], NDArray[float32]]:
    return lambda shard: embed(network, shard, device=device).numpy()


def _shape(sides: tuple[int, ...]) -> str:
    channels, height, width = sides
    return f"{channels} x {height} x {width} pixels"
