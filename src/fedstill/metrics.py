"""A line of ``metrics.jsonl``: all that was measured in a round."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import Tensor

from fedstill.errors import RunError
from fedstill.evaluate import Validation
from fedstill.folder import FAILURES
from fedstill.rounds import Failure, Round

__all__ = ["metrics_row", "reason"]


def reason(failure: Failure) -> str:
    """Why, and where there is more to read."""
    return f"{failure.reason} (traceback in {FAILURES})" if failure.detail else failure.reason


def metrics_row(
    each: Round,
    accuracy: Mapping[str, float],
    validation: Validation,
    seconds: Mapping[str, float],
    peak: int | None,
) -> dict[str, Any]:
    """One line of ``metrics.jsonl``: plain numbers, null where one is not finite.

    Raises:
        RunError: the algorithm names a figure as the run names one of its own.
    """
    figures = dict(each.figures)
    measured = figures.pop("clients", {})
    row = {
        "round": each.number,
        "accuracy": accuracy,
        "loss": figures.pop("loss", {}),
        "validation": {"correct": validation.correct, "examples": validation.examples, "mean": validation.mean},
        "bytes_up": each.bytes_up,
        "bytes_down": each.bytes_down,
        "bytes_scoring": validation.nbytes,
        "seconds": _joined({**each.seconds, **seconds}, figures.pop("seconds", {}), "seconds."),
        "peak_memory": peak,
        "cohort": list(each.cohort),
        "aggregated": each.aggregated,
        "clients": [
            _joined({"client": client, "validation": validation.clients.get(client)}, values, "clients.")
            for client, values in measured.items()
        ],
        "failures": [
            *({"client": failure.client, "reason": reason(failure)} for failure in each.failures),
            *({"client": failure.client, "reason": f"no score: {reason(failure)}"} for failure in validation.failures),
        ],
    }
    plain: dict[str, Any] = _plain(_joined(row, figures, ""))
    return plain


def _joined(own: Mapping[str, Any], given: Mapping[str, Any], where: str) -> dict[str, Any]:
    """``given`` beside what the run measured itself."""
    if taken := sorted(own.keys() & given.keys()):
        raise RunError(
            f"the algorithm gives a figure '{where}{taken[0]}', which is the run's own: give it another name there"
        )
    return {**own, **given}


def _plain(value: Any) -> Any:
    """As JSON has it."""
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    if isinstance(value, Tensor | np.ndarray | np.generic):
        return _plain(value.tolist())
    return None if isinstance(value, float) and not math.isfinite(value) else value
