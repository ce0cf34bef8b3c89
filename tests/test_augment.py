"""Differentiable augmentation: pure, linear where it should be, and differentiable twice."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd import gradcheck, gradgradcheck

from fedstill.data.augment import OPERATIONS, Augmentation, Drawn, apply
from fedstill.errors import InputError
from fedstill.seeds import Seed

ALL = "_".join(OPERATIONS)


def generator(number: int = 0) -> torch.Generator:
    return Seed.root(number).torch()


def noise(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(*shape, generator=generator(9), dtype=dtype)


def drawn_for(operation: str, images: torch.Tensor, number: int = 0) -> Drawn:
    return Augmentation.parse(operation).draw(len(images), (images.shape[2], images.shape[3]), generator(number))


def test_parse() -> None:
    assert Augmentation.parse(ALL).operations == OPERATIONS
    assert Augmentation.parse("flip_crop").operations == ("flip", "crop")
    assert Augmentation.parse("") == Augmentation.parse("none") == Augmentation()
    with pytest.raises(InputError, match="augment = 'colour': did you mean 'color'"):
        Augmentation.parse("colour_crop")
    with pytest.raises(InputError, match=r"distill\.dsa.*named twice"):
        Augmentation.parse("crop_crop", key="distill.dsa")


def test_off_is_the_identity() -> None:
    images = noise(2, 3, 4, 4)
    assert apply(images, Augmentation().draw(2, (4, 4), generator())) is images


def test_single_draws_one_operation_a_batch_and_all_draws_all() -> None:
    one, every = Augmentation.parse(ALL), replace(Augmentation.parse(ALL), mode="all")
    source = generator()
    seen = [one.draw(2, (8, 8), source).operations for _ in range(200)]
    assert all(len(operations) == 1 for operations in seen)
    assert {operations[0] for operations in seen} == set(OPERATIONS)
    assert every.draw(2, (8, 8), source).operations == OPERATIONS


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("operation", OPERATIONS)
def test_pure_and_per_image(operation: str, channels: int) -> None:
    images = noise(1, channels, 9, 12).repeat(32, 1, 1, 1)
    kept = images.clone()
    drawn = drawn_for(operation, images)
    first, second = apply(images, drawn), apply(images, drawn)
    assert torch.equal(first, second)
    assert torch.equal(images, kept)
    assert first.shape == images.shape
    assert first.dtype == images.dtype
    assert len({image.numpy().tobytes() for image in first}) > 1
    double = apply(images.double(), drawn)
    assert torch.allclose(double.float(), first, atol=1e-4)
    assert not torch.equal(apply(images, drawn_for(operation, images, 1)), first)


@pytest.mark.parametrize("operation", OPERATIONS)
def test_one_choice_can_be_shared_by_two_batches(operation: str) -> None:
    images = noise(5, 3, 8, 8)
    drawn = drawn_for(operation, images[:1], 3)
    assert torch.allclose(apply(images, drawn)[3:], apply(images[3:], drawn), atol=1e-6)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("operation", [*OPERATIONS, "all"])
def test_differentiable_twice(operation: str, channels: int) -> None:
    images = noise(2, channels, 4, 5, dtype=torch.float64).requires_grad_()
    augmentation = Augmentation.parse(ALL if operation == "all" else operation)
    drawn = replace(augmentation, mode="all").draw(2, (4, 5), generator(1))
    # the cube, so that the second derivative is not zero by itself
    assert gradcheck(lambda x: apply(x, drawn), images)
    assert gradgradcheck(lambda x: apply(x, drawn) ** 3, images)


@pytest.mark.parametrize("operation", ["scale", "rotate"])
def test_sampling_agrees_with_torch_and_works_under_vmap(operation: str) -> None:
    images = noise(6, 3, 9, 12).requires_grad_()
    drawn = drawn_for(operation, images)
    grid = F.affine_grid(drawn.parameters[operation], [6, 3, 9, 12], align_corners=False)
    theirs = F.grid_sample(images, grid, padding_mode="zeros", align_corners=False)
    ours = apply(images, drawn)
    weight = noise(6, 3, 9, 12)
    assert torch.allclose(ours, theirs)
    assert torch.allclose(
        torch.autograd.grad(ours, images, weight)[0], torch.autograd.grad(theirs, images, weight)[0], atol=1e-6
    )
    stacked = noise(4, 6, 3, 9, 12)
    gradient = torch.func.vmap(torch.func.grad(lambda x: (apply(x, drawn) ** 2).sum()))(stacked)
    alone = torch.func.grad(lambda x: (apply(x, drawn) ** 2).sum())(stacked[2])
    assert torch.allclose(gradient[2], alone, atol=1e-5)


def test_color_changes_brightness_saturation_and_contrast_within_range() -> None:
    images = noise(64, 3, 6, 6)
    drawn = drawn_for("color", images)
    brightness, saturation, contrast = drawn.parameters["color"].unbind(1)
    assert brightness.abs().max() <= 0.5
    assert 0 <= saturation.min() < saturation.max() <= 2
    assert 0.5 <= contrast.min() < contrast.max() <= 1.5
    out = apply(images, drawn)
    assert torch.allclose(out.mean((1, 2, 3)), images.mean((1, 2, 3)) + brightness, atol=1e-5)
    shade, shade_out = images.mean(1), out.mean(1)
    ratio = shade_out.flatten(1).std(1) / shade.flatten(1).std(1)
    assert torch.allclose(ratio, contrast, atol=1e-4)


def test_saturation_does_nothing_to_one_channel() -> None:
    images = noise(8, 1, 6, 6)
    flat = replace(Augmentation.parse("color"), brightness=0.0).draw(8, (6, 6), generator())
    flat.parameters["color"][:, 2] = 1.0
    assert torch.allclose(apply(images, flat), images, atol=1e-6)


@given(st.integers(2, 20), st.integers(2, 20), st.integers(0, 50))
@settings(max_examples=40, deadline=None)
def test_crop_shifts_by_whole_pixels_and_fills_with_zeros(height: int, width: int, number: int) -> None:
    images = noise(3, 2, height, width)
    drawn = drawn_for("crop", images, number)
    out = apply(images, drawn)
    for image, moved, (down, right) in zip(images, out, drawn.parameters["crop"].int().tolist(), strict=True):
        assert abs(down) <= int(height / 8 + 0.5)
        assert abs(right) <= int(width / 8 + 0.5)
        pad = max(abs(down), abs(right))
        padded = F.pad(image, (pad, pad, pad, pad))
        expected = padded[:, pad - down : pad - down + height, pad - right : pad - right + width]
        assert torch.equal(moved, expected)


@given(st.integers(2, 20), st.integers(2, 20), st.integers(0, 50))
@settings(max_examples=40, deadline=None)
def test_cutout_zeroes_one_rectangle(height: int, width: int, number: int) -> None:
    images = torch.ones(8, 2, height, width)
    out = apply(images, drawn_for("cutout", images, number))
    holes = 1 - out[:, 0]
    assert torch.equal(out[:, 0], out[:, 1])
    for hole in holes:
        rows, columns = hole.amax(1).sum(), hole.amax(0).sum()
        assert hole.sum() == rows * columns
        assert rows <= int(height / 2 + 0.5)
        assert columns <= int(width / 2 + 0.5)


def test_flip_mirrors_about_half() -> None:
    images = noise(400, 1, 3, 5)
    out = apply(images, drawn_for("flip", images))
    mirrored = torch.tensor([torch.equal(a, b.flip(2)) for a, b in zip(out, images, strict=True)])
    same = torch.tensor([torch.equal(a, b) for a, b in zip(out, images, strict=True)])
    assert bool((mirrored ^ same).all())
    assert 150 < int(mirrored.sum()) < 250


def test_a_turn_by_90_degrees_is_exact_on_a_square_and_rigid_on_a_rectangle() -> None:
    square = noise(1, 1, 6, 6)
    quarter = replace(Augmentation.parse("rotate"), rotate=90.0).draw(1, (6, 6), generator())
    quarter.parameters["rotate"][0] = torch.tensor([[0.0, -1.0, 0.0], [1.0, 0.0, 0.0]])
    assert torch.allclose(apply(square, quarter), square.rot90(1, (2, 3)), atol=1e-5)
    # a bar of 20 x 4 in the middle keeps its area and its length when turned: no shear, no stretch
    wide = torch.zeros(16, 1, 40, 80)
    wide[:, :, 18:22, 30:50] = 1
    turned = apply(wide, replace(Augmentation.parse("rotate"), rotate=60.0).draw(16, (40, 80), generator()))
    y, x = torch.meshgrid(torch.arange(40.0) - 19.5, torch.arange(80.0) - 39.5, indexing="ij")
    before, after = ((image * (x**2 + y**2)).sum((1, 2, 3)) for image in (wide, turned))
    assert torch.allclose(turned.sum((1, 2, 3)), wide.sum((1, 2, 3)), rtol=0.02)
    assert torch.allclose(before, after, rtol=0.04)


def test_scale_stays_within_its_range_each_axis_by_itself() -> None:
    theta = Augmentation.parse("scale").draw(500, (8, 8), generator()).parameters["scale"]
    factors = torch.stack([theta[:, 0, 0], theta[:, 1, 1]])
    assert 1 / 1.2 <= factors.min() < 0.86
    assert 1.17 < factors.max() <= 1.2
    assert not torch.allclose(factors[0], factors[1])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
@pytest.mark.parametrize("operation", OPERATIONS)
def test_same_on_a_gpu(operation: str) -> None:
    images = noise(8, 3, 16, 16)
    drawn = drawn_for(operation, images)
    assert torch.allclose(apply(images.cuda(), drawn).cpu(), apply(images, drawn), atol=1e-5)
