"""Differential privacy of training: DP-SGD (Abadi et al., "Deep Learning with Differential Privacy", CCS 2016, Algorithm 1), from
the pieces of Opacus.

Each of n images joins the batch B of a step by itself, with probability q = min(1, b / n), and

    g = ( Σ_{i ∈ B} g_i min(1, C / ‖g_i‖) + N(0, σ² C² I) ) / (q n)

takes the place of the gradient. An epoch is ⌈n / b⌉ such steps; one whose batch is empty is taken all the same, on noise alone.
Symbols: g_i the gradient of image i's own loss over all parameters, C ``clip``, σ ``noise``, b ``batch``. Momentum, Adam and
weight decay come after g and see no image, so they cost nothing.

What it guarantees: all weights that all these steps leave, taken together, are (ε, δ)-differentially private between two data
sets of which one image's gradients count or are replaced by zero. (An image exchanged for another is two such changes.) What is
computed from such weights alone is as private as they are.

ε is told by Rényi differential privacy: the sampled Gaussian mechanism's (Mironov, Talwar and Zhang 2019, section 3.3), summed
over the steps and converted by Balle et al. 2020, Theorem 21. It is an upper bound. Opacus' other accountant (PRV; Gopi et al.
2021) is tighter (1.84 against 2.11 after 1,000 steps of σ = 1 at q = 0.01 and δ = 1e-5). It is not taken because its answer may
take minutes (141 s for 27,000 steps at q = 0.057; this one took 0.02 s), and at q = 1 it divides by zero on the way.

What it does not cover:

* n itself, and everything else that is taken from the images: the classes that occur, a normalisation, losses, scores;
* other trainings on the same images: each spends again;
* whoever knows the seed: here the noise and the batches are drawn from the run's, so that a run that was killed goes on to the
  same bits, and who can repeat the noise can take it off. ε is a number for studies; a deployment must draw both from a secret of
  the site's own. Two runs must not share the noise, or their difference shows what is under it: so a private run draws from a
  place that hangs on all its settings (:class:`fedstill.experiment.Parts`);
* floating-point attacks on the sampler (Mironov 2012).

An image of whose gradient an entry is not finite adds nothing. So whether a training ends in numbers that are not finite hangs on
the noised steps alone, and is as private as they are.

Memory: a batch's gradients, one an image: 4 bytes × parameters × images.
"""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import cast

import torch
from jaxtyping import Int
from torch import Tensor, nn

from fedstill.errors import InputError, MissingExtra, RunError
from fedstill.models.architecture import Network
from fedstill.models.layers import InstanceNorm
from fedstill.seeds import Seed

__all__ = [
    "Guarantee",
    "Look",
    "Privacy",
    "Sampling",
    "check_installed",
    "check_network",
    "epsilon_of",
    "noise_for",
    "only_finite",
    "private_optimiser",
    "without_images",
]

ORDERS = (1.5, 2.5, *range(2, 65), 80, 96, 128, 160, 192, 256, 384, 512)
"""Of the Rényi divergences. Each gives an upper bound on ε, of which the smallest is taken. Opacus' own end at 63, which is loose
where ε is far below 1, and have a hundred fractional ones, which take seconds and only tell where ε is far above 10."""

TOLERANCE = 1e-3
"""Share of a wanted ε that may be left over."""

_EXTRA = "differential privacy"
_PROBE = Seed(("probe", "privacy"))


@dataclass(frozen=True)
class Privacy:
    """How gradients are made private.

    Attributes:
        noise: σ, the noise's standard deviation in units of ``clip``; 0 protects nothing.
        clip: C, the largest norm of an image's gradient.
    """

    noise: float
    clip: float

    def __post_init__(self) -> None:
        assert self.noise >= 0
        assert self.clip > 0


@dataclass(frozen=True)
class Sampling:
    """Poisson batches.

    Attributes:
        images: n, 1 at least.
        batch: b, images a step in the mean; all of them, where there are no more.
    """

    images: int
    batch: int

    @property
    def rate(self) -> float:
        """q."""
        return min(1.0, self.batch / self.images)

    @property
    def expected(self) -> int:
        """q n."""
        return min(self.batch, self.images)

    @property
    def steps(self) -> int:
        """Of an epoch."""
        return math.ceil(self.images / self.batch)

    def look(self, epochs: int) -> Look:
        """Of so many epochs."""
        return Look(self.rate, epochs * self.steps)

    def batches(self, generator: torch.Generator) -> Iterator[Int[Tensor, " k"]]:
        """Rows of each step of an epoch, in order; maybe none. ``generator`` is on the CPU."""
        for _ in range(self.steps):
            yield self.draw(generator)

    def draw(self, generator: torch.Generator) -> Int[Tensor, " k"]:
        """Rows of one step."""
        # float64: q to 53 bits, as the accountant has it
        return (torch.rand(self.images, generator=generator, dtype=torch.float64) < self.rate).nonzero().flatten()


@dataclass(frozen=True)
class Look:
    """How a piece of work looks at images: what the accountant needs to know of it.

    Attributes:
        rate: q, the probability with which a step takes an image.
        steps: how many.
    """

    rate: float
    steps: int


@dataclass(frozen=True)
class Guarantee:
    """(ε, δ), and the noise σ that gives it."""

    epsilon: float
    delta: float
    noise: float


# --- the accountant ----------------------------------------------------------------------------------------------------


@lru_cache(maxsize=256)
def epsilon_of(*, noise: float, rate: float, steps: int, delta: float) -> float:
    """ε at ``delta`` of ``steps`` steps with noise σ and sampling rate q; infinite without noise.

    Raises:
        MissingExtra: Opacus is not installed.
    """
    with _quiet():
        from opacus.accountants import RDPAccountant

        accountant = RDPAccountant()
        accountant.history = [(noise, rate, steps)]
        return float(accountant.get_epsilon(delta, alphas=list(ORDERS)))


@lru_cache(maxsize=256)
def noise_for(epsilon: float, *, rate: float, steps: int, delta: float) -> float:
    """The least σ that spends at most ``epsilon`` at ``delta``, to 0.1 % of ε.

    Raises:
        MissingExtra: Opacus is not installed.
        RunError: no σ up to a million is enough.
    """
    with _quiet():
        from opacus.accountants.utils import get_noise_multiplier

        try:
            noise = get_noise_multiplier(
                target_epsilon=epsilon,
                target_delta=delta,
                sample_rate=rate,
                steps=steps,
                accountant="rdp",
                epsilon_tolerance=TOLERANCE * epsilon,
                alphas=list(ORDERS),
            )
        except ValueError as error:
            raise RunError(
                f"no noise makes {steps} steps private to epsilon = {epsilon:g} at delta = {delta:g}"
            ) from error
    return float(noise)


# --- a step ------------------------------------------------------------------------------------------------------------


def private_optimiser(
    network: Network,
    optimiser: torch.optim.Optimizer,
    privacy: Privacy,
    *,
    sampling: Sampling,
    shape: Sequence[int],
    generator: torch.Generator,
) -> torch.optim.Optimizer:
    """``optimiser`` on g instead of the gradient; ``network`` is changed so that each backward pass leaves gradients by image.

    The loss is to be a mean over the batch.

    Args:
        network: in training, on its device.
        optimiser: of its parameters.
        privacy: σ and C.
        sampling: of the batches.
        shape: of an image: channels, height, width.
        generator: of the noise, on the network's device.

    Raises:
        MissingExtra: Opacus is not installed.
        InputError: as :func:`check_network`.
    """
    check_network(network, shape)
    _hook(network)
    with _quiet():
        from opacus.optimizers import DPOptimizer

    private = DPOptimizer(
        optimiser,
        noise_multiplier=privacy.noise,
        max_grad_norm=privacy.clip,
        expected_batch_size=sampling.expected,
        generator=generator,
    )
    return cast(torch.optim.Optimizer, private)


def only_finite(network: nn.Module) -> None:
    """Let images of whose gradient an entry is not finite add nothing.

    Clipping cannot make such a gradient short. Left in, it would make the step no number, and whether a training ends so would
    tell of a single image whatever the noise.
    """
    samples = [parameter.grad_sample for parameter in _trained(network).values()]  # type: ignore[attr-defined]
    finite = torch.stack([each.flatten(1).isfinite().all(1) for each in samples]).all(0)
    if not finite.all():
        for each in samples:
            each[~finite] = 0


def without_images(network: nn.Module) -> None:
    """What a backward pass would leave for an empty batch, which some layers cannot take."""
    for parameter in _trained(network).values():
        parameter.grad_sample = parameter.new_zeros((0, *parameter.shape))  # type: ignore[attr-defined]


def check_network(network: Network, shape: Sequence[int], *, key: str = "model") -> None:
    """Refuse a network of which no image has a gradient of its own. ``network`` is not changed.

    Args:
        network: in any mode.
        shape: of an image: channels, height, width.
        key: where the user wrote it.

    Raises:
        MissingExtra: Opacus is not installed.
        InputError: an image's logits depend on another's, training writes into buffers, or Opacus cannot tell the images'
            gradients apart in some layer.
    """
    # in float64, where rounding cannot be taken for a difference: the bias of a convolution before InstanceNorm has no gradient
    # but what large terms leave that cancel, and in float32 these leave more, the further the network is trained
    network = copy.deepcopy(network).cpu().double().train()
    images = torch.randn(2, *shape, generator=_PROBE.torch(), dtype=torch.float64).requires_grad_()
    for module in network.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.eval()  # so that an image alone is what it is beside another
    plain = copy.deepcopy(network)
    before = {name: buffer.clone() for name, buffer in network.named_buffers()}
    with _PROBE.scope(torch.device("cpu")):
        (reached,) = torch.autograd.grad(network.classify(network.features(images))[0].sum(), images)
        written = any(not torch.equal(before[name], buffer) for name, buffer in network.named_buffers())
        if written or bool(reached[1].any()):
            raise InputError(
                f"{key}: a layer of the network learns from a whole batch, as BatchNorm does, so that no image has a gradient "
                "of its own to be made private; use model.norm = 'instance', 'group' or 'none'"
            )
        try:
            _hook(network)
            network.classify(network.features(images)).sum(1).mean().backward()  # type: ignore[no-untyped-call]
        except (NotImplementedError, RuntimeError) as error:
            raise InputError(
                f"{key}: Opacus cannot tell the gradients of single images apart in this network "
                f"({str(error).splitlines()[0][:200]}); choose another for differential privacy"
            ) from error
    alone = [_alone(plain, images[index : index + 1].detach()) for index in range(len(images))]
    longest = max(float(each.norm()) for its in alone for each in its.values())
    for name, parameter in _trained(network).items():
        found = getattr(parameter, "grad_sample", None)
        wanted = torch.stack([its[name] for its in alone])
        if (
            found is None
            or found.shape != wanted.shape
            or (found - wanted).norm() > 1e-6 * wanted.norm() + 1e-9 * longest
        ):
            raise InputError(
                f"{key}: Opacus cannot tell the gradients of single images apart in '{name}'; choose another network for "
                "differential privacy"
            )


def _alone(network: Network, image: Tensor) -> dict[str, Tensor]:
    """The gradient of one image's own loss, as torch has it."""
    trained = _trained(network)
    loss = network.classify(network.features(image)).sum(1).mean()
    found = torch.autograd.grad(loss, list(trained.values()), allow_unused=True)
    return {
        name: torch.zeros_like(parameter) if gradient is None else gradient
        for (name, parameter), gradient in zip(trained.items(), found, strict=True)
    }


def check_installed() -> None:
    """That accounts can be made.

    Raises:
        MissingExtra: Opacus is not installed.
    """
    with _quiet():
        pass


def _hook(network: Network) -> None:
    """Let every backward pass leave ``grad_sample`` [n, …] at each parameter."""
    with _quiet():
        from opacus.grad_sample import GradSampleModule, register_grad_sampler
        from opacus.grad_sample.group_norm import compute_group_norm_grad_sample

    # Opacus asks for the very class; its way for all others takes ten times as long
    register_grad_sampler(InstanceNorm)(compute_group_norm_grad_sample)
    GradSampleModule(network, loss_reduction="mean")


def _trained(network: nn.Module) -> dict[str, nn.Parameter]:
    return {name: parameter for name, parameter in network.named_parameters() if parameter.requires_grad}


@contextmanager
def _quiet() -> Iterator[None]:
    """Within it Opacus is there, and does not warn that an order at an end of the list is best: the bound holds all the same.

    Raises:
        MissingExtra: Opacus is not installed.
    """
    try:
        import opacus  # noqa: F401
    except ImportError as error:
        raise MissingExtra("opacus", extra="dp", wanted_for=_EXTRA) from error
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Optimal order is the")
        yield
