"""t-SNE and feature spaces."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.neighbors import KNeighborsClassifier

from fedstill.data.shard import Normalisation, Shard
from fedstill.errors import InputError
from fedstill.evaluate.embedding import tsne
from fedstill.evaluate.features import model_space, pixel_space, random_space
from fedstill.models.architecture import Architecture
from fedstill.models.files import save_model
from fedstill.seeds import Seed

SEED = Seed.root(0)


def shard(count=6, size=8, channels=1):
    images = torch.randint(0, 256, (count, channels, size, size), generator=SEED.torch(), dtype=torch.uint8)
    return Shard(images, torch.arange(count) % 2, ("a", "b"), Normalisation((0.4,) * channels, (0.2,) * channels))


def test_neighbours_stay_neighbours():
    """Digits: who is near on the map has the same label, for test points as for others."""
    data = load_digits()
    rows, labels = data.data[:300], data.target[:300]
    found = tsne(rows, seed=SEED)
    near = KNeighborsClassifier(5).fit(found.points[::2], labels[::2])
    assert near.score(found.points[1::2], labels[1::2]) > 0.85
    assert found.perplexity == 30
    np.testing.assert_array_equal(tsne(rows, seed=SEED).points, found.points)


@pytest.mark.parametrize(("count", "width", "perplexity"), [(7, 1, 2), (7, 3, 2), (10, 64, 3), (8, 2, 7 / 3)])
def test_few_points_have_few_neighbours(count, width, perplexity):
    rows = np.random.default_rng(0).normal(size=(count, width)).astype(np.float32)
    found = tsne(rows, seed=SEED)
    assert found.points.shape == (count, 2)
    assert np.isfinite(found.points).all()
    assert found.perplexity == pytest.approx(perplexity)


def test_what_has_no_map_is_refused():
    with pytest.raises(InputError, match="6 images are too few"):
        tsne(np.eye(6), seed=SEED)
    with pytest.raises(InputError, match="all images have the same features"):
        tsne(np.ones((9, 4)), seed=SEED)


def test_random_features_are_the_same_in_every_process_and_see_the_image():
    images = shard()
    first, again = (random_space(channels=1, size=(8, 8)) for _ in range(2))
    found = first.features(images)
    assert first.name == "untrained convnet, depth 3, width 128"
    assert found.shape == (6, 128)
    np.testing.assert_array_equal(again.features(images), found)
    assert len(np.unique(found, axis=0)) == 6


def test_small_images_have_a_shallower_network():
    space = random_space(channels=3, size=(4, 4))
    assert space.name == "untrained convnet, depth 2, width 128"
    assert space.features(shard(size=4, channels=3)).shape == (6, 128)


def test_pixels_are_normalised():
    images = shard()
    np.testing.assert_allclose(pixel_space().features(images), images.inputs().flatten(1).numpy())


def test_a_model_sees_images_as_it_learnt_them(tmp_path):
    architecture = Architecture("convnet", 1, (8, 8), 2, {"depth": 2, "width": 4})
    network = architecture.build(SEED)
    own = Normalisation((0.1,), (0.5,))
    path = tmp_path / "model.safetensors"
    save_model(
        path,
        network.state_dict(),
        architecture=architecture,
        classes=("a", "b"),
        normalisation=own,
        notes={"round": 3.0},
    )
    images = shard()
    space = model_space(path, images, name="mine")
    wanted = network.eval().features(own.apply(images.images.float() / 255)).detach().numpy()
    np.testing.assert_allclose(space.features(images), wanted, rtol=1e-5)
    assert space.name == "mine of round 3"
    with pytest.raises(InputError, match=r"takes images of 1 x 8 x 8 pixels, and those of the run are 1 x 16 x 16"):
        model_space(path, shard(size=16), name="mine")
