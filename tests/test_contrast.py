"""MOON and FedProto: where they are FedAvg, their formulas, and clients that hold little."""

from dataclasses import replace

import pytest
import torch

from fedstill.algorithms.averaging import FedAvg
from fedstill.algorithms.contrast import MOON, NEVER, PREVIOUS, FedProto
from fedstill.bundle import Bundle
from fedstill.contract import tiny_sites, tiny_world
from fedstill.engines.local import LocalEngine
from fedstill.engines.memory import Memory
from fedstill.errors import InputError
from fedstill.losses import model_contrast
from fedstill.rounds import Desk, Reply, Trained, rounds
from fedstill.seeds import Seed
from fedstill.train import Recipe, fit

WORLD = tiny_world()
DESK = Desk(Seed.root(0))
BUDGET = {"epochs": 2, "lr": 0.05, "batch": 8, "momentum": 0.9, "decay": 1e-4}
NORMED = replace(WORLD, architecture=replace(WORLD.architecture, options={"depth": 2, "width": 4, "norm": "batch"}))


def same(left, right):
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def run(algorithm, sites, *, until=3, memory=None, **more):
    engine = LocalEngine(algorithm, sites, DESK, memory or Memory())
    return list(rounds(algorithm, engine, desk=DESK, until=until, **more))


def poor_sites():
    """Of whom one holds a single image, and one a single class."""
    sites = tiny_sites()
    first = sites["c00"].train
    sites["c00"] = replace(sites["c00"], train=first.take([0]))
    sites["c01"] = replace(sites["c01"], train=first.take((first.labels == 1).nonzero()[:, 0]))
    return sites


def features(network, shard):
    with torch.no_grad():
        return network.eval().features(shard.inputs())


# --- MOON ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("world", [WORLD, NORMED], ids=["instance", "batch"])
@pytest.mark.parametrize("cohort", [1.0, 2])
def test_moon_of_no_weight_is_fedavg(world, cohort):
    plain = run(FedAvg(world=world, **BUDGET), tiny_sites(), cohort=cohort)
    moon = run(MOON(world=world, mu=0.0, **BUDGET), tiny_sites(), cohort=cohort)
    assert [each.figures for each in moon] == [each.figures for each in plain]
    assert same(moon[-1].state.groups["model"], plain[-1].state.groups["model"])


def test_moons_first_round_is_fedavgs_and_its_second_is_not():
    plain, moon = (
        run(algorithm, tiny_sites(), until=2)
        for algorithm in (FedAvg(world=WORLD, **BUDGET), MOON(world=WORLD, mu=5.0, **BUDGET))
    )
    assert same(moon[0].state.groups["model"], plain[0].state.groups["model"])
    assert not same(moon[1].state.groups["model"], plain[1].state.groups["model"])


def test_moons_client_is_its_formula():
    site, algorithm = tiny_sites()["c02"], MOON(world=WORLD, mu=3.0, **BUDGET)
    received, previous = (WORLD.architecture.build(Seed.root(number)).state_dict() for number in (1, 2))
    anchors = [Trained(WORLD.architecture, tensors).module() for tensors in (received, previous)]

    def term(batch):
        with torch.no_grad():
            seen = [network.eval().features(batch.images) for network in anchors]
        return 3.0 * model_contrast(batch.features, *seen, temperature=0.5)

    inbox, memory = Bundle().put(model=received), Bundle().put(**{PREVIOUS: previous})
    reply, kept = algorithm.local(inbox, site, memory, DESK)
    start = Trained(WORLD.architecture, received).module()
    expected = fit(start, site.train, Recipe(**BUDGET), seed=DESK.seed, extra=term)
    assert same(reply.groups["model"], expected.tensors)
    assert same(kept.groups[PREVIOUS], expected.tensors)


def test_moon_remembers_what_a_client_sent_the_last_time_it_was_asked():
    memory = Memory()
    algorithm = MOON(world=WORLD, **BUDGET)
    done = run(algorithm, tiny_sites(), memory=memory, cohort=2, until=4)
    for client in tiny_sites():
        asked = [each.number for each in done if client in each.cohort]
        assert memory.versions(client) == asked[-2:]


def test_moon_keeps_norms_that_are_local_beside():
    memory = Memory()
    run(MOON(world=NORMED, norms="local", **BUDGET), tiny_sites(), memory=memory, until=2)
    held = memory.read("c00", 9).groups
    assert set(held) == {"model:norms", PREVIOUS}
    assert held["model:norms"].keys() < held[PREVIOUS].keys()


# --- FedProto --------------------------------------------------------------------------------------------------------


def test_fedproto_of_no_weight_trains_as_fedavg_and_means_are_their_formula():
    sites = poor_sites()
    algorithm = FedProto(world=WORLD, weight=0.0, **BUDGET)
    done = run(algorithm, sites)
    plain = run(FedAvg(world=WORLD, **BUDGET), sites)
    assert same(done[-1].state.groups["model"], plain[-1].state.groups["model"])

    state = done[1].state  # what clients of the last round received
    sums, counts = torch.zeros(3, algorithm._head.width, dtype=torch.float64), torch.zeros(3)
    for client, site in sites.items():
        desk = Desk(DESK.seed.at("round", 3, "client", client, "local"))
        reply, _ = FedAvg(world=WORLD, **BUDGET).local(state, site, Bundle(), desk)
        network = Trained(WORLD.architecture, reply.groups["model"]).module()
        for row, label in zip(features(network, site.train), site.train.labels.tolist(), strict=True):
            sums[label] += row
            counts[label] += 1
    held = done[-1].state.groups["prototypes"]
    torch.testing.assert_close(held["means"].double(), sums / counts.unsqueeze(1), rtol=1e-5, atol=1e-6)
    assert held["known"].all()


def test_fedproto_pulls_features_to_their_prototypes():
    def spread(weight):
        algorithm = FedProto(world=WORLD, weight=weight, **BUDGET)
        state = run(algorithm, tiny_sites())[-1].state
        network, shard = algorithm.models(state)["global"].module(), tiny_sites()["c03"].train
        rows = features(network, shard)
        return (rows - state.groups["prototypes"]["means"][shard.labels]).square().mean().item()

    assert spread(20.0) < spread(0.0)


def test_the_model_of_prototypes_finds_the_nearest():
    algorithm = FedProto(world=WORLD, **BUDGET)
    state = run(algorithm, tiny_sites())[-1].state
    models, shard = algorithm.models(state), tiny_sites()["c01"].test
    means = state.groups["prototypes"]["means"]
    rows = features(models["global"].module(), shard)
    logits = models["prototypes"].module().eval()(shard.inputs())
    distances = torch.cdist(rows.double(), means.double()).square()
    torch.testing.assert_close(logits.double().log_softmax(1), (-distances).log_softmax(1), rtol=1e-3, atol=1e-3)
    assert torch.equal(logits.argmax(1), distances.argmin(1))


def test_a_class_that_nobody_has_held_is_never_the_nearest():
    sites = {name: replace(site, train=keep(site.train, {0, 1})) for name, site in tiny_sites().items()}
    algorithm = FedProto(world=WORLD, **BUDGET)
    state = run(algorithm, sites)[-1].state
    assert state.groups["prototypes"]["known"].tolist() == [True, True, False]
    logits = algorithm.models(state)["prototypes"].module().eval()(tiny_sites()["c00"].test.inputs())
    assert (logits[:, 2] == torch.tensor(NEVER)).all()
    assert set(logits.argmax(1).tolist()) <= {0, 1}


def test_a_class_that_this_rounds_clients_lack_keeps_its_prototype():
    algorithm = FedProto(world=WORLD, **BUDGET)
    before = run(algorithm, tiny_sites(), until=1)[-1].state
    lacking = {name: replace(site, train=keep(site.train, {0, 1})) for name, site in tiny_sites().items()}
    after = run(algorithm, lacking, start=1, state=before, until=2)[-1].state
    old, new = (state.groups["prototypes"]["means"] for state in (before, after))
    assert torch.equal(old[2], new[2])
    assert not torch.equal(old[:2], new[:2])
    assert after.groups["prototypes"]["known"].all()


def keep(shard, labels):
    return shard.take([row for row, label in enumerate(shard.labels.tolist()) if label in labels])


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda group: {**group, "means": group["means"][:, :-1]}, "holds no prototypes of the names, shapes"),
        (lambda group: {**group, "counts": group["counts"] + 1}, "do not add up to its examples"),
        (lambda group: {**group, "counts": -group["counts"]}, "do not add up to its examples"),
    ],
)
def test_a_strangers_prototypes_are_refused_with_the_model_they_came_with(change, reason):
    algorithm, sites = FedProto(world=WORLD, **BUDGET), tiny_sites()
    state = algorithm.init(list(sites), DESK)
    good, bad = (
        algorithm.local(algorithm.broadcast(state, name), sites[name], Bundle(), DESK.at(name))[0]
        for name in ("c00", "c01")
    )
    bad = bad.put(prototypes=change(bad.groups["prototypes"]))
    outcome = algorithm.aggregate(state, [Reply("c00", good), Reply("c01", bad)], DESK)
    assert [failure.client for failure in outcome.failures] == ["c01"]
    assert reason in outcome.failures[0].reason
    alone = algorithm.aggregate(state, [Reply("c00", good)], DESK)
    assert outcome.state.to_bytes() == alone.state.to_bytes()


def test_fedproto_does_not_send_how_many_images_clients_hold():
    algorithm = FedProto(world=WORLD, **BUDGET)
    state = run(algorithm, tiny_sites(), until=1)[-1].state
    assert set(algorithm.broadcast(state, "c00").groups["prototypes"]) == {"means", "known"}


def test_norms_that_are_local_leave_no_model_of_prototypes():
    algorithm = FedProto(world=NORMED, norms="local", **BUDGET)
    assert algorithm.models(run(algorithm, tiny_sites())[-1].state) == {}


def test_fedproto_says_which_networks_it_needs():
    architecture = replace(WORLD.architecture, name="test_heads:odd", options={"scaled": True})
    with pytest.raises(InputError, match="a classifier of prototypes needs a network whose classify is one"):
        FedProto(world=replace(WORLD, architecture=architecture)).init(["c00"], DESK)


# --- both ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", [MOON, FedProto])
def test_clients_that_hold_little_take_part(method):
    for each in run(method(world=WORLD, **BUDGET), poor_sites()):
        assert not each.failures
        assert each.state.finite()
        assert set(each.figures["clients"]) == set(tiny_sites())


@pytest.mark.parametrize("method", [MOON, FedProto])
def test_soft_labels_count_for_their_largest_entry(method):
    def softened(shard):
        return replace(shard, labels=torch.nn.functional.one_hot(shard.labels, 3).float())

    sites = {name: replace(site, train=softened(site.train)) for name, site in tiny_sites().items()}
    hard, soft = (run(method(world=WORLD, **BUDGET), each)[-1].state for each in (tiny_sites(), sites))
    for group in hard.groups:
        for name, tensor in hard.groups[group].items():
            torch.testing.assert_close(soft.groups[group][name], tensor, rtol=1e-4, atol=1e-5)
