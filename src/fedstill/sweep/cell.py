"""The process of one cell: ``python -m fedstill.sweep.cell``.

It reads a job, one line of JSON, from standard input, and then watches it: its end says that the sweep is over or dead, and the
cell stops, as by Ctrl-C. What it has to tell goes to standard output, a JSON object a line; what others print goes to the log.

It does not hear the terminal's Ctrl-C: the sweep began it in a session of its own.
"""

from __future__ import annotations

import _thread
import json
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Literal, TextIO

from fedstill.runtime import leave

if TYPE_CHECKING:
    from fedstill.experiment import Experiment
    from fedstill.reporter import Ending, Opening

__all__ = ["Job", "main"]

Job = Mapping[Literal["task", "experiment", "out", "resume"], Any]
"""``task``: ``run`` or ``estimate``; ``experiment``: as TOML; for a run ``out``, its folder, and ``resume``."""

INTERRUPTED = 130

_PATIENCE = 5.0
"""Seconds that a cell has to stop by itself. Its files are whole at any moment."""

_PERIOD = 0.25
"""Seconds between two words about one phase."""


class _Voice:
    """A reporter that the parent process hears."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._phase = ""
        self._told = 0.0

    def say(self, event: str, **values: Any) -> None:
        try:
            self._stream.write(json.dumps({"event": event, **values}) + "\n")
            self._stream.flush()
        except OSError:
            pass  # nobody hears: the watch over standard input ends this process

    def opening(self, opening: Opening) -> None:
        rows = [{"round": row["round"], "seconds": row["seconds"]} for row in opening.rows]
        self.say("opening", rows=rows, until=opening.until)
        for name, reason in opening.skipped[:1]:
            self.note(f"unreadable images left out: {len(opening.skipped)}; the first: {name}: {reason}")

    def progress(self, phase: str, done: int, total: int) -> None:
        name, now = phase.partition(" ")[0], time.monotonic()
        if name != self._phase or now - self._told >= _PERIOD:
            self._phase, self._told = name, now
            self.say("progress", phase=phase, done=done, total=total)

    def row(self, row: Mapping[str, Any], *, left: float) -> None:
        keys = ("round", "accuracy", "seconds", "validation", "failures", "aggregated", "peak_memory")
        told = {key: row[key] for key in keys} | {key: row[key] for key in ("withheld",) if key in row}
        matchings = [{"client": each["client"], "matching": each.get("matching")} for each in row["clients"]]
        self.say("row", row={**told, "clients": matchings}, left=left)

    def note(self, text: str) -> None:
        self.say("note", text=text)

    def closing(self, ending: Ending) -> None: ...


def main() -> int:
    """The exit code: 0 done, 1 or 2 failed, 130 stopped."""
    # as Python sets it up where a terminal began the sweep; a shell's background job ignores it
    signal.signal(signal.SIGINT, signal.default_int_handler)
    voice = _Voice(_claimed())
    try:
        line = _first_line(0)
        if not line:
            return INTERRUPTED
        threading.Thread(target=_watch, args=(0,), daemon=True, name="watch").start()
        return _do(json.loads(line), voice)
    except KeyboardInterrupt:
        return INTERRUPTED


def _do(job: Job, voice: _Voice) -> int:
    from fedstill.errors import FedstillError

    try:
        experiment = _experiment(job)
        if job["task"] == "estimate":
            from fedstill.cost import estimate

            voice.say("cost", cost=estimate(experiment).to_json())
        else:
            from fedstill.run import drive

            drive(experiment, out=job["out"], resume=job["resume"], reporter=voice)
            voice.say("done")
    except FedstillError as error:
        voice.say("failed", why=str(error))
        with suppress(OSError):  # a full disk has no room for the log either
            sys.stderr.write(f"fedstill: {error}\n")
        return error.exit_code
    except Exception as error:
        first = (str(error).splitlines() or [""])[0]
        voice.say("failed", why=f"{type(error).__name__}: {first}" if first else type(error).__name__)
        with suppress(OSError):
            traceback.print_exc()
        return 1
    return 0


def _experiment(job: Job) -> Experiment:
    import tomllib

    from fedstill.experiment import Experiment

    return Experiment.from_table(tomllib.loads(job["experiment"]))


def _claimed() -> TextIO:
    """Standard output for us alone: what anybody prints goes where standard error goes."""
    ours = os.dup(1)
    os.dup2(2, 1)
    return os.fdopen(ours, "w", encoding="utf-8")


def _first_line(handle: int) -> bytes:
    """Up to the line's end, byte by byte: what follows it is the watch's. Empty where there is none."""
    line = b""
    while not line.endswith(b"\n"):
        piece = os.read(handle, 1)
        if not piece:
            return b""
        line += piece
    return line


def _watch(handle: int) -> None:
    """Wait for the end of standard input; then stop this process."""
    while os.read(handle, 4096):
        pass
    _thread.interrupt_main()
    time.sleep(_PATIENCE)
    os._exit(INTERRUPTED)


if __name__ == "__main__":
    leave(main())
