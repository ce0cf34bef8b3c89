"""The page as HTML: drawing, pictures, and that nothing in a run's files can break it."""

from __future__ import annotations

import base64
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

from fedstill.report import write_report
from fedstill.report.pictures import albums
from fedstill.report.runs import read_run
from rundirs import edit, write_run, write_synthetic

VOID = {"meta", "link", "img", "br", "path", "use", "circle", "rect", "input"}


class _Page(HTMLParser):
    """Every tag closes what it opened; ids and addresses are kept."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.addresses: list[str] = []
        self.tags: list[str] = []
        self.open: list[str] = []
        self.words = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.ids += [value or "" for name, value in attrs if name == "id"]
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href", "xlink:href", "srcset")]
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
        if self.open and self.open[-1] not in ("style", "script"):
            self.words += data + " "


def page(tmp_path: Path, *runs: Path) -> str:
    out = tmp_path / "report.html"
    write_report(runs, out)
    return out.read_text(encoding="utf-8")


def test_page_is_whole_and_alone(tmp_path: Path, comparison: list[Path]) -> None:
    pictured = write_run(tmp_path / "pictured", seed=7, images=True, matching=True)
    text = page(tmp_path, *comparison, pictured)
    parsed = _Page(text)
    assert parsed.open == []
    assert len(parsed.ids) == len(set(parsed.ids))
    assert all(address.startswith(("data:", "#")) for address in parsed.addresses)
    # namespaces of SVG are names, not requests
    assert not re.findall(r"url\((?!#)|@import|https?://(?!www\.w3\.org/)", text)
    assert len(text) < 3_000_000


def test_same_files_same_page(tmp_path: Path, comparison: list[Path]) -> None:
    assert page(tmp_path, *comparison) == page(tmp_path, *comparison)


def test_a_readers_matplotlibrc_changes_nothing(tmp_path: Path, comparison: list[Path]) -> None:
    import matplotlib

    before = page(tmp_path, *comparison)
    with matplotlib.rc_context({"font.size": 30, "axes.facecolor": "red", "svg.fonttype": "path"}):
        assert page(tmp_path, *comparison) == before


def test_images_mark_classes_not_held(tmp_path: Path) -> None:
    run = write_run(tmp_path / "a", images=True)
    text = page(tmp_path, run)
    assert text.count("data:image/png;base64,") == 20
    assert text.count("not held by c00") == 2 * 8
    # matched against the partition, not against the position in the list
    assert 'title="5: not held by c00"' in text
    assert 'title="1: not held by c00"' not in text


def test_images_are_those_of_the_run(tmp_path: Path) -> None:
    run = write_run(tmp_path / "a")
    images = np.zeros((3, 1, 2, 2), np.float32)
    images[0], images[1], images[2] = 0.25, 2.0, np.nan
    tensors = {"synthetic:c04/images": images, "synthetic:c04/labels": np.array([7, 5, 5])}
    (run / "synthetic").mkdir()
    save_file(tensors, run / "synthetic" / "round-0002.safetensors")
    (album,) = albums({"a": read_run(run)})
    (sheet,) = album.sheets
    (tile,) = sheet.tiles
    assert (sheet.label, tile.rows) == ("round 2", (("5", True), ("7", False)))
    assert tile.source is not None
    picture = Image.open(io.BytesIO(base64.b64decode(tile.source.partition(",")[2])))
    pixels = np.asarray(picture)
    assert pixels.shape == (5, 5, 2)
    assert pixels[0, 0].tolist() == [255, 255]
    assert pixels[0, 3].tolist() == [0, 255]
    assert pixels[3, 0].tolist() == [64, 255]
    assert (pixels[2, :, 1] == 0).all()
    assert pixels[3, 3, 1] == 0


@pytest.mark.parametrize("damage", ["cut", "empty", "shape", "kind"])
def test_damaged_images_are_said(tmp_path: Path, damage: str) -> None:
    run = write_run(tmp_path / "a", images=True)
    file = run / "synthetic" / "round-0001.safetensors"
    if damage in ("shape", "kind"):
        images = np.zeros((3, 2, 4, 4), np.float32) if damage == "shape" else np.zeros((3, 1, 4, 4), np.int32)
        save_file({"synthetic:c00/images": images, "synthetic:c00/labels": np.zeros(3, np.int64)}, file)
    else:
        file.write_bytes(file.read_bytes()[:-100] if damage == "cut" else b"")
    text = page(tmp_path, run)
    assert "the file of its images is damaged" in text
    assert text.count("data:image/png") == 10


def test_page_stays_small(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / f"r{n}", settings=f"[extra]\nk = {n}", clients=12) for n in range(2)]
    for run in runs:
        clients = [f"c{number:02}" for number in range(12)]
        write_synthetic(run / "synthetic" / "round-0003.safetensors", clients, size=32, channels=3)
    text = page(tmp_path, *runs)
    assert len(text) < 3_000_000
    assert re.search(r"first \d of 10 a class", text)


def test_a_full_page_leaves_images_out_and_says_so(tmp_path: Path) -> None:
    (album,) = albums({"a": read_run(write_run(tmp_path / "a", images=True))}, budget=9_000)
    notes = [tile.note for sheet in album.sheets for tile in sheet.tiles]
    assert notes[-1].startswith("left out")
    assert not notes[0].startswith("left out")


def test_hostile_names_are_text(tmp_path: Path) -> None:
    run = write_run(tmp_path / "a", matching=True)
    evil = "<script>alert(1)</script>$x_1$"
    partition = json.loads((run / "partition.json").read_text())
    scripts = []
    for name in ("harmless", evil):
        edit(
            run / "metrics.jsonl",
            failures=[{"client": name, "reason": name}],
            seconds={name: 1.0},
            accuracy={name: 0.5},
        )
        partition["classes"][0] = name
        (run / "partition.json").write_text(json.dumps(partition))
        text = page(tmp_path, run)
        scripts.append(_Page(text).tags.count("script"))
    assert scripts[0] == scripts[1]
    assert evil not in text
