"""Clients compared by their real and by their virtual images: equal means equal, and what is found is what was put in."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import tiny
from fedstill import folder
from fedstill.algorithms.virtual import OWN
from fedstill.bundle import Bundle
from fedstill.cli import invoke
from fedstill.data.shard import Normalisation, Shard
from fedstill.errors import InputError
from fedstill.evaluate.distilled import change, compare_distilled, place_distilled
from fedstill.evaluate.features import pixel_space
from fedstill.evaluation import Asked, evaluate_run
from fedstill.report.distilled import told
from fedstill.report.evaluated import Change, Distilled, Side, read_evaluated
from fedstill.report.figures.heat import span
from fedstill.report.page import build
from fedstill.report.parts import Heat, charts, grids
from fedstill.report.runs import read_run
from fedstill.rounds import Desk
from fedstill.run import drive
from fedstill.seeds import Seed

DESK = Desk(Seed.root(0))
PIXELS = Asked(mmd=True, features="pixels")


def world(each=60, *, shift=0.6, classes=2):
    """Three clients of Gaussian pixels; the second is shifted by ``shift`` in all of them, the third by twice as much."""
    draw = torch.Generator().manual_seed(1)
    images = torch.randn(3 * each, 1, 3, 3, generator=draw)
    images += shift * torch.arange(3).repeat_interleave(each).view(-1, 1, 1, 1)
    labels = torch.arange(3 * each) % classes
    names = tuple(str(k) for k in range(classes))
    held = {f"c{index}": range(index * each, (index + 1) * each) for index in range(3)}
    return Shard(images, labels, names, Normalisation((0.0,), (1.0,))), held


def compared(train, held, own, **options):
    return compare_distilled(train, held, own, pixel_space(), **{"images": None, "desk": DESK, **options})


def numbers(table):
    return np.array([[math.nan if value is None else value for value in row] for row in table])


def test_virtual_images_that_are_the_real_ones_change_nothing():
    train, held = world()
    found = compared(train, held, {client: train.take(rows) for client, rows in held.items()})
    assert (found["images"], found["draws"]) == (60, 1)
    assert found["before"] == found["after"]
    assert (found["change"]["difference"], found["change"]["ratio"], found["change"]["rose"]) == (0, 1, 0)
    assert found["change"]["low"] == found["change"]["high"] == 0


def test_a_sample_of_the_real_images_changes_nothing_but_by_chance():
    train, held = world(400)
    own = {client: train.take([*rows][:80]) for client, rows in held.items()}
    found = compared(train, held, own)
    assert (found["images"], found["draws"]) == (80, 5)
    before, after = (numbers(found[side]["squared"]) for side in ("before", "after"))
    error = np.hypot(*(numbers(found[side]["error"]) for side in ("before", "after")))
    pairs = np.triu_indices(3, 1)
    assert (np.abs(after - before)[pairs] < 3 * error[pairs]).all()
    # five draws of which none has an image of another: the error of their mean
    np.testing.assert_allclose(
        numbers(found["before"]["error"])[pairs] * math.sqrt(5), numbers(found["after"]["error"])[pairs], rtol=0.25
    )


def test_the_estimate_is_the_known_discrepancy_of_two_gaussians():
    """k̄ = (σ² / (σ² + 2))^{d/2} exp(−δ² / 2(σ² + 2)) for N(0, I) and N(δ, I): MMD² = 2 (k̄(0) − k̄(δ))."""
    train, held = world(800, classes=1)
    found = compared(train, held, {client: train.take([*rows][:300]) for client, rows in held.items()})
    width = found["bandwidth"] ** 2 + 2
    factor = (found["bandwidth"] ** 2 / width) ** (9 / 2)
    for index, (row, column, steps) in enumerate([(0, 1, 1), (1, 2, 1), (0, 2, 2)]):
        expected = 2 * factor * (1 - math.exp(-9 * (0.6 * steps) ** 2 / (2 * width)))
        for side in ("before", "after"):
            error = found[side]["error"][row][column]
            assert found[side]["squared"][row][column] == pytest.approx(expected, abs=3.5 * error), (index, side)


def test_clients_that_were_drawn_apart_are_found_apart():
    train, held = world(200)
    shifts = {"c0": -0.5, "c1": 0.0, "c2": 0.5}
    moved = {
        client: replace(part := train.take([*rows][:60]), images=part.images + shifts[client])
        for client, rows in held.items()
    }
    found = compared(train, held, moved)["change"]
    assert found["rose"] == found["pairs"] == 3
    assert found["ratio"] > 1.5
    assert found["difference"] == pytest.approx(found["after"] - found["before"])


def test_each_class_counts_as_often_as_a_client_has_it_both_ways():
    """Client c0 has 4 real images of class 1 and 30 virtual ones; c1 has virtual images of a class that it lacks."""
    train, held = world(100)
    rows = {client: [*its] for client, its in held.items()}
    rows["c0"] = [row for row in rows["c0"] if row % 2 == 0] + [row for row in rows["c0"] if row % 2][:4]
    rows["c1"] = [row for row in rows["c1"] if row % 2 == 0]
    own = {
        client: replace(part := train.take([*its][:60]), labels=torch.arange(60) % 2) for client, its in held.items()
    }
    assert part.labels.shape == (60,)
    found = compared(train, rows, own)
    assert found["images"] == 30  # c1's thirty of class 0
    assert compared(train, rows, {**own, "c1": own["c1"].take(range(0, 60, 2))})["before"] == found["before"]
    assert compared(train, rows, own, images=24)["images"] == 24


def test_small_sets_are_compared_though_some_are_smaller():
    train, held = world()
    sizes = dict(zip(held, (9, 9, 8), strict=True))
    own = {client: train.take([*held[client]][:size]) for client, size in sizes.items()}
    found = compared(train, held, own)
    assert found["clients"] == list(held)
    assert found["images"] <= 8
    assert found["left_out"] == []


def test_who_has_too_few_is_left_out_and_named():
    train, held = world()
    own = {client: train.take([*rows][:40]) for client, rows in held.items()}
    found = compared(train, {**held, "c3": range(2)}, {**own, "c3": train.take(range(2))})
    assert found["left_out"] == [{"client": "c3", "reason": "has 2 images to compare, and 20 are needed"}]
    found = compared(train, {**held, "c3": range(2)}, own)
    assert found["left_out"] == [{"client": "c3", "reason": "has made no virtual images"}]
    with pytest.raises(InputError, match="1 of 3 clients hold 20 virtual images or more"):
        compared(train, held, {"c0": own["c0"], "c1": own["c1"].take([0])})
    with pytest.raises(InputError, match="0 of 3 clients hold 4 virtual"):
        compared(train, held, {})
    # where nobody has twenty, fewer do
    assert compared(train, held, {client: shard.take(range(10)) for client, shard in own.items()})["images"] == 10


def mirrored(half):
    """Each image and its negative: no independent draws, and their mean is that of N(0, I)."""
    images, labels = torch.cat([half.images, -half.images]), half.labels.repeat(2)
    return Shard(images, labels, half.classes, half.normalisation)


def test_images_whose_mean_is_right_seem_nearer_by_no_more_than_the_slack():
    train, held = world(400, shift=0.0)
    found = [
        compared(train, held, {client: mirrored(train.take(rows[at : at + 10])) for client, rows in held.items()})
        for at in range(0, 200, 10)
    ]
    low, slack = np.mean([(each["change"]["after"], each["slack"]) for each in found], axis=0)
    assert -slack < low < -0.2 * slack


# --- the mean over pairs ----------------------------------------------------------------------------------------------


def table(values):
    size = len(values)
    return np.where(np.eye(size, dtype=bool), np.nan, values)


def test_the_interval_leaves_out_one_client_at_a_time():
    draw = np.random.default_rng(0)
    before, after = (table((values := draw.random((5, 5)) + 1) + values.T) for _ in range(2))
    found = change(before, after)
    apart = after - before
    left = [np.nanmean(np.delete(np.delete(apart, index, 0), index, 1)) for index in range(5)]
    error = math.sqrt(4 / 5 * np.square(left - np.mean(left)).sum())
    assert found.difference == pytest.approx(np.nanmean(apart))
    assert (found.low, found.high) == pytest.approx(
        (found.difference - 2.776445 * error, found.difference + 2.776445 * error)
    )
    back = change(after, before)
    assert (back.ratio, back.ratio_low, back.ratio_high) == pytest.approx(
        (1 / found.ratio, 1 / found.ratio_high, 1 / found.ratio_low)
    )
    assert (found.rose + back.rose, found.pairs) == (10, 10)


def test_two_clients_have_no_interval_and_negative_means_no_ratio():
    found = change(table(np.full((2, 2), 0.2)), table(np.full((2, 2), 0.3)))
    assert (found.difference, found.low, found.high, found.before_error) == (pytest.approx(0.1), None, None, None)
    assert (found.ratio, found.ratio_low) == (pytest.approx(1.5), None)
    assert change(table(np.full((4, 4), -0.1)), table(np.full((4, 4), 0.1))).ratio is None


def test_the_interval_holds_the_truth_as_often_as_it_says():
    """Clients at random places, pairs as far apart as their places are and a noise of each pair: 95 %, or more."""
    draw, inside = np.random.default_rng(1), 0
    for _ in range(400):
        places = draw.normal(size=5)
        before = np.square(places[:, None] - places) + 1
        noise = draw.normal(scale=0.2, size=(5, 5))
        found = change(table(before), table(1.2 * before + noise + noise.T))
        assert found.low is not None
        assert found.high is not None
        inside += found.low <= 0.2 * 3 <= found.high  # E (a − b)² + 1 = 3
    assert inside > 0.9 * 400


# --- of a run ---------------------------------------------------------------------------------------------------------


VIRTUAL = {"ipc": 6, "steps": 0, "start": "real"}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    out = tmp_path_factory.mktemp("finished") / "run"
    drive(tiny.experiment(virtual=VIRTUAL, rounds=2), out=out)
    return out


@pytest.fixture
def run(finished, tmp_path):
    return Path(shutil.copytree(finished, tmp_path / "run"))


def content(run):
    return json.loads((run / folder.EVALUATION).read_text())


def test_a_run_on_virtual_images_is_measured_on_both_sides(run):
    found = evaluate_run(run, replace(PIXELS, tsne=True))
    virtual = found["mmd"]["virtual"]
    assert (virtual["round"], virtual["initial"], virtual["images"]) == (2, True, 24)
    assert virtual["clients"] == found["mmd"]["clients"]
    points = found["tsne"]["virtual"]["points"]
    assert len(points) == 3 * 24
    assert {point["client"] for point in points} == set(virtual["clients"])
    assert content(run)["mmd"] == found["mmd"]
    missing = []
    read = read_evaluated(run / folder.EVALUATION, missing)
    assert missing == []
    assert read.virtual is not None
    assert read.virtual.change.difference == virtual["change"]["difference"]
    assert read.virtual.slack == virtual["slack"] > 0
    assert read.virtual.after.squared[0][1] == virtual["after"]["squared"][0][1]
    assert read.virtual_tsne is not None
    assert len(read.virtual_tsne.points) == 72


def test_the_images_are_those_of_the_clients_memory(run):
    for file in (run / "memory").rglob("*.safetensors"):
        kept = Bundle.open(file)
        own = kept.groups[OWN]
        kept.put(**{OWN: {**own, "images": own["images"] * 0 + 0.5 + torch.rand(own["images"].shape) / 1e3}}).save(file)
    found = evaluate_run(run, PIXELS)["mmd"]["virtual"]["change"]
    assert found["after"] < 0.2 * found["before"]


def test_a_run_that_was_resumed_measures_the_same(tmp_path):
    straight, parted = tmp_path / "straight", tmp_path / "parted"
    method = {"name": "fedlgd", "selected": [1, 2], "match_steps": 1, "distill_steps": 1, "global_ipc": 1, "lr": 0.1}
    table = {"virtual": {"ipc": 5, "steps": 1}}
    drive(tiny.experiment(method, rounds=2, **table), out=straight)
    drive(tiny.experiment(method, rounds=1, **table), out=parted)
    before = evaluate_run(parted, PIXELS)["mmd"]["virtual"]
    drive(tiny.experiment(method, rounds=2, **table), out=parted, resume=True)
    after = evaluate_run(parted, PIXELS)["mmd"]
    assert after == evaluate_run(straight, PIXELS)["mmd"]
    assert (before["round"], after["virtual"]["round"], after["virtual"]["initial"]) == (1, 2, False)
    assert before["after"] != after["virtual"]["after"]


def test_where_virtual_images_are_not_in_the_folder_is_said(run, capsys):
    shutil.rmtree(run / "memory")
    assert invoke(["evaluate", str(run), "--mmd", "--features", "pixels"]) == 0
    said = capsys.readouterr().out
    why = f"{run} holds no memory of its clients, so their virtual images stay where the clients are"
    assert said.count(why) == 1
    assert content(run)["mmd"]["virtual"] == {"missing": why}
    missing = []
    read = read_evaluated(run / folder.EVALUATION, missing)
    assert (missing, read.virtual, read.virtual_missing) == ([], None, why)


def test_the_terminal_shows_both_sides(run, capsys):
    assert invoke(["evaluate", str(run), "--mmd", "--tsne", "--features", "pixels"]) == 0
    said = capsys.readouterr().out
    found = content(run)["mmd"]["virtual"]["change"]
    assert f"{found['before']:.4f}" in said
    assert f"{found['after']:.4f}" in said
    assert f"{found['rose']} of 3 pairs" in said
    assert "t-SNE of 72 virtual images" in said


def test_a_map_of_virtual_images_names_their_classes():
    train, held = world()
    own = {client: train.take([*rows][:30]) for client, rows in held.items()}
    found = place_distilled(own, pixel_space(), images=10, desk=DESK)
    assert len(found["points"]) == 30
    assert {point["class"] for point in found["points"]} == {"0", "1"}


# --- on the page ------------------------------------------------------------------------------------------------------


def test_the_page_shows_both_sides_on_one_scale(run):
    evaluate_run(run, replace(PIXELS, tsne=True))
    page = build([read_run(run)])
    found = content(run)["mmd"]["virtual"]
    before, after = (
        next(each for each in charts(page) if each.chart.key == f"mmd-virtual-1-{side}") for side in ("before", "after")
    )
    assert isinstance(before, Heat)
    assert isinstance(after, Heat)
    assert span(before) == span(after)
    assert after.values[0][1] == found["after"]["squared"][0][1]
    (means,) = (grid for grid in grids(page) if grid.key == "mmd-virtual-1")
    assert [row[1].value for row in means.rows] == [
        found["change"][name] for name in ("before", "after", "difference", "ratio")
    ]
    assert means.rows[1][0].text == "initial virtual images"
    keys = {each.chart.key for each in charts(page)}
    assert {"tsne-1-client", "tsne-virtual-1-client", "tsne-virtual-1-class", "client-time"} <= keys


@pytest.mark.parametrize(
    ("low", "high", "slack", "words"),
    [
        (0.1, 0.3, 0.2, "further apart by"),
        (-0.3, -0.1, 0.05, "nearer to each other by"),
        (-0.3, -0.1, 0.2, "cannot be told: they seem nearer"),
        (-0.1, 0.3, 0.0, "cannot be told: the interval holds zero"),
        (None, None, None, "too few"),
    ],
)
def test_the_page_says_what_the_interval_allows(low, high, slack, words):
    found = Distilled(
        features="pixels",
        images=20,
        draws=1,
        round=3,
        initial=False,
        bandwidth=1.0,
        clients=(),
        before=Side((), ()),
        after=Side((), ()),
        change=Change(1.0, 0.1, 1.1, 0.1, 0.1, low, high, 1.1, None, None, 2, 3),
        slack=slack,
        left_out=(),
    )
    assert words in told(found, "virtual images of round 3")
