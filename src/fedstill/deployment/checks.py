"""Whether a site is ready: its images, classes, folder and policy beside what the federation asks for. Every problem is one
sentence, and all of them are told, not the first alone.

What only a server can be compared with, its version and its clock, are functions of what it states (:func:`version_problem`,
:func:`clock_problem`).
"""

from __future__ import annotations

import math
import os
import re
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import fedstill
from fedstill.data.classes import held, places, strange
from fedstill.data.shard import Shard
from fedstill.data.sources import Loaded
from fedstill.deployment.federation import Federation
from fedstill.deployment.policy import NUMBERS, Policy
from fedstill.deployment.site import SiteSettings, load_images
from fedstill.deployment.sizes import size_text
from fedstill.errors import FedstillError
from fedstill.seeds import Seed

__all__ = [
    "CLOCK",
    "Checked",
    "check_site",
    "class_problems",
    "clock_problem",
    "folder_problem",
    "form_problems",
    "load_and_check",
    "place_problems",
    "policy_problems",
    "space_problem",
    "version_problem",
]

CLOCK = 60.0
"""Seconds by which two clocks may differ: certificates, SuperNodes' signatures and the ledger all go by them."""

_VERSION = re.compile(r"[0-9][0-9A-Za-z.+!-]{0,39}")


@dataclass(frozen=True)
class Checked:
    """What was found.

    Attributes:
        held: images by class, under the site's names; empty where the images cannot be read.
        given: test images that the site gives as such, beside those.
        size, channels: of the images.
        skipped: (name, reason) of pictures that were left out.
        problems: why the site is not ready.
        remarks: what its administrator may want to know.
    """

    held: Mapping[str, int] = field(default_factory=dict)
    given: int = 0
    size: tuple[int, int] | None = None
    channels: int | None = None
    skipped: tuple[tuple[str, str], ...] = ()
    problems: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()


def check_site(settings: SiteSettings, federation: Federation | None, seed: Seed) -> Checked:
    """All that can be found out at the site alone. ``federation`` None: nothing is known of it yet.

    Raises:
        InputError: ``federation`` names a class twice.
    """
    return load_and_check(settings, federation, seed)[0]


def load_and_check(settings: SiteSettings, federation: Federation | None, seed: Seed) -> tuple[Checked, Loaded | None]:
    """:func:`check_site`, with the images that were read for it; None where they cannot be.

    Raises:
        InputError: likewise.
    """
    problems = place_problems(settings)
    loaded: Loaded | None = None
    try:
        loaded = load_images(settings, federation, seed)
    except FedstillError as error:
        problems.append(str(error))
    counts = {} if loaded is None else held(loaded.train)
    remarks: list[str] = []
    if federation is not None:
        problems += class_problems(None if loaded is None else counts, federation.classes, settings.lacks)
        if loaded is not None:
            problems += strange(
                [name for name in held(loaded.test) if name not in counts],
                federation.classes,
                where="the test images' class",
            )
            problems += form_problems(loaded.train, federation)
        problems += policy_problems(settings.policy, federation)
        remarks += _remarks(settings.policy, federation)
    if loaded is None:
        return Checked(problems=tuple(problems), remarks=tuple(remarks)), None
    own = len(loaded.test) > 0 or settings.data.test_fraction > 0
    if own and "statistics" not in settings.policy.allow:
        remarks.append(
            "the site has test images of its own, and their scores cannot leave: allow 'statistics', or set none aside"
        )
    found = Checked(
        held=counts,
        given=len(loaded.test),
        size=loaded.train.size,
        channels=loaded.train.channels,
        skipped=loaded.skipped,
        problems=tuple(problems),
        remarks=tuple(remarks),
    )
    return found, loaded


def class_problems(counts: Mapping[str, int] | None, classes: Sequence[str], lacks: Sequence[str]) -> list[str]:
    """Classes that are not the federation's, that are neither there nor said to be lacking, or are both.

    Args:
        counts: images by class; None: they could not be read.
        classes: the federation's names.
        lacks: those that the site says it has no image of.

    Raises:
        InputError: ``classes`` has a name twice.
    """
    problems = strange(lacks, classes, where="lacks:")
    lacking = set(places(lacks, classes).values())
    if counts is None:
        return problems
    problems = strange(list(counts), classes, where="the class") + problems
    found = places(list(counts), classes)
    for number, name in enumerate(classes):
        images = sum(counts[own] for own, place in found.items() if place == number)
        if not images and number not in lacking:
            problems.append(
                f"the class '{name}' has no image here: add it to lacks if the site has none, or look at data.path"
            )
        if images and number in lacking:
            problems.append(f"lacks: '{name}' has {images} {_images(images)} here: take it out of lacks")
    return problems


def form_problems(shard: Shard, federation: Federation) -> list[str]:
    """Size and channels of images that are not the federation's."""
    problems = []
    if federation.size is not None and shard.size != federation.size:
        here, there = (f"{height} x {width}" for height, width in (shard.size, federation.size))
        problems.append(f"the images are {here} pixels and the federation's {there}: leave data.size out")
    if federation.channels is not None and shard.channels != federation.channels:
        here, there = (_colour(each) for each in (shard.channels, federation.channels))
        problems.append(f"the images are {here} and the federation's are {there}: leave data.channels out")
    return problems


def policy_problems(policy: Policy, federation: Federation) -> list[str]:
    """What the policy refuses of what the experiment asks for."""
    problems = []
    if policy.experiments and federation.identity is not None and federation.identity not in policy.experiments:
        problems.append(
            f"policy.experiments does not name this experiment: add '{federation.identity}' if the site is to take part"
        )
    if missing := [word for word in federation.sends if word not in policy.allow]:
        problems.append(
            f"'{federation.method}' sends {_listed(missing)}, which policy.allow does not let leave: "
            "add that if it may leave, or take no part"
        )
    return problems


def place_problems(settings: SiteSettings) -> list[str]:
    """Why nothing can be kept where the site says; no image is looked at."""
    folder = Path(settings.folder)
    found = (folder_problem(folder), space_problem(_free(folder), settings.free, folder))
    return [problem for problem in found if problem is not None]


def folder_problem(folder: Path) -> str | None:
    """Why the site cannot keep anything in ``folder``, which need not be there yet."""
    there = _nearest(folder)
    if not there.is_dir():
        return f"folder: {there} is a file, so nothing can be kept in {folder}"
    try:
        if there == folder:
            mode = folder.stat().st_mode & 0o777
            if os.name == "posix" and mode & 0o077:
                return f"folder: {folder} lets other users in (mode {mode:o}): close it with  chmod 700 {folder}"
            with tempfile.TemporaryFile(dir=folder):
                return None
    except OSError as error:
        return f"folder: {folder} cannot be written to ({error.strerror or error})"
    if not os.access(there, os.W_OK | os.X_OK):
        return f"folder: {folder} cannot be made, for {there} cannot be written to"
    return None


def space_problem(free: int | None, least: int, folder: Path) -> str | None:
    """Why there is too little room; ``free`` and ``least`` in bytes. None of ``free``: nobody can tell."""
    if free is None or free >= least:
        return None
    return f"folder: {folder} has {free / 1e9:.2f} GB of free space and is to have {size_text(least)}: make room, or set free"


def version_problem(server: str, here: str = fedstill.__version__) -> str | None:
    """Why a server of this version cannot be worked with; ``server`` as it states it."""
    if not _VERSION.fullmatch(server):
        return "the server states no version of fedstill that can be read"
    if server == here:
        return None
    return f"the server has fedstill {server} and this site {here}: all parties need the same version"


def clock_problem(server: float, here: float, tolerance: float = CLOCK) -> str | None:
    """Why the clocks are too far apart; seconds since 1970, in UTC."""
    ahead = here - server
    if not math.isfinite(ahead):
        return "the server states no time that can be read"
    if abs(ahead) <= tolerance:
        return None
    return (
        f"this site's clock is {abs(ahead):.0f} s {'ahead of' if ahead > 0 else 'behind'} the server's: "
        "set both by a time service (NTP)"
    )


def _remarks(policy: Policy, federation: Federation) -> list[str]:
    remarks = [
        f"the experiment does not say {key}: whether this site's images fit the others' cannot be told"
        for key, value in (("data.size", federation.size), ("data.channels", federation.channels))
        if federation.method is not None and value is None
    ]
    if federation.method is not None and not federation.sends:
        remarks.append(f"what '{federation.method}' sends is not known: it is no method of fedstill's")
    if maybe := [word for word in federation.may_send if word not in policy.allow]:
        remarks.append(f"with some of its options '{federation.method}' sends {_listed(maybe)}, which could not leave")
    if NUMBERS not in policy.allow:
        remarks.append(
            "no method can do without 'numbers': a reply that does not say its number of images is of no use"
        )
    return remarks


def _nearest(folder: Path) -> Path:
    """``folder``, or the nearest above it that is there."""
    return next(each for each in (folder, *folder.parents) if each.exists() or each == each.parent)


def _free(folder: Path) -> int | None:
    try:
        return shutil.disk_usage(_nearest(folder)).free
    except OSError:
        return None


def _images(count: int) -> str:
    return "image" if count == 1 else "images"


def _colour(channels: int) -> str:
    return "grey" if channels == 1 else "colour"


def _listed(words: Sequence[str]) -> str:
    return " and ".join(filter(None, (", ".join(words[:-1]), words[-1])))
