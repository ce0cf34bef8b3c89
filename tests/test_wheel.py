"""The wheel, installed outside the checkout, is all that a user needs: prior, page template and demo included."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

EXPERIMENT = """
name = "tiny"
rounds = 1
[data]
source = "digits"
size = 16
[partition]
kind = "kclass"
classes = 2
clients = 3
[model]
name = "convnet"
depth = 2
width = 4
[algorithm]
name = "feddgm"
epochs = 1
generator = "digits"
space = 1
ipc = 1
distill_steps = 1
student_steps = 1
global_epochs = 1
loss_limit = 1e9
"""

SAMPLE = """
import torch
from fedstill.generators.files import load_prior
from fedstill.generators.train import sample
from fedstill.seeds import Seed
print(list(sample(load_prior("digits"), torch.arange(10), Seed.root(0)).shape))
"""

pytestmark = pytest.mark.slow


def run(*command: str | Path, cwd: Path, path: Path | None = None) -> str:
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | {"OMP_NUM_THREADS": "1"}
    if path is not None:
        env["PYTHONPATH"] = str(path)
    done = subprocess.run(
        [sys.executable, *map(str, command)], cwd=cwd, env=env, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    run("-m", "build", "--wheel", "--no-isolation", "--outdir", folder, ROOT, cwd=folder)
    (wheel,) = folder.glob("*.whl")
    target = folder / "site"
    run("-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", target, wheel, cwd=folder)
    return target


def test_it_is_the_wheel_that_runs(installed: Path, tmp_path: Path) -> None:
    where = run("-c", "import fedstill; print(fedstill.__file__)", cwd=tmp_path, path=installed).strip()
    assert Path(where).is_relative_to(installed)


def test_help(installed: Path, tmp_path: Path) -> None:
    assert "Usage: fedstill" in run("-m", "fedstill", "--help", cwd=tmp_path, path=installed)


def test_the_shipped_prior_draws(installed: Path, tmp_path: Path) -> None:
    assert run("-c", SAMPLE, cwd=tmp_path, path=installed).strip() == "[10, 1, 16, 16]"


def test_a_tiny_experiment(installed: Path, tmp_path: Path) -> None:
    (tmp_path / "tiny.toml").write_text(EXPERIMENT)
    run("-m", "fedstill", "run", "tiny.toml", "--out", "out", cwd=tmp_path, path=installed)
    rows = [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    assert [row["round"] for row in rows] == [1]
    assert rows[0]["accuracy"]["surrogate"] is not None
    assert "<!doctype html>" in (tmp_path / "out" / "report.html").read_text()
    assert (tmp_path / "out" / "models" / "surrogate.safetensors").is_file()


def test_the_demo_is_packaged(installed: Path) -> None:
    assert {file.stem for file in (installed / "fedstill" / "demo").glob("*.toml")} >= {"feddgm", "fedavg", "prioronly"}
