"""What is quick stays quick: neither ``import fedstill`` nor ``fedstill --help`` imports torch."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest

HEAVY = ("torch", "numpy", "matplotlib", "sklearn", "pyarrow", "pydantic", "PIL", "jinja2")

HELP = """
import runpy
sys.argv = ["fedstill", "--help"]
try:
    runpy.run_module("fedstill", run_name="__main__", alter_sys=True)
except SystemExit as end:
    assert not end.code, end.code
"""


@pytest.mark.parametrize(
    "code", ["import fedstill", "import fedstill.algorithms, fedstill.models, fedstill.generators", HELP]
)
def test_nothing_heavy_is_imported(code: str) -> None:
    tell = f"\nprint([name for name in {HEAVY} if name in sys.modules], file=sys.stderr)"
    began = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", "import sys\n" + code + tell], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.splitlines()[-1] == "[]"
    # generous, for a machine that is busy; benchmarks/import_time.py measures
    assert time.perf_counter() - began < 2
