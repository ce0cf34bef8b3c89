"""VHL: where it is FedAvg, its loss, its virtual images, and clients that hold little."""

from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from fedstill.algorithms.averaging import FedAvg
from fedstill.algorithms.vhl import ROWS, VHL
from fedstill.bundle import Bundle
from fedstill.contract import tiny_sites, tiny_world
from fedstill.engines.local import LocalEngine
from fedstill.errors import InputError
from fedstill.generators.virtual import virtual_images
from fedstill.losses import supervised_contrast
from fedstill.rounds import Desk, World, rounds
from fedstill.seeds import Seed
from fedstill.train import Batch

WORLD = tiny_world()
DESK = Desk(Seed.root(0))
BUDGET = {"epochs": 2, "lr": 0.05, "batch": 8, "momentum": 0.9, "decay": 1e-4}
FEW = {"virtual_ipc": 4, "virtual_batch": 6}
NOTHING = {"virtual_weight": 0.0, "matching_weight": 0.0, "contrast_weight": 0.0}
IMAGES = {"channels": 3, "size": (16, 16), "classes": 4, "each": 5, "class_spread": 0.5, "sample_spread": 0.3}


def same(left, right):
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def run(algorithm, sites, *, until=3, **more):
    return list(rounds(algorithm, LocalEngine(algorithm, sites, DESK), desk=DESK, until=until, **more))


def doubled(world=WORLD):
    return replace(world, architecture=replace(world.architecture, classes=2 * world.architecture.classes))


def test_vhl_of_no_weights_is_fedavg_on_a_doubled_head():
    done = run(VHL(world=WORLD, **BUDGET, **FEW, **NOTHING), tiny_sites())
    plain = run(FedAvg(world=doubled(), **BUDGET), tiny_sites())
    assert [each.figures for each in done] == [each.figures for each in plain]
    whole = plain[-1].state.groups["model"]
    model, rows = done[-1].state.groups["model"], done[-1].state.groups[ROWS]
    joined = {**model, **{f"head.{name}": torch.cat([model[f"head.{name}"], rows[name]]) for name in rows}}
    assert same(joined, whole)


def test_the_loss_is_its_formula():
    algorithm = VHL(world=WORLD, **BUDGET, **FEW)
    network = doubled().architecture.build(Seed.root(3))
    shard = tiny_sites()["c01"].train.take(range(7))
    images = shard.inputs()
    features = network.features(images)
    batch = Batch(network, {}, images, shard.labels, features, network.classify(features), torch.arange(7), step=4)
    virtual, seed = algorithm._virtual(11), Seed.root(5)
    loss = algorithm._term(virtual, seed)(batch)

    rows = torch.randperm(len(virtual), generator=seed.at(4).torch())[:6]
    other, classes = network.features(virtual.inputs(rows)), virtual.labels[rows]
    expected = (
        F.cross_entropy(network.classify(other), classes + 3)
        + supervised_contrast(
            torch.cat([features, other.detach()]), torch.cat([shard.labels, classes]), temperature=0.07
        )
        + 0.1 * supervised_contrast(other, classes, temperature=0.07)
    )
    torch.testing.assert_close(loss, expected)


def test_virtual_classes_are_learnt():
    algorithm = VHL(world=WORLD, **{**BUDGET, "epochs": 10}, **{**FEW, "virtual_batch": 12})
    state = run(algorithm, tiny_sites())[-1].state
    network = doubled().architecture.build(Seed.root(0))
    network.load_state_dict(dict(algorithm._whole(state).groups["model"]))
    virtual = algorithm._virtual(int(state.numbers["virtual"]))
    guesses = network.eval()(virtual.inputs()).argmax(1)
    assert (guesses == virtual.labels + 3).double().mean() > 0.9
    assert algorithm.models(state)["global"].module()(tiny_sites()["c00"].test.inputs()).shape[1] == 3


def test_every_client_gets_the_number_and_not_the_images():
    algorithm = VHL(world=WORLD, **BUDGET, **FEW)
    state = algorithm.init(["c00", "c01"], DESK)
    first, second = (algorithm.broadcast(state, client) for client in ("c00", "c01"))
    assert first.to_bytes() == second.to_bytes()
    assert set(first.groups) == {"model"}
    assert first.numbers == {"virtual": state.numbers["virtual"]}
    assert Bundle.from_bytes(first.to_bytes()).numbers == first.numbers


def test_clients_that_hold_little_take_part():
    sites = tiny_sites()
    shard = sites["c00"].train
    sites["c00"] = replace(sites["c00"], train=shard.take([0]))
    sites["c01"] = replace(sites["c01"], train=shard.take((shard.labels == 1).nonzero()[:, 0]))
    for each in run(VHL(world=WORLD, **BUDGET, **FEW), sites):
        assert not each.failures
        assert each.state.finite()
        assert set(each.figures["clients"]) == set(sites)


def test_soft_labels_train_as_hard_ones():
    sites = {
        name: replace(site, train=replace(site.train, labels=F.one_hot(site.train.labels, 3).float()))
        for name, site in tiny_sites().items()
    }
    hard, soft = (run(VHL(world=WORLD, **BUDGET, **FEW), each)[-1].state for each in (tiny_sites(), sites))
    for name, tensor in hard.groups["model"].items():
        torch.testing.assert_close(soft.groups["model"][name], tensor, rtol=1e-4, atol=1e-5)


def test_local_norms_go_with_it():
    architecture = replace(WORLD.architecture, options={"depth": 2, "width": 4, "norm": "batch"})
    algorithm = VHL(world=replace(WORLD, architecture=architecture), norms="local", **BUDGET, **FEW)
    done = run(algorithm, tiny_sites(), until=2)
    assert not done[-1].failures
    assert algorithm.models(done[-1].state) == {}


def test_an_image_of_two_channels_is_refused_before_the_run():
    architecture = replace(WORLD.architecture, channels=2)
    with pytest.raises(InputError, match="1 or 3 channels, not 2"):
        VHL(world=World(architecture, WORLD.classes, WORLD.normalisation)).init(["c00"], DESK)


@pytest.mark.parametrize("size", [(8, 8), (16, 16), (28, 28), (12, 20), (40, 48)])
def test_virtual_images_fill_the_pixel_range_in_any_size(size):
    images = virtual_images(**{**IMAGES, "size": size}, seed=Seed.root(1))
    assert images.shape == (20, 3, *size)
    assert images.dtype == torch.uint8
    pixels = images.double() / 255
    torch.testing.assert_close(pixels.mean((0, 2, 3)), torch.full((3,), 0.5, dtype=torch.float64), atol=0.03, rtol=0)
    assert (pixels.std((0, 2, 3)) > 0.15).all()


def test_virtual_images_are_the_same_for_the_same_seed_alone():
    first = virtual_images(**IMAGES, seed=Seed.root(1)).clone()
    other = virtual_images(**IMAGES, seed=Seed.root(2))
    virtual_images.cache_clear()
    assert torch.equal(virtual_images(**IMAGES, seed=Seed.root(1)), first)
    assert not torch.equal(first, other)


def test_virtual_classes_differ():
    images = virtual_images(**{**IMAGES, "each": 20}, seed=Seed.root(1)).double().flatten(1)
    labels = torch.arange(4).repeat_interleave(20)
    means = images.view(4, 20, -1).mean(1)
    assert (torch.cdist(images, means).argmin(1) == labels).double().mean() > 0.8
