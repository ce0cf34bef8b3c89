"""FedProx (Li et al., *Federated Optimization in Heterogeneous Networks*, MLSys 2020, Algorithm 2).

    client:  minimise  F_k(w) + (μ / 2) ‖w − w_t‖²  from w_t, inexactly: here by E epochs of SGD, as FedAvg does
    server:  FedAvg's mean

Symbols: w_t ``model``, μ ``mu``, E ``epochs``, B ``batch``. The distance is over what SGD moves and the server sent: buffers are
not in it, nor norms that stay with the client. ``momentum`` and ``decay`` are of the whole objective, the distance included.
μ = 0 is FedAvg, to the bit. The server weighs by images, as FedAvg does; the paper draws clients with those probabilities and
takes a plain mean, which is the same in expectation. With a budget (``privacy_epsilon``) the distance's gradient is added
after the noise, for it looks at no image.
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
from fedstill.bundle import Bundle, Group
from fedstill.rounds import Desk, Outcome, Reply, Site, Trained, World
from fedstill.train import Penalty

__all__ = ["FedProx", "proximal"]


@dataclass(frozen=True, kw_only=True)
class FedProx:
    """FedAvg whose clients are held near what they received. Defaults are those with which FedDGM's paper ran it."""

    world: World
    mu: Annotated[
        float,
        Field(ge=0, description="weight of the distance [FedDGM's paper; its own: best of 0.001, 0.01, 0.1 and 1]"),
    ] = 0.001
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
        return FedAvg.private(self).init(clients, desk)

    @property
    def needs_replies(self) -> tuple[int, str]:
        """As :attr:`FedAvg.needs_replies`."""
        return FedAvg.private(self).needs_replies

    def task(self, state: Bundle) -> str | None:
        return "local"

    def broadcast(self, state: Bundle, client: str) -> Bundle:
        return FedAvg.of(self).broadcast(state, client)

    def local(self, inbox: Bundle, site: Site, memory: Bundle, desk: Desk) -> tuple[Bundle, Bundle]:
        penalty = proximal(inbox.groups["model"], self.mu, device=desk.device)
        visit = FedAvg.private(self).train(inbox, site.train, memory, desk, penalty=penalty)
        return visit.reply, visit.memory

    def score(self, inbox: Bundle, site: Site, memory: Bundle, desk: Desk) -> Bundle:
        return FedAvg.of(self).score(inbox, site, memory, desk)

    def aggregate(self, state: Bundle, replies: Iterable[Reply], desk: Desk) -> Outcome:
        return FedAvg.private(self).aggregate(state, replies, desk)

    def models(self, state: Bundle) -> Mapping[str, Trained]:
        return FedAvg.of(self).models(state)

    def remarks(self, rounds: int) -> Sequence[str]:
        """What a user of ``rounds`` rounds may want to know before they begin."""
        return remarks(self, rounds)


def proximal(start: Group, mu: float, *, device: str = "cpu") -> Penalty:
    """The loss term (μ / 2) ‖w − start‖² over the parameters that ``start`` holds."""
    fixed = {name: tensor.to(device) for name, tensor in start.items()}

    def term(params: Mapping[str, Tensor]) -> Tensor:
        squares = [(tensor - fixed[name]).square().sum() for name, tensor in params.items() if name in fixed]
        return 0.5 * mu * torch.stack(squares).sum()

    return term
