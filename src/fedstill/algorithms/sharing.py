"""Methods whose clients distil their own images and send the result. FedDM (Xiong et al., "FedDM: Iterative Distribution
Matching for Communication-Efficient Federated Learning", CVPR 2023, Algorithm 1).

A client's loss f_k near the weights w_r that it received is to be known at the server: so it sends images S_k on which the loss
is about the same for all w in the ball of radius ρ around w_r, and the server trains on those of all clients.

    client:  S_k ← noise; T times: w ~ N(w_r, I) held within the ball; S_k ← S_k − η ∇ L(w)
             L(w) = Σ_c ‖ mean h_w(D_k,c) − mean h_w(S_k,c) ‖² + ‖ mean z_w(D_k,c) − mean z_w(S_k,c) ‖²
    server:  w_{r+1} ← from w_r, E epochs of SGD on the union of all S_k

with h the features before the classifier and z the logits; means of a batch of class c. :mod:`fedstill.distill.distribution` is
L and the draw of w.

Symbols: T ``match_steps``, η ``lr_images``, ρ ``radius``, E ``global_epochs``, images a class of S_k ``ipc``, w the ``model``
group, S_k the ``synthetic:CLIENT`` groups. ``networks`` and ``logits`` switch to what FedDGM's authors ran under this name:
random networks in the first round, features only. Nothing holds the server's training in the ball: ``moved`` in a round's
figures is how far from w_r it went, to be compared with ρ.

How sure the published values are. T, η, ρ, the real batch of 256, ten images a class, E and the server's batch are those that
a public re-implementation takes, and that a reader of both calls the paper's (github.com/anonymifish/fed-distribution-matching,
issue 1); that features and logits are matched is in its code as well, and so is the momentum of 0.5 on pixels. The paper's own
text was not at hand for this check: ``global_lr`` could not be verified. That code starts from real images, where the default
here is noise, and draws w anew until it falls into the ball, which in so many dimensions never ends; here a draw is shortened to
ρ. Its issue tells of 61 % on CIFAR-10, Dirichlet(0.5), where FedDGM's paper has 68.9 % for FedDM.

BatchNorm. In the ball it has the running statistics of w_r, which in round 1 are still those of no image at all: it then
normalises nothing. Networks with random weights always are in that state, so ``random`` and ``random_first`` refuse it.

A client sends images of the classes of which it has ``least`` real ones, float32, unclamped, in units of the pixel range: one
image is enough, and a batch is never filled up. A client with no such class sends an empty set and is no failure.

Privacy. What is sent are images, and images may show what they were made from; a start from real ones (``start = "real"``) makes
it likely. With a budget (``privacy_epsilon``, to last ``privacy_rounds`` rounds: :mod:`fedstill.algorithms.protection`) the
client sees its images through a Gaussian mechanism alone; ``privacy_noise`` gives that mechanism's σ instead, and ε is what comes
of it. The paper has such a mechanism too; that it acts on clipped features, from which all else follows, is our choice.
:mod:`fedstill.distill.distribution` says what it guarantees and what it does not. A client then tells what it has spent so far,
and sends no matching losses, for each is one more look at the images. The numbers of images (``examples``), the classes, and
validation scores are not covered.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from fedstill.algorithms.agreement import Disagreeing, anew, look
from fedstill.algorithms.averaging import FedAvg
from fedstill.algorithms.protection import (
    COVERS,
    PrivacyDelta,
    PrivacyRounds,
    check_rounds,
    claimed,
    next_round,
    remarks,
    said,
    so_far,
    spent,
    told,
)
from fedstill.algorithms.replies import Sieve
from fedstill.algorithms.union import Course, DistilledSet, global_networks, keep, study, without_ruinous
from fedstill.bundle import Bundle, Group
from fedstill.data.augment import DSA, Augmentation
from fedstill.data.shard import Shard
from fedstill.distill.canvas import Canvas, Strokes
from fedstill.distill.distribution import (
    DistributionMatcher,
    FreshNetworks,
    NearbyNetworks,
    Networks,
    Noise,
    draw_near,
)
from fedstill.distill.health import Health
from fedstill.distill.virtual import some_rows
from fedstill.errors import InputError, RunError
from fedstill.generators.pixels import Pixels
from fedstill.models.architecture import Architecture
from fedstill.models.choice import NetworkChoice
from fedstill.privacy import Guarantee, check_installed
from fedstill.rounds import Desk, Failure, Outcome, Reply, Site, Trained, World
from fedstill.train import Recipe

__all__ = ["FedDM", "received"]

GLOBAL = "global"
_MATCHING = ("start", "end", "best")


@dataclass(frozen=True, kw_only=True)
class FedDM:
    """FedDM. Defaults are the paper's for CIFAR-10 where it states one, and else those with which FedDGM's paper ran it."""

    world: World
    # the images
    ipc: Annotated[int, Field(ge=1, description="images a class that a client sends [paper: 10]")] = 10
    least: Annotated[
        int, Field(ge=1, description="real images that a class must have to be sent [FedDGM's run: 10]")
    ] = 1
    start: Annotated[
        Literal["noise", "real"],
        Field(
            description="where images start each round: N(0, 1) [FedDGM's run], or real ones, which they then may show"
        ),
    ] = "noise"
    # matching
    match_steps: Annotated[int, Field(ge=1, description="T, steps on the images [paper]")] = 1000
    networks: Annotated[
        Literal["ball", "random_first", "random"],
        Field(description="drawn near the received one [paper]; random in round 1 [FedDGM's run]; always random"),
    ] = "ball"
    radius: Annotated[float, Field(ge=0, description="rho, of the ball; 0 is the received network itself [paper]")] = (
        5.0
    )
    logits: Annotated[bool, Field(description="match them beside the features [paper; FedDGM's run: no]")] = True
    real_batch: Annotated[int, Field(ge=1, description="real images a class and step [paper]")] = 256
    augmentation: Annotated[
        str, Field(description="DSA inside matching, one draw a class for real and synthetic [FedDGM's run]; none: off")
    ] = DSA
    lr_images: Annotated[float, Field(gt=0, description="eta, step size of pixels [paper]")] = 1.0
    image_momentum: Annotated[float, Field(ge=0, lt=1, description="of SGD on pixels [FedDGM's run]")] = 0.5
    # differential privacy
    privacy_epsilon: Annotated[
        float | None,
        Field(
            gt=0,
            le=1000,
            description="budget of all rounds of a client together, by noise in matching; none: no budget",
        ),
    ] = None
    privacy_noise: Annotated[
        float, Field(ge=0, description="sigma, that noise itself in units of privacy_clip, without a budget; 0 is off")
    ] = 0.0
    privacy_clip: Annotated[
        float | None, Field(gt=0, description="C, largest norm of an image's features; needed with noise")
    ] = None
    privacy_delta: PrivacyDelta = 1e-5
    privacy_rounds: PrivacyRounds = None
    # the server
    disagreeing: Disagreeing = "keep"
    global_epochs: Annotated[int, Field(ge=1, description="E, epochs on the union [paper; FedDGM's run: 1000]")] = 500
    global_lr: Annotated[float, Field(gt=0, description="step size on the union [paper, not verified]")] = 0.01
    global_batch: Annotated[int, Field(ge=1, description="images a step on the union [paper]")] = 256
    model_momentum: Annotated[float, Field(ge=0, lt=1, description="for the network that travels [FedDGM's run]")] = 0.0
    model_decay: Annotated[float, Field(ge=0, description="for the network that travels [FedDGM's run]")] = 0.0
    global_momentum: Annotated[float, Field(ge=0, lt=1, description="for global_models [FedDGM's run]")] = 0.9
    global_decay: Annotated[float, Field(ge=0, description="for global_models [FedDGM's run]")] = 1e-5
    global_augmentation: Annotated[str, Field(description="DSA on the union; none turns it off [FedDGM's run]")] = DSA
    global_models: Annotated[
        tuple[NetworkChoice, ...],
        Field(description="networks trained on the union beside the one that travels, each a table"),
    ] = ()

    def init(self, clients: Sequence[str], desk: Desk) -> Bundle:
        self._check()
        others = {
            f"model:{name}": architecture.build(desk.seed.at("model", name)).state_dict()
            for name, architecture in self._architectures().items()
        }
        return self._averaging().init(clients, desk).put(**others)

    def task(self, state: Bundle) -> str | None:
        return "local"

    def broadcast(self, state: Bundle, client: str) -> Bundle:
        return Bundle().put({"round": state.numbers.get("round", 1)}, model=state.groups["model"])

    def local(self, inbox: Bundle, site: Site, memory: Bundle, desk: Desk) -> tuple[Bundle, Bundle]:
        if len(site.train) == 0:
            raise RunError("the client has no training image")
        numbers: dict[str, float] = {"examples": len(site.train)}
        classes = [k for k, count in enumerate(site.train.histogram()) if count >= self.least]
        if not classes:
            shape = (0, self.world.architecture.channels, *self.world.architecture.size)
            nothing = {"images": torch.empty(shape), "labels": torch.empty(0, dtype=torch.int64)}
            return Bundle().put(numbers, synthetic=nothing), memory
        canvas = self._canvas(site.train, classes, desk)
        matcher = DistributionMatcher(
            networks=self._networks(inbox, desk.device),
            real=site.train.to(desk.device).whitened(),
            batch=self.real_batch,
            augmentation=Augmentation.parse(self.augmentation, key="algorithm.augmentation"),
            logits=self.logits,
        )
        guarantee = self._guarantee(matcher, classes, memory)
        if guarantee is not None:
            assert self.privacy_clip is not None  # as it was checked
            matcher = replace(matcher, noise=Noise(self.privacy_clip, guarantee.noise))
            numbers |= asdict(guarantee)
            memory = spent(memory, self.match_steps)
        progress = partial(desk.progress, "distil")
        health = draw_near(canvas, matcher, steps=self.match_steps, seed=desk.seed.at("match"), progress=progress)
        if health is not None:
            numbers |= {f"matching_{name}": getattr(health, name) for name in _MATCHING}
        synthetic = canvas.shard(self.world.classes)
        return Bundle().put(numbers, synthetic={"images": synthetic.images, "labels": synthetic.labels}), memory

    def score(self, inbox: Bundle, site: Site, memory: Bundle, desk: Desk) -> Bundle:
        return self._averaging().score(inbox, site, memory, desk)

    def aggregate(self, state: Bundle, replies: Iterable[Reply], desk: Desk) -> Outcome:
        sieve = Sieve(replies, {})
        clients: dict[str, dict[str, Any]] = {}
        sets: list[DistilledSet] = []
        failures: list[Failure] = []
        for reply in sieve:
            try:
                synthetic = received(reply.bundle.groups.get("synthetic", {}), self.world, ipc=self.ipc)
                guarantee = self._said(reply.bundle) if len(synthetic) else None
            except InputError as error:
                failures.append(Failure(reply.client, str(error)))
                continue
            done = DistilledSet(reply.client, synthetic, {}, _health(reply.bundle.numbers, synthetic))
            clients[reply.client] = done.figures(reply.bundle) | {"synthetic": len(synthetic)} | told(guarantee)
            if len(synthetic):
                sets.append(done)
        arrived = time.perf_counter()
        figures: dict[str, Any] = {}
        before = state.groups["model"]
        at = desk.at("agreement")
        looked = look(self.disagreeing, sets, anew(self.world.architecture, at), self._recipe(GLOBAL), at)
        failures += looked.failures
        clients = {client: line | looked.figures.get(client, {}) for client, line in clients.items()}
        if looked.kept:
            (state, figures["loss"]), ruinous = without_ruinous(looked.kept, partial(self._taught, state, desk))
            failures += ruinous
            clients = {
                client: line for client, line in clients.items() if client not in {each.client for each in ruinous}
            }
        else:
            state = keep(state, [])
        figures |= {"clients": clients}
        figures["union"] = sum(len(each.synthetic) for each in looked.kept if each.client in clients)
        figures["moved"] = self._distance(before, state.groups["model"])
        figures["seconds"] = {"train": time.perf_counter() - arrived}
        return Outcome(state, figures, [*sieve.failures, *failures])

    def remarks(self, rounds: int) -> Sequence[str]:
        """What a user of ``rounds`` rounds may want to know before they begin."""
        if self.privacy_noise:
            return (
                f"algorithm.privacy_noise = {self.privacy_noise:g} {COVERS}; there is no budget: epsilon grows with every round, "
                "and no client refuses",
            )
        return remarks(self, rounds)

    def models(self, state: Bundle) -> Mapping[str, Trained]:
        others = state.members("model")
        return {GLOBAL: Trained(self.world.architecture, state.groups["model"])} | {
            name: Trained(architecture, others[name]) for name, architecture in self._architectures().items()
        }

    # --- a client ------------------------------------------------------------------------------------------------

    def _canvas(self, real: Shard, classes: Sequence[int], desk: Desk) -> Canvas:
        """``ipc`` images of each of ``classes``."""
        labels = torch.tensor(classes, dtype=torch.int64).repeat_interleave(self.ipc)
        architecture = self.world.architecture
        pixels = Pixels(architecture.channels, architecture.size, self.world.normalisation.to(desk.device))
        first = None
        if self.start == "real":
            first = {"f": real.inputs(some_rows(real, classes, self.ipc, desk.seed.at("start"))).to(desk.device)}
        return Canvas.draw(
            pixels,
            pixels.depth,
            labels.to(desk.device),
            normalisation=self.world.normalisation,
            strokes=Strokes(features=self.lr_images, styles=0.0, rate=0.0, momentum=self.image_momentum),
            rate=0.0,
            seed=desk.seed.at("start"),
            latent=first,
        )

    def _networks(self, inbox: Bundle, device: str) -> Networks:
        first = inbox.numbers["round"] == 1
        if self.networks == "random" or (self.networks == "random_first" and first):
            return FreshNetworks(self.world.architecture, device)
        centre = Trained(self.world.architecture, inbox.groups["model"]).module().to(device)
        return NearbyNetworks(centre, self.radius)

    def _guarantee(self, matcher: DistributionMatcher, classes: Sequence[int], memory: Bundle) -> Guarantee | None:
        """What the client will have spent after this round; None where nothing is to be private."""
        look, images = matcher.look(classes, self.match_steps), len(matcher.real)
        if not self.privacy_noise:
            return next_round(self, look, images=images, memory=memory)
        return so_far(self.privacy_noise, self.privacy_delta, look, images=images, memory=memory)

    # --- the server ----------------------------------------------------------------------------------------------

    def _taught(self, state: Bundle, desk: Desk, sets: Sequence[DistilledSet]) -> tuple[Bundle, dict[str, float]]:
        return self._train(keep(state, sets), Shard.join([each.synthetic for each in sets]), desk)

    def _train(self, state: Bundle, union: Shard, desk: Desk) -> tuple[Bundle, dict[str, float]]:
        courses = [
            Course(
                name,
                trained,
                self._recipe(name),
                Desk(desk.seed.at("train", name), device=desk.device, progress=desk.steps),
            )
            for name, trained in self.models(state).items()
        ]
        done = study(union, courses, desk)
        tensors = {"model" if name == GLOBAL else f"model:{name}": fitted.tensors for name, fitted in done.items()}
        return state.put(**tensors), {name: fitted.losses[-1] for name, fitted in done.items()}

    def _recipe(self, name: str) -> Recipe:
        mine = name == GLOBAL
        return Recipe(
            epochs=self.global_epochs,
            lr=self.global_lr,
            batch=self.global_batch,
            momentum=self.model_momentum if mine else self.global_momentum,
            decay=self.model_decay if mine else self.global_decay,
            augmentation=Augmentation.parse(self.global_augmentation, key="algorithm.global_augmentation"),
        )

    def _distance(self, before: Group, after: Group) -> float:
        """‖w_{r+1} − w_r‖ over all parameters; buffers have no place in the ball."""
        names = self._averaging().trained_names(Bundle().put(model=before))
        return math.sqrt(sum((after[name].double() - before[name].double()).square().sum().item() for name in names))

    def _said(self, reply: Bundle) -> Guarantee | None:
        """What a stranger says that it has spent.

        Raises:
            InputError: it does not say it, or went beyond the budget.
        """
        return claimed(reply) if self.privacy_noise else said(self, reply)

    # --- parts ---------------------------------------------------------------------------------------------------

    def _check(self) -> None:
        """All that can be refused, before a client works."""
        for key in ("augmentation", "global_augmentation"):
            Augmentation.parse(getattr(self, key), key=f"algorithm.{key}")
        for architecture in self._architectures().values():
            architecture.check()
        if self.networks != "ball":
            FreshNetworks(self.world.architecture).check()
        self._check_privacy()

    def _check_privacy(self) -> None:
        check_rounds(self)
        if self.privacy_epsilon is None and not self.privacy_noise:
            if self.privacy_clip is not None:
                raise InputError(
                    f"algorithm.privacy_clip = {self.privacy_clip:g}: there is no noise, and nothing is clipped; set "
                    "algorithm.privacy_epsilon or algorithm.privacy_noise, or leave it out"
                )
            return
        check_installed()
        if self.privacy_epsilon is not None and self.privacy_noise:
            raise InputError(
                f"algorithm.privacy_epsilon = {self.privacy_epsilon:g}: the noise is found for it, and algorithm.privacy_noise = "
                f"{self.privacy_noise:g} sets another; leave one of them out"
            )
        place = (
            f"algorithm.privacy_noise = {self.privacy_noise:g}"
            if self.privacy_noise
            else f"algorithm.privacy_epsilon = {self.privacy_epsilon:g}"
        )
        if self.privacy_clip is None:
            raise InputError(f"{place}: noise is in units of the clipping norm; set algorithm.privacy_clip")
        if self.start == "real":
            raise InputError(
                "algorithm.start = 'real': images that start from real ones are not private, whatever the noise; "
                "use algorithm.start = 'noise'"
            )

    def _averaging(self) -> FedAvg:
        return FedAvg(world=self.world)

    def _architectures(self) -> dict[str, Architecture]:
        return global_networks(self.world, self.global_models, GLOBAL)


FARTHEST_SENT = 1e6
"""How far from mid-grey a pixel that arrives may lie, in pixel ranges. Step sizes far too large, with no further attempt, take
pixels to thousands, and normalising networks can still learn from them; what lies beyond could only end the server's training."""


def received(group: Group, world: World, *, ipc: int, kind: torch.dtype = torch.float32) -> Shard:
    """The labelled images of a client's reply, which is a stranger's: of this kind, at most ``ipc`` a class, maybe none.

    Raises:
        InputError: they are no such images.
    """
    images, labels = group.get("images"), group.get("labels")
    if images is None or labels is None or len(group) != 2:
        raise InputError(f"its synthetic set holds {sorted(group)} where 'images' and 'labels' are due")
    shape = (world.architecture.channels, *world.architecture.size)
    if images.dtype != kind or images.dim() != 4 or tuple(images.shape[1:]) != shape:
        raise InputError(
            f"its synthetic images are {images.dtype} {list(images.shape)} where {kind} [n, "
            f"{', '.join(map(str, shape))}] is due"
        )
    if labels.dtype != torch.int64 or labels.shape != images.shape[:1]:
        raise InputError(
            f"its synthetic labels are {labels.dtype} {list(labels.shape)} where torch.int64 [{len(images)}] is due"
        )
    classes = len(world.classes)
    if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < classes:
        raise InputError(f"its synthetic labels are not all of 0 to {classes - 1}")
    if len(labels) and int(torch.bincount(labels).max()) > ipc:
        raise InputError(f"its synthetic set holds more than {ipc} images of a class")
    if images.is_floating_point() and len(images) and not (farthest := _farthest(images)) <= FARTHEST_SENT:
        raise InputError(f"its images are none: a pixel lies {farthest:.3g} pixel ranges from mid-grey")
    return Shard(images, labels, world.classes, world.normalisation)


def _farthest(images: Tensor) -> float:
    """From mid-grey, in pixel ranges."""
    return (images.double() - 0.5).abs().max().item()


def _health(numbers: Mapping[str, float], synthetic: Shard) -> Health | None:
    """How the client says its matching went; None where it says nothing."""
    found = [numbers.get(f"matching_{name}") for name in _MATCHING]
    losses = [loss for loss in found if loss is not None]
    if len(losses) < len(_MATCHING) or len(synthetic) == 0:
        return None
    start, end, best = losses
    lowest, highest = synthetic.images.min().item(), synthetic.images.max().item()
    return Health(start, end, best, lowest, highest, rate=None)
