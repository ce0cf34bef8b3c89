from __future__ import annotations

import base64
import io
import json
import re
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import matplotlib
import numpy as np
import pytest
from PIL import Image

from fedstill.report.figures import Drawing, draw, save, series_id, swatch
from fedstill.report.figures.heat import span
from fedstill.report.figures.looks import PALETTE, dashes, hue, marker
from fedstill.report.parts import Axis, Drawn, Lines, Scatter, Style, Trace
from sample_page import bars, chart, cloud, heat, lines, pareto, traces

GAP = "\N{NARROW NO-BREAK SPACE}"
ALL: dict[str, Drawn] = {
    "lines": lines(),
    "log": lines("log", log=True),
    "pareto": pareto(),
    "cloud": cloud(),
    "heat": heat(),
    "many": heat(57, 100, "many"),
    "bars": bars(),
}


def parsed(drawing: Drawing) -> ElementTree.Element:
    return ElementTree.fromstring(f'<x xmlns:xlink="http://www.w3.org/1999/xlink">{drawing.svg}</x>')[0]


def told(drawing: Drawing) -> Any:
    found = re.fullmatch(r'<script type="application/json">(.*)</script>', str(drawing.readout))
    assert found is not None
    return json.loads(found[1])


def words(drawing: Drawing) -> list[str]:
    return ["".join(node.itertext()) for node in parsed(drawing).iter("text")]


def one(xs: list[float], ys: list[float], *, x: Axis, y: Axis, spreads: tuple[float | None, ...] = ()) -> Lines:
    return Lines(chart("one"), (Trace("a", "A", Style(0), xs, ys, spreads),), x, y)


@pytest.mark.parametrize("name", ALL)
def test_same_numbers_same_bytes(name: str) -> None:
    before = draw(ALL[name])
    with matplotlib.rc_context({"font.size": 30, "axes.facecolor": "red", "svg.fonttype": "path"}):
        assert draw(ALL[name]) == before


@pytest.mark.parametrize("name", ALL)
def test_a_figure_stands_in_a_page(name: str) -> None:
    drawing = draw(ALL[name])
    root = parsed(drawing)
    key = ALL[name].chart.key
    assert root.get("role") == "img"
    assert root.get("aria-label") == ALL[name].chart.spoken
    ids = [node.get("id", "") for node in root.iter() if node.get("id")]
    assert len(ids) == len(set(ids))
    assert all(found.startswith((f"{key}-", f"heat-{key}")) for found in ids)
    named = re.findall(r'(?:url\(#|href="#)([^)"]+)', str(drawing.svg))
    assert set(named) <= set(ids)
    # no rule of a figure's may hold for the page, and every colour is the page's
    assert "<style" not in drawing.svg
    assert not [style for style in re.findall(r'style="([^"]*)"', str(drawing.svg)) if re.search(r":\s*#", style)]


@pytest.mark.parametrize("chart_of", [lines(), pareto(), cloud()])
def test_every_series_can_be_hidden(chart_of: Drawn) -> None:
    root = parsed(draw(chart_of))
    assert isinstance(chart_of, Lines | Scatter)
    for trace in chart_of.traces:
        assert root.findall(f".//*[@class='{series_id(trace.series)}']")
    # nothing that has a series' colour stands outside its group
    for group in root.findall(".//*[@class]"):
        group.clear()
    assert not [colour for colour in PALETTE if colour in ElementTree.tostring(root, encoding="unicode")]


def test_a_published_value_is_hidden_with_its_series() -> None:
    root = parsed(draw(lines()))
    groups = root.findall(f".//*[@class='{series_id('FedDGM/surrogate')}']")
    assert any("FedDGM as published 73.7 %" in "".join(group.itertext()) for group in groups)


def test_readouts_say_what_the_numbers_are() -> None:
    data = told(draw(lines()))
    trace = traces()[0]
    series, name, points = data["t"][0]
    assert (series, name, len(points)) == (series_id("FedDGM/surrogate"), "FedDGM, surrogate", 10)
    for (x, y, where, text), n, value, spread in zip(points, trace.xs, trace.ys, trace.spreads, strict=True):
        assert where == f"round {n:g}"
        assert text == f"{100 * value:.1f}{GAP}±{GAP}{100 * (spread or 0):.1f}{GAP}%"
        assert 0 < x < 303
        assert 0 < y < 198
    xs = [point[0] for point in points]
    steps = np.diff(xs)
    assert steps.min() > 0
    assert steps.max() - steps.min() < 0.25


def test_readouts_lie_on_the_drawn_points() -> None:
    drawing = draw(lines())
    group = parsed(drawing).findall(f".//*[@class='{series_id('FedAvg/surrogate')}']")
    marks = [
        (float(use.get("x", "")), float(use.get("y", "")))
        for part in group
        for use in part.iter("use")
        if use.get("x") != "0"
    ]
    points = [
        (x, y) for series, _, its in told(drawing)["t"] if series == series_id("FedAvg/surrogate") for x, y, *_ in its
    ]
    assert np.array(sorted(marks)) == pytest.approx(np.array(sorted(points)), abs=0.11)


def test_readouts_of_a_field_are_by_row_and_column() -> None:
    chart_of = heat()
    drawing = draw(chart_of)
    data = told(drawing)
    assert (data["rows"], data["columns"], data["column"]) == (list(chart_of.rows), list(chart_of.columns), "round ")
    assert data["texts"][0][0] == f"{chart_of.values[0][0]:.3g}"
    missing = next((r, c) for r, row in enumerate(chart_of.values) for c, value in enumerate(row) if value is None)
    assert data["texts"][missing[0]][missing[1]] == "–"
    left, top, right, bottom = data["f"]
    image = next(parsed(drawing).iter("image"))
    scale_x, _, _, scale_y, x, y = map(float, re.findall(r"-?[\d.]+", image.get("transform", "")))
    assert (x, y) == pytest.approx((left, top), abs=0.1)
    assert (x + 10 * scale_x, y + 10 * scale_y) == pytest.approx((right, bottom), abs=0.1)


def test_readouts_of_bars_reach_over_their_parts() -> None:
    drawing = draw(bars())
    (_, name, spots), *_ = told(drawing)["t"]
    assert name == "FedDGM"
    assert [spot[2] for spot in spots] == list(bars().parts)
    for before, after in pairwise(spots):
        assert before[0] + before[4] == pytest.approx(after[0] - after[4], abs=0.3)


def test_a_long_curve_is_thinned_for_pointers_alone() -> None:
    many = one(list(range(1, 5001)), [n / 5000 for n in range(5000)], x=Axis("round", "round"), y=Axis("", "share"))
    points = told(draw(many))["t"][0][2]
    assert len(points) == 200
    assert (points[0][2], points[-1][2]) == ("round 1", "round 5000")


def test_text_of_a_figure_is_text() -> None:
    hostile = "</script><script>alert(1)</script>$x_1$&"
    trace = Trace(hostile, hostile, Style(0), [1, 2], [0.1, 0.2])
    drawing = draw(Lines(replace(chart("one"), spoken=hostile), (trace,), Axis(hostile), Axis(hostile)))
    assert parsed(drawing).get("aria-label") == hostile
    assert hostile in words(drawing)
    assert told(drawing)["t"][0][1] == hostile
    assert str(drawing.svg + drawing.readout).lower().count("<script") == 1


@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize(
    "numbers",
    [
        [],
        [0.0],
        [float("nan"), float("inf")],
        [0.5],
        [0.0, 0.5, float("nan"), 1e300],
        [-1.0, 2.0],
        [3.0, 3.0],
    ],
)
def test_any_numbers_give_a_figure(numbers: list[float], log: bool) -> None:
    xs: list[float] = list(range(len(numbers)))
    for unit in ("share", "seconds"):
        its = one(xs, numbers, x=Axis("x", unit, log), y=Axis("y", unit, log), spreads=(0.1,) * len(xs))
        kept = [y for x, y in zip(xs, numbers, strict=True) if abs(y) < 1e100 and (not log or (x > 0 and y > 0))]
        found = told(draw(its))["t"]
        assert sum(len(points) for _, _, points in found) == len(kept)


@pytest.mark.parametrize(
    ("axis", "xs", "ticks"),
    [
        (Axis("x", "bytes"), [1e6, 9e6], ["0", "2 MB", "4 MB", "6 MB", "8 MB"]),
        (Axis("x", "seconds"), [60, 600], ["0", "3 min", "6 min", "9 min"]),
        (Axis("x", "seconds"), [60, 30000], ["0", "2 h", "4 h", "6 h", "8 h"]),
        (Axis("x", "bytes", log=True), [1e3, 1e9], ["1 kB", "100 kB", "10 MB", "1 GB"]),
        (Axis("x", "seconds", log=True), [20, 900], ["30 s", "1 min", "3 min", "10 min"]),
        (Axis("x", "seconds", log=True), [0.2, 90000], ["1 s", "10 s", "1 min", "10 min", "1 h", "10 h"]),
        (Axis("x", "seconds", log=True), [65, 200], ["1.5 min", "2 min", "3 min"]),
        (Axis("x", "round"), [1, 2, 3], ["1", "2", "3"]),
    ],
)
def test_ticks_are_in_their_unit(axis: Axis, xs: list[float], ticks: list[str]) -> None:
    found = [text.replace(GAP, " ") for text in words(draw(one(xs, [0.5] * len(xs), x=axis, y=Axis("y", "share"))))]
    assert [tick for tick in ticks if tick not in found] == []


@pytest.mark.parametrize("axis", [Axis("x", "round"), Axis("x", whole=True)])
def test_nothing_lies_between_two_rounds(axis: Axis) -> None:
    found = words(draw(one([1, 2], [0.5, 0.5], x=axis, y=Axis("y", "share"))))
    assert not [text for text in found if text.startswith("1.")]


def test_no_band_where_the_spread_is_not_known() -> None:
    def areas(*spreads: float | None) -> int:
        its = one([1, 2, 3], [0.5, 0.6, 0.7], x=Axis("x", "round"), y=Axis("y", "share"), spreads=spreads)
        return draw(its).svg.count("opacity:0.16")

    assert areas(0.1, 0.1, 0.1) == 1
    assert areas(None, 0.1, None) == areas(None, None, None) == 0


def test_ticks_of_a_narrow_axis_differ() -> None:
    for unit in ("seconds", "bytes"):
        found = words(draw(one([204.7e6, 204.9e6], [0.1, 0.2], x=Axis("x", unit, log=True), y=Axis("y", "share"))))
        assert len(found) == len(set(found))


def test_a_hairs_breadth_does_not_look_like_a_gulf() -> None:
    found = words(draw(one([1, 2], [0.900, 0.901], x=Axis("x", "round"), y=Axis("y", "share"))))
    ticks = [float(text) for text in found if re.fullmatch(r"8\d|9\d", text)]
    assert max(ticks) - min(ticks) >= 5


def test_series_differ_without_colour() -> None:
    looks = {(dashes(Style(colour, dash)), marker(Style(colour, dash))) for colour in range(7) for dash in range(3)}
    assert len(looks) == 21
    assert len({hue(Style(colour)) for colour in range(6)}) == 6
    assert "stroke-dasharray" in swatch(Style(1))
    assert "stroke-dasharray" not in swatch(Style(1), line=False)


def test_the_scale_of_a_field_is_not_set_by_one_that_is_off() -> None:
    plain = heat()
    row = [0.1 + 0.001 * n for n in range(99)]
    off = replace(plain, rows=("a",), columns=tuple(map(str, range(100))), values=((*row, 1e6),), flags=())
    found = span(off)
    assert found is not None
    assert found.beyond
    assert found.high < 1
    assert "and more" in draw(off).key
    shares = span(heat(share=True))
    assert shares is not None
    assert (shares.low, shares.high, shares.beyond) == (0.0, 1.0, False)


def test_a_field_is_a_pixel_a_cell() -> None:
    chart_of = heat(57, 100, "many")
    drawing = draw(chart_of)
    image = next(parsed(drawing).iter("image"))
    picture = Image.open(io.BytesIO(base64.b64decode(image.get("href", "").partition(",")[2])))
    assert picture.size == (100, 57)
    assert len(drawing.svg) < 60_000
    pixels = np.asarray(picture.convert("RGBA")).astype(int)
    values = np.array([[np.nan if value is None else value for value in row] for row in chart_of.values])
    empty = np.isnan(values)
    assert (pixels[..., 3][empty] == 0).all()
    assert (pixels[..., 3][~empty] == 255).all()
    # larger is denser
    order = np.argsort(values[~empty])
    assert (np.diff(pixels[..., 0][~empty][order]) >= 0).all()
    assert "no value" in drawing.key
    assert "marked" in drawing.key
    assert drawing.wide


@pytest.mark.parametrize(("rows", "columns"), [(0, 0), (1, 1), (3, 0), (1, 300)])
def test_a_field_of_any_size_gives_a_figure(rows: int, columns: int) -> None:
    its = replace(heat(rows, columns), flags=())
    assert told(draw(its))["columns"] == list(its.columns)
    empty = replace(its, values=((None,) * columns,) * rows)
    assert parsed(draw(empty)).get("role") == "img"


def test_names_beside_points_do_not_lie_on_each_other() -> None:
    close = tuple(
        Trace(f"s{n}", f"a method called {n}", Style(n), (1e6 * (1 + n / 50),), (0.5 + n / 500,)) for n in range(5)
    )
    drawing = draw(replace(pareto(), traces=close, front=()))
    boxes = []
    for node in parsed(drawing).iter("text"):
        if "a method" in "".join(node.itertext()):
            x, y = float(node.get("x", "nan")), float(node.get("y", "nan"))
            boxes.append((x, y, x + 0.5 * 7.5 * 18, y + 7.5))
    assert len(boxes) == 5
    for index, (left, low, right, high) in enumerate(boxes):
        for other in boxes[index + 1 :]:
            assert right <= other[0] or other[2] <= left or high <= other[1] or other[3] <= low


@pytest.mark.parametrize("kind", ["png", "svg"])
@pytest.mark.parametrize("name", ["lines", "pareto", "cloud", "heat", "bars"])
def test_figures_for_a_paper_stand_alone(tmp_path: Path, name: str, kind: Any) -> None:
    first, second = tmp_path / f"a.{kind}", tmp_path / f"b.{kind}"
    save(ALL[name], first, kind)
    save(ALL[name], second, kind)
    content = first.read_bytes()
    assert content == second.read_bytes()
    if kind == "png":
        picture = Image.open(first)
        assert picture.info["dpi"] == pytest.approx((300, 300), abs=0.1)
        assert 1200 < picture.width < 2100
        assert picture.getpixel((0, 0))[:3] == (255, 255, 255)  # type: ignore[index]
    else:
        text = content.decode()
        ElementTree.fromstring(text)
        assert "var(" not in text
        assert "<text" not in text
        assert not re.findall(r'href="(?!#|data:)', text)
