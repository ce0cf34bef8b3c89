"""Files that are whole or absent: written aside, flushed, renamed."""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fedstill.errors import InputError, RunError

__all__ = [
    "PRIVATE",
    "aside",
    "check_private",
    "numbered",
    "private_folder",
    "round_stem",
    "sweep",
    "write_bytes",
    "write_json",
    "write_text",
]

PRIVATE = 0o600
"""Mode of a file that its owner alone may read, such as a private key."""

_STRAY = re.compile(r"\..+\.[a-z0-9_]{8}")  # as mkstemp names it
_NUMBERED = re.compile(r"round-([0-9]{4,})")


def round_stem(number: int) -> str:
    """What a file of round ``number`` is called: ``round-0005``."""
    return f"round-{number:04d}"


def numbered(folder: Path, suffix: str) -> list[int]:
    """Rounds that ``folder`` has a file ``round-0005<suffix>`` of, rising; a user's copies beside them do not count."""
    stems = (_NUMBERED.fullmatch(path.name.removesuffix(suffix)) for path in folder.glob(f"round-*{suffix}"))
    return sorted(int(found[1]) for found in stems if found)


@contextmanager
def aside(path: Path, *, mode: int = 0o644) -> Iterator[Path]:
    """A temporary path beside ``path``; renamed over it when the block ends well, removed when it does not.

    The file has ``mode`` before anything is in it: by default a run's files are as readable as any other.

    Raises:
        RunError: the disk is full, read-only, or otherwise refuses the file. What stood at ``path`` stands still.
    """
    temporary: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        os.close(handle)
        temporary = Path(name)
        temporary.chmod(mode)  # mkstemp makes 0600
        yield temporary
        with temporary.open("rb") as written:
            os.fsync(written.fileno())
        temporary.replace(path)
    except OSError as error:
        raise RunError(
            f"cannot write {path}: {error.strerror or error}; free space or choose another folder"
        ) from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def sweep(path: Path) -> None:
    """Remove what a killed process left aside of ``path``, or anywhere below it where it is a folder."""
    for stray in (*path.parent.glob(f".{path.name}.*"), *path.rglob(".*.*")):
        if _STRAY.fullmatch(stray.name) and stray.is_file():
            stray.unlink(missing_ok=True)


def private_folder(path: Path) -> None:
    """Make the folder ``path``, for its owner alone; one that is there must be so already.

    Raises:
        InputError: it lets others in, or is no folder.
        RunError: the system refuses.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.mkdir(mode=0o700, exist_ok=True)
        mode = path.stat().st_mode & 0o777
    except FileExistsError as error:
        raise InputError(f"{path} is a file: give a folder") from error
    except OSError as error:
        raise RunError(f"cannot make the folder {path}: {error.strerror or error}; choose another") from error
    # other systems have no such modes
    if os.name == "posix" and mode & 0o077:
        raise InputError(
            f"{path} lets other users in (mode {mode:o}): close it with  chmod 700 {path} , or name another"
        )


def check_private(path: Path) -> None:
    """That a private key is for its owner's eyes alone.

    Raises:
        InputError: others may read it.
    """
    mode = path.stat().st_mode & 0o777
    if os.name == "posix" and mode & 0o077:
        raise InputError(f"{path} lets other users read a private key (mode {mode:o}): close it with  chmod 600 {path}")


def write_bytes(path: Path, content: bytes, *, mode: int = 0o644) -> None:
    """Write ``content`` to ``path``, whole or not at all."""
    with aside(path, mode=mode) as temporary:
        temporary.write_bytes(content)


def write_text(path: Path, content: str) -> None:
    """Write UTF-8 text to ``path``, whole or not at all."""
    write_bytes(path, content.encode())


def write_json(path: Path, content: Any) -> None:
    """Write JSON (no NaN: a figure that is not finite is ``null`` by then) to ``path``, whole or not at all."""
    write_text(path, json.dumps(content, indent=1, allow_nan=False) + "\n")
