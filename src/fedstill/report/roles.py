"""What groups are to each other: which network is the clients', who is the baseline, whether two figures are level."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from fedstill.report.families import shown, varied
from fedstill.report.groups import Group, Point, settings

__all__ = [
    "AVERAGE",
    "HEADS",
    "ROUNDING",
    "STAGE",
    "baseline",
    "ceiling",
    "client_model",
    "commonest",
    "differ",
    "network",
    "network_title",
    "published",
    "published_average",
    "published_of_clients",
    "stage",
    "standing",
    "table",
    "where",
]

STAGE = ("data", "partition")
"""Tables of an experiment that say what there was to learn from."""

AVERAGE = "average"
"""Under which an experiment names a published mean over networks, or over clients."""

HEADS = ("prototypes",)
"""What methods call the network that clients train with another head, which is no network of its own."""

_TOLD = 3  # settings that a sentence names

_CLIENT_MODELS = ("surrogate", "global")
"""What methods call the network that clients train."""


def table(group: Group, key: str) -> Mapping[str, Any]:
    """One table of the group's experiment; empty where it has none."""
    found = group.runs[0].settings.get(key)
    return found if isinstance(found, Mapping) else {}


def client_model(group: Group) -> str:
    """The name under which ``group`` scores the network that clients train; empty where it scores nothing."""
    return next((name for name in (*_CLIENT_MODELS, *group.curves) if name in group.curves), "")


def network(group: Group) -> str:
    """Identity of the network that clients train."""
    return json.dumps({key: value for key, value in table(group, "model").items() if key != "label"}, default=str)


def stage(group: Group) -> str:
    """Identity of the data and of how they were dealt out: accuracies of two stages are not comparable."""
    return json.dumps([table(group, key) for key in STAGE], default=str)


def commonest(groups: Sequence[Group], read: Callable[[Group], str]) -> list[Group]:
    """Those of ``groups`` that ``read`` says the same of as of no fewer others."""
    most = Counter(map(read, groups)).most_common(1)[0][0] if groups else ""
    return [group for group in groups if read(group) == most]


def where(group: Group, everywhere: Sequence[Group]) -> str:
    """What tells the group's data and partition from the others': ``alpha 0.5``; empty where all share them."""
    own = settings(group)
    keys = [key for key in varied(everywhere) if key.partition(".")[0] in STAGE]
    return ", ".join(f"{key.rpartition('.')[2]} {shown(own.get(key))}" for key in keys[:_TOLD])


def network_title(group: Group) -> str:
    """What the experiment calls the network that clients train; empty where it cannot be read."""
    found = table(group, "model")
    return str(found.get("label") or found.get("name") or "")


def published(group: Group, model: str) -> float | None:
    """The published accuracy that the experiment names for ``model``.

    The clients' network may go by its own name there (``convnet``) as well as by that of its part (``global``), unless a
    network of the server's has that name.
    """
    values = next((run.published for run in group.runs if run.published), {})
    if model in values:
        return values[model]
    name = network_title(group)
    return values.get(name) if model == client_model(group) and name not in group.models else None


def published_average(group: Group) -> float | None:
    """The published mean over networks."""
    return next((run.published[AVERAGE] for run in group.runs if AVERAGE in run.published), None)


def published_of_clients(group: Group) -> Mapping[str, float]:
    """Published accuracies on clients' own test images, by client; ``average``: their unweighted mean."""
    return next((run.published_of_clients for run in group.runs if run.published_of_clients), {})


def standing(group: Group) -> str:
    """What a group is, where it is no method that competes: ``ceiling`` or ``control``; else empty."""
    return "ceiling" if group.pooled else "control" if group.method == "prioronly" else ""


def baseline(groups: Sequence[Group]) -> Group | None:
    """What others are compared with: the first FedAvg, else the first that is no ceiling."""
    federated = [group for group in groups if not group.pooled]
    return next((group for group in federated if group.method == "fedavg"), federated[0] if federated else None)


def ceiling(group: Group, groups: Sequence[Group]) -> Group | None:
    """Training on all the data in one place with the same network and data; of the same partition, if there is one."""
    pooled = [
        other
        for other in groups
        if other.pooled and network(other) == network(group) and table(other, "data") == table(group, "data")
    ]
    same = (other for other in pooled if table(other, "partition") == table(group, "partition"))
    return next(same, pooled[0] if pooled else None)


ROUNDING = 1e-9
"""Far below what is shown, far above what adding and dividing loses."""


def differ(one: Point, other: Point) -> bool:
    """Whether two accuracies differ by more than their spread; else they are *level*: their bands touch.

    A band is mean ± sample standard deviation over seeds. Where there is one seed, it is not known and counts as nothing;
    a difference below the last digit that is shown is none.
    """
    spread = (one.spread or 0.0) + (other.spread or 0.0)
    # bands that just touch must not part by a rounding
    return abs(one.mean - other.mean) > max(spread, 0.0005) + ROUNDING
