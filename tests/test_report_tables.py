"""Tables of results as papers lay them out, recomputed from the runs' files: averages over networks, clients that are domains."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedstill.report.page import build
from fedstill.report.parts import Grid, grids
from fedstill.report.runs import read_run
from runs_fixture import Made, write_comparison, write_full_run

SEEDS = (0, 1, 2)
NETWORKS = ("convnet", "resnet18")
SERVERS = [{"name": "convnet", "depth": 3, "width": 32}, {"name": "resnet18"}]
KNOWN = {
    "published": {"source": "A paper"},
    "published.accuracy": {"convnet": 0.701, "resnet18": 0.621, "average": 0.661},
}


def tables(folders: Sequence[Path]) -> dict[str, Grid]:
    return {grid.key: grid for grid in grids(build([read_run(folder) for folder in folders]))}


def last(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1]))


def over(values: Sequence[float]) -> tuple[float, float]:
    return float(np.mean(values)), float(np.std(values, ddof=1))


def same(table: Grid, wanted: Sequence[Sequence[Any]]) -> None:
    """That the cells are what is wanted: words, numbers, (mean, spread), or None."""
    assert len(table.rows) == len(wanted)
    for row, line in zip(table.rows, wanted, strict=True):
        for name, cell, one in zip(table.head, row, line, strict=True):
            mean, spread = one if isinstance(one, tuple) else (one, None)
            assert cell.value == (pytest.approx(mean, rel=1e-9) if isinstance(mean, float) else mean), (line, name)
            assert cell.spread == (None if spread is None else pytest.approx(spread, rel=1e-6)), (line, name)


# --- averages over networks ---------------------------------------------------------------------------------------------


def two_networks(alphas: Sequence[float] = (0.5, 0.1)) -> dict[str, Made]:
    """FedAvg, run once with each network, and FedDGM, whose server trains both on one run."""
    made = {}
    for alpha in alphas:
        dealt: dict[str, Any] = {"partition": {"alpha": alpha}}
        for network in NETWORKS:
            published = KNOWN if alpha == 0.5 else {}
            settings = {**dealt, **({"model": {"name": network}} if network != "convnet" else {}), **published}
            made[f"fedavg-{network}-{alpha}"] = Made(method="fedavg", models=("global",), settings=settings)
        made[f"feddgm-{alpha}"] = Made(
            models=("surrogate", *NETWORKS), settings={**dealt, "algorithm": {"global_models": SERVERS}}
        )
    return made


def test_networks_are_averaged_first_of_each_seed(tmp_path: Path) -> None:
    folders = write_comparison(tmp_path, two_networks(), seeds=SEEDS)
    shown = tables(folders)
    assert shown["results"].head == (
        "Setting",
        "Method",
        "clients’ convnet",
        "convnet",
        "convnet, published",
        "resnet18",
        "resnet18, published",
        "average",
        "average, published",
    )

    def shares(name: str, model: str) -> list[float]:
        return [last(tmp_path / f"{name}-{seed}")["accuracy"][model] for seed in SEEDS]

    wanted, averages = [], {"FedAvg": ["FedAvg"], "FedDGM": ["FedDGM"]}
    for alpha in (0.5, 0.1):
        fedavg = [shares(f"fedavg-{network}-{alpha}", "global") for network in NETWORKS]
        feddgm = [shares(f"feddgm-{alpha}", network) for network in NETWORKS]
        own = {"FedAvg": fedavg[0], "FedDGM": shares(f"feddgm-{alpha}", "surrogate")}
        for name, its in (("FedAvg", fedavg), ("FedDGM", feddgm)):
            known = [0.701, 0.621, 0.661] if (name, alpha) == ("FedAvg", 0.5) else [None] * 3
            mean = over([float(np.mean(pair)) for pair in zip(*its, strict=True)])
            convnet, resnet18 = map(over, its)
            wanted.append(
                [f"alpha {alpha}", name, over(own[name]), convnet, known[0], resnet18, known[1], mean, known[2]]
            )
            averages[name] += [mean, known[2]] if alpha == 0.5 else [mean]  # type: ignore[list-item]
    same(shown["results"], wanted)
    assert shown["results-averages"].head == ("Method", "alpha 0.5", "alpha 0.5, published", "alpha 0.1")
    same(shown["results-averages"], list(averages.values()))
    note = shown["results"].note
    assert "Average: over convnet and resnet18, first of each seed, where all were run with the same seeds." in note
    assert "Clients’ convnet: what clients train; convnet: what the server trains on synthetic images." in note


def test_no_average_where_a_network_lacks_a_seed(tmp_path: Path) -> None:
    folders = write_comparison(tmp_path, two_networks((0.5,)), seeds=SEEDS)
    short = [folder for folder in folders if folder.name != "fedavg-resnet18-0.5-2"]
    (table,) = (grid for key, grid in tables(short).items() if key.startswith("results"))
    assert table.title == "Accuracy by method and network"
    average = table.head.index("average")
    assert [row[average].text == "–" for row in table.rows] == [True, False]
    assert table.rows[0][average + 1].value == 0.661  # what is published of it stands all the same


def test_without_an_average_there_is_no_table_of_averages(tmp_path: Path) -> None:
    made = {
        f"fedavg-{network}-{alpha}": Made(
            method="fedavg",
            models=("global",),
            settings={"partition": {"alpha": alpha}, "model": {"name": network, "label": network}},
        )
        for alpha, network in ((0.5, "convnet"), (0.1, "convnet"), (0.5, "resnet18"), (0.1, "vgg11"))
    }
    shown = tables(write_comparison(tmp_path, made, seeds=(0,)))
    assert shown["results"].head == ("Setting", "Method", "convnet", "resnet18", "vgg11")
    assert "results-averages" not in shown


def test_settings_are_columns_as_long_as_they_have_room(tmp_path: Path) -> None:
    def laid_out(settings: int) -> Grid:
        made = {
            f"{method}-{number}": Made(
                method=method, models=("global",), rounds=1, settings={"partition": {"alpha": number / 100}}
            )
            for number in range(1, settings + 1)
            for method in ("fedavg", "fedprox")
        }
        return tables(write_comparison(tmp_path / str(settings), made, seeds=(0,)))["results"]

    few, many = laid_out(12), laid_out(13)
    assert few.head == ("Method", *(f"alpha {number / 100}" for number in range(1, 13)))
    assert [row[0].text for row in few.rows] == ["FedAvg", "FedProx"]
    assert many.head == ("Setting", "Method", "convnet")
    assert len(many.rows) == 26


def test_one_network_of_several_methods_is_a_plain_table(tmp_path: Path) -> None:
    made = {name: Made(method=name, models=("global",)) for name in ("fedavg", "fedprox")}
    shown = tables(write_comparison(tmp_path, made, seeds=(0,)))
    assert (shown["results"].title, shown["results"].head) == ("Accuracy by method", ("Method", "convnet"))


# --- clients that are domains -------------------------------------------------------------------------------------------

DOMAINS = ("MNIST", "MNIST-M", "USPS")
OF_CLIENTS = {"published": {"source": "B paper"}, "published.clients": {"MNIST": 0.971, "average": 0.843}}


def of_domains() -> dict[str, Made]:
    return {
        "fedavg": Made(method="fedavg", models=("global",), domains=DOMAINS, settings=OF_CLIENTS),
        "feddgm": Made(domains=DOMAINS),
        "centralised": Made(method="centralised", models=("global",), domains=DOMAINS, tested=False),
    }


def by_client(folder: Path) -> Mapping[str, float]:
    return {each["client"]: each["test"]["accuracy"] for each in last(folder)["clients"]}


def test_domains_are_columns_with_their_unweighted_mean(tmp_path: Path) -> None:
    table = tables(write_comparison(tmp_path, of_domains(), seeds=SEEDS))["domains"]
    assert table.head == ("Method", "MNIST", "MNIST, published", "MNIST-M", "USPS", "mean", "mean, published")
    wanted = []
    for name, label in (("fedavg", "FedAvg"), ("feddgm", "FedDGM")):  # a ceiling has no clients
        seeds = [by_client(tmp_path / f"{name}-{seed}") for seed in SEEDS]
        mnist, other, usps = (over([shares[client] for shares in seeds]) for client in DOMAINS)
        mean = over([float(np.mean(list(shares.values()))) for shares in seeds])
        known = (0.971, 0.843) if name == "fedavg" else (None, None)
        wanted.append([label, mnist, known[0], other, usps, mean, known[1]])
    same(table, wanted)
    assert table.paper


def test_the_mean_over_domains_is_not_known_where_one_was_not_tested(tmp_path: Path) -> None:
    folders = write_comparison(tmp_path, of_domains(), seeds=SEEDS)
    metrics = tmp_path / "feddgm-1" / "metrics.jsonl"
    rows = [json.loads(line) for line in metrics.read_text().splitlines()]
    rows[-1]["clients"][2]["test"] = None
    metrics.write_text("".join(json.dumps(row) + "\n" for row in rows))
    row = next(row for row in tables(folders)["domains"].rows if row[0].text == "FedDGM")
    assert [cell.text == "–" for cell in (row[1], row[3], row[4], row[5])] == [False, False, True, True]


def test_domains_of_several_networks_stand_under_each(tmp_path: Path) -> None:
    made = {
        f"{method}-{network}": Made(
            method=method, models=("global",), domains=DOMAINS, settings={"model": {"name": network}}
        )
        for method in ("fedavg", "fedprox")
        for network in NETWORKS
    }
    table = tables(write_comparison(tmp_path, made, seeds=(0,)))["domains"]
    assert table.head == ("Setting", "Method", *DOMAINS, "mean")
    assert [(row[0].text, row[1].text) for row in table.rows] == [
        (network, method) for network in NETWORKS for method in ("FedAvg", "FedProx")
    ]
    for row, name in zip(table.rows, ("fedavg-convnet", "fedprox-convnet", "fedavg-resnet18"), strict=False):
        assert row[2].value == by_client(tmp_path / f"{name}-0")["MNIST"]


def test_of_many_domains_the_mean_alone_is_shown(tmp_path: Path) -> None:
    names = tuple(f"d{number:02}" for number in range(13))
    run = write_full_run(tmp_path / "a-0", Made(method="fedavg", models=("global",), domains=names))
    table = tables([run])["domains"]
    assert table.head == ("Method", "mean")
    same(table, [["FedAvg", float(np.mean(list(by_client(run).values())))]])
    assert "Of 13 clients, each is in clients.csv" in table.note


def test_clients_that_are_no_domains_have_no_such_table(tmp_path: Path) -> None:
    assert "domains" not in tables([write_full_run(tmp_path / "a-0", Made())])
