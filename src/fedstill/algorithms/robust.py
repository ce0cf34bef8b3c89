"""Rules by which the models of a round become one though some of its clients are hostile.

Of n models w_1 … w_n, of which f may be anything at all:

    median       w^(j) = the median of w_1^(j) … w_n^(j), coordinate by coordinate                              n ≥ 2f + 1
    trimmed      w^(j) = the mean of w_1^(j) … w_n^(j) without the f least and the f largest                    n ≥ 2f + 1
    krum         w = w_k for k = argmin s(k),  s(k) = Σ ‖w_k − w_i‖² over the n − f − 2 nearest i ≠ k           n ≥ 2f + 3
    multikrum    w = the mean of the n − f models of the least s                                                n ≥ 2f + 3

Median and trimmed mean are Yin, Chen, Ramchandran, Bartlett, "Byzantine-Robust Distributed Learning: Towards Optimal Statistical
Rates", ICML 2018, Definitions 1 and 2 (their β is f / n here); of an even n the median is the mean of the middle two. Krum and
Multi-Krum are Blanchard, El Mhamdi, Guerraoui, Stainer, "Machine Learning with Adversaries: Byzantine Tolerant Gradient
Descent", NeurIPS 2017, section 4; of equal scores the first client's counts as the least. How many models Multi-Krum takes is
open there; n − f, as many as are honest, is usual. All are written for gradients. Clients begin at one point, so that their
models differ as their updates do.

Symbols: f ``hostile``, n the replies that can be used. The mean is FedAvg's, and withstands no one.

Clients count equally, in all of them: a weight is the client's own word, and who means harm would claim the largest. Where honest
clients hold very different numbers of images, that is another objective than FedAvg's. Where they hold very different classes,
their models lie far apart, and who is left out may be a client that is honest and rare.

What is looked at and combined is all that travels. BatchNorm with ``norms = "average"``: its scales, shifts and running
statistics are coordinates like any other, in distances too, so that nothing hides in them; with ``norms = "local"`` there are
none. Integers (BatchNorm's counters) have no mean: median and trimmed mean take the middle one, of an even n the lower of two,
and Krum the best client's.

A mean folds replies one by one. These rules need all models of a round at once, and the server the memory for them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from fedstill.algorithms.replies import Mean
from fedstill.bundle import Group
from fedstill.errors import InputError

__all__ = ["Combined", "Hostile", "Rule", "check_rule", "combine", "least_models", "setting_of"]

Rule = Annotated[
    Literal["mean", "median", "trimmed", "krum", "multikrum"],
    Field(
        description="of models into one: the mean by images, or one that withstands hostile clients and counts all equally"
    ),
]
Hostile = Annotated[
    int | None,
    Field(ge=0, description="f, hostile clients a round that the rule is to withstand; not for the mean"),
]

_MORE: Mapping[str, int] = {"median": 1, "trimmed": 1, "krum": 3, "multikrum": 3}
"""Models that a rule needs beyond 2f."""


class Combined(NamedTuple):
    """What a rule makes of models.

    Attributes:
        model: the one.
        chosen: clients whose models it is made of, the best first; None where each coordinate is of others.
        scores: Krum's s by client; empty under other rules.
    """

    model: Group
    chosen: tuple[str, ...] | None = None
    scores: Mapping[str, float] = {}

    def figures(self, clients: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
        """A round's figures: ``clients``, each with its score (``krum``), and who was ``chosen``."""
        told = {client: {**line, "krum": self.scores[client]} for client, line in clients.items() if self.scores}
        return {"clients": told or clients} | ({} if self.chosen is None else {"chosen": list(self.chosen)})


def check_rule(rule: Rule, hostile: int | None) -> None:
    """That the two options go together.

    Raises:
        InputError: they do not.
    """
    if rule == "mean" and hostile is not None:
        raise InputError(
            f"algorithm.hostile = {hostile}: a mean withstands no hostile client; choose another algorithm.rule, or remove this "
            "key"
        )
    if rule not in ("mean", "median") and hostile is None:
        raise InputError(
            f"algorithm.rule = '{rule}': it has to know how many clients of a round may be hostile; set algorithm.hostile"
        )


def setting_of(rule: Rule, hostile: int | None) -> str:
    """As a user wrote it."""
    return f"algorithm.rule = '{rule}'" + ("" if hostile is None else f" with algorithm.hostile = {hostile}")


def least_models(rule: Rule, hostile: int | None) -> int:
    """n, at least."""
    return 1 if rule == "mean" else 2 * (hostile or 0) + _MORE[rule]


def combine(rule: Rule, hostile: int | None, models: Mapping[str, Group]) -> Combined:
    """The models of clients, in the cohort's order, as one; all of the same names, shapes and types, and :func:`least_models` of
    them at least. Not for the mean, which is folded."""
    groups = list(models.values())
    if rule in ("median", "trimmed"):
        cut = (hostile or 0) if rule == "trimmed" else (len(groups) - 1) // 2
        return Combined({name: _trimmed([group[name] for group in groups], cut) for name in groups[0]})
    scores = krum_scores(groups, hostile or 0)
    count = 1 if rule == "krum" else len(groups) - (hostile or 0)
    best = torch.argsort(scores, stable=True)[:count].tolist()
    mean, clients = Mean(), list(models)
    for place in best:
        mean.add(groups[place], 1.0)
    return Combined(
        mean.result(),
        tuple(clients[place] for place in best),
        dict(zip(clients, scores.tolist(), strict=True)),
    )


def _trimmed(tensors: Sequence[Tensor], cut: int) -> Tensor:
    """By coordinate, the mean of all but the ``cut`` least and the ``cut`` largest; of integers the middle one."""
    ordered = torch.stack(list(tensors)).sort(dim=0).values
    if not ordered.is_floating_point():
        return ordered[(len(tensors) - 1) // 2]
    return ordered[cut : len(tensors) - cut].double().mean(0).to(ordered.dtype)


def krum_scores(groups: Sequence[Group], hostile: int) -> Tensor:
    """s of each model, float64 [n]: the sum of its squared distances to its n − f − 2 nearest."""
    count = len(groups)
    squares = torch.zeros(count, count, dtype=torch.float64)
    for name, like in groups[0].items():
        if like.is_floating_point():
            rows = torch.stack([group[name].double().flatten() for group in groups])
            # not by a product of matrices: it would lose what is small beside a hostile model's size
            squares += torch.cdist(rows, rows, compute_mode="donot_use_mm_for_euclid_dist").square().cpu()
    squares.fill_diagonal_(torch.inf)  # a model is no neighbour of its own
    return squares.sort(dim=1).values[:, : count - hostile - 2].sum(1)
