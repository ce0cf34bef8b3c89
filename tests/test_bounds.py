"""Whether an attack refutes a guarantee: the bound, its limits, and what they cover."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedstill.attacks.claims import claim_of
from fedstill.audit.bounds import Claim, against, shown
from fedstill.audit.roc import dp_bound


def scores(tpr, fpr, count=2000):
    """Of members and others, so that a threshold at 0.5 has these rates."""
    members, others = (np.arange(count) < round(rate * count) for rate in (tpr, fpr))
    return members.astype(float), others.astype(float)


@given(fpr=st.floats(0.001, 0.5), epsilon=st.floats(0, 8), delta=st.floats(0, 0.01))
def test_what_lies_on_the_bound_shows_just_that(fpr, epsilon, delta):
    tpr = dp_bound(fpr, epsilon, delta)
    if tpr < 1:
        assert shown(fpr, tpr, delta) == pytest.approx(epsilon, abs=1e-6)
    assert shown(fpr, fpr, delta) == 0


def test_an_image_in_the_place_of_another_is_two_changes():
    assert Claim(1.0, 1e-3).exchanged == (2.0, pytest.approx((1 + math.e) * 1e-3))
    assert Claim(1000.0, 0.1).exchanged == (2000.0, 1.0)


def test_a_guarantee_is_refuted_by_what_exceeds_it_twice_beyond_doubt():
    claim = Claim(0.5, 1e-5)
    allowed = dp_bound(0.01, 1.0, claim.exchanged[1])
    assert not against(*scores(allowed, 0.01), claim, looks=2)["exceeds"]  # as much as is allowed
    found = against(*scores(0.3, 0.01), claim, looks=2)
    assert found["exceeds"]
    assert found["rates"]["0.01"]["tpr"] == 0.3
    assert found["rates"]["0.01"]["allowed_exchanged"] == pytest.approx(allowed)
    assert found["rates"]["0.01"]["allowed"] == pytest.approx(dp_bound(0.01, 0.5, 1e-5))
    assert found["shown"] == max(rate["shown"] for rate in found["rates"].values())
    # the same of few images, or seen by many looks, shows less
    few = against(*scores(0.3, 0.01, 200), claim, looks=2)["shown"]
    many = against(*scores(0.3, 0.01), claim, looks=100)["shown"]
    assert found["shown"] > max(few, many)
    assert not against(*scores(0.3, 0.01), Claim(8.0, 1e-5), looks=2)["exceeds"]


def test_the_other_end_of_the_curve_tells_too():
    """All others score low but for those that no member does: nine in ten others are cleared surely."""
    members, others = np.ones(2000), (np.arange(2000) < 200).astype(float)
    assert against(members - 0.5, others - 1 + 1e-9 * np.arange(2000), Claim(0.1, 1e-5), looks=2)["exceeds"]


def test_too_few_images_try_nothing():
    found = against(np.zeros(5), np.zeros(5), Claim(1.0, 1e-5), looks=2)
    assert (found["shown"], found["exceeds"]) == (None, None)
    assert "needs 100 non-members, and there are 5" in found["rates"]["0.01"]["missing"]
    assert "shown" in against(np.zeros(50), np.zeros(50), Claim(1.0, 1e-5), looks=2)["rates"]["0.1"]


@pytest.mark.slow
def test_scores_that_say_nothing_rarely_refute_anything():
    draw = np.random.default_rng(0)
    false = [
        against(draw.normal(size=200), draw.normal(size=200), Claim(1e-9, 0.0), looks=2)["exceeds"] for _ in range(400)
    ]
    assert np.mean(false) < 0.05


def test_what_all_clients_made_is_covered_where_all_are():
    claims = {"a": Claim(1.0, 1e-5), "b": Claim(2.0, 1e-6), "c": None}
    assert claim_of(claims, "a") == Claim(1.0, 1e-5)
    assert claim_of(claims, "c") is None
    assert claim_of(claims, "d") is None
    assert claim_of(claims, None) is None
    del claims["c"]
    assert claim_of(claims, None) == Claim(2.0, 1e-5)
    assert claim_of({}, None) is None
