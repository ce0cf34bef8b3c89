"""``fedstill evaluate``: a run's folder, rebuilt and measured."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

import tiny
from fedstill import evaluation, folder
from fedstill.bundle import Bundle
from fedstill.cli import invoke
from fedstill.errors import InputError
from fedstill.evaluate.features import Space
from fedstill.evaluate.mmd import discrepancies
from fedstill.evaluation import Asked, FreshNetworks, evaluate_run
from fedstill.experiment import Experiment
from fedstill.report.evaluated import read_evaluated
from fedstill.run import drive

QUICK = FreshNetworks(seeds=2, epochs=1)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run of FedDGM with a second global model; three clients of 40 images or so."""
    out = tmp_path_factory.mktemp("finished") / "run"
    networks = [
        {"name": "convnet", "depth": 1, "width": 4},
        {"name": "convnet", "depth": 2, "width": 4, "label": "twin"},
    ]
    experiment = tiny.experiment({**tiny.FEDDGM, "global_models": networks}, rounds=3, output={"keep_synthetic": 2})
    drive(experiment, out=out)
    return out


@pytest.fixture
def run(finished, tmp_path):
    """The same, for one test to change."""
    return Path(shutil.copytree(finished, tmp_path / "run"))


def refusal(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """The one sentence with which the command refuses."""
    assert invoke(["evaluate", *(str(argument) for argument in arguments)]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    return captured.err


def content(run: Path):
    return json.loads((run / folder.EVALUATION).read_text())


def test_fresh_networks_of_the_newest_round(run):
    told = []
    found = evaluate_run(run, Asked(fresh=QUICK), progress=lambda *news: told.append(news))["fresh"]
    file = run / "synthetic" / "round-0003.safetensors"
    sets = Bundle.open(file).members("synthetic")
    assert found["round"] == 3
    assert found["file"] == "synthetic/round-0003.safetensors"
    assert found["sha256"] == hashlib.sha256(file.read_bytes()).hexdigest()
    assert found["images"] == sum(len(group["labels"]) for group in sets.values()) == 30
    assert found["recipe"] == {
        "epochs": 1,
        "lr": 0.01,
        "batch": 256,
        "momentum": 0.9,
        "decay": 1e-5,
        "augmentation": "color_crop_cutout_flip_scale_rotate",
    }
    # what clients train and the global model that is no other by another name
    assert [(each["model"], each["seed"]) for each in found["results"]] == [
        (name, seed) for name in ("convnet:depth=2", "convnet:depth=1") for seed in (0, 1)
    ]
    for each in found["results"]:
        assert all(0 <= each[figure] <= 1 for figure in ("accuracy", "balanced_accuracy", "calibration_error"))
    assert content(run) == {"version": 1, "fresh": found}
    assert evaluate_run(run, Asked(fresh=QUICK))["fresh"] == found
    assert told[-1] == ("train fresh networks", 4, 4)


def test_the_runs_own_epochs_and_an_older_round(run):
    wanted = FreshNetworks(models=("convnet:depth=1,width=2,label=mine",), seeds=1, round=1, lr=0.5)
    found = evaluate_run(run, Asked(fresh=wanted))["fresh"]
    assert (found["round"], found["recipe"]["epochs"], found["recipe"]["lr"]) == (1, 2, 0.5)
    assert [each["model"] for each in found["results"]] == ["mine"]


def test_clients_are_compared_by_equally_many_images(run):
    found = evaluate_run(run, Asked(mmd=True, features="pixels"))["mmd"]
    parts = Experiment.read(run / "experiment.toml").build()
    held = parts.partition.clients
    least = min(map(len, held.values()))
    assert found["images"] == least >= 20
    assert found["features"] == "pixels"
    assert found["clients"] == list(held)
    assert found["left_out"] == []
    for a, name in enumerate(held):
        for b, other in enumerate(held):
            squared, error = found["squared"][a][b], found["error"][a][b]
            assert (squared is None) == (error is None) == (name == other)
            assert found["squared"][b][a] == squared
    assert [half["client"] for half in found["halves"]] == list(held)
    assert all(half["images"] == least // 2 and abs(half["squared"]) < 4 * half["error"] for half in found["halves"])
    # of the run's own images, independently: all that the smallest client holds are in
    inputs = parts.data.train.inputs().flatten(1).numpy()
    smallest = min(held, key=lambda client: len(held[client]))
    whole = {name: inputs[list(rows)][:least] for name, rows in held.items()}
    near = discrepancies(whole)
    at = list(held).index(smallest)
    for b in range(len(held)):
        if b != at:
            assert found["squared"][at][b] == pytest.approx(near.squared[at, b], abs=4 * near.error[at, b])


def test_small_clients_are_left_out_and_named(run):
    held = json.loads((run / "partition.json").read_text())["clients"]
    sizes = sorted((len(rows), name) for name, rows in held.items())
    found = evaluate_run(run, Asked(mmd=True, images=sizes[1][0]))["mmd"]
    small = [(name, count) for count, name in sizes if count < sizes[1][0]]
    assert found["images"] == sizes[1][0]
    assert [each["client"] for each in found["left_out"]] == sorted(name for name, _ in small)
    assert len(found["clients"]) + len(small) == 3
    assert found["features"] == "untrained convnet, depth 3, width 128"


@pytest.mark.parametrize("features", ["random", "pixels", "model"])
def test_a_map_of_every_feature_space(run, features):
    found = evaluate_run(run, Asked(tsne=True, features=features, images=12))["tsne"]
    parts = Experiment.read(run / "experiment.toml").build()
    assert len(found["points"]) == 36
    labels = np.asarray(parts.data.train.labels)
    for point in found["points"]:
        rows = list(parts.partition.clients[point["client"]])
        assert parts.world.classes.index(point["class"]) in labels[rows]
    assert found["perplexity"] == pytest.approx(35 / 3)
    assert found["features"].startswith(
        {"random": "untrained", "pixels": "pixels", "model": "model 'surrogate'"}[features]
    )


@pytest.mark.parametrize("asked", [Asked(mmd=True, features="broken"), Asked(tsne=True, features="broken")])
def test_features_that_are_not_finite_are_refused(run, monkeypatch, asked):
    broken = Space("broken", lambda shard: np.full((len(shard), 2), np.nan, np.float32))
    monkeypatch.setattr(evaluation, "_space", lambda *arguments: broken)
    with pytest.raises(InputError, match="broken: features of images of 'c00' are not finite"):
        evaluate_run(run, asked)


def test_a_set_that_is_dropped_while_networks_train_has_its_digest(run, monkeypatch):
    """A run at work thins its sets out."""
    file = run / "synthetic" / "round-0003.safetensors"
    digest, train = hashlib.sha256(file.read_bytes()).hexdigest(), evaluation.train_fresh

    def dropping(*arguments, **options):
        file.unlink()
        return train(*arguments, **options)

    monkeypatch.setattr(evaluation, "train_fresh", dropping)
    assert evaluate_run(run, Asked(fresh=QUICK))["fresh"]["sha256"] == digest


def test_a_file_of_the_users_own(run):
    file = run / "models" / "twin.safetensors"
    found = evaluate_run(run, Asked(mmd=True, features=str(file)))["mmd"]
    assert found["features"] == "twin.safetensors of round 3"


def test_what_was_measured_before_stays(run):
    pixels = evaluate_run(run, Asked(mmd=True, features="pixels"))
    fresh = evaluate_run(run, Asked(fresh=QUICK))
    assert content(run) == {"version": 1, **pixels, **fresh}
    other = evaluate_run(run, Asked(mmd=True))
    assert content(run) == {"version": 1, **other, **fresh}
    assert other["mmd"]["features"] != pixels["mmd"]["features"]


def test_the_page_reads_it(run):
    evaluate_run(run, Asked(fresh=QUICK, mmd=True, tsne=True, images=20))
    missing: list[str] = []
    found = read_evaluated(run / folder.EVALUATION, missing)
    assert missing == []
    assert found.fresh is not None
    assert len(found.fresh.scores) == 4
    assert found.mmd is not None
    assert len(found.mmd.clients) == 3
    assert found.tsne is not None
    assert len(found.tsne.points) == 60


@pytest.mark.slow
def test_a_run_that_goes_on_keeps_it_and_one_that_is_overwritten_does_not(run):
    evaluate_run(run, Asked(mmd=True))
    before = tiny.result(run)
    experiment = Experiment.read(run / "experiment.toml")
    kept = content(run)
    drive(experiment, out=run, resume=True)
    assert content(run) == kept
    assert tiny.result(run) == before
    drive(experiment, out=run, overwrite=True)
    assert not (run / folder.EVALUATION).exists()
    assert tiny.result(run) == before


def test_a_run_at_work_may_be_measured(run):
    with folder.locked(run, note=lambda text: None):
        assert "mmd" in evaluate_run(run, Asked(mmd=True))


def test_a_run_that_distils_nothing_has_clients_to_compare(tmp_path, capsys):
    out = tmp_path / "fedavg"
    drive(tiny.experiment(rounds=1), out=out)
    assert "mmd" in evaluate_run(out, Asked(mmd=True))
    assert "'fedavg' makes none; choose a run of a method that distils" in refusal(capsys, out, "--fresh")


def test_the_ceilings_clients_are_those_that_were_pooled(tmp_path):
    out = tmp_path / "centralised"
    drive(tiny.experiment({**tiny.FEDAVG, "name": "centralised"}, rounds=1), out=out)
    assert len(evaluate_run(out, Asked(mmd=True))["mmd"]["clients"]) == 3


# --- refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        ([], "nothing is asked for: give --fresh, --mmd or --tsne"),
        (["--mmd", "--round", "1"], "--model, --round, --epochs and --lr are of fresh networks: give --fresh too"),
        (["--mmd", "--model", "resnet18"], "give --fresh too"),
        (["--fresh", "--lr", "0"], "--lr 0.0: it lies above 0"),
        (["--fresh", "--lr", "nan"], "--lr nan"),
        (["--fresh", "--round", "2"], "keeps the synthetic sets of rounds 1, 3; output.keep_synthetic"),
        (["--fresh", "--model", "convnt"], "--model.name = 'convnt': did you mean 'convnet'?"),
        (["--fresh", "--model", "convnet:depth"], "--model convnet:depth: write it as NAME or as NAME:key=value"),
        (["--fresh", "--model", "convnet:depth=7"], "--model.depth = 7 halves 8 x 8 pixels below one"),
        (["--mmd", "--features", "modle"], "no feature space of that name; did you mean 'model'?"),
        (["--mmd", "--images", "3"], "--images 3: MMD takes 4 images of a client or more"),
        (["--mmd", "--images", "1000"], "0 of 3 clients hold 1000 images or more, and two are needed"),
        (["--tsne", "--images", "2"], "t-SNE: 6 images are too few for a map"),
        (["--mmd", "--device", "abacus"], "engine.device = 'abacus': known"),
    ],
)
def test_what_cannot_be_asked_is_refused(finished, capsys, arguments, why):
    assert why in refusal(capsys, finished, *arguments)
    assert not (finished / folder.EVALUATION).exists()


def test_what_is_no_run_is_refused(tmp_path, capsys):
    assert "is no run: there is no experiment.toml" in refusal(capsys, tmp_path, "--mmd")
    assert "is no run: there is no experiment.toml" in refusal(capsys, tmp_path / "nowhere", "--mmd")


def test_an_unfinished_run_has_no_model(run, capsys):
    shutil.rmtree(run / "models")
    assert "they are saved when a run ends" in refusal(capsys, run, "--mmd", "--features", "model")
    shutil.rmtree(run / "synthetic")
    assert "no round is done yet" in refusal(capsys, run, "--fresh")


def test_other_data_than_the_runs_are_refused(run, capsys):
    file = run / "experiment.toml"
    text = file.read_text()
    file.write_text(text.replace("limit = 120", "limit = 110"))
    assert "the data are no longer those of the run (images and labels differs)" in refusal(capsys, run, "--mmd")
    # without its checkpoints, a run still knows who held what
    shutil.rmtree(run / "checkpoints")
    assert "the data are no longer those of the run (who holds what differs)" in refusal(capsys, run, "--mmd")
    file.write_text(text)
    assert "mmd" in evaluate_run(run, Asked(mmd=True))
    (run / "partition.json").write_text("{")
    assert "nobody knows what the run worked on" in refusal(capsys, run, "--mmd")


def test_data_that_are_gone_are_named(run, capsys):
    file = run / "experiment.toml"
    file.write_text(file.read_text().replace('source = "digits"', 'source = "folder"\npath = "gone"'))
    assert "gone" in refusal(capsys, run, "--mmd")


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("{", "cannot be read"),
        ("[]", "was not written by fedstill"),
        ('{"version": 9}', "was written by a newer fedstill (format 9): upgrade fedstill"),
    ],
)
def test_an_evaluation_that_cannot_be_added_to_is_left_alone(run, capsys, text, why):
    file = run / folder.EVALUATION
    file.write_text(text)
    assert why in refusal(capsys, run, "--mmd")
    assert file.read_text() == text


def test_no_python_interface_needs_the_command_line(run):
    with pytest.raises(InputError, match="nothing is asked for"):
        evaluate_run(str(run), Asked())


# --- what it prints --------------------------------------------------------------------------------------------------


def test_tables(run, capsys):
    arguments = ["--fresh", "--model", "convnet:depth=1,width=4", "--seeds", 2, "--epochs", 1, "--mmd", "--tsne"]
    assert invoke(["evaluate", str(run), *map(str, arguments)]) == 0
    captured = capsys.readouterr()
    found = content(run)
    scores = [each["accuracy"] for each in found["fresh"]["results"]]
    assert f"{100 * np.mean(scores):.1f} ± {100 * np.std(scores, ddof=1):.1f} %" in captured.out
    assert "fresh networks on the 30 synthetic images of round 3, 1 epoch" in captured.out
    squared = np.array(found["mmd"]["squared"], float)
    assert f"{np.nanmean(squared):.4f}" in captured.out
    assert f"{np.nanmax(squared):.4f}" in captured.out
    assert f"t-SNE of {len(found['tsne']['points'])} images" in captured.out
    assert captured.err.startswith(f"written: {run / folder.EVALUATION}")


def test_quiet_says_nothing(run, capsys):
    assert invoke(["evaluate", str(run), "--mmd", "--quiet"]) == 0
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "")
