"""Gradient matching against autograd in float64, on the formula written out a row at a time."""

from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from fedstill.contract import tiny_world
from fedstill.distill.canvas import Canvas, Strokes
from fedstill.distill.gradient import GradientMatcher
from fedstill.distill.health import descend
from fedstill.generators.pixels import Pixels
from fedstill.models.architecture import Architecture
from fedstill.seeds import Seed

ROOT = Seed.root(0)
WORLD = tiny_world()
ARCHITECTURE = replace(WORLD.architecture, size=(16, 16), options={"depth": 2, "width": 6})
NETWORK = ARCHITECTURE.build(ROOT.at("model")).double()
LABELS = torch.tensor([0, 2, 1, 0, 2, 2, 1])
IMAGES = torch.randn(7, 1, 16, 16, dtype=torch.float64, generator=ROOT.at("images").torch())
OTHERS = torch.randn(7, 1, 16, 16, dtype=torch.float64, generator=ROOT.at("others").torch())


def gradient_of(images, labels=LABELS, network=NETWORK, **more):
    names, parameters = zip(*network.named_parameters(), strict=True)
    loss = F.cross_entropy(network(images), labels)
    return dict(zip(names, torch.autograd.grad(loss, parameters, **more), strict=True))


TARGET = gradient_of(OTHERS)


def by_formula(images, target, labels=LABELS, network=NETWORK):
    total = torch.zeros((), dtype=images.dtype)
    for name, gradient in gradient_of(images, labels, network, create_graph=True).items():
        if gradient.dim() == 1:
            continue
        for mine, wanted in zip(gradient, target[name], strict=True):
            mine, wanted = mine.flatten(), wanted.flatten()
            total = total + 1 - mine @ wanted / (mine.norm() * wanted.norm())
    return total


def relative(found, wanted):
    return ((found - wanted).norm() / wanted.norm()).item()


@pytest.mark.parametrize("soft", [False, True], ids=["hard", "soft"])
@pytest.mark.parametrize("chunk", [None, 1, 3, 7, 99])
def test_loss_and_gradient_are_the_formulas(chunk, soft):
    labels = F.one_hot(LABELS, 3).double() * 0.7 + 0.1 if soft else LABELS
    leaf = IMAGES.clone().requires_grad_()
    loss = by_formula(leaf, TARGET, labels)
    (wanted,) = torch.autograd.grad(loss, leaf)
    matcher = GradientMatcher(NETWORK, TARGET, chunk=chunk)
    pull = matcher.pull(IMAGES, labels, 0.0, ROOT)
    assert pull.loss == pytest.approx(loss.item(), rel=1e-12)
    assert matcher.loss(IMAGES, labels, 0.0, ROOT) == pytest.approx(loss.item(), rel=1e-12)
    assert relative(pull.d_images, wanted) < 1e-10
    assert pull.d_rate is None


@pytest.mark.parametrize(
    ("size", "classes", "rows", "parameters"), [(28, 10, 394, 311_050), (32, 10, 394, 320_010), (96, 2, 386, 336_386)]
)
def test_rows_and_parameters_of_the_papers_convnet(size, classes, rows, parameters):
    network = Architecture("convnet", 3, (size, size), classes, {"depth": 3, "width": 128}).build(ROOT)
    target = {name: torch.zeros_like(tensor) for name, tensor in network.named_parameters()}
    matcher = GradientMatcher(network, target)
    assert (matcher.rows, matcher.parameters) == (rows, parameters)


def test_rows_of_the_papers_resnet():
    network = Architecture("resnet18", 3, (28, 28), 10, {}).build(ROOT)
    matcher = GradientMatcher(network, dict(network.named_parameters()))
    assert (matcher.rows, matcher.parameters) == (4810, 11_173_962)


def test_equal_images_match_in_any_unit():
    target = {name: 17 * tensor for name, tensor in gradient_of(IMAGES).items()}
    pull = GradientMatcher(NETWORK, target).pull(IMAGES, LABELS, 0.0, ROOT)
    assert abs(pull.loss) < 1e-12
    assert pull.d_images.abs().max() < 1e-10


def test_a_row_without_direction_adds_one_and_pulls_at_nothing():
    target = {name: tensor.clone() for name, tensor in TARGET.items()}
    first = next(name for name, tensor in target.items() if tensor.dim() > 1)
    target[first][2:] = 0
    kept = {name: tensor.clone() for name, tensor in TARGET.items()}
    leaf = IMAGES.clone().requires_grad_()
    gradient = gradient_of(leaf, create_graph=True)
    terms = [
        1 - F.cosine_similarity(mine.flatten(), wanted.flatten(), dim=0)
        for name, tensor in gradient.items()
        if tensor.dim() > 1
        for row, (mine, wanted) in enumerate(zip(tensor, kept[name], strict=True))
        if name != first or row < 2
    ]
    (wanted,) = torch.autograd.grad(sum(terms), leaf)
    pull = GradientMatcher(NETWORK, target).pull(IMAGES, LABELS, 0.0, ROOT)
    assert pull.loss == pytest.approx(sum(terms).item() + len(target[first]) - 2)
    assert relative(pull.d_images, wanted) < 1e-10


@pytest.mark.parametrize("chunk", [None, 3])
def test_images_without_any_gradient_stay_where_they_are(chunk):
    network = ARCHITECTURE.build(ROOT).double()
    with torch.no_grad():
        network.head.weight.zero_()  # features then move no logit
    pull = GradientMatcher(network, {"body.block1.conv.weight": TARGET["body.block1.conv.weight"]}, chunk=chunk).pull(
        IMAGES, LABELS, 0.0, ROOT
    )
    assert pull.loss == 6
    assert not pull.d_images.any()


def test_a_parameter_that_the_target_lacks_is_not_matched():
    less = {name: tensor for name, tensor in TARGET.items() if not name.startswith("head")}
    matcher = GradientMatcher(NETWORK, less)
    assert matcher.rows == GradientMatcher(NETWORK, TARGET).rows - 3
    assert matcher.loss(IMAGES, LABELS, 0.0, ROOT) < GradientMatcher(NETWORK, TARGET).loss(IMAGES, LABELS, 0.0, ROOT)


@pytest.mark.parametrize("norm", ["batch", "group", "none"])
def test_other_norms(norm):
    options = {"depth": 2, "width": 8, "norm": norm}
    network = replace(ARCHITECTURE, options=options).build(ROOT.at("model")).double()
    target = gradient_of(OTHERS, network=network.eval())
    leaf = IMAGES.clone().requires_grad_()
    (wanted,) = torch.autograd.grad(by_formula(leaf, target, network=network.eval()), leaf)
    for chunk in (None, 2):
        pull = GradientMatcher(network.train(), target, chunk=chunk).pull(IMAGES, LABELS, 0.0, ROOT)
        assert relative(pull.d_images, wanted) < 1e-10
    assert network.training


def test_a_pull_leaves_no_trace():
    weights = {name: tensor.clone() for name, tensor in NETWORK.state_dict().items()}
    images = IMAGES.clone()
    matcher = GradientMatcher(NETWORK, TARGET)
    first, second = (matcher.pull(images, LABELS, 0.0, ROOT) for _ in range(2))
    assert torch.equal(first.d_images, second.d_images)
    assert torch.equal(images, IMAGES)
    assert all(torch.equal(tensor, weights[name]) for name, tensor in NETWORK.state_dict().items())
    assert all(parameter.requires_grad and parameter.grad is None for parameter in NETWORK.parameters())


def canvas(lr):
    pixels = Pixels(1, (16, 16), WORLD.normalisation)
    strokes = Strokes(features=lr, styles=0.0, rate=0.0)
    return Canvas.draw(
        pixels, 0, LABELS, normalisation=WORLD.normalisation, strokes=strokes, rate=0.0, seed=ROOT.at("canvas")
    )


def test_descent_brings_the_gradients_together():
    network = ARCHITECTURE.build(ROOT.at("model"))
    target = {name: tensor.float() for name, tensor in TARGET.items()}
    health = descend(canvas(0.5), GradientMatcher(network, target), steps=60, seed=ROOT)
    assert health.end < 0.7 * health.start
