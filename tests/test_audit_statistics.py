"""What scores of members and of others come to: ROC and its figures, LiRA, densities, pools. Against literal formulas."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as some
from scipy import stats

from fedstill.audit.density import density_ratio, gradient_norms
from fedstill.audit.lira import confidence, offline, online
from fedstill.audit.pool import Labelled, build_pool
from fedstill.audit.roc import auc, clopper_pearson, curve, dp_bound, thinned_curve, tpr_at, tpr_json
from fedstill.contract import tiny_sites, tiny_world
from fedstill.data.shard import Normalisation, Shard
from fedstill.seeds import Seed
from fedstill.train import classification_loss

few = some.lists(some.integers(0, 6), min_size=2, max_size=12).map(lambda values: np.array(values, float))


# --- ROC -----------------------------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(few, few)
def test_auc_is_the_share_of_pairs(members, others):
    pairs = [(a > b) + (a == b) / 2 for a, b in itertools.product(members, others)]
    found = auc(members, others)
    assert found.value == pytest.approx(np.mean(pairs))
    assert 0 <= found.low <= found.value + 1e-12
    assert found.value - 1e-12 <= found.high <= 1


@settings(deadline=None)
@given(few, few)
def test_the_curve_counts_what_lies_at_or_above_each_threshold(members, others):
    roc = curve(members, others)
    thresholds = sorted({*members, *others}, reverse=True)
    assert roc.tpr.tolist() == pytest.approx([0.0, *((members >= t).mean() for t in thresholds)])
    assert roc.fpr.tolist() == pytest.approx([0.0, *((others >= t).mean() for t in thresholds)])
    # and its area, ties being one step, is the AUC
    assert np.trapezoid(roc.tpr, roc.fpr) == pytest.approx(auc(members, others).value)


def test_a_thinned_curve_keeps_its_ends_and_lies_on_the_whole_one():
    draw = np.random.default_rng(0)
    whole = curve(draw.normal(1, 1, 3000), draw.normal(0, 1, 3000))
    thin = thinned_curve(whole, 50)
    assert len(thin.fpr) <= 50
    assert {*zip(thin.fpr, thin.tpr, strict=True)} <= {*zip(whole.fpr, whole.tpr, strict=True)}
    assert thin.fpr[-1] == thin.tpr[-1] == 1
    assert (thin.fpr[thin.fpr > 0].min()) == 1 / 3000
    assert thinned_curve(curve(np.ones(2), np.zeros(2)), 50).fpr.tolist() == [0, 0, 1]


def test_delongs_variance_is_that_of_its_structural_components():
    draw = np.random.default_rng(1)
    members, others = draw.normal(0.7, 1, 40).round(1), draw.normal(0, 1, 60).round(1)
    wins = (members[:, None] > others) + 0.5 * (members[:, None] == others)
    variance = wins.mean(1).var(ddof=1) / 40 + wins.mean(0).var(ddof=1) / 60
    found, value = auc(members, others), wins.mean()
    half = stats.norm.ppf(0.975) * np.sqrt(variance) / (value * (1 - value))
    logit = np.log(value / (1 - value))
    assert (found.low, found.high) == pytest.approx(tuple(1 / (1 + np.exp(-(logit + side * half))) for side in (-1, 1)))


def test_delongs_interval_covers_what_it_should():
    draw = np.random.default_rng(2)
    truth = stats.norm.cdf(0.5 / np.sqrt(2))
    hits = [
        found.low <= truth <= found.high
        for found in (auc(draw.normal(0.5, 1, 60), draw.normal(0, 1, 60)) for _ in range(500))
    ]
    assert stats.binomtest(sum(hits), 500, 0.95).pvalue > 0.001


def test_perfect_and_empty_separation_have_honest_intervals():
    perfect = auc(np.arange(10, 20.0), np.arange(8.0))
    assert (perfect.value, perfect.high) == (1.0, 1.0)
    assert perfect.low == pytest.approx(stats.binomtest(8, 8).proportion_ci(method="exact").low)
    worst = auc(np.arange(8.0), np.arange(10, 20.0))
    assert (worst.low, worst.value) == (0.0, 0.0)
    constant = auc(np.ones(5), np.ones(5))
    assert (constant.low, constant.value, constant.high) == (0.0, 0.5, 1.0)


@settings(deadline=None)
@given(some.integers(0, 50))
def test_clopper_pearson_is_scipys(hits):
    wanted = stats.binomtest(hits, 50).proportion_ci(method="exact")
    assert clopper_pearson(hits, 50) == pytest.approx((wanted.low, wanted.high), abs=1e-9)


def test_tpr_at_a_rate():
    others = np.arange(1000.0)
    members = np.array([989.0, 989.5, 990.0, 2000.0])
    # ten of 1000 others may lie above: 990 to 999, so a member counts above 989
    assert tpr_at(members, others, 0.01).value == 0.75
    assert tpr_at(np.ones(50), np.ones(100), 0.01).value == 0.0  # ties with the first that may not be let in


def test_rare_rates_need_many_non_members():
    assert (
        tpr_at(np.ones(9), np.zeros(99), 0.01) == "a false-positive rate of 1 % needs 100 non-members, and there are 99"
    )
    found = tpr_json(np.ones(9), np.zeros(4999))
    assert found["0.01"]["value"] == 1.0
    assert found["0.001"] == {"missing": "a false-positive rate of 0.1 % needs 5000 non-members, and there are 4999"}
    assert tpr_json(np.ones(9), np.zeros(5000))["0.001"]["value"] == 1.0


def test_what_differential_privacy_allows():
    assert dp_bound(0.01, 1.0, 1e-5) == pytest.approx(np.e * 0.01 + 1e-5)
    assert dp_bound(0.9, 1.0, 1e-5) == pytest.approx(1 - np.exp(-1) * (1 - 1e-5 - 0.9))
    assert dp_bound(0.3, 0.0, 0.0) == pytest.approx(0.3)
    assert dp_bound(1.0, 8.0, 0.0) == dp_bound(0.5, 1000.0, 0.0) == 1.0


def test_no_attack_beats_the_bound_on_randomised_response():
    # says the truth with e^ε / (1 + e^ε): exactly (ε, 0)-private, and the bound is met
    epsilon = 1.0
    truth = np.exp(epsilon) / (1 + np.exp(epsilon))
    assert dp_bound(1 - truth, epsilon, 0.0) == pytest.approx(truth)


# --- LiRA ----------------------------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(some.lists(some.floats(-8, 8), min_size=6, max_size=6), some.integers(0, 2))
def test_confidence_is_the_logit_of_the_labels_probability(values, label):
    logits = torch.tensor(values, dtype=torch.float64).view(2, 3)
    p = logits.softmax(1)[:, label]
    assert confidence(logits, torch.tensor([label, label])) == pytest.approx((p / (1 - p)).log().numpy(), abs=1e-6)


def test_confidence_is_finite_where_a_probability_rounds_to_one():
    found = confidence(torch.tensor([[500.0, 0.0], [-500.0, 0.0]]), torch.tensor([0, 0]))
    assert found.tolist() == [500.0, -500.0]


def test_scores_are_the_papers_by_hand():
    shadows = np.array([[1.0, 5.0], [3.0, 6.0], [7.0, 1.0], [9.0, 2.0]])
    inside = np.array([[False, True], [False, True], [True, False], [True, False]])
    target = np.array([4.0, 4.0])
    own = offline(target, shadows, ~inside, own_variance=True)
    assert own.tolist() == pytest.approx([(4 - 2) / np.sqrt(2), (4 - 1.5) / np.sqrt(0.5)])
    pooled = np.sqrt((2 + 0.5) / 2)  # sums of squares about each image's mean, over their degrees of freedom
    assert offline(target, shadows, ~inside, own_variance=False).tolist() == pytest.approx([2 / pooled, 2.5 / pooled])
    density = stats.norm.logpdf
    wanted = [
        density(4, 8, np.sqrt(2)) - density(4, 2, np.sqrt(2)),
        density(4, 5.5, np.sqrt(0.5)) - density(4, 1.5, np.sqrt(0.5)),
    ]
    assert online(target, shadows, inside, ~inside, own_variance=True).tolist() == pytest.approx(wanted)


def test_images_without_shadows_have_no_score():
    shadows, inside = (
        np.array([[1.0, 2.0], [2.0, 3.0], [4.0, 3.0]]),
        np.array([[True, False], [True, False], [True, True]]),
    )
    assert np.isnan(offline(np.ones(2), shadows, ~inside, own_variance=False)).tolist() == [True, False]
    assert np.isnan(online(np.ones(2), shadows, inside, ~inside, own_variance=False)).tolist() == [True, False]
    none = np.zeros((0, 2))
    assert np.isnan(offline(np.ones(2), none, none.astype(bool), own_variance=False)).all()


@pytest.mark.parametrize("own_variance", [False, True])
def test_lira_comes_to_the_auc_of_its_gaussians(own_variance):
    # image i: OUT N(m_i, 1), IN N(m_i + d, 1), m_i far apart: a threshold on φ is worth little, the ratio Φ(d / √2)
    draw = np.random.default_rng(3)
    n, s, gap = 4000, 128, 1.0
    difficulty = draw.normal(0, 5, n)
    inside = draw.random((s, n)) < 0.5
    member = draw.random(n) < 0.5
    shadows = difficulty + gap * inside + draw.normal(size=(s, n))
    target = difficulty + gap * member + draw.normal(size=n)
    best = stats.norm.cdf(gap / np.sqrt(2))
    for scores in (
        offline(target, shadows, ~inside, own_variance=own_variance),
        online(target, shadows, inside, ~inside, own_variance=own_variance),
    ):
        found = auc(scores[member], scores[~member])
        assert found.low - 0.01 <= best <= found.high + 0.01  # means of 64 shadows cost a little
    plain = auc(target[member], target[~member])
    assert plain.value < 0.6


# --- densities -------------------------------------------------------------------------------------------------------------


def test_gradient_norms_are_those_of_each_image_alone():
    shard, network = tiny_sites()["c00"].train, tiny_world().architecture.build(Seed.root(0))
    found = gradient_norms(network, shard)
    for row in (0, 7, 17):
        network.zero_grad()
        classification_loss(network(shard.inputs(torch.tensor([row]))), shard.labels[row : row + 1]).backward()
        squares = sum(each.grad.double().square().sum() for each in network.parameters())
        assert found[row] == pytest.approx(np.log(np.sqrt(float(squares))), abs=1e-5)


@pytest.mark.parametrize("name", ["convnet", "resnet18", "vit"])
def test_gradient_norms_of_every_kind_of_network(name):
    options = {"convnet": {"norm": "batch"}, "resnet18": {}, "vit": {}}[name]
    world = tiny_world().other(name, options, "model")
    world = type(world)(name, 3, (32, 32), 3, options)
    generator = Seed.root(1).torch()
    images = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8, generator=generator)
    shard = Shard(images, torch.tensor([0, 1, 2]), ("a", "b", "c"), Normalisation((0.5,) * 3, (0.25,) * 3))
    assert np.isfinite(gradient_norms(world.build(Seed.root(0)), shard)).all()


def test_density_ratio_is_by_kernels_of_the_other_half():
    draw = np.random.default_rng(4)
    member = np.repeat([True, False], 200)
    values = np.where(member, draw.normal(0, 1, 400), draw.normal(2, 1, 400))
    scores = density_ratio(values, member, Seed.root(0))
    found = auc(scores[member], scores[~member])
    assert found.low < stats.norm.cdf(2 / np.sqrt(2)) < found.high
    # the ratio is no function of order alone: two-sided members are found, too
    values = np.where(member, draw.choice([-3, 3], 400) + draw.normal(0, 0.5, 400), draw.normal(0, 0.5, 400))
    scores = density_ratio(values, member, Seed.root(0))
    assert auc(scores[member], scores[~member]).value > 0.99


def test_density_ratio_says_nothing_of_noise_and_of_constants():
    draw = np.random.default_rng(5)
    member = np.repeat([True, False], 500)
    found = density_ratio(draw.normal(size=1000), member, Seed.root(0))
    assert abs(auc(found[member], found[~member]).value - 0.5) < 0.06
    assert density_ratio(np.ones(1000), member, Seed.root(0)).tolist() == [0.0] * 1000


# --- pools -----------------------------------------------------------------------------------------------------------------


def labelled(labels, first=0):
    """Images whose first pixel is their number."""
    images = torch.zeros(len(labels), 1, 2, 2, dtype=torch.uint8)
    images[:, 0, 0, 0] = torch.arange(first, first + len(labels))
    shard = Shard(images, torch.tensor(labels), ("a", "b", "c"), Normalisation((0.5,), (0.25,)))
    return Labelled(shard, np.array(labels, np.int64))


def numbers(shard):
    return shard.images[:, 0, 0, 0].tolist()


def test_pools_are_balanced_by_client_and_class():
    held = {"x": labelled([0, 0, 0, 1]), "y": labelled([0, 1, 1, 2], 10)}
    pool = build_pool(held, [labelled([0] * 9 + [1] * 9, 50)], Seed.root(0))
    for position, client in enumerate(pool.clients):
        for stratum in (0, 1):
            mine = (pool.owner == position) & (pool.strata == stratum) & pool.played
            assert (mine & pool.member).sum() == (mine & ~pool.member).sum() > 0
        assert pool.of(client).sum() == (pool.played & (pool.owner == position)).sum()
    assert (~pool.played).sum() == 1  # the image of class 2, which has no counterpart
    assert sorted(numbers(pool.held(pool.member, "x"))) == [0, 1, 2, 3]
    assert sorted(numbers(pool.held(pool.member, "y"))) == [10, 11, 12, 13]
    assert len({*numbers(pool.shard)}) == len(pool.shard)


def test_draws_have_the_targets_sizes_and_classes_and_are_fair():
    held = {"x": labelled([0] * 6 + [1] * 3), "y": labelled([1] * 5 + [2] * 2, 20)}
    pool = build_pool(held, [labelled([0] * 6 + [1] * 6, 50), labelled([1] * 6 + [2] * 1, 80)], Seed.root(0))
    draws = [pool.draw(Seed.root(number)) for number in range(400)]
    for inside in draws[:20]:
        for client, each in held.items():
            assert pool.held(inside, client).histogram() == each.shard.histogram()
        assert inside[~pool.played].all()
    share = np.mean(draws, 0)[pool.played]
    assert np.abs(share - 0.5).max() < 5 * 0.5 / np.sqrt(400)
    assert (pool.draw(Seed.root(7)) == draws[7]).all()


def test_spare_images_of_the_first_kind_come_first():
    pool = build_pool({"x": labelled([0] * 4)}, [labelled([0] * 3, 50), labelled([0] * 9, 80)], Seed.root(0))
    others = [number for number, member in zip(numbers(pool.shard), pool.member, strict=True) if not member]
    assert {50, 51, 52} <= {*others}
    assert len(others) == 4
    assert pool.played.all()


def test_where_spare_images_are_few_clients_share_them():
    held = {"x": labelled([0] * 6), "y": labelled([0] * 3, 20)}
    pool = build_pool(held, [labelled([0] * 4, 50)], Seed.root(0))
    assert [int((~pool.member & (pool.owner == position)).sum()) for position in (0, 1)] == [3, 1]
    assert [int(pool.of(client).sum()) for client in "xy"] == [6, 2]
    assert (~pool.played).sum() == 5
    none = build_pool(held, [labelled([1] * 4, 50)], Seed.root(0))
    assert not none.played.any()
