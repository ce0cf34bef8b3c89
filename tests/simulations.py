"""Simulations on Ray, each in a process of its own: ``python simulations.py bits fedavg FOLDER``; the last line is JSON."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ray

import tiny
from fedstill.algorithms import ALGORITHMS
from fedstill.algorithms.averaging import FedAvg
from fedstill.bundle import Bundle
from fedstill.conduct import EngineSettings
from fedstill.contract import tiny_sites, tiny_world
from fedstill.engines.flower.simulation import simulated
from fedstill.engines.local import LocalEngine
from fedstill.engines.memory import Memory
from fedstill.errors import InputError
from fedstill.rounds import Desk, Site, rounds
from fedstill.run import drive
from fedstill.runtime import prepare
from fedstill.seeds import Seed
from fedstill.tables import resolve
from test_contract import OPTIONS

SESSIONS: list[str] = []


def desk(**more: Any) -> Desk:
    return Desk(Seed.root(0).at("run"), **more)


def session() -> str:
    """Ray's folder, which all its processes name."""
    return str(ray._private.worker._global_node.get_session_dir_path())


def bits(name: str, folder: str) -> dict[str, Any]:
    entry = ALGORITHMS[name]
    factory: Any = resolve({name: entry.factory}, name, "algorithm.name")
    algorithm, sites = factory(world=tiny_world(), **(OPTIONS[name] | dict(entry.fixed))), tiny_sites()
    here, there = Memory(Path(folder, "here")), Memory(Path(folder, "there"))
    straight = list(rounds(algorithm, LocalEngine(algorithm, sites, desk(), here), desk=desk(), until=3))
    with simulated(algorithm, sites, desk(), there, workers=2) as simulation:
        run = list(rounds(algorithm, simulation.engine, desk=desk(map=simulation.map), until=3))
        left = session()
    same = [
        one.state.to_bytes() == other.state.to_bytes() and one.bytes_up == other.bytes_up and not other.failures
        for one, other in zip(straight, run, strict=True)
    ]
    memory = here.listing() == there.listing() and all(
        here.read(client, number + 1).to_bytes() == there.read(client, number + 1).to_bytes()
        for client, versions in here.listing().items()
        for number in versions
    )
    return {"rounds": same, "memory": memory, "peak": simulation.spent.peak, "session": left}


@dataclass(frozen=True)
class Mortal(FedAvg):
    """FedAvg whose client c01 ends its process in round 2."""

    def local(self, inbox: Bundle, site: Site, memory: Bundle, desk: Desk) -> tuple[Bundle, Bundle]:
        if {"2", "c01"} <= set(map(str, desk.seed.path)):
            os._exit(1)
        # FedAvg has slots of its own in super(), which a class that travels by value loses
        return FedAvg.local(self, inbox, site, memory, desk)


def mortal() -> dict[str, Any]:
    algorithm = Mortal(world=tiny_world(), epochs=1)
    with simulated(algorithm, tiny_sites(), desk(), Memory(), workers=2) as simulation:
        done = list(rounds(algorithm, simulation.engine, desk=desk(), until=3))
        left = session()
    failures = [failure for each in done for failure in each.failures]
    return {
        "failures": [[failure.client for failure in each.failures] for each in done],
        "reason": failures[0].reason if failures else "",
        "session": left,
    }


@dataclass(frozen=True)
class Sleepy(FedAvg):
    """FedAvg whose clients take an hour."""

    def local(self, inbox: Bundle, site: Site, memory: Bundle, desk: Desk) -> tuple[Bundle, Bundle]:
        time.sleep(3600)
        return inbox, memory


def sleepy() -> dict[str, Any]:
    algorithm = Sleepy(world=tiny_world(), epochs=1)
    began, left = time.monotonic(), ""
    try:
        with simulated(algorithm, tiny_sites(), desk(), Memory(), workers=2) as simulation:
            left = session()
            threading.Timer(5.0, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
            began = time.monotonic() + 5.0
            list(rounds(algorithm, simulation.engine, desk=desk(), until=1))
    except KeyboardInterrupt:
        return {"interrupted": True, "seconds": time.monotonic() - began, "session": left}
    return {"interrupted": False, "seconds": 0.0, "session": left}


def mixed(folder: str) -> dict[str, Any]:
    straight, both = Path(folder, "straight"), Path(folder, "both")
    experiment = tiny.experiment(rounds=2)
    drive(experiment, out=straight)
    drive(replace(experiment, rounds=1, engine=EngineSettings(kind="flower", workers=2)), out=both)
    drive(experiment, out=both, resume=True)
    files = sorted((straight / "models").glob("*.safetensors"))
    same = [file.read_bytes() == (both / "models" / file.name).read_bytes() for file in files]
    return {"models": same, "session": "a folder that no process names"}


def greedy() -> dict[str, Any]:
    algorithm = FedAvg(world=tiny_world(), epochs=1)
    try:
        with simulated(algorithm, tiny_sites(), desk(), Memory(), gpus=3.0):
            return {"error": "", "session": session()}
    except InputError as error:
        return {"error": str(error), "session": "a folder that no process names"}


ALL: dict[str, Callable[..., dict[str, Any]]] = {
    "bits": bits,
    "mortal": mortal,
    "sleepy": sleepy,
    "mixed": mixed,
    "greedy": greedy,
}

if __name__ == "__main__":
    prepare(1)  # as Ray's processes are: how a sum is split over threads changes its last bits
    sys.stdout.write(json.dumps(ALL[sys.argv[1]](*sys.argv[2:])))
