"""Adversarial training of a prior: public images in, a style generator's file out.

Non-saturating logistic loss (Goodfellow et al. 2014), lazy R1 penalty (Mescheder et al. 2018; Karras et al. 2020), and
a running average of the generator, which is what is kept. Every random number of a step comes from the seed and the
step's number, so that a training resumed from its checkpoint continues to the same bits.
"""

from __future__ import annotations

import copy
import hashlib
import json
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, UInt8
from pydantic import ConfigDict, Field
from torch import Tensor, nn

from fedstill.bundle import Bundle
from fedstill.data.grid import grid
from fedstill.data.shard import Shard
from fedstill.errors import InputError, RunError
from fedstill.files import aside
from fedstill.generators.discriminator import Discriminator
from fedstill.generators.files import save_prior
from fedstill.generators.pixels import Pixels, at_a_time
from fedstill.generators.style import StyleGenerator, StyleOptions
from fedstill.generators.stylegan_xl import StyleGANXL
from fedstill.seeds import Seed

__all__ = ["CHECKPOINT", "GRID", "PRIOR", "PriorSettings", "Progress", "sample", "train_prior"]

CHECKPOINT = "checkpoint.safetensors"
GRID = "samples.png"
PRIOR = "prior.safetensors"
_COLUMNS = 10


@dataclass(frozen=True, kw_only=True)
class PriorSettings:
    """Settings of a prior's training; the defaults are those of the shipped prior ``digits``."""

    __pydantic_config__ = ConfigDict(extra="forbid", allow_inf_nan=False)

    kimg: Annotated[float, Field(gt=0, description="thousands of images to show, counting repeats")] = 640
    batch: Annotated[int, Field(ge=1, description="images a step, real and made ones each")] = 32
    width: Annotated[int, Field(ge=4, le=1024, description="generator: feature channels at full size")] = 32
    z_width: Annotated[int, Field(ge=1, le=1024, description="generator: length of the noise vector z")] = 64
    w_width: Annotated[int, Field(ge=1, le=1024, description="generator: length of a style vector w")] = 96
    input: Annotated[
        Literal["constant", "fourier"], Field(description="generator: input features, learned numbers or plane waves")
    ] = "constant"
    critic_width: Annotated[int, Field(ge=4, le=1024, description="critic: feature channels at full size")] = 32
    pack: Annotated[
        int, Field(ge=1, description="images of one class that the critic judges together, against a loss of variety")
    ] = 4
    rate: Annotated[float, Field(gt=0, description="generator: learning rate of Adam(0, 0.99)")] = 0.002
    critic_rate: Annotated[float, Field(gt=0, description="critic: learning rate of Adam(0, 0.99)")] = 0.002
    cooldown: Annotated[
        float, Field(gt=0, le=1, description="last part of the training, in which both rates fall to 0 in a line")
    ] = 0.3
    r1: Annotated[float, Field(ge=0, description="weight γ of the R1 penalty γ/2·|∇D|² on real images")] = 0.5
    r1_every: Annotated[int, Field(ge=1, description="steps from one R1 penalty to the next")] = 16
    average_kimg: Annotated[
        float, Field(gt=0, description="half-life of the generator's running average, in thousands of images")
    ] = 10
    shift: Annotated[
        int, Field(ge=0, le=8, description="shift what the critic sees by up to so many pixels: for small data sets")
    ] = 0
    every: Annotated[int, Field(ge=1, description="steps between reports, checkpoints and sample grids")] = 500
    half: Annotated[bool, Field(description="store the prior in float16")] = True

    def __post_init__(self) -> None:
        if self.batch % self.pack:
            raise InputError(f"batch = {self.batch} must be a multiple of pack = {self.pack}")

    @property
    def steps(self) -> int:
        """Steps in all."""
        return max(1, round(self.kimg * 1000 / self.batch))


@dataclass(frozen=True)
class Progress:
    """A report; losses are means over the steps since the last one.

    Attributes:
        step, steps: steps done, and in all.
        kimg: thousands of images shown.
        generator_loss: mean softplus(−D(made)); ln 2 where the critic cannot tell.
        critic_loss: mean softplus(D(made)) + softplus(−D(real)); 2 ln 2 where it cannot tell.
        penalty: mean |∇D|² on real packs, at the steps that took it; None if none did.
        seconds, seconds_left: spent by this process; an estimate of what is left.
    """

    step: int
    steps: int
    kimg: float
    generator_loss: float
    critic_loss: float
    penalty: float | None
    seconds: float
    seconds_left: float


def train_prior(
    shard: Shard,
    *,
    settings: PriorSettings,
    seed: Seed,
    out: Path,
    resume: bool = False,
    device: str | torch.device = "cpu",
    source: str = "",
) -> Iterator[Progress]:
    """Train a style generator on ``shard`` and leave it at ``out / PRIOR`` before the last report is yielded.

    The folder also gets a checkpoint and a sample grid (a row a class) with every report.

    Args:
        shard: public images, 16 … 32 pixels a side, grey or colour, hard labels.
        settings: size, length and rates.
        seed: the same seed, settings and images give the same bits on a CPU.
        out: folder for prior, checkpoint and grid.
        resume: continue the training that ``out`` holds.
        device: where to compute.
        source: what the images are, in a sentence, for the file's card.

    Raises:
        InputError: the images do not suit, or ``out`` holds a training and ``resume`` is false, or holds none of this
            kind and it is true.
        RunError: the training diverged, or a file cannot be written.
    """
    options = _options(shard, settings)
    checkpoint = out / CHECKPOINT
    if checkpoint.exists() != resume:
        raise InputError(
            f"{out} holds no training to resume: leave out resume, or give the folder of one"
            if resume
            else f"{out} already holds a training: resume it, or give another folder"
        )
    about = _about(shard, settings, seed, source)
    trainer = _Trainer(options, settings, seed, device)
    start = trainer.load(Bundle.open(checkpoint), checkpoint, about) if resume else 0
    return _train(trainer, shard, start, out, about)


def sample(
    generator: StyleGenerator | StyleGANXL | Pixels, labels: Int[Tensor, " n"], seed: Seed, *, chunk: int = 256
) -> UInt8[Tensor, "n c h w"]:
    """Images of these classes in 0 … 255, on the CPU; at most ``chunk`` at a time, each from its own place of ``seed``."""
    parts = []
    with torch.inference_mode():
        for number, part in enumerate(torch.split(labels, at_a_time(generator, chunk))):
            images = generator.render(generator.draw(part, seed.at(number)), 0)
            parts.append(((images + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).cpu())
    return torch.cat(parts)


def _train(trainer: _Trainer, shard: Shard, start: int, out: Path, about: dict[str, Any]) -> Iterator[Progress]:
    settings = trainer.settings
    pool = _Pool.of(shard, trainer.device)
    began = time.perf_counter()
    for first in range(start, settings.steps, settings.every):
        last = min(first + settings.every, settings.steps)
        losses = torch.stack([trainer.step(pool, step) for step in range(first, last)]).cpu().double()
        generator_loss, critic_loss, penalty = losses.nanmean(0).tolist()
        if not torch.isfinite(losses[:, :2]).all() or math.isinf(penalty):
            kept = f"{out / CHECKPOINT} keeps the state of step {first}" if first else "nothing was kept"
            raise RunError(
                f"the training diverged between steps {first} and {last}: lower rate and critic_rate or raise r1, and "
                f"start in another folder; {kept}"
            )
        if last == settings.steps:  # before the checkpoint, or an interruption between them would leave no prior
            trainer.average.track_centres(trainer.seed.at("centres"))
            save_prior(out / PRIOR, trainer.average, about, half=settings.half)
        trainer.save(out / CHECKPOINT, last, about)
        _write_grid(trainer.average, shard.classes, out / GRID, trainer.seed.at("grid"))
        seconds = time.perf_counter() - began
        yield Progress(
            step=last,
            steps=settings.steps,
            kimg=last * settings.batch / 1000,
            generator_loss=generator_loss,
            critic_loss=critic_loss,
            penalty=None if math.isnan(penalty) else penalty,
            seconds=seconds,
            seconds_left=seconds / (last - start) * (settings.steps - last),
        )


@dataclass(frozen=True)
class _Pool:
    """Images on the device; beside them, on the CPU, ``order``: the rows by class, ``counts[c]`` from ``starts[c]``."""

    images: Tensor
    labels: Tensor
    order: Tensor
    starts: Tensor
    counts: Tensor

    @classmethod
    def of(cls, shard: Shard, device: str | torch.device) -> _Pool:
        labels = shard.labels.cpu()
        counts = torch.bincount(labels, minlength=len(shard.classes))
        order = torch.argsort(labels, stable=True)
        return cls(shard.images.to(device), labels, order, counts.cumsum(0) - counts, counts)

    def draw(self, packs: int, pack: int, seed: Seed) -> tuple[Float[Tensor, "n_pack c h w"], Int[Tensor, " n"]]:
        """Packs of one class each, the classes as frequent as they are; images in −1 … 1 and a label a pack."""
        generator, device = seed.torch(), self.images.device
        labels = self.labels[torch.randint(len(self.labels), (packs,), generator=generator)]
        places = torch.rand(packs, pack, generator=generator, dtype=torch.float64)
        rows = self.order[self.starts[labels, None] + (places * self.counts[labels, None]).long()]
        return _signed(self.images[rows.flatten().to(device)]), labels.to(device)


class _Trainer:
    """Generator, its running average, critic and both optimisers: what a checkpoint holds."""

    def __init__(self, options: StyleOptions, settings: PriorSettings, seed: Seed, device: str | torch.device) -> None:
        self.settings = settings
        self.seed = seed
        self.device = device
        with seed.at("weights").scope():
            self.generator = StyleGenerator(options).to(device)
            self.critic = Discriminator(
                options.channels, options.size, options.classes, width=settings.critic_width, pack=settings.pack
            ).to(device)
        self.average = copy.deepcopy(self.generator).requires_grad_(False)
        self.networks = {"generator": self.generator, "average": self.average, "critic": self.critic}
        self.optimisers = {
            "generator": torch.optim.Adam(self.generator.parameters(), lr=settings.rate, betas=(0.0, 0.99), eps=1e-8),
            "critic": torch.optim.Adam(self.critic.parameters(), lr=settings.critic_rate, betas=(0.0, 0.99), eps=1e-8),
        }

    def step(self, pool: _Pool, number: int) -> Float[Tensor, "3"]:
        """Update everything once: generator loss, critic loss, and R1's |∇D|² or NaN where it was not due."""
        settings, seed = self.settings, self.seed.at("step", number)
        images, labels = pool.draw(settings.batch // settings.pack, settings.pack, seed.at("rows"))

        made = self.generator.render(self.generator.draw(labels.repeat_interleave(settings.pack), seed.at("z")), 0)
        leaf = made.detach().requires_grad_()
        seen = _shifted(torch.cat([images, leaf]), settings.shift, seed.at("shift"))
        real_logits, made_logits = self.critic(seen, labels.repeat(2)).chunk(2)
        critic_loss = F.softplus(-real_logits).mean() + F.softplus(made_logits).mean()
        pull, *critic_gradients = torch.autograd.grad(critic_loss, [leaf, *self.critic.parameters()])

        # One pass of the critic serves both players. A pack's gradient is its logit's gradient times a number:
        # σ(l) in the critic's loss, −σ(−l) in the generator's. Their ratio is −exp(−l).
        ratio = -torch.exp(-made_logits.detach().clamp(min=-60)).repeat_interleave(settings.pack)
        pull = pull * ratio[:, None, None, None]
        parameters = list(self.generator.parameters())
        generator_gradients = torch.autograd.grad(made, parameters, pull)

        penalty = critic_loss.new_tensor(math.nan)
        if settings.r1 > 0 and number % settings.r1_every == 0:
            penalty, extra = self._penalty(seen[: settings.batch].detach(), labels)
            critic_gradients = [a + b for a, b in zip(critic_gradients, extra, strict=True)]

        self._update("generator", parameters, generator_gradients, settings.rate, number)
        self._update("critic", list(self.critic.parameters()), critic_gradients, settings.critic_rate, number)
        self._update_average(number)
        return torch.stack([F.softplus(-made_logits.detach()).mean(), critic_loss.detach(), penalty])

    def _penalty(self, images: Tensor, labels: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Mean |∇D|² on these packs of real images, and the gradients of γ/2 times it for all steps up to the next."""
        images = images.requires_grad_()
        (slope,) = torch.autograd.grad(self.critic(images, labels).sum(), images, create_graph=True)
        steepness = slope.square().sum() / len(labels)
        weight = self.settings.r1 / 2 * self.settings.r1_every
        gradients = torch.autograd.grad(weight * steepness, list(self.critic.parameters()), allow_unused=True)
        return steepness.detach(), [
            torch.zeros_like(parameter) if gradient is None else gradient  # biases after the last leaky ReLU have none
            for parameter, gradient in zip(self.critic.parameters(), gradients, strict=True)
        ]

    def _update(
        self, name: str, parameters: list[nn.Parameter], gradients: Sequence[Tensor], rate: float, number: int
    ) -> None:
        optimiser, left = self.optimisers[name], (self.settings.steps - number) / self.settings.steps
        optimiser.param_groups[0]["lr"] = rate * min(1.0, left / self.settings.cooldown)
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
        optimiser.step()
        optimiser.zero_grad()

    def _update_average(self, number: int) -> None:
        # early on the half-life is a twentieth of the training so far, or the average would remember the start
        half_life = min(self.settings.average_kimg * 1000, (number + 1) * self.settings.batch / 20)
        share = 1 - 0.5 ** (self.settings.batch / half_life)
        with torch.no_grad():
            for mean, parameter in zip(self.average.parameters(), self.generator.parameters(), strict=True):
                mean.lerp_(parameter, share)

    def save(self, path: Path, step: int, about: dict[str, Any]) -> None:
        """Write a checkpoint, whole or not at all."""
        Bundle(
            {f"model:{name}": network.state_dict() for name, network in self.networks.items()}
            | {f"optimiser:{name}": _flat(optimiser) for name, optimiser in self.optimisers.items()},
            {"step": step, "identity": _identity(about)},
        ).save(path)

    def load(self, bundle: Bundle, path: Path, about: dict[str, Any]) -> int:
        """Take over a checkpoint: the steps it had done."""
        if bundle.numbers.get("identity") != _identity(about):
            raise InputError(
                f"{path} is of a training with other images, settings or seed: give those again, or another folder"
            )
        for name, network in self.networks.items():
            network.load_state_dict(bundle.groups[f"model:{name}"])
        for name, optimiser in self.optimisers.items():
            _restore(optimiser, bundle.groups[f"optimiser:{name}"])
        return int(bundle.numbers["step"])


def _flat(optimiser: torch.optim.Optimizer) -> dict[str, Tensor]:
    state = optimiser.state_dict()["state"]
    return {f"{index}.{name}": value for index, entry in state.items() for name, value in entry.items()}


def _restore(optimiser: torch.optim.Optimizer, flat: Any) -> None:
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in flat.items():
        index, _, name = key.partition(".")
        state.setdefault(int(index), {})[name] = value
    optimiser.load_state_dict({**optimiser.state_dict(), "state": state})


def _options(shard: Shard, settings: PriorSettings) -> StyleOptions:
    height, width = shard.size
    if height != width:
        raise InputError(f"a prior needs square images and these are {height} x {width}: set data.size")
    if shard.labels.is_floating_point():
        raise InputError("a prior is trained on hard labels and these are soft: give images with one class each")
    if len(shard) == 0:
        raise InputError("a prior cannot be trained on no images: check data.source and data.path")
    return StyleOptions(
        channels=shard.channels,
        size=height,
        classes=len(shard.classes),
        width=settings.width,
        z_width=settings.z_width,
        w_width=settings.w_width,
        input=settings.input,
    )


def _about(shard: Shard, settings: PriorSettings, seed: Seed, source: str) -> dict[str, Any]:
    """The card of the prior; also what a checkpoint is recognised by."""
    digest = hashlib.sha256()
    for tensor in (shard.images, shard.labels):
        digest.update(tensor.cpu().contiguous().numpy().tobytes())
    return {
        "classes": list(shard.classes),
        "trained_on": source,
        "images": len(shard),
        "data_sha256": digest.hexdigest(),
        "recipe": asdict(settings),
        "steps": settings.steps,
        "seed": list(seed.path),
    }


def _identity(about: dict[str, Any]) -> float:
    # 52 bits, which a float keeps exactly: a Bundle's numbers are floats
    return float(int.from_bytes(hashlib.sha256(json.dumps(about, sort_keys=True).encode()).digest()[:8], "big") >> 12)


def _signed(images: Tensor) -> Float[Tensor, "n c h w"]:
    """A Shard's images → −1 … 1."""
    return images.float() / 127.5 - 1 if images.dtype == torch.uint8 else images * 2 - 1


def _shifted(images: Float[Tensor, "n c h w"], most: int, seed: Seed) -> Float[Tensor, "n c h w"]:
    """Each image moved by up to ``most`` pixels along either axis, its edge repeated; differentiable."""
    if most == 0:
        return images
    count, channels, height, width = images.shape
    offsets = torch.randint(2 * most + 1, (2, count, 1), generator=seed.torch()).to(images.device)
    padded = F.pad(images, (most, most, most, most), mode="replicate")
    rows = (offsets[0] + torch.arange(height, device=images.device))[:, None, :, None]
    columns = (offsets[1] + torch.arange(width, device=images.device))[:, None, None, :]
    kept = padded.gather(2, rows.expand(count, channels, height, padded.shape[3]))
    return kept.gather(3, columns.expand(count, channels, height, width))


def _write_grid(generator: StyleGenerator, classes: Sequence[str], path: Path, seed: Seed) -> None:
    """A PNG of samples, a row a class; at most 50 classes."""
    shown = classes[:50]
    images = sample(generator, torch.arange(len(shown)).repeat_interleave(_COLUMNS), seed)
    with aside(path) as temporary:
        grid(images, columns=_COLUMNS, row_labels=shown).save(temporary, "PNG")
