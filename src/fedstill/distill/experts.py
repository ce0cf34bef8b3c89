"""Experts: networks that learned from real images, their weights after every epoch, and a matcher towards them.

Trajectory matching (Cazenavette et al., "Dataset Distillation by Matching Training Trajectories", CVPR 2022, Algorithm 1). An
expert is a network from a random start, trained on the real images, whose weights θ*_0, θ*_1, … at the start and after each
epoch are kept. A step of distillation draws an expert and a start epoch t < T⁺ and pulls by

    L = ‖ θ̂_{t+N} − θ*_{t+M} ‖² / ‖ θ*_t − θ*_{t+M} ‖²

where θ̂ is a student that begins at θ*_t and takes N steps on the synthetic images: :mod:`fedstill.distill.matchers`.

Symbols: N ``steps``, M ``span``, T⁺ ``latest``.

A node's experts are many gigabytes at the published scale (30 experts of 50 epochs of a ConvNet-3: 1.9 GB). They lie in a folder,
one file an expert, read a snapshot at a time through memory maps; a file is whole or absent, so training that was interrupted
goes on with the expert it was at. Without a folder they are held in memory.

``differences`` takes half the room: each snapshot as what it differs from the start by, in float16. Plain float16 would round the
weights by more than a hundredth of what an epoch moves them (docs/results/snapshots.md).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch
from jaxtyping import Float, Shaped
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from fedstill.bundle import Group
from fedstill.data.augment import Augmentation
from fedstill.data.shard import Shard
from fedstill.distill.canvas import Pull
from fedstill.distill.matchers import TrajectoryMatcher
from fedstill.files import aside
from fedstill.models.architecture import Architecture
from fedstill.privacy import Privacy
from fedstill.seeds import Seed
from fedstill.train import Recipe, fit

__all__ = ["ExpertMatcher", "Experts", "Precision", "train_experts"]

Precision = Literal["float32", "differences"]

_START = "start:"
"""Before the name of a tensor that snapshots are differences from."""

_KEY = "fedstill.expert"


@dataclass(frozen=True)
class Experts:
    """Trajectories.

    Attributes:
        count: experts.
        epochs: of each; a trajectory has one snapshot more.
        folder: where their files lie; None: they are in ``held``.
        held: by expert, every tensor with its snapshots along the first axis.
    """

    count: int
    epochs: int
    folder: Path | None = None
    held: Mapping[int, Group] = field(default_factory=dict)

    def snapshot(self, expert: int, epoch: int) -> dict[str, Tensor]:
        """Weights and buffers after ``epoch`` epochs, 0 … ``epochs``, on the CPU."""
        if self.folder is None:
            held = self.held[expert]
            found = {name: tensor if name.startswith(_START) else tensor[epoch] for name, tensor in held.items()}
        else:
            with safe_open(_path(self.folder, expert), framework="pt") as file:
                # copies: what is mapped would change with the file
                found = {
                    name: file.get_tensor(name).clone()
                    if name.startswith(_START)
                    else file.get_slice(name)[epoch].clone()
                    for name in file.keys()  # noqa: SIM118 (no mapping)
                }
        return {
            name: found[_START + name] + tensor.float() if _START + name in found else tensor
            for name, tensor in found.items()
            if not name.startswith(_START)
        }


def train_experts(
    architecture: Architecture,
    shard: Shard,
    recipe: Recipe,
    *,
    count: int,
    precision: Precision,
    seed: Seed,
    privacy: Privacy | None = None,
    device: str = "cpu",
    folder: Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Experts:
    """Train ``count`` experts, less those that ``folder`` holds already.

    Args:
        architecture: of the networks.
        shard: real images.
        recipe: how each is trained.
        count: how many.
        precision: of what is kept; differences take half the room.
        seed: expert k begins and learns from ``seed.at(k)``.
        privacy: of every step of each.
        device: where to compute.
        folder: where they are kept; None: in memory.
        progress: ``progress(epochs done, epochs of all)``.

    Raises:
        RunError: a training diverged, or the disk refuses a file.
        MissingExtra, InputError: as :func:`fedstill.privacy.private_optimiser`.
    """
    held: dict[int, Group] = {}
    identity = _identity(architecture, shard, recipe, privacy, precision, seed)
    for k in range(count):
        if folder is None or not _there(_path(folder, k), identity):
            taken: list[dict[str, Tensor]] = []

            def watch(tensors: Mapping[str, Tensor], k: int = k, taken: list[dict[str, Tensor]] = taken) -> None:
                taken.append({name: _kept(tensor) for name, tensor in tensors.items()})
                if progress is not None and len(taken) > 1:
                    progress(k * recipe.epochs + len(taken) - 1, count * recipe.epochs)

            fit(
                architecture.build(seed.at(k, "model")),
                shard,
                recipe,
                seed=seed.at(k, "train"),
                device=device,
                privacy=privacy,
                watch=watch,
            )
            trajectory = _trajectory(taken, precision)
            if folder is None:
                held[k] = trajectory
            else:
                with aside(_path(folder, k)) as temporary:
                    save_file(trajectory, temporary, {_KEY: identity})
    return Experts(count, recipe.epochs, folder, held)


@dataclass(frozen=True)
class ExpertMatcher:
    """A :class:`fedstill.distill.canvas.Matcher` that follows another piece of an expert's way at each step.

    Attributes:
        experts: ready; M + T⁺ − 1 epochs of each at least.
        network: the student's architecture; its own parameters are not used.
        steps: N, the student's steps.
        span: M, epochs of the expert that they are to make.
        latest: T⁺; the student begins after fewer epochs than this.
        batch: images a student's step; None takes all.
        augmentation: drawn anew at each of the student's steps.
        gradient: as in :class:`fedstill.distill.matchers.TrajectoryMatcher`.
    """

    experts: Experts
    network: nn.Module
    steps: int
    span: int
    latest: int
    batch: int | None = None
    augmentation: Augmentation = Augmentation()
    gradient: Literal["exact", "truncated"] = "exact"

    def __post_init__(self) -> None:
        assert self.latest - 1 + self.span <= self.experts.epochs

    def pull(
        self, images: Float[Tensor, "n c h w"], labels: Shaped[Tensor, "n *classes"], rate: float, seed: Seed
    ) -> Pull:
        """L and its gradients, towards the piece that ``seed`` draws."""
        return self.piece(seed).pull(images, labels, rate, seed.at("student"))

    def loss(
        self, images: Float[Tensor, "n c h w"], labels: Shaped[Tensor, "n *classes"], rate: float, seed: Seed
    ) -> float:
        """L alone, on the draws that :meth:`pull` would make from ``seed``."""
        return self.piece(seed).loss(images, labels, rate, seed.at("student"))

    def piece(self, seed: Seed) -> TrajectoryMatcher:
        """Towards one expert's weights ``span`` epochs on, from a start before ``latest``."""
        draw = seed.at("expert").numpy()
        expert, epoch = int(draw.integers(self.experts.count)), int(draw.integers(self.latest))
        return TrajectoryMatcher(
            network=self.network,
            start=self.experts.snapshot(expert, epoch),
            target=self.experts.snapshot(expert, epoch + self.span),
            steps=self.steps,
            batch=self.batch,
            augmentation=self.augmentation,
            gradient=self.gradient,
        )


def _path(folder: Path, expert: int) -> Path:
    return folder / f"expert-{expert:03d}.safetensors"


def _kept(tensor: Tensor) -> Tensor:
    """A copy: the tensor goes on changing, and on a CPU ``.cpu()`` alone would be a view of it."""
    return tensor.detach().to("cpu", copy=True)


def _trajectory(taken: Sequence[Group], precision: Precision) -> dict[str, Tensor]:
    """Every tensor with its snapshots along the first axis."""
    stacked = {name: torch.stack([each[name] for each in taken]) for name in taken[0]}
    if precision == "float32":
        return stacked
    moved = {name: tensor for name, tensor in stacked.items() if tensor.is_floating_point()}
    return {
        **stacked,
        **{name: (tensor - tensor[0]).half() for name, tensor in moved.items()},
        **{_START + name: tensor[0].clone() for name, tensor in moved.items()},
    }


def _identity(
    architecture: Architecture, shard: Shard, recipe: Recipe, privacy: Privacy | None, precision: Precision, seed: Seed
) -> str:
    """All that decides an expert's weights, so that none of another experiment is taken for it."""
    images = hashlib.sha256()
    for tensor in (shard.images, shard.labels):
        images.update(tensor.cpu().contiguous().numpy().tobytes())
    resolved = architecture.resolved()
    told = [resolved.name, resolved.channels, list(resolved.size), resolved.classes, dict(resolved.options)]
    told += [repr(recipe), repr(privacy), repr(shard.normalisation), precision, list(seed.path), images.hexdigest()]
    if shard.normalisation.whitening is not None:
        told.append(shard.normalisation.whitening.digest)
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()


def _there(path: Path, identity: str) -> bool:
    if not path.is_file():
        return False
    try:
        with safe_open(path, framework="pt") as file:
            return bool((file.metadata() or {}).get(_KEY) == identity)
    except (SafetensorError, OSError):
        return False  # damaged by others than us: it is made again
