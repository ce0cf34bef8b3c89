"""Membership inference: was this image trained on? Scores of all attacks on one view, and what they come to, as plain values."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import mean, stdev
from types import MappingProxyType
from typing import Any

import numpy as np
from jaxtyping import Bool, Float
from numpy.typing import NDArray

from fedstill.audit.bounds import Claim, against
from fedstill.audit.density import density_ratio
from fedstill.audit.lira import ENOUGH, offline, online
from fedstill.audit.roc import auc, curve, thinned_curve, tpr_at, tpr_json
from fedstill.audit.shadows import Shadow
from fedstill.seeds import Seed

__all__ = ["ATTACKS", "About", "attack_view"]

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]

FPR = 0.01
"""Of the rate that stands for an attack's strength against several targets."""


@dataclass(frozen=True)
class About:
    """An attack: what it is called, whose it is, what its attacker has to know."""

    title: str
    citation: str
    assumptions: str

    def to_json(self) -> dict[str, str]:
        """Plain values."""
        return vars(self).copy()


_SHADOWS = (
    "The attacker knows method, settings, client sizes and classes and can run the federation again on images of the same kind; "
    "training images for which the pool has no counterpart (not_in_play) are known to it"
)

ATTACKS: Mapping[str, About] = MappingProxyType(
    {
        "lira_online": About(
            "LiRA online",
            "Carlini et al., Membership Inference Attacks From First Principles, IEEE S&P 2022, Algorithm 1",
            f"{_SHADOWS}; about half of its shadows train on the very image in question.",
        ),
        "lira_offline": About(
            "LiRA offline",
            "Carlini et al., Membership Inference Attacks From First Principles, IEEE S&P 2022, section VI-B",
            f"{_SHADOWS}; none of the shadows that it uses for an image trained on that image.",
        ),
        "confidence": About(
            "confidence",
            "Yeom et al., Privacy Risk in Machine Learning, IEEE CSF 2018, Adversary 2 (a threshold on the loss)",
            "The attacker has the network and the labelled image, and no shadows.",
        ),
        "density": About(
            "gradient density",
            "Huang et al., Federated Learning on Virtual Heterogeneous Data with Local-Global Dataset Distillation, TMLR 2024",
            "The attacker has the network, the labelled image, and knows of half of the images in play whether they were trained "
            "on; of a gradient the logarithm of its norm is taken.",
        ),
    }
)


def attack_view(
    target: Float[Array, "n *queries"],
    shadows: Sequence[Shadow],
    name: str,
    member: Bool[Mask, " n"],
    rows: Bool[Mask, " n"],
    *,
    gradients: Float[Array, " k"] | str,
    seed: Seed,
    claim: Claim | None = None,
    looks: int = 1,
) -> dict[str, Any]:
    """Every attack on one view.

    Args:
        target: φ of the pool's images by the attacked network, [n]; with several queries of an image [n, queries]: LiRA's
            scores are means over them, the others take the first.
        shadows: theirs; those that have no view ``name`` are left out.
        name: of the view.
        member: which images the target trained on.
        rows: which the attacks are measured on; k of them.
        gradients: log norms of their gradients, or why there are none.
        seed: draws the halves of the density attack.
        claim: the guarantee that the network is under; None: none.
        looks: as :func:`fedstill.audit.bounds.against` has it.

    Returns:
        ``shadows``, how many; ``attacks`` by name, each with ``auc``, ``tpr`` by FPR, ``roc``, ``members`` and ``others``, and
        under a guarantee ``bound``; or ``missing``, why there is none. Attacks by shadows have ``targets`` too: the same attack
        on every shadow federation in turn, by the others.
    """
    there = [each for each in shadows if name in each.confidence]
    phi = np.stack([each.confidence[name][rows] for each in there]) if there else np.zeros((0, *target[rows].shape))
    inside = np.stack([each.inside[rows] for each in there]) if there else np.zeros((0, int(rows.sum())), np.bool_)
    mine, truth = target[rows], member[rows]
    own = len(there) >= ENOUGH
    measured = partial(_measured, claim=claim, looks=looks)
    found: dict[str, Any] = {}
    for attack, score in _LIRA.items():
        scores = score(mine, phi, inside, own)
        found[attack] = measured(scores, truth)
        if "missing" not in found[attack]:
            found[attack]["targets"] = _targets(_sides(score, phi, inside, own=own))
    found["confidence"] = measured(mine if mine.ndim == 1 else mine[:, 0], truth)
    if isinstance(gradients, str):
        found["density"] = {"missing": gradients}
    elif min(truth.sum(), (~truth).sum()) < 4:
        found["density"] = {"missing": "kernel densities need four members and four others at least"}
    else:
        found["density"] = measured(density_ratio(gradients, truth, seed), truth)
    return {"shadows": len(there), "own_variance": own, "attacks": found}


_Score = Callable[[Array, Array, Mask, bool], Array]


def _each(score: _Score) -> _Score:
    """The mean over queries: their Gaussians are taken as independent, as Carlini et al. take them."""

    def mean_score(target: Array, phi: Array, inside: Mask, own: bool) -> Array:
        if target.ndim == 1:
            return score(target, phi, inside, own)
        scores = [score(target[:, query], phi[:, :, query], inside, own) for query in range(target.shape[1])]
        return np.asarray(np.mean(scores, axis=0), np.float64)

    return mean_score


def _offline(target: Array, phi: Array, inside: Mask, own: bool) -> Array:
    return offline(target, phi, ~inside, own_variance=own)


def _online(target: Array, phi: Array, inside: Mask, own: bool) -> Array:
    return online(target, phi, inside, ~inside, own_variance=own)


_LIRA: Mapping[str, _Score] = MappingProxyType({"lira_online": _each(_online), "lira_offline": _each(_offline)})


def _measured(scores: Array, member: Mask, *, claim: Claim | None, looks: int) -> dict[str, Any]:
    known = np.isfinite(scores)
    ours, others = scores[known & member], scores[known & ~member]
    if min(len(ours), len(others)) < 2:
        return {"missing": f"only {len(ours)} members and {len(others)} others can be scored"}
    roc = thinned_curve(curve(ours, others))
    return {
        "members": len(ours),
        "others": len(others),
        "auc": auc(ours, others).to_json(),
        "tpr": tpr_json(ours, others),
        "roc": {"fpr": roc.fpr.tolist(), "tpr": roc.tpr.tolist()},
        **({} if claim is None else {"bound": against(ours, others, claim, looks=looks)}),
    }


def _sides(score: _Score, phi: Array, inside: Mask, *, own: bool) -> list[tuple[Array, Array]]:
    """Scores of members and of others where each shadow federation in turn is the target of the rest."""
    found = []
    for number in range(len(phi)):
        rest = np.arange(len(phi)) != number
        scores = score(phi[number], phi[rest], inside[rest], own)
        known = np.isfinite(scores)
        found.append((scores[known & inside[number]], scores[known & ~inside[number]]))
    return [(ours, others) for ours, others in found if min(len(ours), len(others)) >= 2]


def _targets(sides: Sequence[tuple[Array, Array]]) -> dict[str, Any]:
    """Mean and deviation over targets."""
    values = {
        "auc": [auc(ours, others).value for ours, others in sides],
        f"tpr_{FPR:g}": [
            found.value for ours, others in sides if not isinstance(found := tpr_at(ours, others, FPR), str)
        ],
    }
    return {"targets": len(sides)} | {
        name: {"mean": mean(each), "deviation": stdev(each) if len(each) > 1 else None} if each else None
        for name, each in values.items()
    }
