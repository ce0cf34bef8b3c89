"""SCAFFOLD (Karimireddy et al., *Stochastic Controlled Averaging for Federated Learning*, ICML 2020, Algorithm 1, option II).

    server:  sends x, c
    client:  y ← x;  K steps  y ← y − η_l (g_i(y) − c_i + c);     c_i⁺ = c_i − c + (x − y) / (K η_l)
             sends Δy = y − x (here y) and Δc = c_i⁺ − c_i;  keeps c_i ← c_i⁺
    server:  x ← x + η_g / |S| Σ_{i ∈ S} Δy_i,     c ← c + (|S| / N) · 1 / |S| Σ_{i ∈ S} Δc_i

Symbols: x, y ``model``; c, Δc ``control``; η_l ``lr``, η_g ``server_lr``, N ``clients`` (all there are, not the cohort). c_i and
c begin at zero. Clients count equally, however many images they hold: the paper's objective is their plain mean. Where sizes
are very unequal that is another objective than FedAvg's, and a client of ten images moves the model as far as one of a thousand:
``weighting = "examples"`` puts n_i / Σ_S n_i for both 1 / |S|. c is then the mean of the c_i by images where all clients take
part, and near it where some do.

The correction is the loss term ⟨c − c_i, y⟩, whose gradient it is. Decay is then part of the loss and of the controls, as it
should be. Momentum ρ, which the paper does not have, smooths the correction with the gradient; K steps then add up ‖a‖₁
gradients (:mod:`fedstill.algorithms.fednova`), which takes the place of K, so that c_i stays a mean gradient. Controls are
of what SGD moves and the server sent; buffers are a plain mean.

A reply can be lost: it is refused, or its round has too few of them. The server's c then lacks its Δc, and a client that had
moved on to c_i⁺ would break c = 1/N Σ c_i for good. So the server tells each client the round of its last reply that counted
(``accepted``; 0: none yet), and the client, which also keeps its control from before its last work, goes on from the one that
the server knows.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from fedstill.algorithms.averaging import BatchSize, Decay, Epochs, FedAvg, Norms, Rate, figures
from fedstill.algorithms.fednova import accumulation
from fedstill.algorithms.replies import Mean, Sieve
from fedstill.bundle import Bundle, Group
from fedstill.errors import RunError
from fedstill.rounds import Desk, Outcome, Reply, Site, Trained, World
from fedstill.train import Batch, Extra

__all__ = ["Scaffold", "linear"]

_BEFORE = "control:before"


@dataclass(frozen=True, kw_only=True)
class Scaffold:
    """SCAFFOLD. Of the clients, defaults are FedAvg's, but no momentum, which the paper does not have."""

    world: World
    server_lr: Annotated[float, Field(gt=0, description="eta_g, the server's step size [paper: 1]")] = 1.0
    epochs: Epochs = 20
    lr: Rate = 0.01
    batch: BatchSize = 256
    momentum: Annotated[
        float, Field(ge=0, lt=1, description="of local SGD, on gradient and correction [paper: none]")
    ] = 0.0
    decay: Decay = 1e-5
    norms: Norms = "average"
    weighting: Annotated[
        Literal["equal", "examples"],
        Field(description="of clients in both means: equal [paper], or by their images"),
    ] = "equal"

    def init(self, clients: Sequence[str], desk: Desk) -> Bundle:
        state = FedAvg.of(self).init(clients, desk)
        names = FedAvg.of(self).trained_names(state)
        control = {name: torch.zeros_like(state.groups["model"][name]) for name in names}
        return state.put({"clients": len(clients)}, control=control)

    def task(self, state: Bundle) -> str | None:
        return "local"

    def broadcast(self, state: Bundle, client: str) -> Bundle:
        numbers = {"round": _round(state), "accepted": state.numbers.get(_accepted(client), 0)}
        return FedAvg.of(self).broadcast(state, client).put(numbers, control=state.groups["control"])

    def local(self, inbox: Bundle, site: Site, memory: Bundle, desk: Desk) -> tuple[Bundle, Bundle]:
        common = inbox.groups["control"]
        mine = _counted(inbox, memory)
        drift = {name: tensor - mine[name] for name, tensor in common.items()}
        visit = FedAvg.of(self).train(inbox, site.train, memory, desk, extra=linear(drift, device=desk.device))
        scale = accumulation(visit.fitted.steps, self.momentum) * self.lr
        start, end = inbox.groups["model"], visit.reply.groups["model"]
        change = {  # Δc = (x − y) / (K η) − c
            name: ((start[name].double() - end[name].cpu().double()) / scale - tensor.double()).to(tensor.dtype)
            for name, tensor in common.items()
        }
        moved = {name: tensor + change[name] for name, tensor in mine.items()}
        rounds = {"round": inbox.numbers["round"], "before": inbox.numbers["accepted"]}
        kept = visit.memory.put(rounds, control=moved, **{_BEFORE: mine})
        return visit.reply.put(control=change), kept

    def score(self, inbox: Bundle, site: Site, memory: Bundle, desk: Desk) -> Bundle:
        return FedAvg.of(self).score(inbox, site, memory, desk)

    def aggregate(self, state: Bundle, replies: Iterable[Reply], desk: Desk) -> Outcome:
        start, control = state.groups["model"], state.groups["control"]
        models, changes = Mean(), Mean()
        clients: dict[str, dict[str, Any]] = {}
        sieve = Sieve(replies, {"model": start, "control": control})
        for reply in sieve:
            weight = reply.bundle.numbers["examples"] if self.weighting == "examples" else 1.0
            models.add(reply.bundle.groups["model"], weight)
            changes.add(reply.bundle.groups["control"], weight)
            clients[reply.client] = figures(reply.bundle)
        if not clients:
            return Outcome(state, {"clients": clients}, sieve.failures)
        model = dict(models.result())
        share = len(clients) / state.numbers["clients"]
        moved: dict[str, Tensor] = {}
        for name, change in changes.result().items():
            begin = start[name].double()
            model[name] = (begin + self.server_lr * (model[name].double() - begin)).to(start[name].dtype)
            moved[name] = (control[name].double() + share * change.double()).to(change.dtype)
        accepted = {_accepted(client): _round(state) for client in clients}
        return Outcome(state.put(accepted, model=model, control=moved), {"clients": clients}, sieve.failures)

    def models(self, state: Bundle) -> Mapping[str, Trained]:
        return FedAvg.of(self).models(state)


def linear(slope: Group, *, device: str = "cpu") -> Extra:
    """The loss term ⟨slope, w⟩ over the parameters that ``slope`` holds: it adds ``slope`` to their gradient."""
    fixed = {name: tensor.to(device) for name, tensor in slope.items()}

    def term(batch: Batch) -> Tensor:
        return torch.stack(
            [(tensor * fixed[name]).sum() for name, tensor in batch.params.items() if name in fixed]
        ).sum()

    return term


def _counted(inbox: Bundle, memory: Bundle) -> Group:
    """The client's control as the server knows it: zero before its first reply that counted.

    Raises:
        RunError: the client does not remember it.
    """
    accepted = inbox.numbers["accepted"]
    if accepted == 0:
        return {name: torch.zeros_like(tensor) for name, tensor in inbox.groups["control"].items()}
    for name, known in (("control", "round"), (_BEFORE, "before")):
        if memory.numbers.get(known) == accepted:
            return memory.groups[name]
    raise RunError(
        f"the client's memory does not hold its control of round {accepted:.0f}, which the server counts on: "
        "put its memory back, or start the run anew"
    )


def _accepted(client: str) -> str:
    return f"accepted:{client}"


def _round(state: Bundle) -> float:
    return state.numbers.get("round", 1)
