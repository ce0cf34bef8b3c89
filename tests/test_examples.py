"""The examples of docs/examples do what their text says."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from fedstill.contract import CLAUSES, check_algorithm

ROOT = Path(__file__).parents[1]


def test_median_keeps_the_contract(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "docs" / "examples"))
    from median import FedMedian

    assert check_algorithm(FedMedian, {"epochs": 1}) == list(CLAUSES)


@pytest.mark.parametrize(("values", "wanted"), [([3.0, -1e9, 1.0], 1.0), ([4.0, 1.0, 2.0, 1e9], 3.0), ([7.0], 7.0)])
def test_median_is_not_led_by_one(monkeypatch: pytest.MonkeyPatch, values: list[float], wanted: float) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "docs" / "examples"))
    from median import median

    assert median([torch.tensor(value) for value in values]).item() == wanted


def test_the_guide_shows_the_example_as_it_is() -> None:
    guide = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    shown = re.search(r"```python\n(.*?)```", guide, flags=re.DOTALL)
    assert shown is not None
    source = (ROOT / "docs" / "examples" / "median.py").read_text(encoding="utf-8")
    assert shown.group(1).strip() in source


@pytest.mark.slow
def test_the_guides_command_works() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "fedstill", "check", "median:FedMedian", "--set", "epochs=1"],
        cwd=ROOT / "docs" / "examples",
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("kept: ") == len(CLAUSES)
