"""The nineteen corruptions, and a data set under them."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image
from pydantic import TypeAdapter

from fedstill.data import blurs
from fedstill.data.blurs import centre_zoom, smeared
from fedstill.data.corruptions import CORRUPTIONS, SEVERITIES, corrupt
from fedstill.data.sources import DataSettings, Loaded, digest, load
from fedstill.errors import InputError
from fedstill.seeds import Seed

SEED = Seed.root(0)
DRAW = np.random.default_rng(0)
TEXTURES = [DRAW.integers(0, 256, (40, 50, 3), np.uint8) for _ in range(6)]
# these are published so: their strengths do not rise as pixels differ
NOT_BY_PIXELS = {"elastic_transform"}


def scene(number: int) -> np.ndarray:
    """Smooth ground, one bright and one dark shape: as much structure as a small photograph has."""
    draw = np.random.default_rng(number)
    y, x = np.mgrid[:32, :32] / 31
    image = np.stack([0.3 + 0.4 * (y * draw.random() + x * draw.random()) for _ in range(3)], -1)
    for level in (0.95, 0.05):
        top, left = draw.integers(2, 18, 2)
        image[top : top + 10, left : left + 8] = level * (0.6 + 0.4 * draw.random(3))
    return np.rint(image * 255).astype(np.uint8)


def apply(image: np.ndarray, name: str, severity: int, number: int = 0) -> np.ndarray:
    return corrupt(image, name, severity, np.random.default_rng(number), textures=TEXTURES)


def png(pixels: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def write_set(path: Path, pictures: list[np.ndarray], labels: list[int], **more: object) -> str:
    rows = [{"bytes": png(each), "path": None} for each in pictures]
    pq.write_table(pa.table({"image": rows, "label": labels, **more}), path)
    return str(path)


def get(**options: object) -> Loaded:
    return load(TypeAdapter(DataSettings).validate_python(options), SEED)


def fails(match: str, **options: object) -> None:
    with pytest.raises(InputError, match=match) as caught:
        get(**options)
    assert "\n" not in str(caught.value)


def test_there_are_nineteen() -> None:
    assert len(set(CORRUPTIONS)) == len(CORRUPTIONS) == 19


@pytest.mark.parametrize("name", CORRUPTIONS)
@pytest.mark.parametrize("severity", SEVERITIES)
def test_form_and_repeatability(name: str, severity: int) -> None:
    image = scene(1)
    before = image.copy()
    first, again = apply(image, name, severity), apply(image, name, severity)
    assert first.shape == (32, 32, 3)
    assert first.dtype == np.uint8
    assert np.array_equal(first, again)
    assert np.array_equal(image, before)
    assert not np.array_equal(first, image) or name in ("spatter", "jpeg_compression")


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_the_weakest_is_nearer_than_the_strongest(name: str) -> None:
    images = [scene(number) for number in range(24)]

    def distance(severity: int) -> float:
        changed = [apply(image, name, severity, number) for number, image in enumerate(images)]
        return float(np.mean([np.abs(a.astype(float) - b).mean() for a, b in zip(changed, images, strict=True)]))

    assert (distance(1) < distance(5)) != (name in NOT_BY_PIXELS)


@pytest.mark.parametrize("name", CORRUPTIONS)
@given(image=arrays(np.uint8, (32, 32, 3), elements=st.sampled_from([0, 1, 127, 254, 255])), severity=st.integers(1, 5))
@settings(max_examples=8, deadline=None)
def test_any_image_is_taken(name: str, image: np.ndarray, severity: int) -> None:
    result = apply(image, name, severity)
    assert result.shape == image.shape
    assert result.dtype == np.uint8


@pytest.mark.parametrize("level", [0, 128, 255])
@pytest.mark.parametrize(
    "name", ["defocus_blur", "glass_blur", "motion_blur", "zoom_blur", "gaussian_blur", "contrast", "pixelate"]
)
def test_blurs_leave_a_plain_image(name: str, level: int) -> None:
    plain = np.full((32, 32, 3), level, np.uint8)
    for severity in SEVERITIES:
        assert np.array_equal(apply(plain, name, severity), plain)


def test_noise_has_the_published_deviation() -> None:
    grey = np.full((32, 32, 3), 128, np.uint8)
    for severity, deviation in enumerate((0.04, 0.06, 0.08, 0.09, 0.10), start=1):
        values = np.concatenate([apply(grey, "gaussian_noise", severity, number).ravel() for number in range(8)])
        assert abs(values.std() / 255 - deviation) < 0.002
        impulses = [apply(grey, "impulse_noise", severity, number) for number in range(8)]
        share = float(np.mean([(each != 128).mean() for each in impulses]))
        assert abs(share - (0.01, 0.02, 0.03, 0.05, 0.07)[severity - 1]) < 0.005


def test_brightness_adds_to_v_and_keeps_the_ratio_of_colours() -> None:
    image = np.full((32, 32, 3), (100, 50, 25), np.uint8)
    assert apply(image, "brightness", 1)[0, 0].tolist() == [113, 56, 28]
    assert apply(np.zeros_like(image), "brightness", 2)[0, 0].tolist() == [26, 26, 26]


def test_saturation_is_scaled_around_v() -> None:
    image = np.full((32, 32, 3), (200, 100, 150), np.uint8)
    assert apply(image, "saturate", 1)[0, 0].tolist() == [200, 170, 185]
    assert apply(image, "saturate", 5)[0, 0].tolist() == [200, 0, 100]


def test_a_smear_moves_along_its_direction() -> None:
    dot = np.zeros((32, 32))
    dot[16, 16] = 1
    smear = smeared(dot, 6, 2.0, degrees=0)
    assert smear[16].sum() == pytest.approx(1)
    assert smear[16, 4:17].min() > 0
    assert smear[16, 17:].max() == 0


def test_zooms_are_as_many_as_in_the_published_ranges() -> None:
    ends = (1.06, 1.11, 1.16, 1.21, 1.26)
    assert tuple(len(np.arange(1, end, 0.01)) for end in ends) == blurs._ZOOM


def test_zoom_by_one_is_nothing_and_by_more_keeps_the_centre() -> None:
    image = DRAW.random((32, 32, 3))
    assert np.allclose(centre_zoom(image, 1.0), image)
    ramp = np.repeat(np.arange(32.0)[:, None], 32, 1)
    zoomed = centre_zoom(ramp, 2.0)
    assert zoomed.mean() == pytest.approx(15.5)
    assert zoomed[-1, 0] - zoomed[0, 0] == pytest.approx(15.5)


def test_glass_moves_no_pixel_further_than_its_rounds() -> None:
    ramp = np.repeat(np.arange(32, dtype=np.uint8)[:, None, None] * 8, 32, 1).repeat(3, 2)
    for severity, reach in ((1, 1), (4, 2)):
        moved = np.abs(apply(ramp, "glass_blur", severity).astype(int) - ramp)
        assert moved.max() <= 8 * reach + 1


# a data set under corruptions


@pytest.fixture
def clean(tmp_path: Path) -> str:
    return write_set(tmp_path / "clean.parquet", [scene(number) for number in range(40)], [0, 1] * 20)


@pytest.fixture
def frost(tmp_path: Path) -> str:
    folder = tmp_path / "frost"
    folder.mkdir()
    for number, each in enumerate(TEXTURES):
        Image.fromarray(each).save(folder / f"{number}.png")
    return str(folder)


def test_copies_are_domains_and_share_no_picture_between_the_splits(clean: str, frost: str) -> None:
    loaded = get(source="parquet", path=clean, corruptions=["all"], frost=frost, severity=2)
    assert len(loaded.train) == 19 * 32
    assert len(loaded.test) == 19 * 8
    assert loaded.train_groups == tuple(name for name in CORRUPTIONS for _ in range(32))
    assert loaded.test_groups == tuple(name for name in CORRUPTIONS for _ in range(8))
    assert loaded.train.labels.tolist() == loaded.train.labels[:32].tolist() * 19
    assert loaded.train.size == (32, 32)


def test_shares_give_each_picture_one_corruption_evenly_in_each_class(clean: str) -> None:
    loaded = get(source="parquet", path=clean, corruptions=["fog", "contrast"], spread="shares")
    assert len(loaded.train) == 32
    assert loaded.train_groups is not None
    for label in (0, 1):
        own = [
            group
            for group, other in zip(loaded.train_groups, loaded.train.labels.tolist(), strict=True)
            if other == label
        ]
        assert own.count("fog") == own.count("contrast") == 8


def test_what_happens_to_a_row_depends_on_nothing_else(clean: str) -> None:
    both = get(source="parquet", path=clean, corruptions=["snow", "fog"])
    fog = get(source="parquet", path=clean, corruptions=["fog"])
    again = get(source="parquet", path=clean, corruptions=["fog"])
    assert torch.equal(both.train.images[32:], fog.train.images)
    assert digest(fog) == digest(again) != digest(both)
    assert fog.train_groups is None
    few = get(source="parquet", path=clean, corruptions=["fog"], limit=6, size=16, channels=1)
    assert tuple(few.train.images.shape) == (6, 1, 16, 16)


def test_pictures_are_brought_to_the_strengths_size_first(tmp_path: Path) -> None:
    large = [np.asarray(Image.fromarray(scene(number)).resize((64, 64))) for number in range(6)]
    path = write_set(tmp_path / "large.parquet", large, [0, 1] * 3)
    assert get(source="parquet", path=path, corruptions=["pixelate"]).train.size == (32, 32)
    assert get(source="parquet", path=path, corruptions=["pixelate"], size=28).train.size == (28, 28)


def test_one_corruption_keeps_the_domains_of_the_data_and_several_are_refused(tmp_path: Path) -> None:
    pictures = [scene(number) for number in range(8)]
    path = write_set(tmp_path / "s.parquet", pictures, [0, 1] * 4, site=["a", "b"] * 4)
    options = {"source": "parquet", "path": path, "group_column": "site"}
    assert set(get(**options, corruptions=["fog"]).train_groups or ()) == {"a", "b"}
    fails("the data name domains already", **options, corruptions=["fog", "snow"])


def test_frost_from_parquet_is_frost_from_a_folder(clean: str, frost: str, tmp_path: Path) -> None:
    textures = write_set(tmp_path / "t.parquet", TEXTURES, [0] * 6)
    options = {"source": "parquet", "path": clean, "corruptions": ["frost"]}
    assert digest(get(**options, frost=textures)) == digest(get(**options, frost=frost))


def test_corruption_mistakes(clean: str, tmp_path: Path) -> None:
    options = {"source": "parquet", "path": clean}
    fails("data.frost is missing: the corruption 'frost' needs textures", **options, corruptions=["frost"])
    fails("data.corruptions = 'fogg': did you mean 'fog'", **options, corruptions=["fogg"])
    fails("names 'fog' twice", **options, corruptions=["fog", "fog"])
    frost = {**options, "corruptions": ["frost"]}
    fails("data.frost = .*there is no such file", **frost, frost=str(tmp_path / "none"))
    (tmp_path / "empty").mkdir()
    fails("holds no picture", **frost, frost=str(tmp_path / "empty"))
    small = write_set(tmp_path / "small.parquet", [TEXTURES[0][:20]], [0])
    fails("picture 0 has 20 x 50 pixels", **frost, frost=small)
    (tmp_path / "text.parquet").write_bytes(b"text")
    fails("cannot be read as Parquet", **frost, frost=str(tmp_path / "text.parquet"))
    pq.write_table(pa.table({"image": [1, 2]}), tmp_path / "numbers.parquet")
    fails("holds no pictures", **frost, frost=str(tmp_path / "numbers.parquet"))
    pq.write_table(pa.table({"other": [1, 2]}), tmp_path / "other.parquet")
    fails("column image", **frost, frost=str(tmp_path / "other.parquet"))
