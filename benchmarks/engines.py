"""What an engine costs beside the clients' own work: seconds a round and memory, in process and on Flower's simulation.

    python benchmarks/engines.py                  # 10 and 100 clients; about two minutes
    python benchmarks/engines.py 10 100 1000      # about fifteen

Clients send back what they received, a ConvNet-3 of width 128 (1.28 MB), and do nothing else; the server averages. Each case is
a process of its own: the median of three rounds after a first, which is told apart; the time until the first round can begin;
and the largest resident size of the process, and of one of Ray's.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time

ROUNDS = 4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("clients", nargs="*", type=int, default=[10, 100])
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--one", choices=("local", "processes", "flower"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        print(json.dumps(case(given.one, given.clients[0], given.workers)))
        return
    print(
        f"{'clients':>7}  {'engine':9}  {'start s':>7}  {'first s':>7}  {'round s':>7}  {'ms a client':>11}  "
        f"{'MB':>6}  {'MB, Ray':>7}"
    )
    for clients in given.clients:
        for kind in ("local", "processes", "flower"):
            command = [sys.executable, __file__, str(clients), "--one", kind, "--workers", str(given.workers)]
            told = subprocess.run(command, capture_output=True, text=True)
            if told.returncode:
                sys.exit(told.stderr)
            found = json.loads(told.stdout.splitlines()[-1])
            print(
                f"{clients:7}  {kind:9}  {found['start']:7.2f}  {found['first']:7.2f}  {found['round']:7.3f}  "
                f"{1000 * found['round'] / clients:11.2f}  {found['peak'] / 1e6:6.0f}  {found['other'] / 1e6:7.0f}"
            )


def case(kind: str, clients: int, workers: int) -> dict[str, float]:
    from fedstill.runtime import peak_memory, prepare

    prepare(1)

    import torch

    from fedstill.algorithms.averaging import FedAvg
    from fedstill.conduct import EngineSettings
    from fedstill.data.shard import Normalisation, Shard
    from fedstill.engines.memory import Memory
    from fedstill.models.architecture import Architecture
    from fedstill.rounds import Desk, Site, World, rounds
    from fedstill.seeds import Seed
    from fedstill.workplace import workplace

    class Echo(FedAvg):
        """FedAvg without the training."""

        def local(self, inbox, site, memory, desk):
            return inbox.put({"examples": 1.0, "loss": 0.0}), memory

    options = {"depth": 3, "width": 128}
    world = World(
        Architecture(name="convnet", channels=3, size=(32, 32), classes=10, options=options),
        tuple("abcdefghij"),
        Normalisation((0.5,) * 3, (0.25,) * 3),
    )
    shard = Shard(
        torch.zeros(1, 3, 32, 32, dtype=torch.uint8),
        torch.zeros(1, dtype=torch.int64),
        world.classes,
        world.normalisation,
    )
    sites = {f"c{index:04d}": Site(shard, shard, shard) for index in range(clients)}
    algorithm, desk = Echo(world=world), Desk(Seed.root(0).at("run"))
    engine = EngineSettings(kind="flower" if kind == "flower" else "local", workers=1 if kind == "local" else workers)
    began = time.perf_counter()
    with workplace(engine, algorithm, sites, desk, Memory(), threads=1) as there:
        started = last = time.perf_counter()
        took = []
        for _ in rounds(algorithm, there.engine, desk=there.desk, until=ROUNDS):
            now = time.perf_counter()
            took.append(now - last)
            last = now
    return {
        "start": started - began,
        "first": took[0],
        "round": statistics.median(took[1:]),
        "peak": peak_memory() or 0,
        "other": there.spent.peak,
    }


if __name__ == "__main__":
    main()
