"""Inverting an update: images from what a client sent.

Geiping et al., "Inverting Gradients: How easy is it to break privacy in federated learning?" (NeurIPS 2020), eq. 4 and
section 6:

    x* = argmin_x  1 − ⟨u(x), u⟩ / (‖u(x)‖ ‖u‖) + α TV(x),    x in the range of pixels

where u is what the client's message moves the network by, and u(x) what images x would move it by:

* one gradient: u(x) = −∇CE(x; θ). Right for a message of one local step; for one of several it is an approximation, the
  better the less they moved the network. Neither the step size nor the number of steps matters: only directions are
  compared.
* unrolled (their section 6, federated averaging): the local steps themselves, with the client's epochs, batch, step
  size, momentum and weight decay, differentiated through. Which images shared a batch, and in which order, nobody
  outside knows: the attack takes them as they lie, in every epoch. One batch, or one image, has no order, and the steps
  are then exact.

Adam takes steps along the *sign* of x's gradient; its step size falls to a tenth after 3/8, 5/8 and 7/8 of the steps.
Of several restarts that one is kept whose u(x) lies nearest to u, which the attacker can see; the true images choose
nothing.

Symbols: θ ``received``, u ``change``, α ``variation``, TV the mean absolute difference of neighbouring pixels, both
ways.

Here x are pixels in 0 … 1, and so are the units of step size and TV; the paper's are of normalised inputs. The numbers of
:class:`Inverting` are ours but for the steps: α and the step size are those that did best on MNIST's digits.

It costs a forward and two backward passes a step, times the number of local steps where these are unrolled, whose graphs
are all held at once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from fedstill.audit.seen import Seen
from fedstill.data.shard import Normalisation
from fedstill.errors import InputError
from fedstill.models.architecture import Network
from fedstill.rounds import Desk
from fedstill.seeds import Seed
from fedstill.train import Recipe

__all__ = ["ASSUMPTIONS", "CITATION", "Inverted", "Inverting", "invert"]

CITATION = "Geiping et al., Inverting Gradients: How easy is it to break privacy in federated learning?, NeurIPS 2020"
ASSUMPTIONS = (
    "The attacker knows the network, what the client received and what it sent, how images are normalised, the labels of "
    "the images (that of one image is read off the message) and, where the local steps are unrolled, how the client trains; it "
    "knows no image."
)

_LATER = (3 / 8, 5 / 8, 7 / 8)
_DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout)


@dataclass(frozen=True, kw_only=True)
class Inverting:
    """How hard the attack tries.

    Attributes:
        steps: of Adam, in each restart; the paper's number.
        restarts: from other noise.
        lr: of Adam, in pixels of range 1.
        variation: α.
        local: how the client trains, to unroll its steps; None: one gradient.
        pixels: between which values pixels are sought. Photographs lie in 0 … 1; distilled images may leave that, and FedLGD's
            clients say how far (``matching_pixel_min``, ``matching_pixel_max``).
    """

    steps: int = 4800
    restarts: int = 2
    lr: float = 0.1
    variation: float = 1e-3
    local: Recipe | None = None
    pixels: tuple[float, float] = (0.0, 1.0)

    def __post_init__(self) -> None:
        if min(self.steps, self.restarts) < 1 or self.lr <= 0 or self.variation < 0:
            raise InputError("inversion: steps and restarts are at least 1, lr is above 0 and variation not below")
        if not self.pixels[0] < self.pixels[1]:
            raise InputError(
                f"inversion: pixels are sought between two values, of which the first is the lower; these are "
                f"{self.pixels[0]} and {self.pixels[1]}"
            )
        local = self.local
        if local is not None and (local.optimiser != "sgd" or local.augmentation.text != "none"):
            raise InputError(
                "inversion: only steps of SGD on images as they are can be unrolled; leave local out, to take one gradient"
            )


class Inverted(NamedTuple):
    """What the attack gives.

    Attributes:
        images: of the chosen restart, in units of the pixel range, on the CPU.
        labels: with which they were sought.
        distances: 1 − cosine that each restart ended with; infinite where it went astray.
        chosen: the restart with the least.
    """

    images: Float[Tensor, "n c h w"]
    labels: Int[Tensor, " n"]
    distances: tuple[float, ...]
    chosen: int

    def to_json(self) -> dict[str, Any]:
        """Plain values, without the images."""
        return {
            "images": len(self.images),
            "labels": self.labels.tolist(),
            "distances": [each if math.isfinite(each) else None for each in self.distances],
            "chosen": self.chosen,
        }


def invert(
    what: Seen,
    labels: Int[Tensor, " n"],
    normalisation: Normalisation,
    *,
    attack: Inverting = Inverting(),
    desk: Desk,
) -> Inverted:
    """Seek n images of these labels that move the network as the message does; restarts side by side where ``desk.map`` can.

    Args:
        what: the client's message.
        labels: one for each image that is sought; of a single image :func:`fedstill.audit.attributes.label_of_one` reads
            it. They may be fewer than the client has images: each then stands for several.
        normalisation: the run's.
        attack: how hard it tries.
        desk: where; its seed decides where restarts begin.

    Raises:
        InputError: there is no label, or the message does not move the network at all.
    """
    if not len(labels):
        raise InputError("inversion: no image is sought; give at least one label")
    if not any(bool(tensor.any()) for tensor in what.change.values()):
        raise InputError("inversion: the message leaves the network as it was, so it tells of no image")
    seeds = [desk.seed.at("restart", number) for number in range(attack.restarts)]
    found: list[tuple[Tensor, float]] = []
    work = partial(_restart, what, labels, normalisation, attack, desk.device, desk.steps)
    for done in desk.map(work, list(enumerate(seeds))):
        found.append(done)
        desk.progress("invert", len(found), len(seeds))
    distances = tuple(distance for _, distance in found)
    chosen = min(range(len(found)), key=lambda number: distances[number])
    return Inverted(found[chosen][0], labels.cpu(), distances, chosen)


def _restart(
    what: Seen,
    labels: Tensor,
    normalisation: Normalisation,
    attack: Inverting,
    device: str,
    progress: Callable[[str, int, int], None],
    place: tuple[int, Seed],
) -> tuple[Tensor, float]:
    """Images and their distance."""
    number, seed = place
    network = _as_in_training(what.received.module()).to(device)
    target = {name: tensor.to(device) for name, tensor in what.change.items()}
    labels, normalisation = labels.to(device), normalisation.to(device)
    architecture = what.received.architecture
    shape = (len(labels), architecture.channels, *architecture.size)
    start = normalisation.undo(torch.randn(shape, generator=seed.torch()).to(device)).clamp(*attack.pixels)
    pixels = start.requires_grad_()
    optimiser = torch.optim.Adam([pixels], lr=attack.lr)
    falls = [max(1, int(attack.steps * part)) for part in _LATER]
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimiser, falls, gamma=0.1)
    for step in range(attack.steps):
        distance = _distance(network, target, normalisation.apply(pixels), labels, attack.local)
        loss = distance + attack.variation * _variation(pixels)
        (gradient,) = torch.autograd.grad(loss, [pixels])
        if not bool(torch.isfinite(gradient).all()):
            return pixels.detach().cpu(), math.inf
        pixels.grad = gradient.sign()
        optimiser.step()
        schedule.step()
        with torch.no_grad():
            pixels.clamp_(*attack.pixels)
        if step % 100 == 99 or step + 1 == attack.steps:
            progress(f"invert {number}", step + 1, attack.steps)
    last = _distance(network, target, normalisation.apply(pixels), labels, attack.local).item()
    return pixels.detach().cpu(), last if math.isfinite(last) else math.inf


def _distance(
    network: Network, target: Mapping[str, Tensor], inputs: Tensor, labels: Tensor, local: Recipe | None
) -> Float[Tensor, ""]:
    """1 − cos(u(x), u), over all parameters of the message as one vector."""
    mine = _gradient_step(network, inputs, labels) if local is None else _unrolled(network, inputs, labels, local)
    product = torch.stack([(mine[name] * wanted).sum() for name, wanted in target.items()]).sum()
    lengths = [_norm([mine[name] for name in target]), _norm(list(target.values()))]
    return 1 - product / (lengths[0] * lengths[1])


def _norm(tensors: Sequence[Tensor]) -> Tensor:
    return torch.stack([tensor.square().sum() for tensor in tensors]).sum().sqrt()


def _gradient_step(network: Network, inputs: Tensor, labels: Tensor) -> dict[str, Tensor]:
    theta = dict(network.named_parameters())
    return {name: -slope for name, slope in zip(theta, _slopes(network, theta, inputs, labels), strict=True)}


def _unrolled(network: Network, inputs: Tensor, labels: Tensor, local: Recipe) -> dict[str, Tensor]:
    """What the local steps of :func:`fedstill.train.fit` move the network by, with a graph."""
    first = dict(network.named_parameters())
    theta: dict[str, Tensor] = dict(first)
    speed = {name: torch.zeros_like(tensor) for name, tensor in first.items()}
    rows = torch.arange(len(labels), device=labels.device)
    for epoch in range(local.epochs):
        lr = local.lr * (local.drop if epoch >= (local.epochs + 1) // 2 else 1.0)
        for batch in torch.split(rows, local.batch):
            slopes = _slopes(network, theta, inputs[batch], labels[batch])
            for (name, tensor), slope in zip(list(theta.items()), slopes, strict=True):
                speed[name] = local.momentum * speed[name] + slope + local.decay * tensor
                theta[name] = tensor - lr * speed[name]
    return {name: tensor - first[name] for name, tensor in theta.items()}


def _slopes(network: Network, theta: Mapping[str, Tensor], inputs: Tensor, labels: Tensor) -> tuple[Tensor, ...]:
    loss = F.cross_entropy(functional_call(network, dict(theta), (inputs,)), labels)
    return torch.autograd.grad(loss, tuple(theta.values()), create_graph=True, materialize_grads=True)


def _variation(images: Float[Tensor, "n c h w"]) -> Float[Tensor, ""]:
    across, down = images.diff(dim=3).abs(), images.diff(dim=2).abs()
    return torch.stack([each.mean() for each in (across, down) if each.numel()] or [images.new_zeros(())]).sum()


def _as_in_training(network: Network) -> Network:
    """As clients train it, batch statistics of BatchNorm included; but which units dropout dropped nobody outside knows."""
    network.train()
    for module in network.modules():
        if isinstance(module, _DROPOUTS):
            module.eval()
    return network
