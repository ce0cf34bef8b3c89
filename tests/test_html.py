from __future__ import annotations

import base64
import hashlib
import re
import time
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import pytest

from fedstill.report.figures import series_id
from fedstill.report.html import render
from fedstill.report.parts import (
    Axis,
    Cell,
    Chart,
    Facts,
    Folded,
    Grid,
    Key,
    Legend,
    Lines,
    Page,
    Section,
    Style,
    Text,
    Trace,
    cell,
    charts,
)
from sample_page import grid, heat, legend, lines, page

VOID = {"meta", "link", "img", "br", "input", "path", "use", "circle", "rect", "image"}


class Parsed(HTMLParser):
    """Every tag closes what it opened; what tests ask for is kept."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.words = ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] not in ("style", "script"):
            self.words += data

    def all(self, tag: str, **having: str) -> list[dict[str, str]]:
        return [found for name, found in self.tags if name == tag and having.items() <= found.items()]


def alone(*blocks: object) -> Page:
    return Page("t", "v", "", (), (Section("s", "S", blocks),))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def whole() -> str:
    return render(page())


def test_same_page_same_text(whole: str) -> None:
    assert render(page()) == whole


def test_page_is_whole_and_asks_for_nothing(whole: str) -> None:
    found = Parsed(whole)
    ids = [attributes["id"] for _, attributes in found.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    addresses = [value for _, attributes in found.tags for name, value in attributes.items() if name in ("src", "href")]
    assert addresses
    assert all(address.startswith(("data:", "#")) for address in addresses)
    assert {address[1:] for address in addresses if address.startswith("#")} <= set(ids)
    # namespaces of SVG are names, not requests
    assert not re.findall(r"url\((?!#)|@import|https?://(?!www\.w3\.org/)", whole)


def test_only_the_pages_own_script_may_run(whole: str) -> None:
    found = Parsed(whole)
    (policy,) = found.all("meta", **{"http-equiv": "Content-Security-Policy"})
    assert policy["content"].startswith("default-src 'none'; ")
    scripts = re.findall(r"<script>(.*?)</script>", whole, re.DOTALL)
    assert len(scripts) == 1
    digest = base64.b64encode(hashlib.sha256(scripts[0].encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}';" in policy["content"]
    assert not re.search(r"\beval\b|new Function|innerHTML", scripts[0])
    # what the others hold is not run
    assert all(each.get("type") == "application/json" for each in found.all("script") if each)
    assert len(found.all("script")) == 1 + len(list(charts(page())))
    assert not [name for _, attributes in found.tags for name in attributes if name.startswith("on")]


def test_names_are_text() -> None:
    evil = "<script>alert(1)</script>\"'>{{ 7 * 7 }}"
    hostile = Page(
        evil,
        evil,
        evil,
        (evil,),
        (
            Section(
                "s",
                evil,
                (
                    Text(evil),
                    Grid("g", evil, (evil, evil), ((cell(evil), Cell(evil, 1, tone="best")),), note=evil),
                    Facts(((evil, ((evil, evil),)),)),
                    Legend((Key(evil, evil, evil, Style(0), evil),)),
                    Folded(evil, (Text(evil),)),
                    Lines(
                        Chart("c", evil, evil, evil, grid("x", evil)),
                        (Trace(evil, evil, Style(0), [1.0], [1.0]),),
                        Axis(evil),
                        Axis(evil),
                    ),
                ),
            ),
        ),
    )
    text = render(hostile)
    assert [each.get("type") for each in Parsed(text).all("script")] == ["application/json", None]
    assert "49" not in Parsed(text).words
    assert Parsed(text).words.count(evil) >= 12


def test_every_series_has_a_switch_that_is_css(whole: str) -> None:
    switches = [each for each in Parsed(whole).all("input", type="checkbox") if "switch" in each["class"]]
    assert all("checked" in each for each in switches)
    for key in legend().keys:
        name = series_id(key.series)
        assert f"body:has(.switch-{name}:not(:checked)) .{name} {{ display: none; }}" in whole
        assert sum(f"switch-{name}" in each["class"] for each in switches) == 1
        assert whole.count(f'class="{name}"') > 3


def test_series_that_no_legend_holds_are_switched_beside_their_chart() -> None:
    text = render(alone(lines()))
    switches = re.findall(r'class="switch switch-(series-[0-9a-f]{8})"', text)
    assert switches == [series_id(trace.series) for trace in lines().traces]
    assert all(f"body:has(.switch-{name}:not(:checked))" in text for name in switches)
    assert len(re.findall('class="switch ', render(alone(legend(), lines())))) == len(switches)


def test_one_series_alone_has_nothing_to_switch() -> None:
    one = replace(lines(), traces=lines().traces[:1], marks=())
    legend_of_one = Legend(legend().keys[:1])
    text = render(alone(legend_of_one, one, replace(one, chart=replace(one.chart, key="again"))))
    assert 'class="switch ' not in text
    assert legend_of_one.keys[0].label in text
    assert 'class="switch ' not in render(alone(one))


def test_every_number_of_a_table_is_on_the_page(whole: str) -> None:
    cells = re.findall(r"<t[dh][^>]*>(.*?)</t[dh]>", whole)
    for chart in charts(page()):
        for row in chart.chart.table.rows:
            assert all(any(one.text in text for text in cells) for one in row)


def test_tones_are_said_without_colour() -> None:
    def row(tone: str, text: str = "4 %") -> str:
        table = Grid("g", "t", ("a", "b"), ((cell("x"), Cell(text, 4, tone=tone)),))  # type: ignore[arg-type]
        found = re.search(r"<td[^>]*>.*?</td>", render(alone(table)))
        assert found is not None
        return found[0]

    assert row("") == "<td>4 %</td>"
    for tone, sign, word in (
        ("best", "★", "best"),
        ("gain", "▲", "better"),
        ("loss", "▼", "worse"),
        ("sick", "!", "sick"),
    ):
        assert f'aria-hidden="true">{sign}</span>4 %' in row(tone)
        assert f'<span class="aside"> {word}</span>' in row(tone)
    assert "aside" not in row("sick", "sick")
    assert row("mute") == '<td class="mute">4 %</td>'
    assert row("best", "") == '<td class="best"></td>'


def test_tables_are_read_aloud(whole: str) -> None:
    found = Parsed(whole)
    assert len(found.all("table")) == whole.count("<caption>")
    assert all(each.get("scope") in ("row", "col") for each in found.all("th"))
    assert all(each.get("aria-label") for each in found.all("div", role="group"))


def test_headings_go_down_one_level_at_a_time(whole: str) -> None:
    levels = [int(name[1]) for name, _ in Parsed(whole).tags if re.fullmatch("h[1-6]", name)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after - before <= 1 for before, after in pairwise(levels))


def test_a_long_page_has_contents(whole: str) -> None:
    links = [each["href"] for each in Parsed(whole).all("a")]
    assert links == ["#main", *(f"#{section.key}" for section in page().sections)]
    assert "<nav" not in render(alone(Text("x")))


def test_a_live_page_says_so(whole: str) -> None:
    text = render(replace(alone(Text("x")), live=10))
    assert '<noscript><meta http-equiv="refresh" content="10"></noscript>' in text
    assert 'data-live="10"' in text
    assert "reads itself again every 10 s" in Parsed(text).words
    assert 'http-equiv="refresh"' not in whole
    assert "reads itself again" not in Parsed(whole).words


def test_without_its_script_every_round_is_there(whole: str) -> None:
    sheets = Parsed(whole).all("details", **{"class": "sheet"})
    assert len(sheets) == 5
    assert ["open" in sheet for sheet in sheets] == [True, False, False, False, True]
    assert "No pictures: the file of its images is damaged." in Parsed(whole).words


def test_classes_that_a_client_does_not_hold_are_marked(whole: str) -> None:
    assert 'title="5: not held by c00"' in whole
    (first, *_) = Parsed(whole).all("img")
    assert first["alt"] == "Distilled images for c00, one row a class; not held: 2, 3, 4, 5, 6, 7, 8, 9"


def test_a_page_of_nothing_is_a_page() -> None:
    Parsed(render(Page("", "", "", (), ())))
    Parsed(render(alone(Grid("g", "", ("a",), ()), Legend(()), Facts(()), Folded("x", ()))))


def test_many_cells_are_quick_and_small() -> None:
    rows = tuple(
        (cell(f"c{client:02}"), *(Cell("0.342", 0.342) for _ in range(100))) for _ in range(20) for client in range(57)
    )
    began = time.process_time()
    text = render(alone(Grid("g", "Losses", ("Client", *map(str, range(100))), rows)))
    assert time.process_time() - began < 3
    assert len(text) < 2_000_000


def test_shades_are_in_ten_steps() -> None:
    cells = tuple(Cell("1", 1, shade=shade) for shade in (0.0, 0.5, 1.0, 2.0))
    text = render(alone(Grid("g", "t", ("a", "b", "c", "d", "e"), ((cell("x"), *cells),))))
    assert re.findall(r'class="shade (v\d+)"', text) == ["v0", "v5", "v10", "v10"]


def test_charts_that_follow_one_another_stand_side_by_side() -> None:
    text = render(alone(lines(), heat(key="b"), Text("between"), heat(key="c")))
    assert [part.count("<figure") for part in text.split('<div class="charts">')[1:]] == [2, 1]


def test_templates_are_in_the_package() -> None:
    import fedstill.report

    folder = Path(fedstill.report.__file__).parent / "templates"
    assert {file.name for file in folder.iterdir()} == {"page.html.j2", "blocks.html.j2", "page.css", "page.js"}
