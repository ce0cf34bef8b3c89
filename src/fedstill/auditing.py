"""What leaks from a run: its folder is opened, its data are rebuilt, it is attacked, and what came of it goes to ``audit.json``.

from fedstill.auditing import Asked, Membership, audit_run

found = audit_run("runs/first", Asked(membership=Membership(shadows=16)))
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import fedstill
from fedstill.attacked import Nothing, Target, forget_again, open_target
from fedstill.attacks.attributes import Attributes, attributes
from fedstill.attacks.inversion import Inversion, inversion
from fedstill.attacks.membership import Membership, membership
from fedstill.attacks.neighbours import Neighbours, neighbours
from fedstill.audit.perceptual import absent
from fedstill.errors import InputError
from fedstill.experiment import Experiment
from fedstill.files import write_json
from fedstill.folder import AUDIT, AUDITED, EXPERIMENT, locked
from fedstill.kept import check_run, read_measured
from fedstill.rounds import Desk, serial
from fedstill.runtime import Processes, interrupts, pick_device, prepared
from fedstill.seeds import Seed

__all__ = [
    "VERSION",
    "Asked",
    "Attributes",
    "Hearing",
    "Inversion",
    "Membership",
    "Neighbours",
    "Unheard",
    "audit_run",
]

VERSION = 1
"""Of ``audit.json``."""

FORM = 4
"""Of the attacks: what an earlier form of them found is made again, from the same shadow federations."""

IDENTITIES = "identities"
"""Of ``audit.json``: by attack, a hash of all that decides what it finds."""

Attack = Callable[[Target, Desk], dict[str, Any]]


@dataclass(frozen=True, kw_only=True)
class Asked:
    """Which attacks are made; None: not that one."""

    membership: Membership | None = None
    inversion: Inversion | None = None
    neighbours: Neighbours | None = None
    attributes: Attributes | None = None

    def attacks(self) -> dict[str, Attack]:
        """Those that are made, by name, the quick ones first."""
        made: dict[str, Attack | None] = {
            "neighbours": None if self.neighbours is None else partial(neighbours, self.neighbours),
            "attributes": None if self.attributes is None else partial(attributes, self.attributes),
            "inversion": None if self.inversion is None else partial(inversion, self.inversion),
            "membership": None if self.membership is None else partial(membership, self.membership),
        }
        return {name: attack for name, attack in made.items() if attack is not None}

    def check(self) -> None:
        """All that can be refused before the run is opened.

        Raises:
            InputError: no attack is made, or one cannot be made so.
        """
        wanted = (self.membership, self.inversion, self.neighbours, self.attributes)
        if not any(wanted):
            raise InputError("nothing is asked for: give --membership, --inversion, --neighbours or --attributes")
        for each in wanted:
            if each is not None:
                each.check()


class Hearing(Protocol):
    """Hears how an audit goes. It must not raise, but for ``KeyboardInterrupt``."""

    def opening(self, attacks: Sequence[str]) -> None:
        """The run is open, and these attacks are to be made, in this order."""

    def begins(self, attack: str) -> None:
        """It is made now."""

    def progress(self, phase: str, done: int, total: int) -> None:
        """How far a phase of it is, counted in pieces: ``shadow federations``, ``rounds again``, ``updates`` and others."""

    def ended(self, attack: str, found: Mapping[str, Any], seconds: float | None) -> None:
        """What it found, which stands in the file by now; ``seconds``: None where it stood there before."""

    def note(self, text: str) -> None:
        """Something that a user may want to know."""


class Unheard:
    """The one that hears, and says nothing."""

    def opening(self, attacks: Sequence[str]) -> None: ...

    def begins(self, attack: str) -> None: ...

    def progress(self, phase: str, done: int, total: int) -> None: ...

    def ended(self, attack: str, found: Mapping[str, Any], seconds: float | None) -> None: ...

    def note(self, text: str) -> None: ...


def audit_run(
    run: str | Path,
    asked: Asked,
    *,
    workers: int | None = None,
    device: str = "auto",
    again: bool = False,
    hears: Hearing | None = None,
) -> dict[str, Any]:
    """Attack, and write the run's ``audit.json``: what was measured before and is not asked for now stays in it.

    The file is written after each attack, and what takes long is kept in the run's folder ``audit`` as it is done: an audit
    that was interrupted goes on there. An attack whose result stands in the file already, from the same run with the same
    settings and version of fedstill, is not made again.

    Args:
        run: its folder; nothing of the run is changed.
        asked: which attacks.
        workers: processes; None: as many as the run has.
        device: where to compute.
        again: make attacks anew whose results stand in the file; shadow federations that are kept are taken.
        hears: how it goes.

    Returns:
        By attack what it finds, as the file holds it. Of several attacks one that the run has nothing for has ``nothing``,
        which says why.

    Raises:
        InputError: nothing was asked for, the folder holds no run that can be attacked, the data are no longer what they were, a
            client, a round or a view is unknown, or there is nothing for the one attack that is asked for; one sentence.
        RunError: a shadow federation came to nothing, or the disk refuses a file.
    """
    run = Path(run)
    hears = hears or Unheard()
    asked.check()
    check_run(run)
    read_measured(run / AUDIT, VERSION)  # what could not be merged with is refused before hours of work
    experiment = Experiment.read(run / EXPERIMENT)
    with (
        prepared(experiment.threads),
        locked(run / AUDITED, note=hears.note, who="audit"),
        interrupts() as check,
    ):
        device = pick_device(device)
        target = open_target(run, experiment, hears.note)
        _check_places(target, asked)

        def tell(phase: str, done: int, total: int) -> None:
            check()
            hears.progress(phase, done, total)

        workers = experiment.engine.workers if workers is None else workers
        desk = Desk(
            Seed.root(experiment.seed).at("audit"),
            device=device,
            map=Processes(workers, experiment.threads) if workers > 1 else serial,
            progress=tell,
        )
        attacks = asked.attacks()
        hears.opening(list(attacks))
        made = {}
        for name, attack in attacks.items():
            settings = asdict(getattr(asked, name))
            made[name] = _made(
                target, name, attack, settings, desk.at(name), hears, alone=len(attacks) == 1, anew=again
            )
        forget_again(run)  # after all: what is interrupted finds its rounds again there
        return made


def _check_places(target: Target, asked: Asked) -> None:
    """That clients and rounds that were named are the run's: before the first attack, as the last may come hours later."""
    for each in (asked.membership, asked.inversion):
        if each is not None:
            target.client(each.client)
    for one in (asked.membership, asked.inversion, asked.attributes):
        if one is not None:
            target.number(one.round)


def _made(
    target: Target,
    name: str,
    attack: Attack,
    settings: Mapping[str, Any],
    desk: Desk,
    hears: Hearing,
    *,
    alone: bool,
    anew: bool,
) -> dict[str, Any]:
    """What ``attack`` finds, now or in an earlier audit; it is in the file then."""
    path, identity = target.run / AUDIT, _identity(target, name, settings)
    measured = read_measured(path, VERSION)  # read again: another audit may have ended before this one began
    before = None if anew else measured.get(name)
    if before is not None and measured.get(IDENTITIES, {}).get(name) == identity and _pictures(target.run, before):
        hears.ended(name, before, None)
        return dict(before)
    hears.begins(name)
    began = time.monotonic()
    try:
        found = attack(target, desk)
    except Nothing as error:
        if alone:
            raise
        found = {"nothing": str(error)}
    identities = {**measured.get(IDENTITIES, {}), name: identity}
    write_json(path, {**measured, "version": VERSION, name: found, IDENTITIES: identities})
    hears.ended(name, found, time.monotonic() - began)
    return found


def _identity(target: Target, name: str, settings: Mapping[str, Any]) -> str:
    """Of what an attack finds: another fedstill finds anew, and so does one that can measure LPIPS now and could not then."""
    plain = {
        "form": FORM,
        "fedstill": fedstill.__version__,
        "lpips": absent() is None if name == "inversion" else None,
        "run": dict(target.parts.identity),
        "rounds": target.rounds,
        "attack": name,
        "settings": settings,
    }
    return hashlib.sha256(json.dumps(plain, sort_keys=True, default=str).encode()).hexdigest()


def _pictures(run: Path, found: Mapping[str, Any]) -> bool:
    """Whether what was found can be taken as it stands: its pictures are there, and it is not that there was nothing."""
    return "nothing" not in found and all((run / picture).is_file() for picture in found.get("pictures", ()))
