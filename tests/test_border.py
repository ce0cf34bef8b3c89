"""What no reply may be, whatever the method."""

import math

import pytest
import torch

from fedstill import border
from fedstill.border import FARTHEST
from fedstill.bundle import Bundle


def refusal(reply, sent, *, farthest):
    return border.refusal(reply, lambda: sent, farthest=farthest)


def network(*values):
    return {f"w{place}": torch.tensor(value) for place, value in enumerate(values)}


SENT = Bundle().put(model=network([3.0, 0.0], [4.0]))  # of norm 5


def test_the_distance_is_from_what_was_sent():
    far = Bundle().put(model=network([3.0, 30.0], [44.0]))  # 50 away
    assert refusal(far, SENT, farthest=10.0) is None
    assert refusal(far, SENT, farthest=9.9) == (
        "its reply lies 50 from what it was sent, whose norm is 5: that is more than farthest = 9.9 times as far"
    )
    assert refusal(SENT, SENT, farthest=1e-9) is None


def test_of_a_tiny_network_the_measure_is_1():
    sent = Bundle().put(model=network([1e-3]))
    assert refusal(Bundle().put(model=network([0.9])), sent, farthest=1.0) is None
    assert refusal(Bundle().put(model=network([1.1])), sent, farthest=1.0) is not None


@pytest.mark.parametrize(
    "name", ["control", "gradient:own", "prototypes", "model:other", "model", "optimiser:velocity"]
)
def test_all_that_is_in_a_networks_units_is_measured(name):
    reply = SENT.put(**{name: {"other": torch.full((2,), 1e30)}})
    assert "more than farthest = 1e+06 times as far" in refusal(reply, SENT, farthest=FARTHEST)


@pytest.mark.parametrize("name", ["statistics", "synthetic", "latents"])
def test_what_is_in_units_of_its_own_is_left_to_the_method(name):
    assert refusal(SENT.put(**{name: {"other": torch.full((2,), 1e30)}}), SENT, farthest=FARTHEST) is None


def test_groups_count_together():
    reply = Bundle().put(model=network([3.0, 30.0], [4.0]), control=network([40.0]))  # 30 and 40: 50
    assert refusal(reply, SENT, farthest=9.9) is not None
    assert refusal(reply, SENT, farthest=10.1) is None


def test_opposite_ends_of_float32_are_far_apart():
    sent, reply = (Bundle().put(model=network([sign * 3e38])) for sign in (1, -1))
    assert refusal(reply, sent, farthest=2.1) is None
    assert "lies 6e+38" in refusal(reply, sent, farthest=1.9)


def test_other_shapes_and_types_are_measured_as_they_are():
    for tensor in (torch.ones(3), torch.ones(2, dtype=torch.float64), torch.ones(2).to(torch.float8_e4m3fn)):
        assert refusal(Bundle().put(model={"w0": tensor}), SENT, farthest=1.0) is None
        assert refusal(Bundle().put(model={"w0": tensor}), SENT, farthest=0.1) is not None
    counters = Bundle().put(model={"w0": torch.full((2,), 2**62), "w1": torch.ones((), dtype=torch.bool)})
    assert refusal(counters, SENT, farthest=1.0) is None


@pytest.mark.parametrize(
    "reply",
    [
        Bundle().put({"loss": math.nan}),
        Bundle().put({"loss": -math.inf}),
        Bundle(numbers={"loss": "low"}),
        Bundle(numbers={"loss": None}),
        Bundle(numbers={"loss": 1j}),
        Bundle(numbers={"loss": 10**400}),
        Bundle().put(statistics={"any": torch.tensor([1.0, math.nan])}),
        Bundle().put(statistics={"any": torch.tensor([complex(0, math.inf)])}),
        Bundle().put(statistics={"any": torch.tensor([math.nan]).to(torch.float8_e4m3fn)}),
        Bundle().put(statistics={"any": torch.tensor([math.inf], dtype=torch.bfloat16)}),
    ],
)
def test_what_is_no_number(reply):
    assert refusal(reply, SENT, farthest=FARTHEST) == "its reply holds numbers that are not finite"


def test_nothing_and_no_entry_are_finite_and_near():
    assert refusal(Bundle(), Bundle(), farthest=FARTHEST) is None
    assert refusal(Bundle().put(model={"w0": torch.empty(0)}), SENT, farthest=FARTHEST) is None


def test_what_was_sent_is_not_made_anew_for_a_reply_of_ordinary_size():
    def sent():
        pytest.fail("it was asked for")

    assert border.refusal(SENT, sent, farthest=FARTHEST) is None
    assert border.refusal(SENT, lambda: SENT, farthest=1.0) is None  # here it is


def test_a_norm_that_its_type_cannot_hold_is_found_all_the_same():
    sent = Bundle().put(model=network([1.0]))
    for reply in (torch.full((2,), 6e4, dtype=torch.float16), torch.full((2,), 3e38)):
        assert refusal(Bundle().put(model={"w0": reply}), sent, farthest=1e39) is None
        assert refusal(Bundle().put(model={"w0": reply}), sent, farthest=8e4) is not None


def test_only_networks_are_measured_from_what_was_sent():
    """A control variate that is sent back is a change of the one that came: its own size counts."""
    sent = SENT.put(control=network([1e9]))
    assert refusal(SENT.put(control=network([0.0])), sent, farthest=1e-9) is None
    assert refusal(sent, sent, farthest=10.0) is not None
