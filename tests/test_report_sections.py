"""What each section says of particular runs. That its numbers are right is for test_report_numbers.py."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedstill.generators.files import read_card, save_prior
from fedstill.generators.style import StyleGenerator, StyleOptions
from fedstill.report.page import build
from fedstill.report.pareto import front
from fedstill.report.parts import (
    Album,
    Bars,
    Block,
    Drawn,
    Folded,
    Grid,
    Heat,
    Legend,
    Lines,
    Page,
    Scatter,
    Section,
    charts,
    grids,
    walk,
)
from fedstill.report.runs import read_run
from fedstill.seeds import Seed
from rundirs import change, edit, write_run, write_synthetic
from runs_fixture import Made, spoken, write_comparison, write_full_run


def page(*runs: Path) -> Page:
    return build([read_run(run) for run in runs])


def grid(made: Page, key: str) -> Grid:
    (found,) = (table for table in grids(made) if table.key == key)
    return found


def chart(made: Page, key: str) -> Drawn:
    (found,) = (each for each in charts(made) if each.chart.key == key)
    return found


def section(made: Page, key: str) -> Section:
    (found,) = (each for each in made.sections if each.key == key)
    return found


def open_grids(blocks: Sequence[Block]) -> list[str]:
    return [block.key for block in blocks if isinstance(block, Grid)]


def tones(made: Page, key: str, tone: str) -> list[tuple[str, str]]:
    table = grid(made, key)
    return [
        (row[0].text, name)
        for row in table.rows
        for name, cell in zip(table.head, row, strict=True)
        if cell.tone == tone
    ]


# --- the page ------------------------------------------------------------------------------------------------------------


def test_same_files_same_page(tmp_path: Path) -> None:
    runs = write_comparison(tmp_path, {"feddgm": Made(distils=True, evaluated=True), "fedavg": Made(method="fedavg")})
    assert page(*runs) == page(*runs)


def test_keys_are_unique_and_name_files(tmp_path: Path) -> None:
    made = {
        "feddgm": Made(distils=True, gradients=True, evaluated=True),
        "feddgm0": Made(distils=True, settings={"algorithm": {"ipc": 1, "odd_key": "a/b"}}),
        "feddgm1": Made(distils=True, settings={"algorithm": {"ipc": 1, "odd_key": "c"}}),
        "centralised": Made(method="centralised", models=("global",)),
    }
    built = page(*write_comparison(tmp_path, made, seeds=(0, 1)))
    for keys in ([table.key for table in grids(built)], [each.chart.key for each in charts(built)]):
        assert len(keys) == len(set(keys))
        assert all(key.replace("-", "").isalnum() and key.isascii() for key in keys), keys
    ids = [each.chart.key for each in charts(built)] + [each.key for each in built.sections]
    ids += [block.key for block in walk(built) if isinstance(block, Album)]
    assert len(ids) == len(set(ids))
    for table in grids(built):
        assert {len(row) for row in table.rows} <= {len(table.head)}, table.key


def test_a_long_title_names_methods_alone(tmp_path: Path) -> None:
    made = {f"feddgm{ipc}": Made(settings={"algorithm": {"ipc": ipc}}) for ipc in range(6)}
    runs = write_comparison(tmp_path, {**made, "fedavg": Made(method="fedavg")}, seeds=(0,))
    assert page(*runs).title == "FedDGM, FedAvg"


def test_one_seed_is_said_and_its_interval_is_of_images(tmp_path: Path) -> None:
    made = page(write_full_run(tmp_path / "a-0", Made()))
    assert made.footing == "One seed: how much of this is luck is not known."
    assert grid(made, "numbers").note.endswith("Here: one seed, 200 test images.")
    more = [write_full_run(tmp_path / f"b-{seed}", Made(method="fedavg", rounds=2), seed=seed) for seed in (0, 1)]
    both = grid(page(tmp_path / "a-0", *more), "numbers")
    assert both.title == "After the last round"
    assert [[cell.text for cell in row[2:4]] for row in both.rows] == [
        *[["one seed, 200 test images", "3"]] * 2,
        *[["mean of 2 seeds", "2"]] * 2,
    ]


def test_other_data_are_said_not_to_compare(tmp_path: Path) -> None:
    first = write_run(tmp_path / "a")
    second = write_run(tmp_path / "b", method="fedavg", curves={"global": [0.5]})
    change(second, "alpha = 0.5", "alpha = 0.1")
    assert any("not comparable" in note for note in page(first, second).notes)


# --- what was run --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kept", [True, False])
def test_page_says_what_the_prior_was_trained_on(tmp_path: Path, kept: bool) -> None:
    card = read_card("digits")
    file = tmp_path / "mine.safetensors"
    if kept:
        options = StyleOptions(channels=1, size=16, classes=2, width=4, z_width=2, w_width=2)
        own = {"trained_on": "photographs of <b>clouds</b>", "data_sha256": "0123456789abcdef"}
        with Seed.root(0).scope():
            save_prior(file, StyleGenerator(options), own)
    runs = [write_run(tmp_path / "a", method="fedavg", curves={"global": [0.5]})]
    for name in ("digits", str(file)):
        run = write_run(tmp_path / f"f-{Path(name).stem}")
        runs.append(change(run, 'name = "feddgm"', f'name = "feddgm"\ngenerator = "{name}"'))
    said = spoken(page(*runs))
    assert f"digits, trained on: {card['trained_on']}; data hash {card['data_sha256'][:12]}" in said
    if kept:
        assert "mine.safetensors, trained on: photographs of <b>clouds</b>; data hash 0123456789ab" in said
    else:
        assert "mine.safetensors, trained on: unknown" in said


def test_page_shows_the_options_of_a_flower_partitioner(tmp_path: Path) -> None:
    run = write_run(tmp_path / "a")
    change(run, 'kind = "kclass"', 'kind = "flwr:DirichletPartitioner"\noptions = {alpha = 0.125}')
    assert "flwr:DirichletPartitioner, clients 10, alpha 0.125" in spoken(page(run))


def test_domains_are_told_in_words(tmp_path: Path) -> None:
    joined = [
        {"name": "MNIST", "path": "data/mnist/train.parquet", "rows": [0, 99], "test_rows": [10, 19]},
        {"name": "Digits", "source": "digits"},
    ]
    data = {"source": "domains", "domains": joined, "severity": 3, "spread": "copies"}
    made = page(write_full_run(tmp_path / "a-0", Made(domains=("MNIST", "Digits"), settings={"data": data})))
    said = spoken(made)
    assert (
        "Data: 2 domains: MNIST (mnist/train.parquet, rows 0 to 99, test rows 10 to 19), Digits (digits), size 16 \n"
        in said
    )
    assert "Partition: domain, validation 0.1, test 0.1 \n" in said  # one client a domain, whatever the number there
    settings = {row[0].text: row[1].text for row in grid(made, "settings-1").rows}
    assert settings["data.domains"] == (
        "name MNIST, path data/mnist/train.parquet, rows 0, 99, test_rows 10, 19; name Digits, source digits"
    )


def test_corruptions_and_shared_domains_are_told(tmp_path: Path) -> None:
    tables = {"data": {"corruptions": ["fog"], "severity": 3}, "partition": {"kind": "domain", "parts": 2}}
    said = spoken(page(write_full_run(tmp_path / "a-0", Made(settings=tables))))
    assert "Data: digits, size 16, corruptions fog, severity 3 \n" in said
    assert "Partition: domain, parts 2, alpha 0.5, validation 0.1, test 0.1 \n" in said


def test_the_source_of_published_values_is_named_where_there_is_one(tmp_path: Path) -> None:
    plain, marked = (
        write_full_run(tmp_path / f"{name}-0", Made(settings=settings))
        for name, settings in (
            ("a", {}),
            ("b", {"published": {"source": "A paper, Table 1"}, "published.accuracy": {"resnet18": 0.7}}),
        )
    )
    assert "Published" not in spoken(page(plain))
    assert "Published values: A paper, Table 1 b" in spoken(page(plain, marked))
    said = spoken(page(marked))
    assert "Published values: A paper, Table 1" in said
    assert "published values (A paper, Table 1)" in said


# --- accuracy ------------------------------------------------------------------------------------------------------------


def test_a_published_value_of_the_clients_network_goes_by_either_name(tmp_path: Path) -> None:
    for number, name in enumerate(("global", "convnet")):
        settings = {"published.accuracy": {name: 0.61}}
        run = write_full_run(tmp_path / f"a{number}-0", Made(method="fedavg", models=("global",), settings=settings))
        lines = chart(page(run), "accuracy-by-round")
        assert isinstance(lines, Lines)
        assert [(mark.y, mark.style) for mark in lines.marks] == [(0.61, lines.traces[0].style)]


def test_series_look_the_same_in_every_chart(tmp_path: Path) -> None:
    made = {"feddgm": Made(), "fedavg": Made(method="fedavg", models=("global",))}
    built = page(*write_comparison(tmp_path, made, seeds=(0,)))
    looks: dict[str, set[Any]] = {}
    for each in charts(built):
        if isinstance(each, Lines | Scatter) and not each.chart.key.startswith(("tsne", "ceiling", "client-time")):
            for trace in each.traces:
                looks.setdefault(trace.series, set()).add((trace.label, trace.style))
    assert len(looks) == 3
    assert all(len(look) == 1 for look in looks.values())


def test_every_series_has_a_switch(tmp_path: Path) -> None:
    made = {
        "feddgm1": Made(distils=True, gradients=True, evaluated=True, settings={"algorithm": {"ipc": 1}}),
        "feddgm5": Made(distils=True, settings={"algorithm": {"ipc": 5}}),
        "centralised": Made(method="centralised", models=("global",)),
    }
    built = page(*write_comparison(tmp_path, made, seeds=(0,)))
    switches = [key.series for block in walk(built) if isinstance(block, Legend) for key in block.keys]
    drawn = {trace.series for each in charts(built) if isinstance(each, Lines | Scatter) for trace in each.traces}
    assert len(switches) == len(set(switches))
    assert set(switches) == drawn


def test_an_accuracy_that_some_seeds_never_reach_has_no_mean(tmp_path: Path) -> None:
    runs = [
        write_run(tmp_path / "a", curves={"surrogate": [0.5, 1.0]}),
        write_run(tmp_path / "b", seed=1, curves={"surrogate": [0.5, 0.5]}),
    ]
    rows = [[cell.text for cell in row] for row in grid(page(*runs), "convergence").rows]
    assert [row[3] for row in rows] == ["2 of 2 seeds", "1 of 2 seeds", "1 of 2 seeds", "1 of 2 seeds"]
    assert [row[4] for row in rows] == ["1", "–", "–", "–"]


# --- several settings ----------------------------------------------------------------------------------------------------


def test_several_settings_and_networks_are_rows_under_each_setting(tmp_path: Path) -> None:
    made = {
        f"{method}{alpha}": Made(
            method=method,
            models=("surrogate", "resnet18") if method == "feddgm" else ("global",),
            settings={"partition": {"alpha": alpha}},
        )
        for alpha in (0.5, 0.1)
        for method in ("fedavg", "feddgm", "centralised")
    }
    table = grid(page(*write_comparison(tmp_path, made)), "results")
    assert table.head == ("Setting", "Method", "convnet", "resnet18")
    assert table.grouped
    rows = ["FedAvg", "FedDGM", "Centralised, ceiling"]
    assert [[cell.text for cell in row[:2]] for row in table.rows] == [
        [alpha, row] for alpha in ("alpha 0.5", "alpha 0.1") for row in rows
    ]
    assert [[cell.text == "–" for cell in row[2:]] for row in table.rows] == 2 * [
        [False, True],
        [False, False],
        [False, True],
    ]


def test_settings_that_are_no_columns_give_every_group_its_row(tmp_path: Path) -> None:
    made = {
        f"feddgm{number}": Made(settings={"algorithm": {f"k{key}": number for key in range(5)}}) for number in range(2)
    }
    table = grid(page(*write_comparison(tmp_path, made, seeds=(0,))), "results")
    assert table.head == ("Method", "convnet", "resnet18")
    assert [row[0].text for row in table.rows] == ["FedDGM (feddgm0)", "FedDGM (feddgm1)"]


def test_networks_of_one_name_are_told_apart(tmp_path: Path) -> None:
    made = {
        "fedavg": Made(method="fedavg", models=("global",)),
        "fedavg5": Made(method="fedavg", models=("global",), settings={"model": {"depth": 5}}),
        "feddgm": Made(models=("surrogate", "convnet5")),
        "fedprox": Made(method="fedprox", models=("global",), settings={"model": {"depth": 5, "label": "convnet5"}}),
    }
    table = grid(page(*write_comparison(tmp_path, made, seeds=(0,))), "results")
    assert table.head == ("Method", "convnet (depth 3)", "convnet (depth 5)", "convnet5")
    known = {row[0].text: [cell.value is not None for cell in row[1:]] for row in table.rows}
    assert known == {"FedAvg": [True, True, False], "FedDGM": [True, False, True], "FedProx": [False, False, True]}


def test_what_clients_train_is_not_taken_for_what_a_server_trains(tmp_path: Path) -> None:
    made = {"fedavg": Made(method="fedavg", models=("global",)), "feddgm": Made(models=("surrogate", "convnet"))}
    table = grid(page(*write_comparison(tmp_path, made, seeds=(0,))), "results")
    assert table.head == ("Method", "clients’ convnet", "convnet")
    assert [[cell.value is not None for cell in row[1:]] for row in table.rows] == [[True, False], [True, True]]


def test_the_best_needs_more_than_the_spread_and_a_ceiling_does_not_compete(tmp_path: Path) -> None:
    def runs(method: str, base: float, spread: float) -> list[Path]:
        return [
            write_run(tmp_path / f"{method}{base}-{seed}", method=method, seed=seed, curves={"global": [base + shift]})
            for seed, shift in enumerate((-spread, 0.0, spread))
        ]

    ceiling = runs("centralised", 0.95, 0.0)
    close = [*runs("feddgm", 0.80, 0.02), *runs("fedavg", 0.77, 0.02), *ceiling]
    assert tones(page(*close), "results", "best") == []
    apart = [*runs("feddgm", 0.90, 0.02), *close[3:]]
    assert tones(page(*apart), "results", "best") == [("FedDGM", "convnet")]


def test_no_best_where_the_spread_is_not_known_or_a_method_is_not_as_far(tmp_path: Path) -> None:
    far = [write_run(tmp_path / f"a{seed}", seed=seed, curves={"global": [0.5, 0.9 + seed / 100]}) for seed in range(2)]
    short = [
        write_run(tmp_path / f"b{seed}", method="fedavg", seed=seed, curves={"global": [0.5 + seed / 100]})
        for seed in range(2)
    ]
    assert tones(page(far[0], short[0]), "results", "best") == []
    made = page(*far, *short)
    assert tones(made, "results", "best") == []
    assert "Where methods have not come to the same round, none is marked." in grid(made, "results").note


def test_methods_of_other_seeds_are_told_of(tmp_path: Path) -> None:
    runs = [
        write_run(tmp_path / name, method=name, seed=seed)
        for name, seed in (("feddgm", 0), ("fedavg", 0), ("prioronly", 1))
    ]
    assert not any("same seeds" in note for note in page(*runs[:2]).notes)
    assert any("same seeds" in note for note in page(*runs).notes)


def test_a_cost_is_compared_between_methods_not_within_one(tmp_path: Path) -> None:
    both = {"surrogate": [0.6], "resnet18": [0.7]}
    runs = [write_run(tmp_path / method, method=method, curves=both) for method in ("feddgm", "fedavg")]
    assert "pareto" not in [section.key for section in page(runs[0]).sections]
    assert "pareto" in [section.key for section in page(*runs).sections]


@pytest.mark.parametrize(
    ("values", "log", "ticks", "xs"),
    [
        ([1, 10, 50], True, (), (1.0, 10.0, 50.0)),
        ([10, 1, 5], False, (), (1.0, 5.0, 10.0)),
        ([0, 1, 100], False, (), (0.0, 1.0, 100.0)),
        (["exact", "truncated"], False, ("exact", "truncated"), (0.0, 1.0)),
        ([False, True], False, ("false", "true"), (0.0, 1.0)),
    ],
)
def test_an_ablation_has_the_axis_of_its_values(
    tmp_path: Path, values: list[Any], log: bool, ticks: tuple[str, ...], xs: tuple[float, ...]
) -> None:
    made = {f"feddgm{number}": Made(settings={"algorithm": {"key": value}}) for number, value in enumerate(values)}
    lines = chart(page(*write_comparison(tmp_path, made, seeds=(0,))), "ablation-algorithm-key")
    assert isinstance(lines, Lines)
    assert (lines.x.log, lines.x.ticks) == (log, ticks)
    assert [trace.xs for trace in lines.traces] == [xs, xs]
    assert [trace.label for trace in lines.traces] == ["FedDGM, surrogate", "FedDGM, resnet18"]


def test_an_ablation_varies_one_setting_alone(tmp_path: Path) -> None:
    made = {
        f"feddgm{ipc}{space}": Made(models=("surrogate",), settings={"algorithm": {"ipc": ipc, "space": space}})
        for ipc in (1, 5)
        for space in (0, 3)
    }
    built = page(*write_comparison(tmp_path, made, seeds=(0,)))
    for key, other in (("ipc", "space"), ("space", "ipc")):
        lines = chart(built, f"ablation-algorithm-{key}")
        assert isinstance(lines, Lines)
        assert len(lines.traces) == 2
        assert len({trace.label for trace in lines.traces}) == 2
        assert [trace.label for trace in lines.traces] == [
            f"FedDGM ({other} {value}), surrogate" for value in ((0, 3) if other == "space" else (1, 5))
        ]
    alone = page(*write_comparison(tmp_path / "b", {"feddgm": Made(), "fedavg": Made(method="fedavg")}, seeds=(0,)))
    assert all(each.key != "ablation" for each in alone.sections)


@given(st.lists(st.tuples(st.integers(1, 9).map(float), st.integers(0, 9).map(float)), min_size=1, max_size=12))
def test_nothing_beats_a_point_of_the_front(points: list[tuple[float, float]]) -> None:
    best = front(points)
    wanted = {
        (cost, accuracy)
        for cost, accuracy in points
        if not any(c <= cost and a >= accuracy and (c, a) != (cost, accuracy) for c, a in points)
    }
    assert set(best) == wanted
    assert list(best) == sorted(best)


# --- clients -------------------------------------------------------------------------------------------------------------


def test_clients_gain_and_lose_against_fedavg(tmp_path: Path) -> None:
    runs = []
    for method, shares in (("feddgm", (0.9, 0.5, 0.7)), ("fedavg", (0.6, 0.8, 0.7))):
        run = write_run(tmp_path / method, method=method, curves={"global": [0.5]}, clients=3)
        row = json.loads((run / "metrics.jsonl").read_text())
        for client, share in zip(row["clients"], shares, strict=True):
            client["validation"] = share
        row["clients"][0]["test"] = {"correct": 9, "examples": 10, "accuracy": shares[0] / 2}
        edit(run / "metrics.jsonl", clients=row["clients"])
        runs.append(run)
    made = page(*runs)
    table = grid(made, "holdings-1")
    assert table.head[-4:] == ("Scored on", "FedDGM", "FedAvg", "FedDGM − FedAvg")
    assert [[cell.text for cell in row[-4:]] for row in table.rows] == [
        ["test", "45.0\u202f%", "30.0\u202f%", "+15.0"],
        ["validation", "50.0\u202f%", "80.0\u202f%", "−30.0"],
        ["validation", "70.0\u202f%", "70.0\u202f%", "0.0"],
    ]
    assert [row[-1].tone for row in table.rows] == ["gain", "loss", ""]
    told = {row[0].text: [cell.value for cell in row[-2:]] for row in grid(made, "holdings-1-outcomes").rows}
    assert told == {"FedDGM": [1, 1], "FedAvg": [None, None]}
    assert "points gained or lost against FedAvg. ▲ better, ▼ worse: any difference counts" in table.note
    alone = page(runs[1])
    assert "On the right" not in grid(alone, "holdings-1").note
    assert grid(alone, "holdings-1-outcomes").head[-1] == "Worst"


def test_many_clients_are_folded_under_what_they_come_to(tmp_path: Path) -> None:
    made = page(write_full_run(tmp_path / "a-0", Made(clients=57, classes=10, rounds=1)))
    blocks = section(made, "holdings").blocks
    assert open_grids(blocks) == ["holdings-1-outcomes"]
    assert len(grid(made, "holdings-1").rows) == 57
    assert len(grid(made, "holdings-1").head) == 1 + 10 + 3 + 2
    assert all(row[1].shade is not None for row in grid(made, "holdings-1").rows)


def test_many_classes_stand_below_one_another(tmp_path: Path) -> None:
    made = page(write_full_run(tmp_path / "a-0", Made(clients=4, classes=200, examples=400, rounds=1)))
    table = grid(made, "holdings-1")
    assert table.head[:4] == ("Client", "Classes held", "Largest share", "All")
    tall = grid(made, "holdings-1-classes")
    assert (len(tall.rows), tall.head) == (200, ("Class", "c00", "c01", "c02", "c03"))
    assert "holdings-1-classes" not in open_grids(section(made, "holdings").blocks)
    assert len(grid(made, "per-class").rows) == 200
    confused = grid(made, "confusion-1")
    assert len(confused.rows) <= 20
    assert not any(isinstance(each, Heat) and each.chart.key.startswith("confusion") for each in charts(made))


def test_a_discrepancy_of_many_clients_is_told_by_client(tmp_path: Path) -> None:
    made = page(write_full_run(tmp_path / "a-0", Made(clients=57, classes=10, rounds=1, evaluated=True)))
    assert len(grid(made, "mmd-1").rows) == 57
    heat = chart(made, "mmd-1")
    assert isinstance(heat, Heat)
    assert heat.values[3][3] is None


def test_the_same_discrepancy_is_shown_once(tmp_path: Path) -> None:
    runs = [write_full_run(tmp_path / f"{name}-0", Made(method=name, evaluated=True)) for name in ("feddgm", "fedavg")]
    (runs[1] / "evaluation.json").write_bytes((runs[0] / "evaluation.json").read_bytes())
    assert [key for each in charts(page(*runs)) if (key := each.chart.key).startswith("mmd")] == ["mmd-1"]


# --- matching, failures, costs -------------------------------------------------------------------------------------------


def test_sick_clients_and_failures_are_named(tmp_path: Path) -> None:
    run = write_run(tmp_path / "a", matching=True)
    reason = "its matching loss rose from 0.9 to 1.7"
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    rows[0]["clients"][2]["matching"] |= {"sick": reason, "retries": 2}
    rows[0]["failures"] = [{"client": "c02", "reason": reason}]
    for row in rows:
        row["clients"][4]["matching"]["sick"] = "it stood still"
    rows[1] |= {"aggregated": False, "withheld": "there are 4"}
    rows[2]["aggregated"] = False
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    made = page(run)
    said = spoken(made)
    assert f"c02 in round 1: {reason}" in said
    assert "c04 in rounds 1 to 3: last: it stood still" in said
    assert "FedDGM: 30 distillations, 4 failed, 2 restarts." in said
    assert [[cell.text for cell in row] for row in grid(made, "failures").rows] == [
        ["FedDGM", "1", "c02", reason],
        ["FedDGM", "2", "–", "there are 4: the state is the one before"],
        ["FedDGM", "3", "–", "too few clients replied: the state is the one before"],
    ]
    heat = chart(made, "matching-1")
    assert isinstance(heat, Heat)
    assert set(heat.flags) == {(2, 0), (4, 0), (4, 1), (4, 2)}


def test_many_sick_clients_are_folded_behind_their_number(tmp_path: Path) -> None:
    run = write_run(tmp_path / "a", matching=True)
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    for client in rows[0]["clients"]:
        client["matching"]["sick"] = "it stood still"
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    folded = [block for block in walk(page(run)) if isinstance(block, Folded) and "sick" in block.summary]
    assert [block.summary for block in folded] == ["10 clients of FedDGM were sick"]
    assert len(folded[0].blocks) == 10


def test_long_tables_are_left_to_the_files(tmp_path: Path) -> None:
    made = page(write_full_run(tmp_path / "a-0", Made(clients=11, rounds=40, distils=True)))
    keys = {table.key for table in grids(made)}
    assert "matching-1-rounds" not in keys
    assert "matching.csv" in spoken(made)
    assert max(len(table.rows) for table in grids(made)) <= 400
    many = {f"feddgm{number}": Made(rounds=90, settings={"algorithm": {"ipc": number}}) for number in range(5)}
    made = page(*write_comparison(tmp_path / "b", many, seeds=(0,)))
    assert "bytes-by-round" not in {table.key for table in grids(made)}
    assert "rounds.csv" in spoken(made)


def test_costs_of_a_run_that_lacks_a_round_are_not_known(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / f"a{seed}", seed=seed, curves={"m": [0.1, 0.2, 0.3]}) for seed in (0, 1)]
    lines = (runs[1] / "metrics.jsonl").read_text().splitlines(keepends=True)
    (runs[1] / "metrics.jsonl").write_text("".join(lines[1:]))
    other = write_run(tmp_path / "b", method="fedavg", curves={"m": [0.1]})
    made = page(*runs, other)
    first, second = grid(made, "bytes").rows
    assert [cell.text for cell in first[2:]] == ["–"] * 4
    assert second[4].value == 2 * 1_204_000
    bars = chart(made, "time")
    assert isinstance(bars, Bars)
    assert [name for name, _ in bars.bars] == ["FedAvg"]


def test_bytes_are_summed(tmp_path: Path) -> None:
    run = write_run(tmp_path / "a", curves={"surrogate": [0.1] * 5})
    edit(run / "metrics.jsonl", bytes_up=2_000_000, bytes_down=3_000_000)
    (row,) = grid(page(run), "bytes").rows
    assert [cell.value for cell in row[2:5]] == [2e6 + 4 * 1_204_000, 3e6 + 4 * 1_204_000, 5e6 + 4 * 2_408_000]


def test_seconds_of_clients_are_summed_round_by_round(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / f"a{seed}", seed=seed, curves={"m": [0.1, 0.2, 0.3]}) for seed in (0, 1)]
    edit(runs[0] / "metrics.jsonl", seconds={"clients": 4.1, "server": 9.0})
    other = write_run(tmp_path / "b", method="fedavg", curves={"m": [0.1]})
    lines = chart(page(*runs, other), "client-time")
    assert isinstance(lines, Lines)
    (trace,) = lines.traces  # of one round there is no line
    assert trace.xs == (1, 2, 3)
    assert trace.ys == pytest.approx((3.1, 5.2, 7.3))
    assert trace.spreads == pytest.approx((2**0.5,) * 3)


# --- theory and images ---------------------------------------------------------------------------------------------------


def test_a_gap_needs_the_ceiling_of_the_same_data_and_network(tmp_path: Path) -> None:
    ceiling = Made(method="centralised", models=("global",))
    for number, (settings, there) in enumerate(
        [({}, True), ({"model": {"depth": 5}}, False), ({"data": {"source": "folder"}}, False)]
    ):
        made = {"feddgm": Made(), "centralised": Made(method="centralised", models=ceiling.models, settings=settings)}
        built = page(*write_comparison(tmp_path / str(number), made, seeds=(0,)))
        assert any(each.chart.key == "ceiling-gap" for each in charts(built)) == there


def test_images_are_shown_by_round_and_by_space(tmp_path: Path) -> None:
    runs = []
    for space in (0, 3):
        run = write_full_run(tmp_path / f"feddgm{space}-0", Made(clients=2, settings={"algorithm": {"space": space}}))
        for number in (1, 3):
            write_synthetic(run / "synthetic" / f"round-{number:04}.safetensors", ["c00", "c01"], ipc=2, size=8)
        runs.append(run)
    albums = [block for block in section(page(*runs), "images").blocks if isinstance(block, Album)]
    assert [(album.by, [sheet.label for sheet in album.sheets]) for album in albums] == [
        ("round", ["round 1", "round 3"]),
        ("round", ["round 1", "round 3"]),
        ("space", ["F0, round 3", "F3, round 3"]),
    ]
    assert [tile.client for tile in albums[2].sheets[0].tiles] == ["c00", "c01"]


def test_folds_hold_what_is_long(tmp_path: Path) -> None:
    made = page(write_full_run(tmp_path / "a-0", Made(distils=True)))
    folds = [block.summary for block in walk(made) if isinstance(block, Folded)]
    assert "All settings of FedDGM" in folds
    assert "Every client and round of FedDGM" in folds
    assert "Bytes by round" in folds
