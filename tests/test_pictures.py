from __future__ import annotations

import base64
import io
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

from fedstill.report.parts import Album, Tile
from fedstill.report.pictures import BUDGET, albums, spaces
from fedstill.report.runs import Run, read_run
from rundirs import write_run, write_synthetic

CLIENTS = [f"c{number:02}" for number in range(10)]


def made(folder: Path, rounds: tuple[int, ...] = (1, 2, 3), clients: int = 10, **options: int) -> Run:
    run = write_run(folder, clients=clients)
    for number in rounds:
        file = run / "synthetic" / f"round-{number:04}.safetensors"
        write_synthetic(file, [f"c{client:02}" for client in range(clients)], seed=number, **options)
    return read_run(run)


def content(tile: Tile) -> bytes:
    return b"" if tile.source is None else base64.b64decode(tile.source.partition(",")[2])


def spent(found: list[Album]) -> int:
    return sum(len(content(tile)) for album in found for sheet in album.sheets for tile in sheet.tiles)


def test_every_kept_round_is_a_sheet(tmp_path: Path) -> None:
    (album,) = albums({"FedDGM": made(tmp_path / "a", (1, 2, 4, 10), ipc=3, size=8)})
    assert (album.title, album.by, album.note) == ("FedDGM", "round", "")
    assert [sheet.label for sheet in album.sheets] == ["round 1", "round 2", "round 4", "round 10"]
    assert [[tile.client for tile in sheet.tiles] for sheet in album.sheets] == [CLIENTS] * 4
    assert all(Image.open(io.BytesIO(content(tile))).size == (26, 89) for sheet in album.sheets for tile in sheet.tiles)


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
    pixels = np.asarray(Image.open(io.BytesIO(content(tile))))
    assert pixels.shape == (5, 5, 2)
    assert pixels[0, 0].tolist() == [255, 255]
    assert pixels[0, 3].tolist() == [0, 255]
    assert pixels[3, 0].tolist() == [64, 255]
    assert (pixels[2, :, 1] == 0).all()
    assert pixels[3, 3, 1] == 0


def test_soft_labels_count_as_their_most_probable_class(tmp_path: Path) -> None:
    run = write_run(tmp_path / "a")
    labels = np.full((3, 10), 0.05, np.float32)
    labels[[0, 1, 2], [7, 5, 5]] = 0.55
    (run / "synthetic").mkdir()
    tensors = {"synthetic:c04/images": np.zeros((3, 3, 2, 2), np.float32), "synthetic:c04/labels": labels}
    save_file(tensors, run / "synthetic" / "round-0002.safetensors")
    (album,) = albums({"a": read_run(run)})
    assert album.sheets[0].tiles[0].rows == (("5", True), ("7", False))


@pytest.mark.parametrize("damage", ["cut", "empty", "channels", "kind", "labels", "soft", "short"])
def test_damaged_images_are_said(tmp_path: Path, damage: str) -> None:
    run = made(tmp_path / "a", size=4)
    file = run.folder / "synthetic" / "round-0001.safetensors"
    images = np.zeros((3, 1, 4, 4), np.float32)
    labels = np.zeros(3, np.int64)
    if damage in ("cut", "empty"):
        file.write_bytes(file.read_bytes()[:-100] if damage == "cut" else b"")
    else:
        tensors = {
            "channels": (np.zeros((3, 2, 4, 4), np.float32), labels),
            "kind": (np.zeros((3, 1, 4, 4), np.int32), labels),
            "labels": (images, np.zeros(3, np.float32)),
            "soft": (images, np.full((3, 2), np.nan, np.float32)),
            "short": (images, labels[:2]),
        }[damage]
        save_file({"synthetic:c00/images": tensors[0], "synthetic:c00/labels": tensors[1]}, file)
    (album,) = albums({"a": run})
    first, *others = album.sheets
    assert (first.problem, first.tiles) == ("the file of its images is damaged", ())
    assert all(sheet.tiles and not sheet.problem for sheet in others)


def test_runs_without_images_have_no_album(tmp_path: Path) -> None:
    assert albums({"a": read_run(write_run(tmp_path / "a"))}) == []
    assert spaces({"F0": read_run(write_run(tmp_path / "b"))}) == []


@pytest.mark.parametrize(
    ("budget", "note"),
    [
        (500_000, ""),
        (200_000, r"the first [4-9] of 10 a class"),
        (80_000, r"[2-7] of the 8 rounds that the run kept, the first 4 of 10 a class"),
        (16_000, r"2 of the 8 rounds that the run kept, the first [1-3] of 10 a class"),
    ],
)
def test_what_does_not_fit_is_left_out_and_said(tmp_path: Path, budget: int, note: str) -> None:
    run = made(tmp_path / "a", tuple(range(1, 9)), clients=4, size=8)
    found = albums({"a": run}, budget)
    assert budget / 4 < spent(found) <= budget
    assert re.fullmatch(
        f"Shown, to keep the page small: {note}. The run’s folder has all." if note else "", found[0].note
    )
    assert [found[0].sheets[index].label for index in (0, -1)] == ["round 1", "round 8"]
    assert all(content(tile) for sheet in found[0].sheets for tile in sheet.tiles)


def test_a_full_page_leaves_clients_out_and_says_so(tmp_path: Path) -> None:
    found = albums({"a": made(tmp_path / "a")}, 9_000)
    (sheet,) = found[0].sheets
    notes = [tile.note for tile in sheet.tiles]
    assert sheet.label == "round 3"
    assert notes[0] == ""
    assert notes[-1].startswith("left out")
    assert spent(found) <= 9_000


def test_albums_share_fairly(tmp_path: Path) -> None:
    small = made(tmp_path / "small", (1,), size=4, ipc=2)
    large = {name: made(tmp_path / name, (1, 2, 3), size=32, channels=3) for name in ("b", "c")}
    found = albums({"b": large["b"], "small": small, "c": large["c"]})
    assert [album.title for album in found] == ["b", "small", "c"]
    assert len({album.key for album in found}) == 3
    assert spent(found) <= BUDGET
    assert found[1].note == ""
    one, other = spent([found[0]]), spent([found[2]])
    assert abs(one - other) < 0.25 * one
    assert one > BUDGET / 4


def test_large_images_are_reduced(tmp_path: Path) -> None:
    run = write_run(tmp_path / "a")
    images = np.zeros((1, 3, 128, 130), np.float32)
    images[:, :, ::2] = 1.0
    (run / "synthetic").mkdir()
    tensors = {"synthetic:c00/images": images, "synthetic:c00/labels": np.array([0])}
    save_file(tensors, run / "synthetic" / "round-0001.safetensors")
    (album,) = albums({"a": read_run(run)})
    picture = Image.open(io.BytesIO(content(album.sheets[0].tiles[0])))
    # three pixels to one, ends left out
    assert picture.size == (43, 42)
    assert "at 1/3 of their size" in album.note
    assert 80 < np.asarray(picture)[..., 0].mean() < 175


def test_spaces_are_sheets_of_one_album(tmp_path: Path) -> None:
    runs = {f"F{space}": made(tmp_path / f"f{space}", (1, 2), size=8, ipc=2) for space in (0, 3)}
    (album,) = spaces(runs)
    assert (album.by, album.title) == ("space", "By latent space")
    assert [sheet.label for sheet in album.sheets] == ["F0, round 2", "F3, round 2"]
    (tight,) = spaces(runs, 8_000)
    assert len(tight.sheets) == 2
    assert spent([tight]) <= 8_000
    assert album.key != spaces({"F0": runs["F0"]})[0].key
