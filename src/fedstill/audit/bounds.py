"""Whether a membership attack tells more than a guarantee of differential privacy allows.

Against an (ε, δ)-private mechanism every test of "is this image in?" has (Kairouz, Oh and Viswanath, "The Composition Theorem for
Differential Privacy", ICML 2015, Theorem 2.1)

    TPR ≤ e^ε FPR + δ        and        TPR ≤ 1 − e^(−ε) (1 − δ − FPR)

so an attack that has (FPR, TPR) shows that ε is at least the larger of ln((TPR − δ) / FPR) and ln((1 − δ − FPR) / (1 − TPR)).

*Neighbours.* A client's ε is told for data in which one image counts or counts nothing. The audit plays another game: a client
holds a fixed number of images of each class, so that an image that is out has another in its place. Exchanging one is two such
changes, (ε′, δ′) = (2 ε, (1 + e^ε) δ). An attack *refutes* the guarantee only above this bound: ε is at least half of what it
shows of ε′.

*Looks.* Thresholds are set by the false-positive rates of :data:`RATES`, chosen beforehand. TPR is taken at its lower limit, and
FPR at its upper one, each at a level of 5 % / (2 looks): Bonferroni over both limits, all rates, attacks and views of an audit.
The threshold is the k-th highest score of n others, so the FPR there is Beta(k, n − k + 1) distributed or less, whatever the
scores: Clopper and Pearson's upper limit for k − 1 of n. The limits take images as independent; those of one training are nearly,
but not quite.

Symbols: ε, δ ``Claim.epsilon``, ``Claim.delta``; ε′, δ′ ``Claim.exchanged``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedstill.audit.roc import dp_bound

__all__ = ["CITATION", "RATES", "Claim", "against", "shown"]

CITATION = "Kairouz et al., The Composition Theorem for Differential Privacy, ICML 2015, Theorem 2.1"
RATES = (0.01, 0.1)
"""False-positive rates at which a guarantee is tried."""

ERROR = 0.05  # of all limits of an audit together


@dataclass(frozen=True)
class Claim:
    """What a client says of its training images: (ε, δ) for one image that counts or counts nothing."""

    epsilon: float
    delta: float

    @property
    def exchanged(self) -> tuple[float, float]:
        """(ε′, δ′) for one image in the place of another."""
        grown = math.inf if self.epsilon > 700 else math.exp(self.epsilon)
        return 2 * self.epsilon, min(1.0, (1 + grown) * self.delta)


def against(members: NDArray[np.float64], others: NDArray[np.float64], claim: Claim, *, looks: int) -> dict[str, Any]:
    """What scores, [m] and [n], show against ``claim``.

    Args:
        looks: how often guarantees are tried in this audit, this time included once for each of :data:`RATES`.

    Returns:
        ``rates`` by FPR: ``fpr_high``, ``tpr``, ``tpr_low``, ``shown`` (ε is at least that), and the TPR that is allowed at that
        FPR, ``allowed`` where an image counts or not and ``allowed_exchanged`` where it is exchanged; or ``missing``.
        ``shown``, the largest; ``exceeds``, whether that refutes the guarantee. Both are None where no rate could be tried.
    """
    tail = ERROR / (2 * looks)
    epsilon, delta = claim.exchanged
    rates: dict[str, Any] = {}
    for rate in RATES:
        least = math.ceil(1 / rate)
        if len(others) < least:
            rates[f"{rate:g}"] = {
                "missing": f"a false-positive rate of {100 * rate:g} % needs {least} non-members, and there are {len(others)}"
            }
            continue
        above = math.floor(rate * len(others) + 1e-9)
        # strictly above it lie at most so many of the others
        threshold = np.sort(others)[::-1][above]
        hits = int((members > threshold).sum())
        fpr_high, tpr_low = _high(above, len(others), tail), 1 - _high(len(members) - hits, len(members), tail)
        rates[f"{rate:g}"] = {
            "fpr_high": fpr_high,
            "tpr": hits / len(members),
            "tpr_low": tpr_low,
            "allowed": dp_bound(rate, claim.epsilon, claim.delta),
            "allowed_exchanged": dp_bound(rate, epsilon, delta),
            "shown": shown(fpr_high, tpr_low, delta) / 2,
        }
    found = [each["shown"] for each in rates.values() if "missing" not in each]
    return {
        "rates": rates,
        "shown": max(found) if found else None,
        "exceeds": max(found) > claim.epsilon if found else None,
    }


def shown(fpr: float, tpr: float, delta: float) -> float:
    """The least ε at δ that (FPR, TPR) leaves possible; 0 where it says nothing. An FPR of 0 or a TPR of 1 has no finite one."""
    ratios = [
        (max(0.0, tpr - delta), fpr),
        (max(0.0, 1 - delta - fpr), 1 - tpr),
    ]
    logs = [math.log(above / below) if below > 0 else math.inf for above, below in ratios if above > 0]
    return max(0.0, *logs) if logs else 0.0


def _high(hits: int, trials: int, tail: float) -> float:
    """Clopper and Pearson's one-sided upper limit of a share."""
    from scipy.stats import beta

    return 1.0 if hits == trials else float(beta.ppf(1 - tail, hits + 1, trials - hits))
