"""The only classifier training loop, and predictions.

Every method trains through :func:`fit`: a variation passes one more loss term, it does not copy the loop. With ``privacy`` its
gradients are those of :mod:`fedstill.privacy`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Literal, Protocol

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn
from torch.nn import functional as F

from fedstill.data.augment import Augmentation, apply
from fedstill.data.shard import Shard
from fedstill.errors import Diverged
from fedstill.models.architecture import Network
from fedstill.privacy import Privacy, Sampling, only_finite, private_optimiser, without_images
from fedstill.seeds import Seed

__all__ = [
    "SCORING_BATCH",
    "Batch",
    "Extra",
    "Fitted",
    "Penalty",
    "Recipe",
    "classification_loss",
    "embed",
    "fit",
    "predict",
]

SCORING_BATCH = 500
"""Images of a forward pass that leaves no graph."""


@dataclass(frozen=True)
class Recipe:
    """How a classifier is trained: gradient descent over shuffled batches.

    Attributes:
        epochs: passes over the images.
        lr: step size.
        batch: images a step; the last batch of an epoch may be smaller. With privacy it is a mean.
        momentum: of SGD; Adam has its own two.
        decay: weight decay (an L2 term in the gradient).
        augmentation: drawn anew each step; the default trains on the images as they are.
        temperature: of the soft-label loss; hard labels do not use it.
        optimiser: ``sgd`` or ``adam``.
        drop: factor on the step size from the epoch on that begins the second half.
    """

    epochs: int
    lr: float
    batch: int
    momentum: float = 0.0
    decay: float = 0.0
    augmentation: Augmentation = Augmentation()
    temperature: float = 1.0
    optimiser: Literal["sgd", "adam"] = "sgd"
    drop: float = 1.0


@dataclass(frozen=True)
class Batch:
    """What a loss term may look at, in one training step.

    ``network`` is the one in training, for terms on other images than the batch's; ``params`` are its parameters; ``rows`` are
    the batch's in the shard, on the shard's device.
    """

    network: Network
    params: Mapping[str, Tensor]
    images: Float[Tensor, "n c h w"]
    labels: Shaped[Tensor, "n *classes"]
    features: Float[Tensor, "n d"]
    logits: Float[Tensor, "n classes"]
    rows: Int[Tensor, " n"]
    step: int


class Extra(Protocol):
    """One more loss term: MOON's is on ``features``."""

    def __call__(self, batch: Batch) -> Tensor: ...


class Penalty(Protocol):
    """One more loss term that looks at no image, but at the network's parameters alone: FedProx's is quadratic in them."""

    def __call__(self, params: Mapping[str, Tensor]) -> Tensor: ...


@dataclass(frozen=True)
class Fitted:
    """What training gives.

    Attributes:
        tensors: the network's ``state_dict`` after training, detached, on the training device.
        steps: optimiser steps taken.
        examples: images in the shard.
        losses: mean loss of each epoch; none with privacy, for each is one more look at the images.
    """

    tensors: Mapping[str, Tensor]
    steps: int
    examples: int
    losses: tuple[float, ...]


def classification_loss(
    logits: Float[Tensor, "n classes"], labels: Shaped[Tensor, "n *classes"], temperature: float = 1.0
) -> Float[Tensor, ""]:
    """Cross-entropy against int labels [n]; against soft labels [n, classes], Hinton's distillation loss.

    The latter is τ² KL(p_τ ‖ softmax(logits / τ)) up to a constant (Hinton et al. 2015, section 2), where the soft labels are
    the teacher's probabilities *at temperature τ already*; at τ = 1 it is the cross-entropy against them.
    """
    if labels.dim() == 1:
        return F.cross_entropy(logits, labels)
    return F.cross_entropy(logits / temperature, labels) * temperature**2


def fit(
    network: Network,
    shard: Shard,
    recipe: Recipe,
    *,
    seed: Seed,
    device: str = "cpu",
    extra: Extra | None = None,
    penalty: Penalty | None = None,
    privacy: Privacy | None = None,
    watch: Callable[[Mapping[str, Tensor]], None] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Fitted:
    """Train a copy of ``network`` on ``shard``; ``network`` itself is not touched.

    Args:
        network: start of the training.
        shard: uint8 or float images, hard or soft labels.
        recipe: optimiser, epochs, augmentation.
        seed: order of batches (``order``), augmentation (``augment``), dropout (``dropout``), privacy's noise (``noise``).
        device: where to compute.
        extra: one more loss term, added at every step; not together with ``privacy``, for it may couple images.
        penalty: one more loss term, on parameters alone.
        privacy: makes every step differentially private; ``recipe.decay``, ``recipe.momentum`` and ``penalty`` come after its
            noise.
        watch: is shown the network's ``state_dict`` before the first epoch and after each; the tensors go on changing.
        progress: ``progress(epochs done, epochs)``.

    Raises:
        Diverged: the loss, or with privacy a weight, is no longer finite.
        MissingExtra, InputError: as :func:`fedstill.privacy.private_optimiser`.
    """
    assert privacy is None or extra is None
    network = copy.deepcopy(network).to(device).train()
    shard = shard.to(device)
    if recipe.epochs > 1:
        shard = shard.whitened()
    params = dict(network.named_parameters())
    optimiser = _optimiser(recipe, params)
    if privacy is not None:
        if penalty is not None:
            optimiser.register_step_pre_hook(partial(_penalised, penalty, params))
        optimiser = private_optimiser(
            network,
            optimiser,
            privacy,
            sampling=Sampling(len(shard), recipe.batch),
            shape=shard.images.shape[1:],
            generator=seed.at("noise").torch(device),
        )
    orders, drawing = seed.at("order").torch(), seed.at("augment").torch()
    losses: list[float] = []
    step = 0
    if watch is not None:
        watch(network.state_dict())
    with seed.at("dropout").scope(device):
        for epoch in range(recipe.epochs):
            if recipe.drop != 1 and epoch == (recipe.epochs + 1) // 2:
                for group in optimiser.param_groups:
                    group["lr"] *= recipe.drop
            total = torch.zeros((), device=device)
            for rows in _batches(recipe, len(shard), orders, private=privacy is not None):
                rows = rows.to(device)
                optimiser.zero_grad(set_to_none=True)
                images, labels = shard.inputs(rows), shard.labels[rows]
                images = apply(images, recipe.augmentation.draw(len(rows), shard.size, drawing))
                if privacy is not None:
                    images.requires_grad_()  # or torch warns that the first layer's hooks see no gradient of its inputs
                if privacy is not None and not len(rows):
                    without_images(network)
                else:
                    features = network.features(images)
                    logits = network.classify(features)
                    loss = classification_loss(logits, labels, recipe.temperature)
                    if extra is not None:
                        loss = loss + extra(Batch(network, params, images, labels, features, logits, rows, step))
                    if penalty is not None and privacy is None:
                        loss = loss + penalty(params)
                    loss.backward()  # type: ignore[no-untyped-call]
                    if privacy is not None:
                        only_finite(network)
                    total += loss.detach() * len(rows)
                optimiser.step()
                step += 1
            if privacy is None:
                losses.append(total.item() / max(1, len(shard)))
            if watch is not None:
                watch(network.state_dict())
            if progress is not None:
                progress(epoch + 1, recipe.epochs)
    if losses and not torch.isfinite(torch.tensor(losses[-1])):
        raise Diverged(f"training diverged, its loss is {losses[-1]}: use a smaller lr than {recipe.lr}")
    tensors = {name: tensor.detach() for name, tensor in network.state_dict().items()}
    if privacy is not None and not all(bool(torch.isfinite(tensor).all()) for tensor in tensors.values()):
        raise Diverged(f"training diverged, its weights are not finite: use a smaller lr than {recipe.lr}")
    return Fitted(tensors, step, len(shard), tuple(losses))


def _penalised(penalty: Penalty, params: Mapping[str, Tensor], *_: object) -> None:
    """Before the optimiser's own step, when its gradients have their noise."""
    trained = [tensor for tensor in params.values() if tensor.requires_grad]
    with torch.enable_grad():
        gradients = torch.autograd.grad(penalty(params), trained, allow_unused=True)
    for tensor, gradient in zip(trained, gradients, strict=True):
        if gradient is not None and tensor.grad is not None:
            tensor.grad += gradient


def _batches(recipe: Recipe, images: int, generator: torch.Generator, *, private: bool) -> Iterator[Int[Tensor, " k"]]:
    """Rows of each step of an epoch: all in a random order, or Poisson's draws."""
    if private:
        return Sampling(images, recipe.batch).batches(generator)
    return iter(torch.split(torch.randperm(images, generator=generator), recipe.batch))


def _optimiser(recipe: Recipe, params: Mapping[str, Tensor]) -> torch.optim.Optimizer:
    if recipe.optimiser == "adam":
        return torch.optim.Adam(params.values(), lr=recipe.lr, weight_decay=recipe.decay)
    return torch.optim.SGD(params.values(), lr=recipe.lr, momentum=recipe.momentum, weight_decay=recipe.decay)


def predict(network: nn.Module, shard: Shard, *, device: str = "cpu") -> Float[Tensor, "n classes"]:
    """Logits for every row, on the CPU: clean images, evaluation mode, no graph; ``network``'s mode is put back."""
    return _over(shard, network, network, device) if len(shard) else torch.empty(0, len(shard.classes))


def embed(network: Network, shard: Shard, *, device: str = "cpu") -> Float[Tensor, "n d"]:
    """Features of every row, as :func:`predict` gives logits; ``shard`` holds at least one."""
    return _over(shard, network, network.features, device)


def _over(shard: Shard, network: nn.Module, function: Callable[[Tensor], Tensor], device: str) -> Tensor:
    if shard.normalisation.whitening is not None:
        shard = shard.to(device)  # a product of large matrices belongs where the network computes
    mode = network.training
    network.to(device).eval()
    with torch.inference_mode():
        parts = [
            function(shard.inputs(rows).to(device)).cpu()
            for rows in torch.split(torch.arange(len(shard)), SCORING_BATCH)
        ]
    network.train(mode)
    return torch.cat(parts)
