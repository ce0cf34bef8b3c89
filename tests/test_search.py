"""The search over settings: what is proposed next, which trial is given up, which is best."""

from __future__ import annotations

import itertools
import math
import random
import sys
import warnings

import pytest
import torch

from fedstill.errors import InputError, MissingExtra, RunError
from fedstill.search import STARTUP, Choice, Integers, Pruner, Range, Space, Trial, best, propose
from fedstill.seeds import Seed

pytest.importorskip("optuna")

SEED = Seed.root(0).at("search")
SPACE = Space(
    {
        "optimiser": Choice(("sgd", "adam", None, {"name": "sgd", "momentum": 0.9})),
        "lr": Range(1e-4, 1.0, log=True),
        "share": Range(0, 0.5),
        "epochs": Integers(1, 20),
    }
)


def score(params) -> float:
    """Best at lr = 0.01 with Adam."""
    return -abs(math.log10(params["lr"]) + 2) - (params["optimiser"] != "adam") - abs(params["epochs"] - 5) / 50


def tried(count: int, *, batch: int = 1) -> list[Trial]:
    """A search with trials of every kind."""
    done: list[Trial] = []
    while len(done) < count:
        for params in propose(SPACE, done, batch, SEED):
            value, number = score(params), len(done)
            steps = {0: value - 1, 1: value}
            match number % 7:
                case 3:
                    done.append(Trial(params, "failed"))
                case 5:
                    done.append(Trial(params, "pruned", steps={0: value - 1}))
                case _:
                    done.append(Trial(params, "finished", value, steps))
    return done


# --- spaces -------------------------------------------------------------------------------------------------------------


def test_parameters_are_a_vector_and_back():
    params = {"optimiser": {"name": "sgd", "momentum": 0.9}, "lr": 0.1234, "share": 0.5, "epochs": 20}
    vector = SPACE.encode(params)
    assert vector == [3.0, 0.1234, 0.5, 20.0]
    kept = torch.tensor(vector, dtype=torch.float64).tolist()
    assert SPACE.decode(kept) == params
    assert [type(value) for value in SPACE.decode(kept).values()] == [dict, float, float, int]


def test_true_is_not_one():
    part = Choice((True, 1, 1.0))
    assert [part.encode(value) for value in (True, 1, 1.0)] == [0.0, 1.0, 2.0]


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: Space({}), "a search needs something to vary"),
        (lambda: Choice(()), "a choice needs at least one value"),
        (lambda: Choice((1, 2, 1)), r"\[1, 2, 1\]: a value is there twice"),
        (lambda: Range(0.1, 0.01), r"0\.1\.\.0\.01: the range is the wrong way round; write 0\.01\.\.0\.1"),
        (lambda: Range(0.1, 0.1), r"0\.1\.\.0\.1: the range holds one value only"),
        (lambda: Range(0.0, 0.1, log=True), r"0\.0 has no logarithm; begin a logarithmic range above 0"),
        (lambda: Integers(-1, 5, log=True), "-1 has no logarithm"),
        (lambda: Range(0.0, math.inf), "the ends of a range are finite numbers"),
        (lambda: SPACE.encode({"lr": 0.1}), "parameters are of lr, not of optimiser, lr, share, epochs"),
        (lambda: SPACE.decode([0.0]), "1 numbers where 4 are due"),
        (lambda: SPACE.decode([9.0, 0.1, 0.1, 1.0]), r"optimiser: 9\.0 is no place among 4 values"),
        (lambda: SPACE.decode([0.0, 2.0, 0.1, 1.0]), r"lr: 2\.0 does not lie in 0\.0001\.\.1\.0"),
        (lambda: SPACE.decode([0.0, 0.1, 0.1, 1.5]), r"epochs: 1\.5 is no whole number"),
        (lambda: SPACE.decode([0.0, math.nan, 0.1, 1.0]), "lr: nan does not lie in"),
        (lambda: Choice(("a",)).encode("b"), r'"b" is none of \["a"\]'),
    ],
)
def test_mistakes_are_answered_in_a_sentence(make, sentence):
    with pytest.raises(InputError, match=sentence):
        make()


def test_the_size_of_a_space():
    assert SPACE.size is None
    assert Space({"a": Choice((1, 2, 3)), "b": Integers(0, 4)}).size == 15


# --- proposing ----------------------------------------------------------------------------------------------------------


def test_equal_inputs_give_equal_outputs_and_touch_nobody_elses_numbers():
    done = tried(STARTUP + 3)
    before, others = torch.get_rng_state(), random.getstate()
    first = propose(SPACE, done, 4, SEED)
    assert propose(SPACE, list(done), 4, SEED) == first
    assert propose(SPACE, done, 2, SEED) == first[:2]
    assert propose(SPACE, done, 4, Seed.root(1)) != first
    assert torch.equal(torch.get_rng_state(), before)
    assert random.getstate() == others


@pytest.mark.parametrize("batch", [1, 4])
def test_every_trial_lies_inside_and_is_another(batch):
    done = tried(20, batch=batch)
    vectors = {tuple(SPACE.encode(trial.params)) for trial in done}  # which looks whether they lie inside
    assert len(vectors) == len(done)
    assert all(len(f"{trial.params['share']:.10g}".replace("0.", "").lstrip("0")) <= 4 for trial in done)


def test_it_finds_more_than_chance():
    by_search = best(tried(40)).value
    chance = [
        max(score(params) for params in propose(SPACE, [], 40, Seed.root(seed))) for seed in range(3)
    ]  # with nothing done, all are drawn at random
    assert by_search > sum(chance) / len(chance)
    late = [trial.params["optimiser"] for trial in tried(40)[30:]]
    assert late.count("adam") >= 7


def test_those_of_a_batch_are_spread_by_the_liar():
    space = Space({"x": Range(0.0, 1.0)})
    done = [Trial({"x": x / 20}, "finished", -abs(x / 20 - 0.3)) for x in range(21)]
    found = [params["x"] for params in propose(space, done, 6, SEED)]
    assert all(abs(a - b) > 1e-3 for a, b in itertools.combinations(found, 2))


def test_what_failed_is_not_tried_the_like_of_again():
    space = Space({"lr": Range(0.0, 1.0)})
    values = [(number + 0.5) / 20 for number in range(20)]
    done = [Trial({"lr": x}, "failed") if x > 0.5 else Trial({"lr": x}, "finished", x) for x in values]
    found = [params["lr"] for params in propose(space, done, 5, SEED)]
    assert sum(lr <= 0.6 for lr in found) >= 4


def test_a_space_that_is_used_up_has_no_more():
    space = Space({"a": Choice(("x", "y", "z")), "b": Integers(0, 3)})
    done: list[Trial] = []
    for count in (5, 5, 5, 5):
        done += [Trial(params, "finished", float(params["b"])) for params in propose(space, done, count, SEED)]
    assert len(done) == len({tuple(space.encode(trial.params)) for trial in done}) == space.size == 12


def test_numbers_have_as_many_digits_as_tell_them_apart():
    assert Range(1e-4, 1.0, log=True).near(0.0123456789) == 0.01235
    assert Range(1000.0, 1000.5).near(1000.1234567) == 1000.123
    assert Range(0.0, 0.12344).near(0.123439) == 0.1234
    assert Range(0.0, 0.12339).near(0.123389) == 0.12339


def test_nothing_is_logged(capfd):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        propose(SPACE, tried(STARTUP + 1), 2, SEED)
    assert capfd.readouterr() == ("", "")


def test_without_optuna_it_is_said_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(
        MissingExtra, match=r"needs the package 'optuna': install it with  pip install 'fedstill\[tune\]'"
    ):
        propose(SPACE, [], 1, SEED)


# --- the best, and what is given up ---------------------------------------------------------------------------------------


def test_the_best_is_finished_and_the_first_of_equals():
    params = propose(SPACE, [], 5, SEED)
    done = [
        Trial(params[0], "pruned", steps={0: 9.0}),
        Trial(params[1], "failed"),
        Trial(params[2], "finished", 0.5),
        Trial(params[3], "finished", 0.7),
        Trial(params[4], "finished", 0.7),
    ]
    assert best(done) is done[3]
    with pytest.raises(RunError, match="none of 2 trials finished: there is no best"):
        best(done[:2])
    with pytest.raises(RunError, match="there is no trial yet"):
        best([])


def test_a_finished_trial_has_a_finite_value():
    for value in (None, math.nan, math.inf):
        with pytest.raises(ValueError, match="such a one has failed"):
            Trial({}, "finished", value)


def finished(curve, count=5) -> list[Trial]:
    """``count`` trials with these values, shifted a little so that the third has just these."""
    shifts = [(number - count // 2) / 100 for number in range(count)]
    return [
        Trial({}, "finished", max(curve), {step: value + shift for step, value in enumerate(curve)}) for shift in shifts
    ]


def test_the_median_prunes():
    done = finished([0.2, 0.4, 0.6])
    pruner = Pruner()
    assert pruner.cut({0: 0.21, 1: 0.41, 2: 0.61}, done) is None
    assert pruner.cut({0: 0.19}, done) == 0
    assert pruner.cut({0: 0.3, 1: 0.3, 2: 0.9}, done) == 1
    assert pruner.cut({0: 0.41, 1: 0.3}, done) is None  # its best so far counts
    assert pruner.cut({}, done) is None
    assert Pruner(warmup=1).cut({0: 0.1, 1: 0.5}, done) is None
    assert Pruner(warmup=1).cut({0: 0.1, 1: 0.2}, done) == 1


def test_few_trials_failed_ones_and_pruned_ones_prune_nobody():
    assert Pruner().cut({0: 0.0}, finished([0.5], 4)) is None
    others = [Trial({}, "failed", steps={0: 0.9})] * 9 + [Trial({}, "pruned", steps={0: 0.9})] * 9
    assert Pruner().cut({0: 0.4}, [*finished([0.3]), *others]) is None
    assert Pruner(startup=1).cut({0: 0.1}, finished([0.3], 1)) == 0


def test_what_is_to_be_tried_first_is():
    space = Space({"optimiser": Choice(("sgd", "adam")), "lr": Range(1e-4, 1.0, log=True)})
    first = {"optimiser": "adam", "lr": 0.003}
    found = propose(space, [], 3, SEED, first=first)
    assert found[0] == first
    assert len({tuple(each.items()) for each in found}) == 3
    assert propose(space, [Trial(first, "finished", 0.5)], 1, SEED, first=first) != [first]
    assert propose(space, [], 2, SEED, first={"optimiser": "adam", "lr": 7.0}) == propose(space, [], 2, SEED)
