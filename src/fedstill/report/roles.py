"""What groups are to each other: which network is the clients', who is the baseline, whether two figures are level."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from fedstill.report.groups import Group, Point

__all__ = [
    "ROUNDING",
    "STAGE",
    "baseline",
    "ceiling",
    "client_model",
    "differ",
    "network",
    "network_title",
    "published",
    "stage",
    "table",
]

STAGE = ("data", "partition")
"""Tables of an experiment that say what there was to learn from."""

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


def network_title(group: Group) -> str:
    """What the experiment calls the network that clients train; empty where it cannot be read."""
    found = table(group, "model")
    return str(found.get("label") or found.get("name") or "")


def published(group: Group, model: str) -> float | None:
    """The published accuracy that the experiment names for ``model``.

    The clients' network may go by its own name there (``convnet``) as well as by that of its part (``global``).
    """
    values = next((run.published for run in group.runs if run.published), {})
    if model in values:
        return values[model]
    return values.get(network_title(group)) if model == client_model(group) else None


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
