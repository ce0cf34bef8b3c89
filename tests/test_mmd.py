"""MMD: unbiased, and its standard error says how far it is off."""

from __future__ import annotations

import itertools
import time

import numpy as np
import pytest
from scipy.spatial.distance import cdist
from sklearn.datasets import load_digits

from fedstill.errors import InputError
from fedstill.evaluate import mmd
from fedstill.evaluate.mmd import between, discrepancies, median_distance


def kernel(x, y, bandwidth):
    return np.exp(-np.sum((x - y) ** 2) / (2 * bandwidth**2))


def statistic(x, y, bandwidth):
    """The matrix h of the statistic, by its definition."""
    n = len(x)
    h = np.zeros((n, n))
    for i, j in itertools.permutations(range(n), 2):
        h[i, j] = sum(
            sign * kernel(a, b, bandwidth)
            for sign, a, b in ((1, x[i], x[j]), (1, y[i], y[j]), (-1, x[i], y[j]), (-1, x[j], y[i]))
        )
    return h


def digits(*classes):
    """Real digits of these classes, all where none is named: [n, 64] in 0 … 1."""
    data = load_digits()
    return data.data[np.isin(data.target, classes or range(10))] / 16


def test_estimate_and_error_are_those_of_the_definition():
    """Every mean over different rows, as a sum over all tuples of them."""
    draw = np.random.default_rng(0)
    x, y = draw.normal(size=(7, 3)), draw.normal(0.5, size=(7, 3))
    h, rows = statistic(x, y, 1.3), range(7)
    found = between(x, y, bandwidth=1.3)
    assert found.squared == pytest.approx(h.sum() / 42)
    same = np.mean([h[i, j] ** 2 for i, j in itertools.permutations(rows, 2)])
    sharing = np.mean([h[i, j] * h[i, k] for i, j, k in itertools.permutations(rows, 3)])
    apart = np.mean([h[i, j] * h[k, m] for i, j, k, m in itertools.permutations(rows, 4)])
    first, second = max(sharing - apart, 0), same - apart
    assert found.error**2 == pytest.approx(4 * 5 / 42 * first + 2 / 42 * second)
    assert between(x, y, bandwidth=1.3, alike=True).error ** 2 == pytest.approx(2 / 42 * same)
    assert found.n == 7


@pytest.mark.parametrize(
    ("classes", "n", "splits"), [((3,), 25, 400), ((), 25, 400), ((0, 1, 2), 250, 200), ((), 250, 100)]
)
def test_halves_of_one_client_are_at_no_distance(classes, n, splits):
    """Zero within the error, at n = 25 as at n = 250, over many splits of real digits.

    Where it is known that both are one client's the error is right: over many more splits than these the z-scores' standard
    deviation is 0.99, 0.99, 0.99, 0.97. Without that knowledge it is too large: ζ₁ is zero, and its estimate is cut off below.
    The *biased* estimate of the same halves is 0.030 at n = 25 and 0.003 at n = 250 (MMD itself 0.17 and 0.055): ten times
    more for a tenth of the images, of one and the same client.
    """
    pool, draw = digits(*classes), np.random.default_rng(1)
    bandwidth = median_distance({"all": draw.permutation(pool)})
    found = []
    for _ in range(splits):
        rows = draw.permutation(pool)[: 2 * n]
        known, unknown = (between(rows[:n], rows[n:], bandwidth=bandwidth, alike=alike) for alike in (True, False))
        assert known.squared == unknown.squared
        found.append((known.squared, known.error, unknown.error))
    squared, error, careful = np.array(found).T
    z = squared / error
    assert abs(squared.mean()) < 4 * squared.std() / np.sqrt(splits)
    assert abs(z.mean()) < 4 * z.std() / np.sqrt(splits)
    assert 0.8 < z.std() < 1.2
    assert np.mean(np.abs(z) > 2) < 0.1
    assert squared.min() < 0 < squared.max()
    assert 0.55 < (squared / careful).std() < 0.9 * z.std()


@pytest.mark.parametrize(("n", "splits"), [(25, 60), (250, 20)])
def test_the_biased_estimate_of_two_halves_is_not_zero(n, splits):
    """What equal samples and an unbiased estimate are for."""
    draw, pool = np.random.default_rng(2), digits()
    biased, unbiased = [], []
    for _ in range(splits):
        rows = draw.permutation(pool)[: 2 * n]
        bandwidth = median_distance({"all": rows})
        full = np.exp(cdist(rows, rows, "sqeuclidean") / (-2 * bandwidth**2))
        biased.append(full[:n, :n].mean() + full[n:, n:].mean() - 2 * full[:n, n:].mean())
        unbiased.append(between(rows[:n], rows[n:], bandwidth=bandwidth).squared)
    assert np.mean(biased) == pytest.approx(0.75 / n, rel=0.25)
    assert abs(np.mean(unbiased)) < 0.2 * np.mean(biased)


@pytest.mark.parametrize("n", [25, 75])
def test_clients_of_different_classes_are_apart_and_the_error_is_the_spread(n):
    """Here ζ₁ is not zero; the spread over fresh draws is known to a tenth after 200 of them."""
    ones, nines, draw = digits(1, 2), digits(3, 9), np.random.default_rng(3)
    bandwidth = median_distance({"a": ones, "b": nines})
    found = [
        between(draw.choice(ones, n, replace=True), draw.choice(nines, n, replace=True), bandwidth=bandwidth)
        for _ in range(200)
    ]
    squared, error = np.array([(each.squared, each.error) for each in found]).T
    assert error.mean() == pytest.approx(squared.std(), rel=0.15)
    assert (squared / error).min() > 2
    assert (squared / error).mean() > 5


@pytest.mark.parametrize("block", [1, 64 * 40 * 2, 2**24])
def test_all_pairs_have_one_kernel(monkeypatch, block):
    """However many clients are held at a time."""
    monkeypatch.setattr(mmd, "BLOCK", block)
    draw = np.random.default_rng(4)
    samples = {name: draw.permutation(digits(*classes))[:40] for name, classes in (("a", (0,)), ("b", (1,)), ("c", ()))}
    told = []
    found = discrepancies(samples, progress=lambda done, total: told.append((done, total)))
    assert found.clients == ("a", "b", "c")
    assert found.n == 40
    assert found.bandwidth == median_distance(samples)
    for (i, a), (j, b) in itertools.permutations(enumerate(samples), 2):
        alone = between(samples[a], samples[b], bandwidth=found.bandwidth)
        assert (found.squared[i, j], found.error[i, j]) == pytest.approx((alone.squared, alone.error))
    assert np.isnan(found.squared.diagonal()).all()
    for half, rows in zip(found.halves, samples.values(), strict=True):
        alone = between(rows[:20], rows[20:], bandwidth=found.bandwidth, alike=True)
        assert (half.squared, half.error, half.n) == pytest.approx((alone.squared, alone.error, 20))
        assert abs(half.squared) < 3 * half.error
    assert found.squared[0, 1] > 10 * found.error[0, 1]
    assert told == [(1, 3), (2, 3), (3, 3)]


def test_distances_do_not_depend_on_where_the_origin_is():
    samples = {"a": digits(0)[:30], "b": digits(1)[:30]}
    moved = {name: rows + 1e6 for name, rows in samples.items()}
    np.testing.assert_allclose(discrepancies(moved).squared, discrepancies(samples).squared, rtol=1e-6)


def test_few_images_have_no_halves():
    found = discrepancies({"a": digits(0)[:4], "b": digits(1)[:4]})
    assert found.halves == ()
    assert np.isfinite(found.error[0, 1])


def test_what_cannot_be_compared_is_refused():
    with pytest.raises(InputError, match="most images have the same features"):
        discrepancies({"a": np.ones((5, 2)), "b": np.ones((5, 2))})
    with pytest.raises(ValueError, match="as many"):
        between(np.ones((5, 2)), np.ones((4, 2)), bandwidth=1)
    with pytest.raises(ValueError, match="all need"):
        discrepancies({"a": np.ones((5, 2)), "b": np.ones((4, 2))})
    with pytest.raises(ValueError, match="4 at least"):
        discrepancies({"a": np.ones((3, 2)), "b": np.ones((3, 2))})


@pytest.mark.slow
def test_57_clients_take_seconds():
    """FedLGD's CIFAR10-C: 1596 pairs of 250 images with 2048 features; 13 s measured on one core."""
    draw = np.random.default_rng(5)
    samples = {f"c{number}": draw.normal(size=(250, 2048)).astype(np.float32) for number in range(57)}
    began = time.process_time()
    found = discrepancies(samples)
    assert time.process_time() - began < 60
    z = (found.squared / found.error)[np.triu_indices(57, 1)]
    assert abs(z.mean()) < 0.2
    assert 0.8 < z.std() < 1.1
