"""Set up as a run is: one thread, malloc tuned, telemetry off. The same examples in every run of the properties.

At the end of all tests: no process of theirs tried to reach beyond this machine, and none is left running.
"""

import os
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
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


# --- what all tests together must not do -------------------------------------------------------------------------------

GUARD = "FEDSTILL_GUARD"
GUARDS = Path(__file__).parent / "guard"
_LOG = pytest.StashKey[Path]()


def pytest_configure(config: pytest.Config) -> None:
    if GUARD in os.environ:  # a worker of ours, or tests that a test runs
        return
    handle, name = tempfile.mkstemp(prefix="fedstill-guard-")
    os.close(handle)
    os.environ[GUARD] = name
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(GUARDS), os.environ.get("PYTHONPATH"))))
    sys.path.insert(0, str(GUARDS))
    sys.modules.pop("sitecustomize", None)
    __import__("sitecustomize")  # this process began without it
    sys.path.remove(str(GUARDS))
    config.stash[_LOG] = Path(name)
    config.add_cleanup(lambda: Path(name).unlink(missing_ok=True))


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    if (log := session.config.stash.get(_LOG, None)) is None:
        return
    found = [f"reached out: {line}" for line in log.read_text().splitlines()]
    found += [f"left running: {said}" for said in _left_running()]
    if found:
        sys.stderr.write("\n" + "\n".join(found) + "\n")
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def _left_running(patience: float = 20.0) -> list[str]:
    """Processes that tests started and that do not end by themselves; they are ended."""
    until = time.monotonic() + patience
    while left := dict(_ours()):
        if time.monotonic() > until:
            for number in left:
                os.kill(number, signal.SIGKILL)
            return list(left.values())
        time.sleep(0.2)
    return []


def _ours() -> Iterator[tuple[int, str]]:
    """Numbers and command lines of processes that have this session's mark, but for this one."""
    mark = f"{GUARD}={os.environ[GUARD]}".encode()
    for folder in Path("/proc").glob("[0-9]*") if sys.platform == "linux" else ():
        try:
            if int(folder.name) != os.getpid() and mark in (folder / "environ").read_bytes().split(b"\0"):
                yield (
                    int(folder.name),
                    (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")[:200],
                )
        except OSError:
            continue  # it has ended, or is somebody else's
