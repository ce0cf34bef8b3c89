"""Fresh networks on a saved synthetic set."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from fedstill.algorithms.union import join_sets
from fedstill.bundle import Bundle
from fedstill.data.shard import Normalisation, Shard
from fedstill.errors import InputError, RunError
from fedstill.evaluate.fresh import rates_of, read_sets, recipe_json, recipe_of, train_fresh
from fedstill.evaluate.networks import named, read_choice
from fedstill.models.architecture import Architecture
from fedstill.models.choice import Choice
from fedstill.rounds import Desk, World
from fedstill.runtime import Processes
from fedstill.scores import score
from fedstill.seeds import Seed
from fedstill.train import Recipe, fit

SEED = Seed.root(0)
WORLD = World(
    Architecture("convnet", 1, (8, 8), 3, {"depth": 1, "width": 4}), ("a", "b", "c"), Normalisation((0.5,), (0.25,))
)
RECIPE = Recipe(epochs=12, lr=0.1, batch=8, momentum=0.9)


def shard(count=30, *, soft=False):
    """Three classes that are stripes of different places; easily told apart."""
    labels = torch.arange(count) % 3
    images = 0.3 * torch.rand(count, 1, 8, 8, generator=SEED.at(count).torch())
    for row, label in enumerate(labels.tolist()):
        images[row, :, 2 * label : 2 * label + 2] += 0.7
    soft_labels = 0.9 * torch.eye(3)[labels] + 0.1 / 3
    return Shard(images, soft_labels if soft else labels, WORLD.classes, WORLD.normalisation)


NETWORKS = {"one": WORLD.architecture, "two": replace(WORLD.architecture, options={"depth": 2, "width": 4})}


def test_fresh_networks_learn_and_are_scored_once():
    lesson, test, told = shard(), shard(60), []
    desk = Desk(SEED, progress=lambda *news: told.append(news))
    found = train_fresh(lesson, test, NETWORKS, RECIPE, seeds=2, desk=desk)
    assert [(each.model, each.seed) for each in found] == [("one", 0), ("one", 1), ("two", 0), ("two", 1)]
    assert all(each.scores.examples == 60 and each.scores.accuracy > 0.8 for each in found)
    assert told == [("train fresh networks", done, 4) for done in (1, 2, 3, 4)]
    # the same as by hand: a network's own seed begins it and orders its lessons
    place = SEED.at(1)
    network = WORLD.architecture.build(place.at("model"))
    fitted = fit(network, lesson, RECIPE, seed=place.at("train"))
    network.load_state_dict(dict(fitted.tensors))
    assert torch.equal(found[1].scores.confusion, score(network, test).confusion)


def test_soft_labels_teach_too():
    found = train_fresh(shard(soft=True), shard(60), {"one": WORLD.architecture}, RECIPE, seeds=1, desk=Desk(SEED))
    assert found[0].scores.accuracy > 0.8


@pytest.mark.slow
def test_processes_change_nothing():
    lesson, test = shard(), shard(60)
    here, there = (
        train_fresh(lesson, test, NETWORKS, RECIPE, seeds=1, desk=desk)
        for desk in (Desk(SEED), Desk(SEED, map=Processes(2)))
    )
    for one, other in zip(here, there, strict=True):
        assert torch.equal(one.scores.confusion, other.scores.confusion)
        assert torch.equal(one.scores.bins, other.scores.bins)


def test_a_training_that_diverges_is_named():
    with pytest.raises(RunError, match=r"fresh network 'one', seed 0: training diverged"):
        train_fresh(shard(), shard(), {"one": WORLD.architecture}, replace(RECIPE, lr=1e30), seeds=1, desk=Desk(SEED))


def test_the_recipe_is_the_runs_own():
    fields = {
        "global_epochs": 40,
        "global_lr": 0.02,
        "global_batch": 64,
        "global_momentum": 0.8,
        "global_decay": 0.001,
        "global_augmentation": "color_crop",
        "epochs": 3,
        "temperature": 2.0,
    }
    recipe = recipe_of(fields)
    assert (recipe.epochs, recipe.lr, recipe.batch, recipe.momentum, recipe.decay) == (40, 0.02, 64, 0.8, 0.001)
    assert recipe.augmentation.operations == ("color", "crop")
    assert recipe.temperature == 2
    assert recipe_json(recipe_of(fields, epochs=7, lr=0.5)) == {
        "epochs": 7,
        "lr": 0.5,
        "batch": 64,
        "momentum": 0.8,
        "decay": 0.001,
        "augmentation": "color_crop",
    }
    assert recipe_json(recipe_of({}))["epochs"] == 1000
    assert recipe_json(recipe_of({"global_augmentation": "none"}))["augmentation"] == "none"


def saved(path, **sets):
    Bundle().put(**{f"synthetic:{client}": group for client, group in sets.items()}).save(path)
    return path


def test_the_union_of_a_saved_round(tmp_path):
    b, a = shard(6), shard(9)
    path = saved(
        tmp_path / "round-0001.safetensors",
        b={"images": b.images, "labels": b.labels},
        a={"images": a.images, "labels": a.labels},
    )
    found = join_sets(read_sets(path, WORLD), WORLD)
    assert torch.equal(found.images, torch.cat([a.images, b.images]))
    assert found.labels.tolist() == [*a.labels.tolist(), *b.labels.tolist()]
    assert (found.classes, found.normalisation) == (WORLD.classes, WORLD.normalisation)


def test_bytes_and_a_learnt_step_size_are_kept_too(tmp_path):
    images = torch.full((2, 1, 8, 8), 255, dtype=torch.uint8)
    groups = {
        name: {"images": images, "labels": torch.tensor([0, 2]), "rate": torch.tensor(rate)} for name, rate in RATES
    }
    sets = read_sets(saved(tmp_path / "round-0001.safetensors", **groups), WORLD)
    assert torch.equal(join_sets(sets, WORLD).images, torch.cat([images, images]))
    learnt = {"global_lr": "learned", "global_epochs": 5, "global_drop": 0.5}
    recipe = recipe_of(learnt, rates=rates_of(sets))
    assert (recipe.lr, recipe.epochs, recipe.drop) == (0.375, 5, 0.5)
    assert recipe_json(recipe)["drop"] == 0.5
    assert recipe_of(learnt, lr=0.1, rates=rates_of(sets)).lr == 0.1
    with pytest.raises(
        InputError, match="the run learnt its step size, and keeps none with its synthetic sets: give --lr"
    ):
        recipe_of(learnt)


RATES = (("a", 0.25), ("b", 0.5))
GOOD = {"images": torch.zeros(2, 1, 8, 8), "labels": torch.tensor([0, 2])}


@pytest.mark.parametrize(
    ("sets", "why"),
    [
        ({}, "it holds no set"),
        ({"a": {"images": torch.zeros(2, 1, 8, 8)}}, "the set of 'a' holds images where images and labels are due"),
        (
            {"a": {**GOOD, "images": torch.zeros(2, 3, 8, 8)}},
            r"\[2, 3, 8, 8\] where floats or uint8 \[n, 1, 8, 8\] are due",
        ),
        ({"a": {**GOOD, "labels": torch.tensor([0, 3])}}, "labels outside 0 to 2"),
        ({"a": {**GOOD, "labels": torch.tensor([-1, 0])}}, "labels outside 0 to 2"),
        ({"a": {**GOOD, "labels": torch.zeros(3, dtype=torch.int64)}}, r"\[3\] for 2 images of 3 classes"),
        ({"a": {**GOOD, "labels": torch.zeros(2, 4)}}, r"\[2, 4\] for 2 images of 3 classes"),
        ({"a": GOOD, "b": {**GOOD, "labels": torch.full((2, 3), 1 / 3)}}, "its sets have labels of several kinds"),
    ],
)
def test_a_damaged_set_is_refused(tmp_path, sets, why):
    path = saved(tmp_path / "round-0001.safetensors", **sets)
    with pytest.raises(InputError, match=f"round-0001.safetensors is damaged: .*{why}"):
        read_sets(path, WORLD)


# --- networks by name ------------------------------------------------------------------------------------------------


def test_networks_as_the_command_line_names_them():
    assert read_choice("resnet18") == Choice("resnet18")
    assert read_choice("convnet:depth=3,activation=silu") == Choice("convnet", "", {"depth": 3, "activation": "silu"})
    assert read_choice("my.module:net") == Choice("my.module:net")
    assert read_choice("my.module:net:label=mine,width=0.5") == Choice("my.module:net", "mine", {"width": 0.5})
    for text in ("convnet:depth=", "convnet:=3", "convnet:depth=3,width", "convnet:depth=[3]"):
        with pytest.raises(InputError, match="write it as NAME or as NAME:key=value"):
            read_choice(text)


def test_titles_tell_networks_apart_by_what_differs():
    choices = [read_choice(text) for text in ("convnet:depth=1,width=4", "convnet:depth=2,width=4", "vgg11:label=v")]
    world = replace(WORLD, architecture=replace(WORLD.architecture, size=(32, 32)))
    assert list(named(choices, world)) == ["convnet:depth=1", "convnet:depth=2", "v"]
    assert list(named([*choices[:1], *choices[:1]], world)) == ["convnet"]


def test_what_names_no_network_is_refused():
    with pytest.raises(InputError, match=r"--model.name = 'convnt': did you mean 'convnet'\?"):
        named([Choice("convnt")], WORLD)
    with pytest.raises(InputError, match=r"--model.depht = 2: did you mean 'depth'\?"):
        named([read_choice("convnet:depht=2")], WORLD)
    with pytest.raises(InputError, match="two networks are called 'a'; give one a label of its own"):
        named([read_choice("convnet:label=a"), read_choice("convnet:depth=1,label=a")], WORLD)
