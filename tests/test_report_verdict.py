from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fedstill.report.groups import Point, gather
from fedstill.report.runs import read_run
from fedstill.report.verdict import BETTER, LEVEL, _compared, verdict
from rundirs import change, write_run

GAP = "\N{NARROW NO-BREAK SPACE}"


def sentence(*runs: Path) -> str:
    groups, _ = gather([read_run(run) for run in runs])
    return verdict(groups).replace(GAP, " ")


def test_verdict_names_the_leader_and_the_ceiling(comparison: list[Path]) -> None:
    said = sentence(*comparison)
    assert said.startswith(
        "After 3 rounds, on the network that clients train (convnet), FedDGM leads with 84.0 ± 1.0 % of the test images "
        "labelled correctly, 20.0 points above FedAvg; "
    )
    assert "the ceiling, reaches 97.0 ± 1.0 %. Other models: resnet18 reaches 70.0 % with FedDGM. " in said
    assert "is level on resnet18: 69.0 ± 1.0 % against 70.0 ± 1.0 %" in said
    assert said.count(". ") == 2
    assert said.endswith(".")


def test_verdict_gives_nobody_the_best_of_several_draws(tmp_path: Path) -> None:
    runs = [
        write_run(tmp_path / "a", curves={"surrogate": [0.6], "resnet18": [0.9], "vgg11": [0.8]}),
        write_run(tmp_path / "b", method="fedavg", curves={"global": [0.7]}),
    ]
    said = sentence(*runs)
    assert "FedAvg leads with 70.0 %" in said
    assert "10.0 points above FedDGM, though one seed tells no spread." in said
    assert said.endswith("Other models: resnet18 reaches 90.0 % with FedDGM; vgg11 reaches 80.0 % with FedDGM.")


def test_verdict_ranks_one_network_alone(tmp_path: Path) -> None:
    runs = [
        write_run(tmp_path / "a", curves={"surrogate": [0.6], "resnet18": [0.7]}),
        write_run(tmp_path / "b", method="prioronly", curves={"surrogate": [0.5]}),
        change(
            write_run(tmp_path / "c", method="fedavg", curves={"global": [0.9]}), 'name = "convnet"', 'name = "vit"'
        ),
    ]
    said = sentence(*runs)
    assert "(convnet), FedDGM leads with 60.0 %" in said
    assert "Other models: resnet18 reaches 70.0 % with FedDGM; vit reaches 90.0 % with FedAvg." in said


@pytest.mark.parametrize(
    ("prior", "said"),
    [
        (0.50, "does less well on surrogate: 50.0 % against 80.0 %"),
        (0.785, "does almost as well on surrogate: 78.5 % against 80.0 %"),
        (0.80, "is level on surrogate: 80.0 % against 80.0 %"),
        (0.81, "does better on surrogate: 81.0 % against 80.0 %"),
    ],
)
def test_verdict_is_honest_about_the_prior(tmp_path: Path, prior: float, said: str) -> None:
    feddgm = write_run(tmp_path / "a", curves={"surrogate": [0.7, 0.8]})
    control = write_run(tmp_path / "b", method="prioronly", curves={"surrogate": [prior, prior]})
    assert said in sentence(feddgm, control)


def test_verdict_says_where_the_generator_alone_does_better(tmp_path: Path) -> None:
    runs = [
        write_run(tmp_path / "a", curves={"surrogate": [0.8], "resnet18": [0.30], "vgg11": [0.6]}),
        write_run(tmp_path / "b", method="prioronly", curves={"surrogate": [0.79], "resnet18": [0.55], "vgg11": [0.2]}),
    ]
    assert sentence(*runs).endswith(
        "Beside FedDGM, the generator alone (PriorOnly) does better on resnet18: 55.0 % against 30.0 %; "
        "does almost as well on surrogate: 79.0 % against 80.0 %; does less well on vgg11: 20.0 % against 60.0 %."
    )


@example(ours=57, theirs=58, spread=1)  # 0.58 − 0.57 is a little more than 0.01 in floating point
@given(ours=st.integers(0, 100), theirs=st.integers(0, 100), spread=st.integers(0, 10))
@settings(max_examples=200)
def test_almost_is_never_said_of_more(ours: int, theirs: int, spread: int) -> None:
    word = _compared(Point(theirs / 100, spread / 100, 3), Point(ours / 100, 0.0, 3))
    assert (word == BETTER) == (theirs - ours > spread)
    assert theirs <= ours or word in (BETTER, LEVEL)


def test_verdict_sets_every_feddgm_against_the_prior(tmp_path: Path) -> None:
    def variant(name: str, accuracy: float, alter: str) -> Path:
        return change(write_run(tmp_path / name, curves={"surrogate": [accuracy]}), 'name = "feddgm"', alter)

    runs = [
        variant("soft", 0.8, 'name = "feddgm"\nlabels = "soft"\nprior_samples = 50'),
        variant("hard", 0.4, 'name = "feddgm"\nlabels = "hard"\nprior_samples = 0'),
        write_run(tmp_path / "p", method="prioronly", curves={"surrogate": [0.6]}),
    ]
    said = sentence(*runs)
    assert "beside FedDGM (hard), it does better on surrogate: 60.0 % against 40.0 %" in said
    assert "Beside FedDGM (soft), the generator alone (PriorOnly) does less well on surrogate" in said
    assert said.count(". ") == 1


def test_verdict_takes_the_control_of_the_same_generator(tmp_path: Path) -> None:
    def variant(name: str, method: str, accuracy: float, generator: str) -> Path:
        run = write_run(tmp_path / name, method=method, curves={"surrogate": [accuracy]})
        return change(run, f'name = "{method}"', f'name = "{method}"\ngenerator = "{generator}"')

    runs = [
        variant("a", "feddgm", 0.7, "pixels"),
        variant("b", "prioronly", 0.6, "digits"),
        variant("c", "prioronly", 0.1, "pixels"),
    ]
    assert "(PriorOnly (generator pixels)) does less well on surrogate: 10.0 % against 70.0 %" in sentence(*runs)


def test_verdict_sees_no_lead_within_the_spread(tmp_path: Path) -> None:
    runs = [
        write_run(tmp_path / f"{method}-{seed}", method=method, seed=seed, curves={"m": [base + shift]})
        for method, base in (("feddgm", 0.80), ("fedavg", 0.77))
        for seed, shift in enumerate((-0.04, 0.0, 0.04))
    ]
    assert "are level at" in sentence(*runs)


def runs_of(place: Path, method: str, base: float, seeds: int, *, label: str = "") -> list[Path]:
    return [
        write_run(place / f"{label or method}-{seed}", method=method, seed=seed, curves={"m": [base + shift]})
        for seed, shift in enumerate((-0.01, 0.0, 0.01)[:seeds])
    ]


@pytest.mark.parametrize(("first", "second", "unsure"), [(3, 3, False), (1, 1, True), (3, 1, True), (1, 3, True)])
def test_verdict_says_that_one_seed_tells_no_spread(tmp_path: Path, first: int, second: int, unsure: bool) -> None:
    said = sentence(*runs_of(tmp_path, "feddgm", 0.9, first), *runs_of(tmp_path, "fedavg", 0.5, second))
    assert "FedDGM leads with" in said
    assert said.endswith(", though one seed tells no spread.") == unsure


def test_verdict_names_all_that_are_level_with_the_first_or_counts_them(tmp_path: Path) -> None:
    bases = {"feddgm": 0.80, "fedavg": 0.799, "fedprox": 0.798, "feddm": 0.70}
    runs = [run for method, base in bases.items() for run in runs_of(tmp_path, method, base, 3)]
    assert sentence(*runs).endswith(
        "FedDGM and FedAvg are level at 80.0 ± 1.0 % and 79.9 ± 1.0 % of the test images labelled correctly, "
        "and so is FedProx with FedDGM."
    )
    more = {"fednova": 0.797, "scaffold": 0.796, "fedavgm": 0.795, "fedadam": 0.794, "moon": 0.793}
    runs += [run for method, base in more.items() for run in runs_of(tmp_path, method, base, 3)]
    assert sentence(*runs).endswith(
        "labelled correctly, and so are FedProx, FedNova, SCAFFOLD, FedAvgM and 2 others with FedDGM."
    )


def test_verdict_says_when_fedavg_leads(tmp_path: Path) -> None:
    runs = [
        write_run(tmp_path / "a", curves={"surrogate": [0.6]}),
        write_run(tmp_path / "b", method="fedavg", curves={"global": [0.7]}),
    ]
    assert "After 1 round, on the network that clients train (convnet), FedAvg leads with 70.0 %" in sentence(*runs)


def test_verdict_compares_the_same_round(tmp_path: Path) -> None:
    runs = [
        write_run(tmp_path / "a", curves={"surrogate": [0.6, 0.65]}),
        write_run(tmp_path / "b", method="fedavg", curves={"global": [0.5, 0.55, 0.9]}),
    ]
    said = sentence(*runs)
    assert said.startswith("After 2 rounds, ")
    assert "FedDGM leads with 65.0 %" in said


def test_verdict_keeps_to_one_partition_and_says_so(tmp_path: Path) -> None:
    def run(name: str, method: str, accuracy: float, alpha: float) -> Path:
        made = write_run(tmp_path / name, method=method, curves={"m": [accuracy]})
        return change(made, "alpha = 0.5", f"alpha = {alpha}")

    runs = [
        run("a", "feddgm", 0.9, 0.9),
        run("b", "feddgm", 0.6, 0.1),
        run("c", "fedavg", 0.5, 0.1),
        run("d", "fedavg", 0.8, 0.9),
    ]
    said = sentence(runs[0], *runs)
    assert said.startswith("After 1 round, at alpha 0.9, on the network that clients train (convnet), FedDGM")
    assert "10.0 points above FedAvg" in said
    assert said.endswith("What was run on other data or partitions stands in the table.")


def test_verdict_does_not_list_a_table(tmp_path: Path) -> None:
    curves = {"surrogate": [0.6], **{f"net{number}": [0.5] for number in range(9)}}
    said = sentence(write_run(tmp_path / "a", curves=curves))
    assert "Other models (net0, net1, " in said
    assert said.endswith("stand in the table.")
