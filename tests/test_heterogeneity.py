"""Figures of who holds what, against values known by hand and an independent earth mover's distance."""

from __future__ import annotations

import itertools
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog

from fedstill.evaluate.heterogeneity import evenness, heterogeneity, histogram_distance, label_entropy

HISTOGRAMS = st.lists(st.lists(st.integers(0, 50), min_size=3, max_size=3), min_size=1, max_size=5)


@pytest.mark.parametrize(
    ("counts", "bits", "even"),
    [
        ([5, 0, 0, 0], 0.0, 0.0),
        ([3, 3, 0, 0], 1.0, 0.5),
        ([2, 2, 2, 2], 2.0, 1.0),
        ([2, 1, 1], 1.5, 1.5 / np.log2(3)),
        ([7], 0.0, None),
        ([0, 0], None, None),
    ],
)
def test_entropy_in_bits_and_as_a_share(counts, bits, even):
    assert label_entropy(counts) == pytest.approx(bits)
    assert evenness(counts) == pytest.approx(even)


def test_one_class_has_no_negative_entropy():
    assert str(label_entropy([4, 0])) == "0.0"


def test_distance_of_distributions_not_of_sizes():
    assert histogram_distance([1, 1], [50, 50]) == 0
    assert histogram_distance([9, 0, 0], [0, 1, 2]) == 1
    assert histogram_distance([3, 1], [1, 3]) == pytest.approx(0.5)
    assert histogram_distance([0, 0], [1, 1]) is None
    assert histogram_distance([4], [9]) == 0


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(0, 9), min_size=4, max_size=4), st.lists(st.integers(0, 9), min_size=4, max_size=4))
def test_it_is_the_earth_movers_distance_with_equal_costs(a, b):
    """Moved mass, by SciPy's linear program, where a move between any two classes costs 1."""
    if not sum(a) or not sum(b):
        assert histogram_distance(a, b) is None
        return
    cost = 1 - np.eye(4)
    leaving = [[float(i == row) for i, _ in itertools.product(range(4), repeat=2)] for row in range(4)]
    coming = [[float(j == column) for _, j in itertools.product(range(4), repeat=2)] for column in range(4)]
    shares = [*np.array(a) / sum(a), *np.array(b) / sum(b)]
    solved = linprog(cost.ravel(), A_eq=np.array(leaving + coming), b_eq=shares)
    assert histogram_distance(a, b) == pytest.approx(solved.fun, abs=1e-7)


@given(HISTOGRAMS)
def test_a_partition_is_what_its_pairs_are(rows):
    histogram = {f"c{index:02}": row for index, row in enumerate(rows)}
    found = heterogeneity(histogram)
    pooled = np.sum(rows, axis=0)
    assert found.distance == {client: histogram_distance(row, pooled) for client, row in histogram.items()}
    pairs = [histogram_distance(a, b) for a, b in itertools.combinations(rows, 2)]
    told = [each for each in pairs if each is not None]
    assert found.mean_distance == (pytest.approx(np.mean(told), abs=1e-12) if told else None)
    assert all(value is None or 0 <= value <= 1 for value in (*found.evenness.values(), *found.distance.values()))


def test_equal_clients_are_at_no_distance_and_an_empty_one_is_passed_over():
    found = heterogeneity({"a": [3, 3], "b": [6, 6], "empty": [0, 0]})
    assert found.mean_distance == 0
    assert found.entropy == {"a": 1.0, "b": 1.0, "empty": None}
    assert found.distance["empty"] is None
    assert heterogeneity({"alone": [3, 3]}).mean_distance is None
    assert heterogeneity({}).mean_distance is None


def test_no_torch_is_imported():
    code = "import sys, fedstill.evaluate.heterogeneity; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0
