"""A page of many methods: small charts in the place of one that nobody could read, switches, folds, its size."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree

import pytest

from fedstill.report import write_report
from fedstill.report.figures import draw, series_id
from fedstill.report.figures.looks import PALETTE, dashes, hue, marker
from fedstill.report.page import build
from fedstill.report.parts import Folded, Legend, Lines, Page, Scatter, charts, walk
from fedstill.report.runs import read_run
from fedstill.report.series import MOST_TOGETHER
from rundirs import write_synthetic
from runs_fixture import Made, spoken, write_comparison

METHODS = (
    *("fedavg", "fedprox", "fednova", "scaffold", "fedavgm", "fedadam", "moon", "fedproto", "vhl", "feddm", "feddgm"),
    *("prioronly", "centralised"),
)
TITLES = {"fedavg": "FedAvg", "prioronly": "PriorOnly, control", "centralised": "Centralised, ceiling"}


def alone(names: Sequence[str]) -> dict[str, Made]:
    """One network each."""
    return {name: Made(method=name, models=("global",)) for name in names}


def page(*runs: Path) -> Page:
    return build([read_run(run) for run in runs])


def lines(made: Page, key: str = "accuracy-by-round") -> Lines:
    (found,) = (each for each in charts(made) if each.chart.key == key)
    assert isinstance(found, Lines)
    return found


def switches(made: Page) -> list[str]:
    legend = next(block for block in walk(made) if isinstance(block, Legend))
    return [key.series for key in legend.keys]


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Page:
    known = {"published": {"source": "A paper"}, "published.accuracy": {"convnet": 0.7}}
    made = alone(METHODS) | {"fedavg": Made(method="fedavg", models=("global",), settings=known)}
    return page(*write_comparison(tmp_path_factory.mktemp("many"), made, seeds=(0, 1)))


def test_few_curves_share_a_chart_and_many_have_one_each(tmp_path: Path) -> None:
    runs = write_comparison(tmp_path, alone(METHODS[: MOST_TOGETHER + 1]), seeds=(0,))
    few, more = lines(page(*runs[:-1])), lines(page(*runs))
    assert few.panels is None
    assert {trace.panel for trace in few.traces} == {""}
    assert more.panels is not None
    assert more.panels.context
    assert len(more.panels.names) == MOST_TOGETHER + 1


@pytest.mark.parametrize("key", ["accuracy-by-round", "accuracy-by-bytes", "accuracy-by-seconds"])
def test_every_method_stands_in_its_own_chart_once(many: Page, key: str) -> None:
    chart = lines(many, key)
    assert chart.panels is not None
    shown = [name for name in METHODS if (name, key) != ("centralised", "accuracy-by-bytes")]
    assert len(chart.panels.names) == len(METHODS)
    assert {TITLES["fedavg"], TITLES["prioronly"], TITLES["centralised"]} <= set(chart.panels.names)
    assert Counter(trace.panel for trace in chart.traces) == Counter(
        name for name in chart.panels.names if len(shown) == len(METHODS) or name != TITLES["centralised"]
    )
    assert len({trace.series for trace in chart.traces}) == len(shown)
    assert [(mark.panel, mark.y) for mark in chart.marks] == [("FedAvg", 0.7)]


def test_methods_differ_in_how_they_look_and_look_alike_everywhere(many: Page) -> None:
    looks = {}
    for chart in charts(many):
        for trace in chart.traces if isinstance(chart, Lines | Scatter) else ():
            if trace.series.startswith("g") and len(trace.series.split("-")) == 2:
                looks.setdefault(trace.series, set()).add(trace.style)
    assert {len(styles) for styles in looks.values()} == {1}
    seen = [(hue(style), marker(style), dashes(style)) for (style,) in looks.values()]
    assert len(set(seen)) == len(METHODS)
    assert {colour for colour, *_ in seen} <= set(PALETTE)


def test_every_curve_is_drawn_in_its_colour_and_the_others_behind_it_in_grey(many: Page) -> None:
    chart = lines(many)
    drawing = draw(chart)
    assert drawing.wide
    root = ElementTree.fromstring(f'<x xmlns:xlink="http://www.w3.org/1999/xlink">{drawing.svg}</x>')
    said = Counter("".join(node.itertext()) for node in root.iter("text"))
    assert chart.panels is not None
    for name in chart.panels.names:
        assert said[name] == 1
    for trace in chart.traces:
        # the band, the line and the marker at its end; nothing of it stands in another's chart
        groups = root.findall(f".//*[@class='{series_id(trace.series)}']")
        assert len(groups) == (4 if trace.panel == "FedAvg" else 3)  # and what is published
        assert all(hue(trace.style) in ElementTree.tostring(group, encoding="unicode") for group in groups)
    read = json.loads(re.sub(r"</?script[^>]*>", "", str(drawing.readout)))["t"]
    assert [(series, len(points)) for series, _, points in read] == [
        (series_id(trace.series), len(trace.xs)) for trace in chart.traces
    ]
    behind = [node for node in root.iter() if re.search(r"var\(--rule.*stroke-width: ?0\.9", node.get("style", ""))]
    assert len(behind) == len(METHODS) * (len(METHODS) - 1)


def test_long_pages_fold_what_is_many(many: Page) -> None:
    section = {each.key: each for each in many.sections}
    folds = [block.summary for each in many.sections for block in each.blocks if isinstance(block, Folded)]
    assert f"All settings of {len(METHODS)} methods" in folds
    assert f"What each of {len(METHODS)} models takes for what" in folds
    assert {"By bytes sent", "By time"} <= set(folds)
    # names beside so many points would lie on each other
    assert isinstance(section["pareto"].blocks[0], Legend)
    assert not any(chart.named for chart in charts(many) if isinstance(chart, Scatter))
    assert "and 5 more" in many.title


def test_settings_and_networks_are_charts_where_there_are_several(tmp_path: Path) -> None:
    made = {
        f"{name}-{alpha}-{network}": Made(
            method=name,
            models=("global",),
            settings={"partition": {"alpha": alpha}, "model": {"name": network}},
        )
        for alpha in (0.5, 0.1)
        for network in ("convnet", "resnet18")
        for name in METHODS[:7]
    }
    built = page(*write_comparison(tmp_path, made, seeds=(0,)))
    chart = lines(built)
    assert chart.panels is not None
    assert chart.panels.names == tuple(
        f"alpha {alpha}: {net}" for alpha in (0.5, 0.1) for net in ("convnet", "resnet18")
    )
    assert (chart.panels.columns, chart.panels.context) == (2, False)
    assert Counter(trace.panel for trace in chart.traces) == dict.fromkeys(chart.panels.names, 7)
    # 28 series are switched by method, each with one colour in all charts
    assert len(switches(built)) == 7
    assert {trace.series for trace in chart.traces} == set(switches(built))
    for name in switches(built):
        assert len({hue(trace.style) for trace in chart.traces if trace.series == name}) == 1


def test_a_curve_that_stands_for_two_networks_is_in_both_charts(tmp_path: Path) -> None:
    server = {"algorithm": {"global_models": [{"name": "convnet", "depth": 3, "width": 32}]}}
    made = {
        f"{name}-{alpha}": Made(
            method=name,
            models=("surrogate", "convnet") if name == "feddgm" else ("global",),
            settings={"partition": {"alpha": alpha}, **(server if name == "feddgm" else {})},
        )
        for alpha in (0.9, 0.5, 0.1)
        for name in ("fedavg", "fedprox", "feddgm")
    }
    chart = lines(page(*write_comparison(tmp_path, made, seeds=(0,))))
    assert chart.panels is not None
    assert len(chart.panels.names) == 6
    assert Counter(trace.panel for trace in chart.traces) == dict.fromkeys(chart.panels.names, 3)
    assert len(chart.traces) == 18
    assert len({trace.label for trace in chart.traces}) == 12


def test_the_total_of_a_sweep_is_said_once(many: Page) -> None:
    assert re.search(
        rf"{2 * len(METHODS)} runs: \d+ min \d\d s of wall time and \d+ min \d\d s of CPU time; "
        r"the longest, .+, seed \d, took [\d.]+ s\.$",
        many.footing.replace("\N{NARROW NO-BREAK SPACE}", " "),
    )
    assert spoken(many).count(f"{2 * len(METHODS)} runs: ") == 1


@pytest.mark.slow
def test_a_page_of_39_runs_stays_below_5_mb(tmp_path: Path) -> None:
    distilling = ("feddm", "feddgm", "prioronly")
    made = {
        name: Made(
            method=name,
            models=("surrogate", "resnet18") if name in distilling else ("global",),
            rounds=20,
            clients=10,
            classes=10,
            distils=name in distilling,
            gradients=name == "feddgm",
            evaluated=name in distilling,
        )
        for name in METHODS
    }
    runs = write_comparison(tmp_path, made, seeds=(0, 1, 2))
    assert len(runs) == 39
    for run in runs:
        if run.name.partition("-")[0] in distilling:
            for number in (1, 10, 20):
                names = [f"c{client:02}" for client in range(10)]
                write_synthetic(
                    run / "synthetic" / f"round-{number:04}.safetensors", names, seed=number, size=32, channels=3
                )
    write_report(runs, tmp_path / "report.html")
    assert 1_000_000 < (tmp_path / "report.html").stat().st_size < 5_000_000
