"""FedDGM (Jia, Vahidian et al., ECCV 2024, Algorithm 1).

Round t:

1.  S_t: the cohort. Send θ_g.                                                        ``broadcast``
2.  Client m: θ_m ← θ_g, T_l epochs of SGD on D_m. Send θ_m.                          ``local``
3.  Server, per client: Z = (w, f), IPC latents for *every* class, whatever the client
    holds, from the generator's mapping network, lifted to space Fn.                  ``_distil``
4.  T_d times: images D̃ = G(Z); student θ̂ ← θ_g takes T_s steps on D̃;
    L = ‖θ̂ − θ_m‖² / ‖θ_g − θ_m‖²  (Eq. 2); update Z.                                 ``_distil``
5.  D̃_g = union over S_t of this round's images. Train the global models w and the
    surrogate θ on it for T_g epochs. θ_g ← θ.                                        ``aggregate``

Symbols: T_l ``epochs``, T_d ``distill_steps``, T_s ``student_steps``, T_g ``global_epochs``, IPC ``ipc``, n ``space``, θ the
``model`` group (the surrogate), w the ``model:NAME`` groups, D̃ the ``synthetic:CLIENT`` groups.

Where the paper is silent, the released code's value is the default, and the field's description says [code]. Four things go
beyond both, are off by default, and say so: ``warm_start``, ``latent_optimiser = "adam"``, ``labels = "soft"`` and
``prior_samples``.

With a budget (``privacy_epsilon``) clients learn by DP-SGD, as FedAvg's do: the server's images are then made of private updates
alone, and are as private as these.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Literal, NamedTuple

import torch
from pydantic import Field

from fedstill.algorithms.agreement import Disagreeing, look
from fedstill.algorithms.averaging import FedAvg
from fedstill.algorithms.priors import PriorClasses, class_remark, generator_of, space_of
from fedstill.algorithms.protection import (
    PrivacyClip,
    PrivacyDelta,
    PrivacyEpsilon,
    PrivacyRounds,
    check_descent,
    remarks,
    said,
    told,
    unsaid,
)
from fedstill.algorithms.replies import Sieve
from fedstill.algorithms.union import Course, DistilledSet, global_networks, keep, soften, study, without_ruinous
from fedstill.bundle import Bundle, Group
from fedstill.data.augment import DSA, Augmentation
from fedstill.data.shard import Shard
from fedstill.distill.canvas import Canvas, Generator, Latent, Strokes
from fedstill.distill.health import match
from fedstill.distill.matchers import TrajectoryMatcher, preferred_gradient
from fedstill.errors import InputError
from fedstill.generators.precision import Precision
from fedstill.models.architecture import Architecture
from fedstill.models.choice import NetworkChoice
from fedstill.rounds import Desk, Failure, Outcome, Reply, Site, Trained, World
from fedstill.seeds import Seed
from fedstill.train import Recipe

__all__ = ["FedDGM"]

SURROGATE = "surrogate"


class _Job(NamedTuple):
    """One client's distillation; crosses to a worker process."""

    client: str
    target: Group | None
    desk: Desk
    warm: Group | None


@dataclass(frozen=True, kw_only=True)
class FedDGM:
    """FedDGM. ``distill_steps = 0`` is the control *PriorOnly*: the generator's raw samples; clients only say how many images
    they hold."""

    world: World
    # clients
    epochs: Annotated[int, Field(ge=1, description="T_l, local epochs of the surrogate [paper: 20]")] = 20
    lr: Annotated[float, Field(gt=0, description="step size of local SGD [code]")] = 0.01
    batch: Annotated[int, Field(ge=1, description="images a local step [code: 256 on CIFAR-10, 32 on ImageNet]")] = 256
    momentum: Annotated[float, Field(ge=0, lt=1, description="of local SGD [code: none]")] = 0.0
    decay: Annotated[float, Field(ge=0, description="weight decay of local SGD [code: none]")] = 0.0
    privacy_epsilon: PrivacyEpsilon = None
    privacy_delta: PrivacyDelta = 1e-5
    privacy_clip: PrivacyClip = 1.0
    privacy_rounds: PrivacyRounds = None
    # the canvas
    generator: Annotated[
        str, Field(description="pixels | digits | a prior's .safetensors file | package.module:factory")
    ] = "pixels"
    space: Annotated[
        Annotated[int, Field(ge=0)] | Literal["pixels"],
        Field(
            description="Fn, where latents are optimised; pixels is the deepest [paper: 5 of StyleGAN-XL on CIFAR-10]"
        ),
    ] = "pixels"
    truncation: Annotated[float, Field(gt=0, le=1, description="psi of the mapping network; 1 is off [paper]")] = 1.0
    prior_classes: PriorClasses = None
    precision: Annotated[
        Precision, Field(description="of StyleGAN-XL's features; 16 bits are for GPUs [their code: float16]")
    ] = "float32"
    feature_limit: Annotated[
        float, Field(gt=0, description="largest entry of f at the start, either side of 0 [code]")
    ] = 10.0
    ipc: Annotated[int, Field(ge=1, description="IPC, images a class and client, for every class [paper: 10]")] = 10
    warm_start: Annotated[bool, Field(description="beyond the paper: latents start from the client's last ones")] = (
        False
    )
    # matching
    distill_steps: Annotated[int, Field(ge=0, description="T_d, steps on the latents [paper: 100]")] = 100
    student_steps: Annotated[int, Field(ge=1, description="T_s, the student's steps [paper: 20]")] = 20
    student_batch: Annotated[
        int | None, Field(ge=1, description="images a student step; none: all of them [paper]")
    ] = None
    student_lr: Annotated[float, Field(gt=0, description="the student's step size at the start [code]")] = 0.01
    gradient: Annotated[
        Literal["auto", "exact", "truncated"],
        Field(
            description="of the matching loss; auto goes by the network's depth, see docs/decisions [code: truncated]"
        ),
    ] = "auto"
    augmentation: Annotated[
        str, Field(description="DSA inside matching, drawn anew each student step; none turns it off [code]")
    ] = DSA
    lr_features: Annotated[float, Field(gt=0, description="step size of f or pixels [code: 1000]")] = 1000.0
    lr_styles: Annotated[float, Field(ge=0, description="step size of w [code: 1]")] = 1.0
    lr_rate: Annotated[float, Field(ge=0, description="step size of the student's step size; 0 fixes it [code]")] = 1e-5
    latent_momentum: Annotated[float, Field(ge=0, lt=1, description="of SGD on latents and rate [code]")] = 0.5
    latent_optimiser: Annotated[Literal["sgd", "adam"], Field(description="of latents; adam is beyond the paper")] = (
        "sgd"
    )
    keep: Annotated[
        Literal["last", "best"], Field(description="images after the last step [paper] or of the smallest loss met")
    ] = "last"
    chunk: Annotated[int, Field(ge=1, description="images that go through the generator at a time, at most")] = 100
    # health
    retries: Annotated[int, Field(ge=0, description="further tries, with smaller steps, where matching fails")] = 1
    retry_scale: Annotated[float, Field(gt=0, lt=1, description="factor on the step sizes at each further try")] = 0.1
    loss_limit: Annotated[float, Field(gt=0, description="a matching loss at or above it is a failure")] = 1.0
    conditioning: Annotated[
        bool, Field(description="measure how far exact and truncated gradients agree (two more gradients a client)")
    ] = True
    # the server
    disagreeing: Disagreeing = "keep"
    global_epochs: Annotated[int, Field(ge=1, description="T_g, epochs on the union [paper: 1000]")] = 1000
    global_lr: Annotated[float, Field(gt=0, description="step size on the union [code]")] = 0.01
    global_batch: Annotated[int, Field(ge=1, description="images a step on the union [paper: 256, ImageNet 32]")] = 256
    global_momentum: Annotated[float, Field(ge=0, lt=1, description="for the global models [code]")] = 0.9
    global_decay: Annotated[float, Field(ge=0, description="for the global models [code]")] = 1e-5
    surrogate_momentum: Annotated[float, Field(ge=0, lt=1, description="for the surrogate [code: none]")] = 0.0
    surrogate_decay: Annotated[float, Field(ge=0, description="for the surrogate [code: none]")] = 0.0
    global_augmentation: Annotated[str, Field(description="DSA on the union; none turns it off [code]")] = DSA
    global_models: Annotated[
        tuple[NetworkChoice, ...], Field(description="networks trained on the union beside the surrogate, each a table")
    ] = ()
    labels: Annotated[
        Literal["hard", "soft"],
        Field(description="of the union for the global models: hard [paper], or the new surrogate's predictions"),
    ] = "hard"
    soft_from: Annotated[
        int,
        Field(ge=1, description="first round of soft labels; before it hard ones, while the surrogate knows little"),
    ] = 1
    temperature: Annotated[float, Field(gt=0, description="of soft labels")] = 2.0
    prior_samples: Annotated[
        int, Field(ge=0, description="beyond the paper: fresh generator samples added for the global models, a class")
    ] = 0

    def init(self, clients: Sequence[str], desk: Desk) -> Bundle:
        self._check()
        surrogate = self.world.architecture.build(desk.seed.at("model"))
        others = {
            f"model:{name}": architecture.build(desk.seed.at("model", name)).state_dict()
            for name, architecture in self._architectures().items()
        }
        return Bundle().put(model=surrogate.state_dict(), **others)

    def task(self, state: Bundle) -> str | None:
        return "local"

    def broadcast(self, state: Bundle, client: str) -> Bundle:
        return self._averaging().broadcast(state, client) if self.distill_steps else Bundle()

    def local(self, inbox: Bundle, site: Site, memory: Bundle, desk: Desk) -> tuple[Bundle, Bundle]:
        if self.distill_steps:
            return self._averaging().local(inbox, site, memory, desk)
        return Bundle().put({"examples": len(site.train)}), memory  # nothing would read a trained surrogate

    def score(self, inbox: Bundle, site: Site, memory: Bundle, desk: Desk) -> Bundle:
        return self._averaging().score(inbox, site, memory, desk)

    def aggregate(self, state: Bundle, replies: Iterable[Reply], desk: Desk) -> Outcome:
        like = {"model": state.groups["model"]} if self.distill_steps else {}
        sieve = Sieve(replies, like, wrong=partial(unsaid, self))
        arrived = {reply.client: reply.bundle for reply in sieve}
        failures = sieve.failures
        began = time.perf_counter()
        sets = list(self._distil_all(state, arrived, desk))
        distilled = time.perf_counter()
        failures += [Failure(done.client, done.sick) for done in sets if done.sick is not None]
        looked = look(
            self.disagreeing,
            [done for done in sets if done.sick is None],
            Trained(self.world.architecture, state.groups["model"]),
            self._recipe(SURROGATE),
            desk.at("agreement"),
        )
        failures += looked.failures
        healthy = looked.kept
        losses: dict[str, float | None] = {}
        if healthy:
            (state, losses), ruinous = without_ruinous(healthy, partial(self._taught, state, desk))
            failures += ruinous
            healthy = [done for done in healthy if done.client not in {each.client for each in ruinous}]
        else:
            state = keep(state, [])
        figures = {
            "clients": {
                done.client: done.figures(arrived[done.client])
                | told(said(self, arrived[done.client]))
                | looked.figures.get(done.client, {})
                for done in sets
            },
            "loss": losses,
            "union": sum(len(done.synthetic) for done in healthy),
            "seconds": {"distil": distilled - began, "train": time.perf_counter() - distilled},
        }
        return Outcome(state, figures, failures)

    def models(self, state: Bundle) -> Mapping[str, Trained]:
        others = state.members("model")
        return {SURROGATE: Trained(self.world.architecture, state.groups["model"])} | {
            name: Trained(architecture, others[name]) for name, architecture in self._architectures().items()
        }

    def remarks(self, rounds: int) -> Sequence[str]:
        """What a user of ``rounds`` rounds may want to know before they begin."""
        named = class_remark(self.world, self.generator, self.prior_classes)
        return (*remarks(self, rounds), *(() if named is None else (named,)))

    # --- steps 3 and 4: distil every client's update -------------------------------------------------------------

    def _distil_all(self, state: Bundle, arrived: Mapping[str, Bundle], desk: Desk) -> Iterator[DistilledSet]:
        latents = state.members("latents")
        jobs = [
            _Job(
                client,
                bundle.groups.get("model"),
                Desk(desk.seed.at("distil", client), device=desk.device, progress=desk.steps),
                latents.get(client),
            )
            for client, bundle in arrived.items()
        ]
        desk.progress("distil", 0, len(jobs))
        for index, done in enumerate(desk.map(partial(self._distil, state.groups["model"]), jobs)):
            desk.progress("distil", index + 1, len(jobs))
            yield done

    def _distil(self, start: Group, job: _Job) -> DistilledSet:
        """Steps 3 and 4 for one client."""
        device, seed = job.desk.device, job.desk.seed
        warm = None if job.warm is None else {name: tensor.to(device) for name, tensor in job.warm.items()}

        def paint(scale: float) -> Canvas:
            return self._canvas(self.ipc, seed.at("draw"), device=device, scale=scale, latent=warm)

        health = None
        if job.target is None or self.distill_steps == 0:
            canvas = paint(1.0)
        else:
            canvas, health = match(
                paint,
                self._matcher(start, job.target, device),
                steps=self.distill_steps,
                seed=seed.at("match"),
                retries=self.retries,
                retry_scale=self.retry_scale,
                limit=self.loss_limit,
                keep=self.keep,
                conditioning=self.conditioning,
                progress=partial(job.desk.progress, f"distil {job.client}"),
            )
        kept = {name: tensor.cpu() for name, tensor in canvas.latent.items()} if self.warm_start else {}
        return DistilledSet(job.client, canvas.shard(self.world.classes), kept, health)

    def _canvas(
        self,
        each: int,
        seed: Seed,
        *,
        device: str,
        space: int | None = None,
        scale: float = 1.0,
        latent: Latent | None = None,
    ) -> Canvas:
        """``each`` images of every class, hard labels; in the space of the settings where none is given."""
        generator = self._generator(device)
        return Canvas.draw(
            generator,
            self._space(generator) if space is None else space,
            torch.arange(len(self.world.classes)).repeat_interleave(each).to(device),
            normalisation=self.world.normalisation,
            strokes=Strokes(
                features=self.lr_features,
                styles=self.lr_styles,
                rate=self.lr_rate,
                momentum=self.latent_momentum,
                optimiser=self.latent_optimiser,
            ).scaled(scale),
            rate=self.student_lr,
            seed=seed,
            chunk=self.chunk,
            latent=latent,
            limit=self.feature_limit if space is None else None,
        )

    def _matcher(self, start: Group, target: Group, device: str) -> TrajectoryMatcher:
        network = Trained(self.world.architecture, start).module().to(device)
        gradient = self.gradient if self.gradient != "auto" else preferred_gradient(self.world.architecture)
        return TrajectoryMatcher(
            network=network,
            start=start,
            target=target,
            steps=self.student_steps,
            batch=self.student_batch,
            augmentation=Augmentation.parse(self.augmentation, key="algorithm.augmentation"),
            gradient=gradient,
        )

    # --- step 5: train on the union ------------------------------------------------------------------------------

    def _taught(
        self, state: Bundle, desk: Desk, sets: Sequence[DistilledSet]
    ) -> tuple[Bundle, dict[str, float | None]]:
        return self._train(keep(state, sets), Shard.join([each.synthetic for each in sets]), desk)

    def _train(self, state: Bundle, union: Shard, desk: Desk) -> tuple[Bundle, dict[str, float | None]]:
        before = self.models(state)
        courses = {
            name: Course(
                name,
                trained,
                self._recipe(name),
                Desk(desk.seed.at("train", name), device=desk.device, progress=desk.steps),
            )
            for name, trained in before.items()
        }
        surrogate = courses.pop(SURROGATE)
        soft = self.labels == "soft" and state.numbers.get("round", 1) >= self.soft_from
        if not soft and self.prior_samples == 0:
            done = study(union, [surrogate, *courses.values()], desk)
        else:
            done = study(union, [surrogate], desk)
            teacher = Trained(self.world.architecture, done[SURROGATE].tensors) if soft else None
            done |= study(self._lesson(union, teacher, desk), list(courses.values()), desk)
        tensors = {"model" if name == SURROGATE else f"model:{name}": fitted.tensors for name, fitted in done.items()}
        return state.put(**tensors), {name: fitted.losses[-1] for name, fitted in done.items()}

    def _lesson(self, union: Shard, teacher: Trained | None, desk: Desk) -> Shard:
        """What the global models are trained on: fresh samples of the prior added, labels softened where there is a teacher."""
        if self.prior_samples:
            fresh = self._canvas(self.prior_samples, desk.seed.at("prior"), device=desk.device, space=0)
            union = Shard.join([union, fresh.shard(self.world.classes)])
        if teacher is None:
            return union
        return soften(union, teacher, self.temperature, device=desk.device)

    def _recipe(self, name: str) -> Recipe:
        mine = name == SURROGATE
        return Recipe(
            epochs=self.global_epochs,
            lr=self.global_lr,
            batch=self.global_batch,
            momentum=self.surrogate_momentum if mine else self.global_momentum,
            decay=self.surrogate_decay if mine else self.global_decay,
            augmentation=Augmentation.parse(self.global_augmentation, key="algorithm.global_augmentation"),
            temperature=self.temperature,
        )

    # --- parts ---------------------------------------------------------------------------------------------------

    def _check(self) -> None:
        """All that can be refused, before a client works."""
        self._space(self._generator())
        check_descent(self)
        if self.privacy_epsilon is not None and not self.distill_steps:
            raise InputError(
                f"algorithm.privacy_epsilon = {self.privacy_epsilon:g}: without distillation steps clients send nothing that is "
                "made of their images; leave it out"
            )
        if self.disagreeing != "keep" and not self.distill_steps:
            raise InputError(
                f"algorithm.disagreeing = '{self.disagreeing}': without distillation steps no set is made of a client's update; "
                "leave it out"
            )
        for key in ("augmentation", "global_augmentation"):
            Augmentation.parse(getattr(self, key), key=f"algorithm.{key}")
        for architecture in self._architectures().values():
            architecture.check()
        if self.generator == "pixels" and (self.distill_steps == 0 or self.prior_samples):
            wanted = "prior_samples" if self.distill_steps else "PriorOnly"
            raise InputError(
                f"algorithm.generator = 'pixels': {wanted} needs a prior, and raw pixels are noise; "
                "name a shipped prior or a prior's file"
            )

    def _averaging(self) -> FedAvg:
        return FedAvg(
            world=self.world,
            epochs=self.epochs,
            lr=self.lr,
            batch=self.batch,
            momentum=self.momentum,
            decay=self.decay,
            privacy_epsilon=self.privacy_epsilon,
            privacy_delta=self.privacy_delta,
            privacy_clip=self.privacy_clip,
            privacy_rounds=self.privacy_rounds,
        )

    def _architectures(self) -> dict[str, Architecture]:
        return global_networks(self.world, self.global_models, SURROGATE)

    def _generator(self, device: str = "cpu") -> Generator:
        return generator_of(
            self.world,
            self.generator,
            device=device,
            truncation=self.truncation,
            prior_classes=self.prior_classes,
            precision=self.precision,
        )

    def _space(self, generator: Generator) -> int:
        return space_of(generator, self.generator, self.space)
