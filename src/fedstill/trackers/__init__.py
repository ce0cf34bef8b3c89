"""Trackers: reporters that hand a run's figures to TensorBoard, MLflow or Weights & Biases. None by default.

points.py        what all of them are told of a round and of an experiment
keeping.py       which run of the tracker a run's folder belongs to, so that a resumed run goes on in it
tensorboard.py  mlflow.py  wandb.py

``[output] trackers = ["tensorboard"]`` switches one on. It may also be a user's own ``package.module:factory``: a callable
without arguments that gives a :class:`fedstill.reporter.Reporter`. All that they write stays in the run's folder, under
``trackers/``, and nothing goes to a network unless the user has set it up in the environment: ``MLFLOW_TRACKING_URI``,
``WANDB_MODE=online``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from fedstill.reporter import Ending, Opening, Reporter
from fedstill.tables import resolve

__all__ = ["TRACKERS", "tracked"]

TRACKERS: Mapping[str, str] = MappingProxyType(
    {
        "tensorboard": "fedstill.trackers.tensorboard:TensorBoard",
        "mlflow": "fedstill.trackers.mlflow:MLflow",
        "wandb": "fedstill.trackers.wandb:WandB",
    }
)


def tracked(reporter: Reporter, names: Sequence[str]) -> Reporter:
    """``reporter``, and beside it the trackers that ``names`` name.

    A tracker that raises is dropped and ``reporter`` is told so: it never ends a run.

    Raises:
        InputError: a name is unknown or cannot be imported.
        MissingExtra: the package of a tracker is not installed.
    """
    if not names:
        return reporter
    factories = {name: resolve(TRACKERS, name, "output.trackers") for name in names}
    return _Tracked(reporter, {name: factory() for name, factory in factories.items()})


class _Tracked:
    """One reporter that must be heard, and trackers that may be."""

    def __init__(self, reporter: Reporter, trackers: Mapping[str, Reporter]) -> None:
        self._reporter = reporter
        self._trackers = dict(trackers)

    def opening(self, opening: Opening) -> None:
        self._reporter.opening(opening)
        self._tell(lambda tracker: tracker.opening(opening))

    def progress(self, phase: str, done: int, total: int) -> None:
        self._reporter.progress(phase, done, total)
        self._tell(lambda tracker: tracker.progress(phase, done, total))

    def row(self, row: Mapping[str, Any], *, left: float) -> None:
        self._reporter.row(row, left=left)
        self._tell(lambda tracker: tracker.row(row, left=left))

    def note(self, text: str) -> None:
        self._reporter.note(text)
        self._tell(lambda tracker: tracker.note(text))

    def closing(self, ending: Ending) -> None:
        self._tell(lambda tracker: tracker.closing(ending))
        self._reporter.closing(ending)  # last, as it may still have to hear of a tracker that fails here

    def _tell(self, say: Callable[[Reporter], None]) -> None:
        for name, tracker in list(self._trackers.items()):
            try:
                say(tracker)
            except Exception as error:  # of whatever kind: a run is worth more than its curves elsewhere
                del self._trackers[name]
                first_line = next(iter(str(error).splitlines()), "")
                self._reporter.note(
                    f"the tracker '{name}' failed and is told no more: {type(error).__name__}: {first_line}"
                )
