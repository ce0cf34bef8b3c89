"""Where one method becomes another, exactly."""

import pytest
import torch

from fedstill.algorithms.averaging import FedAvg
from fedstill.algorithms.feddgm import FedDGM
from fedstill.algorithms.fednova import FedNova
from fedstill.algorithms.fedopt import FedAvgM
from fedstill.algorithms.fedprox import FedProx
from fedstill.algorithms.scaffold import Scaffold
from fedstill.bundle import Bundle
from fedstill.contract import tiny_sites, tiny_world
from fedstill.engines.local import LocalEngine
from fedstill.engines.memory import Memory
from fedstill.rounds import Desk, rounds
from fedstill.seeds import Seed
from fedstill.train import Recipe, fit

WORLD = tiny_world()
DESK = Desk(Seed.root(0))
SMALL = {
    "epochs": 2,
    "batch": 8,
    "lr": 0.05,
    "ipc": 2,
    "student_steps": 2,
    "global_epochs": 3,
    "lr_features": 1.0,
    "loss_limit": 99.0,
    "generator": "fedstill.contract:tiny_prior",
}


def same(left, right):
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def run(algorithm, sites, until=1):
    return list(rounds(algorithm, LocalEngine(algorithm, sites, DESK), desk=DESK, until=until))[-1].state


def test_fedavg_of_one_client_is_plain_training():
    sites = {"c00": tiny_sites()["c00"]}
    algorithm = FedAvg(world=WORLD, epochs=3, lr=0.05, batch=8)
    start = WORLD.architecture.build(DESK.at("init").seed.at("model"))
    recipe = Recipe(epochs=3, lr=0.05, batch=8, momentum=0.9, decay=1e-5)
    seed = DESK.seed.at("round", 1, "client", "c00", "local")
    assert same(run(algorithm, sites).groups["model"], fit(start, sites["c00"].train, recipe, seed=seed).tensors)


def test_an_extra_term_of_zero_is_no_term():
    shard, start = tiny_sites()["c00"].train, WORLD.architecture.build(Seed.root(0))
    recipe = Recipe(epochs=3, lr=0.05, batch=8)
    plain = fit(start, shard, recipe, seed=DESK.seed)
    zero = fit(start, shard, recipe, seed=DESK.seed, extra=lambda batch: 0.0 * batch.features.sum())
    assert same(plain.tensors, zero.tensors)


def test_feddgms_client_is_fedavgs():
    site = tiny_sites()["c01"]
    dgm = FedDGM(world=WORLD, distill_steps=1, **SMALL)
    avg = FedAvg(world=WORLD, epochs=2, lr=0.05, batch=8, momentum=0.0, decay=0.0)
    state = dgm.init(["c01"], DESK)
    replies = [each.local(each.broadcast(state, "c01"), site, Bundle(), DESK)[0] for each in (dgm, avg)]
    assert replies[0].to_bytes() == replies[1].to_bytes()


def test_prior_only_trains_on_the_images_that_feddgm_starts_from():
    prior = run(FedDGM(world=WORLD, distill_steps=0, **SMALL), tiny_sites())
    # so small a step that no image moves
    still = run(FedDGM(world=WORLD, distill_steps=1, **{**SMALL, "lr_features": 1e-12, "retries": 0}), tiny_sites())
    for name, group in still.members("synthetic").items():
        torch.testing.assert_close(group["images"], prior.groups[f"synthetic:{name}"]["images"])


def test_prior_only_asks_clients_for_nothing():
    algorithm = FedDGM(world=WORLD, distill_steps=0, **SMALL)
    (only,) = rounds(algorithm, LocalEngine(algorithm, tiny_sites(), DESK), desk=DESK, until=1)
    assert only.bytes_down == 0
    assert only.bytes_up == 8 * len(tiny_sites())  # the number of examples


def test_soft_labels_that_have_not_begun_are_hard_ones():
    from fedstill.models.choice import Choice

    options = {"distill_steps": 1, "global_models": (Choice("convnet", options={"depth": 2, "width": 3}),), **SMALL}
    hard, waiting, soft = (
        run(FedDGM(world=WORLD, **options, **more), tiny_sites()).groups["model:convnet"]
        for more in ({}, {"labels": "soft", "soft_from": 2}, {"labels": "soft"})
    )
    assert same(hard, waiting)
    assert not same(hard, soft)


def test_global_models_do_not_touch_the_surrogate():
    from fedstill.models.choice import Choice

    alone = run(FedDGM(world=WORLD, distill_steps=1, **SMALL), tiny_sites(), until=2)
    other = Choice("convnet", options={"depth": 2, "width": 3})
    beside = run(
        FedDGM(world=WORLD, distill_steps=1, global_models=(other,), labels="soft", **SMALL), tiny_sites(), until=2
    )
    assert same(alone.groups["model"], beside.groups["model"])


LOCAL = {"epochs": 2, "lr": 0.05, "batch": 8}


def test_fedprox_without_its_term_is_fedavg_to_the_bit():
    prox, avg = (
        run(method, tiny_sites(), until=3)
        for method in (FedProx(world=WORLD, mu=0, **LOCAL), FedAvg(world=WORLD, **LOCAL))
    )
    assert same(prox.groups["model"], avg.groups["model"])


def test_server_momentum_of_zero_and_a_step_of_one_are_fedavg_to_the_bit():
    momentum = FedAvgM(world=WORLD, server_momentum=0, server_lr=1, **LOCAL)
    assert same(
        run(momentum, tiny_sites(), until=3).groups["model"],
        run(FedAvg(world=WORLD, **LOCAL), tiny_sites(), until=3).groups["model"],
    )


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_fednova_is_fedavg_where_all_take_as_many_steps(momentum):
    """To the rounding of float32: its mean is folded with other weights."""
    options = {**LOCAL, "batch": 64, "momentum": momentum}  # one step an epoch, for every client
    nova, avg = (run(kind(world=WORLD, **options), tiny_sites(), until=2) for kind in (FedNova, FedAvg))
    for name, tensor in avg.groups["model"].items():
        torch.testing.assert_close(nova.groups["model"][name], tensor, rtol=1e-5, atol=1e-7)


def test_the_mean_of_scaffolds_client_controls_is_the_servers_after_full_participation():
    algorithm, memory = Scaffold(world=WORLD, **LOCAL), Memory()
    engine = LocalEngine(algorithm, tiny_sites(), DESK, memory)
    for each in rounds(algorithm, engine, desk=DESK, until=3):
        held = [memory.read(client, each.number + 1).groups["control"] for client in engine.clients()]
        for name, tensor in each.state.groups["control"].items():
            assert tensor.abs().max() > 0
            mean = torch.stack([control[name].double() for control in held]).mean(0)
            torch.testing.assert_close(tensor.double(), mean, rtol=1e-4, atol=1e-6)


def test_scaffold_of_one_client_has_no_drift_to_correct():
    """To the rounding of float32: its control is the server's, and their difference zero."""
    sites = {"c00": tiny_sites()["c00"]}
    scaffold, avg = (
        run(kind(world=WORLD, **LOCAL, momentum=0.0), sites, until=3).groups["model"] for kind in (Scaffold, FedAvg)
    )
    for name, tensor in avg.items():
        torch.testing.assert_close(scaffold[name], tensor, rtol=1e-4, atol=1e-6)
