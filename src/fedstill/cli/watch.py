"""The command watch: the page of runs, written anew as they go on."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, NamedTuple

import typer

from fedstill.errors import InputError

__all__ = ["follow", "watch"]

EVERY = 10
_MOST = 6  # runs that a line names


def watch(
    runs: Annotated[list[Path], typer.Argument(help="Folders of runs, or folders that hold runs.", show_default=False)],
    out: Annotated[Path, typer.Option(help="HTML file to write.")] = Path("report.html"),
    every: Annotated[
        int,
        typer.Option(min=1, max=3600, help="Seconds between two looks, and after which a browser reloads the page."),
    ] = EVERY,
    wait: Annotated[bool, typer.Option("--wait", help="Wait for runs that have not begun yet.")] = False,
) -> None:
    """Write a page that follows runs, until all of them are finished. Ctrl-C ends the watching, not the runs."""
    from fedstill.folder import EXPERIMENT
    from fedstill.report import write_report

    if absent := [folder for folder in runs if not _begun_in([folder])]:
        if not wait:
            raise InputError(
                f"{absent[0]} holds no run: there is no {EXPERIMENT} in it, nor in a folder there; "
                "--wait waits for it to begin"
            )
        _say(f"waiting for {', '.join(map(str, absent))}")
    _say(f"page: {out}")
    try:
        follow(runs, out, every=every, sleep=time.sleep, say=_say)
    except KeyboardInterrupt:
        # the usual end: the page is left as one that nobody will write again
        if there := _begun_in(runs):
            write_report(there, out)
        _say("no longer watching; the runs go on")


def follow(
    runs: Sequence[Path], out: Path, *, every: int, sleep: Callable[[float], None], say: Callable[[str], None]
) -> None:
    """Write the page of ``runs`` whenever one of them got on; return when all are finished.

    Runs that have not begun are left out until they do. A sweep is finished when all of its cells are that did not fail. The
    last page does not reload itself.

    Args:
        runs: folders of runs, or folders that hold runs.
        out: the HTML file.
        every: seconds between two looks.
        sleep: waits so many seconds.
        say: hears a line a page.

    Raises:
        RunError: the page cannot be written.
    """
    from fedstill.report import write_report

    seen: list[_Look] = []
    while True:
        # looked at before the page is made: what changes meanwhile is seen the next time
        looks = [_look(run) for run in _begun_in(runs)]
        over = all(map(_over, runs))
        if looks and looks != seen:
            write_report([look.run for look in looks], out, live=None if over else every)
            say(f"{time.strftime('%H:%M:%S')}  {_told(looks)}")
            seen = looks
        if over:
            return
        sleep(every)


class _Look(NamedTuple):
    """A run as it stands; equal looks give equal pages."""

    run: Path
    files: tuple[tuple[int, int] | None, ...]
    finished: bool


def _begun_in(folders: Sequence[Path]) -> list[Path]:
    """The runs that ``folders`` stand for, as far as they have begun."""
    from fedstill.folder import EXPERIMENT
    from fedstill.report.finding import runs_in

    return [run for folder in folders for run in runs_in(folder) if (run / EXPERIMENT).exists()]


def _over(folder: Path) -> bool:
    """Whether nothing more is to come there; never before the first run has begun."""
    from fedstill.report.finding import awaited

    its = awaited(folder) or _begun_in([folder])
    return bool(_begun_in([folder])) and all(map(_finished, its))


def _look(run: Path) -> _Look:
    from fedstill.folder import AUDIT, EVALUATION, METRICS

    return _Look(run, tuple(_stamp(run / name) for name in (METRICS, EVALUATION, AUDIT)), _finished(run))


def _stamp(file: Path) -> tuple[int, int] | None:
    try:
        found = file.stat()
    except FileNotFoundError:
        return None
    return found.st_mtime_ns, found.st_size


def _finished(run: Path) -> bool:
    from fedstill.folder import SUMMARY

    try:
        return bool(json.loads((run / SUMMARY).read_text(encoding="utf-8"))["finished"])
    except (OSError, ValueError, KeyError, TypeError):
        return False  # no summary yet, or a damaged one, which the page names


def _told(looks: Sequence[_Look]) -> str:
    """A word for each; where they are many, how many are finished."""
    if len(looks) <= _MOST:
        return ", ".join(map(_line, looks))
    return f"{sum(look.finished for look in looks)} of the {len(looks)} runs that have begun are finished"


def _line(look: _Look) -> str:
    """``feddgm 3/20`` or ``feddgm finished``."""
    from fedstill.folder import EXPERIMENT, METRICS
    from fedstill.output import whole_lines
    from fedstill.settings import read_toml

    name = look.run.resolve().name
    if look.finished:
        return f"{name} finished"
    until = read_toml(look.run / EXPERIMENT).get("rounds", "?")
    return f"{name} {len(whole_lines(look.run / METRICS))}/{until}"


def _say(text: str) -> None:
    typer.echo(text, err=True)
