"""A run's folder: what it is called there, whether a run may write into it, and the lock while one does."""

from __future__ import annotations

import json
import shlex
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from fedstill.errors import InputError, RunError
from fedstill.experiment import PROVENANCE
from fedstill.settings import read_toml

__all__ = [
    "AUDIT",
    "AUDITED",
    "EVALUATION",
    "EXPERIMENT",
    "FAILURES",
    "FEDERATION",
    "LOCK",
    "MESSAGES",
    "METRICS",
    "OURS",
    "PARTITION",
    "REPORT",
    "SCRATCH",
    "SUMMARY",
    "TRACKING",
    "check",
    "check_place",
    "clear",
    "locked",
    "remove",
    "resume_command",
]

EXPERIMENT, METRICS, PARTITION, FEDERATION, SUMMARY, REPORT, EVALUATION, AUDIT, FAILURES = (
    "experiment.toml",
    "metrics.jsonl",
    "partition.json",
    "federation.json",
    "summary.json",
    "report.html",
    "evaluation.json",
    "audit.json",
    "failures.log",
)
MESSAGES, AUDITED, TRACKING, SCRATCH, LOCK = "messages", "audit", "trackers", "scratch", ".lock"
OURS = (
    "checkpoints",
    "memory",
    SCRATCH,
    "synthetic",
    "models",
    MESSAGES,
    AUDITED,
    TRACKING,
    REPORT,
    EVALUATION,
    AUDIT,
    SUMMARY,
    METRICS,
    PARTITION,
    FEDERATION,
    FAILURES,
    EXPERIMENT,
)
"""What a run writes, in the order in which it is removed: without its experiment, a folder holds no run."""


def resume_command(out: Path) -> str:
    """What a user types to continue the run in ``out``."""
    try:
        served = json.loads((out / FEDERATION).read_text(encoding="utf-8"))["command"]
        where = shlex.join([str(out / EXPERIMENT), "--out", str(out)])
        return f"fedstill server {where} --resume {served}".rstrip()
    except (OSError, ValueError, KeyError, TypeError):
        return f"fedstill resume {out}"


def check_place(out: Path) -> None:
    """That a folder may be at ``out``.

    Raises:
        InputError: it is a file, or the system takes no such name.
    """
    try:
        there = out.exists()
    except OSError as error:
        raise InputError(f"{out} cannot be a folder ({error.strerror}): give another --out") from error
    if there and not out.is_dir():
        raise InputError(f"{out} is a file: give a folder with --out")


def check(out: Path, *, resume: bool, overwrite: bool) -> None:
    """That a run may begin in ``out``, be continued there, or take the place of the one that it holds.

    Raises:
        InputError: it may not; the sentence says what to do instead.
    """
    check_place(out)
    if not (out / EXPERIMENT).exists():
        if resume:
            raise InputError(f"{out} holds no run to resume: there is no {EXPERIMENT} in it")
        if foreign := [name for name in OURS if (out / name).exists()]:
            raise InputError(f"{out} holds '{foreign[0]}' but no run, as {EXPERIMENT} is missing: give another --out")
    elif overwrite:
        if PROVENANCE not in read_toml(out / EXPERIMENT):
            raise InputError(f"{out / EXPERIMENT} was written by no run, so it is not overwritten: give another --out")
    elif not resume:
        raise InputError(
            f"{out} already holds a run: continue it with  {resume_command(out)} , give another --out, or --overwrite it"
        )


def clear(out: Path) -> None:
    """Remove a run, and nothing that no run has written."""
    for name in OURS:
        remove(out / name)


def remove(path: Path) -> None:
    """Remove a file or a folder, if it is there.

    Raises:
        RunError: the system refuses.
    """
    try:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    except OSError as error:
        raise RunError(f"cannot remove {path}: {error.strerror or error}") from error


@contextmanager
def locked(
    out: Path, *, note: Callable[[str], None], name: str = LOCK, who: str = "run", patience: float = 0.0
) -> Iterator[int | None]:
    """Keep others out of ``out``, which is made where it is missing. A killed process keeps nobody out.

    Args:
        out: the folder.
        note: hears that this system has no locks.
        name: of the file that is locked; each keeps out those who lock the same.
        who: ``another run is at work``.
        patience: seconds to wait for the other to end.

    Yields:
        The descriptor of the lock, None where there is none. A process that inherits it holds the lock until it ends.

    Raises:
        InputError: another is at work there.
        RunError: the folder cannot be written to.
    """
    try:
        import fcntl
    except ImportError:  # as on Windows
        note(f"no lock on {out}: this system has none of the kind, so let no second {who} write there")
        yield None
        return
    try:
        out.mkdir(parents=True, exist_ok=True)
        file = (out / name).open("wb")
    except OSError as error:
        raise RunError(f"cannot write to {out}: {error.strerror or error}; choose another folder") from error
    with file:
        until = time.monotonic() + patience
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                if time.monotonic() >= until:
                    raise InputError(
                        f"another {who} is at work in {out}: wait for it, or give another folder"
                    ) from error
                time.sleep(0.05)
                continue
            except OSError as error:
                note(f"no lock on {out} ({error.strerror or error}): let no second {who} write there")
            break
        yield file.fileno()
