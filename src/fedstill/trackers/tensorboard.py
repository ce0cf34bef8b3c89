"""TensorBoard: event files in ``RUN/trackers/tensorboard``. Look at them with  tensorboard --logdir runs"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedstill.errors import MissingExtra
from fedstill.folder import EXPERIMENT
from fedstill.reporter import Ending, Opening
from fedstill.trackers.keeping import Kept, keep, kept, place
from fedstill.trackers.points import points

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

__all__ = ["TensorBoard"]

STORE = "here"


class TensorBoard:
    """A curve a figure; the experiment file as text.

    Raises:
        MissingExtra: the package is not installed.
    """

    def __init__(self) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise MissingExtra(
                "tensorboard", extra="tensorboard", wanted_for="output.trackers = ['tensorboard']"
            ) from error
        self._new = SummaryWriter
        self._writer: SummaryWriter | None = None
        self._folder = Path()
        self._last = 0

    def opening(self, opening: Opening) -> None:
        self._folder = place(opening.out, "tensorboard")
        known = kept(self._folder, store=STORE)
        self._last = known.last if known else 0
        # points of a round that a crash cut off are hidden: it is told anew
        self._writer = self._new(str(self._folder), purge_step=self._last + 1 if known else None)
        text = (opening.out / EXPERIMENT).read_text(encoding="utf-8")
        self._writer.add_text("experiment", f"```toml\n{text}```", opening.done)
        for row in opening.rows:
            self.row(row, left=0.0)

    def progress(self, phase: str, done: int, total: int) -> None: ...

    def row(self, row: Mapping[str, Any], *, left: float) -> None:
        if self._writer is None or row["round"] <= self._last:
            return
        for name, value in points(row).items():
            self._writer.add_scalar(name, value, row["round"])
        self._writer.flush()
        self._last = row["round"]
        keep(self._folder, Kept("", STORE, self._last))

    def note(self, text: str) -> None: ...

    def closing(self, ending: Ending) -> None:
        if self._writer is not None:
            self._writer.close()
