"""The command line as a user meets it: words, exit codes, files."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import fedstill
import tiny
from fedstill.algorithms.averaging import FedAvg
from fedstill.cli import invoke
from fedstill.cli.console import bytes_text, percent, round_line, seconds_text, troubles
from fedstill.errors import RunError
from fedstill.experiment import Experiment
from fedstill.models.files import save_model
from fedstill.run import drive


@pytest.fixture
def file(tmp_path):
    """An experiment file."""
    path = tmp_path / "tiny.toml"
    path.write_text(tiny.experiment(rounds=2).to_toml())
    return path


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """A finished run of FedDGM."""
    folder = tmp_path_factory.mktemp("done")
    (folder / "tiny.toml").write_text(tiny.experiment(tiny.FEDDGM, rounds=1).to_toml())
    assert invoke(["run", str(folder / "tiny.toml"), "--out", str(folder / "run"), "--quiet"]) == 0
    return folder / "run"


def pictures(folder: Path, count: int = 3) -> Path:
    """A folder of ``count`` images in each of the classes a, b, c."""
    for index, name in enumerate("abc"):
        (folder / name).mkdir(parents=True)
        for number in range(count):
            pixels = np.full((8, 8), 40 * index + number, np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{number}.png")
    return folder


def refusal(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """The one sentence with which a command refuses."""
    assert invoke([str(argument) for argument in arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("fedstill: ")
    assert err.count("\n") == 1
    return err


# --- bad input ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (["model.widht=3"], "model.widht = 3: did you mean 'width'?"),
        (["data.siz=3"], "data.siz: no such key: did you mean 'size'?"),
        (["algorithm.epochs=five"], "algorithm.epochs = 'five': must be an integer"),
        (["model.name=resnet19"], "model.name = 'resnet19': did you mean 'resnet18'?"),
        (["algorithm.name=feddgm", "algorithm.ipc=0"], "algorithm."),
        (["partition.kind=dirichlet", "partition.alpha=0"], "partition.alpha = 0: must be above 0"),
        (["partition.kind=dirichlet", "partition.alpha=-1.0"], "partition.alpha = -1.0: must be above 0"),
        (["partition.kind=iid", "partition.clients=121"], "partition.clients = 121 with one image each take 121"),
        (["model.depth=4"], "model.depth = 4"),
        (["data.source=folder", "data.path=nowhere"], "data.path = 'nowhere': there is no such file or folder"),
        (["algorithm"], "--set algorithm: write it as --set table.key=value"),
        (["engine.device=gpu"], "engine.device = 'gpu'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_wrong_setting_is_one_sentence_and_exit_code_2(settings, sentence, file, tmp_path, capsys):
    flags = [part for setting in settings for part in ("--set", setting)]
    assert sentence in refusal(capsys, "run", file, *flags, "--out", tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_no_images_a_class_is_refused(tmp_path, capsys):
    file = tmp_path / "x.toml"
    file.write_text(tiny.experiment(tiny.FEDDGM).to_toml())
    said = refusal(capsys, "run", file, "--set", "algorithm.ipc=0")
    assert "algorithm.ipc = 0: must be at least 1" in said


def test_a_prior_of_other_classes_is_refused_before_anything_is_written(tmp_path, capsys):
    prior = tmp_path / "prior.safetensors"
    small_prior(prior, classes=3)
    file = tmp_path / "x.toml"
    file.write_text(tiny.experiment(tiny.FEDDGM, data={"size": 16}).to_toml())
    said = refusal(
        capsys,
        "run",
        file,
        "--set",
        f"algorithm.generator={prior}",
        "--set",
        "algorithm.space=0",
        "--out",
        tmp_path / "run",
    )
    assert "knows 3 classes and the data has 10" in said
    assert not (tmp_path / "run").exists()


def test_a_missing_file_and_a_malformed_one(tmp_path, capsys):
    assert "cannot read" in refusal(capsys, "run", tmp_path / "none.toml")
    (tmp_path / "bad.toml").write_text("[data\n")
    assert "line 1, column 6" in refusal(capsys, "run", tmp_path / "bad.toml")
    assert "holds no run to resume" in refusal(capsys, "resume", tmp_path)


def test_a_folder_without_images(tmp_path, capsys):
    (tmp_path / "empty" / "a").mkdir(parents=True)
    said = refusal(capsys, "data", "inspect", "--source", "folder", "--path", tmp_path / "empty")
    assert "image" in said


def test_a_corrupt_image_is_named_and_skip_bad_counts_it(tmp_path, capsys):
    folder = pictures(tmp_path / "images", count=12)
    (folder / "b" / "0.png").write_bytes(b"\x89PNG broken")
    file = tmp_path / "x.toml"
    settings = tiny.experiment(data={"source": "folder", "path": str(folder), "limit": 30, "test_limit": 6}, rounds=1)
    file.write_text(settings.to_toml().replace("limit = 30", "limit = 99").replace("test_limit = 6", "test_limit = 99"))
    flags = ["--set", "partition.kind=iid", "--out", tmp_path / "run"]
    assert "b/0.png" in refusal(capsys, "run", file, *flags)
    assert invoke(["run", str(file), *map(str, flags), "--skip-bad"]) == 0
    assert "1 unreadable image left out; the first: " in capsys.readouterr().err


def test_a_checkpoint_of_another_experiment(tmp_path, file, capsys):
    out = tmp_path / "run"
    assert invoke(["run", str(file), "--out", str(out), "--quiet"]) == 0
    copy = out / "experiment.toml"
    copy.write_text(copy.read_text().replace("\nlr = 0.1", "\nlr = 0.3"))
    said = refusal(capsys, "resume", out, "--rounds", 3)
    assert "checkpoint of another experiment: algorithm.lr (there 0.1, here 0.3)" in said


def test_a_full_disk_says_what_is_kept(tmp_path, file, capsys, monkeypatch):
    def full(handle: int) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(os, "fsync", full)
    assert invoke(["run", str(file), "--out", str(tmp_path / "run"), "--quiet"]) == 1
    assert "No space left on device" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["rnu"], "there is no command 'rnu': did you mean 'run'?"),
        (["run"], "Missing argument 'file'; see  fedstill run --help"),
        (["run", "x.toml", "--sede", "3"], "there is no option --sede: did you mean --seed?"),
        (["run", "x.toml", "--seed", "a"], "Invalid value for '--seed'"),
        (["data"], "Missing command; see  fedstill data --help"),
        (["init", "fedavgg"], "algorithm.name = 'fedavgg': did you mean 'fedavg'?"),
        (["report", "nowhere"], "nowhere"),
        (["predict", "nowhere.safetensors", "."], "cannot read nowhere.safetensors"),
        (["prior", "sample", "digit", "--out", "x.png"], "cannot read the prior digit"),
        (["prior", "train", "--set", "prior.kimgs=1"], "prior.kimgs: no such key: did you mean 'kimg'?"),
        (["prior", "train", "--set", "data.size=16"], "data.source is missing: say which public images"),
        (["check", "fedavg", "--set", "epochs=0"], "algorithm.epochs = 0: must be at least 1"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_usage_is_one_sentence_and_exit_code_2(arguments, sentence, capsys):
    assert sentence in refusal(capsys, *arguments)


# --- the main road -----------------------------------------------------------------------------------------------------


def test_help_and_import_are_quick_and_import_no_torch():
    code = (
        "import sys; import fedstill; from fedstill.cli import invoke; "
        "code = invoke(['--help']); assert not {'torch', 'numpy', 'pydantic'} & set(sys.modules), 'slow imports'; sys.exit(code)"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "resume" in told


def test_version(capsys):
    assert invoke(["--version"]) == 0
    assert capsys.readouterr().out.strip() == fedstill.__version__


def test_init_then_run_then_resume(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert invoke(["init", "fedavg", "--out", "x.toml"]) == 0
    assert "exists already" in refusal(capsys, "init", "fedavg", "--out", "x.toml")
    small = [
        "data.limit=120",
        "data.test_limit=40",
        "data.size=8",
        "partition.clients=3",
        "model.depth=2",
        "model.width=4",
    ]
    flags = [part for setting in [*small, "algorithm.epochs=1"] for part in ("--set", setting)]
    assert invoke(["run", "x.toml", *flags, "--rounds", "2", "--seed", "7"]) == 0
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "fedavg-digits: fedavg, 2 rounds, in runs/fedavg-digits"
    assert lines[1].startswith("round 1/2  global ")
    assert "  up 4.5 kB  down 4.5 kB  " in lines[1]
    assert lines[1].endswith(" left)")
    assert lines[2].startswith("round 2/2  global ")
    assert tomllib.loads(Path("runs/fedavg-digits/experiment.toml").read_text())["seed"] == 7
    assert "already holds a run" in refusal(capsys, "run", "x.toml", *flags)
    assert invoke(["resume", "runs/fedavg-digits", "--rounds", "3", "--json"]) == 0
    out, err = capsys.readouterr()
    assert [json.loads(line)["round"] for line in out.splitlines()] == [3]
    assert err == ""


def test_init_prints_what_run_reads(capsys):
    assert invoke(["init"]) == 0
    table = tomllib.loads(capsys.readouterr().out)
    assert Experiment.from_table(table).algorithm.name == "feddgm"


def test_dry_run_tells_and_writes_nothing(file, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert invoke(["run", str(file), "--dry-run"]) == 0
    told = capsys.readouterr().out
    for word in ("c02", "parameters", "bytes a round, 3 clients", "memory: at least", "in 2 rounds about"):
        assert word in told
    assert invoke(["run", str(file), "--dry-run", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["rounds"] == 2
    assert not Path("runs").exists()


def test_predict_labels_a_folder_in_three_forms(done, tmp_path, capsys):
    folder = pictures(tmp_path / "new")
    model = str(done / "models" / "surrogate.safetensors")
    assert invoke(["predict", model, str(folder)]) == 0
    plain = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    assert [line[0] for line in plain] == [f"{name}/{number}.png" for name in "abc" for number in range(3)]
    assert invoke(["predict", model, str(folder), "--csv"]) == 0
    head, *table = csv.reader(capsys.readouterr().out.splitlines())
    assert (head, table) == (["image", "class", "probability"], plain)
    assert invoke(["predict", model, str(folder), "--json"]) == 0
    objects = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [each["class"] for each in objects] == [line[1] for line in plain]
    (folder / "a" / "9.png").write_bytes(b"broken")
    assert "9.png" in refusal(capsys, "predict", model, folder)
    assert invoke(["predict", model, str(folder), "--skip-bad"]) == 0
    assert "1 unreadable image left out" in capsys.readouterr().err
    assert "exclude each other" in refusal(capsys, "predict", model, folder, "--csv", "--json")


@pytest.mark.slow
def test_export_writes_onnx(done, tmp_path):
    pytest.importorskip("onnxscript")
    # in a process of its own: the exporter warns of its own deprecations
    model = done / "models" / "surrogate.safetensors"
    command = [sys.executable, "-m", "fedstill", "export", str(model), "--onnx", str(tmp_path / "model.onnx")]
    subprocess.run(command, check=True, capture_output=True)
    assert (tmp_path / "model.onnx").stat().st_size > 1000


def test_data_inspect_counts_and_shows(file, tmp_path, capsys):
    sheet = tmp_path / "sheet.png"
    assert invoke(["data", "inspect", str(file), "--sheet", str(sheet)]) == 0
    told = capsys.readouterr().out
    assert "120 training and 50 test images, grey, 8 x 8 pixels" in told
    assert "c02" in told
    with Image.open(sheet) as picture:
        assert picture.size[0] > 100
    assert invoke(["data", "inspect", "--source", "folder", "--path", str(pictures(tmp_path / "p")), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["classes"] == ["a", "b", "c"]
    assert facts["train"] + facts["test"] == 9
    assert facts["clients"] is None


def test_list_names_every_choice(capsys):
    from fedstill.algorithms import ALGORITHMS
    from fedstill.data.partition import PARTITIONS
    from fedstill.models import MODELS

    assert invoke(["list"]) == 0
    told = capsys.readouterr().out
    assert all(f"  {name} " in told for name in (*ALGORITHMS, *MODELS, *PARTITIONS, "digits", "pixels"))
    assert "`" not in told


def test_predict_brings_images_to_size_as_the_training_did(done, tmp_path, capsys):
    path = done / "models" / "surrogate.safetensors"
    model = fedstill.load_model(path)
    wide = np.zeros((8, 24), np.uint8)
    wide[:, :8] = np.arange(8) * 36
    (tmp_path / "new").mkdir()
    Image.fromarray(wide).save(tmp_path / "new" / "x.png")
    expected = {"stretch": Image.fromarray(wide).resize((8, 8), Image.Resampling.LANCZOS), "crop": np.zeros((8, 8))}
    for fit, seen in expected.items():
        copy = tmp_path / f"{fit}.safetensors"
        save_model(
            copy,
            model.network.state_dict(),
            architecture=model.architecture,
            classes=model.classes,
            normalisation=model.normalisation,
            fit=fit,
        )
        pixels = torch.from_numpy(np.array(seen, np.float32))[None, None] / 255
        ((name, probability),) = model.label(pixels)
        assert invoke(["predict", str(copy), str(tmp_path / "new")]) == 0
        assert capsys.readouterr().out == f"x.png\t{name}\t{probability:.4f}\n"


def test_a_file_in_the_folder_hides_no_package(tmp_path):
    (tmp_path / "torch.py").write_text("raise SystemExit('hijacked')\n")
    (tmp_path / "own_method.py").write_text(
        "from dataclasses import dataclass\n"
        "from fedstill.algorithms.averaging import FedAvg\n"
        "@dataclass(frozen=True, kw_only=True)\n"
        "class Mine(FedAvg): ...\n"
    )
    script = "import sys; from fedstill.cli import main; main()"
    for arguments in (["list"], ["init", "own_method:Mine"]):
        # -P as a console script has it: no folder of the script's own in front
        command = [sys.executable, "-P", "-c", script, *arguments]
        told = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
        assert told.returncode == 0, told.stderr
    assert 'name = "own_method:Mine"' in told.stdout


def test_a_run_that_is_not_the_demos_is_not_replaced_by_it(tmp_path, capsys):
    out = tmp_path / "demo" / "fedavg"
    drive(tiny.experiment(rounds=1), out=out)
    before = (out / "metrics.jsonl").read_bytes()
    assert "holds a run that is not this demo's" in refusal(capsys, "demo", "--out", tmp_path / "demo")
    assert (out / "metrics.jsonl").read_bytes() == before
    assert not (tmp_path / "demo" / "feddgm").exists()


@pytest.mark.parametrize("flag", ["--quiet", "--json"])
def test_what_went_wrong_is_said_to_those_who_want_no_more(flag, file, tmp_path, capsys, monkeypatch):
    local = FedAvg.local

    def broken(self, inbox, site, memory, desk):
        if "c01" in desk.seed.path:
            raise RunError("the scanner is on fire")
        return local(self, inbox, site, memory, desk)

    monkeypatch.setattr(FedAvg, "local", broken)
    assert invoke(["run", str(file), "--out", str(tmp_path / "run"), flag]) == 0
    assert capsys.readouterr().err.splitlines() == [
        f"round {number}: c01 left out: the scanner is on fire" for number in (1, 2)
    ]


def test_report_of_runs(done, tmp_path):
    assert invoke(["report", str(done), "--out", str(tmp_path / "page.html")]) == 0
    assert "<html" in (tmp_path / "page.html").read_text()


def test_check_runs_an_algorithm_of_ones_own(tmp_path, monkeypatch, capsys):
    source = (
        "from dataclasses import dataclass\n"
        "from fedstill.algorithms.averaging import FedAvg\n"
        "@dataclass(frozen=True, kw_only=True)\n"
        "class Good(FedAvg):\n"
        "    epochs: int = 1\n"
        "@dataclass(frozen=True, kw_only=True)\n"
        "class Bad(FedAvg):\n"
        "    epochs: int = 1\n"
        "    def local(self, inbox, site, memory, desk):\n"
        "        reply, memory = super().local(inbox, site, memory, desk)\n"
        "        return reply.put({'examples': 1}), memory\n"
    )
    (tmp_path / "own_methods.py").write_text(source)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    assert invoke(["check", "own_methods:Good"]) == 0
    assert "kept: same seed, same bits" in capsys.readouterr().out
    assert invoke(["check", "own_methods:Bad"]) == 1
    assert "breaks the contract: a reply carries its weight" in capsys.readouterr().err
    sys.modules.pop("own_methods")


def test_prior_train_resume_and_sample(tmp_path, capsys):
    file = tmp_path / "prior.toml"
    file.write_text(
        "source = 'digits of scikit-learn'\n[data]\nsource = 'digits'\nsize = 16\nlimit = 60\n"
        "[prior]\nkimg = 0.048\nbatch = 8\nevery = 3\n"
        "width = 4\ncritic_width = 4\nz_width = 4\nw_width = 4\n"
    )
    out = tmp_path / "prior"
    assert invoke(["prior", "train", str(file), "--out", str(out)]) == 0
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("step 3/6")
    assert "already holds a training" in refusal(capsys, "prior", "train", file, "--out", out)
    png = tmp_path / "s.png"
    assert invoke(["prior", "sample", str(out / "prior.safetensors"), "--out", str(png), "--count", "2"]) == 0
    with Image.open(png) as picture:
        assert picture.size[0] > 50
    assert invoke(["prior", "train", str(file), "--out", str(out), "--resume", "--quiet"]) == 0


@pytest.mark.slow
def test_worker_processes_end_without_a_word(tmp_path):
    (tmp_path / "tiny.toml").write_text(tiny.experiment(rounds=1).to_toml())
    command = [sys.executable, "-m", "fedstill", "run", str(tmp_path / "tiny.toml"), "--out", str(tmp_path / "run")]
    done = subprocess.run([*command, "--workers", "2"], capture_output=True, text=True, timeout=300, check=True)
    assert "Warning" not in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_ctrl_c_leaves_a_run_to_resume_and_says_how(workers, tmp_path):
    file, out = tmp_path / "tiny.toml", tmp_path / "run"
    file.write_text(tiny.experiment(rounds=10_000).to_toml())
    command = [sys.executable, "-m", "fedstill", "run", str(file), "--out", str(out), "--workers", str(workers)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    while not (out / "checkpoints" / "round-0002.json").exists():
        assert process.poll() is None
        time.sleep(0.01)
    said = tiny.interrupt(process)  # the workers hear it too
    assert process.returncode == 130
    assert said.splitlines()[-1] == f"fedstill: interrupted; continue with  fedstill resume {out}"
    assert "Traceback" not in said


# --- words -------------------------------------------------------------------------------------------------------------


def test_words_for_figures():
    assert [bytes_text(count) for count in (0, 999, 1200, 123_456, 1_250_000, 2.5e9)] == [
        "0 B",
        "999 B",
        "1.2 kB",
        "123 kB",
        "1.2 MB",
        "2.5 GB",
    ]
    assert [seconds_text(seconds) for seconds in (0.04, 12, 99, 200, 7500)] == [
        "0.0 s",
        "12 s",
        "99 s",
        "3 min 20 s",
        "2 h 05 min",
    ]
    assert (percent(0.842), percent(None)) == ("84.2 %", "–")


def test_a_round_in_one_line_and_its_troubles():
    row = {
        "round": 3,
        "accuracy": {"surrogate": 0.842, "resnet18": None},
        "bytes_up": 1_234_567,
        "bytes_down": 1_234_567,
        "seconds": {"clients": 2.0, "server": 9.9, "evaluate": 0.1, "distil": 9.0},
        "clients": [
            {"client": "c01", "matching": {"retries": 1, "sick": None}},
            {"client": "c02", "matching": {"retries": 1, "sick": "its matching loss rose"}},
        ],
        "failures": [{"client": "c02", "reason": "its matching loss rose"}],
        "aggregated": True,
    }
    assert round_line(row, 5) == "round 3/5  surrogate 84.2 %  resnet18 –  up 1.2 MB  down 1.2 MB  12 s"
    assert troubles(row) == [
        "  c02 left out: its matching loss rose",
        "  c01 matched with smaller steps, after 1 failed try",
    ]
    why = "algorithm.rule = 'krum' with algorithm.hostile = 1 needs 5 replies that can be used, and there are 4"
    quiet = row | {"failures": [], "clients": [], "aggregated": False}
    assert troubles(quiet | {"withheld": why}) == [f"  the model is as it was: {why}"]
    assert troubles(quiet) == ["  the model is as it was: fewer clients than the quorum replied"]  # of an older run


def small_prior(path: Path, *, classes: int) -> None:
    from fedstill.generators.files import save_prior
    from fedstill.generators.style import StyleGenerator, StyleOptions

    options = StyleOptions(channels=1, size=16, classes=classes, width=4, z_width=4, w_width=4, input="constant")
    with fedstill.Seed.root(0).scope():
        save_prior(path, StyleGenerator(options), {"classes": [str(each) for each in range(classes)]})
