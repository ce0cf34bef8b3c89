"""``fedstill tune``: what is read, how trials are judged, and a search at work, killed and continued."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import pytest

import tiny
from fedstill.cli import invoke
from fedstill.errors import InputError, RunError
from fedstill.experiment import Experiment
from fedstill.folder import locked
from fedstill.search import Choice, Integers, Range, Trial
from fedstill.sweep.state import Held
from fedstill.tune import read, work
from fedstill.tune.judge import Judge, Tried
from fedstill.tune.record import behind

pytest.importorskip("optuna")

FILE = """
name = "tiny"
rounds = 4
[data]
size = 8
limit = 120
test_limit = 50
[partition]
kind = "kclass"
clients = 3
classes = 4
validation = 0.3
[model]
depth = 2
width = 4
[algorithm]
name = "fedavg"
epochs = 1
lr = 0.1
batch = 16
"""

LR = "algorithm.lr=0.001..1:log"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.toml"
    path.write_text(FILE)
    return path


# --- what is read -------------------------------------------------------------------------------------------------------


def test_a_search_from_before_rules_and_bounds_is_the_same_search(file):
    """Their defaults are what was done then."""
    assert not {"algorithm.rule", "algorithm.hostile", "farthest"} & read(file, vary=[LR]).identity().keys()
    assert read(file, vary=[LR], settings=["farthest=10"]).identity()["farthest"] == 10.0


def test_what_is_varied(file):
    found = read(
        file,
        vary=[
            LR,
            "algorithm.momentum=0,0.9",
            "algorithm.epochs=1..5",
            "algorithm.decay=0..1",
            "data.size=8,16",
            'model={name="convnet",depth=2,width=4},{name="resnet18",width=8}',
        ],
    )
    assert found.space.parts == {
        "algorithm.lr": Range(0.001, 1.0, log=True),
        "algorithm.momentum": Choice((0, 0.9)),
        "algorithm.epochs": Integers(1, 5),  # which takes no fractions
        "algorithm.decay": Range(0.0, 1.0),  # which does
        "data.size": Choice((8, 16)),
        "model": Choice(({"name": "convnet", "depth": 2, "width": 4}, {"name": "resnet18", "width": 8})),
    }
    assert found.seeds == (0,)


def test_a_trials_experiment_is_the_files_with_its_parameters(file):
    found = read(file, vary=[LR, "model.width=4,8"], settings=["rounds=2", "seed=3"])
    assert found.seeds == (3,)
    one = found.trial({"algorithm.lr": 0.25, "model.width": 8}, 5)
    expected = Experiment.read(file, ["rounds=2", "seed=5", "algorithm.lr=0.25", "model.width=8"])
    assert one == expected
    assert read(file, vary=[LR], seeds=[0, 1]).seeds == (0, 1)


@pytest.mark.parametrize(
    ("vary", "sentence"),
    [
        ([], "nothing is varied: give at least one --vary, such as --vary algorithm.lr=0.001..0.1:log"),
        (["algorithm.lr"], "--vary algorithm.lr: write it as --vary table.key=value,value"),
        (["algorithm.lrr=0.1,0.2"], "--vary algorithm.lrr: algorithm.lrr: no such key: did you mean 'lr'?"),
        (["modle.width=4,8"], '--vary "modle.width": no such key: known: algorithm, cohort'),
        (
            ["algorithm.lr=0.1..0.01"],
            "--vary algorithm.lr: 0.1..0.01: the range is the wrong way round; write 0.01..0.1",
        ),
        (["algorithm.lr=0..0.1:log"], "--vary algorithm.lr: 0.0..0.1: 0.0 has no logarithm; begin a logarithmic range"),
        (["algorithm.lr=0.1..0.1"], "--vary algorithm.lr: 0.1..0.1: the range holds one value only; set it"),
        (["algorithm.lr=a..b"], "--vary algorithm.lr: a..b: write a range as LOW..HIGH or LOW..HIGH:log, with numbers"),
        (["algorithm.lr=0.1..1:lin"], "--vary algorithm.lr: 0.1..1:lin is a single value: give a range, such as"),
        (["algorithm.lr=0.1"], "--vary algorithm.lr: 0.1 is a single value: give a range, such as"),
        (["algorithm.lr=-1..1"], "--vary algorithm.lr: algorithm.lr = -1: must be above 0"),
        (["algorithm.epochs=1.5..3"], "--vary algorithm.epochs: algorithm.epochs = 1.5: must be an integer"),
        (["algorithm.momentum=0,2"], "--vary algorithm.momentum: algorithm.momentum = 2: must be below 1"),
        ([LR, LR], "--vary algorithm.lr: it is given twice; write all its values after one"),
        (["model.width=4,8", "model={depth=1},{depth=2}"], '--vary "model": "model.width" is varied too'),
        (["rounds=2,3"], "rounds changes no result that runs could be compared by, so it is not varied"),
        (["seed=0,1"], "--vary seed: give each trial several seeds with --seeds 0,1,2"),
        (["algorithm.name=fedavg,fedprox"], "--vary algorithm.name: methods have options of their own; tune each by"),
        (["partition.alpha=0.1,1"], "--vary partition.alpha: trials with other images or clients cannot be told apart"),
        (["data.limit=100,200"], "--vary data.limit: trials with other images or clients cannot be told apart by"),
    ],
)
def test_mistakes_are_answered_in_a_sentence(vary, sentence, file, tmp_path, capsys):
    given = [word for each in vary for word in ("--vary", each)]
    assert invoke(["tune", str(file), *given, "--out", str(tmp_path / "out")]) == 2
    heard = capsys.readouterr()
    assert heard.out == ""
    assert sentence in heard.err
    assert heard.err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_more_mistakes(file, tmp_path):
    with pytest.raises(InputError, match=r"tiny\.toml: partition\.validation = 0: .*; set it to 0\.1 or so"):
        read(file, vary=[LR], settings=["partition.validation=0"])
    with pytest.raises(InputError, match=r'--set sets "algorithm\.lr", which .* of a grid would overwrite'):
        read(file, vary=[LR], settings=["algorithm.lr=0.1"])
    with pytest.raises(InputError, match="--seeds: 1 is there twice"):
        read(file, vary=[LR], seeds=[1, 1])
    with pytest.raises(InputError, match="--set seed: --seeds is given too; keep one of them"):
        read(file, vary=[LR], seeds=[1], settings=["seed=2"])
    file.write_text(FILE + "[sweep]\nseeds = [0]\n")
    with pytest.raises(InputError, match=r"\[sweep\] makes several experiments of this file"):
        read(file, vary=[LR])
    with pytest.raises(InputError, match="cannot read"):
        read(tmp_path / "none.toml", vary=[LR])


def test_help_imports_neither_torch_nor_optuna():
    code = (
        "import sys; from fedstill.cli import invoke; invoke(['tune', '--help']); "
        "print(sorted({'torch', 'optuna'} & set(sys.modules)))"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert told.splitlines()[-1] == "[]"
    assert "--no-prune" in told


# --- how trials are judged ------------------------------------------------------------------------------------------------


def held(*curve, rounds: int = 4) -> Held:
    return Held(begun=True, finished=len(curve) == rounds, rounds=len(curve), validation=curve, seconds=1.0)


def judge(*, seeds: int = 1, prune: bool = True, rounds: int = 4) -> Judge:
    """By five trials whose runs have 0.2, 0.4, 0.6 and 0.8."""
    curve = (0.2, 0.4, 0.6, 0.8)
    steps = {place * rounds + index: value for place in range(seeds) for index, value in enumerate(curve)}
    return Judge([Trial({"x": number}, "finished", 0.8, steps) for number in range(5)], rounds, seeds, prune)


TRIED = Tried(7, 7, {"x": 7})


def test_a_trial_is_worth_its_selected_round():
    over = judge().settled(TRIED, [held(0.3, 0.7, None, 0.7)])
    assert (over.state, over.value, over.selected, over.seconds) == ("finished", 0.7, [2], 1.0)
    assert over.trial(4).steps == {0: 0.3, 1: 0.7, 3: 0.7}
    both = judge(seeds=2).settled(TRIED, [held(0.3, 0.5, 0.7, 0.9), held(0.3, 0.5, 0.7, 0.8)])
    assert both.value == pytest.approx(0.85)
    assert both.selected == [4, 4]
    assert both.trial(4).steps == dict(enumerate([0.3, 0.5, 0.7, 0.9, 0.3, 0.5, 0.7, 0.8]))


def test_one_that_falls_behind_is_given_up_wherever_its_process_was_stopped():
    for curve in ((0.3, 0.35), (0.3, 0.35, 0.9), (0.3, 0.35, 0.9, 0.99)):
        over = judge().settled(TRIED, [held(*curve)])
        assert (over.state, over.value, over.curves) == ("pruned", None, ((0.3, 0.35),))
    assert judge(prune=False).settled(TRIED, [held(0.3, 0.35, 0.9, 0.99)]).value == 0.99
    assert judge().settled(TRIED, [held(0.1)]).state == "begun"  # the first quarter tells little
    assert judge().settled(TRIED, [held(0.2, 0.4, 0.6, 0.1)]).state == "finished"  # nothing is left to give up


def test_runs_of_one_seed_are_compared():
    two = judge(seeds=2)
    good, bad = held(0.9, 0.9, 0.9, 0.9), held(0.1, 0.1)
    assert two.settled(TRIED, [good, Held()]).state == "begun"
    over = two.settled(TRIED, [good, bad])
    assert (over.state, over.curves) == ("pruned", ((0.9,) * 4, (0.1, 0.1)))
    assert two.settled(TRIED, [held(0.2, 0.4, 0.6, 0.1), Held()]).state == "pruned"  # there is a run to save
    assert two.settled(TRIED, [good, held(0.2, 0.4, 0.6, 0.1)]).state == "finished"
    assert two.settled(TRIED, [held(0.1, 0.4, 0.4), Held()]).state == "pruned"


def test_a_method_without_validation_scores_is_refused():
    with pytest.raises(InputError, match="trial-007 has no score to be judged by: its method sends clients no model"):
        judge().settled(TRIED, [held(None, None, None, None)])


# --- a search at work -----------------------------------------------------------------------------------------------------


def trials(out: Path) -> list[dict]:
    """Without what is measured anew."""
    table = json.loads((out / "tune.json").read_text())
    return [{key: value for key, value in line.items() if key != "seconds"} for line in table["trials"]]


def tune(file: Path, out: Path, *more: str) -> list[str]:
    words = ["tune", str(file), "--vary", LR, "--vary", "algorithm.momentum=0,0.9", "--out", str(out)]
    return [*words, *more]


@pytest.fixture(scope="module")
def straight(tmp_path_factory) -> Path:
    """The folder of a search of seven trials, of which some are pruned."""
    folder = tmp_path_factory.mktemp("tune")
    (folder / "tiny.toml").write_text(FILE)
    assert invoke([*tune(folder / "tiny.toml", folder / "out", "--trials", "7", "--json")]) == 0
    return folder / "out"


@pytest.mark.slow
def test_what_a_search_leaves(straight, capsys):
    table = json.loads((straight / "tune.json").read_text())
    lines = table["trials"]
    assert [line["trial"] for line in lines] == [f"trial-{number:03d}" for number in range(7)]
    assert {line["state"] for line in lines} == {"finished", "pruned"}
    assert table["wall_seconds"] > 0
    for line in lines:
        run = straight / line["trial"]
        curve = [row["validation"]["mean"] for row in tiny.rows(run)]
        assert line["validation"] == [curve[: line["rounds"][0]]]
        assert line["seconds"] > 0
        if line["state"] == "finished":
            summary = json.loads((run / "summary.json").read_text())
            assert summary["finished"]
            assert line["selected_rounds"] == [summary["selected_round"]]
            assert line["value"] == curve[summary["selected_round"] - 1] == max(curve)
        varied = Experiment.read(run / "experiment.toml").algorithm.table()
        assert {f"algorithm.{key}": varied[key] for key in ("lr", "momentum")} == line["parameters"]
    leader = max((line for line in lines if line["state"] == "finished"), key=lambda line: line["value"])
    assert table["best"] == leader["trial"]

    best = Experiment.read(straight / "best.toml")
    assert best.settings() == Experiment.read(straight / leader["trial"] / "experiment.toml").settings()
    assert best.name == "tiny"
    assert f"# {leader['trial']}, the best of 7: {leader['value']:.4f}" in (straight / "best.toml").read_text()
    assert "FedAvg" in (straight / "report.html").read_text()


@pytest.mark.slow
def test_again_nothing_is_run_and_more_trials_go_further(straight, tmp_path, capsys):
    out = Path(shutil.copytree(straight, tmp_path / "out"))
    file = straight.parent / "tiny.toml"
    before = trials(out)
    stamps = {path: path.stat().st_mtime_ns for path in out.glob("*/metrics.jsonl")}
    assert invoke(tune(file, out, "--trials", "7")) == 0
    heard = capsys.readouterr()
    assert heard.err.splitlines()[0].startswith(
        "7 trials of algorithm.lr in 0.001 … 1 (log), algorithm.momentum in {0, 0.9}"
    )
    assert "trials, best first" in heard.out
    assert f"best: {json.loads((out / 'tune.json').read_text())['best']}, validation " in heard.out
    assert trials(out) == before
    assert stamps == {path: path.stat().st_mtime_ns for path in out.glob("*/metrics.jsonl")}
    assert invoke(tune(file, out, "--trials", "8", "--json")) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["number"] for line in lines] == list(range(8))
    assert trials(out)[:7] == before


@pytest.mark.slow
def test_killed_anywhere_the_same_command_comes_to_the_same(straight, tmp_path):
    out, file = tmp_path / "out", straight.parent / "tiny.toml"
    command = [sys.executable, "-m", "fedstill", *tune(file, out, "--trials", "7", "--quiet")]
    for wanted in ("trial-001/metrics.jsonl", "trial-005/metrics.jsonl"):
        process = subprocess.Popen(command)
        until = time.monotonic() + 300
        while not (out / wanted).exists() or not (out / wanted).stat().st_size:
            assert process.poll() is None
            assert time.monotonic() < until
            time.sleep(0.01)
        process.kill()
        process.wait()
    subprocess.run(command, check=True, timeout=500)
    assert trials(out) == trials(straight)
    finished = [line["trial"] for line in trials(out) if line["state"] == "finished"]
    assert all(tiny.result(out / name) == tiny.result(straight / name) for name in finished)


@pytest.mark.slow
def test_several_at_a_time_come_to_what_they_come_to_one_by_one(straight, tmp_path):
    """The first are drawn at random: what others came to does not matter yet."""
    found = read(straight.parent / "tiny.toml", vary=[LR, "algorithm.momentum=0,0.9"])
    done = work(found, tmp_path / "out", trials=3, jobs=2)
    assert [each.batch for each in done.tried] == [0, 0, 1]
    lines, one_by_one = trials(tmp_path / "out"), trials(straight)[:3]
    assert [{**line, "batch": line["number"]} for line in lines] == one_by_one


@pytest.mark.slow
def test_several_seeds_are_several_runs_and_their_mean(file, tmp_path):
    found = read(file, vary=[LR], seeds=[0, 1], settings=["rounds=2"])
    done = work(found, tmp_path / "out", trials=1)
    runs = sorted(path for path in (tmp_path / "out").glob("trial-*"))
    assert [path.name for path in runs] == ["trial-000-0", "trial-000-1"]
    assert [Experiment.read(path / "experiment.toml").seed for path in runs] == [0, 1]
    best = [max(row["validation"]["mean"] for row in tiny.rows(path)) for path in runs]
    assert done.best.value == pytest.approx(sum(best) / 2)
    assert Experiment.read(done.file).seed == 0


@pytest.mark.slow
def test_what_diverges_counts_as_bad_and_stops_no_other(file, tmp_path, capsys):
    out = tmp_path / "out"
    words = ["tune", str(file), "--vary", "algorithm.lr=0.1,1e30", "--set", "rounds=1", "--out", str(out)]
    assert invoke([*words, "--trials", "5"]) == 0
    heard = capsys.readouterr()
    lines = {line["parameters"]["algorithm.lr"]: line for line in trials(out)}
    assert (lines[0.1]["state"], lines[1e30]["state"]) == ("finished", "failed")
    assert lines[1e30]["failure"].startswith("no client gave a usable reply in round 1")
    assert "there are no more than these 2 to try" in heard.out
    assert f"{lines[1e30]['trial']} failed: no client gave a usable reply" in heard.err
    best = tomllib.loads((out / "best.toml").read_text())
    assert best["algorithm"]["lr"] == 0.1

    with pytest.raises(RunError, match="the trial failed; trial-000: no client gave a usable reply"):
        work(read(file, vary=["algorithm.lr=1e30,1e31"], settings=["rounds=1"]), tmp_path / "none", trials=1)


def test_a_folder_that_is_none_for_a_search(file, tmp_path, capsys):
    found = read(file, vary=[LR])
    for name, what in (("experiment.toml", "a run"), ("sweep.json", "a sweep")):
        (tmp_path / name).write_text("")
        with pytest.raises(InputError, match=f"holds {what}, and a search's folder holds a folder a trial"):
            work(found, tmp_path)
        (tmp_path / name).unlink()
    pytest.importorskip("fcntl")
    out = tmp_path / "out"
    with locked(out, note=pytest.fail, who="search"):
        assert invoke(["tune", str(file), "--vary", LR, "--out", str(out)]) == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith(f"fedstill: another search is at work in {out}")


def table_of(found, *lines, **changes) -> str:
    content = {"search": found.identity(), "trials": list(lines), "wall_seconds": 1.0, "cpu_seconds": None}
    return json.dumps({**content, **changes})


def test_other_settings_and_damage_are_said(file, tmp_path):
    found = read(file, vary=[LR])
    path = tmp_path / "tune.json"
    path.write_text(table_of(found))
    assert behind(tmp_path, found)[0] == []
    for other, sentence in (
        (read(file, vary=["algorithm.lr=0.01..1:log"]), r"--vary algorithm\.lr \(there .*0\.001.*, here .*0\.01"),
        (read(file, vary=[LR], settings=["algorithm.batch=8"]), r"algorithm\.batch \(there 16, here 8\) differ"),
        (read(file, vary=[LR], settings=["rounds=5"]), r"rounds \(there 4, here 5\)"),
        (read(file, vary=[LR], seeds=[1]), r"--seeds \(there \[0\], here \[1\]\)"),
        (read(file, vary=[LR], prune=False), r"pruning \(there true, here false\)"),
    ):
        with pytest.raises(InputError, match=f"holds a search of other settings: .*{sentence}"):
            behind(tmp_path, other)
    # what is varied does not hang on what the file says of it
    changed = tmp_path / "changed.toml"
    changed.write_text(FILE.replace("lr = 0.1", "lr = 0.2").replace('name = "tiny"', 'name = "other"'))
    assert behind(tmp_path, read(changed, vary=[LR]))[0] == []
    good = Tried(0, 0, {"algorithm.lr": 0.1}).to_json(["trial-000"])
    for text in (
        "{",
        "[]",
        table_of(found, {}),
        table_of(found, {**good, "number": 1}),
        table_of(found, {**good, "state": "finished"}),
        table_of(found, {**good, "parameters": {"algorithm.lr": 7}}),
        table_of(found, wall_seconds=None),
    ):
        path.write_text(text)
        with pytest.raises(
            InputError, match=r"tune\.json is damaged: remove it and the trials beside it, or give another"
        ):
            behind(tmp_path, found)


def test_what_failed_is_tried_again_when_its_folder_is_gone(file, tmp_path):
    found = read(file, vary=[LR])
    failed = Tried(0, 0, {"algorithm.lr": 0.1}, "failed", failure="it broke")
    (tmp_path / "tune.json").write_text(table_of(found, failed.to_json(["trial-000"])))
    assert behind(tmp_path, found)[0] == [Tried(0, 0, {"algorithm.lr": 0.1})]
    (tmp_path / "trial-000").mkdir()
    assert behind(tmp_path, found)[0] == [failed]


@pytest.mark.slow
def test_dry_run_tells_and_writes_nothing(file, tmp_path, capsys):
    out = tmp_path / "out"
    assert invoke(tune(file, out, "--trials", "6", "--jobs", "2", "--dry-run", "--json")) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["trials"], found["over"]) == (6, 0)
    assert found["seconds"] == pytest.approx(3 * found["run"])
    assert not out.exists()
