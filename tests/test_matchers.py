"""Trajectory matching against a textbook unroll: every step's graph kept, autograd does the rest. In float64."""

from dataclasses import replace

import pytest
import torch
from torch.func import functional_call
from torch.nn import functional as F

from fedstill.contract import tiny_world
from fedstill.data.augment import Augmentation, apply
from fedstill.data.shard import Normalisation
from fedstill.distill.canvas import Canvas, Strokes
from fedstill.distill.matchers import TrajectoryMatcher
from fedstill.generators.style import StyleGenerator, StyleOptions
from fedstill.models.architecture import Architecture
from fedstill.rounds import Trained
from fedstill.seeds import Seed

DSA = Augmentation.parse("color_crop_cutout_flip_scale_rotate")
SEED = Seed.root(0).at("pull")
RATE = 0.05


def make(activation="relu", **options):
    world = tiny_world()
    architecture = replace(
        world.architecture, size=(16, 16), options={"depth": 2, "width": 6, "activation": activation}
    )
    start, target = (architecture.build(Seed.root(0).at(name)).double() for name in ("start", "target"))
    return TrajectoryMatcher(network=start, start=start.state_dict(), target=target.state_dict(), **options)


def make_images(n=9, dtype=torch.float64):
    images = torch.randn(n, 1, 16, 16, dtype=dtype, generator=Seed.root(0).at("images").torch())
    return images, torch.arange(n) % 3


def unrolled(matcher, images, labels, rate, *, truncated=False):
    """L and its gradients by definition. ``truncated`` stops the gradient at every θ_i."""
    names = [name for name, _ in matcher.network.named_parameters()]
    start = [matcher.start[name] for name in names]
    target = [matcher.target[name] for name in names]
    theta = [part.clone().requires_grad_() for part in start]
    for move in matcher._moves(images, SEED):
        rows = slice(None) if move.rows is None else move.rows
        held = [part.detach().requires_grad_() for part in theta] if truncated else theta
        logits = functional_call(
            matcher.network, dict(zip(names, held, strict=True)), (apply(images[rows], move.drawn),)
        )
        gradient = torch.autograd.grad(F.cross_entropy(logits, labels[rows]), held, create_graph=True)
        theta = [t - rate * g for t, g in zip(theta, gradient, strict=True)]
    far = sum(((a - b) ** 2).sum() for a, b in zip(start, target, strict=True))
    return sum(((a - b) ** 2).sum() for a, b in zip(theta, target, strict=True)) / far


def relative(found, wanted):
    return ((found - wanted).norm() / wanted.norm()).item()


@pytest.mark.parametrize("steps", [1, 5, 20])
@pytest.mark.parametrize("batch", [None, 4])
@pytest.mark.parametrize("augmentation", [Augmentation(), DSA], ids=["plain", "dsa"])
@pytest.mark.parametrize("gradient", ["exact", "truncated"])
def test_gradients_for_images_and_rate(steps, batch, augmentation, gradient):
    matcher = make(steps=steps, batch=batch, augmentation=augmentation, gradient=gradient)
    images, labels = make_images()
    leaf, rate = images.clone().requires_grad_(), torch.tensor(RATE, dtype=torch.float64, requires_grad=True)
    loss = unrolled(matcher, leaf, labels, rate, truncated=gradient == "truncated")
    d_images, d_rate = torch.autograd.grad(loss, (leaf, rate))
    pull = matcher.pull(images, labels, RATE, SEED)
    assert pull.loss == pytest.approx(loss.item(), rel=1e-12)
    assert relative(pull.d_images, d_images) < 1e-10
    assert pull.d_rate == pytest.approx(d_rate.item(), rel=1e-10)


@pytest.mark.parametrize("operation", ["color", "crop", "cutout", "flip", "scale", "rotate"])
def test_gradients_through_every_single_operation(operation):
    matcher = make(steps=5, augmentation=Augmentation.parse(operation))
    images, labels = make_images()
    leaf = images.clone().requires_grad_()
    (wanted,) = torch.autograd.grad(unrolled(matcher, leaf, labels, RATE), leaf)
    assert relative(matcher.pull(images, labels, RATE, SEED).d_images, wanted) < 1e-10


@pytest.mark.parametrize("steps", [1, 5, 20])
@pytest.mark.parametrize("space", [0, 2])
def test_gradients_for_latents_through_the_style_generator(steps, space):
    with Seed.root(0).at("generator").scope():
        generator = StyleGenerator(StyleOptions(channels=1, size=16, classes=3, width=8)).double()
    normalisation = Normalisation((0.4,), (0.3,))
    labels = torch.arange(6) % 3
    with torch.no_grad():
        latent = generator.lift({k: v.double() for k, v in generator.draw(labels, Seed.root(1)).items()}, space)
    # one plain SGD step of size 1 moves a latent by minus its gradient; chunks of 4 do not divide 6
    strokes = Strokes(features=1.0, styles=1.0, rate=0.0, momentum=0.0)
    canvas = Canvas(generator, space, latent, labels, normalisation=normalisation, strokes=strokes, rate=RATE, chunk=4)
    matcher = make(steps=steps, batch=4, augmentation=DSA)
    leaves = {name: tensor.clone().requires_grad_() for name, tensor in latent.items()}
    images = normalisation.apply((generator.render(leaves, space) + 1) / 2)
    wanted = torch.autograd.grad(unrolled(matcher, images, labels, RATE), list(leaves.values()))
    canvas.push(matcher.pull(canvas.render(), labels, RATE, SEED))
    for name, gradient in zip(leaves, wanted, strict=True):
        assert relative(latent[name] - canvas.latent[name], gradient) < 1e-10, name


def test_soft_labels():
    matcher = make(steps=5)
    images, labels = make_images()
    soft = F.one_hot(labels, 3).double() * 0.7 + 0.1
    leaf = images.clone().requires_grad_()
    (wanted,) = torch.autograd.grad(unrolled(matcher, leaf, soft, RATE), leaf)
    assert relative(matcher.pull(images, soft, RATE, SEED).d_images, wanted) < 1e-10


def test_one_step_is_the_same_exact_and_truncated():
    images, labels = make_images()
    exact, truncated = (make(steps=1, gradient=g).pull(images, labels, RATE, SEED) for g in ("exact", "truncated"))
    assert torch.equal(exact.d_images, truncated.d_images)
    assert exact.d_rate == truncated.d_rate


def test_truncated_is_its_formula():
    """dL/dx_i = −(2η / ‖θ_g − θ_m‖²) ∂⟨g(θ_i, x_i), θ̂_T − θ_m⟩ / ∂x_i, summed over i."""
    matcher = make(steps=4, gradient="truncated")
    images, labels = make_images()
    start, target = matcher._vector(matcher.start, images), matcher._vector(matcher.target, images)
    visited = list(matcher._walk(images, labels, RATE, matcher._moves(images, SEED)))
    residual = [a - b for a, b in zip(visited[-1], target, strict=True)]
    far = sum(((a - b) ** 2).sum() for a, b in zip(start, target, strict=True))
    total = torch.zeros_like(images)
    for theta in visited[:-1]:
        leaf = images.clone().requires_grad_()
        held = [part.detach().requires_grad_() for part in theta]
        names = [name for name, _ in matcher.network.named_parameters()]
        logits = functional_call(matcher.network, dict(zip(names, held, strict=True)), (leaf,))
        gradient = torch.autograd.grad(F.cross_entropy(logits, labels), held, create_graph=True)
        product = sum((g * r).sum() for g, r in zip(gradient, residual, strict=True))
        total -= (2 * RATE / far) * torch.autograd.grad(product, leaf)[0]
    assert relative(matcher.pull(images, labels, RATE, SEED).d_images, total) < 1e-12


def test_a_pull_leaves_no_trace():
    matcher = make(steps=3)
    images, labels = make_images()
    weights = {name: tensor.clone() for name, tensor in matcher.start.items()}
    kept = images.clone()
    first = matcher.pull(images, labels, RATE, SEED)
    assert torch.equal(images, kept)
    assert all(torch.equal(matcher.start[name], tensor) for name, tensor in weights.items())
    assert torch.equal(first.d_images, matcher.pull(images, labels, RATE, SEED).d_images)
    assert matcher.loss(images, labels, RATE, SEED) == first.loss


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("convnet", {"depth": 2, "width": 4, "norm": "batch"}),
        ("vit", {"dim": 8, "depth": 1, "heads": 2, "head_dim": 4, "mlp": 8}),
    ],
)
def test_networks_with_buffers_and_dropout(name, options):
    architecture = Architecture(name=name, channels=1, size=(16, 16), classes=3, options=options)
    start, target = (architecture.build(Seed.root(0).at(place)).double() for place in ("start", "target"))
    matcher = TrajectoryMatcher(network=start, start=start.state_dict(), target=target.state_dict(), steps=3)
    images, labels = make_images()
    first, second = (matcher.pull(images, labels, RATE, SEED) for _ in range(2))
    assert torch.equal(first.d_images, second.d_images)
    # a finite difference along a random direction: dropout masks and batch moments are those of the forward pass
    direction = torch.randn_like(images)
    ahead, behind = (matcher.loss(images + e * direction, labels, RATE, SEED) for e in (1e-5, -1e-5))
    assert (first.d_images * direction).sum().item() == pytest.approx((ahead - behind) / 2e-5, rel=1e-4)
    assert Trained(architecture, start.state_dict()).module().training
