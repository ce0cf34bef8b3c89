"""Trackers: what they are told, how they go on after a resume, and that none of them can end a run."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

import tiny
from fedstill.errors import InputError, MissingExtra, RunError
from fedstill.reporter import Opening, Silent
from fedstill.run import drive
from fedstill.trackers import TRACKERS, _Tracked, tracked
from fedstill.trackers.mlflow import MANNERS
from fedstill.trackers.points import parameters, points

ROW = {
    "round": 2,
    "accuracy": {"surrogate": 0.5, "resnet18": None},
    "balanced_accuracy": {"surrogate": 0.4},
    "calibration_error": {"surrogate": 0.1},
    "loss": {"surrogate": 0.7},
    "validation": {"correct": 3, "examples": 4, "mean": 0.75},
    "test": {"correct": 0, "examples": 0, "mean": None},
    "bytes_up": 10,
    "bytes_down": 20,
    "bytes_scoring": 5,
    "seconds": {"clients": 1.0, "server": 2.0, "evaluate": 0.5, "distil": 1.5},
    "cpu_seconds": 3.5,
    "peak_memory": None,
    "theory": {"cosine_before": 0.25, "cosine_after": None},
    "clients": [
        {"client": "a", "matching": {"start": 1.0, "end": 0.2}},
        {"client": "b", "matching": {"start": 0.8, "end": None}},
        {"client": "c", "validation": 0.5},
    ],
    "failures": [{"client": "d", "reason": "away"}],
    "aggregated": True,
}


def test_a_round_as_points():
    assert points(ROW) == {
        "accuracy/surrogate": 0.5,
        "balanced_accuracy/surrogate": 0.4,
        "calibration_error/surrogate": 0.1,
        "loss/surrogate": 0.7,
        "validation/mean": 0.75,
        "bytes/up": 10,
        "bytes/down": 20,
        "bytes/scoring": 5,
        "seconds/clients": 1.0,
        "seconds/server": 2.0,
        "seconds/evaluate": 0.5,
        "seconds/distil": 1.5,
        "machine/cpu_seconds": 3.5,
        "theory/cosine_before": 0.25,
        "clients/failures": 1,
        "matching/start": pytest.approx(0.9),
        "matching/end": 0.2,
    }


def test_an_experiment_as_parameters(tmp_path):
    table = tiny.table(tiny.FEDDGM, rounds=4)
    table["algorithm"]["global_models"] = [{"name": "convnet", "width": 8}]
    settings = tiny.Experiment.from_table(table)
    (tmp_path / "experiment.toml").write_text(settings.to_toml({"torch": "2.9"}))
    found = parameters(tmp_path)
    assert (found["rounds"], found["algorithm.ipc"], found["partition.kind"]) == (4, 1, "kclass")
    assert found["provenance.torch"] == "2.9"
    assert json.loads(str(found["algorithm.global_models"]))[0]["width"] == 8


# --- fakes of the three packages ----------------------------------------------------------------------------------------


class FakeWriter:
    """``SummaryWriter``: leaves a file, and remembers."""

    made: list[FakeWriter]

    def __init__(self, log_dir: str, purge_step: int | None = None) -> None:
        self.log_dir, self.purge_step = Path(log_dir), purge_step
        self.points: dict[int, dict[str, float]] = {}
        self.texts: list[str] = []
        self.closed = False
        FakeWriter.made.append(self)
        (self.log_dir / f"events.{len(FakeWriter.made)}").touch()

    def add_scalar(self, name: str, value: float, step: int) -> None:
        self.points.setdefault(step, {})[name] = value

    def add_text(self, name: str, text: str, step: int) -> None:
        self.texts.append(text)

    def flush(self) -> None: ...

    def close(self) -> None:
        self.closed = True


class FakeServer:
    """All that MLflow's clients keep, by address."""

    def __init__(self) -> None:
        self.runs: dict[str, dict[str, Any]] = {}
        self.experiments: dict[str, str | None] = {}


class FakeMlflow:
    servers: dict[str, FakeServer]

    def __init__(self, tracking_uri: str) -> None:
        self.server = FakeMlflow.servers.setdefault(tracking_uri, FakeServer())

    def get_experiment_by_name(self, name: str) -> Any:
        return SimpleNamespace(experiment_id=name) if name in self.server.experiments else None

    def create_experiment(self, name: str, artifacts: str | None) -> str:
        self.server.experiments[name] = artifacts
        return name

    def create_run(self, experiment: str, run_name: str) -> Any:
        key = f"run-{len(self.server.runs)}"
        self.server.runs[key] = {"params": {}, "tags": {}, "metrics": [], "status": "RUNNING", "name": run_name}
        return SimpleNamespace(info=SimpleNamespace(run_id=key))

    def update_run(self, run: str, status: str) -> None:
        self.server.runs[run]["status"] = status

    set_terminated = update_run

    def get_metric_history(self, run: str, key: str) -> list[Any]:
        return [metric for metric in self.server.runs[run]["metrics"] if metric.key == key]

    def log_batch(self, run: str, metrics: Any = (), params: Any = (), tags: Any = ()) -> None:
        assert max(len(params), len(tags)) <= 100
        held = self.server.runs[run]
        for param in params:
            assert held["params"].setdefault(param.key, param.value) == param.value, "MLflow's parameters cannot change"
        held["tags"].update({tag.key: tag.value for tag in tags})
        held["metrics"] += metrics


class FakeWandbRun:
    def __init__(self, options: dict[str, Any]) -> None:
        self.options = options
        self.id = options["id"] or "fresh"
        self.config: Any = FakeConfig()
        self.points: dict[int, dict[str, float]] = {}
        self.exit_code: int | None = None

    def log(self, values: dict[str, float], step: int) -> None:
        assert step not in self.points
        self.points[step] = values

    def finish(self, exit_code: int) -> None:
        self.exit_code = exit_code


class FakeConfig(dict[str, Any]):
    def update(self, values: Any, *, allow_val_change: bool) -> None:
        assert allow_val_change
        super().update(values)


@pytest.fixture
def packages(monkeypatch):
    """Fakes of the three packages; what they were told."""
    FakeWriter.made, FakeMlflow.servers = [], {}
    runs: list[FakeWandbRun] = []

    def begin(**options: Any) -> FakeWandbRun:
        runs.append(FakeWandbRun(options))
        return runs[-1]

    def value(*names: str) -> Any:
        return lambda *values: SimpleNamespace(**dict(zip(names, values, strict=True)))

    def module(name: str, **contents: Any) -> None:
        made = ModuleType(name)
        vars(made).update(contents)
        monkeypatch.setitem(sys.modules, name, made)

    for variable in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME", "WANDB_MODE", "WANDB_PROJECT"):
        monkeypatch.delenv(variable, raising=False)
    for name, manner in {**MANNERS, "WANDB_SILENT": "true"}.items():
        monkeypatch.setenv(name, manner)  # else the tracker would set it for the tests that follow
    module("torch.utils.tensorboard", SummaryWriter=FakeWriter)
    module(
        "mlflow",
        MlflowClient=FakeMlflow,
        entities=SimpleNamespace(
            Param=value("key", "value"), RunTag=value("key", "value"), Metric=value("key", "value", "at", "step")
        ),
    )
    module("wandb", init=begin, Settings=lambda **options: options)
    return SimpleNamespace(writers=FakeWriter.made, servers=FakeMlflow.servers, runs=runs)


def run(out: Path, *, rounds: int, trackers=tuple(TRACKERS), **options: Any) -> list[dict[str, Any]]:
    """A run with trackers; its lines."""
    drive(tiny.experiment(rounds=rounds, output={"trackers": list(trackers)}), out=out, **options)
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def test_every_tracker_hears_every_round_once_also_when_resumed(packages, tmp_path):
    out = tmp_path / "run"
    run(out, rounds=2)
    rows = run(out, rounds=3, resume=True)
    expected = {row["round"]: points(row) for row in rows}

    first, second = packages.writers
    assert first.log_dir == second.log_dir == out / "trackers" / "tensorboard"
    assert (first.purge_step, second.purge_step) == (None, 3)
    assert {**first.points, **second.points} == expected
    assert first.points.keys().isdisjoint(second.points)
    assert "rounds = 3" in second.texts[0]
    assert second.closed

    ((address, server),) = packages.servers.items()
    assert address == f"sqlite:///{out / 'trackers' / 'mlflow' / 'mlflow.db'}"
    assert server.experiments == {"fedstill": (out / "trackers" / "mlflow" / "artifacts").as_uri()}
    ((_, held),) = server.runs.items()
    assert (held["status"], held["name"]) == ("FINISHED", "run")
    assert held["params"]["algorithm.lr"] == "0.1"
    assert (held["tags"]["rounds"], held["tags"]["engine.workers"]) == ("3", "1")
    told = [(metric.step, metric.key) for metric in held["metrics"]]
    assert sorted(told) == sorted((number, name) for number, values in expected.items() for name in values)
    assert {metric.key: metric.value for metric in held["metrics"] if metric.step == 3} == expected[3]

    before, after = packages.runs
    assert (before.options["id"], after.options["id"]) == (None, "fresh")
    assert before.options["mode"] == after.options["mode"] == "offline"
    assert before.options["dir"] == str(out / "trackers" / "wandb")
    assert before.options["settings"] == {"console": "off", "disable_git": True, "disable_code": True}
    assert {**before.points, **after.points} == expected
    assert before.points.keys().isdisjoint(after.points)
    assert (before.config["rounds"], after.config["rounds"], after.exit_code) == (2, 3, 0)


def test_a_tracker_that_comes_later_hears_of_the_rounds_before(packages, tmp_path):
    run(tmp_path, rounds=2, trackers=())
    run(tmp_path, rounds=3, resume=True)
    assert list(packages.writers[0].points) == list(packages.runs[0].points) == [1, 2, 3]
    ((_, server),) = packages.servers.items()
    assert {metric.step for metric in server.runs["run-0"]["metrics"]} == {1, 2, 3}


def test_the_users_own_places_are_used(packages, tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://mlflow.example")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "hospitals")
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setenv("WANDB_PROJECT", "hospitals")
    run(tmp_path, rounds=1)
    assert packages.servers["https://mlflow.example"].experiments == {"hospitals": None}
    assert (packages.runs[0].options["mode"], packages.runs[0].options["project"]) == ("online", "hospitals")
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    run(tmp_path, rounds=2, resume=True)
    # another store knows nothing of the run: it is told everything
    (local,) = (server for address, server in packages.servers.items() if address.startswith("sqlite"))
    assert {metric.step for metric in local.runs["run-0"]["metrics"]} == {1, 2}


def test_overwriting_a_run_begins_new_ones(packages, tmp_path):
    run(tmp_path, rounds=1)
    run(tmp_path, rounds=1, overwrite=True)
    assert [made.options["id"] for made in packages.runs] == [None, None]
    assert [made.purge_step for made in packages.writers] == [None, None]
    assert (tmp_path / "trackers" / "tensorboard" / "events.2").exists()
    assert not (tmp_path / "trackers" / "tensorboard" / "events.1").exists()


@pytest.mark.parametrize(
    ("error", "statuses"), [(KeyboardInterrupt(), ("KILLED", 1)), (RunError("full"), ("FAILED", 1))], ids=repr
)
def test_how_a_run_ended_is_told(error, statuses, packages, tmp_path, monkeypatch):
    def stop(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("fedstill.run.append_line", stop)
    with pytest.raises(type(error)):
        run(tmp_path, rounds=1)
    ((_, server),) = packages.servers.items()
    assert (server.runs["run-0"]["status"], packages.runs[0].exit_code) == statuses
    assert packages.writers[0].closed


class Listener(Silent):
    """Remembers what is said."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def note(self, text: str) -> None:
        self.said.append(text)


class Broken(Silent):
    """Fails at what it is told to fail at; each time anew, were it asked."""

    at = "row"

    def opening(self, opening: Opening) -> None:
        self._fail("opening")

    def progress(self, phase: str, done: int, total: int) -> None:
        self._fail("progress")

    def row(self, row: Any, *, left: float) -> None:
        self._fail("row")

    def closing(self, ending: str) -> None:
        self._fail("closing")

    def _fail(self, here: str) -> None:
        if here == Broken.at:
            raise OSError(f"no route to {here}\nand a long story")


@pytest.mark.parametrize("at", ["opening", "progress", "row", "closing"])
def test_a_tracker_that_fails_is_named_once_and_the_run_goes_on(at, packages, tmp_path, monkeypatch):
    monkeypatch.setattr(Broken, "at", at)
    listener = Listener()
    rows = run(tmp_path, rounds=2, trackers=[f"{__name__}:Broken", "wandb"], reporter=listener)
    name = f"{__name__}:Broken"
    assert listener.said == [f"the tracker '{name}' failed and is told no more: OSError: no route to {at}"]
    assert len(rows) == 2
    assert list(packages.runs[0].points) == [1, 2]


@pytest.mark.parametrize(
    ("name", "module"), [("tensorboard", "torch.utils.tensorboard"), ("mlflow", "mlflow"), ("wandb", "wandb")]
)
def test_a_missing_package_is_said_before_the_run_begins(name, module, tmp_path, monkeypatch):
    for variable, manner in {**MANNERS, "WANDB_SILENT": "true"}.items():
        monkeypatch.setenv(variable, manner)
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(
        MissingExtra, match=rf"'{name}'\] needs the package '{name}': .*pip install 'fedstill\[{name}\]'"
    ):
        run(tmp_path / "run", rounds=1, trackers=[name])
    assert not (tmp_path / "run").exists()


def test_an_unknown_tracker_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"output.trackers = 'tensorbord': did you mean 'tensorboard'\?"):
        run(tmp_path / "run", rounds=1, trackers=["tensorbord"])
    assert not (tmp_path / "run").exists()


def test_no_tracker_is_no_wrapper():
    listener = Listener()
    assert tracked(listener, ()) is listener


def test_tensorboard_itself_reads_back_what_was_told(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run(tmp_path, rounds=2, trackers=["tensorboard"])
    rows = run(tmp_path, rounds=3, trackers=["tensorboard"], resume=True)
    read = EventAccumulator(str(tmp_path / "trackers" / "tensorboard")).Reload()
    assert set(read.Tags()["scalars"]) == set(points(rows[0]))
    for row in rows:
        (held,) = (point for point in read.Scalars("accuracy/global") if point.step == row["round"])
        assert held.value == pytest.approx(row["accuracy"]["global"])


def test_a_round_that_was_not_told_is_told_when_the_run_goes_on(packages, tmp_path, monkeypatch):
    heard = _Tracked.row

    def stopped(self, row, *, left):
        if row["round"] == 2:
            raise KeyboardInterrupt
        heard(self, row, left=left)

    monkeypatch.setattr(_Tracked, "row", stopped)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, rounds=3)
    monkeypatch.setattr(_Tracked, "row", heard)
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 2
    run(tmp_path, rounds=3, resume=True)
    ((_, server),) = packages.servers.items()
    assert {metric.step for metric in server.runs["run-0"]["metrics"]} == {1, 2, 3}
    assert [list(made.points) for made in packages.writers] == [[1], [2, 3]]
    assert packages.writers[1].purge_step == 2
    assert [list(made.points) for made in packages.runs] == [[1], [2, 3]]


def test_a_round_that_the_run_repeats_is_not_told_twice(packages, tmp_path):
    run(tmp_path, rounds=3)
    for file in (tmp_path / "checkpoints").glob("round-0003.*"):
        file.unlink()
    run(tmp_path, rounds=4, resume=True)
    ((_, server),) = packages.servers.items()
    assert sorted(metric.step for metric in server.runs["run-0"]["metrics"] if metric.key == "bytes/up") == [1, 2, 3, 4]
    assert [list(made.points) for made in packages.writers] == [[1, 2, 3], [4]]
    assert [list(made.points) for made in packages.runs] == [[1, 2, 3], [4]]


def test_a_password_of_a_server_stays_out_of_the_runs_folder(packages, tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://me:secret@mlflow.example")
    run(tmp_path, rounds=1, trackers=["mlflow"])
    assert json.loads((tmp_path / "trackers" / "mlflow" / "run.json").read_text())["store"] == "mlflow.example"
