"""StyleGAN-XL against its formulas taken at their word, and as a generator among others."""

from __future__ import annotations

import itertools
import math
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from pydantic import TypeAdapter, ValidationError
from scipy.special import j1
from torch import Tensor

import tiny
import xl_literal as literal
from fedstill.data.shard import Normalisation
from fedstill.distill.canvas import Canvas, Pull, Strokes
from fedstill.errors import InputError
from fedstill.generators import aliasfree, build_generator, winograd
from fedstill.generators.files import load_prior, save_prior
from fedstill.generators.filters import lowpass
from fedstill.generators.stylegan_xl import StyleGANXL
from fedstill.generators.train import sample
from fedstill.generators.xl_layers import XLSynthesis, XLWaves
from fedstill.generators.xl_options import XLInput, XLLayer, XLOptions, plan
from fedstill.run import drive
from fedstill.seeds import Seed

SEED = Seed.root(1)


def noise(*shape: int, at: object = "noise") -> Tensor:
    return torch.randn(shape, generator=SEED.at(at).torch(), dtype=torch.float64)


def shaken(module: torch.nn.Module) -> torch.nn.Module:
    """In float64, with no weight left at a value that hides what it does."""
    module.double()
    for name, tensor in module.named_parameters():
        with torch.no_grad():
            tensor.add_(0.3 * noise(*tensor.shape, at=name))
    for name, tensor in module.named_buffers():
        if name.endswith("magnitude"):
            tensor.fill_(1.7)
    return module


def layer(**changes: Any) -> XLSynthesis:
    given = {
        "name": "L0",
        "in_channels": 5,
        "out_channels": 4,
        "in_size": 12,
        "out_size": 12,
        "in_rate": 16,
        "out_rate": 16,
        "in_cutoff": 2.0,
        "in_half_width": 6.0,
        "out_cutoff": 3.0,
        "out_half_width": 5.0,
        "kernel": 3,
        **changes,
    }
    with SEED.at("weights").scope():
        return shaken(XLSynthesis(XLLayer(**given), 7))  # type: ignore[return-value]


def small(sizes: tuple[int, ...] = (16,), *, classes: int = 3, **changes: Any) -> StyleGANXL:
    given = {"layers": 4, "head_layers": 4, "widest": 6, "budget": 96, "class_rows": 5, **changes}
    with SEED.at("weights").scope():
        options = replace(plan(sizes, classes=classes, **given), z_width=6, w_width=8, class_width=7)
        return shaken(StyleGANXL(options))  # type: ignore[return-value]


# filters


@pytest.mark.parametrize(("taps", "cutoff", "half_width"), [(12, 2.0, 6.0), (24, 3.4, 1.0), (12, 8.0, 2.4)])
def test_separable_filters_are_windowed_sincs(taps: int, cutoff: float, half_width: float) -> None:
    rate = 32.0
    attenuation = 2.285 * (taps - 1) * math.pi * (2 * half_width / (rate / 2)) + 7.95
    times = [(n - (taps - 1) / 2) / rate for n in range(taps)]
    sinc = [math.sin(2 * math.pi * cutoff * t) / (math.pi * t) for t in times]
    values = np.array(sinc) * np.kaiser(taps, kaiser_beta(attenuation))
    wanted = torch.from_numpy(values / values.sum())
    made = lowpass(taps, cutoff=cutoff, half_width=half_width, rate=rate)
    torch.testing.assert_close(made, wanted, rtol=0, atol=1e-14)


def test_radial_filters_are_windowed_jincs() -> None:
    taps, cutoff, half_width, rate = 12, 2.0, 6.0, 32.0
    window = np.kaiser(taps, kaiser_beta(2.285 * (taps - 1) * math.pi * (2 * half_width / (rate / 2)) + 7.95))
    wanted = torch.zeros(taps, taps, dtype=torch.float64)
    for i in range(taps):
        for j in range(taps):
            r = math.hypot(i - 5.5, j - 5.5) / rate
            wanted[i, j] = j1(2 * math.pi * cutoff * r) / (math.pi * r) * window[i] * window[j]
    made = lowpass(taps, cutoff=cutoff, half_width=half_width, rate=rate, radial=True)
    torch.testing.assert_close(made, wanted / wanted.sum(), rtol=0, atol=1e-14)


def kaiser_beta(attenuation: float) -> float:
    if attenuation > 50:
        return 0.1102 * (attenuation - 8.7)
    return 0.5842 * (attenuation - 21) ** 0.4 + 0.07886 * (attenuation - 21) if attenuation > 21 else 0.0


# layers


LAYERS: dict[str, dict[str, Any]] = {
    "separable": {},
    "1x1 radial": {"kernel": 1, "radial": True},
    "3x3 radial": {"radial": True},
    "1x1": {"kernel": 1},
    "up": {"out_rate": 32, "out_size": 20},
    "up four times": {"out_rate": 64, "out_size": 41},
    "down": {"in_rate": 32, "out_rate": 16, "out_size": 7},
    "down radial": {"in_rate": 32, "out_rate": 16, "out_size": 7, "radial": True},
    "cropped": {"out_size": 6},
    "cropped hard": {"in_size": 30, "out_size": 5, "radial": True},
    "odd": {"in_size": 11, "out_size": 9, "out_rate": 32},
    "image": {"kernel": 1, "image": True, "out_channels": 3},
    "image cropped": {"kernel": 1, "image": True, "out_size": 8},
    "no clamp": {"clamp": None},
    "clamp that works": {"clamp": 0.4},
    "clamp of an image that works": {"clamp": 0.4, "kernel": 1, "image": True},
}


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_is_its_formulas_and_so_are_its_gradients(name: str) -> None:
    made = layer(**LAYERS[name])
    size = made.plan.in_size
    inputs = [noise(3, 5, size, size, at="x"), noise(3, 7, at="w"), *made.parameters()]
    for tensor in inputs:
        tensor.requires_grad_()
    results, gradients = [], []
    for result in (made(*inputs[:2]), literal.synthesis(made, *inputs[:2])):
        results.append(result)
        gradients.append(torch.autograd.grad(result, inputs, noise(*result.shape, at="pull")))
    assert results[0].shape == (3, made.plan.out_channels, made.plan.out_size, made.plan.out_size)
    torch.testing.assert_close(*results, rtol=0, atol=1e-10)
    for mine, wanted in zip(*gradients, strict=True):
        torch.testing.assert_close(mine, wanted, rtol=1e-10, atol=1e-10)
    if "works" in name:
        loose = XLSynthesis(replace(made.plan, clamp=None), 7).double()
        loose.load_state_dict(made.state_dict())
        assert not torch.allclose(loose(*inputs[:2]), results[0])


def test_filters_that_are_not_symmetric_are_not_turned_over() -> None:
    made = layer(kernel=1, radial=True)
    made.up_filter.copy_(noise(12, at="up"))
    made.down_filter.copy_(noise(12, 12, at="down"))
    x, w = noise(2, 5, 12, 12), noise(2, 7)
    torch.testing.assert_close(made(x, w), literal.synthesis(made, x, w), rtol=0, atol=1e-10)


def test_both_literal_filters_agree() -> None:
    x = noise(2, 3, 9, 9)
    for kernel in (noise(4), noise(4, 4)):
        torch.testing.assert_close(
            literal.fir_by_sums(x, kernel), literal.fir_by_convolution(x, kernel), rtol=0, atol=1e-12
        )


@pytest.mark.parametrize("name", ["separable", "1x1 radial", "clamp that works"])
def test_gradients_are_finite_differences(name: str) -> None:
    made = layer(**{**LAYERS[name], "in_size": 5, "out_size": 4, "in_channels": 2, "out_channels": 2})
    inputs = noise(2, 2, 5, 5, at="x").requires_grad_(), noise(2, 7, at="w").requires_grad_()
    assert torch.autograd.gradcheck(made, inputs, eps=1e-7, atol=1e-5, nondet_tol=0)


@pytest.mark.parametrize("name", ["1x1 radial", "up", "image", "clamp that works"])
def test_tiles_and_what_is_kept_do_not_show(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    made = layer(**LAYERS[name])
    x, w = noise(3, 5, 12, 12).requires_grad_(), noise(3, 7)
    results = []
    for tile, most in itertools.product((1, 3 * made.resampling.wide**2, 2**30), (0, 2**30)):
        monkeypatch.setattr(aliasfree, "_CPU_TILE", tile)
        monkeypatch.setattr(aliasfree, "_KEPT", most)
        result = made(x, w)
        results.append((result, *torch.autograd.grad(result.square().sum(), x)))
    for other in results[1:]:
        torch.testing.assert_close(other, results[0], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("name", ["separable", "1x1 radial", "clamp that works"])
def test_second_derivatives_are_right(name: str, frozen: bool) -> None:
    made = layer(**{**LAYERS[name], "in_size": 5, "out_size": 4, "in_channels": 2, "out_channels": 2})
    made.requires_grad_(not frozen)
    inputs = noise(2, 2, 5, 5, at="x").requires_grad_(), noise(2, 7, at="w").requires_grad_()
    assert torch.autograd.gradgradcheck(made, inputs, eps=1e-7, atol=1e-4)


def test_input_features_are_turned_moved_and_mixed_waves() -> None:
    with SEED.at("weights").scope():
        made = shaken(XLWaves(XLInput(channels=6, size=9, rate=16, bandwidth=2.0), 7))
    made.transform.copy_(torch.eye(3) + 0.1 * noise(3, 3) * torch.tensor([[1.0], [1.0], [0.0]]))
    made.frequencies.mul_(2)  # so that some fade
    w = noise(3, 7)
    torch.testing.assert_close(made(w), literal.waves(made, w), rtol=0, atol=1e-10)


def test_at_first_no_style_moves_the_input() -> None:
    with SEED.at("weights").scope():
        made = XLWaves(XLInput(channels=6, size=9, rate=16, bandwidth=2.0), 7).double()
    features = made(noise(2, 7))
    torch.testing.assert_close(features[0], features[1], rtol=0, atol=1e-12)
    assert (made.frequencies.norm(dim=1) <= 2).all()


@pytest.mark.parametrize("classes", [0, 3])
def test_the_mapping_network_is_its_formulas(classes: int) -> None:
    mapping = small(classes=classes).mapping
    z, labels = noise(4, 6), torch.tensor([0, 2, 1, 0])
    torch.testing.assert_close(mapping(z, labels), literal.mapping(mapping, z, labels), rtol=0, atol=1e-10)


@pytest.mark.parametrize("padding", [0, 1, 2])
@pytest.mark.parametrize("size", [(13, 10), (6, 4), (3, 3)])
def test_convolutions_of_few_multiplications_are_convolutions(padding: int, size: tuple[int, int]) -> None:
    x, weight = noise(2, 5, *size).requires_grad_(), noise(4, 5, 3, 3, at="weight")
    made = winograd.convolved(x, weight, padding=padding)
    wanted = F.conv2d(x, weight, padding=padding)
    torch.testing.assert_close(made, wanted, rtol=0, atol=1e-12)
    pull = noise(*made.shape, at="pull")
    gradients = [torch.autograd.grad(each, x, pull, retain_graph=True)[0] for each in (made, wanted)]
    torch.testing.assert_close(*gradients, rtol=0, atol=1e-12)
    if size == (3, 3):
        assert torch.autograd.gradgradcheck(lambda x: winograd.convolved(x, weight, padding=padding), x[:1])


@pytest.mark.slow
def test_a_wide_frozen_layer_takes_few_multiplications_and_is_its_formulas() -> None:
    made = layer(in_channels=256, out_channels=256).requires_grad_(False)
    x, w = noise(1, 256, 12, 12).requires_grad_(), noise(1, 7)
    assert winograd.is_worth_it(x, made.weight)
    results = [each(x, w) for each in (made, partial(literal.synthesis, made))]
    torch.testing.assert_close(*results, rtol=0, atol=1e-10)
    gradients = [torch.autograd.grad(each.square().sum(), x)[0] for each in results]
    torch.testing.assert_close(*gradients, rtol=1e-10, atol=1e-10)
    single = made.float()(x.float(), w.float())
    assert (single - results[1]).norm() / results[1].norm() < 1e-5


def test_few_multiplications_are_for_wide_frozen_layers_alone() -> None:
    x, weight = torch.zeros(1, 256, 4, 4), torch.zeros(256, 256, 3, 3)
    assert winograd.is_worth_it(x, weight)
    assert not winograd.is_worth_it(x.half(), weight.half())
    assert not winograd.is_worth_it(x, weight[:, :, :1, :1])
    assert not winograd.is_worth_it(x[:, :255], weight[:, :255])
    assert not winograd.is_worth_it(x, weight.requires_grad_())


# the generator


@pytest.mark.parametrize(
    ("sizes", "changes"),
    [((16,), {}), ((32,), {"kernel": 3, "radial": False}), ((16, 32), {}), ((16,), {"classes": 0})],
)
def test_an_image_is_its_formulas_from_every_space(sizes: tuple[int, ...], changes: dict[str, Any]) -> None:
    generator = small(sizes, **changes)
    latent = generator.draw(torch.tensor([0, 2]), SEED)
    assert latent["w"].shape == (2, generator.depth, 8)
    straight = generator.render(latent, 0)
    assert straight.shape == (2, 3, sizes[-1], sizes[-1])
    torch.testing.assert_close(literal.render(generator, latent["f"], latent["w"], 0), straight, rtol=0, atol=1e-10)
    for space in range(generator.depth + 1):
        there = generator.lift(latent, space)
        torch.testing.assert_close(generator.render(there, space), straight, rtol=0, atol=1e-10)
        assert ("w" in there) == (space < generator.depth)


def test_a_draw_is_its_formulas() -> None:
    generator = small()
    labels = torch.tensor([2, 0, 1])
    latent = generator.draw(labels, SEED.at("draw"))
    z = torch.randn(3, 6, generator=SEED.at("draw").torch()).double()
    w = literal.mapping(generator.mapping, z, labels)
    torch.testing.assert_close(latent["w"], w[:, None].repeat(1, generator.depth, 1), rtol=0, atol=1e-10)
    torch.testing.assert_close(latent["f"], literal.waves(generator.input, w), rtol=0, atol=1e-10)
    generator.centres.copy_(noise(3, 8))
    generator.truncation = 0.3
    truncated = generator.draw(labels, SEED.at("draw"))["w"][:, 0]
    torch.testing.assert_close(truncated, generator.centres[labels] + 0.3 * (w - generator.centres[labels]))


def test_without_classes_labels_have_no_say_and_there_is_one_centre() -> None:
    generator = small(classes=0)
    assert generator.classes is None
    generator.track_centres(SEED.at("centres"), samples=500)
    generator.truncation = 0.0
    styles = generator.draw(torch.tensor([0, 70]), SEED)["w"]
    torch.testing.assert_close(styles, generator.centres.expand(2, generator.depth, -1))


@pytest.mark.parametrize("space", [0, 3, 5])
def test_every_entry_of_a_latent_matters_and_gradients_are_right(space: int) -> None:
    generator = small()
    latent = generator.lift(generator.draw(torch.tensor([1]), SEED), space)
    leaves = {name: tensor.detach().requires_grad_() for name, tensor in latent.items()}
    pull = noise(1, 3, 16, 16)
    gradients = torch.autograd.grad((generator.render(leaves, space) * pull).sum(), list(leaves.values()))
    slope = 0.0
    lines = {name: noise(*tensor.shape, at=name) for name, tensor in leaves.items()}
    for name, gradient in zip(leaves, gradients, strict=True):
        rows = gradient[0] if name == "w" else gradient
        assert all(row.abs().sum() > 0 for row in rows)
        slope += (gradient * lines[name]).sum().item()
    ends = []
    for step in (1e-6, -1e-6):
        moved = {name: tensor.detach() + step * lines[name] for name, tensor in leaves.items()}
        ends.append((generator.render(moved, space) * pull).sum().item())
    assert (ends[0] - ends[1]) / 2e-6 == pytest.approx(slope, rel=1e-5)


def test_an_image_does_not_depend_on_the_others_of_its_batch() -> None:
    generator = small(widest=64, budget=1024)
    latent = generator.draw(torch.arange(3), SEED)
    alone = generator.render({name: tensor[1:2] for name, tensor in latent.items()}, 0)
    torch.testing.assert_close(generator.render(latent, 0)[1:2], alone, rtol=0, atol=1e-8)


def test_tracked_magnitudes_keep_features_of_size_one() -> None:
    generator = small(widest=32, budget=512)
    generator.track_magnitudes(SEED, samples=6)
    latent = generator.draw(torch.arange(6) % 3, SEED)
    for number, each in enumerate(generator.layers):
        features = generator.lift(latent, number)["f"]
        torch.testing.assert_close(each.magnitude, features.square().mean())


# features of 16 bits


def images_and_gradients(
    generator: StyleGANXL, latent: dict[str, Tensor], space: int, *, pull: float = 1.0
) -> list[Tensor]:
    """In float64: images, and the gradients of styles and features for a pull of that size, divided by it."""
    leaves = {name: tensor.detach().requires_grad_() for name, tensor in latent.items()}
    images = generator.render(leaves, space)
    wanted = pull * noise(*images.shape, at="pull").to(images)
    gradients = torch.autograd.grad(images, list(leaves.values()), wanted)
    return [images.detach().double().cpu(), *(each.double().cpu() / pull for each in gradients)]


def close(made: list[Tensor], wanted: list[Tensor], *, images: float, gradients: float) -> None:
    """Within these relative errors, in the mean of squares."""
    for mine, due, most in zip(made, wanted, (images, gradients, gradients), strict=True):
        assert (mine - due).norm() / due.norm() < most
        assert torch.cosine_similarity(mine.flatten(), due.flatten(), 0) > 1 - most**2


# twice what was measured, here and at 64 channels (docs/results/generator.md); most of a gradient's error are the
# non-linearity's inputs near 0 that change sides
ERRORS = {"float16": {"images": 4e-3, "gradients": 0.03}, "bfloat16": {"images": 0.03, "gradients": 0.12}}


@pytest.mark.parametrize("precision", ERRORS)
@pytest.mark.parametrize(("changes", "space"), [({}, 2), ({"kernel": 3, "radial": False}, 1)])
def test_with_16_bits_images_and_gradients_agree(precision: Any, changes: dict[str, Any], space: int) -> None:
    generator = small(widest=16, budget=256, **changes).requires_grad_(False)
    generator.track_magnitudes(SEED)
    latent = dict(generator.lift(generator.draw(torch.arange(2), SEED), space))
    exact = images_and_gradients(generator, latent, space)
    generator.float().precision = precision
    latent = {name: tensor.float() for name, tensor in latent.items()}
    made = images_and_gradients(generator, latent, space)
    close(made, exact, **ERRORS[precision])
    for size in (1e-12, 1e9):  # float16 alone would make zeros of the one and infinities of the other
        close(images_and_gradients(generator, latent, space, pull=size), made, images=1e-6, gradients=1e-3)


def test_with_16_bits_latents_and_images_stay_as_they_are() -> None:
    generator = small().float()
    generator.precision = "bfloat16"
    latent = generator.draw(torch.arange(2), SEED)
    there = generator.lift(latent, 2)
    assert {each.dtype for each in [*latent.values(), *there.values(), generator.render(there, 2)]} == {torch.float32}
    leaves = {name: tensor.detach().requires_grad_() for name, tensor in there.items()}
    nothing = torch.autograd.grad(generator.render(leaves, 2), list(leaves.values()), torch.zeros(2, 3, 16, 16))
    assert all(each.abs().max() == 0 for each in nothing)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
@pytest.mark.parametrize(
    ("precision", "errors"), [("float32", {"images": 5e-3, "gradients": 0.03}), *ERRORS.items()]
)  # a GPU's float32 convolutions may round to 11 bits
def test_a_gpu_agrees(precision: Any, errors: dict[str, float]) -> None:
    generator = small((16, 32), widest=32, budget=512).requires_grad_(False)
    generator.track_magnitudes(SEED)
    latent = dict(generator.lift(generator.draw(torch.arange(2), SEED), 3))
    exact = images_and_gradients(generator, latent, 3)
    generator.float().cuda().precision = precision
    placed = {name: tensor.float().cuda() for name, tensor in latent.items()}
    close(images_and_gradients(generator, placed, 3), exact, **errors)


@pytest.mark.parametrize("generator", ["pixels", "digits"])
def test_generators_of_one_precision_say_so(tmp_path: Path, generator: str) -> None:
    given = {"generator": generator, "space": "pixels", "precision": "float16"}
    experiment = tiny.experiment(tiny.FEDDGM | given, rounds=1, data={"size": 16})
    with pytest.raises(InputError, match=r"algorithm\.precision = 'float16': the generator .* works in float32 alone"):
        drive(experiment, out=tmp_path / "run")


# architecture


def test_the_published_schedules() -> None:
    cifar = plan((32,), classes=10)
    assert [each.out_size for each in cifar.layers] == [36] * 4 + [52] * 5 + [32] * 2
    assert [each.radial for each in cifar.layers] == [True] * 8 + [False] * 3
    assert cifar.input == XLInput(channels=1024, size=36, rate=16, bandwidth=2.0)
    big = plan((16, 32, 64, 128), classes=1000)
    assert [each.out_size for each in big.layers] == [36] * 9 + [52] * 5 + [84] * 5 + [148] * 5 + [128] * 2
    assert [each.out_channels for each in big.layers[19:]] == [1024, 861, 724, 609, 512, 512, 3]
    assert [each.kernel for each in big.layers] == [1] * 8 + [3] * 17 + [1]
    assert [each.name for each in big.layers[6:10]] == ["L6", "L7", "L9", "L10"]
    assert big.layers[-1].name == "L26"


@pytest.mark.parametrize(
    ("sizes", "changes", "millions"),
    [
        ((32,), {}, 18.0),
        ((32,), {"kernel": 3, "radial": False}, 101.9),
        ((32,), {"layers": 7, "kernel": 3, "radial": False, "widest": 512, "budget": 32768}, 19.6),
        ((16, 32, 64, 128), {"classes": 1000}, 158.7),
    ],
)
def test_published_parameter_counts(sizes: tuple[int, ...], changes: dict[str, Any], millions: float) -> None:
    with torch.device("meta"):
        generator = StyleGANXL(plan(sizes, **{"classes": 10, **changes}))
    assert round(sum(each.numel() for each in generator.parameters()) / 1e6, 1) == millions


def test_a_description_survives_json() -> None:
    options = plan((16, 32), classes=4)
    adapter = TypeAdapter(XLOptions)
    assert adapter.validate_json(adapter.dump_json(options)) == options
    assert adapter.validate_python(asdict(options)) == options


@pytest.mark.parametrize(
    ("where", "changes"),
    [
        (None, {"surprise": 1}),
        (None, {"layers": ()}),
        (None, {"z_width": 0}),
        (None, {"w_width": 10**9}),
        (None, {"classes": 2000}),
        (None, {"output_scale": math.inf}),
        (0, {"in_channels": 7}),
        (0, {"name": "../x"}),
        (0, {"name": "L1"}),
        (0, {"in_rate": 48}),
        (0, {"out_rate": 1024}),
        (0, {"image": True}),
        (0, {"in_cutoff": math.nan}),
        (0, {"in_cutoff": 15.0}),
        (0, {"out_half_width": 1e300}),
        (0, {"kernel": 99}),
        (-1, {"image": False}),
        (-1, {"in_size": 10**9}),
    ],
)
def test_descriptions_of_no_network_are_refused(where: int | None, changes: dict[str, Any]) -> None:
    given = asdict(plan((16,), classes=4))
    given["layers"] = list(given["layers"])
    (given if where is None else given["layers"][where]).update(changes)
    with pytest.raises((ValidationError, InputError)):
        TypeAdapter(XLOptions).validate_python(given)


@pytest.mark.parametrize("sizes", [(), (24,), (8,), (32, 16), (32, 32)])
def test_sizes_that_no_schedule_knows_are_refused(sizes: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match="powers of two"):
        plan(sizes, classes=2)


def test_waves_beyond_the_rate_are_refused() -> None:
    with pytest.raises(InputError, match="lower bandwidth"):
        XLInput(channels=4, size=36, rate=16, bandwidth=8.0)


def test_too_few_layers_are_refused() -> None:
    with pytest.raises(InputError, match="more than 3 layers"):
        plan((16,), classes=2, layers=3)


def test_a_chunk_fits_in_its_budget() -> None:
    assert small().chunk > 1000
    with torch.device("meta"):
        assert StyleGANXL(plan((32,), classes=10)).chunk in range(2, 16)
        assert StyleGANXL(plan((16, 32, 64, 128), classes=10)).chunk == 1


# files, and the work of others


@pytest.mark.parametrize(("half", "tolerance"), [(False, 0.0), (True, 0.02)])
def test_it_survives_its_file(tmp_path: Path, half: bool, tolerance: float) -> None:
    generator = small((16, 32)).float()
    path = tmp_path / "p.safetensors"
    save_prior(path, generator, {"classes": ["a", "b", "c"]}, half=half)
    read = load_prior(path, truncation=0.7)
    generator.truncation = 0.7
    assert read.options == generator.options
    assert not any(each.requires_grad for each in read.parameters())
    images = [each.render(each.draw(torch.arange(3), SEED), 0) for each in (read, generator)]
    torch.testing.assert_close(*images, rtol=0, atol=tolerance)
    for (name, mine), theirs in zip(generator.named_buffers(), read.buffers(), strict=True):
        assert torch.equal(mine, theirs), name
    normalisation = Normalisation((0.5,) * 3, (0.5,) * 3)
    built = build_generator(str(path), channels=3, size=(32, 32), normalisation=normalisation, classes=3)
    assert built.depth == generator.depth


def test_a_file_of_other_shapes_than_it_says_is_refused(tmp_path: Path) -> None:
    generator = small().float()
    generator.layers[0].up_filter = generator.layers[0].up_filter[:-1]
    save_prior(tmp_path / "p.safetensors", generator, {"classes": ["a", "b", "c"]})
    with pytest.raises(InputError, match=r"'layers\.0\.up_filter' is \(11,\), not \(12,\)"):
        load_prior(tmp_path / "p.safetensors")


@pytest.mark.parametrize("space", [0, 2, 5])
def test_a_canvas_moves_its_latents_in_chunks_that_it_can_hold(space: int) -> None:
    generator = small().float().requires_grad_(False)
    normalisation = Normalisation((0.5,) * 3, (0.5,) * 3)
    results = []
    for chunk in (100, 2):
        generator.chunk = chunk
        canvas = Canvas.draw(
            generator,
            space,
            torch.arange(5) % 3,
            normalisation=normalisation,
            strokes=Strokes(features=0.01, styles=0.001, rate=0),
            rate=0.05,
            seed=SEED,
        )
        assert canvas.chunk == chunk
        images = canvas.render()
        loss = images.square().sum()
        canvas.push(Pull(loss.item(), 2 * images))
        moved = canvas.render()
        assert moved.square().sum() < loss
        results.append(moved)
    torch.testing.assert_close(*results, rtol=1e-3, atol=1e-4)
    assert len(sample(generator, torch.arange(5) % 3, SEED)) == 5


@pytest.mark.parametrize(
    ("sizes", "space", "more"),
    [((16,), 5, {}), ((16, 32), 12, {}), pytest.param((16,), 9, {"precision": "bfloat16"}, marks=pytest.mark.slow)],
    ids=["F5", "F12 and a head", "16 bits"],
)
def test_feddgm_distils_through_it(tmp_path: Path, sizes: tuple[int, ...], space: int, more: dict[str, Any]) -> None:
    with SEED.at("weights").scope():
        generator = StyleGANXL(plan(sizes, classes=10, widest=8, budget=128, channels=1, class_rows=10))
    generator.track_magnitudes(SEED)
    save_prior(tmp_path / "p.safetensors", generator, {"classes": [str(digit) for digit in range(10)]})
    settings = tiny.FEDDGM | more | {"generator": str(tmp_path / "p.safetensors"), "space": space}
    experiment = tiny.experiment(settings, rounds=1, data={"size": sizes[-1]}, model={"depth": 2, "width": 4})
    drive(experiment, out=tmp_path / "run")
    clients = tiny.rows(tmp_path / "run")[-1]["clients"]
    assert len(clients) == 3
    assert all(client["matching"]["end"] < client["matching"]["start"] for client in clients)
