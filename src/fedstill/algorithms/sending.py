"""What a client of OneShot does and sends, and how the server reads it; :mod:`fedstill.algorithms.oneshot` has the method.

Where the method has a budget (``privacy_epsilon``), experts learn by DP-SGD (:mod:`fedstill.privacy`), with the noise that keeps
all steps of all experts of a client within it:

    σ = noise_for(ε, q = min(1, b / n), steps = experts · epochs · ⌈n / b⌉, δ)

and nothing else looks at a training image: the start is noise or a prior's, the matching follows experts, the choice goes by
validation images. So what is distilled is as private as the experts are, however long it takes.
"""

from __future__ import annotations

import shutil
from dataclasses import asdict, fields, replace
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import torch

from fedstill.algorithms.priors import generator_of, space_of
from fedstill.algorithms.protection import check_gradients, guarantee, said
from fedstill.algorithms.sharing import received
from fedstill.algorithms.union import DistilledSet
from fedstill.bundle import Bundle, Group
from fedstill.data.augment import Augmentation
from fedstill.data.shard import Shard, quantised
from fedstill.distill.canvas import Canvas, Generator, Matcher, Strokes
from fedstill.distill.course import Check, Course
from fedstill.distill.experts import ExpertMatcher, train_experts
from fedstill.distill.matchers import preferred_gradient
from fedstill.distill.node import judged, tend
from fedstill.distill.virtual import begin
from fedstill.errors import InputError, RunError
from fedstill.generators.pixels import Pixels
from fedstill.privacy import Guarantee, Privacy, Sampling
from fedstill.rounds import Desk, Reply, Site
from fedstill.seeds import Seed
from fedstill.train import Recipe

if TYPE_CHECKING:
    from fedstill.algorithms.oneshot import OneShot

__all__ = ["Arrived", "check_privacy", "make", "read"]

LARGEST_RATE = 1e3
"""Of a student's step size that arrives: clients' mean α may be what the union is trained with."""


class Arrived(NamedTuple):
    """What came of a client: ``rate`` is α; ``course`` is None of a base set, ``spent`` where nothing was to be private."""

    done: DistilledSet
    rate: float
    course: Course | None
    spent: Guarantee | None


def make(method: OneShot, site: Site, desk: Desk) -> Bundle:
    """A client's reply.

    Raises:
        RunError: there is no training image, the budget cannot be met, or an expert's training diverged.
    """
    if len(site.train) == 0:
        raise RunError("the client has no training image")
    spent = _spent(method, len(site.train))
    canvas, course = _distilled(
        method, site, desk, None if spent is None else Privacy(spent.noise, method.privacy_clip)
    )
    sent = _as_sent(method, canvas)
    numbers = {"examples": len(site.train), "rate": canvas.rate} | ({} if spent is None else asdict(spent))
    reply = Bundle().put(numbers, synthetic={"images": sent.images, "labels": sent.labels})
    return reply.put(statistics=course.group()) if method.distill_steps else reply


def read(method: OneShot, reply: Reply) -> Arrived:
    """A stranger's reply. What it says of its privacy is its word: no server can tell by the images.

    Raises:
        InputError: it is no such thing.
    """
    bundle = reply.bundle
    kind = torch.uint8 if method.quantise else torch.float32
    synthetic = received(bundle.groups.get("synthetic", {}), method.world, ipc=method.ipc, kind=kind)
    rate = bundle.numbers.get("rate")
    if rate is None or not 0 < rate <= LARGEST_RATE:
        raise InputError(f"its student's step size is {rate}, which trains nothing")
    if not len(synthetic):
        raise InputError("its synthetic set is empty")
    spent = said(method, bundle)
    if not method.distill_steps:
        return Arrived(DistilledSet(reply.client, synthetic, {}, None), rate, None, spent)
    course = _course(method, bundle.groups.get("statistics", {}))
    return Arrived(DistilledSet(reply.client, synthetic, {}, course.health()), rate, course, spent)


def _course(method: OneShot, group: Group) -> Course:
    """A stranger's record, as long as this method's may be and no longer.

    Raises:
        InputError: it is none.
    """
    attempts, looks = method.retries + 1, method.distill_steps // method.check_every + 2
    most = {
        "lengths": 2 * attempts,
        "losses": attempts * method.distill_steps,
        "checks": attempts * looks * len(fields(Check)),
    }
    if any(name in group and group[name].numel() > count for name, count in most.items()):
        raise InputError("its record of its distillation is longer than its attempts and steps can make it")
    course = Course.of(group)
    if not all(each.checks for each in course.attempts):
        raise InputError("its record of its distillation is damaged: an attempt was never looked at")
    said = [value for each in course.attempts for check in each.checks for value in (check.accuracy, check.deviation)]
    if not all(value is None or value <= 1 for value in said):
        raise InputError("its record of its distillation is damaged: an accuracy is above 1")
    return course


def check_privacy(method: OneShot) -> None:
    """All that can be refused before a client works; nothing, where there is no budget.

    Raises:
        MissingExtra: Opacus is not installed.
        InputError: a set would show its images all the same, or the network's gradients cannot be made private.
    """
    if method.privacy_epsilon is None:
        return
    place = f"algorithm.privacy_epsilon = {method.privacy_epsilon:g}"
    if not method.distill_steps:
        raise InputError(
            f"{place}: with algorithm.distill_steps = 0 a client sends the images that it would begin with, and no noise is on "
            "these; set distill_steps, or leave privacy_epsilon out"
        )
    if method.start not in ("noise", "draw"):
        raise InputError(
            f"algorithm.start = '{method.start}': images that begin from real ones are not private, whatever the noise; with "
            f"{place} use algorithm.start = 'noise' or, with a prior, 'draw'"
        )
    check_gradients(method.world.architecture)


def _spent(method: OneShot, images: int) -> Guarantee | None:
    """What the experts of a client with so many images spend; None without a budget."""
    if method.privacy_epsilon is None:
        return None
    look = Sampling(images, method.expert_batch).look(method.experts * method.expert_epochs)
    return guarantee(
        method.privacy_epsilon, method.privacy_delta, look, images=images, steps=look.steps, lasting=look.steps
    )


# --- the images --------------------------------------------------------------------------------------------------------


def _distilled(method: OneShot, site: Site, desk: Desk, privacy: Privacy | None) -> tuple[Canvas, Course]:
    """The chosen images and how they came about; with no steps, those that it would begin with."""
    paint = partial(_canvas, method, site.train, desk)
    if not method.distill_steps:
        return paint(1.0), Course()
    scratch = desk.scratch
    folder = None if scratch is None else scratch / "experts"
    seed = desk.lasting.at("oneshot")

    def ready() -> Matcher:
        architecture = method.world.architecture
        experts = train_experts(
            architecture,
            site.train,
            _recipe_of_experts(method),
            count=method.experts,
            precision=method.expert_precision,
            seed=seed.at("expert"),
            privacy=privacy,
            device=desk.device,
            folder=folder,
            progress=partial(desk.progress, "experts"),
        )
        return ExpertMatcher(
            experts,
            architecture.build(seed.at("student")).to(desk.device),
            steps=method.student_steps,
            span=method.span,
            latest=method.latest,
            batch=method.student_batch,
            augmentation=Augmentation.parse(method.augmentation, key="algorithm.augmentation"),
            gradient=preferred_gradient(architecture) if method.gradient == "auto" else method.gradient,
        )

    done = tend(
        paint,
        ready,
        partial(_judged, method, site.validation, desk.device),
        steps=method.distill_steps,
        check_every=method.check_every,
        keep_every=method.keep_every,
        retries=method.retries,
        retry_scale=method.retry_scale,
        seed=seed.at("distil"),
        file=None if scratch is None else scratch / "node.safetensors",
        progress=partial(desk.progress, "distil"),
    )
    if folder is not None:  # gigabytes at the published scale, and nobody asks for them again
        shutil.rmtree(folder, ignore_errors=True)
    return done


def _canvas(method: OneShot, real: Shard, desk: Desk, scale: float) -> Canvas:
    """B_k on a canvas, ``ipc`` images of each class that the client has; the step size of images times ``scale``."""
    seed, device = desk.lasting.at("oneshot", "start"), desk.device
    held = [k for k, count in enumerate(real.histogram()) if count]
    strokes = Strokes(method.lr_images * scale, method.lr_styles * scale, method.lr_rate, method.image_momentum)
    generator: Generator
    if method.start == "draw":
        generator = generator_of(method.world, method.generator, device=device, prior_classes=method.prior_classes)
        labels = torch.tensor(held).repeat_interleave(method.ipc).to(device)
        latent = None
    else:
        first = begin(real, ipc=method.ipc, start=method.start, missing="none", seed=seed)
        generator = Pixels(first.channels, first.size, first.normalisation.to(device))
        labels, latent = first.labels.to(device), {"f": first.inputs().to(device)}
    return Canvas.draw(
        generator,
        space_of(generator, method.generator, method.space),
        labels,
        normalisation=method.world.normalisation,
        strokes=strokes,
        rate=method.student_lr,
        seed=seed,
        latent=latent,
    )


def _judged(method: OneShot, validation: Shard, device: str, canvas: Canvas, seed: Seed) -> list[float]:
    """Validation accuracies of fresh networks on the images as they would be sent, trained as MTT's code evaluates."""
    recipe = Recipe(
        epochs=method.judge_epochs,
        lr=canvas.rate,
        batch=256,
        momentum=0.9,
        decay=5e-4,
        augmentation=Augmentation.parse(method.augmentation, key="algorithm.augmentation"),
        drop=0.1,
    )
    lesson, architecture = _as_sent(method, canvas), method.world.architecture
    return judged(architecture, lesson, validation, recipe, count=method.judges, seed=seed, device=device)


def _as_sent(method: OneShot, canvas: Canvas) -> Shard:
    shard = canvas.shard(method.world.classes)
    if not method.quantise:
        return shard
    return replace(shard, images=quantised(shard.images)[0])


def _recipe_of_experts(method: OneShot) -> Recipe:
    return Recipe(
        epochs=method.expert_epochs,
        lr=method.expert_lr,
        batch=method.expert_batch,
        momentum=method.expert_momentum,
        decay=method.expert_decay,
        augmentation=Augmentation.parse(method.expert_augmentation, key="algorithm.expert_augmentation"),
    )
