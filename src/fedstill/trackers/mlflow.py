"""MLflow: a database in ``RUN/trackers/mlflow``, or the server that ``MLFLOW_TRACKING_URI`` names.

Look at the former with  mlflow ui --backend-store-uri sqlite:///RUN/trackers/mlflow/mlflow.db
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from typing import Any

from fedstill.errors import MissingExtra
from fedstill.reporter import Ending, Opening
from fedstill.trackers.keeping import Kept, keep, kept, place
from fedstill.trackers.points import parameters, points

__all__ = ["MLflow"]

LOCAL = "here"
ALWAYS = "bytes/down"  # a figure that every round has
STATUS = {"finished": "FINISHED", "interrupted": "KILLED", "failed": "FAILED"}
BATCH = 100  # parameters, tags: as many as a server takes at a time
MANNERS = {
    "MLFLOW_LOGGING_LEVEL": "WARNING",  # else it tells the terminal of every table that it makes
    # a server that is away is given up on in less than a minute, not in five
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "15",
}
"""What MLflow reads from the environment, where its user has not said otherwise."""
MAY_CHANGE = ("name", "rounds", "engine", "evaluate", "output", "published", "provenance")
"""Keys and tables of an experiment that may differ when a run is resumed. MLflow's parameters cannot change: these are tags."""


class MLflow:
    """A metric a figure; what decides the results as parameters, what does not as tags.

    Raises:
        MissingExtra: the package is not installed.
    """

    def __init__(self) -> None:
        for name, value in MANNERS.items():
            os.environ.setdefault(name, value)
        try:
            from mlflow import MlflowClient, entities
        except ImportError as error:
            raise MissingExtra("mlflow", extra="mlflow", wanted_for="output.trackers = ['mlflow']") from error
        self._connect: Any = MlflowClient
        self._entities: Any = entities
        self._client: Any = None
        self._run: str | None = None
        self._last = 0

    def opening(self, opening: Opening) -> None:
        folder = place(opening.out, "mlflow")
        given = os.environ.get("MLFLOW_TRACKING_URI")
        # by name, not by path, as the folder of a run may be moved; and without a password, as it may be given away
        store = given.rpartition("@")[2] if given else LOCAL
        self._client = self._connect(tracking_uri=given or f"sqlite:///{folder / 'mlflow.db'}")
        known = kept(folder, store=store)
        if known is None:
            self._run = self._begin(opening.out.resolve().name, None if given else (folder / "artifacts").as_uri())
            keep(folder, Kept(self._run, store))
        else:
            self._run = known.run
            self._client.update_run(self._run, status="RUNNING")
            # how far it is, its own store knows best
            self._last = max((point.step for point in self._client.get_metric_history(self._run, ALWAYS)), default=0)
        settings = parameters(opening.out)
        free = {name: value for name, value in settings.items() if name.partition(".")[0] in MAY_CHANGE}
        self._send(tags=[self._entities.RunTag(name, str(value)) for name, value in free.items()])
        if known is None:
            fixed = [self._entities.Param(name, str(value)) for name, value in settings.items() if name not in free]
            self._send(params=fixed)
        for row in opening.rows:
            self.row(row, left=0.0)

    def progress(self, phase: str, done: int, total: int) -> None: ...

    def row(self, row: Mapping[str, Any], *, left: float) -> None:
        # a round that a damaged checkpoint makes the run repeat gives the same figures as before
        if self._run is None or row["round"] <= self._last:
            return
        self._last = row["round"]
        now = int(1000 * time.time())
        metrics = [self._entities.Metric(name, value, now, row["round"]) for name, value in points(row).items()]
        self._client.log_batch(self._run, metrics=metrics)

    def note(self, text: str) -> None: ...

    def closing(self, ending: Ending) -> None:
        if self._run is not None:
            self._client.set_terminated(self._run, status=STATUS[ending])

    def _begin(self, name: str, artifacts: str | None) -> str:
        """A new run; its identifier. ``artifacts``: where files would be kept; None leaves it to the server."""
        title = os.environ.get("MLFLOW_EXPERIMENT_NAME", "fedstill")
        experiment = self._client.get_experiment_by_name(title)
        number = experiment.experiment_id if experiment else self._client.create_experiment(title, artifacts)
        return str(self._client.create_run(number, run_name=name).info.run_id)

    def _send(self, *, params: Sequence[Any] = (), tags: Sequence[Any] = ()) -> None:
        for start in range(0, max(len(params), len(tags)), BATCH):
            chunk = slice(start, start + BATCH)
            self._client.log_batch(self._run, params=params[chunk], tags=tags[chunk])
