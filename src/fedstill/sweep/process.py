"""The sweep's side of a cell's process: begin it, hear it, stop it."""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from fedstill.errors import RunError
from fedstill.experiment import Experiment

if TYPE_CHECKING:
    from fedstill.sweep.cell import Job  # which is run by its name, and must not be imported before

__all__ = ["Heard", "Process", "job", "stop", "why"]

_KILLED = 9  # SIGKILL, which not every system's module signal knows

_PATIENCE = 10.0
"""Seconds after which a cell that was told to stop is killed; it stops by itself within some."""


class Heard(NamedTuple):
    """A word from a process: whose, and what. The last is ``{"event": "ended", "code": …}``."""

    name: str
    message: Mapping[str, Any]


def job(task: str, experiment: Experiment, *, out: Path | None = None, resume: bool = False) -> Job:
    """What a process is told to do, see :mod:`fedstill.sweep.cell`."""
    return {
        "task": task,
        "experiment": experiment.to_toml(),
        "out": None if out is None else str(out),
        "resume": resume,
    }


class Process:
    """A process at work on a job.

    It is a child in a session of its own, so that a terminal's Ctrl-C reaches the sweep alone. Its standard input stays open as
    long as the sweep lives: when the sweep is killed, the system closes it, and the child stops.
    """

    def __init__(
        self, name: str, job: Job, *, log: Path, hear: queue.SimpleQueue[Heard], keeps: Iterable[int] = ()
    ) -> None:
        """Begin.

        Args:
            name: what it is called in what is heard.
            job: what it is to do.
            log: file for its standard error.
            hear: gets every word.
            keeps: descriptors that it inherits.

        Raises:
            RunError: the system refuses another process, or the log.
        """
        self.name = name
        self.log = log
        try:
            log.parent.mkdir(parents=True, exist_ok=True)
            with log.open("wb") as errors:
                self._child = subprocess.Popen(
                    # -P: the folder that fedstill is called in is searched last, as in this process, and not first
                    [sys.executable, "-P", "-m", "fedstill.sweep.cell"],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=errors,
                    env={**os.environ, "PYTHONPATH": os.pathsep.join(each or os.getcwd() for each in sys.path)},
                    start_new_session=True,
                    pass_fds=tuple(keeps),
                )
        except OSError as error:
            raise RunError(
                f"cannot begin a process for {name} with the log {log}: {error.strerror or error}"
            ) from error
        self._listener = threading.Thread(target=self._listen, args=(hear,), daemon=True, name=f"hears {name}")
        self._listener.start()
        self._send(json.dumps(job).encode() + b"\n")

    def stop(self) -> None:
        """Tell it to stop, and do not wait."""
        assert self._child.stdin is not None
        with suppress(OSError):  # it has ended
            self._child.stdin.close()

    def kill(self) -> None:
        """End it at once."""
        self._child.kill()

    def wait(self, seconds: float) -> bool:
        """Whether it has ended, and all its words are heard, after ``seconds`` at most."""
        self._listener.join(max(0.0, seconds))
        return not self._listener.is_alive()

    def _send(self, line: bytes) -> None:
        assert self._child.stdin is not None
        with suppress(OSError):  # it has ended: its exit code says why
            self._child.stdin.write(line)
            self._child.stdin.flush()

    def _listen(self, hear: queue.SimpleQueue[Heard]) -> None:
        assert self._child.stdout is not None
        with self._child.stdout as words:
            for line in words:
                if line.endswith(b"\n"):  # a process that is killed may leave half a word
                    hear.put(Heard(self.name, json.loads(line)))
        hear.put(Heard(self.name, {"event": "ended", "code": self._child.wait()}))


def stop(processes: Iterable[Process]) -> None:
    """Stop all of them; none is left when this returns."""
    there = list(processes)
    for each in there:
        each.stop()
    until = time.monotonic() + _PATIENCE
    for each in there:
        if not each.wait(until - time.monotonic()):
            each.kill()
            each.wait(_PATIENCE)


def why(code: int) -> str:
    """What a process's end means that said nothing of it."""
    if code == -_KILLED:
        return "the system killed it, most likely for want of memory: use fewer --jobs"
    if code < 0:
        return f"it was ended by signal {-code}"
    return f"it ended with exit code {code} and without a word"
