"""Noise that a site adds to its own answers."""

from __future__ import annotations

import json
import math
import time
from multiprocessing import get_context
from pathlib import Path

import pytest
import torch
from scipy.integrate import quad
from scipy.stats import norm

from fedstill.bundle import Bundle
from fedstill.deployment.privacy import PrivacySettings, privatised, spend
from fedstill.errors import InputError
from fedstill.updates import epsilon

SETTINGS = PrivacySettings(clip=2.0, noise=0.5)


def bundles(length: float, width: int = 40_000) -> tuple[Bundle, Bundle]:
    sent = {"weight": torch.ones(width), "bias": torch.zeros(2, 3)}
    change = torch.randn(width, generator=torch.Generator().manual_seed(0))
    reply = {"weight": sent["weight"] + change / change.norm() * length, "bias": sent["bias"]}
    return Bundle({"model": sent}), Bundle({"model": reply}, {"examples": 7.0, "loss": 0.1})


@pytest.mark.parametrize(("length", "left"), [(10.0, 2.0), (1.0, 1.0)])
def test_a_change_is_cut_and_noised(length: float, left: float) -> None:
    sent, reply = bundles(length)
    made = privatised(sent, reply, SETTINGS)
    change = (made.groups["model"]["weight"] - sent.groups["model"]["weight"]).double()
    direction = (reply.groups["model"]["weight"] - sent.groups["model"]["weight"]).double()
    direction = direction / direction.norm()
    # along the change: its length, with the noise of one coordinate; beside it: noise of the stated size
    assert float(change @ direction) == pytest.approx(left, abs=5 * 1.0)
    assert float(change.std()) == pytest.approx(1.0, rel=0.03)
    assert float(made.groups["model"]["bias"].abs().min()) > 0
    assert made.groups["model"]["weight"].dtype == torch.float32
    assert made.numbers == {"examples": 7.0}


def test_without_the_noise_the_cut_is_exact() -> None:
    sent, reply = bundles(10.0)
    made = privatised(sent, reply, PrivacySettings(clip=2.0, noise=1e-9))
    change = made.groups["model"]["weight"] - sent.groups["model"]["weight"]
    assert float(change.double().norm()) == pytest.approx(2.0, rel=1e-4)


def test_noise_is_never_the_same() -> None:
    torch.manual_seed(0)
    sent, reply = bundles(1.0)
    one = privatised(sent, reply, SETTINGS)
    torch.manual_seed(0)
    assert not torch.equal(one.groups["model"]["bias"], privatised(sent, reply, SETTINGS).groups["model"]["bias"])


@pytest.mark.parametrize(
    ("reply", "said"),
    [
        (Bundle({"model": {"weight": torch.ones(2)}, "control": {}}), "the answer holds 'control'"),
        (Bundle({"model": {"weight": torch.ones(3)}}), "no such"),
        (Bundle({}, {"examples": 1.0}), "no such"),
    ],
)
def test_what_it_does_not_cover_is_refused(reply: Bundle, said: str) -> None:
    with pytest.raises(InputError, match=said):
        privatised(Bundle({"model": {"weight": torch.ones(2)}}), reply, SETTINGS)


@pytest.mark.parametrize("value", [math.inf, math.nan])
def test_a_change_that_is_not_finite_counts_as_none(value: float) -> None:
    sent = Bundle({"model": {"weight": torch.zeros(20_000)}})
    after = torch.zeros(20_000)
    after[7] = value
    made = privatised(sent, Bundle({"model": {"weight": after}}, {"examples": 7}), SETTINGS)
    assert float(made.groups["model"]["weight"].std()) == pytest.approx(1.0, rel=0.03)
    assert made.numbers == {"examples": 7}


@pytest.mark.parametrize("name", ["norm.running_var", "norm.num_batches_tracked"])
def test_batch_statistics_are_refused(name: str) -> None:
    tensor = torch.tensor(3) if name.endswith("tracked") else torch.ones(2)
    sent = Bundle({"model": {name: tensor}})
    with pytest.raises(InputError, match="use a network without BatchNorm"):
        privatised(sent, sent, SETTINGS)


@pytest.mark.parametrize("rounds", [1, 10, 100])
@pytest.mark.parametrize("noise", [0.3, 1.0, 4.0, 30.0])
def test_epsilon_is_that_of_the_gaussian_mechanism(rounds: int, noise: float) -> None:
    mu = 2 * math.sqrt(rounds) / noise
    found = epsilon(rounds, noise, 1e-5)
    # what it stands for: of two normal distributions mu apart, the mass where one is more than e^epsilon times the other
    edge = found / mu + mu / 2
    apart = quad(lambda x: norm.pdf(x - mu) - math.exp(found + norm.logpdf(x)), edge, edge + 12, epsabs=0, epsrel=1e-9)[
        0
    ]
    assert apart == pytest.approx(1e-5, rel=1e-5)
    assert epsilon(rounds + 1, noise, 1e-5) > found


def _spend(path: Path, times: int, here: Path, there: Path) -> None:
    here.touch()
    while not there.exists():  # both at once
        time.sleep(0.001)
    for _ in range(times):
        spend(path, 1000)


@pytest.mark.slow
def test_answers_of_two_processes_are_all_counted(tmp_path: Path) -> None:
    path = tmp_path / "kept" / "privacy.json"
    context = get_context("spawn")
    one, two = tmp_path / "one", tmp_path / "two"
    others = [context.Process(target=_spend, args=(path, 40, *each)) for each in ((one, two), (two, one))]
    for each in others:
        each.start()
    for each in others:
        each.join(180)
        assert each.exitcode == 0
    assert json.loads(path.read_text()) == {"answers": 80}
    with pytest.raises(InputError, match=r"80 noised answers have left, and privacy\.answers = 80: no other does"):
        spend(path, 80)


def test_noise_enough_for_nothing_to_be_told_apart() -> None:
    assert epsilon(1, 1e9, 1e-5) == 0.0
