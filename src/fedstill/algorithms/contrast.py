"""Local training that is held together in feature space: MOON and FedProto.

Both are FedAvg with one more loss term on the features before the classifier, ψ(x).

**MOON** (Li, He, Song, "Model-Contrastive Federated Learning", CVPR 2021, Algorithm 1):

    client:  L = CE(x, y) + μ ℓ_con(ψ(x), ψ_glob(x), ψ_prev(x))                                        (Eq. 3–4)

ψ_glob is the network that arrived, ψ_prev the one that this client sent the last time it was asked; both are frozen, in
evaluation mode, and see the images of the step as ψ does. A client that is asked for the first time has no ψ_prev and trains
as in FedAvg: with ψ_prev = ψ_glob the term is a constant. In the paper ψ ends in a projection head of two layers, which are a
part of the network that classifies; here ψ is that of the network as it is, so that methods train one and the same network.

Symbols: μ ``mu``, τ ``temperature``; ψ_prev lies in the client's memory as ``model:previous``.

**FedProto** (Tan et al., "FedProto: Federated Prototype Learning across Heterogeneous Clients", AAAI 2022, Algorithm 1):

    client:  L = CE(x, y) + λ d(ψ(x), C̄_y)                                                              (Eq. 7–8)
             C_i,k = mean of ψ(x) over its n_i,k images of class k, after training                       (Eq. 3)
    server:  C̄_k = Σ_i n_i,k C_i,k / Σ_i n_i,k                                                           (Eq. 6)

Symbols: λ ``weight``, C̄ the ``prototypes`` group's ``means``, n_i,k a reply's ``counts``.

Where paper and released code differ, and what is done here:

* mean over clients: Eq. 6 [paper] divides by the number of clients once more, so that prototypes would shrink with it; the code
  takes the plain mean over clients. Here it is weighted by n_i,k, with weights that sum to 1, as in the paper's analysis.
* d: the text of the paper says "L2", between local and global prototypes, its analysis ‖ψ(x) − C̄‖², image by image. Here it is
  the code's: the mean squared difference a coordinate, image by image, an image whose class has no prototype adding 0 to the
  mean. Of d coordinates it is 1/d of the analysis's; the published λ are those of the code.
* C_i,k: the code averages features as they pass by in the last epoch's steps. Here, as in Eq. 3, they are those of the trained
  network, clean images in evaluation mode.
* networks: both leave them with their clients, which may differ. Here they are averaged as in FedAvg, so that there is one
  network to compare.

What the server knows is scored twice: ``global`` by the network's own classifier, and ``prototypes`` by the nearest prototype,
argmin_k ‖ψ(x) − C̄_k‖.

A class that no client of a round holds keeps its prototype. A class that none has held yet pulls nothing and is never the
nearest; so a client lacks what classes it may.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field

from fedstill.algorithms.averaging import BatchSize, Decay, Epochs, FedAvg, Momentum, Norms, Rate
from fedstill.algorithms.replies import Sieve
from fedstill.algorithms.robust import Hostile, Rule
from fedstill.bundle import Bundle, Group
from fedstill.data.shard import Shard, hard_labels
from fedstill.losses import model_contrast, prototype_distance
from fedstill.models.architecture import Network
from fedstill.models.heads import LinearHead, linear_head
from fedstill.rounds import Desk, Outcome, Reply, Site, Trained, World
from fedstill.train import Batch, Extra, embed

__all__ = ["MOON", "FedProto"]

PREVIOUS = "model:previous"
NEVER = -1e30  # the logit of a class without a prototype: finite, for a model file holds nothing else


@dataclass(frozen=True, kw_only=True)
class MOON:
    """Model-contrastive learning. Defaults are the paper's for CIFAR-10."""

    world: World
    mu: Annotated[
        float, Field(ge=0, description="weight of the term [paper: 5 on CIFAR-10, 1 on CIFAR-100 and Tiny-ImageNet]")
    ] = 5.0
    temperature: Annotated[float, Field(gt=0, description="of the term [paper]")] = 0.5
    epochs: Epochs = 10
    lr: Rate = 0.01
    batch: BatchSize = 64
    momentum: Momentum = 0.9
    decay: Decay = 1e-5
    norms: Norms = "average"
    rule: Rule = "mean"
    hostile: Hostile = None

    def init(self, clients: Sequence[str], desk: Desk) -> Bundle:
        return FedAvg.ruled(self).init(clients, desk)

    @property
    def needs_replies(self) -> tuple[int, str]:
        """As :attr:`FedAvg.needs_replies`."""
        return FedAvg.ruled(self).needs_replies

    def task(self, state: Bundle) -> str | None:
        return "local"

    def broadcast(self, state: Bundle, client: str) -> Bundle:
        return FedAvg.of(self).broadcast(state, client)

    def local(self, inbox: Bundle, site: Site, memory: Bundle, desk: Desk) -> tuple[Bundle, Bundle]:
        averaging = FedAvg.of(self)
        extra = None
        if PREVIOUS in memory.groups:
            previous = Trained(self.world.architecture, memory.groups[PREVIOUS])
            received = averaging.received(inbox, memory)
            extra = self._term(*(each.module().to(desk.device).eval() for each in (received, previous)))
        visit = averaging.train(inbox, site.train, memory, desk, extra=extra)
        return visit.reply, visit.memory.put(**{PREVIOUS: visit.fitted.tensors})

    def score(self, inbox: Bundle, site: Site, memory: Bundle, desk: Desk) -> Bundle:
        return FedAvg.of(self).score(inbox, site, memory, desk)

    def aggregate(self, state: Bundle, replies: Iterable[Reply], desk: Desk) -> Outcome:
        return FedAvg.ruled(self).aggregate(state, replies, desk)

    def models(self, state: Bundle) -> Mapping[str, Trained]:
        return FedAvg.of(self).models(state)

    def _term(self, received: Network, previous: Network) -> Extra:
        def term(batch: Batch) -> torch.Tensor:
            with torch.no_grad():
                anchors = [network.features(batch.images) for network in (received, previous)]
            return self.mu * model_contrast(batch.features, *anchors, temperature=self.temperature)

        return term


@dataclass(frozen=True, kw_only=True)
class FedProto:
    """Prototype learning. Defaults are the paper's (its appendix A)."""

    world: World
    weight: Annotated[float, Field(ge=0, description="lambda [paper: 1 on MNIST and FEMNIST, 0.1 on CIFAR-10]")] = 1.0
    epochs: Epochs = 1
    lr: Rate = 0.01
    batch: BatchSize = 8
    momentum: Momentum = 0.5
    decay: Decay = 0.0
    norms: Norms = "average"

    def init(self, clients: Sequence[str], desk: Desk) -> Bundle:
        """The network, and no prototype yet.

        Raises:
            InputError: the network's ``classify`` is no linear layer; or as :meth:`FedAvg.init`.
        """
        classes = self.world.architecture.classes
        blank = {
            "means": torch.zeros(classes, self._head.width),
            "known": torch.zeros(classes, dtype=torch.bool),
        }
        return FedAvg.of(self).init(clients, desk).put(prototypes=blank)

    def task(self, state: Bundle) -> str | None:
        return "local"

    def broadcast(self, state: Bundle, client: str) -> Bundle:
        return FedAvg.of(self).broadcast(state, client).put(prototypes=state.groups["prototypes"])

    def local(self, inbox: Bundle, site: Site, memory: Bundle, desk: Desk) -> tuple[Bundle, Bundle]:
        term = self._term(inbox.groups["prototypes"], desk.device)
        visit = FedAvg.of(self).train(inbox, site.train, memory, desk, extra=term)
        network = Trained(self.world.architecture, visit.fitted.tensors).module()
        return visit.reply.put(prototypes=_class_means(network, site.train, desk.device)), visit.memory

    def score(self, inbox: Bundle, site: Site, memory: Bundle, desk: Desk) -> Bundle:
        return FedAvg.of(self).score(inbox, site, memory, desk)

    def aggregate(self, state: Bundle, replies: Iterable[Reply], desk: Desk) -> Outcome:
        held = state.groups["prototypes"]
        sent = {"means": held["means"], "counts": held["known"].long()}
        sieve = Sieve(replies, {"model": state.groups["model"], "prototypes": sent}, wrong=_miscounted)
        gathered = _Gathered(held)
        outcome = FedAvg.of(self).aggregate(state, gathered.through(sieve), desk)
        return Outcome(
            outcome.state.put(prototypes=gathered.result()),
            outcome.figures,
            [*sieve.failures, *outcome.failures],
        )

    def models(self, state: Bundle) -> Mapping[str, Trained]:
        """``global``, and ``prototypes``: the same features, classified by the nearest prototype.

        −‖f − C_k‖² and 2 C_k · f − ‖C_k‖² differ by what all classes have in common, so it is a network of the same
        architecture with another head.
        """
        models = FedAvg.of(self).models(state)
        if not models:  # norms are local: the server holds no whole network
            return {}
        means, known = state.groups["prototypes"]["means"], state.groups["prototypes"]["known"]
        bias = torch.where(known, -means.square().sum(1), NEVER)
        nearest = self._head.put(state.groups["model"], 2 * means, bias)
        return {**models, "prototypes": Trained(self.world.architecture, nearest)}

    @property
    def _head(self) -> LinearHead:
        return linear_head(self.world.architecture, wanted_for="a classifier of prototypes")

    def _term(self, prototypes: Group, device: str) -> Extra:
        means, known = prototypes["means"].to(device), prototypes["known"].to(device)

        def term(batch: Batch) -> torch.Tensor:
            labels = hard_labels(batch.labels)
            return self.weight * prototype_distance(batch.features, labels, means, known)

        return term


def _class_means(network: Network, shard: Shard, device: str) -> Group:
    """Mean features of the images of every class, clean, in evaluation mode; zeros for a class without images.

    A soft label counts for its largest entry.
    """
    labels = hard_labels(shard.labels)
    counts = torch.tensor(shard.histogram())
    held = {
        label: embed(network, shard.take((labels == label).nonzero()[:, 0]), device=device).double().mean(0)
        for label in counts.nonzero()[:, 0].tolist()
    }
    blank = torch.zeros_like(next(iter(held.values())))
    means = torch.stack([held.get(label, blank) for label in range(len(counts))])
    return {"means": means.float(), "counts": counts}


def _miscounted(reply: Bundle) -> str | None:
    counts = reply.groups["prototypes"]["counts"]
    if counts.min() < 0 or counts.double().sum() != reply.numbers["examples"]:  # no int: sums may wrap
        return "its images by class do not add up to its examples"
    return None


class _Gathered:
    """Prototypes of the replies that pass through, folded in float64 one at a time."""

    def __init__(self, held: Group) -> None:
        self._held = held
        self._sums = held["means"].double() * 0
        self._counts = held["known"].long() * 0

    def through(self, replies: Iterable[Reply]) -> Iterator[Reply]:
        for reply in replies:
            means, counts = (reply.bundle.groups["prototypes"][name] for name in ("means", "counts"))
            self._sums = self._sums + means.double() * counts.unsqueeze(1)
            self._counts = self._counts + counts
            yield reply

    def result(self) -> Group:
        """Of a class that nobody brought: what was held before."""
        brought = self._counts > 0
        means = self._sums / self._counts.clamp_min(1).unsqueeze(1)
        return {
            "means": torch.where(brought.unsqueeze(1), means.float(), self._held["means"]),
            "known": self._held["known"] | brought,
        }
