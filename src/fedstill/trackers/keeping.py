"""Where in a run's folder trackers keep their files, and which run of theirs it is: so that a resumed run goes on in it."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from fedstill.files import write_json
from fedstill.folder import TRACKING

__all__ = ["Kept", "keep", "kept", "place"]


@dataclass(frozen=True)
class Kept:
    """A tracker's run.

    Attributes:
        run: what the tracker calls it.
        store: where the tracker keeps it.
        last: number of the last round that it was told of; 0: of none, or that its own store is asked.
    """

    run: str
    store: str
    last: int = 0


def place(out: Path, tracker: str) -> Path:
    """The folder of ``tracker``'s own files in the run ``out``, absolute; it is made where it is missing."""
    folder = out.resolve() / TRACKING / tracker
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def keep(folder: Path, this: Kept) -> None:
    """Write down in ``folder`` which run it is, and how far."""
    write_json(folder / "run.json", asdict(this))


def kept(folder: Path, *, store: str) -> Kept | None:
    """What was written down; None where nothing was, or where it is a run in another store."""
    file = folder / "run.json"
    if not file.exists():
        return None
    found = Kept(**json.loads(file.read_text(encoding="utf-8")))
    return found if found.store == store else None
