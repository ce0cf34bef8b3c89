"""What an audit found, as values: fields are those of ``audit.json``, which :mod:`fedstill.report.audited` reads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from fedstill.audit.bounds import Claim

__all__ = [
    "About",
    "Attack",
    "Audited",
    "Bound",
    "Estimate",
    "Inverted",
    "Likeness",
    "Members",
    "Near",
    "Reading",
    "Readings",
    "Space",
    "View",
]


@dataclass(frozen=True)
class Estimate:
    """A share and its 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class About:
    """Whose an attack is, and what its attacker knows."""

    title: str
    citation: str
    assumptions: str


@dataclass(frozen=True)
class Bound:
    """What an attack shows against a claim; fields as in :func:`fedstill.audit.bounds.against`.

    Attributes:
        rates: by FPR (``0.01``): TPR found, its lower limit, allowed, and allowed where images are exchanged.
    """

    shown: float | None
    exceeds: bool | None
    rates: Mapping[str, tuple[float, float, float, float]]


@dataclass(frozen=True)
class Attack:
    """One attack on one network.

    Attributes:
        tpr: by FPR, ``0.01`` and ``0.001``, where there are images enough.
        targets: mean and deviation of the AUC over other targets.
        roc: (FPR, TPR).
        missing: why there is nothing; empty where there is.
    """

    name: str
    title: str
    auc: Estimate | None
    tpr: Mapping[str, Estimate]
    targets: tuple[float, float | None] | None
    roc: tuple[tuple[float, float], ...]
    bound: Bound | None
    missing: str


@dataclass(frozen=True)
class View:
    """A network that was attacked; accuracies on test images, members and others."""

    name: str
    accuracy: float | None
    member_accuracy: float | None
    other_accuracy: float | None
    claim: Claim | None
    attacks: tuple[Attack, ...]


@dataclass(frozen=True)
class Members:
    """Membership inference."""

    round: int | None
    shadows: int | None
    members: int | None
    others: int | None
    views: tuple[View, ...]
    missing: tuple[str, ...]
    about: tuple[About, ...]
    looks: int | None


@dataclass(frozen=True)
class Likeness:
    """How alike found images are to those behind an update (``case``), by one measure."""

    case: str
    kind: str
    measure: str
    images: int | None
    behind: int | None
    found: float
    others: float | None
    best: float | None
    class_mean: float | None
    p: float | None


@dataclass(frozen=True)
class Inverted:
    """Inversion; ``protection`` is noise and clip of a client that protects its gradients."""

    client: str
    round: int | None
    source: str
    steps: int | None
    restarts: int | None
    protection: tuple[float, float] | None
    lines: tuple[Likeness, ...]
    missing: tuple[str, ...]
    about: tuple[About, ...]
    pictures: tuple[str, ...]

    def of(self, case: str, measure: str) -> Likeness | None:
        """The likeness to the images that the client trains on."""
        return next((each for each in self.lines if each.case == case and each.measure == measure), None)


@dataclass(frozen=True)
class Space:
    """Nearest neighbours by one distance; ``nearest`` is the least ratio, which by chance lies in ``usual``."""

    name: str
    images: int | None
    gap: float
    chance: tuple[float, float] | None
    p: float | None
    closer: float | None
    nearest: float | None
    usual: tuple[float, float] | None


@dataclass(frozen=True)
class Near:
    """Nearest neighbours."""

    round: int | None
    clients: int | None
    spaces: tuple[Space, ...]
    about: tuple[About, ...]
    pictures: tuple[str, ...]


@dataclass(frozen=True)
class Reading:
    """One reading of clients' class histograms."""

    name: str
    clients: int
    distance: float
    guess: float | None
    gain: float | None
    interval: tuple[float, float] | None


@dataclass(frozen=True)
class Readings:
    """Class histograms."""

    round: int | None
    readings: tuple[Reading, ...]
    missing: tuple[str, ...]
    about: tuple[About, ...]


@dataclass(frozen=True)
class Audited:
    """Each part is None where it was not asked for, or where the run had nothing for it: ``nothing`` says why, by attack."""

    membership: Members | None = None
    inversion: Inverted | None = None
    neighbours: Near | None = None
    attributes: Readings | None = None
    nothing: Mapping[str, str] | None = None

    @property
    def there(self) -> bool:
        """Whether the run was audited at all."""
        return bool(self.nothing) or any((self.membership, self.inversion, self.neighbours, self.attributes))

    def why_not(self, attack: str) -> str:
        """Why there is nothing of it."""
        return (self.nothing or {}).get(attack, "not made")
