"""FedAvg: Federated Averaging (McMahan et al., AISTATS 2017, Algorithm 1).

    client:  w_k ← w_t, E epochs of SGD with batches of B on its own n_k images
    server:  w_{t+1} = Σ_k (n_k / n) w_k,    n = Σ n_k over the clients that replied

Symbols: w ``model``, E ``epochs``, B ``batch``, n_k ``examples``, η ``lr``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated

from pydantic import Field
from torch import Tensor

from fedstill.bundle import Bundle, Group
from fedstill.rounds import Desk, Failure, Outcome, Reply, Site, Trained, World
from fedstill.scores import OWN_TEST, score
from fedstill.train import Recipe, fit

__all__ = ["MISFIT", "FedAvg", "Mean", "fits"]

MISFIT = "its reply holds no model of the shapes that were sent"


class Mean:
    """A weighted mean of groups, folded one at a time in float64: a thousand clients need the memory of two.

    Integer tensors (BatchNorm's counters) have no mean: the first one's are kept.
    """

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._like: Group = {}
        self._weight = 0.0

    def add(self, group: Group, weight: float) -> None:
        if not self._like:
            self._like = group
        for name, tensor in group.items():
            if tensor.is_floating_point():
                term = tensor.double() * weight
                self._sums[name] = self._sums[name] + term if name in self._sums else term
        self._weight += weight

    def result(self) -> Group:
        return {
            name: (self._sums[name] / self._weight).to(tensor.dtype) if name in self._sums else tensor
            for name, tensor in self._like.items()
        }


def fits(reply: Bundle, sent: Group) -> bool:
    """Whether the reply's model has the names and shapes of the one that was sent."""
    model = reply.groups.get("model", {})
    return model.keys() == sent.keys() and all(model[name].shape == tensor.shape for name, tensor in sent.items())


@dataclass(frozen=True, kw_only=True)
class FedAvg:
    """Federated Averaging. Defaults are those with which FedDGM's paper ran it on CIFAR-10."""

    world: World
    epochs: Annotated[int, Field(ge=1, description="E, local epochs a round")] = 20
    lr: Annotated[float, Field(gt=0, description="step size of local SGD")] = 0.01
    batch: Annotated[int, Field(ge=1, description="B, images a local step")] = 256
    momentum: Annotated[float, Field(ge=0, lt=1, description="of local SGD; starts anew each round")] = 0.9
    decay: Annotated[float, Field(ge=0, description="weight decay of local SGD")] = 1e-5

    def init(self, clients: Sequence[str], desk: Desk) -> Bundle:
        network = self.world.architecture.build(desk.seed.at("model"))
        return Bundle().put(model=network.state_dict())

    def task(self, state: Bundle) -> str | None:
        return "local"

    def broadcast(self, state: Bundle, client: str) -> Bundle:
        return Bundle().put(model=state.groups["model"])

    def local(self, inbox: Bundle, site: Site, memory: Bundle, desk: Desk) -> tuple[Bundle, Bundle]:
        recipe = Recipe(epochs=self.epochs, lr=self.lr, batch=self.batch, momentum=self.momentum, decay=self.decay)
        fitted = fit(
            self._trained(inbox).module(),
            site.train,
            recipe,
            seed=desk.seed,
            device=desk.device,
            progress=partial(desk.progress, "train"),
        )
        numbers = {"examples": fitted.examples, "loss": fitted.losses[-1]}
        return Bundle().put(numbers, model=fitted.tensors), memory

    def score(self, inbox: Bundle, site: Site, memory: Bundle, desk: Desk) -> Bundle:
        network = self._trained(inbox).module()
        held = score(network, site.validation, device=desk.device)
        counts = Bundle().put({"validation_correct": held.correct, "validation_examples": held.examples})
        if len(site.test) == 0:
            return counts
        return counts.put(**{OWN_TEST: score(network, site.test, device=desk.device).group()})

    def aggregate(self, state: Bundle, replies: Iterable[Reply], desk: Desk) -> Outcome:
        mean, clients, failures = Mean(), {}, []
        for reply in replies:
            numbers = reply.bundle.numbers
            if not fits(reply.bundle, state.groups["model"]):
                failures.append(Failure(reply.client, MISFIT))
                continue
            mean.add(reply.bundle.groups["model"], numbers["examples"])
            clients[reply.client] = {"examples": int(numbers["examples"]), "loss": numbers["loss"]}
        state = state.put(model=mean.result()) if clients else state
        return Outcome(state, {"clients": clients}, failures)

    def models(self, state: Bundle) -> Mapping[str, Trained]:
        return {"global": self._trained(state)}

    def _trained(self, bundle: Bundle) -> Trained:
        return Trained(self.world.architecture, bundle.groups["model"])
