"""FedLGD (Huang et al., "Federated Learning on Virtual Heterogeneous Data with Local-Global Dataset Distillation", TMLR,
Algorithm 1).

Clients train on virtual images of their own, D^c, and are drawn together by virtual images that all share, D^g.

    before        client:  D^c by distribution matching with random networks (:mod:`fedstill.algorithms.virtual`)
    t in τ        client:  move D^c on, ``match_steps`` steps, ψ of the network that arrived;  train on CE(D^c)
                  server:  θ' ← mean of the clients' θ_c;  ḡ ← mean of (θ − θ_c) / η
                           move D^g, ``distill_steps`` steps, towards ∇CE(D^g; θ) ∥ ḡ       (:mod:`fedstill.distill.gradient`)
    t not in τ    client:  train on CE(D^c ∪ D^g) + λ R(ψ; batch, D^g)                      (Eq. 2–4)
                  server:  θ' ← mean of the clients' θ_c

R is the supervised contrastive loss over the batch and D^g together, each image once, on ψ scaled to length 1, without a
projection head; or (``regulariser = "mmd"``) the squared maximum mean discrepancy between ψ of the batch's own images and of D^g.

Symbols: τ ``selected``, λ ``weight``, η ``lr``, θ the ``model`` group, D^g the ``synthetic:global`` group of the server's state,
images a class of D^g ``global_ipc``, of D^c ``virtual.ipc``; ψ the features before the classifier. Rounds are counted from 1: the
paper's τ = {0, 5, …, 45} is our {1, 6, …, 46}.

What travels. To clients: θ, and D^g in the rounds that train on it. From clients: θ_c, or with ``average = "gradients"`` its
change as a gradient; the number of real images and the mean training loss; in selected rounds five numbers that say how moving
D^c went (three matching losses, on real images, and the least and the largest pixel of D^c), and with ``selected_training =
"both"`` a gradient more. D^c stays in the client's memory.

Where paper [P] and released code [C] differ, or leave something open:

* D^g that was never matched is noise, and is neither sent nor trained on: with τ empty this is FedAvg on initial virtual data.
* In selected rounds clients train on D^c alone [P] or on D^c ∪ D^g [C]: ``selected_training``. In the latter case θ − θ_c holds
  the gradient of D^g itself, which D^g would then be matched to; so clients send what D^c contributed along their way, the sum
  over the steps of the gradients of its images' share of the loss (``gradient:own``), and ḡ is the mean of these.
* ∇CE(D^g) is taken at the weights that were sent ([C], and the order of Algorithm 1), or at the new ones (the constraint after
  Eq. 6): ``match_at``.
* The mean is of weights [C] or of gradients [P]: ``average``. Of K local steps the latter is (θ − θ_c) / (K η), and the server
  takes one step of size ``server_lr``: with one local step both are the same.
* L_con is a mean over anchors [C] or a sum [P]: ``reduction``. The mean keeps λ in one unit whatever the batch.
* D^g begins as noise [P]. The code averages the clients' class statistics, which tells the server of them; it is not offered.
* The code ends a class that a client lacks with an error. Here ``virtual.missing`` says what becomes of it.

* Clients count equally in the mean [P]. Where they hold different classes, methods on virtual images (``[virtual]``) weigh them
  by the size of D^c instead: ``weighting = "own"`` does the same here, to compare like with like.

Most of a local step is R with D^g in full. Little of it can be saved exactly: D^g's features move with θ, and R's gradient goes
through all of them; only D^g's images in the batch need no second pass. ``anchors = "kept"`` is another R: for the others it
takes the features that they had when they were last in a batch (before: of the network that arrived, in evaluation mode), without
a gradient. R then pulls the batch to where D^g was up to one epoch ago, and pushes D^g's own features only where they are in the
batch. docs/results/fedlgd.md has what that saves, and what it costs.

The discrepancy R of the ablation has a Gaussian kernel whose σ is the median distance among the features of batch and D^g, anew
at each step, and keeps the terms of an image with itself.

BatchNorm is refused. The clients' θ − θ_c comes of batch statistics, ∇CE(D^g) has none of the same kind to be compared with, and
random networks, in which D^c begins, have seen no image to normalise by.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Annotated, Any, Literal

import torch
from pydantic import AfterValidator, ConfigDict, Field

from fedstill.algorithms.anchors import Anchors, Contribution
from fedstill.algorithms.averaging import BatchSize, Decay, Epochs, FedAvg, Momentum, Rate, figures
from fedstill.algorithms.protection import remark, said, spent, steps_of, told, unsaid
from fedstill.algorithms.replies import Mean, Sieve
from fedstill.algorithms.union import shard_of
from fedstill.algorithms.virtual import VIRTUAL, VirtualSettings, own_set, remember
from fedstill.bundle import Bundle, Group
from fedstill.data.shard import Shard
from fedstill.distill.canvas import Canvas
from fedstill.distill.distribution import NearbyNetworks, draw_near, has_batch_norm
from fedstill.distill.gradient import GradientMatcher
from fedstill.distill.health import Health, descend
from fedstill.distill.virtual import canvas_of
from fedstill.errors import InputError
from fedstill.generators.pixels import Pixels
from fedstill.privacy import Guarantee
from fedstill.rounds import Desk, Outcome, Reply, Site, Trained, World
from fedstill.train import Extra

__all__ = ["GLOBAL", "FedLGD", "Schedule"]

GLOBAL = "synthetic:global"
SHARE = "gradient:own"
SELECTED = "selected"
OWN_COUNT = "virtual"
_MATCHING = ("start", "end", "best", "pixel_min", "pixel_max")


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """``count`` rounds: ``first``, ``first`` + ``every``, …"""

    __pydantic_config__ = ConfigDict(extra="forbid")

    count: Annotated[int, Field(ge=0)] = 10
    every: Annotated[int, Field(ge=1)] = 5
    first: Annotated[int, Field(ge=1)] = 1

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.first, self.first + self.count * self.every, self.every))

    def __contains__(self, number: int) -> bool:
        place, rest = divmod(number - self.first, self.every)
        return rest == 0 and 0 <= place < self.count


def _once(selected: Schedule | tuple[int, ...]) -> Schedule | tuple[int, ...]:
    """Each round of a list once, rising: one τ has one spelling."""
    return selected if isinstance(selected, Schedule) else tuple(sorted(set(selected)))


@dataclass(frozen=True, kw_only=True)
class FedLGD:
    """FedLGD. Defaults are the paper's for DIGITS or, where marked, the released code's."""

    world: World
    virtual: VirtualSettings = field(default_factory=VirtualSettings)
    selected: Annotated[
        Schedule | tuple[Annotated[int, Field(ge=1)], ...],
        AfterValidator(_once),
        Field(description="tau: rounds, from 1, as a list or by rule [paper: 10, every 5th, from the first]"),
    ] = field(default_factory=Schedule)
    # clients
    epochs: Epochs = 1
    lr: Rate = 0.01
    batch: BatchSize = 32
    momentum: Momentum = 0.0
    decay: Decay = 0.0
    selected_training: Annotated[
        Literal["own", "both"],
        Field(description="in selected rounds: own = on D^c [paper], both = on D^c and D^g [code]"),
    ] = "own"
    match_steps: Annotated[int, Field(ge=0, description="steps on D^c in a selected round [paper]")] = 100
    # the regulariser
    regulariser: Annotated[
        Literal["contrast", "mmd", "none"],
        Field(description="R, that draws clients to D^g: contrast [paper], mmd [its ablation], or none"),
    ] = "contrast"
    weight: Annotated[float, Field(ge=0, description="lambda, of R [paper: 10 on DIGITS, 1 on CIFAR10-C]")] = 10.0
    temperature: Annotated[float, Field(gt=0, description="of the contrast [paper]")] = 0.07
    reduction: Annotated[
        Literal["mean", "sum"], Field(description="of the contrast over anchors: mean [code], sum [paper]")
    ] = "mean"
    anchors: Annotated[
        Literal["exact", "kept"],
        Field(
            description="features of D^g in R: exact = with a gradient [paper], kept = of their last batch [ours, faster]"
        ),
    ] = "exact"
    # the server
    average: Annotated[
        Literal["weights", "gradients"], Field(description="what clients send: weights [code], gradients [paper]")
    ] = "weights"
    server_lr: Annotated[
        float | None, Field(gt=0, description="step size on averaged gradients; none: that of clients")
    ] = None
    weighting: Annotated[
        Literal["equal", "own", "examples"],
        Field(description="of clients in the mean: equal [paper], own = by the size of D^c, examples = by real images"),
    ] = "equal"
    global_ipc: Annotated[int, Field(ge=1, description="images a class of D^g [paper]")] = 10
    distill_steps: Annotated[int, Field(ge=0, description="steps on D^g in a selected round [paper]; 0: noise")] = 500
    distill_lr: Annotated[float, Field(gt=0, description="step size of D^g's pixels [paper]")] = 1.0
    distill_momentum: Annotated[float, Field(ge=0, lt=1, description="of SGD on D^g's pixels [paper]")] = 0.5
    match_at: Annotated[
        Literal["old", "new"],
        Field(
            description="weights at which D^g is matched: old = those sent [Algorithm 1, code], new = the mean [Eq. 6]"
        ),
    ] = "old"
    chunk: Annotated[
        int, Field(ge=1, description="images of D^g whose graph is held at a time; more images take one pass more")
    ] = 100

    def init(self, clients: Sequence[str], desk: Desk) -> Bundle:
        """The network; there is no D^g yet.

        Raises:
            InputError: ``virtual.use`` is false, the network has BatchNorm, an option could have no effect; or as
                :meth:`VirtualSettings.check`.
        """
        if not self.virtual.use:
            raise InputError("virtual.use = false: FedLGD's clients train on virtual images; remove this key")
        if self.server_lr is not None and self.average == "weights":
            raise InputError(
                f"algorithm.server_lr = {self.server_lr}: averaged weights take no step; use algorithm.average = 'gradients', "
                "or remove this key"
            )
        if has_batch_norm(self.world.architecture):
            raise InputError(
                f"model: '{self.world.architecture.name}' has BatchNorm, whose batch statistics are in the clients' gradients "
                "and in none of D^g's to be matched to them; use another model.norm"
            )
        self.virtual.check(self.world, moving=self._moving)
        return self._averaging.init(clients, desk)

    def task(self, state: Bundle) -> str | None:
        return "local"

    def broadcast(self, state: Bundle, client: str) -> Bundle:
        message = self._averaging.broadcast(state, client)
        selected = self._selects(state)
        if selected:
            message = message.put({SELECTED: 1})
        if GLOBAL in state.groups and (not selected or self.selected_training == "both"):
            message = message.put(**{GLOBAL: state.groups[GLOBAL]})
        return message

    def local(self, inbox: Bundle, site: Site, memory: Bundle, desk: Desk) -> tuple[Bundle, Bundle]:
        own = own_set(self.virtual, site.train, memory, self.world, desk, moving=self._moving)
        numbers: dict[str, float] = {"examples": len(site.train)}
        if self.weighting == "own":
            numbers[OWN_COUNT] = len(own)
        selected = SELECTED in inbox.numbers
        # D^c was made in the first visit, by virtual.steps looks at the images
        looks = steps_of(memory) or self.virtual.steps
        moves = selected and self.match_steps > 0
        if self.virtual.privacy_epsilon is not None and looks + self.match_steps > self.virtual.lasting(self._moving):
            moves = False  # the budget is spent: D^c stays as it is
        looks += self.match_steps if moves else 0
        guarantee = self.virtual.allowed(site.train, steps=looks, moving=self._moving)
        if moves:
            own, health = self._move(own, site.train, inbox, guarantee, desk)
            if health is not None:
                numbers |= {f"matching_{name}": getattr(health, name) for name in _MATCHING}
        if guarantee is not None:
            numbers |= asdict(guarantee)
            memory = spent(memory, looks - steps_of(memory))
        shared = self._shared(inbox)
        lesson = own if shared is None else Shard.join([own, shared])
        share = Contribution(len(own)) if selected and shared is not None else None
        extra = share if selected else self._term(len(own), shared, inbox, memory, desk)
        visit = self._averaging.train(inbox, lesson, memory, desk, extra=extra)
        reply = visit.reply.put(numbers)
        if share is not None:
            reply = reply.put(**{SHARE: share.total})
        if self.average == "gradients":
            reply = self._as_gradient(reply, inbox.groups["model"], visit.fitted.steps)
        return reply, remember(visit.memory, own)

    def score(self, inbox: Bundle, site: Site, memory: Bundle, desk: Desk) -> Bundle:
        return self._averaging.score(inbox, site, memory, desk)

    def aggregate(self, state: Bundle, replies: Iterable[Reply], desk: Desk) -> Outcome:
        clients: dict[str, dict[str, Any]] = {}
        like = self._due(state)
        means = {name: Mean() for name in like}
        weight_by = {"equal": None, "own": OWN_COUNT, "examples": "examples"}[self.weighting]
        counts = ("examples", *((OWN_COUNT,) if weight_by == OWN_COUNT else ()))
        sieve = Sieve(replies, like, counts=counts, wrong=partial(unsaid, self.virtual, table=VIRTUAL))
        for reply in sieve:
            weight = 1.0 if weight_by is None else reply.bundle.numbers[weight_by]
            for name, mean in means.items():
                mean.add(reply.bundle.groups[name], weight)
            private = told(said(self.virtual, reply.bundle, VIRTUAL))
            clients[reply.client] = figures(reply.bundle) | _matching(reply.bundle) | private
        if not clients:
            return Outcome(state, {"clients": clients}, sieve.failures)
        arrived = {name: mean.result() for name, mean in means.items()}
        start = state.groups["model"]
        gradient = arrived.get("gradient")
        new = arrived["model"] if gradient is None else self._stepped(start, arrived.get("model", {}), gradient)
        found: dict[str, Any] = {"clients": clients}
        state = state.put(model=new)
        if self._selects(state):
            began = time.perf_counter()
            target = arrived.get(SHARE) or gradient or self._pseudo_gradient(start, new)
            shared, health = self._distil(state, start if self.match_at == "old" else new, target, desk)
            state = state.put(**{GLOBAL: {"images": shared.images, "labels": shared.labels}})
            found |= {"matching": asdict(health), "seconds": {"distil": time.perf_counter() - began}}
        return Outcome(state, found, sieve.failures)

    def models(self, state: Bundle) -> Mapping[str, Trained]:
        return self._averaging.models(state)

    def remarks(self, rounds: int) -> Sequence[str]:
        """What a user of ``rounds`` rounds may want to know before they begin."""
        selected = list(self.selected)
        late = sum(number > rounds for number in selected)
        found = [] if (private := remark(self.virtual, VIRTUAL)) is None else [private]
        if late:
            found.append(
                f"{late} of {len(selected)} selected rounds lie beyond the run's {rounds}; the last is round {max(selected)}"
            )
        lasts, due = self.virtual.privacy_rounds, len(selected) - late
        if lasts is not None and due > lasts:
            found.append(
                f"virtual.privacy_rounds = {lasts} and {due} rounds are selected: a client that has been in {lasts} of them "
                "leaves its virtual images as they are in a further one"
            )
        return tuple(found)

    # --- a client ------------------------------------------------------------------------------------------------

    def _move(
        self, own: Shard, real: Shard, inbox: Bundle, guarantee: Guarantee | None, desk: Desk
    ) -> tuple[Shard, Health | None]:
        """Iterative distribution matching: D^c on, with ψ of the network that arrived."""
        network = Trained(self.world.architecture, inbox.groups["model"]).module().to(desk.device)
        matcher = self.virtual.matcher(NearbyNetworks(network), real, guarantee, device=desk.device)
        canvas = canvas_of(own, lr=self.virtual.lr, momentum=self.virtual.momentum, device=desk.device)
        seed, progress = desk.seed.at("match"), partial(desk.progress, "distil")
        health = draw_near(canvas, matcher, steps=self.match_steps, seed=seed, progress=progress)
        return canvas.shard(self.world.classes), health

    def _shared(self, inbox: Bundle) -> Shard | None:
        """D^g, where it arrived."""
        group = inbox.groups.get(GLOBAL)
        return None if group is None else shard_of(group, self.world)

    def _term(self, own: int, shared: Shard | None, inbox: Bundle, memory: Bundle, desk: Desk) -> Extra | None:
        """λ R; None where it is nothing."""
        if shared is None or self.regulariser == "none" or self.weight == 0:
            return None
        return Anchors(
            shared=shared.to(desk.device).whitened(),
            own=own,
            kind=self.regulariser,
            features=self.anchors,
            weight=self.weight,
            temperature=self.temperature,
            reduction=self.reduction,
            received=self._averaging.received(inbox, memory).module().to(desk.device).eval(),
        )

    def _as_gradient(self, reply: Bundle, start: Group, steps: int) -> Bundle:
        """The reply with a mean gradient in place of weights; buffers have none and stay."""
        end = reply.groups["model"]
        names = self._averaging.trained_names(Bundle().put(model=start))
        gradient = _slope(start, end, names, steps * self.lr)
        buffers = {name: tensor for name, tensor in end.items() if name not in gradient}
        reply = reply.drop("model").put(gradient=gradient)
        return reply.put(model=buffers) if buffers else reply

    # --- the server ----------------------------------------------------------------------------------------------

    def _due(self, state: Bundle) -> dict[str, Group]:
        """The groups that a reply holds, as they should look."""
        model = state.groups["model"]
        trained = {name: model[name] for name in self._averaging.trained_names(state)}
        due: dict[str, Group] = {"model": model}
        if self.average == "gradients":
            buffers = {name: tensor for name, tensor in model.items() if name not in trained}
            due = {"gradient": trained, **({"model": buffers} if buffers else {})}
        if self._selects(state) and self.selected_training == "both" and GLOBAL in state.groups:
            due[SHARE] = trained
        return due

    def _stepped(self, start: Group, buffers: Group, gradient: Group) -> Group:
        lr = self.lr if self.server_lr is None else self.server_lr
        moved = {
            name: (start[name].double() - lr * slope.double()).to(start[name].dtype) for name, slope in gradient.items()
        }
        return {name: moved[name] if name in moved else buffers[name] for name in start}

    def _pseudo_gradient(self, start: Group, mean: Group) -> Group:
        """ḡ."""
        return _slope(start, mean, self._averaging.trained_names(Bundle().put(model=start)), self.lr)

    def _distil(self, state: Bundle, at: Group, target: Group, desk: Desk) -> tuple[Shard, Health]:
        """D^g, matched to ``target`` at the weights ``at``."""
        device = desk.device
        matcher = GradientMatcher(
            network=Trained(self.world.architecture, at).module().to(device),
            target={name: tensor.to(device) for name, tensor in target.items()},
            chunk=self.chunk,
        )
        canvas = self._canvas(state, desk)
        desk.progress("distil", 0, 1)
        health = descend(
            canvas,
            matcher,
            steps=self.distill_steps,
            seed=desk.seed.at("distil"),
            progress=partial(desk.steps, "distil global"),
        )
        desk.progress("distil", 1, 1)
        assert health is not None  # it was measured
        return canvas.shard(self.world.classes), health

    def _canvas(self, state: Bundle, desk: Desk) -> Canvas:
        """D^g as it was left, or noise."""
        shared = self._shared(state)
        if shared is None:
            architecture = self.world.architecture
            labels = torch.arange(len(self.world.classes)).repeat_interleave(self.global_ipc)
            pixels = Pixels(architecture.channels, architecture.size, self.world.normalisation)
            noise = self.world.normalisation.undo(pixels.draw(labels, desk.seed.at("noise"))["f"])
            shared = Shard(noise, labels, self.world.classes, self.world.normalisation)
        return canvas_of(shared, lr=self.distill_lr, momentum=self.distill_momentum, device=desk.device)

    # --- parts ---------------------------------------------------------------------------------------------------

    @property
    def _moving(self) -> int:
        """Steps in which a client looks at its images in a selected round."""
        return self.match_steps if len(list(self.selected)) else 0

    @property
    def _averaging(self) -> FedAvg:
        return FedAvg(
            world=self.world,
            epochs=self.epochs,
            lr=self.lr,
            batch=self.batch,
            momentum=self.momentum,
            decay=self.decay,
        )

    def _selects(self, state: Bundle) -> bool:
        return int(state.numbers.get("round", 1)) in self.selected


def _slope(start: Group, end: Group, names: Iterable[str], scale: float) -> Group:
    """(start − end) / scale."""
    return {name: ((start[name].double() - end[name].cpu().double()) / scale).to(start[name].dtype) for name in names}


def _matching(reply: Bundle) -> dict[str, Any]:
    """How the client says that moving D^c went, for its line of figures; empty where it says nothing."""
    found = [loss for name in _MATCHING if (loss := reply.numbers.get(f"matching_{name}")) is not None]
    if len(found) < len(_MATCHING):
        return {}
    start, end, best, lowest, highest = found
    return {"matching": asdict(Health(start, end, best, lowest, highest, rate=None))}
