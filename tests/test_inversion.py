"""Inversion of updates: real digits are found again, the unrolled steps are those of training, the attack sees no truth."""

import json
from dataclasses import replace

import pytest
import torch

from attacked import DESK, DIGITS, ROOT, network
from fedstill.algorithms.averaging import FedAvg
from fedstill.algorithms.feddgm import FedDGM
from fedstill.algorithms.fedlgd import FedLGD
from fedstill.algorithms.fednova import FedNova
from fedstill.algorithms.fedprox import FedProx
from fedstill.algorithms.scaffold import Scaffold
from fedstill.algorithms.sharing import FedDM
from fedstill.algorithms.virtual import VirtualSettings
from fedstill.audit import inversion
from fedstill.audit.attributes import label_of_one
from fedstill.audit.inversion import Inverting, invert
from fedstill.audit.likeness import likeness, psnr
from fedstill.audit.seen import Seen, seen, update_of
from fedstill.bundle import Bundle
from fedstill.contract import tiny_sites, tiny_world
from fedstill.data.augment import DSA, Augmentation
from fedstill.errors import InputError
from fedstill.rounds import Trained
from fedstill.train import Recipe, fit

ONE = Recipe(epochs=1, lr=0.01, batch=8)
LONG = Recipe(epochs=3, lr=0.05, batch=8, momentum=0.9, decay=1e-3)


WORLD = tiny_world()


def attack(**options):
    return Inverting(**({"steps": 120, "restarts": 1} | options))


@pytest.mark.parametrize("local", [None, LONG])
def test_a_single_digit_is_recognisable(local):
    true = DIGITS.take([7])
    update = update_of(network(), true, local or ONE, desk=DESK)
    label = label_of_one(update)
    assert label == 7
    found = invert(update, torch.tensor([label]), true.normalisation, attack=attack(local=local), desk=DESK)
    told = likeness(found.images, found.labels, true, DIGITS.take(range(500, 1500)), seed=ROOT)
    measures = told["measures"]
    assert measures["psnr"]["mean"] > 22 > measures["psnr"]["others_best"]
    assert measures["ssim"]["mean"] > 0.95 > measures["ssim"]["others_best"]
    assert measures["ssim"]["p"] < 0.01
    json.dumps(told | found.to_json(), allow_nan=False)


@pytest.mark.slow
def test_unrolled_steps_find_what_one_gradient_does_not():
    true = DIGITS.take([3, 4, 5, 6])
    recipe = Recipe(epochs=5, lr=0.1, batch=8)
    update = update_of(network(), true, recipe, desk=DESK)
    ways = [attack(steps=120), attack(steps=120, local=recipe)]
    found = [invert(update, true.labels, true.normalisation, attack=way, desk=DESK) for way in ways]
    rough, exact = (psnr(each.images, true.images).min().item() for each in found)
    assert exact > 25 > rough


@pytest.mark.parametrize("norm", ["instance", "batch", "none"])
def test_the_true_images_move_the_network_as_the_message_does(norm):
    true = DIGITS.take([3, 4, 5])
    received = network(norm=norm)
    for local in (LONG, replace(LONG, drop=0.1)):
        update = update_of(received, true, local, desk=DESK)
        distance = inversion._distance(
            inversion._as_in_training(received.module()), update.change, true.inputs(), true.labels, local
        )
        assert abs(distance.item()) < 1e-5


def test_one_gradient_is_one_step():
    true = DIGITS.take([3, 4, 5])
    update = update_of(network(), true, ONE, desk=DESK)
    model = inversion._as_in_training(network().module())
    assert abs(inversion._distance(model, update.change, true.inputs(), true.labels, None).item()) < 1e-5
    other = DIGITS.take([6, 14, 15])
    assert inversion._distance(model, update.change, other.inputs(), true.labels, None).item() > 0.01


def test_weights_and_gradients_tell_the_same():
    received, true = network(), DIGITS.take([3])
    update = update_of(received, true, ONE, desk=DESK)
    gradient = {name: -tensor / ONE.lr for name, tensor in update.change.items()}
    for name, tensor in seen(received, Bundle().put(gradient=gradient)).change.items():
        torch.testing.assert_close(tensor * ONE.lr, update.change[name])


def test_the_least_distance_chooses_and_the_same_seed_gives_the_same_bits():
    true = DIGITS.take([7])
    update = update_of(network(), true, ONE, desk=DESK)
    seen_progress = []
    desk = replace(DESK, progress=lambda *line: seen_progress.append(line))
    hasty = attack(steps=8, restarts=3)
    found, again = (invert(update, true.labels, true.normalisation, attack=hasty, desk=each) for each in (desk, DESK))
    assert found.chosen == min(range(3), key=lambda number: found.distances[number])
    assert found.distances == again.distances
    assert torch.equal(found.images, again.images)
    assert len(set(found.distances)) == 3
    assert ("invert", 3, 3) in seen_progress
    assert 0 <= found.images.min() <= found.images.max() <= 1


def test_a_restart_that_goes_astray_is_not_chosen():
    received = network()
    change = {name: torch.full_like(tensor, float("nan")) for name, tensor in received.tensors.items()}
    found = invert(Seen(received, change), torch.tensor([0]), DIGITS.normalisation, attack=attack(), desk=DESK)
    assert found.to_json()["distances"] == [None]


def test_what_cannot_be_inverted_is_refused():
    received = network()
    with pytest.raises(InputError, match="neither a network nor a gradient"):
        seen(received, Bundle().put({"examples": 3}))
    with pytest.raises(InputError, match="not the run's whole one"):
        seen(replace(received, tensors={}), Bundle().put(model=received.tensors))
    still = seen(received, Bundle().put(model=received.tensors))
    with pytest.raises(InputError, match="leaves the network as it was"):
        invert(still, torch.tensor([0]), DIGITS.normalisation, desk=DESK)
    with pytest.raises(InputError, match="no image is sought"):
        invert(still, torch.tensor([], dtype=torch.int64), DIGITS.normalisation, desk=DESK)


@pytest.mark.parametrize("wrong", [{"steps": 0}, {"restarts": 0}, {"lr": 0}, {"variation": -1}, {"pixels": (1.0, 0.0)}])
def test_settings_out_of_range_are_refused(wrong):
    with pytest.raises(InputError, match="inversion"):
        Inverting(**wrong)


@pytest.mark.parametrize("local", [replace(ONE, optimiser="adam"), replace(ONE, augmentation=Augmentation.parse(DSA))])
def test_what_cannot_be_unrolled_is_refused(local):
    with pytest.raises(InputError, match="unrolled"):
        Inverting(local=local)


METHODS = {
    "fedavg": FedAvg(world=WORLD, epochs=1),
    "fedprox": FedProx(world=WORLD, epochs=1),
    "fednova": FedNova(world=WORLD, epochs=1),
    "scaffold": Scaffold(world=WORLD, epochs=1),
    "feddgm": FedDGM(world=WORLD, epochs=1),
    "fedlgd": FedLGD(world=WORLD, virtual=VirtualSettings(ipc=1, steps=0), match_steps=0),
    "fedlgd, gradients": FedLGD(
        world=WORLD, virtual=VirtualSettings(ipc=1, steps=0), match_steps=0, average="gradients"
    ),
}


@pytest.mark.parametrize("name", METHODS)
def test_what_methods_send_can_be_attacked(name):
    method = METHODS[name]
    inbox = method.broadcast(method.init(["c00"], DESK), "c00")
    reply, _ = method.local(inbox, tiny_sites()["c00"], Bundle(), DESK)
    told = seen(Trained(WORLD.architecture, inbox.groups["model"]), reply)
    found = invert(told, torch.tensor([0]), WORLD.normalisation, attack=attack(steps=2), desk=DESK)
    assert found.distances[0] < 1.5


def test_who_sends_images_alone_has_no_update():
    method = FedDM(world=WORLD, ipc=1, match_steps=1, least=1)
    inbox = method.broadcast(method.init(["c00"], DESK), "c00")
    reply, _ = method.local(inbox, tiny_sites()["c00"], Bundle(), DESK)
    with pytest.raises(InputError, match="neither a network nor a gradient"):
        seen(Trained(WORLD.architecture, inbox.groups["model"]), reply)


def test_distilled_images_are_sought_beyond_the_range_of_photographs():
    true = replace(DIGITS.take([7]), images=DIGITS.images[[7]] * 2 - 0.5)
    update = update_of(network(), true, ONE, desk=DESK)
    wide = attack(pixels=(-0.5, 1.5))
    found = invert(update, true.labels, true.normalisation, attack=wide, desk=DESK).images
    assert (found - true.images).square().mean() < 0.02
    assert found.max() > 1.2


def test_a_reply_of_training_is_read_as_it_is():
    received, true = network(), DIGITS.take([1, 2])
    fitted = fit(received.module(), true, ONE, seed=DESK.seed)
    told = seen(received, Bundle().put({"examples": 2}, model=fitted.tensors))
    for name, tensor in update_of(received, true, ONE, desk=DESK).change.items():
        assert torch.equal(told.change[name], tensor)
