from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedstill.evaluate.convergence import SHARES, Reached, reached, targets

SENT = {1: 10.0, 2: 20.0, 3: 30.0}
SECONDS = {1: 1.5, 2: 3.0}


@pytest.mark.parametrize(
    ("target", "found"),
    [
        (0.2, Reached(1, 10.0, 1.5)),
        (0.5, Reached(2, 20.0, 3.0)),
        (0.55, Reached(4, None, None)),
        (0.9, None),
    ],
)
def test_the_first_round_that_reaches_it(target: float, found: Reached | None) -> None:
    # round 3 loses again what round 2 had; its seconds are not known
    accuracy = {4: 0.6, 1: 0.2, 2: 0.5, 3: 0.4}
    assert reached(accuracy, target, sent=SENT, seconds=SECONDS) == found


def test_a_run_without_a_score_reaches_nothing() -> None:
    assert reached({}, 0.0, sent=SENT, seconds=SECONDS) is None


@given(st.dictionaries(st.integers(1, 9), st.floats(0, 1)), st.floats(0, 1))
def test_it_is_reached_there_and_not_before(accuracy: dict[int, float], target: float) -> None:
    found = reached(accuracy, target, sent={}, seconds={})
    before = [value for number, value in accuracy.items() if found is None or number < found.round]
    assert all(value < target for value in before)
    assert found is None or accuracy[found.round] >= target


def test_targets_are_shares_of_the_reference() -> None:
    assert targets(0.8) == tuple(pytest.approx(0.8 * share) for share in SHARES)
    assert targets(0.5, (1.0,)) == (0.5,)
