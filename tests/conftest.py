"""Set up as a run is: one thread, malloc tuned, telemetry off. The same examples in every run of the properties."""

import os
import signal
from pathlib import Path

import pytest
from hypothesis import settings

from fedstill.runtime import prepare
from rundirs import write_four_methods

# a change is judged by what it changes; HYPOTHESIS_PROFILE=explore looks further
settings.register_profile("same", derandomize=True)
settings.register_profile("explore")
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "same"))

prepare(threads=1)

# a shell's background jobs ignore Ctrl-C, and so would what the tests start
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def comparison(tmp_path: Path) -> list[Path]:
    return write_four_methods(tmp_path)
