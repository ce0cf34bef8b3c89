"""What is measured of every round, and its line of ``metrics.jsonl``."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from torch import Tensor

from fedstill.bundle import Bundle
from fedstill.errors import RunError
from fedstill.evaluate.scoring import ClientScore, ClientScores, score_clients, score_models
from fedstill.evaluate.theory import Pull, Theory, compare
from fedstill.experiment import Parts
from fedstill.folder import FAILURES
from fedstill.rounds import Engine, Failure, Round
from fedstill.runtime import Spent, peak_memory
from fedstill.scores import Scores

__all__ = ["Attacked", "Measured", "measure", "metrics_row", "plain", "reason"]


def reason(failure: Failure) -> str:
    """Why, and where there is more to read."""
    return f"{failure.reason} (traceback in {FAILURES})" if failure.detail else failure.reason


@dataclass(frozen=True)
class Measured:
    """A round, what the clients found, and its line of ``metrics.jsonl``."""

    round: Round
    clients: ClientScores
    row: dict[str, Any]


@dataclass(frozen=True)
class Attacked:
    """How far a study's attack got; see :mod:`fedstill.data.poison`.

    Attributes:
        clients: the hostile ones.
        models: by network, its scores on test images that are labelled as the attacker wants.
    """

    clients: tuple[str, ...]
    models: Mapping[str, Scores]

    def figures(self) -> dict[str, Any]:
        """``success`` is null where there is no such test image."""
        return {
            "clients": list(self.clients),
            "success": {name: scores.accuracy for name, scores in self.models.items()},
            "examples": max((scores.examples for scores in self.models.values()), default=0),
        }


def measure(
    done: Iterable[Round],
    parts: Parts,
    engine: Engine,
    *,
    scored: Sequence[str],
    state: Bundle,
    device: str,
    gradients: bool,
    spent: Spent,
    note: Callable[[str], None],
) -> Iterator[Measured]:
    """Measure rounds as they are done.

    Args:
        done: the rounds.
        parts: what the run is made of.
        engine: where clients score.
        scored: those that have images of their own to score on.
        state: the server's before the first of the rounds.
        device: where to compute.
        gradients: compare the synthetic union's gradient with that of all clients' training images.
        spent: by the run's other processes.
        note: hears what cannot be measured, once.
    """
    real = [site.train for site in parts.sites.values()]
    pull: Pull | None = None
    noted = False
    busy = _cpu_seconds(spent)
    for each in done:
        began = time.perf_counter()
        models = score_models(parts.algorithm.models(each.state), parts.data.test, device=device)
        clients = score_clients(engine, each.number, each.state, scored, classes=len(parts.world.classes))
        attack = None
        if parts.poisoned is not None:
            succeeded = score_models(parts.algorithm.models(each.state), parts.poisoned.probe, device=device)
            attack = Attacked(parts.poisoned.clients, succeeded)
        theory: Theory | None = None
        if gradients and each.aggregated:
            theory, pull = compare(parts.world, state, each.state, real, device=device, known=pull)
            if theory is None and not noted:
                note(f"round {each.number} left no synthetic set: evaluate.gradients has nothing to compare")
                noted = True
        state = each.state
        peaks = [peak for peak in (peak_memory(), spent.peak) if peak]
        row = metrics_row(
            each,
            models,
            clients,
            theory=theory,
            attack=attack,
            seconds={"evaluate": time.perf_counter() - began},
            cpu_seconds=_cpu_seconds(spent) - busy,
            peak=max(peaks, default=None),
        )
        yield Measured(each, clients, row)
        busy = _cpu_seconds(spent)  # to keep and tell a round is no part of it


def _cpu_seconds(spent: Spent) -> float:
    """CPU time so far, of this process and of its workers' tasks."""
    return time.process_time() + spent.cpu_seconds


def metrics_row(
    each: Round,
    models: Mapping[str, Scores],
    clients: ClientScores,
    *,
    theory: Theory | None,
    attack: Attacked | None = None,
    seconds: Mapping[str, float],
    cpu_seconds: float,
    peak: int | None,
) -> dict[str, Any]:
    """One line of ``metrics.jsonl``: plain numbers, null where one is not finite or there is nothing to take it from.

    Args:
        each: the round.
        models: scores on the common test images.
        clients: scores on the clients' own images; of all that were asked, in the cohort or not.
        attack: who is hostile in this study, and how far each network does what they want; None where nobody was asked to be.
        theory: gradients compared, where that was asked for and the round has a synthetic set.
        seconds: wall time of phases that the round itself does not know.
        cpu_seconds: CPU time of this process and its workers.
        peak: largest resident size of a process, in bytes.

    Raises:
        RunError: the algorithm names a figure as the run names one of its own.
    """
    figures = dict(each.figures)
    measured = figures.pop("clients", {})
    row = {
        "round": each.number,
        **_model_figures(models),
        "loss": figures.pop("loss", {}),
        "validation": asdict(clients.validation),
        "test": asdict(clients.test) | _pooled_figures(clients.own),
        "bytes_up": each.bytes_up,
        "bytes_down": each.bytes_down,
        "bytes_scoring": clients.nbytes,
        "seconds": _joined({**each.seconds, **seconds}, figures.pop("seconds", {}), "seconds."),
        "cpu_seconds": cpu_seconds,
        "peak_memory": peak,
        "cohort": list(each.cohort),
        "aggregated": each.aggregated,
        **({} if each.withheld is None else {"withheld": each.withheld}),
        "clients": [
            _joined(_client_figures(client, clients.clients.get(client)), measured.get(client, {}), "clients.")
            for client in (*measured, *(client for client in clients.clients if client not in measured))
        ],
        "failures": [
            *({"client": failure.client, "reason": reason(failure)} for failure in each.failures),
            *({"client": failure.client, "reason": f"no score: {reason(failure)}"} for failure in clients.failures),
        ],
        **({} if theory is None else {"theory": asdict(theory)}),
        **({} if attack is None else {"attack": attack.figures()}),
    }
    line: dict[str, Any] = plain(_joined(row, figures, ""))
    return line


def _model_figures(models: Mapping[str, Scores]) -> dict[str, Any]:
    """On the common test images, of which every model saw the same."""
    return {
        "accuracy": {name: scores.accuracy for name, scores in models.items()},
        "balanced_accuracy": {name: scores.balanced_accuracy for name, scores in models.items()},
        "calibration_error": {name: scores.calibration_error for name, scores in models.items()},
        "per_class": {name: scores.per_class for name, scores in models.items()},
        "confusion": {name: scores.confusion for name, scores in models.items()},
        "test_examples": max((scores.examples for scores in models.values()), default=0),
    }


def _pooled_figures(own: Scores | None) -> dict[str, Any]:
    """On all clients' own test images together: what there is to look at where no test images are common."""
    return {
        "balanced_accuracy": own.balanced_accuracy if own else None,
        "calibration_error": own.calibration_error if own else None,
        "per_class": own.per_class if own else None,
        "confusion": own.confusion if own else None,
    }


def _client_figures(client: str, found: ClientScore | None) -> dict[str, Any]:
    """On its own images; null for what it has none of, or gave no score of."""
    test = found.test if found else None
    return {
        "client": client,
        "validation": found.validation if found else None,
        "test": None
        if test is None
        else {
            "correct": test.correct,
            "examples": test.examples,
            "accuracy": test.accuracy,
            "balanced_accuracy": test.balanced_accuracy,
            "calibration_error": test.calibration_error,
            "per_class": test.per_class,
        },
    }


def _joined(own: Mapping[str, Any], given: Mapping[str, Any], where: str) -> dict[str, Any]:
    """``given`` beside what the run measured itself."""
    if taken := sorted(own.keys() & given.keys()):
        raise RunError(
            f"the algorithm gives a figure '{where}{taken[0]}', which is the run's own: give it another name there"
        )
    return {**own, **given}


def plain(value: Any) -> Any:
    """As JSON has it: tensors and arrays as lists, null for a number that is not finite."""
    if isinstance(value, Mapping):
        return {str(key): plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain(inner) for inner in value]
    if isinstance(value, Tensor | np.ndarray | np.generic):
        return plain(value.tolist())
    return None if isinstance(value, float) and not math.isfinite(value) else value
