"""Loading: every source, the shared steps after it, and one clear sentence for each thing a user can get wrong."""

from __future__ import annotations

import io
import json
import struct
import sys
import zlib
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from pydantic import TypeAdapter, ValidationError

from fedstill.data.grid import grid
from fedstill.data.images import SUFFIXES, load_folder_images
from fedstill.data.sources import SOURCES, DataSettings, Loaded, load
from fedstill.errors import InputError, MissingExtra
from fedstill.seeds import Seed
from fedstill.tables import resolve

SEED = Seed.root(0)
RNG = np.random.default_rng(0)


def noise(height: int = 8, width: int = 8, channels: int = 3) -> np.ndarray:
    shape = (height, width, channels) if channels > 1 else (height, width)
    return RNG.integers(0, 256, shape, np.uint8)


def png(pixels: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def write(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def write_parquet(
    path: Path,
    pictures: list[bytes | None],
    labels: object,
    names: list[str] | None = None,
    **more: object,
) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.table({"image": [{"bytes": each, "path": None} for each in pictures], "label": labels, **more})
    if names is not None:
        features = {"image": {"_type": "Image"}, "label": {"names": names, "_type": "ClassLabel"}}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pq.write_table(table, path)
    return path


def tree(root: Path, layout: Mapping[str, int]) -> Path:
    for folder, count in layout.items():
        for number in range(count):
            write(root / folder / f"{number:02d}.png", png(noise()))
    return root


def get(**options: object) -> Loaded:
    return load(TypeAdapter(DataSettings).validate_python(options), SEED)


def fails(match: str, **options: object) -> None:
    with pytest.raises(InputError, match=match) as caught:
        get(**options)
    assert "\n" not in str(caught.value)


# settings


def test_every_setting_is_described_and_has_a_default() -> None:
    schema = TypeAdapter(DataSettings).json_schema()
    assert all("description" in field for field in schema["properties"].values())
    assert "required" not in schema
    assert TypeAdapter(DataSettings).validate_python({}) == DataSettings()


@pytest.mark.parametrize("wrong", [{"size": 0}, {"channels": 2}, {"test_fraction": 1.0}, {"std": [0.0]}, {"sise": 8}])
def test_settings_out_of_range_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        TypeAdapter(DataSettings).validate_python(wrong)


def test_unknown_source_is_answered_with_the_nearest() -> None:
    fails("data.source = 'foldr': did you mean 'folder'", source="foldr")


def test_table_of_sources_resolves() -> None:
    assert all(callable(resolve(SOURCES, name, "data.source")) for name in SOURCES)


@pytest.mark.parametrize("source", ["parquet", "folder", "arrays", "hub"])
def test_missing_path_says_what_is_needed(source: str) -> None:
    fails(f"data.path is missing: data.source = '{source}' needs", source=source)


@pytest.mark.parametrize("source", ["parquet", "folder", "arrays"])
def test_absent_path_is_named(source: str, tmp_path: Path) -> None:
    fails("nowhere.*there is no such file or folder", source=source, path=str(tmp_path / "nowhere"))


# digits, and what all sources share


def test_digits_is_whole_and_its_test_split_fixed() -> None:
    first, again = load(DataSettings(), Seed.root(1)), load(DataSettings(), Seed.root(2))
    assert len(first.train) + len(first.test) == 1797
    assert first.train.size == (8, 8)
    assert first.train.channels == 1
    assert int(first.train.images.max()) == 255
    assert torch.equal(first.test.images, again.test.images)
    assert max(first.test.histogram()) - min(first.test.histogram()) <= 2
    assert not first.skipped


def test_resize_and_channels() -> None:
    loaded = get(size=[12, 16], channels=3, limit=20, test_limit=10)
    assert tuple(loaded.train.images.shape) == (20, 3, 12, 16)
    assert loaded.train.histogram() == [2] * 10
    assert loaded.test.histogram() == [1] * 10
    assert loaded.train.normalisation.channels == 3
    assert torch.equal(loaded.train.images[:, 0], loaded.train.images[:, 2])


def test_measured_normalisation_makes_training_inputs_standard() -> None:
    inputs = get().train.inputs()
    assert abs(float(inputs.mean())) < 1e-5
    assert abs(float(inputs.std()) - 1) < 1e-4


def test_given_normalisation_is_kept_and_checked() -> None:
    assert get(mean=[0.5], std=[0.25]).test.normalisation.std == (0.25,)
    fails("data.mean and data.std go together", mean=[0.5])
    fails("data.mean has 3 numbers, but the images have 1", mean=[0.5] * 3, std=[0.5] * 3)


# parquet


def test_parquet_reads_pixels_names_and_groups(tmp_path: Path) -> None:
    pictures = [noise() for _ in range(6)]
    path = write_parquet(
        tmp_path / "train.parquet",
        [png(each) for each in pictures],
        [0, 1, 2] * 2,
        ["a", "b", "c"],
        site=["x", "y"] * 3,
    )
    write_parquet(tmp_path / "test.parquet", [png(noise())], [2], ["a", "b", "c"], site=["z"])
    for options in ({"path": str(tmp_path)}, {"path": str(path), "test": str(tmp_path / "test.parquet")}):
        loaded = get(source="parquet", group_column="site", **options)
        assert np.array_equal(loaded.train.images.numpy().transpose(0, 2, 3, 1), np.stack(pictures))
        assert loaded.train.labels.tolist() == [0, 1, 2, 0, 1, 2]
        assert loaded.train.classes == ("a", "b", "c")
        assert loaded.train_groups == ("x", "y") * 3
        assert loaded.test_groups == ("z",)


def test_split_off_test_is_stratified_disjoint_and_seeded(tmp_path: Path) -> None:
    pictures = [png(np.full((4, 4), number, np.uint8)) for number in range(50)]
    path = write_parquet(tmp_path / "all.parquet", pictures, [0] * 30 + [1] * 20)
    settings = DataSettings(source="parquet", path=str(path))
    first, again, other = (load(settings, Seed.root(number)) for number in (0, 0, 1))
    assert first.test.histogram() == [6, 4]
    held = {int(image.float().mean()) for image in first.test.images}
    assert held.isdisjoint(int(image.float().mean()) for image in first.train.images)
    assert torch.equal(first.test.images, again.test.images)
    assert not torch.equal(first.test.images, other.test.images)


def test_parquet_mistakes(tmp_path: Path) -> None:
    good = [png(noise())] * 4
    text = str(write(tmp_path / "text.parquet", b"not a table"))
    fails("text.parquet cannot be read as Parquet", source="parquet", path=text)
    path = str(write_parquet(tmp_path / "a.parquet", good, [0, 0, 1, 1], ["a", "b"]))
    fails(
        "a.parquet: data.image_column = 'imagee': did you mean 'image'",
        source="parquet",
        path=path,
        image_column="imagee",
    )
    fails("data.group_column = 'site': known: image, label", source="parquet", path=path, group_column="site")
    fails("not pictures", source="parquet", path=path, image_column="label")
    fails("holds no train", source="parquet", path=str(tmp_path))
    for labels, reason in (
        ([0.5] * 4, "must be one integer a row"),
        (["a"] * 4, "must be one integer a row"),
        ([0, -1, 0, 0], "row 1 has the negative label -1"),
        ([0, 1, 2, 0], "row 2 has the label 2, but there are 2 classes"),
        ([0, None, 0, 0], "lacks 1 labels"),
    ):
        wrong = str(write_parquet(tmp_path / "wrong.parquet", good, labels, ["a", "b"]))
        fails(f"wrong.parquet.*{reason}", source="parquet", path=wrong)
    pq.write_table(pq.read_table(path).slice(0, 0), tmp_path / "empty.parquet")
    fails("empty.parquet': there are no images", source="parquet", path=str(tmp_path / "empty.parquet"))
    unnamed = str(write_parquet(tmp_path / "unnamed.parquet", good, [0, 1, 0, 1]))
    beyond = str(write_parquet(tmp_path / "beyond.parquet", good, [0, 1, 2, 1]))
    fails("beyond.parquet: row 2 has the label 2, but there are 2 classes", source="parquet", path=unnamed, test=beyond)
    other = str(write_parquet(tmp_path / "other.parquet", good, [0, 1, 0, 1], ["a", "c"]))
    fails("other.parquet names the classes a, c, but .*a.parquet a, b", source="parquet", path=path, test=other)
    fails(r"data.classes = \['b', 'a'\], but", source="parquet", path=path, classes=["b", "a"])


@pytest.mark.parametrize("path", ["../secret.png", "in/../../secret.png", None])
def test_paths_in_a_parquet_file_stay_below_its_folder(path: str | None, tmp_path: Path) -> None:
    secret = write(tmp_path / "secret.png", png(noise()))
    write(tmp_path / "data" / "in" / "a.png", png(noise()))
    paths = ["in/a.png"] * 3 + [path or str(secret)]
    kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    images = pa.array([{"bytes": None, "path": each} for each in paths], kind)
    table = pa.table({"image": images, "label": [0, 1, 0, 1]})
    pq.write_table(table, tmp_path / "data" / "t.parquet")
    fails(r"t\.parquet, row 3: .*leads out of the folder", source="parquet", path=str(tmp_path / "data" / "t.parquet"))


def test_corrupt_picture_is_named_or_skipped(tmp_path: Path) -> None:
    pictures: list[bytes | None] = [png(noise()) for _ in range(10)]
    pictures[3] = b"\x89PNG\r\n\x1a\n garbage"
    pictures[4] = None
    pictures[5] = png(noise())[:-30]
    path = str(write_parquet(tmp_path / "a.parquet", pictures, [0, 1] * 5))
    test = str(write_parquet(tmp_path / "t.parquet", [png(noise())], [0]))
    fails("a.parquet, row 3: .*skip_bad", source="parquet", path=path, test=test)
    loaded = get(source="parquet", path=path, test=test, skip_bad=True)
    assert len(loaded.train) == 7
    assert loaded.train.labels.tolist() == [0, 1, 0, 0, 1, 0, 1]
    assert [name.rpartition(" ")[2] for name, _ in loaded.skipped] == ["3", "4", "5"]


def test_nothing_readable_is_an_error_with_skip_bad_too(tmp_path: Path) -> None:
    path = str(write_parquet(tmp_path / "a.parquet", [b"x"] * 4, [0, 1] * 2))
    fails("none of the 3 training images can be read", source="parquet", path=path, skip_bad=True)


def test_unequal_sizes_need_a_size(tmp_path: Path) -> None:
    path = str(write_parquet(tmp_path / "a.parquet", [png(noise(8, 8)), png(noise(8, 9))] * 4, [0, 0, 1, 1] * 2))
    fails("pixels .height x width. and .*set data.size", source="parquet", path=path)
    assert get(source="parquet", path=path, size=8).train.size == (8, 8)


def test_grey_among_colour_becomes_colour(tmp_path: Path) -> None:
    path = str(write_parquet(tmp_path / "a.parquet", [png(noise()), png(noise(channels=1))] * 4, [0, 0, 1, 1] * 2))
    assert get(source="parquet", path=path).train.channels == 3


def test_a_picture_that_claims_a_huge_size_is_refused(tmp_path: Path) -> None:
    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    for side, reason in ((60_000, "decompression bomb"), (9_000, "more than 67,108,864 are refused")):
        header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0))
        bomb = b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
        path = str(write_parquet(tmp_path / "a.parquet", [bomb] * 4, [0, 0, 1, 1]))
        fails(f"a.parquet, row 0: .*{reason}", source="parquet", path=path)


# folder


def test_folder_by_class(tmp_path: Path) -> None:
    tree(tmp_path, {"cat": 5, "dog/deep": 5, ".hidden": 2})
    write(tmp_path / "cat" / "notes.txt", b"no picture")
    loaded = get(source="folder", path=str(tmp_path))
    assert loaded.train.classes == ("cat", "dog")
    assert (len(loaded.train), len(loaded.test)) == (8, 2)
    assert loaded.train_groups is None


def test_folder_with_splits(tmp_path: Path) -> None:
    tree(tmp_path, {"train/cat": 3, "train/dog": 2, "test/dog": 1})
    loaded = get(source="folder", path=str(tmp_path))
    assert loaded.train.histogram() == [3, 2]
    assert loaded.test.histogram() == [0, 1]


def test_folder_by_client_takes_the_union_of_classes(tmp_path: Path) -> None:
    tree(tmp_path / "sites", {"Zürich/cat": 2, "Zürich/newt": 2, "Basel/dog": 2})
    tree(tmp_path / "server", {"cat": 1, "dog": 1, "newt": 1})
    loaded = get(source="folder", path=str(tmp_path / "sites"), clients=True, test=str(tmp_path / "server"))
    assert loaded.train.classes == ("cat", "dog", "newt")
    assert Counter(loaded.train_groups) == {"Basel": 2, "Zürich": 4}
    assert loaded.train.histogram() == [2, 2, 2]
    assert loaded.test_groups is None
    split = get(source="folder", path=str(tmp_path / "sites"), clients=True, test_fraction=0.5)
    assert Counter(split.test_groups) == {"Basel": 1, "Zürich": 2}


def test_given_classes_fix_the_list_where_a_site_lacks_some(tmp_path: Path) -> None:
    tree(tmp_path, {"dog": 5})
    assert get(source="folder", path=str(tmp_path), classes=["cat", "dog"]).train.histogram() == [0, 4]
    fails("'dog' that is not among data.classes: cat", source="folder", path=str(tmp_path), classes=["cat"])


def test_folder_mistakes(tmp_path: Path) -> None:
    (tmp_path / "empty" / "cat").mkdir(parents=True)
    fails(
        "empty holds no class folder with an image in it .looked for .png",
        source="folder",
        path=str(tmp_path / "empty"),
    )
    flat = tree(tmp_path, {"flat": 3}) / "flat"
    fails("pictures lie in it directly", source="folder", path=str(flat))
    fails("is a file; data.source = 'folder' needs", source="folder", path=str(flat / "00.png"))
    fails("holds no client folder", source="folder", path=str(flat), clients=True)
    tree(tmp_path / "set", {"train/cat": 2, "test/Cat": 2})
    fails("class folder 'Cat' that is not among the training classes", source="folder", path=str(tmp_path / "set"))
    write(flat.parent / "bad" / "cat" / "x.png", b"no picture")
    fails(
        "x.png: is not an image in a known format",
        source="folder",
        path=str(tmp_path / "bad"),
        test=str(tmp_path / "bad"),
    )


# arrays


@pytest.mark.parametrize("layout", ["nhw", "nhwc", "nchw", "float"])
def test_arrays_layouts(layout: str, tmp_path: Path) -> None:
    pixels = RNG.integers(0, 256, (10, 6, 5, 1 if layout == "nhw" else 3), np.uint8)
    stored = {
        "nhw": pixels[..., 0],
        "nhwc": pixels,
        "nchw": pixels.transpose(0, 3, 1, 2),
        "float": (pixels / 255).astype(np.float32),
    }[layout]
    labels = np.arange(10) % 2
    np.savez(tmp_path / "a.npz", x_train=stored, y_train=labels, x_test=stored[:2], y_test=labels[:2])
    (tmp_path / "pair").mkdir()
    np.save(tmp_path / "pair" / "images.npy", stored)
    np.save(tmp_path / "pair" / "labels.npy", labels)
    np.save(tmp_path / "pair" / "site.npy", np.array(["a", "b"] * 5))
    loaded = get(source="arrays", path=str(tmp_path / "a.npz"))
    assert np.array_equal(loaded.train.images.numpy(), pixels.transpose(0, 3, 1, 2))
    assert len(loaded.test) == 2
    pair = get(source="arrays", path=str(tmp_path / "pair"), group_column="site", classes=["no", "yes"])
    assert len(pair.train) == 8
    assert pair.train.classes == ("no", "yes")
    assert Counter(pair.train_groups) == {"a": 4, "b": 4}


def test_arrays_mistakes(tmp_path: Path) -> None:
    good, labels = np.zeros((4, 5, 5)), np.array([0, 1, 0, 1])

    def wrong(match: str, **members: object) -> None:
        np.savez(tmp_path / "a.npz", **members)
        fails(f"a.npz.*{match}", source="arrays", path=str(tmp_path / "a.npz"))

    wrong("cannot be read as plain numbers", images=np.array([{}] * 4, dtype=object), labels=labels)
    wrong("row 2 holds NaN", images=np.where(np.arange(4)[:, None, None] == 2, np.nan, good), labels=labels)
    wrong("row 0 holds floats from 7 to 7; floats must lie in 0…1", images=good + 7, labels=labels)
    wrong("not int64", images=good.astype(np.int64), labels=labels)
    wrong("4 images and '.*' 3 labels", images=good, labels=labels[:3])
    wrong("which axis", images=np.zeros((4, 3, 5, 3)), labels=labels)
    wrong("must be .n, h, w.", images=np.zeros((4, 5)), labels=labels)
    wrong("must be one integer a row", images=good, labels=labels / 2)
    wrong("holds a, b; it should be", a=good, b=labels)
    wrong("no images", images=good[:0], labels=labels[:0])
    write(tmp_path / "b.npz", b"text")
    fails("b.npz is not a .npz file", source="arrays", path=str(tmp_path / "b.npz"))
    np.savez(tmp_path / "c.npz", images=good, labels=labels)
    np.savez(tmp_path / "d.npz", images=good, labels=labels + 7)
    fails("d.npz", source="arrays", path=str(tmp_path / "c.npz"), test=str(tmp_path / "d.npz"), classes=["a", "b"])
    fails("names no array", source="arrays", path=str(tmp_path / "c.npz"), group_column="site")


# hub


def test_hub_reads_a_local_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    pictures = [noise() for _ in range(6)]
    write_parquet(tmp_path / "set" / "train.parquet", [png(each) for each in pictures], [0, 1] * 3, ["a", "b"])
    write_parquet(tmp_path / "set" / "test.parquet", [png(noise())], [1], ["a", "b"])
    loaded = get(source="hub", path=str(tmp_path / "set"))
    assert np.array_equal(loaded.train.images.numpy().transpose(0, 2, 3, 1), np.stack(pictures))
    assert loaded.train.classes == ("a", "b")
    assert len(loaded.test) == 1
    fails("data.test = 'tset': did you mean 'test'", source="hub", path=str(tmp_path / "set"), test="tset")
    fails("cannot be loaded", source="hub", path=str(tmp_path / "absent"))


def test_hub_without_its_package_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(MissingExtra, match=r"pip install 'fedstill\[hub\]'"):
        get(source="hub", path="owner/name")


# pictures for prediction


def test_folder_images_for_prediction(tmp_path: Path) -> None:
    tree(tmp_path, {"b": 1, "a/deep": 1})
    write(tmp_path / "c.PNG", png(noise(4, 4, 1)))
    names, images, skipped = load_folder_images(tmp_path, size=(6, 7), channels=3)
    assert names == ("a/deep/00.png", "b/00.png", "c.PNG")
    assert tuple(images.shape) == (3, 3, 6, 7)
    assert skipped == ()
    one = load_folder_images(tmp_path / "c.PNG", size=(6, 7), channels=1)
    assert one.names == ("c.PNG",)
    write(tmp_path / "d.png", b"no picture")
    with pytest.raises(InputError, match=r"d\.png"):
        load_folder_images(tmp_path, size=(6, 7), channels=3)
    assert load_folder_images(tmp_path, size=(6, 7), channels=3, skip_bad=True).skipped[0][0].endswith("d.png")
    (tmp_path / "none").mkdir()
    for path, match in (
        (tmp_path / "none", f"looked for {SUFFIXES[0]}"),
        (tmp_path / "gone", "no such file or folder"),
    ):
        with pytest.raises(InputError, match=match):
            load_folder_images(path, size=(6, 7), channels=3)


def test_sixteen_bit_grey_keeps_its_range(tmp_path: Path) -> None:
    values = np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8)
    Image.fromarray(values).save(tmp_path / "x.png")
    images = load_folder_images(tmp_path, size=(8, 8), channels=1).images
    assert np.abs(images[0, 0].numpy() * 257.0 - values).max() <= 128


def test_orientation_tags_are_obeyed(tmp_path: Path) -> None:
    picture = Image.fromarray(
        np.repeat(np.array([[0], [255]], np.uint8), 8, 1).repeat(8, 0)
    )  # dark above, bright below
    exif = Image.Exif()
    exif[0x0112] = 3  # taken upside down
    picture.save(tmp_path / "x.jpg", exif=exif, quality=95)
    images = load_folder_images(tmp_path, size=(4, 4), channels=1).images
    assert images[0, 0, 0].min() > 200
    assert images[0, 0, -1].max() < 50


def test_shrinking_averages_and_crop_keeps_the_centre(tmp_path: Path) -> None:
    board = (np.indices((32, 64)).sum(0) % 2 * 255).astype(np.uint8)
    board[:, :16] = board[:, 48:] = 0
    Image.fromarray(board).save(tmp_path / "x.png")
    cropped = load_folder_images(tmp_path, size=(4, 4), channels=1, fit="crop").images
    assert int(cropped[0, 0, :, 1:3].min()) > 110
    stretched = load_folder_images(tmp_path, size=(4, 4), channels=1).images
    assert int(stretched[0, 0, :, 0].max()) < 20


def test_large_photographs_are_read_at_reduced_scale_without_visible_loss(tmp_path: Path) -> None:
    y, x = np.mgrid[0:800, 0:600]
    photo = np.stack([x % 256, y % 256, (x + y) // 6], -1).astype(np.uint8)
    Image.fromarray(photo).save(tmp_path / "x.jpg", quality=95)
    Image.fromarray(photo).save(tmp_path / "x.png")
    images = load_folder_images(tmp_path, size=(32, 32), channels=3).images.float()
    assert float((images[0] - images[1]).abs().mean()) < 6


# contact sheets


def test_grid_enlarges_labels_and_marks() -> None:
    images = torch.zeros(5, 1, 4, 6, dtype=torch.uint8)
    images[1] = 255
    sheet = grid(images, columns=3, scale=2, gap=2)
    assert sheet.size == (3 * 14 + 2, 2 * 10 + 2)
    assert sheet.getpixel((3, 3)) == (0, 0, 0)
    assert sheet.getpixel((17, 3)) == (255, 255, 255)
    marked = grid(images.float() * 9 - 1, columns=3, scale=2, gap=2, row_labels=["c00", "c01"], marks={0})
    assert marked.width > sheet.width
    red, green, blue = marked.getpixel((marked.width - sheet.width, 0))
    assert red > 200 > green + blue
    with pytest.raises(ValueError, match="3 row labels for 2 rows"):
        grid(images, columns=3, row_labels=["a", "b", "c"])
