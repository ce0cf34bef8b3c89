"""Weights & Biases, offline: files in ``RUN/trackers/wandb``, that ``wandb sync`` sends where its user wants them.

``WANDB_MODE=online`` in the environment sends them during the run. Neither code, nor the state of a repository, nor what the
process prints is handed over; the host's name, its load and the command line are.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedstill.errors import MissingExtra
from fedstill.reporter import Ending, Opening
from fedstill.trackers.keeping import Kept, keep, kept, place
from fedstill.trackers.points import parameters, points

__all__ = ["WandB"]

STORE = "wandb"


class WandB:
    """A curve a figure; the experiment as the run's config.

    Raises:
        MissingExtra: the package is not installed.
    """

    def __init__(self) -> None:
        os.environ.setdefault("WANDB_SILENT", "true")  # it would write into the board of a run
        try:
            import wandb
        except ImportError as error:
            raise MissingExtra("wandb", extra="wandb", wanted_for="output.trackers = ['wandb']") from error
        self._package: Any = wandb
        self._run: Any = None
        self._folder = Path()
        self._last = 0

    def opening(self, opening: Opening) -> None:
        self._folder = place(opening.out, "wandb")
        known = kept(self._folder, store=STORE)
        self._last = known.last if known else 0
        self._run = self._package.init(
            project=os.environ.get("WANDB_PROJECT", "fedstill"),
            name=opening.out.resolve().name,
            id=known.run if known else None,
            resume="allow",
            mode=os.environ.get("WANDB_MODE", "offline"),
            dir=str(self._folder),
            settings=self._package.Settings(console="off", disable_git=True, disable_code=True),
        )
        # not as init's argument: a resumed run may have another number of rounds
        self._run.config.update(parameters(opening.out), allow_val_change=True)
        self._keep()
        for row in opening.rows:
            self.row(row, left=0.0)

    def progress(self, phase: str, done: int, total: int) -> None: ...

    def row(self, row: Mapping[str, Any], *, left: float) -> None:
        # a round that a damaged checkpoint makes the run repeat gives the same figures as before
        if self._run is None or row["round"] <= self._last:
            return
        self._run.log(points(row), step=row["round"])
        self._last = row["round"]
        self._keep()

    def note(self, text: str) -> None: ...

    def closing(self, ending: Ending) -> None:
        if self._run is not None:
            self._run.finish(exit_code=0 if ending == "finished" else 1)

    def _keep(self) -> None:
        keep(self._folder, Kept(self._run.id, STORE, self._last))
