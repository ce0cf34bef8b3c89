"""Likeness of images against the formulas and scikit-image's numbers, and what it says of a guess."""

import json
import math
import sys
from types import ModuleType

import numpy as np
import pytest
import torch

from fedstill.audit import perceptual
from fedstill.audit.likeness import best_match, correlation, likeness, psnr, ssim
from fedstill.data.shard import Normalisation, Shard
from fedstill.errors import InputError
from fedstill.seeds import Seed

ROOT = Seed.root(0)


def images(name, n, channels=1, height=8, width=8):
    return torch.rand(n, channels, height, width, generator=ROOT.at(name).torch())


def shard(name, labels):
    return Shard(images(name, len(labels)), torch.tensor(labels), ("a", "b", "c"), Normalisation((0.5,), (0.25,)))


def test_psnr_is_the_formula_and_ends_at_100():
    x, y = images("x", 3), images("y", 3)
    wanted = [-10 * math.log10(float(((a - b) ** 2).mean())) for a, b in zip(x.numpy(), y.numpy(), strict=True)]
    assert psnr(x, y).tolist() == pytest.approx(wanted)
    assert psnr(x, x).tolist() == pytest.approx([100] * 3)


def by_places(x, y, side):
    """SSIM of one channel, a place at a time."""
    line = np.exp(-((np.arange(side) - side // 2) ** 2) / (2 * 1.5**2))
    window = np.outer(line, line) / line.sum() ** 2
    values = []
    for top in range(x.shape[0] - side + 1):
        for left in range(x.shape[1] - side + 1):
            a, b = (each[top : top + side, left : left + side] for each in (x, y))
            ma, mb = (window * a).sum(), (window * b).sum()
            va, vb = (window * (a - ma) ** 2).sum(), (window * (b - mb) ** 2).sum()
            vab = (window * (a - ma) * (b - mb)).sum()
            values.append((2 * ma * mb + 1e-4) * (2 * vab + 9e-4) / ((ma**2 + mb**2 + 1e-4) * (va + vb + 9e-4)))
    return np.mean(values)


@pytest.mark.parametrize(("height", "width", "side"), [(13, 12, 11), (8, 8, 7), (9, 20, 9), (3, 3, 3), (1, 5, 1)])
def test_ssim_is_the_formula_under_the_largest_window_that_fits(height, width, side):
    x, y = images("x", 2, 3, height, width), images("y", 2, 3, height, width)
    wanted = [
        np.mean([by_places(a, b, side) for a, b in zip(p, q, strict=True)])
        for p, q in zip(x.double().numpy(), y.double().numpy(), strict=True)
    ]
    assert ssim(x, y).tolist() == pytest.approx(wanted, abs=1e-6)
    assert ssim(x, x).tolist() == pytest.approx([1, 1])


def test_ssim_is_scikit_images():
    a = np.random.default_rng(0).random((13, 17, 3))
    b = np.clip(a + 0.1 * np.random.default_rng(1).standard_normal(a.shape), 0, 1)
    x, y = (torch.from_numpy(each).permute(2, 0, 1)[None] for each in (a, b))
    # structural_similarity(a, b, channel_axis=2, data_range=1, gaussian_weights=True, use_sample_covariance=False) of 0.26.0
    assert ssim(x, y).item() == pytest.approx(0.9505930327805396, abs=1e-6)


def test_bytes_are_pixels_and_what_leaves_the_range_is_cut():
    x = (images("x", 2) * 255).round()
    assert torch.equal(psnr(x.to(torch.uint8), x / 255), torch.full((2,), 100.0))
    assert torch.equal(ssim(torch.full((1, 1, 8, 8), 1.5), torch.ones(1, 1, 8, 8)), torch.ones(1))


def test_the_assignment_finds_what_was_shuffled():
    x = images("x", 6)
    order = [3, 1, 5]
    assert best_match(x[order] + 0.05, x).true == tuple(order)
    few = best_match(x, x[order])
    assert (few.found, few.true) == ((1, 3, 5), (1, 0, 2))


@pytest.mark.parametrize("other", [images("x", 0), images("x", 2, 3), images("x", 2, 1, 9, 9)])
def test_images_that_cannot_be_matched_are_refused(other):
    with pytest.raises(InputError, match="cannot be matched"):
        best_match(other, images("x", 2))


def test_a_good_likeness_stands_out_and_a_guess_does_not():
    true, others = shard("true", [0, 1, 1]), shard("others", [0, 1, 2] * 20)
    good = likeness(true.images[[2, 0, 1]] * 0.95, true.labels[[2, 0, 1]], true, others, seed=ROOT, draws=50)
    guess = likeness(images("guess", 3), true.labels, true, others, seed=ROOT, draws=50)
    assert good["match"] == {"found": [0, 1, 2], "true": [2, 0, 1]}
    for name in ("psnr", "ssim"):
        assert good["measures"][name]["p"] == 1 / 51
        assert good["measures"][name]["mean"] > good["measures"][name]["others_best"] > good["measures"][name]["others"]
        assert guess["measures"][name]["p"] > 0.05
    assert good["measures"]["psnr"]["class_mean"] > good["measures"]["psnr"]["others"]  # a blurred guess errs less
    assert likeness(images("guess", 3), true.labels, true, others, seed=ROOT, draws=50) == guess
    json.dumps(good, allow_nan=False)


def test_with_no_other_image_of_a_class_nothing_is_compared_with():
    true = shard("true", [0, 1])
    told = likeness(true.images, true.labels, true, shard("others", [0, 0]), seed=ROOT)
    assert told["absent"]["others"] == "there is no other image of class b"
    assert told["measures"]["psnr"] == {
        "pairs": pytest.approx([100, 100]), "mean": pytest.approx(100), "higher": True,
        "class_mean": None, "others": None, "others_best": None, "p": None,
    }  # fmt: skip


def test_few_others_are_drawn_again():
    true = shard("true", [0, 0, 0])
    told = likeness(true.images, true.labels, true, shard("others", [0, 1]), seed=ROOT, draws=3)
    assert told["measures"]["psnr"]["others"] is not None


def test_without_lpips_the_reason_is_given(monkeypatch):
    monkeypatch.setitem(sys.modules, "lpips", None)
    true = shard("true", [0])
    told = likeness(true.images, true.labels, true, true, seed=ROOT, draws=2)
    assert told["absent"]["lpips"].startswith("the package 'lpips' cannot be imported")
    assert "lpips" not in told["measures"]


class Distance(torch.nn.Module):
    """Stands in for LPIPS: the same signature, a plain mean absolute difference."""

    def __init__(self, net, verbose):
        super().__init__()

    def forward(self, x, y):
        assert x.shape[1:] == (3, 64, 64)
        assert -1 <= x.min() <= x.max() <= 1
        return (x - y).abs().mean((1, 2, 3), keepdim=True)


def test_a_lower_lpips_is_more_alike(monkeypatch, tmp_path):
    package = ModuleType("lpips")
    package.LPIPS = Distance
    monkeypatch.setitem(sys.modules, "lpips", package)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    perceptual._metric.cache_clear()
    assert "weights" in perceptual.absent()
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "alexnet-owt-7be5be79.pth").touch()
    assert perceptual.absent() is None
    true, others = shard("true", [0, 1]), shard("others", [0, 1] * 10)
    line = likeness(true.images, true.labels, true, others, seed=ROOT, draws=20)["measures"]["lpips"]
    perceptual._metric.cache_clear()
    assert not line["higher"]
    assert line["mean"] == 0 < line["others_best"] < line["others"]
    assert line["p"] == 1 / 21


def test_correlation_asks_neither_for_brightness_nor_for_contrast():
    draw = torch.Generator().manual_seed(0)
    x = torch.rand(3, 1, 8, 8, generator=draw)
    assert correlation(x, 0.2 + 0.5 * x).tolist() == pytest.approx([1] * 3, abs=1e-6)
    assert correlation(x, 1 - x).tolist() == pytest.approx([-1] * 3, abs=1e-6)
    assert correlation(x, torch.full_like(x, 0.3)).tolist() == [0] * 3
    y = torch.rand(3, 1, 8, 8, generator=draw)
    wanted = [torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1].item() for a, b in zip(x, y, strict=True)]
    assert correlation(x, y).tolist() == pytest.approx(wanted, abs=1e-5)
