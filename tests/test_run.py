from __future__ import annotations

import json
import math
import signal
import tomllib
from pathlib import Path

import numpy as np
import pytest
import torch
from joblib.externals.loky.process_executor import TerminatedWorkerError
from safetensors.torch import load_file

import fedstill
import tiny
from fedstill import cost as cost_module
from fedstill import metrics as metrics_module
from fedstill.algorithms.averaging import FedAvg
from fedstill.bundle import Bundle
from fedstill.cost import estimate
from fedstill.errors import InputError, RunError
from fedstill.evaluate.scoring import ClientScore, ClientScores
from fedstill.experiment import Experiment
from fedstill.metrics import metrics_row
from fedstill.output import thinned
from fedstill.reporter import Silent
from fedstill.rounds import Round
from fedstill.run import drive
from fedstill.scores import Scores, score


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    out = tmp_path_factory.mktemp("run")
    return drive(tiny.experiment(tiny.FEDDGM, rounds=4), out=out)


def test_a_run_leaves_what_it_promises(finished):
    names = {path.name for path in finished.out.iterdir()}
    assert names == {
        ".lock",
        "experiment.toml",
        "partition.json",
        "metrics.jsonl",
        "summary.json",
        "checkpoints",
        "synthetic",
        "models",
        "report.html",
    }
    checkpoints = {path.name for path in (finished.out / "checkpoints").iterdir()}
    assert checkpoints == {
        f"{stem}.{end}" for stem in ("round-0003", "round-0004", "best") for end in ("json", "safetensors")
    }
    synthetic = {path.name for path in (finished.out / "synthetic").iterdir()}
    assert synthetic == {f"round-000{n}{end}" for n in (1, 2, 3, 4) for end in ("", ".safetensors")}


def test_a_row_has_every_figure(finished):
    lines = [json.loads(line) for line in (finished.out / "metrics.jsonl").read_text().splitlines()]
    assert [line["round"] for line in lines] == [1, 2, 3, 4]
    row = lines[0]
    assert set(row["accuracy"]) == set(row["loss"]) == {"surrogate"}
    assert row["validation"]["examples"] == sum(12 // 3 for _ in range(3))
    assert set(row["seconds"]) == {"clients", "server", "distil", "train", "evaluate"}
    assert row["bytes_up"] > row["bytes_down"] > 0
    assert row["bytes_scoring"] > row["bytes_down"]
    assert row["peak_memory"] > 10_000_000
    assert row["union"] == 30
    assert row["cohort"] == [client["client"] for client in row["clients"]] == ["c00", "c01", "c02"]
    assert set(row["clients"][0]) == {"client", "examples", "loss", "matching", "validation", "test"}
    of_all = dict.fromkeys(("mean", "balanced_accuracy", "calibration_error", "per_class", "confusion"))
    assert row["test"] == {"correct": 0, "examples": 0, **of_all}
    assert row["clients"][0]["test"] is None
    assert row["test_examples"] == 50
    # one thread cannot be busy for longer than the round took; generous, for clocks that differ
    assert 0 < row["cpu_seconds"] < 3 * sum(row["seconds"][phase] for phase in ("clients", "server", "evaluate"))
    assert "theory" not in row


def test_a_row_scores_every_model_on_the_common_test_images(finished):
    row = json.loads((finished.out / "metrics.jsonl").read_text().splitlines()[-1])
    model = fedstill.load_model(finished.out / "models" / "surrogate.safetensors")
    found = score(model.network, tiny.experiment().build().data.test)
    assert row["confusion"]["surrogate"] == found.confusion.tolist()
    assert row["per_class"]["surrogate"] == list(found.per_class)
    for name in ("accuracy", "balanced_accuracy", "calibration_error"):
        assert row[name]["surrogate"] == getattr(found, name)


def test_the_runs_own_copy_reads_back_with_versions(finished):
    table = tomllib.loads((finished.out / "experiment.toml").read_text())
    assert table["provenance"]["fedstill"] == fedstill.__version__
    assert Experiment.from_table(table) == tiny.experiment(tiny.FEDDGM, rounds=4)


def test_model_files_know_what_they_are(finished):
    model = fedstill.load_model(finished.out / "models" / "surrogate.safetensors")
    test = tiny.experiment().build().data.test
    hits = [
        name == test.classes[label]
        for (name, _), label in zip(model.label(test.images / 255), test.labels, strict=True)
    ]
    assert sum(hits) / len(hits) == pytest.approx(finished.accuracy["surrogate"])
    assert model.notes["round"] == 4


def test_synthetic_sets_are_bundles_of_images_and_labels(finished):
    sets = Bundle.open(finished.out / "synthetic" / "round-0004.safetensors").members("synthetic")
    assert set(sets) == {"c00", "c01", "c02"}
    assert sets["c00"]["images"].shape == (10, 1, 8, 8)
    assert sets["c00"]["labels"].tolist() == list(range(10))


def test_summary_tells_the_round_to_choose(finished):
    summary = json.loads((finished.out / "summary.json").read_text())
    assert summary["finished"]
    assert summary["rounds"] == 4
    assert summary["selected_round"] == finished.selected_round
    assert summary["wall_seconds"] > 0


def test_ten_lines_of_python_and_not_a_word(tmp_path, capfd):
    experiment = fedstill.Experiment.from_table(tiny.table(rounds=1))
    done = fedstill.drive(experiment, out=tmp_path / "run")
    assert done.accuracy["global"] > 0
    assert capfd.readouterr() == ("", "")


def test_another_run_is_not_written_over_unless_asked(tmp_path):
    drive(tiny.experiment(rounds=2), out=tmp_path)
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(InputError, match=r"already holds a run: continue it with  fedstill resume"):
        drive(tiny.experiment(rounds=1), out=tmp_path)
    drive(tiny.experiment(rounds=1), out=tmp_path, overwrite=True)
    assert len(tiny.rows(tmp_path)) == 1
    assert not (tmp_path / "checkpoints" / "round-0002.json").exists()
    assert (tmp_path / "mine.txt").read_text() == "keep"


def test_only_a_run_is_overwritten(tmp_path):
    own = tmp_path / "own"
    (own / "models").mkdir(parents=True)
    for overwrite in (False, True):
        with pytest.raises(InputError, match=r"holds 'models' but no run, as experiment\.toml is missing"):
            drive(tiny.experiment(), out=own, overwrite=overwrite)
    hand = tmp_path / "hand"
    hand.mkdir()
    (hand / "experiment.toml").write_text(tiny.experiment().to_toml())
    with pytest.raises(InputError, match="was written by no run, so it is not overwritten"):
        drive(tiny.experiment(), out=hand, overwrite=True)
    assert [path.name for path in (*own.iterdir(), *hand.iterdir())] == ["models", "experiment.toml"]


def test_an_overwriting_that_was_cut_short_leaves_a_run_to_overwrite_or_resume(tmp_path, monkeypatch):
    done = drive(tiny.experiment(rounds=1), out=tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", lambda self, missing_ok: (_ for _ in ()).throw(OSError(5, "Input/output error")))
        with pytest.raises(RunError, match=r"cannot remove .*Input/output error"):
            drive(tiny.experiment(rounds=1), out=tmp_path, overwrite=True)
    assert not (tmp_path / "checkpoints").exists()
    assert drive(tiny.experiment(rounds=1), out=tmp_path, resume=True).accuracy == done.accuracy
    assert drive(tiny.experiment(rounds=1), out=tmp_path, overwrite=True).accuracy == done.accuracy


def test_two_runs_do_not_share_a_folder(tmp_path):
    fcntl = pytest.importorskip("fcntl")
    drive(tiny.experiment(rounds=1), out=tmp_path)
    with (tmp_path / ".lock").open("wb") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        for how in ({"resume": True}, {"overwrite": True}):
            with pytest.raises(InputError, match="another run is at work in"):
                drive(tiny.experiment(rounds=2), out=tmp_path, **how)
    assert drive(tiny.experiment(rounds=2), out=tmp_path, resume=True).rounds == 2


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (MemoryError(), "memory ran out"),
        (torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), "memory ran out"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), "memory ran out"),
        (TerminatedWorkerError("A worker was killed"), "the system ended a worker process"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_the_machine_lacks_is_a_sentence(error, sentence, tmp_path, monkeypatch):
    monkeypatch.setattr(metrics_module, "score_clients", lambda *_, **__: (_ for _ in ()).throw(error))
    with pytest.raises(RunError, match=f"{sentence}.*0 rounds are kept.*fedstill resume"):
        drive(tiny.experiment(), out=tmp_path)


def test_a_defect_keeps_its_traceback(tmp_path, monkeypatch):
    defect = RuntimeError("shapes differ")
    monkeypatch.setattr(metrics_module, "score_clients", lambda *_, **__: (_ for _ in ()).throw(defect))
    with pytest.raises(RuntimeError, match="shapes differ"):
        drive(tiny.experiment(), out=tmp_path)


def test_a_clients_defect_leaves_its_traceback_in_a_file_that_is_named(tmp_path, monkeypatch):
    local = FedAvg.local

    def broken(self, inbox, site, memory, desk):
        return local(self, inbox, site, memory, desk) if "c01" not in desk.seed.path else inbox.nonsense

    monkeypatch.setattr(FedAvg, "local", broken)
    drive(tiny.experiment(rounds=2), out=tmp_path)
    (failure,) = tiny.rows(tmp_path)[0]["failures"]
    assert failure["reason"].endswith("(traceback in failures.log)")
    log = (tmp_path / "failures.log").read_text()
    assert log.count("Traceback") == 2
    assert "round 2, client c01: AttributeError" in log


def test_the_models_of_the_selected_round_are_kept_beside_the_last(tmp_path, monkeypatch):
    hits = {1: 5, 2: 9, 3: 1, 4: 10}

    def score_clients(engine, number, *_, **__):
        return ClientScores(clients={"c00": ClientScore(correct=hits[number], examples=10)})

    monkeypatch.setattr(metrics_module, "score_clients", score_clients)
    drive(tiny.experiment(rounds=2), out=tmp_path)
    assert not (tmp_path / "models" / "best").exists()
    second = load_file(tmp_path / "models" / "global.safetensors")
    drive(tiny.experiment(rounds=3), out=tmp_path, resume=True)
    best = fedstill.load_model(tmp_path / "models" / "best" / "global.safetensors")
    assert (best.notes["round"], best.notes["validation"]) == (2, 0.9)
    assert best.notes["accuracy"] == tiny.rows(tmp_path)[1]["accuracy"]["global"]
    assert all(torch.equal(tensor, second[name]) for name, tensor in best.network.state_dict().items())
    assert fedstill.load_model(tmp_path / "models" / "global.safetensors").notes["round"] == 3
    drive(tiny.experiment(rounds=4), out=tmp_path, resume=True)
    assert not (tmp_path / "models" / "best").exists()


def test_the_record_says_which_rows_are_for_validation(finished):
    held = json.loads((finished.out / "partition.json").read_text())
    assert {client: len(rows) for client, rows in held["validation"].items()} == {"c00": 4, "c01": 4, "c02": 4}
    assert all(set(rows) < set(held["clients"][client]) for client, rows in held["validation"].items())


def test_a_callers_threads_are_put_back(tmp_path):
    before = torch.get_num_threads()
    drive(tiny.experiment(rounds=1, threads=before + 1), out=tmp_path)
    assert torch.get_num_threads() == before


def test_nothing_is_written_where_the_experiment_cannot_be_built(tmp_path):
    with pytest.raises(InputError):
        drive(tiny.experiment(model={"depth": 5}), out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_folder_that_is_a_file_or_no_run_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="is a file"):
        drive(tiny.experiment(), out=tmp_path / "file")
    with pytest.raises(InputError, match="holds no run to resume"):
        drive(tiny.experiment(), out=tmp_path, resume=True)


def test_a_round_without_any_reply_ends_the_run_and_says_why(tmp_path):
    diverging = tiny.experiment({**tiny.FEDAVG, "lr": 1e30, "momentum": 0.0})
    with pytest.raises(RunError, match=r"no client gave a usable reply in round 1: 'c00': training diverged.*0 rounds"):
        drive(diverging, out=tmp_path / "run")


def test_a_cohort_of_some(tmp_path):
    drive(tiny.experiment(cohort=2, rounds=2), out=tmp_path)
    for row in tiny.rows(tmp_path):
        # who was not in it was scored all the same, and stands behind those who were
        assert [client["client"] for client in row["clients"]][:2] == row["cohort"]
        assert ["examples" in client for client in row["clients"]] == [True, True, False]
        assert all(client["validation"] is not None for client in row["clients"])


def test_without_validation_images_nothing_is_scored_and_the_last_round_is_taken(tmp_path):
    done = drive(tiny.experiment(partition={"validation": 0.0}, rounds=2), out=tmp_path)
    assert done.selected_round == 2
    assert all(row["bytes_scoring"] == 0 and row["validation"]["mean"] is None for row in tiny.rows(tmp_path))


@pytest.mark.parametrize("keep", [1, 2, 3, 8])
def test_what_is_thinned_as_a_run_goes_is_what_its_last_round_says(keep):
    held: list[int] = []
    for number in range(1, 70):
        held = thinned([*held, number], number, keep)
        assert held == thinned(range(1, number + 1), number, keep)
        assert len(held) <= keep
        assert held[-1] == number
        assert keep == 1 or held[0] == 1
        assert len(held) >= min(number, keep // 2 + 1)


def test_rounds_without_a_set_and_leftovers_of_a_later_round_do_not_disturb_the_thinning():
    assert thinned([3, 4, 6, 7], 7, 3) == [3, 7]
    assert thinned([3, 5, 7, 8], 7, 3) == [3, 5, 7]


def test_synthetic_sets_are_kept_by_the_round_and_not_by_the_interruption(tmp_path):
    keeping = {"output": {"keep_synthetic": 3}}
    drive(tiny.experiment(tiny.FEDDGM, rounds=5, **keeping), out=tmp_path / "straight")
    for rounds in (2, 3, 5):
        again = (tmp_path / "resumed").exists()
        drive(tiny.experiment(tiny.FEDDGM, rounds=rounds, **keeping), out=tmp_path / "resumed", resume=again)
    kept = [sorted(path.name for path in (tmp_path / run / "synthetic").iterdir()) for run in ("straight", "resumed")]
    assert kept[0] == kept[1] == [f"round-000{n}{end}" for n in (1, 3, 5) for end in ("", ".safetensors")]


@pytest.mark.slow
def test_two_processes_give_the_bits_of_one(tmp_path):
    drive(tiny.experiment(tiny.FEDDGM, rounds=2), out=tmp_path / "one")
    drive(tiny.experiment(tiny.FEDDGM, rounds=2, engine={"workers": 2}), out=tmp_path / "two")
    assert tiny.result(tmp_path / "one") == tiny.result(tmp_path / "two")


def test_figures_that_are_not_finite_are_null(monkeypatch, tmp_path):
    broken = Scores(torch.zeros(10, 10, dtype=torch.int64), torch.full((15, 3), math.nan, dtype=torch.float64))
    monkeypatch.setattr(metrics_module, "score_models", lambda models, test, device: dict.fromkeys(models, broken))
    drive(tiny.experiment(rounds=1), out=tmp_path)
    (row,) = tiny.rows(tmp_path)
    assert row["accuracy"] == row["balanced_accuracy"] == row["calibration_error"] == {"global": None}
    assert row["per_class"] == {"global": [None] * 10}


def measured(**figures):
    """A line about a round in which the algorithm measured ``figures``."""
    each = Round(1, Bundle(), ("a",), figures, (), 0, 0, {"clients": 0.1, "server": 0.2}, True)
    seconds = {"evaluate": 0.3}
    return metrics_row(each, {}, ClientScores(), theory=None, seconds=seconds, cpu_seconds=0.5, peak=None)


def test_an_algorithms_figures_become_plain_numbers():
    row = measured(union=np.int64(3), drift=torch.tensor([0.5, math.inf]), clients={"a": {"loss": torch.tensor(0.25)}})
    assert json.loads(json.dumps(row)) == row
    assert (row["union"], row["drift"], row["clients"][0]["loss"]) == (3, [0.5, None], 0.25)


@pytest.mark.parametrize(
    ("figures", "key"),
    [
        ({"round": 7}, "'round'"),
        ({"failures": []}, "'failures'"),
        ({"seconds": {"server": 0.0}}, "'seconds.server'"),
        ({"clients": {"a": {"client": "b"}}}, "'clients.client'"),
    ],
)
def test_an_algorithms_figures_do_not_replace_the_runs_own(figures, key):
    with pytest.raises(RunError, match=f"gives a figure {key}, which is the run's own"):
        measured(**figures)


@pytest.mark.parametrize("algorithm", [tiny.FEDAVG, tiny.FEDDGM], ids=lambda options: options["name"])
@pytest.mark.parametrize("partition", [{}, {"test": 0.2}, {"validation": 0.0}], ids=str)
def test_a_dry_run_counts_bytes_and_parameters_exactly(algorithm, partition, tmp_path):
    experiment = tiny.experiment(algorithm, rounds=1, partition=partition)
    cost = estimate(experiment)
    drive(experiment, out=tmp_path)
    row = tiny.rows(tmp_path)[0]
    assert (cost.bytes_up, cost.bytes_down, cost.cohort) == (row["bytes_up"], row["bytes_down"], 3)
    assert cost.bytes_scoring == row["bytes_scoring"]
    name = next(iter(row["accuracy"]))
    weights = load_file(tmp_path / "models" / f"{name}.safetensors")
    assert cost.parameters == {name: sum(tensor.numel() for tensor in weights.values())}
    assert {client: sum(held) for client, held in cost.histogram.items()} == {
        client["client"]: client["examples"] for client in row["clients"]
    }
    assert cost.total_seconds > 0


@pytest.mark.parametrize("asked", [False, True])
def test_a_dry_run_times_gradients_where_they_are_asked_for(asked, monkeypatch):
    timed = []
    monkeypatch.setattr(cost_module, "mean_gradient", lambda network, shards, device: timed.append(shards))
    estimate(tiny.experiment(tiny.FEDDGM, evaluate={"gradients": asked}))
    assert bool(timed) == asked


def test_bytes_in_total_are_those_of_a_round_times_the_rounds():
    cost = estimate(tiny.experiment(rounds=7))
    assert cost.total_bytes == 7 * (cost.bytes_up + cost.bytes_down + cost.bytes_scoring)
    assert json.loads(json.dumps(cost.to_json()))["total_bytes"] == cost.total_bytes


class Pressed:
    def __del__(self):
        signal.raise_signal(signal.SIGINT)


class Pressing(Silent):
    """Ctrl-C comes once, where Python drops it: as an object is removed."""

    def __init__(self):
        self.times = 0

    def progress(self, phase, done, total):
        if self.times == 0:
            self.times = 1
            Pressed()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("workers", [1, 2])
def test_a_lost_ctrl_c_stops_the_run_all_the_same(tmp_path, workers):
    hear = Pressing()
    with pytest.raises(KeyboardInterrupt):
        drive(tiny.experiment(engine={"workers": workers}), out=tmp_path, reporter=hear)
    assert hear.times == 1
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert drive(tiny.experiment(), out=tmp_path, resume=True).accuracy
