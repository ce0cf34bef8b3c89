"""Every number of the page, recomputed from the runs' files with json, NumPy and SciPy alone."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from fedstill.report.html import render
from fedstill.report.page import build
from fedstill.report.parts import Grid, Heat, Legend, Lines, Page, Scatter, charts, grids, walk
from fedstill.report.runs import read_run
from runs_fixture import Made, spoken, write_comparison

ROUNDS, CLIENTS, CLASSES, SEEDS = 4, 5, 4, (0, 1, 2)
SIZE = {"rounds": ROUNDS, "clients": CLIENTS, "classes": CLASSES}
PUBLISHED = {"published": {"source": "FedDGM, Table 1"}, "published.accuracy": {"resnet18": 0.737}}
MADE = {
    "feddgm10": Made(
        **SIZE, distils=True, gradients=True, evaluated=True, settings={"algorithm": {"ipc": 10}, **PUBLISHED}
    ),
    "feddgm5": Made(**SIZE, distils=True, evaluated=True, settings={"algorithm": {"ipc": 5}}),
    "prioronly": Made(**SIZE, method="prioronly", distils=True, settings={"algorithm": {"ipc": 10}}),
    "fedavg": Made(**SIZE, method="fedavg", models=("global",)),
    "centralised": Made(**SIZE, method="centralised", models=("global",), tested=False),
}
LABELS = {
    "feddgm10": "FedDGM (ipc 10)",
    "feddgm5": "FedDGM (ipc 5)",
    "prioronly": "PriorOnly",
    "fedavg": "FedAvg",
    "centralised": "Centralised",
}
ROWS = LABELS | {"prioronly": "PriorOnly, control", "centralised": "Centralised, ceiling"}
DISTILLED = ("feddgm10", "feddgm5", "prioronly")
EVALUATED = ("feddgm10", "feddgm5")
SERIES = [(name, model) for name, made in MADE.items() for model in made.models]
PHASES = ("clients", "distil", "train", "server, rest", "evaluate")

Row = dict[str, Any]
Value = tuple[Any, float | None]  # a cell: mean or word, and spread


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return write_comparison(tmp_path_factory.mktemp("runs"), MADE, seeds=SEEDS)


@pytest.fixture(scope="module")
def page(folders: list[Path]) -> Page:
    return build([read_run(folder) for folder in folders])


@pytest.fixture(scope="module")
def truth(folders: list[Path]) -> Truth:
    return Truth(folders)


def value(cell: Any) -> Value:
    return cell if isinstance(cell, tuple) else (cell, None)


def over(values: Sequence[float | None]) -> Value:
    """Mean and sample standard deviation."""
    if not values or any(each is None for each in values):
        return (None, None)
    known = np.asarray(values, np.float64)
    return float(known.mean()), float(known.std(ddof=1)) if len(known) > 1 else None


class Truth:
    """The runs' files, and each table as they make it: ``table_KEY`` for the table of that key."""

    def __init__(self, folders: Sequence[Path]) -> None:
        self.rows: dict[str, list[list[Row]]] = {name: [] for name in MADE}
        self.partitions = {}
        self.evaluations: dict[str, list[Row]] = {name: [] for name in MADE}
        self.toml: dict[str, str] = {}
        for folder in folders:
            name, _, seed = folder.name.rpartition("-")
            self.rows[name].append([json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()])
            self.partitions[int(seed)] = json.loads((folder / "partition.json").read_text())
            if (folder / "evaluation.json").exists():
                self.evaluations[name].append(json.loads((folder / "evaluation.json").read_text()))
            if seed == "0":
                self.toml[name] = (folder / "experiment.toml").read_text()

    # --- what several tables need ---------------------------------------------------------------------------------------

    def at(self, name: str, number: int, read: Callable[[Row], float | None]) -> Value:
        return over([read(rows[number - 1]) for rows in self.rows[name]])

    def accuracy(self, name: str, model: str, number: int = ROUNDS) -> Value:
        return self.at(name, number, lambda row: row["accuracy"][model])

    def until(self, name: str, number: int, read: Callable[[Row], float]) -> Value:
        return over([sum(read(row) for row in rows[:number]) for rows in self.rows[name]])

    def sent(self, name: str, number: int = ROUNDS) -> Value:
        return self.until(name, number, lambda row: row["bytes_up"] + row["bytes_down"])

    def wall(self, name: str, number: int = ROUNDS) -> Value:
        return self.until(name, number, _wall)

    def work(self, name: str, number: int = ROUNDS) -> Value:
        return self.until(name, number, lambda row: row["cpu_seconds"])

    # --- tables ---------------------------------------------------------------------------------------------------------

    def table_numbers(self) -> Iterator[list[Any]]:
        for name, model in SERIES:
            shares = [rows[-1]["accuracy"][model] for rows in self.rows[name]]
            low, high = stats.t.interval(0.95, len(shares) - 1, loc=np.mean(shares), scale=stats.sem(shares))
            yield [
                LABELS[name],
                model,
                self.accuracy(name, model),
                max(0.0, low),
                min(1.0, high),
                self.at(name, ROUNDS, lambda row, model=model: row["balanced_accuracy"][model]),
                self.at(name, ROUNDS, lambda row, model=model: row["calibration_error"][model]),
                None if name == "centralised" else self.sent(name),
                self.wall(name),
                self.work(name),
            ]

    def table_results(self) -> Iterator[list[Any]]:
        for name, made in MADE.items():
            server = self.accuracy(name, "resnet18") if "resnet18" in made.models else None
            yield [ROWS[name], self.accuracy(name, made.models[0]), server, 0.737 if name == "feddgm10" else None]

    def table_accuracy_by_round(self) -> Iterator[list[Any]]:
        for number in range(1, ROUNDS + 1):
            yield [number, *(self.accuracy(name, model, number) for name, model in SERIES)]

    def table_accuracy_by_bytes(self) -> Iterator[list[Any]]:
        federated = [(name, model) for name, model in SERIES if name != "centralised"]
        for number in range(1, ROUNDS + 1):
            sent = [self.sent(name, number) for name in dict.fromkeys(name for name, _ in federated)]
            yield [number, *sent, *(self.accuracy(name, model, number) for name, model in federated)]

    def table_accuracy_by_seconds(self) -> Iterator[list[Any]]:
        for number in range(1, ROUNDS + 1):
            wall = [self.wall(name, number) for name in MADE]
            yield [number, *wall, *(self.accuracy(name, model, number) for name, model in SERIES)]

    def table_convergence(self) -> Iterator[list[Any]]:
        ceiling, _ = self.accuracy("centralised", "global")
        for share in (0.5, 0.8, 0.9, 0.95):
            for name, model in SERIES:
                firsts = [
                    next((row["round"] for row in rows if row["accuracy"][model] >= share * ceiling), None)
                    for rows in self.rows[name]
                ]
                there = sum(first is not None for first in firsts)
                cells: list[Any] = [share * ceiling, LABELS[name], model, f"{there} of {len(SEEDS)} seeds"]
                if there < len(SEEDS):
                    yield [*cells, None, None, None]
                    continue
                until = [rows[:first] for rows, first in zip(self.rows[name], firsts, strict=True)]
                sent = [sum(row["bytes_up"] + row["bytes_down"] for row in rows) for rows in until]
                yield [
                    *cells,
                    over(firsts),
                    None if name == "centralised" else over(sent),
                    over([sum(map(_wall, rows)) for rows in until]),
                ]

    def table_ablation_algorithm_ipc(self) -> Iterator[list[Any]]:
        for model in ("surrogate", "resnet18"):
            for name, ipc in (("feddgm5", 5), ("feddgm10", 10)):
                yield [f"FedDGM, {model}", ipc, ROUNDS, self.accuracy(name, model)]

    def table_pareto_bytes(self) -> Iterator[list[Any]]:
        yield from self._pareto([(name, model) for name, model in SERIES if name != "centralised"], self.sent)

    def table_pareto_cpu(self) -> Iterator[list[Any]]:
        yield from self._pareto(SERIES, self.work)

    def _pareto(self, series: Sequence[tuple[str, str]], cost: Callable[[str], Value]) -> Iterator[list[Any]]:
        points = {each: (cost(each[0])[0], self.accuracy(*each)[0]) for each in series}
        for (name, model), (price, share) in points.items():
            beaten = any(
                other[0] <= price and other[1] >= share and other != (price, share) for other in points.values()
            )
            yield [LABELS[name], model, "no" if beaten else "yes", cost(name), self.accuracy(name, model)]

    def _holdings(self, seed: int) -> Iterator[list[Any]]:
        histogram = {client: np.array(row) for client, row in self.partitions[seed]["histogram"].items()}
        pooled = np.sum(list(histogram.values()), axis=0)
        for client, counts in histogram.items():
            yield [
                client,
                *map(int, counts),
                int(counts.sum()),
                stats.entropy(counts, base=2),
                np.abs(counts / counts.sum() - pooled / pooled.sum()).sum() / 2,
            ]

    def _reached(self, seed: int, names: Sequence[str] = tuple(MADE)) -> Iterator[list[Any]]:
        last = {
            name: {each["client"]: each for each in self.rows[name][SEEDS.index(seed)][-1]["clients"]} for name in names
        }
        for client in self.partitions[seed]["histogram"]:
            its = [last[name][client] for name in names]
            if any(found["test"] is not None for found in its):
                yield [client, "test", *((found["test"] or {}).get("accuracy") for found in its)]
            else:
                yield [client, "validation", *(found["validation"] for found in its)]

    def _outcomes(self, seed: int) -> Iterator[list[Any]]:
        lines = list(self._reached(seed))
        base = 2 + list(MADE).index("fedavg")
        for place, name in enumerate(MADE, start=2):
            shares = {line[0]: line[place] for line in lines if line[place] is not None}
            worst = min(shares, key=lambda client: shares[client])
            gains = [line[place] - line[base] for line in lines if line[place] is not None]
            counted = (
                [None, None] if name == "fedavg" else [sum(g > 0.0005 for g in gains), sum(g < -0.0005 for g in gains)]
            )
            yield [
                LABELS[name],
                worst,
                len(shares),
                over(list(shares.values())),
                float(np.median(list(shares.values()))),
                shares[worst],
                *counted,
            ]

    def _mmd(self, found: Row) -> Iterator[list[Any]]:
        names = found["clients"]
        for row in range(len(names)):
            for column in range(row + 1, len(names)):
                yield [names[row], names[column], found["squared"][row][column], found["error"][row][column]]

    def _tsne(self, found: Row, by: str) -> Iterator[list[Any]]:
        for each in sorted({point[by] for point in found["points"]}):
            its = [point for point in found["points"] if point[by] == each]
            yield [each, len(its), float(np.mean([p["x"] for p in its])), float(np.mean([p["y"] for p in its]))]

    def table_per_class(self) -> Iterator[list[Any]]:
        for name, model in SERIES:
            shares = [
                self.at(name, ROUNDS, lambda row, model=model, index=index: row["per_class"][model][index])
                for index in range(CLASSES)
            ]
            yield [LABELS[name], model, *shares]

    def _confusion(self, index: int) -> Iterator[list[Any]]:
        name, model = SERIES[index]
        for true, counts in enumerate(self.rows[name][0][-1]["confusion"][model]):
            yield [f"class {true}", *counts]

    def _pairs(self, index: int) -> Iterator[list[Any]]:
        name, model = SERIES[index]
        counts = np.array(self.rows[name][0][-1]["confusion"][model])
        wrong = [(-counts[t, s], t, s) for t in range(CLASSES) for s in range(CLASSES) if t != s and counts[t, s]]
        for count, true, said in sorted(wrong):
            yield [f"class {true}", f"class {said}", int(-count), float(-count / counts[true].sum())]

    def _matched(self, name: str) -> list[tuple[int, str, Row]]:
        return [
            (row["round"], client["client"], client["matching"])
            for row in self.rows[name][0]
            for client in row["clients"]
        ]

    def _matching(self, name: str) -> Iterator[list[Any]]:
        for client in sorted({client for _, client, _ in self._matched(name)}):
            its = [m for _, other, m in self._matched(name) if other == client]
            yield [
                client,
                len(its),
                its[-1]["start"],
                its[-1]["end"],
                min(m["best"] for m in its),
                its[-1]["conditioning"],
                sum(m["retries"] for m in its),
                sum(m["sick"] is not None for m in its),
            ]

    def _matching_rounds(self, name: str) -> Iterator[list[Any]]:
        keys = ("start", "end", "best", "pixel_min", "pixel_max", "rate", "conditioning", "retries")
        for number, client, m in self._matched(name):
            yield [client, number, *(m[key] for key in keys), "well" if m["sick"] is None else "sick"]

    def table_agreement(self) -> Iterator[list[Any]]:
        def mean(row: Row) -> float:
            return float(np.mean([client["matching"]["conditioning"] for client in row["clients"]]))

        for number in range(1, ROUNDS + 1):
            yield [number, *(self.at(name, number, mean) for name in DISTILLED)]

    def table_gradient_cosine(self) -> Iterator[list[Any]]:
        for number in range(1, ROUNDS + 1):
            cosines = [
                self.at("feddgm10", number, lambda row, key=key: row["theory"][key])
                for key in ("cosine_before", "cosine_after")
            ]
            yield [number, *cosines]

    def table_ceiling_gap(self) -> Iterator[list[Any]]:
        for number in range(1, ROUNDS + 1):
            cells: list[Any] = [number]
            for name, made in MADE.items():
                if name != "centralised":
                    gaps = [
                        above[number - 1]["accuracy"]["global"] - rows[number - 1]["accuracy"][made.models[0]]
                        for rows, above in zip(self.rows[name], self.rows["centralised"], strict=True)
                    ]
                    cells.append(over(gaps))
            yield cells

    def _fresh(self, name: str, model: str, key: str) -> list[float]:
        return [
            each[key]
            for found in self.evaluations[name]
            for each in found["fresh"]["results"]
            if each["model"] == model
        ]

    def table_fresh(self) -> Iterator[list[Any]]:
        for name in EVALUATED:
            for model in ("convnet", "vgg11"):
                keys = ("accuracy", "balanced_accuracy", "calibration_error")
                found = [self._fresh(name, model, key) for key in keys]
                yield [LABELS[name], model, len(found[0]), *map(over, found)]

    def table_fresh_networks(self) -> Iterator[list[Any]]:
        for name in EVALUATED:
            yield [LABELS[name], *(over(self._fresh(name, model, "accuracy")) for model in ("convnet", "vgg11"))]

    def table_time(self) -> Iterator[list[Any]]:
        def phase(rows: Sequence[Row], name: str) -> float:
            total = {key: sum(row["seconds"][key] for row in rows) for key in rows[0]["seconds"]}
            return total["server"] - total["distil"] - total["train"] if name == "server, rest" else total[name]

        for name in MADE:
            yield [
                LABELS[name],
                *(over([phase(rows, each) for rows in self.rows[name]]) for each in PHASES),
                self.wall(name),
                self.work(name),
                max(row["peak_memory"] for rows in self.rows[name] for row in rows),
            ]

    def table_client_time(self) -> Iterator[list[Any]]:
        for number in range(1, ROUNDS + 1):
            federated = [name for name in MADE if name != "centralised"]
            yield [number, *(self.until(name, number, lambda row: row["seconds"]["clients"]) for name in federated)]

    def table_bytes(self) -> Iterator[list[Any]]:
        for name in MADE:
            keys = ("bytes_up", "bytes_down", "bytes_scoring")
            up, down, scoring = (over([sum(row[key] for row in rows) for rows in self.rows[name]]) for key in keys)
            yield [LABELS[name], (ROUNDS, 0.0), up, down, self.sent(name), scoring]

    def table_bytes_by_round(self) -> Iterator[list[Any]]:
        for name in MADE:
            for row in self.rows[name][0]:
                keys = ("round", "bytes_up", "bytes_down", "bytes_scoring")
                yield [f"{LABELS[name]}, seed 0", *(row[key] for key in keys)]

    def tables(self) -> dict[str, list[list[Any]]]:
        """Every table that the page should have, by key."""
        made: dict[str, Iterator[list[Any]]] = {
            name.removeprefix("table_").replace("_", "-"): getattr(self, name)()
            for name in dir(self)
            if name.startswith("table_")
        }
        for number, seed in enumerate(SEEDS, start=1):
            made[f"holdings-{number}"] = self._holdings(seed)
            made[f"holdings-{number}-reached"] = self._reached(seed)
            made[f"holdings-{number}-outcomes"] = self._outcomes(seed)
        for index, name in enumerate(MADE):
            for seed, found in enumerate(self.evaluations[name]):
                run = 1 + index * len(SEEDS) + seed
                made[f"mmd-{run}"] = self._mmd(found["mmd"])
                made[f"mmd-{run}-halves"] = iter(
                    [[half["client"], half["squared"], half["error"]] for half in found["mmd"]["halves"]]
                )
                for by in ("client", "class"):
                    made[f"tsne-{run}-{by}"] = self._tsne(found["tsne"], by)
            if name in DISTILLED:
                made[f"matching-{index + 1}"] = self._matching(name)
                made[f"matching-{index + 1}-rounds"] = self._matching_rounds(name)
            made[f"settings-{index + 1}"] = _settings(self.toml[name])
        for index in range(len(SERIES)):
            made[f"confusion-{index + 1}"] = self._confusion(index)
            made[f"confusion-{index + 1}-pairs"] = self._pairs(index)
        return {key: list(rows) for key, rows in made.items()}


def _wall(row: Row) -> float:
    return sum(row["seconds"][phase] for phase in ("clients", "server", "evaluate"))


def _settings(text: str) -> Iterator[list[Any]]:
    prefix = ""
    for line in text.splitlines():
        if line.startswith("["):
            prefix = f"{line.strip('[]')}."
        elif not prefix.startswith("provenance"):
            key, _, content = line.partition(" = ")
            yield [f"{prefix}{key}", str(json.loads(content))]


def test_every_cell_is_what_the_files_give(page: Page, truth: Truth) -> None:
    wanted = truth.tables()
    shown = {table.key: table for table in grids(page)}
    assert shown.keys() == wanted.keys()
    for key, table in shown.items():
        check(table, wanted[key])


def check(table: Grid, wanted: Sequence[Sequence[Any]]) -> None:
    """That every cell of ``table`` is what is wanted: a word, a number, or mean and spread."""
    assert len(table.rows) == len(wanted), table.key
    for row, expected in zip(table.rows, wanted, strict=True):
        assert len(row) == len(expected) == len(table.head), (table.key, expected)
        for name, cell, (mean, spread) in zip(table.head, row, map(value, expected), strict=True):
            where = (table.key, row[0].text, name)
            if isinstance(mean, str) or mean is None:
                assert cell.value == mean, where
            else:
                assert cell.value == pytest.approx(mean, rel=1e-9, abs=1e-12), where
            assert cell.spread == (None if spread is None else pytest.approx(spread, rel=1e-6, abs=1e-9)), where


def test_where_methods_are_few_what_clients_reached_stands_beside_what_they_held(
    folders: list[Path], truth: Truth
) -> None:
    names = ("feddgm10", "fedavg", "prioronly")
    made = build([read_run(folder) for name in names for folder in folders if folder.name.startswith(f"{name}-")])
    table = next(table for table in grids(made) if table.key == "holdings-1")
    wanted = []
    for held, (client, source, ours, base, alone) in zip(truth._holdings(0), truth._reached(0, names), strict=True):
        assert held[0] == client
        wanted.append([*held, source, ours, base, alone, ours - base, alone - base])
    check(table, wanted)


def test_every_text_says_the_number_behind_it(page: Page) -> None:
    for table in grids(page):
        for row in table.rows:
            for cell in row:
                if isinstance(cell.value, int | float) and cell.text:
                    assert _says(cell.text, cell.value, cell.spread), (table.key, cell)
                elif cell.value is None:
                    assert cell.text == "–", (table.key, cell)


def test_the_best_is_marked_where_it_is_ahead_by_more_than_the_spread(page: Page) -> None:
    checked = 0
    for table in grids(page):
        if table.key not in ("results", "fresh-networks"):
            continue
        for column in range(1, len(table.head)):
            cells = [
                row[column]
                for row in table.rows
                if not row[0].text.startswith("Centralised") and row[column].tone != "mute"
            ]
            ranked = sorted(
                (cell for cell in cells if cell.value is not None), key=lambda cell: -float(cell.value or 0)
            )
            if len(ranked) < 2:
                continue
            checked += 1
            first, second = ranked[:2]
            ahead = float(first.value or 0) - float(second.value or 0) > (first.spread or 0) + (second.spread or 0)
            assert [cell.tone == "best" for cell in ranked] == [ahead, *[False] * (len(ranked) - 1)]
    assert checked >= 4


def test_charts_draw_what_their_tables_hold(page: Page, truth: Truth) -> None:
    for chart in charts(page):
        if isinstance(chart, Lines | Scatter):
            numbers = {number for row in chart.chart.table.rows for cell in row for number in (cell.value, cell.spread)}
            for trace in chart.traces if not chart.chart.key.startswith("tsne") else ():
                assert numbers >= set(trace.ys), chart.chart.key
                assert numbers >= set(trace.spreads), chart.chart.key
                assert numbers >= {x for x in trace.xs if x not in range(ROUNDS + 1)}, chart.chart.key
                assert len(trace.xs) == len(trace.ys)
        elif isinstance(chart, Heat):
            assert len(chart.values) == len(chart.rows)
            assert {len(row) for row in chart.values} == {len(chart.columns)}
    by_key = {chart.chart.key: chart for chart in charts(page)}
    losses = by_key["matching-1"]
    assert isinstance(losses, Heat)
    for number, client, m in truth._matched("feddgm10"):
        place = losses.rows.index(client), losses.columns.index(str(number))
        assert losses.values[place[0]][place[1]] == m["end"]
        assert (place in losses.flags) == (m["sick"] is not None)
    (mark,) = by_key["accuracy-by-round"].marks  # type: ignore[union-attr]
    assert mark.y == 0.737
    gradient = by_key["gradient-cosine"]
    assert isinstance(gradient, Lines)
    assert gradient.traces[0].ys == tuple(
        pytest.approx(truth.at("feddgm10", number, lambda row: row["theory"]["cosine_before"])[0])
        for number in range(1, ROUNDS + 1)
    )


def test_the_legend_says_the_last_accuracies(page: Page, truth: Truth) -> None:
    legend = next(block for block in walk(page) if isinstance(block, Legend))
    assert [(key.label, key.model) for key in legend.keys] == [(LABELS[name], model) for name, model in SERIES]
    for key, (name, model) in zip(legend.keys, SERIES, strict=True):
        assert _says(key.value, *truth.accuracy(name, model))


def test_sentences_say_what_the_files_give(page: Page, truth: Truth) -> None:
    said = spoken(page)
    for name in DISTILLED:
        for seed, rows in zip(SEEDS, truth.rows[name], strict=True):
            found = [client["matching"] for row in rows for client in row["clients"]]
            sick, restarts = sum(m["sick"] is not None for m in found), sum(m["retries"] for m in found)
            start, end = (np.median([m[key] for m in found]) for key in ("start", "end"))
            assert (
                f"{LABELS[name]}, seed {seed}: {len(found)} distillations, {sick} failed, {restarts} restarts. "
                f"Median matching loss {start:.3g} at the start, {end:.3g} at the end."
            ) in said
    for seed in SEEDS:
        shares = [np.array(row) / sum(row) for row in truth.partitions[seed]["histogram"].values()]
        pairs = [np.abs(a - b).sum() / 2 for index, a in enumerate(shares) for b in shares[:index]]
        assert f"Between two clients, {100 * np.mean(pairs):.1f} % of the images would have to change class" in said
    total = sum(_wall(row) for runs in truth.rows.values() for rows in runs for row in rows)
    assert f"Wall time: {round(total) // 60} min {round(total) % 60:02} s for {len(MADE) * len(SEEDS)} runs" in said


def test_the_html_holds_every_cell(page: Page) -> None:
    tables = _Tables(render(page)).tables
    wanted = [(table.title, [[cell.text for cell in row] for row in table.rows]) for table in grids(page)]
    assert [(title, rows) for title, rows in tables] == wanted


class _Tables(HTMLParser):
    """Captions and cells' text of all tables; what only the eye or only the ear gets beside a number is left out."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tables: list[tuple[str, list[list[str]]]] = []
        self.place: str | None = None
        self.hidden = 0
        self.inside = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        told = dict(attrs)
        if tag == "table":
            self.tables.append(("", []))
        elif tag == "tbody":
            self.inside = True
        elif tag == "tr" and self.inside:
            self.tables[-1][1].append([])
        elif tag in ("td", "th") and self.inside:
            self.tables[-1][1][-1].append("")
            self.place = "cell"
        elif tag == "caption":
            self.place = "caption"
        elif tag == "span" and (self.hidden or "aria-hidden" in told or "aside" in (told.get("class") or "")):
            self.hidden += 1

    def handle_endtag(self, tag: str) -> None:
        if tag == "tbody":
            self.inside = False
        elif tag in ("td", "th", "caption"):
            self.place = None
        elif tag == "span" and self.hidden:
            self.hidden -= 1

    def handle_data(self, data: str) -> None:
        if self.place is None or self.hidden:
            return
        title, rows = self.tables[-1]
        if self.place == "caption":
            self.tables[-1] = (title + data, rows)
        else:
            rows[-1][-1] += data


UNITS: Mapping[str, float] = {"%": 0.01, "B": 1, "kB": 1e3, "MB": 1e6, "GB": 1e9, "s": 1, "min": 60, "h": 3600}


def _says(text: str, number: float, spread: float | None) -> bool:
    """Whether ``text``, read back, is ``number`` and ``spread`` as far as it is written out."""
    plain = text.replace("\N{NARROW NO-BREAK SPACE}", " ").replace("−", "-")
    first, _, second = plain.partition(" ± ")
    unit = (re.findall(r"[a-zA-Z%]+$", plain) or [""])[0]
    scales = [UNITS[unit]] if unit else [1.0, 0.01]  # points of accuracy carry no unit
    told = any(_near(first, number, scale) for scale in scales)
    return told and (not second or any(_near(second, spread or 0.0, scale) for scale in scales))


def _near(text: str, number: float, scale: float) -> bool:
    pieces = re.findall(r"([-+]?\d[\d ]*\.?\d*(?:e[-+]?\d+)?) ?([a-zA-Z%]*)", text)
    total, slack = 0.0, 0.0
    for digits, unit in pieces:
        unit_scale = UNITS[unit] if unit else scale
        written = digits.replace(" ", "")
        mantissa, _, exponent = written.partition("e")
        decimals = len(mantissa.partition(".")[2]) - int(exponent or 0)
        total += float(written) * unit_scale
        # three digits are rounded to three significant ones; minutes and hours are cut
        slack = max(0.51 * 10.0**-decimals * unit_scale, 60.0 if unit == "min" and "h" in text else 0.0)
    return math.isclose(total, number, abs_tol=slack + 1e-12)


def test_reading_back_notices_a_wrong_text() -> None:
    assert _says("84.3\N{NARROW NO-BREAK SPACE}±\N{NARROW NO-BREAK SPACE}1.2\N{NARROW NO-BREAK SPACE}%", 0.8434, 0.0119)
    assert not _says("84.3 ± 1.2 %", 0.8447, 0.0119)
    assert not _says("84.3 ± 1.2 %", 0.8434, 0.013)
    assert _says("1 min 02 s ± 0.91 s", 62.2, 0.912)
    assert _says("9.28 ± 0.14 MB", 9_281_234, 142_000)
    assert not _says("9.28 ± 0.14 MB", 9_291_234, 142_000)
