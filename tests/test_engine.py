import os
import time

import pytest
import torch

from fedstill.algorithms.averaging import FedAvg
from fedstill.algorithms.feddgm import FedDGM
from fedstill.bundle import Bundle
from fedstill.contract import tiny_sites, tiny_world
from fedstill.engines.local import LocalEngine
from fedstill.engines.memory import Memory
from fedstill.errors import InputError
from fedstill.rounds import Desk, Failure, rounds
from fedstill.runtime import Processes
from fedstill.seeds import Seed

WORLD = tiny_world()
SEED = Seed.root(0)


class Remembers(FedAvg):
    """Counts its own rounds in memory and says so."""

    def local(self, inbox, site, memory, desk):
        reply, _ = super().local(inbox, site, memory, desk)
        count = memory.numbers.get("count", 0) + 1
        return reply.put({"count": count}), Bundle().put({"count": count})


class Fails(FedAvg):
    def local(self, inbox, site, memory, desk):
        if len(site.train) == 19:
            raise InputError("no data today")
        if len(site.train) == 20:
            raise KeyError("a defect")
        return super().local(inbox, site, memory, desk)


def run(algorithm, map_=None, until=2):
    desk = Desk(SEED) if map_ is None else Desk(SEED, map=map_)
    return list(rounds(algorithm, LocalEngine(algorithm, tiny_sites(), desk), desk=desk, until=until))


@pytest.mark.slow
@pytest.mark.parametrize(
    "algorithm",
    [
        FedAvg(world=WORLD, epochs=1),
        FedDGM(
            world=WORLD,
            epochs=1,
            distill_steps=2,
            student_steps=3,
            ipc=1,
            global_epochs=2,
            lr_features=1.0,
            loss_limit=99,
        ),
    ],
    ids=["fedavg", "feddgm"],
)
def test_processes_give_the_same_bits(algorithm):
    processes = Processes(2)
    here, there = run(algorithm)[-1].state, run(algorithm, processes)[-1].state
    assert here.to_bytes() == there.to_bytes()
    assert processes.spent.peak > 0


def burn(seconds: float) -> int:
    """Busy for so long; which process it was."""
    end = time.process_time() + seconds
    while time.process_time() < end:
        pass
    return os.getpid()


@pytest.mark.slow
def test_processes_tell_the_cpu_time_of_their_tasks():
    processes = Processes(2)
    began = time.process_time()
    assert os.getpid() not in list(processes(burn, [0.2] * 4))
    assert 0.8 <= processes.spent.cpu_seconds < 1.6
    # theirs is none of this process's
    assert time.process_time() - began < processes.spent.cpu_seconds


def test_a_client_that_fails_is_a_value():
    (only,) = run(Fails(world=WORLD, epochs=1), until=1)
    first, second = only.failures
    assert (first.client, first.reason) == ("c01", "no data today")
    assert second.client == "c02"
    assert "KeyError" in second.reason
    assert "Traceback" in second.detail
    assert only.aggregated


@pytest.mark.parametrize("folder", [True, False])
def test_memory_goes_from_round_to_round(tmp_path, folder):
    memory = Memory(tmp_path if folder else None)
    algorithm, desk = Remembers(world=WORLD, epochs=1), Desk(SEED)
    engine = LocalEngine(algorithm, tiny_sites(), desk, memory)
    list(rounds(algorithm, engine, desk=desk, until=4))
    assert memory.read("c00", 99).numbers["count"] == 4
    assert memory.listing() == {client: [3, 4] for client in tiny_sites()}
    # the work of round 4 again reads what its first attempt read
    assert memory.read("c00", 4).numbers["count"] == 3
    memory.restore({client: [2, 3] for client in tiny_sites()})
    assert memory.read("c00", 99).numbers["count"] == 3
    with pytest.raises(InputError, match="missing"):
        memory.restore({"c00": [9]})


def test_scoring_writes_no_memory():
    algorithm, desk = Remembers(world=WORLD, epochs=1), Desk(SEED)
    memory = Memory()
    engine = LocalEngine(algorithm, tiny_sites(), desk, memory)
    state = algorithm.init(engine.clients(), desk)
    answers = list(engine.work(1, {client: algorithm.broadcast(state, client) for client in engine.clients()}, "score"))
    assert not any(isinstance(answer, Failure) for answer in answers)
    assert memory.listing() == {}


def test_fedavg_is_its_formula():
    """w ← Σ n_k w_k / n, on replies made by hand."""
    algorithm = FedAvg(world=WORLD)
    sites = tiny_sites()
    state = algorithm.init(list(sites), Desk(SEED))
    from fedstill.rounds import Reply

    replies, total = [], sum(len(site.train) for site in sites.values())
    wanted = {name: torch.zeros_like(tensor, dtype=torch.float64) for name, tensor in state.groups["model"].items()}
    for k, (client, site) in enumerate(sites.items()):
        model = {name: tensor + k for name, tensor in state.groups["model"].items()}
        for name, tensor in model.items():
            wanted[name] += tensor.double() * len(site.train) / total
        replies.append(Reply(client, Bundle().put({"examples": len(site.train), "loss": 0.0}, model=model)))
    found = algorithm.aggregate(state, iter(replies), Desk(SEED)).state.groups["model"]
    for name, tensor in wanted.items():
        torch.testing.assert_close(found[name], tensor.float())


@pytest.mark.parametrize("algorithm", [FedAvg, FedDGM])
def test_a_reply_without_a_fitting_model_is_a_failure(algorithm):
    from fedstill.algorithms.replies import MISFIT
    from fedstill.rounds import Reply

    method = algorithm(world=WORLD)
    state = method.init(["c00"], Desk(SEED))
    wrong = {name: tensor.flatten() for name, tensor in state.groups["model"].items()}
    replies = [
        Reply("c00", Bundle().put({"examples": 3, "loss": 0.0})),
        Reply("c01", Bundle().put({"examples": 3, "loss": 0.0}, model=wrong)),
    ]
    outcome = method.aggregate(state, replies, Desk(SEED))
    why = MISFIT.format(group="model")
    assert [(failure.client, failure.reason) for failure in outcome.failures] == [("c00", why), ("c01", why)]
    assert torch.equal(outcome.state.groups["model"]["head.weight"], state.groups["model"]["head.weight"])


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"augmentation": "colour"}, "did you mean 'color'"),
        ({"global_augmentation": "flop"}, "global_augmentation"),
        ({"space": 3}, "spaces 0 to 0"),
        ({"prior_samples": 1}, "needs a prior"),
        ({"distill_steps": 0}, "needs a prior"),
        ({"generator": "digits"}, "16"),
    ],
)
def test_what_feddgm_refuses_it_refuses_before_any_client_works(options, text):
    with pytest.raises(InputError, match=text):
        FedDGM(world=WORLD, **options).init(["c00"], Desk(SEED))
