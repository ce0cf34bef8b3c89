"""Nearest neighbours of distilled images: planted copies are found, independent images show none."""

import json
from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedstill.audit.dealing import weights
from fedstill.audit.neighbours import Owned, neighbours, pair_images
from fedstill.audit.resampling import mean_interval
from fedstill.data.shard import Normalisation, Shard
from fedstill.errors import InputError
from fedstill.evaluate.features import Space, pixel_space
from fedstill.rounds import Desk
from fedstill.seeds import Seed

ROOT = Seed.root(0)
DESK = Desk(ROOT)
PIXELS = [pixel_space()]


def shard(name, n, *, classes=2):
    draw = ROOT.at(name).torch()
    labels = torch.arange(n) % classes
    images = torch.rand(n, 1, 4, 4, generator=draw) * 0.5 + labels[:, None, None, None] * 0.5
    return Shard(images, labels, ("a", "b"), Normalisation((0.5,), (0.25,)))


def copied(real, rows, noise=0.01):
    taken = real.take(rows)
    return replace(taken, images=taken.images + noise * torch.randn(taken.images.shape, generator=ROOT.at("n").torch()))


def test_planted_copies_are_found_and_shown():
    real = shard("real", 60)
    leaky = Owned(copied(real, [5, 8, 40, 41]), real, shard("held", 80))
    clean = Owned(shard("made", 6), shard("mine", 50), shard("other", 40))
    clients = {"c00": clean, "c01": leaky}
    lines = []
    told = neighbours(
        clients, PIXELS, desk=replace(DESK, progress=lambda *line: lines.append(line)), deals=200, worst=4
    )
    pixels = told["pixels"]
    assert pixels["images"] == 10
    assert pixels["gap"] > pixels["chance"][1]
    assert pixels["p"] < 0.05
    assert {(each["client"], each["distilled"], each["member"]) for each in pixels["worst"]} == {
        ("c01", 0, 5), ("c01", 1, 8), ("c01", 2, 40), ("c01", 3, 41),
    }  # fmt: skip
    assert all(each["ratio"] < 0.2 for each in pixels["worst"])
    assert [(each["client"], each["class"], each["size"]) for each in pixels["cells"]] == [
        ("c00", 0, 20), ("c00", 1, 20), ("c01", 0, 30), ("c01", 1, 30),
    ]  # fmt: skip
    assert all(each["p"] > 0.02 for each in pixels["cells"][:2])
    assert all(each["closer"] == 1 for each in pixels["cells"][2:])
    assert lines == [("neighbours", 1, 1)]
    json.dumps(told, allow_nan=False)
    pairs = pair_images(clients, pixels["worst"])
    assert pairs.shape == (4, 2, 1, 4, 4)
    assert (pairs[:, 0] - pairs[:, 1]).abs().max() < 0.1


def test_independent_images_pass_as_often_as_chance_has_it():
    values = []
    for number in range(60):
        owned = Owned(shard(("s", number), 4), shard(("m", number), 20), shard(("h", number), 30))
        told = neighbours({"c": owned}, PIXELS, desk=Desk(ROOT.at(number)), deals=99)
        values.append(told["pixels"]["p"])
    # 60 uniform values: below 0.1 lie 6 ± 2.3, and their mean is 0.5 ± 0.04
    assert sum(value <= 0.1 for value in values) <= 13
    assert 0.38 < np.mean(values) < 0.62


@pytest.mark.parametrize("clients", [1, 10])
@pytest.mark.parametrize("own", [0, 6])
def test_chance_is_calibrated_where_clients_share_held_out_images(clients, own):
    """Distilled images near the class's centre owe nothing to anybody: 5 % of gaps lie outside the middle 95 %."""
    draw = ROOT.at("calibration", clients, own).numpy()
    vectors = Space("vectors", lambda s: s.images.flatten(1).numpy())

    def normal(n, scale=1.0):
        images = torch.from_numpy(draw.normal(scale=scale, size=(n, 1, 2, 2)).astype(np.float32))
        return Shard(images, torch.zeros(n, dtype=torch.long), ("a", "b"), Normalisation((0.5,), (0.25,)))

    trials, outside, found = 150, {"gap": 0, "nearest": 0}, []
    for number in range(trials):
        each = {f"c{i}": Owned(normal(4, 0.2), normal(16), normal(own), "all") for i in range(clients)}
        told = neighbours(each, [vectors], shared={"all": normal(16)}, desk=Desk(ROOT.at(number)), deals=99)["vectors"]
        near = told["nearest"]
        outside["gap"] += not told["chance"][0] <= told["gap"] <= told["chance"][1]
        outside["nearest"] += not near["chance"][0] <= near["ratio"] <= near["chance"][1]
        found.append(told["p"])
    # a little above 5 %, as 99 deals tell the ends roughly: 150 · 0.06 = 9 ± 2.9
    assert all(count <= 20 for count in outside.values())
    # deals that come to the same count as large: with few images the mean of p lies above 0.5
    assert 0.4 < np.mean(found) < 0.65


def test_the_nearest_pair_stands_beside_what_it_is_by_chance():
    clean, real, held = shard("made", 6), shard("real", 20), shard("held", 400)
    near = neighbours({"c": Owned(clean, real, held)}, PIXELS, desk=DESK, deals=200)["pixels"]["nearest"]
    assert near["chance"][0] < near["ratio"] < near["chance"][1] < 1.5
    leaky = replace(copied(real, [7]), labels=torch.tensor([1]))
    near = neighbours({"c": Owned(leaky, real, held)}, PIXELS, desk=DESK, deals=200)["pixels"]["nearest"]
    assert near["ratio"] < 0.2 < 0.5 < near["chance"][1]


def test_shared_images_are_held_out_for_all_who_share_them():
    """One client alone has the same distances whether its held-out images are its own or shared."""
    real, held = shard("real", 30), shard("held", 20)
    own = neighbours({"c": Owned(shard("s", 4), real, held)}, PIXELS, desk=DESK, deals=5)["pixels"]
    both = Owned(shard("s", 4), real, held.take(range(8)), "all")
    told = neighbours({"c": both}, PIXELS, shared={"all": held.take(range(8, 20))}, desk=DESK, deals=5)["pixels"]
    assert told["gap"] == pytest.approx(own["gap"])
    assert [each["size"] for each in told["cells"]] == [each["size"] for each in own["cells"]] == [10, 10]


@settings(max_examples=40, deadline=None)
@given(st.lists(st.floats(0, 10), min_size=2, max_size=7), st.integers(2, 7))
def test_the_expected_least_distance_is_that_of_all_draws(distances, size):
    size = min(size, len(distances))
    rising = sorted(distances)
    every = np.mean([min(draw) for draw in combinations(rising, size)])
    assert weights(len(rising), size) @ np.array(rising) == pytest.approx(every)


def test_equal_numbers_on_both_sides():
    """Members and held-out of one distribution, ten times as many of the former: no gap in the mean."""
    gaps = []
    for number in range(40):
        owned = Owned(shard(("s", number), 2), shard(("m", number), 200), shard(("h", number), 20))
        gaps.append(neighbours({"c": owned}, PIXELS, desk=DESK, deals=1)["pixels"]["gap"])
    assert abs(np.mean(gaps)) < 3 * np.std(gaps) / np.sqrt(len(gaps))


def test_distances_are_taken_in_the_space_that_is_given():
    real = shard("real", 30)
    bright = Space("brightness", lambda s: s.inputs().mean((1, 2, 3), keepdim=False)[:, None].numpy())
    owned = Owned(copied(real, [3]), real, shard("held", 30))
    told = neighbours({"c": owned}, [*PIXELS, bright], desk=DESK, deals=50)
    assert list(told) == ["pixels", "brightness"]
    assert told["brightness"]["cells"][0]["held_out"] < told["pixels"]["cells"][0]["held_out"]


def test_soft_labels_count_for_their_largest_entry_and_small_classes_are_left_out():
    real = shard("real", 30)
    soft = replace(copied(real, [2, 3]), labels=torch.tensor([[0.9, 0.1], [0.2, 0.8]]))
    held = shard("held", 21).take([*range(0, 21, 2), 1])  # one image of class b
    told = neighbours({"c": Owned(soft, real, held)}, PIXELS, desk=DESK, deals=20)["pixels"]
    assert (told["images"], told["left_out"]) == (1, 1)
    assert told["interval"] is None


def test_with_nothing_to_compare_a_sentence():
    real = shard("real", 10)
    with pytest.raises(InputError, match="nothing can be compared"):
        neighbours({"c": Owned(real, real, real.take([]))}, PIXELS, desk=DESK)
    with pytest.raises(InputError, match="no pair"):
        pair_images({}, [])


def test_an_interval_of_a_mean():
    values = ROOT.at("v").numpy().normal(3, 1, 400)
    low, high = mean_interval(values, seed=ROOT)
    assert (low, high) == pytest.approx((values.mean() - 0.098, values.mean() + 0.098), abs=0.02)
    assert mean_interval(values[:4], seed=ROOT) is None
