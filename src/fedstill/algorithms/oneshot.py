"""OneShot: every client distils its own images by trajectory matching and sends the result a single time (Epple, "On the
Efficiency of Sharing Distilled Data in Federated Learning", EPFL; the matching is Cazenavette et al., CVPR 2022).

    client:  θ* ← E experts trained on its training images, kept after every epoch                (distill/experts.py)
             S_k ← T steps of trajectory matching towards them, from the base set B_k;
             every c steps, fresh networks learn S_k and are scored on *validation* images;
             the best S_k is kept, and an ill distillation begins again                           (distill/node.py)
             sends S_k, once                                                                        (sending.py)
    server:  a network, from scratch, on the union of all S_k

and round 1 is all of it, but for a search that asks the clients (below). Symbols: E ``experts``, T ``distill_steps``, c
``check_every``, N ``student_steps``, M ``span``, T⁺ ``latest``, α ``student_lr`` and ``lr_rate`` its step size.

``distill_steps = 0`` sends the base sets B_k as they are: the report's other column. With ``start = "real"`` those are real
images.

The server's search. The report searches {SGD, Adam} × step size by Optuna and does not say what it chooses by; here never by test
images. ``search = "union"``: a share of the union is held out, a part of each class, so that nothing more is sent; networks that
count are trained on all of it afterwards. ``search = "clients"``: further rounds send the networks of a few trials each, clients
answer with counts on their validation images, and the bytes show it; the network of the best trial is the one that counts. The
run needs 1 + ``trials`` / ``at_once`` rounds for it and ends by itself.

Where the report and its code are silent: α is learned and stays with the client in the report; here it is sent too (8 bytes), and
``global_lr = "learned"`` trains on the union at the clients' mean. Images that end beyond the pixel range are sent as they are,
unless ``quantise`` makes them bytes: clipped and rounded, a quarter of the size.

A class of fewer images than ``ipc`` begins with each in turn; a class that the client lacks gets none. A client without
validation images keeps the last images, for there is nothing to choose by.

Privacy. Distilled images are made to train a network as the real ones would, and start from real ones in the report: they may
show them. With ``privacy_epsilon`` experts learn by DP-SGD (:mod:`fedstill.privacy`), a start of real images is refused, and what
is sent tells little of any one *training* image (sending.py). Not covered, with it or without: a client's number of images, its
classes, its validation images, which choose and whose accuracies are sent, and the normalisation, unless ``data.mean`` gives it.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, Literal

import torch
from pydantic import Field

from fedstill.algorithms.agreement import Disagreeing, anew, look
from fedstill.algorithms.averaging import FedAvg
from fedstill.algorithms.choosing import (
    TRIAL,
    Searched,
    ask,
    check_search,
    choose,
    counted,
    foremost,
    hear,
    networks,
    recipe_of,
    shown,
    too_few,
)
from fedstill.algorithms.priors import PriorClasses, class_remark, generator_of, space_of
from fedstill.algorithms.protection import PrivacyClip, PrivacyDelta, remark, told
from fedstill.algorithms.replies import Sieve
from fedstill.algorithms.sending import check_privacy, make, read
from fedstill.algorithms.union import Course as Lesson
from fedstill.algorithms.union import DistilledSet, global_networks, join_sets, keep, study, without_ruinous
from fedstill.bundle import Bundle
from fedstill.data.augment import DSA, Augmentation
from fedstill.data.shard import Shard
from fedstill.distill.experts import Precision
from fedstill.distill.virtual import Start
from fedstill.errors import InputError
from fedstill.models.architecture import Architecture
from fedstill.models.choice import NetworkChoice
from fedstill.rounds import Desk, Failure, Outcome, Reply, Site, Trained, World
from fedstill.search import Trial
from fedstill.train import Recipe

__all__ = ["OneShot"]

GLOBAL = "global"
START = "model:before trials"
"""Group of the state: where trials of a search by clients begin. No network can be called so."""


@dataclass(frozen=True, kw_only=True)
class OneShot:
    """OneShot. Defaults are the report's for CIFAR-10 where it states one, and else those of trajectory matching's code."""

    world: World
    # experts
    experts: Annotated[int, Field(ge=1, description="E, networks that a client trains to be followed [report: 30]")] = (
        30
    )
    expert_epochs: Annotated[int, Field(ge=1, description="of each expert [MTT's code]")] = 50
    expert_lr: Annotated[float, Field(gt=0, description="step size of experts [MTT's code]")] = 0.01
    expert_batch: Annotated[int, Field(ge=1, description="images a step of an expert [MTT's code]")] = 256
    expert_momentum: Annotated[float, Field(ge=0, lt=1, description="of experts' SGD [MTT's code]")] = 0.0
    expert_decay: Annotated[float, Field(ge=0, description="weight decay of experts [MTT's code]")] = 0.0
    expert_augmentation: Annotated[str, Field(description="DSA for experts; none turns it off [MTT's code]")] = DSA
    expert_precision: Annotated[
        Precision, Field(description="of snapshots on the disk; differences, in float16, take half the room")
    ] = "float32"
    # the images
    ipc: Annotated[int, Field(ge=1, description="IPC, images a class that a client sends [report: 1, 10]")] = 10
    generator: Annotated[
        str, Field(description="pixels [report], a shipped prior, a prior's file, or package.module:factory")
    ] = "pixels"
    space: Annotated[
        Annotated[int, Field(ge=0)] | Literal["pixels"],
        Field(description="latent space of the generator that images are distilled in; pixels: the deepest [report]"),
    ] = "pixels"
    prior_classes: PriorClasses = None
    start: Annotated[
        Start | Literal["draw"],
        Field(description="real images [report], means of them, noise, class statistics; draw: the generator's own"),
    ] = "real"
    # matching
    distill_steps: Annotated[int, Field(ge=0, description="T, steps on the images [report: 2000]; 0: the base set")] = (
        2000
    )
    student_steps: Annotated[int, Field(ge=1, description="N, the student's steps [MTT's code]")] = 20
    span: Annotated[int, Field(ge=1, description="M, epochs of an expert that the student is to make [MTT's code]")] = 3
    latest: Annotated[
        int, Field(ge=1, description="T+, the student starts after fewer epochs of the expert [MTT's code]")
    ] = 25
    student_batch: Annotated[int | None, Field(ge=1, description="images a student step; none: all of them")] = None
    student_lr: Annotated[
        float, Field(gt=0, description="alpha, the student's step size at the start [MTT's code]")
    ] = 0.01
    gradient: Annotated[
        Literal["auto", "exact", "truncated"],
        Field(description="of the matching loss [MTT: exact]; auto goes by the network's depth, see docs/decisions"),
    ] = "auto"
    augmentation: Annotated[
        str, Field(description="DSA inside matching, drawn anew each student step; none turns it off [MTT's code]")
    ] = DSA
    lr_images: Annotated[float, Field(gt=0, description="step size of pixels or feature maps [MTT's code]")] = 1000.0
    lr_styles: Annotated[float, Field(ge=0, description="step size of a generator's style vectors")] = 1.0
    lr_rate: Annotated[
        float, Field(ge=0, description="step size of alpha [report: 1e-6, with 2 shards 1e-7]; 0 fixes it")
    ] = 1e-6
    image_momentum: Annotated[float, Field(ge=0, lt=1, description="of SGD on images and alpha [report]")] = 0.5
    # choice and health
    check_every: Annotated[int, Field(ge=1, description="c, steps between two looks at the images [report]")] = 200
    judges: Annotated[int, Field(ge=1, description="fresh networks a look [report]")] = 3
    judge_epochs: Annotated[int, Field(ge=1, description="of each of them [MTT's code]")] = 1000
    retries: Annotated[int, Field(ge=0, description="further attempts, with smaller steps, where one goes ill")] = 1
    retry_scale: Annotated[float, Field(gt=0, lt=1, description="factor on lr_images at each further attempt")] = 0.1
    drop_ill: Annotated[bool, Field(description="leave a client out whose last attempt is ill, too")] = False
    keep_every: Annotated[int, Field(ge=1, description="steps of distillation that a killed client loses at most")] = 50
    # what is sent
    privacy_epsilon: Annotated[
        float | None,
        Field(gt=0, le=1000, description="budget of all experts of a client together, by DP-SGD; none: not private"),
    ] = None
    privacy_delta: PrivacyDelta = 1e-5
    privacy_clip: PrivacyClip = 1.0
    quantise: Annotated[bool, Field(description="images as bytes: clipped, rounded, a quarter of the size")] = False
    # the server
    disagreeing: Disagreeing = "keep"
    global_epochs: Annotated[int, Field(ge=1, description="epochs on the union [MTT's code]")] = 1000
    global_optimiser: Annotated[Literal["sgd", "adam"], Field(description="on the union [MTT's code: sgd]")] = "sgd"
    global_lr: Annotated[
        Annotated[float, Field(gt=0)] | Literal["learned"],
        Field(description="step size on the union; learned: the clients' mean alpha"),
    ] = 0.01
    global_batch: Annotated[int, Field(ge=1, description="images a step on the union [MTT's code]")] = 256
    global_momentum: Annotated[float, Field(ge=0, lt=1, description="on the union [MTT's code]")] = 0.9
    global_decay: Annotated[float, Field(ge=0, description="weight decay on the union [MTT's code]")] = 5e-4
    global_drop: Annotated[
        float, Field(gt=0, le=1, description="factor on the step size in the second half of the epochs [MTT's code]")
    ] = 0.1
    global_augmentation: Annotated[str, Field(description="DSA on the union; none turns it off [MTT's code]")] = DSA
    global_models: Annotated[
        tuple[NetworkChoice, ...],
        Field(description="networks trained on the union beside the clients' kind, each a table"),
    ] = ()
    # its search
    search: Annotated[
        Literal["none", "union", "clients"],
        Field(
            description="for optimiser and step size [report: by what is not said]: by held-out images, or by clients"
        ),
    ] = "none"
    trials: Annotated[int, Field(ge=1, description="of the search")] = 20
    at_once: Annotated[int, Field(ge=1, description="trials side by side, and sent to clients in a round")] = 4
    search_over: Annotated[
        tuple[Searched, ...], Field(description="any of optimiser, lr, epochs, augmentation [report: the first two]")
    ] = ("optimiser", "lr")
    holdout: Annotated[float, Field(gt=0, lt=1, description="share of the union to choose by")] = 0.2

    def init(self, clients: Sequence[str], desk: Desk) -> Bundle:
        """Networks from scratch, which round 1 trains.

        Raises:
            InputError: an option, or two together, cannot be used.
        """
        self._check()
        state = Bundle().put(
            **{_group(name): each.build(desk.seed.at("model", name)).state_dict() for name, each in self._all().items()}
        )
        # every trial of a search begins with the same weights, whichever round it falls in
        return state.put(**{START: state.groups["model"]}) if self.search == "clients" else state

    def task(self, state: Bundle) -> str | None:
        if not state.members("synthetic"):
            return "local"
        return "score" if networks(state) else None

    def broadcast(self, state: Bundle, client: str) -> Bundle:
        # a client begins with networks of its own
        return Bundle().put(**{f"model:{name}": group for name, group in networks(state).items()})

    def local(self, inbox: Bundle, site: Site, memory: Bundle, desk: Desk) -> tuple[Bundle, Bundle]:
        return make(self, site, desk), memory

    def score(self, inbox: Bundle, site: Site, memory: Bundle, desk: Desk) -> Bundle:
        if networks(inbox):
            return counted(inbox, self.world.architecture, site.validation, device=desk.device)
        return FedAvg(world=self.world).score(inbox, site, memory, desk)

    def aggregate(self, state: Bundle, replies: Iterable[Reply], desk: Desk) -> Outcome:
        return self._chosen(state, replies, desk) if self.task(state) == "score" else self._shared(state, replies, desk)

    def _shared(self, state: Bundle, replies: Iterable[Reply], desk: Desk) -> Outcome:
        """Round 1: the union, and what is learned of it."""
        sieve = Sieve(replies, {})
        clients: dict[str, dict[str, Any]] = {}
        sets: list[DistilledSet] = []
        rates: dict[str, float] = {}
        failures: list[Failure] = []
        for reply in sieve:
            try:
                done, rate, course, spent = read(self, reply)
            except InputError as error:
                failures.append(Failure(reply.client, str(error)))
                continue
            clients[reply.client] = done.figures(reply.bundle) | {"synthetic": len(done.synthetic), "rate": rate}
            if course is not None:
                clients[reply.client] |= course.figures()
            clients[reply.client] |= told(spent)
            if self.drop_ill and done.sick is not None:
                failures.append(Failure(reply.client, done.sick))
            else:
                # ill sets are kept like others unless they were dropped: the best check chose them
                sets.append(done._replace(health=None))
                rates[reply.client] = rate
        arrived = time.perf_counter()
        figures: dict[str, Any] = {}
        if sets:
            recipe = self._recipe(state.put({"rate": statistics.fmean(rates[each.client] for each in sets)}))
            at = desk.at("agreement")
            looked = look(self.disagreeing, sets, anew(self.world.architecture, at), recipe, at)
            sets, failures = looked.kept, [*failures, *looked.failures]
            clients = {client: line | looked.figures.get(client, {}) for client, line in clients.items()}
            (state, figures), ruinous = without_ruinous(sets, partial(self._taught, state, rates, desk))
            failures += ruinous
            sets = [each for each in sets if f"synthetic:{each.client}" in state.groups]
        figures |= {"clients": clients, "union": sum(len(each.synthetic) for each in sets)}
        figures["seconds"] = {"train": time.perf_counter() - arrived}
        return Outcome(state, figures, [*sieve.failures, *failures])

    def _chosen(self, state: Bundle, replies: Iterable[Reply], desk: Desk) -> Outcome:
        """A later round: clients have scored the networks of some trials."""
        began = time.perf_counter()
        heard = hear(state, replies, self._recipe(state), self.search_over)
        if not heard.scored:
            why = "no client of the round has validation images to choose by; set partition.validation, or ask more clients"
            return Outcome(state, {}, heard.failures, withheld=why)
        state, losses = self._asked(heard.state, heard.done, desk)
        recipe = recipe_of(self._recipe(state), foremost(heard.done).params)
        if not networks(state):  # the search is over: the other networks learn as the best one did
            state, losses = self._train(
                state.drop(START), [name for name in self._all() if name != GLOBAL], recipe, desk
            )
        figures = {"search": shown(heard.scored), "recipe": _found(recipe), "loss": losses}
        return Outcome(state, {**figures, "seconds": {"train": time.perf_counter() - began}}, heard.failures)

    def models(self, state: Bundle) -> Mapping[str, Trained]:
        # while clients choose, there is the best network so far; the others have not learned anything yet
        known = {GLOBAL: self.world.architecture} if networks(state) else self._all()
        return {name: Trained(each, state.groups[_group(name)]) for name, each in known.items()}

    def remarks(self, rounds: int) -> Sequence[str]:
        """What a user of ``rounds`` rounds may want to know before they begin."""
        searched = too_few(rounds, self.trials, self.at_once) if self.search == "clients" else None
        named = class_remark(self.world, self.generator, self.prior_classes)
        return tuple(each for each in (searched, remark(self), named) if each is not None)

    @property
    def needs_validation(self) -> str | None:
        """The setting without validation images of clients cannot be used; None: there is none."""
        return "algorithm.search = 'clients'" if self.search == "clients" else None

    @property
    def from_scratch(self) -> bool:
        """That no client is sent a network, which a file's could stand for."""
        return True

    # --- the server ----------------------------------------------------------------------------------------------

    def _taught(
        self, state: Bundle, rates: Mapping[str, float], desk: Desk, sets: Sequence[DistilledSet]
    ) -> tuple[Bundle, dict[str, Any]]:
        """What is learned of these sets, each kept with its step size; and figures."""
        state = keep(state, sets).put({"rate": statistics.fmean(rates[each.client] for each in sets)})
        for each in sets:
            name, rate = f"synthetic:{each.client}", torch.tensor(rates[each.client], dtype=torch.float64)
            state = state.put(**{name: {**state.groups[name], "rate": rate}})
        return self._learned(state, desk)

    def _learned(self, state: Bundle, desk: Desk) -> tuple[Bundle, dict[str, Any]]:
        """The networks trained on the union, or the first trials of a search by clients; and figures."""
        if self.search == "clients":
            state, losses = self._asked(state, [], desk)
            # something to be scored until clients have said what is best
            return state.put(model=next(iter(networks(state).values()))), {"loss": losses}
        recipe, figures = self._recipe(state), dict[str, Any]()
        if self.search == "union":
            trials = choose(
                self.models(state)[GLOBAL],
                self._union(state),
                recipe,
                self.search_over,
                trials=self.trials,
                at_once=self.at_once,
                share=self.holdout,
                desk=desk.at("search"),
            )
            recipe = recipe_of(recipe, foremost(trials).params)
            figures = {"search": shown(trials), "recipe": _found(recipe)}
        state, losses = self._train(state, list(self._all()), recipe, desk)
        return state, {**figures, "loss": losses}

    def _asked(self, state: Bundle, done: Sequence[Trial], desk: Desk) -> tuple[Bundle, dict[str, float]]:
        """The state with the networks of the next trials; with none, the search is over."""
        start = Trained(self.world.architecture, state.groups[START])
        return ask(
            state,
            done,
            start,
            self._union(state),
            self._recipe(state),
            self.search_over,
            trials=self.trials,
            at_once=self.at_once,
            desk=desk.at("search"),
        )

    def _union(self, state: Bundle) -> Shard:
        """All sets that were kept."""
        return join_sets(state.members("synthetic"), self.world)

    def _train(
        self, state: Bundle, names: Sequence[str], recipe: Recipe, desk: Desk
    ) -> tuple[Bundle, dict[str, float]]:
        """The networks of these names, from where they are in the state, on the union."""
        models = self.models(state)
        lessons = [
            Lesson(
                name, models[name], recipe, Desk(desk.seed.at("train", name), device=desk.device, progress=desk.steps)
            )
            for name in names
        ]
        done = study(self._union(state), lessons, desk)
        tensors = {_group(name): fitted.tensors for name, fitted in done.items()}
        return state.put(**tensors), {name: fitted.losses[-1] for name, fitted in done.items()}

    def _recipe(self, state: Bundle) -> Recipe:
        return Recipe(
            epochs=self.global_epochs,
            lr=state.numbers["rate"] if self.global_lr == "learned" else self.global_lr,
            batch=self.global_batch,
            momentum=self.global_momentum,
            decay=self.global_decay,
            augmentation=Augmentation.parse(self.global_augmentation, key="algorithm.global_augmentation"),
            drop=self.global_drop,
            optimiser=self.global_optimiser,
        )

    # --- parts ---------------------------------------------------------------------------------------------------

    def _check(self) -> None:
        """All that can be refused, before a client works."""
        for key in ("expert_augmentation", "augmentation", "global_augmentation"):
            Augmentation.parse(getattr(self, key), key=f"algorithm.{key}")
        if self.latest - 1 + self.span > self.expert_epochs:
            raise InputError(
                f"algorithm.latest = {self.latest}: a student that starts after {self.latest - 1} epochs and makes "
                f"{self.span} needs experts of {self.latest - 1 + self.span}, and algorithm.expert_epochs = {self.expert_epochs}"
            )
        if self.search != "none":
            check_search(self.search_over, f"algorithm.search = '{self.search}'")
        if any(choice.title.startswith(TRIAL) for choice in self.global_models):
            raise InputError(
                f"algorithm.global_models: a network called '{TRIAL}…' would be taken for a trial of the search"
            )
        drawn = self.start == "draw"
        if drawn != (self.generator != "pixels"):
            raise InputError(
                f"algorithm.start = '{self.start}': "
                + (
                    "pixels alone draw nothing but noise; name a prior as algorithm.generator, or use start = 'noise'"
                    if drawn
                    else f"images of the prior '{self.generator}' begin where it draws them; use start = 'draw'"
                )
            )
        space_of(generator_of(self.world, self.generator, prior_classes=self.prior_classes), self.generator, self.space)
        for name, architecture in self._all().items():
            if name != GLOBAL:
                architecture.check()
        check_privacy(self)

    def _all(self) -> dict[str, Architecture]:
        return {GLOBAL: self.world.architecture} | global_networks(self.world, self.global_models, GLOBAL)


def _found(recipe: Recipe) -> dict[str, Any]:
    """What a search has found, under the names of the options that it stands for."""
    return {
        "global_optimiser": recipe.optimiser,
        "global_lr": recipe.lr,
        "global_epochs": recipe.epochs,
        "global_augmentation": recipe.augmentation.text,
    }


def _group(name: str) -> str:
    return "model" if name == GLOBAL else f"model:{name}"
