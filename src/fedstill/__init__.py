"""fedstill: federated dataset distillation.

The names below are loaded when first used, so that ``import fedstill`` and ``fedstill --help`` are quick.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOME = {
    "Bundle": "fedstill.bundle",
    "Seed": "fedstill.seeds",
    "Shard": "fedstill.data.shard",
    "Site": "fedstill.rounds",
    "Desk": "fedstill.rounds",
    "Reply": "fedstill.rounds",
    "Failure": "fedstill.rounds",
    "Outcome": "fedstill.rounds",
    "Round": "fedstill.rounds",
    "rounds": "fedstill.rounds",
    "Experiment": "fedstill.experiment",
    "drive": "fedstill.run",
    "load_model": "fedstill.models.files",
    "check_algorithm": "fedstill.contract",
    "InputError": "fedstill.errors",
    "RunError": "fedstill.errors",
}

__all__ = ["__version__", *_HOME]

if TYPE_CHECKING:
    from fedstill.bundle import Bundle
    from fedstill.data.shard import Shard
    from fedstill.errors import InputError, RunError
    from fedstill.experiment import Experiment
    from fedstill.models.files import load_model
    from fedstill.rounds import Desk, Failure, Outcome, Reply, Round, Site, rounds
    from fedstill.run import drive
    from fedstill.seeds import Seed


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'fedstill' has no attribute '{name}'")
    return getattr(importlib.import_module(_HOME[name]), name)
