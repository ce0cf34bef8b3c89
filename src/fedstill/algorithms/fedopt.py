"""Server optimisers: FedAvg's mean step, taken as a gradient.

    client:  FedAvg's
    server:  Δ = Σ_k (n_k / n) w_k − w_t, over the clients that replied; then a step of an optimiser along Δ

FedAvgM (Hsu et al., *Measuring the Effects of Non-Identical Data Distribution for Federated Visual Classification*, 2019,
section 4; the sign of v is turned):

    v_t = β v_{t−1} + Δ,     w_{t+1} = w_t + η v_t

Symbols: β ``server_momentum``, η ``server_lr``, v ``optimiser:velocity``. β = 0 and η = 1 is FedAvg.

FedAdam (Reddi et al., *Adaptive Federated Optimization*, ICLR 2021, Algorithm 2, FedAdam's lines):

    m_t = β₁ m_{t−1} + (1 − β₁) Δ,     v_t = β₂ v_{t−1} + (1 − β₂) Δ²,     w_{t+1} = w_t + η m_t / (√v_t + τ)

from m = 0 and v = τ². There is no correction of the start, as in the paper. v is of the step itself, as in its
published version; earlier preprints have m_t² there.
Symbols: β₁ ``beta1``, β₂ ``beta2``, τ ``tau``, η ``server_lr``, m ``optimiser:first``, v ``optimiser:second``. The algorithm is
written with a plain mean over clients; here, as in FedAvg, clients count by their images.

Buffers (running statistics of BatchNorm) are FedAvg's mean: a variance with momentum could turn negative.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from fedstill.algorithms.averaging import BatchSize, Decay, Epochs, FedAvg, Momentum, Norms, Rate
from fedstill.algorithms.protection import PrivacyClip, PrivacyDelta, PrivacyEpsilon, PrivacyRounds, remarks
from fedstill.algorithms.robust import Hostile, Rule
from fedstill.bundle import Bundle
from fedstill.rounds import Desk, Outcome, Reply, Site, Trained, World

__all__ = ["FedAdam", "FedAvgM"]

_VELOCITY, _FIRST, _SECOND = "optimiser:velocity", "optimiser:first", "optimiser:second"


@dataclass(frozen=True, kw_only=True)
class FedAvgM:
    """FedAvg with momentum at the server. Of the clients, defaults are FedAvg's."""

    world: World
    server_momentum: Annotated[
        float, Field(ge=0, lt=1, description="beta, kept over rounds [paper: best of 0 to 0.997]")
    ] = 0.9
    server_lr: Annotated[float, Field(gt=0, description="step size along the velocity [paper: 1]")] = 1.0
    epochs: Epochs = 20
    lr: Rate = 0.01
    batch: BatchSize = 256
    momentum: Momentum = 0.9
    decay: Decay = 1e-5
    norms: Norms = "average"
    rule: Rule = "mean"
    hostile: Hostile = None
    privacy_epsilon: PrivacyEpsilon = None
    privacy_delta: PrivacyDelta = 1e-5
    privacy_clip: PrivacyClip = 1.0
    privacy_rounds: PrivacyRounds = None

    def init(self, clients: Sequence[str], desk: Desk) -> Bundle:
        state = FedAvg.private(self).init(clients, desk)
        names = FedAvg.of(self).trained_names(state)
        return state.put(**{_VELOCITY: {name: torch.zeros_like(state.groups["model"][name]) for name in names}})

    @property
    def needs_replies(self) -> tuple[int, str]:
        """As :attr:`FedAvg.needs_replies`."""
        return FedAvg.private(self).needs_replies

    def task(self, state: Bundle) -> str | None:
        return "local"

    def broadcast(self, state: Bundle, client: str) -> Bundle:
        return FedAvg.of(self).broadcast(state, client)

    def local(self, inbox: Bundle, site: Site, memory: Bundle, desk: Desk) -> tuple[Bundle, Bundle]:
        return FedAvg.private(self).local(inbox, site, memory, desk)

    def score(self, inbox: Bundle, site: Site, memory: Bundle, desk: Desk) -> Bundle:
        return FedAvg.of(self).score(inbox, site, memory, desk)

    def aggregate(self, state: Bundle, replies: Iterable[Reply], desk: Desk) -> Outcome:
        outcome = FedAvg.private(self).aggregate(state, replies, desk)
        if outcome.withheld is not None:
            return outcome  # no step, and no momentum spent on it
        velocity, model = dict(state.groups[_VELOCITY]), dict(outcome.state.groups["model"])
        for name, before in state.groups[_VELOCITY].items():
            start = state.groups["model"][name]
            v = self.server_momentum * before.double() + _step(start, model[name])
            model[name] = (start.double() + self.server_lr * v).to(start.dtype)
            velocity[name] = v.to(start.dtype)
        return Outcome(state.put(model=model, **{_VELOCITY: velocity}), outcome.figures, outcome.failures)

    def models(self, state: Bundle) -> Mapping[str, Trained]:
        return FedAvg.of(self).models(state)

    def remarks(self, rounds: int) -> Sequence[str]:
        """What a user of ``rounds`` rounds may want to know before they begin."""
        return remarks(self, rounds)


@dataclass(frozen=True, kw_only=True)
class FedAdam:
    """FedAvg with Adam at the server. Of the clients, defaults are FedAvg's."""

    world: World
    server_lr: Annotated[float, Field(gt=0, description="eta, the server's step size [the paper tunes it]")] = 0.01
    beta1: Annotated[float, Field(ge=0, lt=1, description="memory of the step [paper: 0.9]")] = 0.9
    beta2: Annotated[float, Field(ge=0, lt=1, description="memory of its square [paper: 0.99]")] = 0.99
    tau: Annotated[float, Field(gt=0, description="adaptivity: the smaller, the more [paper: 0.001]")] = 1e-3
    epochs: Epochs = 20
    lr: Rate = 0.01
    batch: BatchSize = 256
    momentum: Momentum = 0.9
    decay: Decay = 1e-5
    norms: Norms = "average"
    rule: Rule = "mean"
    hostile: Hostile = None
    privacy_epsilon: PrivacyEpsilon = None
    privacy_delta: PrivacyDelta = 1e-5
    privacy_clip: PrivacyClip = 1.0
    privacy_rounds: PrivacyRounds = None

    def init(self, clients: Sequence[str], desk: Desk) -> Bundle:
        state = FedAvg.private(self).init(clients, desk)
        like = {name: state.groups["model"][name] for name in FedAvg.of(self).trained_names(state)}
        return state.put(
            **{
                _FIRST: {name: torch.zeros_like(tensor) for name, tensor in like.items()},
                _SECOND: {name: torch.full_like(tensor, self.tau**2) for name, tensor in like.items()},
            }
        )

    @property
    def needs_replies(self) -> tuple[int, str]:
        """As :attr:`FedAvg.needs_replies`."""
        return FedAvg.private(self).needs_replies

    def task(self, state: Bundle) -> str | None:
        return "local"

    def broadcast(self, state: Bundle, client: str) -> Bundle:
        return FedAvg.of(self).broadcast(state, client)

    def local(self, inbox: Bundle, site: Site, memory: Bundle, desk: Desk) -> tuple[Bundle, Bundle]:
        return FedAvg.private(self).local(inbox, site, memory, desk)

    def score(self, inbox: Bundle, site: Site, memory: Bundle, desk: Desk) -> Bundle:
        return FedAvg.of(self).score(inbox, site, memory, desk)

    def aggregate(self, state: Bundle, replies: Iterable[Reply], desk: Desk) -> Outcome:
        outcome = FedAvg.private(self).aggregate(state, replies, desk)
        if outcome.withheld is not None:
            return outcome
        first, second = dict(state.groups[_FIRST]), dict(state.groups[_SECOND])
        model = dict(outcome.state.groups["model"])
        for name, before in state.groups[_FIRST].items():
            start = state.groups["model"][name]
            step = _step(start, model[name])
            m = self.beta1 * before.double() + (1 - self.beta1) * step
            v = self.beta2 * second[name].double() + (1 - self.beta2) * step.square()
            model[name] = (start.double() + self.server_lr * m / (v.sqrt() + self.tau)).to(start.dtype)
            first[name], second[name] = m.to(start.dtype), v.to(start.dtype)
        state = state.put(model=model, **{_FIRST: first, _SECOND: second})
        return Outcome(state, outcome.figures, outcome.failures)

    def models(self, state: Bundle) -> Mapping[str, Trained]:
        return FedAvg.of(self).models(state)

    def remarks(self, rounds: int) -> Sequence[str]:
        """What a user of ``rounds`` rounds may want to know before they begin."""
        return remarks(self, rounds)


def _step(start: Tensor, mean: Tensor) -> Tensor:
    """Δ in float64, in which the difference of two float32 numbers of like size is exact."""
    return mean.double() - start.double()
