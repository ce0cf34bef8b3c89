"""FedMedian: the coordinate-wise median of the clients' models (Yin et al., ICML 2018, Algorithm 1, option I).

A mean follows the worst of its terms; a median does not, as long as more than half of the clients are honest. The
median weighs clients equally, however many images they hold. (FedAvg has it as an option, ``rule = "median"``.)
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from fedstill.algorithms.averaging import FedAvg
from fedstill.algorithms.replies import Sieve
from fedstill.bundle import Bundle
from fedstill.rounds import Desk, Outcome, Reply, Site, Trained, World


@dataclass(frozen=True, kw_only=True)
class FedMedian:
    """What clients do is FedAvg's; what the server does is not."""

    world: World
    epochs: Annotated[int, Field(ge=1, description="local epochs a round")] = 1
    lr: Annotated[float, Field(gt=0, description="step size of local SGD")] = 0.01

    @property
    def averaging(self) -> FedAvg:
        return FedAvg(world=self.world, epochs=self.epochs, lr=self.lr)

    def init(self, clients: Sequence[str], desk: Desk) -> Bundle:
        return self.averaging.init(clients, desk)

    def task(self, state: Bundle) -> str | None:
        return "local"

    def broadcast(self, state: Bundle, client: str) -> Bundle:
        return self.averaging.broadcast(state, client)

    def local(self, inbox: Bundle, site: Site, memory: Bundle, desk: Desk) -> tuple[Bundle, Bundle]:
        return self.averaging.local(inbox, site, memory, desk)

    def score(self, inbox: Bundle, site: Site, memory: Bundle, desk: Desk) -> Bundle:
        return self.averaging.score(inbox, site, memory, desk)

    def aggregate(self, state: Bundle, replies: Iterable[Reply], desk: Desk) -> Outcome:
        sieve = Sieve(replies, {"model": state.groups["model"]})  # what a stranger sent is looked at before it is used
        arrived = list(sieve)  # a median needs all of them at once, where a mean folds
        if not arrived:
            return Outcome(state, {}, sieve.failures)
        models = [reply.bundle.groups["model"] for reply in arrived]
        medians = {name: median([model[name] for model in models]) for name in models[0]}
        figures = {reply.client: {"examples": int(reply.bundle.numbers["examples"])} for reply in arrived}
        return Outcome(state.put(model=medians), {"clients": figures}, sieve.failures)

    def models(self, state: Bundle) -> Mapping[str, Trained]:
        return self.averaging.models(state)


def median(tensors: Sequence[Tensor]) -> Tensor:
    """By coordinate; the mean of the two middle values where their number is even. Integers (counters): the first."""
    if not tensors[0].is_floating_point():
        return tensors[0]
    ordered = torch.stack(list(tensors)).sort(dim=0).values
    return (ordered[(len(tensors) - 1) // 2] + ordered[len(tensors) // 2]) / 2
