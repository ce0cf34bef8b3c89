"""Client memory: one file a client and round, two versions kept.

Work for round n reads the newest version below n and writes n. So doing round n again, after a crash, reads what the first
attempt read: a repeat is harmless.
"""

from __future__ import annotations

from pathlib import Path

from fedstill.bundle import Bundle
from fedstill.errors import InputError
from fedstill.files import numbered

__all__ = ["Memory"]

KEPT = 2


class Memory:
    """Versions of every client's memory, in ``folder``, or in this process where there is none; the newest ``kept`` of each."""

    def __init__(self, folder: Path | None = None, *, kept: int = KEPT) -> None:
        self.folder = folder
        self.kept = kept
        self._held: dict[str, dict[int, Bundle]] = {}

    def read(self, client: str, before: int) -> Bundle:
        """The newest version below round ``before``; an empty Bundle where there is none."""
        numbers = [number for number in self.versions(client) if number < before]
        if not numbers:
            return Bundle()
        if self.folder is None:
            return self._held[client][numbers[-1]]
        return Bundle.open(self._path(client, numbers[-1]))

    def write(self, client: str, number: int, bundle: Bundle) -> None:
        """Keep ``bundle`` as round ``number``'s version. A client that never remembers anything leaves no file."""
        if not bundle.groups and not bundle.numbers and not self.versions(client):
            return
        if self.folder is None:
            self._held.setdefault(client, {})[number] = bundle.detached()
        else:
            bundle.save(self._path(client, number))
        for old in self.versions(client)[: -self.kept]:
            if self.folder is None:
                del self._held[client][old]
            else:
                self._path(client, old).unlink(missing_ok=True)

    def versions(self, client: str) -> list[int]:
        """Round numbers of the versions there are, rising."""
        if self.folder is None:
            return sorted(self._held.get(client, {}))
        return numbered(self.folder / client, ".safetensors")

    def listing(self) -> dict[str, list[int]]:
        """Versions of every client that has any."""
        if self.folder is None:
            clients = sorted(self._held)
        else:
            clients = sorted(path.name for path in self.folder.glob("*") if path.is_dir())
        return {client: versions for client in clients if (versions := self.versions(client))}

    def restore(self, listed: dict[str, list[int]]) -> None:
        """Go back to the versions a checkpoint lists; newer ones are the unfinished round's and are removed.

        Raises:
            InputError: a listed version is gone.
        """
        for client, versions in listed.items():
            missing = set(versions) - set(self.versions(client))
            # one version back is enough to work from; the older of two may have been replaced by the unfinished round
            if versions and versions[-1] in missing:
                raise InputError(
                    f"the memory of client '{client}' for round {versions[-1]} is missing: the run cannot be resumed exactly"
                )
        for client in self.listing():
            newest = max(listed.get(client, [0]))
            for number in self.versions(client):
                if number > newest:
                    if self.folder is None:
                        del self._held[client][number]
                    else:
                        self._path(client, number).unlink(missing_ok=True)

    def _path(self, client: str, number: int) -> Path:
        assert self.folder is not None
        return self.folder / client / f"round-{number:04d}.safetensors"
