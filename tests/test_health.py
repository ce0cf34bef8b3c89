from dataclasses import replace

import pytest
import torch

from fedstill.contract import tiny_sites, tiny_world
from fedstill.distill.canvas import Canvas, Strokes
from fedstill.distill.health import match
from fedstill.distill.matchers import TrajectoryMatcher
from fedstill.generators.pixels import Pixels
from fedstill.seeds import Seed
from fedstill.train import Recipe, fit

WORLD = tiny_world()
SEED = Seed.root(0).at("health")


def make_matcher():
    start = WORLD.architecture.build(Seed.root(0))
    site = tiny_sites()["c00"]
    target = fit(start, site.train, Recipe(epochs=5, lr=0.05, batch=8), seed=SEED).tensors
    return TrajectoryMatcher(network=start, start=start.state_dict(), target=target, steps=4)


def painter(features, rate=1e-3):
    tries = []

    def paint(scale):
        tries.append(scale)
        return Canvas.draw(
            Pixels(1, (8, 8), WORLD.normalisation),
            0,
            torch.arange(6) % 3,
            normalisation=WORLD.normalisation,
            strokes=Strokes(features=features, styles=0.0, rate=rate, optimiser="adam").scaled(scale),
            rate=0.05,
            seed=SEED.at("draw"),
        )

    return paint, tries


def test_a_healthy_match():
    paint, tries = painter(0.1)
    canvas, health = match(paint, make_matcher(), steps=30, seed=SEED, conditioning=True)
    assert health.sick is None
    assert tries == [1.0]
    assert health.best <= health.end < health.start
    assert health.end < 1
    assert 0 < health.conditioning <= 1
    pixels = WORLD.normalisation.undo(canvas.render())
    assert (health.pixel_min, health.pixel_max) == (pixels.min().item(), pixels.max().item())
    assert health.rate == canvas.rate


def test_steps_too_large_are_retried_smaller():
    paint, tries = painter(100.0, rate=1.0)  # the student's rate is thrown far off
    _, health = match(paint, make_matcher(), steps=30, seed=SEED, retry_scale=1e-3)
    assert tries == [1.0, 1e-3]
    assert health.retries == 1
    assert health.sick is None


def test_what_fails_twice_is_sick_and_says_why():
    paint, tries = painter(0.1, rate=100.0)
    _, health = match(paint, make_matcher(), steps=3, seed=SEED, retry_scale=0.9)
    assert len(tries) == 2
    assert "loss" in health.sick


def test_not_finite_stops_at_once():
    matcher = make_matcher()
    broken = replace(matcher, target={name: tensor * float("inf") for name, tensor in matcher.target.items()})
    _, health = match(painter(0.1)[0], broken, steps=50, seed=SEED, retries=0)
    assert health.sick == "its matching loss is not finite"


def test_keeping_the_best_goes_back_to_it():
    # steps this large overshoot: the smallest loss is met before the last step
    last, best = (
        match(painter(0.9)[0], make_matcher(), steps=40, seed=SEED, retries=0, keep=keep)[1]
        for keep in ("last", "best")
    )
    assert last.best < last.end
    # no augmentation and full batches: a step's loss is the loss of its images
    assert best.end == pytest.approx(last.best)


def test_a_frozen_student_is_sick():
    # images held still, the first loss above 1: the way down that is left is a student that does not move
    _, health = match(painter(1e-9, rate=0.01)[0], make_matcher(), steps=30, seed=SEED, retries=0)
    assert health.end < health.start
    assert health.rate < 0.005
    assert "frozen" in health.sick


def test_progress_is_told_step_by_step():
    told = []
    match(painter(0.1)[0], make_matcher(), steps=3, seed=SEED, progress=lambda done, total: told.append((done, total)))
    assert told == [(1, 3), (2, 3), (3, 3)]
