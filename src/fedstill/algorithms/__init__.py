"""Federated algorithms: a table of names. Reading it imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

__all__ = ["ALGORITHMS", "Entry"]


@dataclass(frozen=True)
class Entry:
    """One method of the table.

    Attributes:
        factory: import string of the algorithm's dataclass.
        summary: one line for ``fedstill list``.
        fixed: fields that make it this method; the user cannot set them.
        distils: whether it leaves synthetic sets in the server's state.
        pooled: all clients' data on one site (a ceiling, not a federated method).
        starter: fields that ``fedstill init`` writes otherwise than their defaults, because those alone would not do.
    """

    factory: str
    summary: str
    fixed: Mapping[str, Any] = field(default_factory=dict)
    distils: bool = False
    pooled: bool = False
    starter: Mapping[str, Any] = field(default_factory=dict)


ALGORITHMS: Mapping[str, Entry] = MappingProxyType(
    {
        "fedavg": Entry(
            "fedstill.algorithms.averaging:FedAvg", "weighted mean of the clients' models (McMahan et al. 2017)"
        ),
        "centralised": Entry(
            "fedstill.algorithms.averaging:FedAvg",
            "control: all data pooled on one site, the ceiling",
            pooled=True,
        ),
        "feddgm": Entry(
            "fedstill.algorithms.feddgm:FedDGM",
            "the server distils every client's update through a generator's latents (Jia et al. 2024)",
            distils=True,
        ),
        "prioronly": Entry(
            "fedstill.algorithms.feddgm:FedDGM",
            "control: FedDGM with no distillation step, what the generator alone gives",
            fixed=MappingProxyType({"distill_steps": 0}),
            distils=True,
            starter=MappingProxyType({"generator": "digits"}),
        ),
    }
)
