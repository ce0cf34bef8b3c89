import itertools

import pytest
import torch

from fedstill.contract import tiny_world
from fedstill.data.shard import Normalisation
from fedstill.distill.canvas import Canvas, Pull, Strokes, distill
from fedstill.generators.pixels import Pixels
from fedstill.generators.style import StyleGenerator, StyleOptions
from fedstill.seeds import Seed

NORMALISATION = Normalisation((0.4,), (0.3,))
LABELS = torch.arange(5) % 3
SEED = Seed.root(0)


def make(kind="style", space=1, chunk=2, **strokes):
    if kind == "style":
        with SEED.scope():
            generator = StyleGenerator(StyleOptions(channels=1, size=16, classes=3, width=8))
    else:
        generator, space = Pixels(1, (16, 16), NORMALISATION), 0
    given = {"features": 0.5, "styles": 0.1, "rate": 0.01} | strokes
    return Canvas.draw(
        generator,
        space,
        LABELS,
        normalisation=NORMALISATION,
        strokes=Strokes(**given),
        rate=0.05,
        seed=SEED,
        chunk=chunk,
    )


def pull_towards(images, target=0.0):
    return Pull(((images - target) ** 2).sum().item(), 2 * (images - target), 0.3)


class Brighten:
    def pull(self, images, labels, rate, seed):
        return pull_towards(images, 1.0)


@pytest.mark.parametrize("kind", ["style", "pixels"])
@pytest.mark.parametrize("optimiser", ["sgd", "adam"])
def test_distilling_lowers_the_loss(kind, optimiser):
    canvas = make(kind, optimiser=optimiser, features=0.01, styles=0.001)
    losses = [step.loss for step in itertools.islice(distill(canvas, Brighten(), seed=SEED), 12)]
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("kind", ["style", "pixels"])
def test_chunks_change_nothing_that_matters(kind):
    whole, parts = (make(kind, chunk=chunk, features=0.01, styles=0.001) for chunk in (100, 2))
    for canvas in (whole, parts):
        canvas.push(pull_towards(canvas.render()))
    torch.testing.assert_close(whole.render(), parts.render(), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("optimiser", ["sgd", "adam"])
def test_saved_and_loaded_goes_on_to_the_same_bits(optimiser):
    straight, stopped, resumed = (make(optimiser=optimiser, features=1e-3, styles=1e-4) for _ in range(3))
    for _ in itertools.islice(distill(straight, Brighten(), seed=SEED), 6):
        pass
    for _ in itertools.islice(distill(stopped, Brighten(), seed=SEED), 3):
        pass
    resumed.load(stopped.save().detached())
    for _ in itertools.islice(distill(resumed, Brighten(), seed=SEED, start=3), 3):
        pass
    assert torch.isfinite(straight.render()).all()
    assert torch.equal(straight.render(), resumed.render())
    assert straight.rate == resumed.rate


def test_pixels_start_as_unit_noise_in_network_inputs_and_step_there():
    canvas = make("pixels", features=1.0, momentum=0.0)
    before = canvas.render()
    assert abs(before.std().item() - 1) < 0.1
    canvas.push(Pull(0.0, torch.ones_like(before)))
    torch.testing.assert_close(canvas.render(), before - 1)


def test_the_rate_moves_only_with_its_gradient():
    canvas = make(momentum=0.0)
    canvas.push(Pull(0.0, torch.zeros_like(canvas.render())))
    assert canvas.rate == pytest.approx(0.05)
    canvas.push(Pull(0.0, torch.zeros_like(canvas.render()), 2.0))
    assert canvas.rate == pytest.approx(0.05 - 0.01 * 2.0)


def test_style_vectors_that_a_space_has_used_up_are_not_there():
    sizes = [make(space=space).latent["w"].shape[1] for space in (0, 1, 2)]
    assert sizes[0] >= sizes[1] > sizes[2] - 1
    assert "w" not in make(space=make().generator.depth).latent


def test_fresh_features_start_within_their_limit_and_given_ones_as_they_are():
    class Wild(Pixels):
        def lift(self, latent, space):
            features = 100 * latent["f"]
            features.view(-1)[:3] = torch.tensor([torch.nan, torch.inf, -torch.inf])
            return {"f": features}

    given = {"normalisation": NORMALISATION, "strokes": Strokes(1.0, 0.0, 0.0), "rate": 0.05, "seed": SEED}
    generator = Wild(1, (16, 16), NORMALISATION)
    features = Canvas.draw(generator, 0, LABELS, **given, limit=10.0).latent["f"]
    assert features.view(-1)[:3].tolist() == [0, 5, -5]
    assert features.abs().max() == 10
    wild = Canvas.draw(generator, 0, LABELS, **given).latent["f"]
    inside = wild.isfinite() & (wild.abs() <= 10)
    assert torch.equal(features[inside], wild[inside])
    kept = Canvas.draw(generator, 0, LABELS, **given, limit=10.0, latent={"f": wild}).latent["f"]
    torch.testing.assert_close(kept, wild, equal_nan=True)


def test_as_a_shard():
    canvas = make()
    shard = canvas.shard(tiny_world().classes)
    torch.testing.assert_close(shard.inputs(), canvas.render())
    assert shard.labels.tolist() == LABELS.tolist()
