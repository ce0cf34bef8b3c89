"""How well scores tell members from non-members; the higher a score, the more a member.

All intervals are over images, for the one target that was attacked, and take images as independent; what another training run
would give is another question, which several targets answer.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray

__all__ = [
    "LEAST",
    "Estimate",
    "Roc",
    "auc",
    "clopper_pearson",
    "curve",
    "dp_bound",
    "thinned_curve",
    "tpr_at",
    "tpr_json",
]

Scores = NDArray[np.float64]

LEVEL = 0.95
LEAST = {0.01: 100, 0.001: 5000}
"""Non-members without which nothing is said of a FPR: at 1 % one of them lies above the threshold, at 0.1 % five do."""


@dataclass(frozen=True)
class Estimate:
    """A value in [0, 1] and its 95 % interval."""

    value: float
    low: float
    high: float

    def to_json(self) -> dict[str, float]:
        """Plain values."""
        return {"value": self.value, "low": self.low, "high": self.high}


@dataclass(frozen=True)
class Roc:
    """Every step of the curve, from (0, 0) to (1, 1); equal scores make one step."""

    fpr: Float[NDArray[np.float64], " k"]
    tpr: Float[NDArray[np.float64], " k"]


def curve(members: Scores, others: Scores) -> Roc:
    """The ROC of "is a member where the score is at least t", for every t.

    Args:
        members, others: scores, [m] and [n], finite; at least one of each.
    """
    scores = np.concatenate([members, others])
    ours = np.concatenate([np.ones(len(members)), np.zeros(len(others))])
    order = np.argsort(-scores, kind="stable")
    hits, misses = np.cumsum(ours[order]), np.cumsum(1 - ours[order])
    last = np.append(np.diff(scores[order]) != 0, True)  # of equal scores
    return Roc(
        fpr=np.concatenate([[0.0], misses[last] / len(others)]),
        tpr=np.concatenate([[0.0], hits[last] / len(members)]),
    )


def thinned_curve(roc: Roc, most: int = 200) -> Roc:
    """The curve by at most ``most`` of its points, half of them spread evenly over FPR and half over its logarithm.

    A point that is kept is one of the curve's own: at a FPR the highest TPR that does not exceed it.
    """
    if len(roc.fpr) <= most:
        return roc
    least = roc.fpr[roc.fpr > 0][0]
    wanted = np.concatenate([np.linspace(0, 1, most // 2), np.geomspace(least, 1, most - most // 2)])
    kept = np.unique(np.searchsorted(roc.fpr, wanted, side="right") - 1)
    return Roc(roc.fpr[kept], roc.tpr[kept])


def auc(members: Scores, others: Scores) -> Estimate:
    """P(member's score > other's) + P(equal) / 2, with DeLong's interval.

    The variance is that of DeLong et al. (Biometrics 44, 1988) by placements; the interval is made on the logit scale, so
    that it stays within [0, 1]. Where every member lies above every other (or below), that variance is 0; pairing each member
    with one other then gives min(m, n) independent trials that all succeeded, whose Clopper-Pearson bound is the interval's
    end.

    Args:
        members, others: scores, [m] and [n], finite; at least two of each.
    """
    sorted_members, sorted_others = np.sort(members), np.sort(others)
    # placements: the share of the other side that lies below, ties by half
    of_members = _below(sorted_others, members)
    of_others = 1 - _below(sorted_members, others)
    value = float(of_members.mean())
    variance = of_members.var(ddof=1) / len(members) + of_others.var(ddof=1) / len(others)
    if variance == 0 and value in (0.0, 1.0):
        trials = min(len(members), len(others))
        low, high = clopper_pearson(round(value * trials), trials)
        return Estimate(value, low, high)
    if variance == 0:  # all scores are equal
        return Estimate(value, 0.0, 1.0)
    logit = math.log(value / (1 - value))
    half = _z() * math.sqrt(variance) / (value * (1 - value))
    return Estimate(value, _expit(logit - half), _expit(logit + half))


def tpr_at(members: Scores, others: Scores, fpr: float) -> Estimate | str:
    """Share of the members above the lowest threshold at which at most ``fpr`` of the others are; Clopper-Pearson's interval.

    Returns:
        The share; or, where there are too few others to say it, why not. The interval is for that threshold as it stands.
    """
    least = LEAST.get(fpr, math.ceil(1 / fpr))
    if len(others) < least:
        return f"a false-positive rate of {100 * fpr:g} % needs {least} non-members, and there are {len(others)}"
    allowed = math.floor(fpr * len(others) + 1e-9)
    # strictly above the first score that may not be let in: ties with it stay out
    threshold = np.sort(others)[::-1][allowed]
    hits = int((members > threshold).sum())
    low, high = clopper_pearson(hits, len(members))
    return Estimate(hits / len(members), low, high)


def tpr_json(members: Scores, others: Scores) -> dict[str, Any]:
    """TPR at each FPR of :data:`LEAST`: ``{"0.01": {"value": …}, "0.001": {"missing": "…"}}``."""
    found = {f"{fpr:g}": tpr_at(members, others, fpr) for fpr in LEAST}
    return {fpr: {"missing": each} if isinstance(each, str) else each.to_json() for fpr, each in found.items()}


def clopper_pearson(hits: int, trials: int) -> tuple[float, float]:
    """The exact 95 % interval of a share (Clopper and Pearson, Biometrika 26, 1934)."""
    from scipy.stats import beta

    tail = (1 - LEVEL) / 2
    low = 0.0 if hits == 0 else float(beta.ppf(tail, hits, trials - hits + 1))
    high = 1.0 if hits == trials else float(beta.ppf(1 - tail, hits + 1, trials - hits))
    return low, high


def dp_bound(fpr: float, epsilon: float, delta: float) -> float:
    """The highest TPR that any attack can have at ``fpr`` against an (ε, δ)-private mechanism.

    TPR ≤ e^ε FPR + δ, and by the same for the complements TPR ≤ 1 − e^(−ε) (1 − δ − FPR) (Kairouz et al., ICML 2015,
    Theorem 2.1).
    """
    grown = math.inf if epsilon > 700 else math.exp(epsilon) * fpr + delta
    return min(1.0, grown, 1 - math.exp(-epsilon) * max(0.0, 1 - delta - fpr))


def _below(values: Scores, scores: Scores) -> Scores:
    """Share of the sorted ``values`` below each score, ties by half."""
    left, right = (np.searchsorted(values, scores, side=side) for side in ("left", "right"))
    return np.asarray((left + right) / (2 * len(values)), np.float64)


def _z() -> float:
    from scipy.stats import norm

    return float(norm.ppf((1 + LEVEL) / 2))


def _expit(value: float) -> float:
    return 1 / (1 + math.exp(-value)) if value > -700 else 0.0
