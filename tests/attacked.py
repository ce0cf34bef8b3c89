"""What attacks are tried on: scikit-learn's digits and a small ConvNet that nobody has trained; finished runs."""

from __future__ import annotations

import torch
from sklearn.datasets import load_digits

import tiny
from fedstill import folder
from fedstill.attacked import open_target
from fedstill.auditing import Unheard
from fedstill.data.shard import Normalisation, Shard
from fedstill.experiment import Experiment
from fedstill.models.architecture import Architecture
from fedstill.rounds import Desk, Trained
from fedstill.run import drive
from fedstill.seeds import Seed

ROOT = Seed.root(0)
DESK = Desk(ROOT.at("attack"))


def _digits() -> Shard:
    raw = load_digits()
    pixels = torch.from_numpy(raw.images).float()[:, None] / 16
    return Shard(pixels, torch.from_numpy(raw.target), tuple("0123456789"), Normalisation((0.3,), (0.38,)))


DIGITS = _digits()


def network(**options: object) -> Trained:
    architecture = Architecture("convnet", 1, (8, 8), 10, {"depth": 1, "width": 16, **options})
    return Trained(architecture, architecture.build(ROOT.at("model")).state_dict())


def finished_run(out, algorithm=tiny.FEDAVG, *, rounds, **settings):
    """A run's folder."""
    drive(tiny.experiment(algorithm, rounds=rounds, **settings), out=out)
    return out


def opened(run):
    return open_target(run, Experiment.read(run / folder.EXPERIMENT), print)


class Told(Unheard):
    """Hears of progress alone."""

    def __init__(self, told):
        self.progress = told
