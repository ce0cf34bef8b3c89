"""FedNova (Wang et al., *Tackling the Objective Inconsistency Problem in Heterogeneous Federated Optimization*, NeurIPS 2020).

Client i's τ_i steps add up its gradients with weights a_i: w_t − w_i = η G_i a_i. Where clients take different numbers of steps,
FedAvg minimises another objective than Σ p_i F_i; FedNova takes each client's *mean* gradient instead (section 4):

    client:  w_i ← w_t, E epochs of SGD with momentum ρ
    server:  d_i = (w_t − w_i) / (η ‖a_i‖₁)
             w_{t+1} = w_t − τ_eff Σ_i p_i η d_i,     τ_eff = Σ_i p_i ‖a_i‖₁,     p_i = n_i / n

    plain SGD:     a_i = (1, …, 1),                               ‖a_i‖₁ = τ_i
    momentum ρ:    a_i = (1 − ρ^τ_i, …, 1 − ρ²,  1 − ρ) / (1 − ρ),   ‖a_i‖₁ = (τ_i − ρ (1 − ρ^τ_i) / (1 − ρ)) / (1 − ρ)

Symbols: w ``model``, E ``epochs``, τ_i ``steps``, n_i ``examples``, ρ ``rho``, η ``lr`` (it cancels). With plain SGD τ_eff is the
paper's Σ p_i τ_i; with momentum it is so that equal numbers of steps give FedAvg. The released code's ‖a_i‖₁ and τ_eff are these.

One client's τ_i moves the step of all, through τ_eff. So it is not taken on trust: the server knows E and the batch size B, and
refuses a reply whose τ_i is not E ⌈n_i / B⌉.

As one weighted mean, which is how it is folded here: with m the mean of w_i by weights p_i / ‖a_i‖₁,

    w_{t+1} = w_t + κ (m − w_t),     κ = (Σ p_i ‖a_i‖₁) (Σ p_i / ‖a_i‖₁) ≥ 1,  and 1 where all ‖a_i‖₁ are equal.

Buffers (running statistics of BatchNorm) are no sum of gradients: they are averaged by images, as in FedAvg.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import Field

from fedstill.algorithms.averaging import BatchSize, Decay, Epochs, FedAvg, Momentum, Norms, Rate, figures
from fedstill.algorithms.replies import Mean, Sieve
from fedstill.bundle import Bundle
from fedstill.rounds import Desk, Outcome, Reply, Site, Trained, World

__all__ = ["FedNova", "accumulation"]


@dataclass(frozen=True, kw_only=True)
class FedNova:
    """Normalised averaging. Defaults are those with which FedDGM's paper ran it, except ρ, which it left at 0 beside a momentum
    of 0.9; here it is the clients' momentum unless it is given."""

    world: World
    rho: Annotated[
        float | None,
        Field(ge=0, lt=1, description="momentum that the server takes off; none: the clients' [FedDGM's paper: 0]"),
    ] = None
    epochs: Epochs = 20
    lr: Rate = 0.01
    batch: BatchSize = 256
    momentum: Momentum = 0.9
    decay: Decay = 1e-5
    norms: Norms = "average"

    def init(self, clients: Sequence[str], desk: Desk) -> Bundle:
        return FedAvg.of(self).init(clients, desk)

    def task(self, state: Bundle) -> str | None:
        return "local"

    def broadcast(self, state: Bundle, client: str) -> Bundle:
        return FedAvg.of(self).broadcast(state, client)

    def local(self, inbox: Bundle, site: Site, memory: Bundle, desk: Desk) -> tuple[Bundle, Bundle]:
        visit = FedAvg.of(self).train(inbox, site.train, memory, desk)
        return visit.reply.put({"steps": visit.fitted.steps}), visit.memory

    def score(self, inbox: Bundle, site: Site, memory: Bundle, desk: Desk) -> Bundle:
        return FedAvg.of(self).score(inbox, site, memory, desk)

    def aggregate(self, state: Bundle, replies: Iterable[Reply], desk: Desk) -> Outcome:
        """Figures: each client's ``steps``; ``overshoot``, κ."""
        start = state.groups["model"]
        names = set(FedAvg.of(self).trained_names(state))
        rho = self.momentum if self.rho is None else self.rho
        normalised, buffers = Mean(), Mean()
        images = accumulated = inverse = 0.0
        clients: dict[str, dict[str, Any]] = {}
        sieve = Sieve(replies, {"model": start}, counts=("examples", "steps"), wrong=self._wrong)
        for reply in sieve:
            model, weight = reply.bundle.groups["model"], reply.bundle.numbers["examples"]
            steps = int(reply.bundle.numbers["steps"])
            norm = accumulation(steps, rho)
            normalised.add({name: tensor for name, tensor in model.items() if name in names}, weight / norm)
            buffers.add({name: tensor for name, tensor in model.items() if name not in names}, weight)
            images, accumulated, inverse = images + weight, accumulated + weight * norm, inverse + weight / norm
            clients[reply.client] = figures(reply.bundle) | {"steps": steps}
        if not clients:
            return Outcome(state, {"clients": clients}, sieve.failures)
        kappa = accumulated * inverse / images**2
        moved = {
            name: (start[name].double() + kappa * (mean.double() - start[name].double())).to(mean.dtype)
            for name, mean in normalised.result().items()
        }
        state = state.put(model={**moved, **buffers.result()})
        return Outcome(state, {"clients": clients, "overshoot": kappa}, sieve.failures)

    def models(self, state: Bundle) -> Mapping[str, Trained]:
        return FedAvg.of(self).models(state)

    def _wrong(self, reply: Bundle) -> str | None:
        examples, steps = (int(reply.numbers[name]) for name in ("examples", "steps"))
        due = self.epochs * -(-examples // self.batch)  # rounded up: the last batch of an epoch may be smaller
        if steps == due:
            return None
        return f"its reply says that it took {steps} steps, where {examples} examples take {due}"


def accumulation(steps: int, rho: float) -> float:
    """‖a‖₁: what ``steps`` ≥ 1 steps of SGD with momentum ρ add up, in gradients."""
    if rho == 0:
        return float(steps)
    # ρ^steps of a great many steps is 0, as it should be
    return (steps - rho * (1 - rho**steps) / (1 - rho)) / (1 - rho)
