"""A node's distillation: the choice, what is ill, another attempt, and what a kill costs."""

import math
from dataclasses import replace

import pytest
import torch

from fedstill.bundle import Bundle
from fedstill.data.shard import Normalisation
from fedstill.distill.canvas import Canvas, Pull, Strokes
from fedstill.distill.course import Attempt, Check, Course, averaged, diagnose
from fedstill.distill.node import tend
from fedstill.errors import InputError
from fedstill.generators.pixels import Pixels
from fedstill.seeds import Seed

SEED = Seed.root(0).at("node")
NORM = Normalisation((0.5,), (0.25,))


class Falling:
    """A matcher whose loss falls from 0.9 by a hundredth a step; pixels drift by the canvas's own step size."""

    def __init__(self, losses=None):
        self.taken = 0
        self.losses = losses

    def pull(self, images, labels, rate, seed):
        loss = 0.9 - 0.01 * self.taken if self.losses is None else self.losses[self.taken % len(self.losses)]
        self.taken += 1
        drift = -torch.ones_like(images) * (1 + 0.1 * torch.rand(1, generator=seed.torch()))
        return Pull(loss, drift, 0.001)


def paint(scale):
    pixels = Pixels(1, (2, 2), NORM)
    strokes = Strokes(features=0.01 * scale, styles=0.0, rate=0.001)
    return Canvas.draw(pixels, 0, torch.tensor([0, 1]), normalisation=NORM, strokes=strokes, rate=0.01, seed=SEED)


def judge_of(*values):
    """Judges that give these means in turn, the last for ever."""
    left = list(values)

    def judge(canvas, seed):
        value = left.pop(0) if len(left) > 1 else left[0]
        return [value - 0.01, value + 0.01]

    return judge


def run(judge, ready=None, **changes):
    settings = {
        "steps": 10,
        "check_every": 4,
        "keep_every": 3,
        "retries": 0,
        "retry_scale": 0.1,
        "seed": SEED,
    }
    return tend(paint, ready or Falling, judge, **{**settings, **changes})


def test_looks_come_at_the_start_at_every_kth_step_and_at_the_end():
    _, course = run(judge_of(0.1, 0.2, 0.3, 0.4))
    (attempt,) = course.attempts
    assert [check.step for check in attempt.checks] == [0, 4, 8, 10]
    assert [check.accuracy for check in attempt.checks] == pytest.approx([0.1, 0.2, 0.3, 0.4])
    assert attempt.checks[0].deviation == pytest.approx(0.01 * math.sqrt(2))
    assert len(attempt.losses) == course.steps == 10
    assert course.sick is None


def test_the_best_by_validation_is_chosen_not_the_last():
    canvas, course = run(judge_of(0.1, 0.2, 0.5, 0.4))
    assert course.chosen == (0, 2)
    straight, _ = run(judge_of(0.1, 0.2, 0.3), steps=8)
    assert torch.equal(canvas.render(), straight.render())
    assert canvas.rate == straight.rate == course.attempts[0].checks[2].rate


def test_the_images_of_the_start_are_never_chosen():
    _, course = run(judge_of(0.9, 0.2, 0.3, 0.1))
    assert course.chosen == (0, 2)
    assert "never rose above the 90.0 %" in course.sick


def test_nothing_to_judge_by_leaves_the_last():
    _, course = run(lambda canvas, seed: [])
    assert course.chosen == (0, 3)
    assert course.attempts[0].checks[1].accuracy is None
    assert course.sick is None


def test_what_was_not_judged_takes_no_judged_ones_place():
    """A runaway's last look is not judged."""

    def judge(canvas, seed):
        looks.append(1)
        return [] if len(looks) == 4 else [0.1 * len(looks)]

    looks = []
    _, course = run(judge)
    assert [check.accuracy is None for check in course.attempts[0].checks] == [False, False, False, True]
    assert course.chosen == (0, 2)


def test_a_thinned_curve_has_its_ends():
    losses = tuple(1.5 - 0.001 * n for n in range(1234))
    (told,) = Course((Attempt(losses, CHECKS),)).figures()["attempts"]
    smooth = averaged(losses)
    assert told["loss"][0] == [30, smooth[0]]
    assert told["loss"][-1] == [1234, smooth[-1]]
    assert len(told["loss"]) <= 100
    assert [each[0] for each in Course((Attempt(losses[:40], CHECKS),)).figures()["attempts"][0]["loss"]] == [
        *range(30, 41)
    ]


def test_an_ill_node_begins_again_with_smaller_steps():
    scales = []

    def painted(scale):
        scales.append(scale)
        return paint(scale)

    ill_then_well = judge_of(0.5, 0.4, 0.3, 0.2, 0.5, 0.6, 0.7, 0.8)
    _, course = tend(
        painted,
        Falling,
        ill_then_well,
        steps=10,
        check_every=4,
        keep_every=3,
        retries=2,
        retry_scale=0.1,
        seed=SEED,
    )
    assert scales == [1.0, 0.1]
    assert [diagnose(each) is None for each in course.attempts] == [False, True]
    assert course.chosen == (1, 3)
    assert course.sick is None
    assert course.steps == 20


def test_where_all_attempts_are_ill_the_best_of_all_is_chosen():
    _, course = run(judge_of(0.5, 0.1, 0.4, 0.2, 0.5, 0.3, 0.2, 0.1), retries=1)
    assert course.chosen == (0, 2)
    assert course.sick is not None


def test_a_healthy_attempt_wins_over_an_ill_one_of_higher_accuracy():
    # ill by its loss, which rises
    losses = [*(0.1 * n for n in range(1, 11)), *(1 - 0.05 * n for n in range(1, 11))]
    matcher = Falling(losses)
    _, course = run(judge_of(0.1, 0.9, 0.9, 0.9, 0.1, 0.3, 0.4, 0.2), ready=lambda: matcher, retries=1)
    assert "does not fall" in diagnose(course.attempts[0])
    assert course.chosen == (1, 2)


CHECKS = (Check(0, 0.2, 0.0, 0.01, 0.0, 1.0), Check(60, 0.4, 0.0, 0.01, -0.5, 1.5))
WELL = Attempt(tuple(1.5 - 0.02 * n for n in range(60)), CHECKS)


@pytest.mark.parametrize(
    ("attempt", "words"),
    [
        (WELL, None),
        (replace(WELL, losses=WELL.losses[::-1]), "does not fall"),
        (replace(WELL, losses=tuple(2.0 - 0.01 * n for n in range(60))), "not below 1"),
        (replace(WELL, losses=(*WELL.losses, math.nan)), "not finite at step 61"),
        (replace(WELL, checks=(CHECKS[0], replace(CHECKS[1], rate=-0.001))), "step size fell to -0.001"),
        (replace(WELL, checks=(CHECKS[0], replace(CHECKS[1], rate=0.0005))), "a frozen student"),
        (replace(WELL, checks=(CHECKS[0], replace(CHECKS[1], pixel_max=1733.0))), "pixels run away: -0.5 to 1.73e+03"),
        (replace(WELL, checks=(CHECKS[0], replace(CHECKS[1], accuracy=0.2))), "never rose above the 20.0 %"),
        (replace(WELL, checks=(CHECKS[0], replace(CHECKS[1], accuracy=0.19, deviation=0.02))), None),
        (replace(WELL, checks=tuple(replace(each, accuracy=1.0) for each in CHECKS)), None),
        (replace(WELL, checks=tuple(replace(each, accuracy=None) for each in CHECKS)), None),
    ],
)
def test_what_is_ill(attempt, words):
    found = diagnose(attempt)
    assert found is None if words is None else words in found


def test_a_hopeless_attempt_ends_at_once():
    """And is neither judged nor chosen from: its images are no numbers."""
    _, course = run(judge_of(0.1, 0.2), ready=lambda: Falling([0.5] * 5 + [math.nan]), steps=10)
    (attempt,) = course.attempts
    assert len(attempt.losses) == 6
    assert [check.step for check in attempt.checks] == [0, 4]
    assert course.chosen == (0, 1)


@pytest.mark.parametrize("die_at", [0, 1, 4, 5, 9, 10, 13, 19])
def test_a_killed_distillation_goes_on_to_the_same_bits(tmp_path, die_at):
    """It loses fewer steps than lie between two savings, in the second attempt as in the first."""

    def judge(canvas, seed):
        mean = canvas.render().mean().item()
        return [0.5 - abs(mean) / 100, 0.5 - abs(mean) / 50]

    class Steady(Falling):
        """A loss that depends on the step's seed alone, so that a resumed matcher says the same; it is ill."""

        def __init__(self, die=None):
            super().__init__()
            self.die = die

        def pull(self, images, labels, rate, seed):
            if self.taken == self.die:
                raise KeyboardInterrupt
            pull = super().pull(images, labels, rate, seed)
            return replace(pull, loss=1.5 + 0.1 * torch.rand(1, generator=seed.torch()).item())

    settings = {"retries": 1, "file": tmp_path / "node.safetensors"}
    straight, wanted = run(judge, ready=Steady, retries=1)
    with pytest.raises(KeyboardInterrupt):
        run(judge, ready=lambda: Steady(die_at), **settings)
    again = Steady()
    canvas, course = run(judge, ready=lambda: again, **settings)
    assert course == wanted
    assert torch.equal(canvas.render(), straight.render())
    assert canvas.rate == straight.rate
    assert again.taken <= wanted.steps - die_at + 3
    done, kept = run(judge, ready=lambda: pytest.fail("nothing is left to do"), **settings)
    assert kept == wanted
    assert torch.equal(done.render(), straight.render())


def test_a_damaged_file_is_refused(tmp_path):
    file = tmp_path / "node.safetensors"
    run(judge_of(0.1, 0.2), file=file)
    file.write_bytes(file.read_bytes()[:-40])
    with pytest.raises(InputError, match=r"node\.safetensors is damaged"):
        run(judge_of(0.1, 0.2), file=file)


def test_a_course_travels():
    _, course = run(judge_of(0.5, 0.1, 0.4, 0.2, 0.5, 0.3, 0.2, 0.1), retries=1)
    bundle = Bundle().put(statistics=course.group())
    assert bundle.finite()
    assert Course.of(Bundle.from_bytes(bundle.to_bytes()).groups["statistics"]) == course
    lost = Course((Attempt((0.5, math.nan), CHECKS[:1]),))
    assert Bundle().put(statistics=lost.group()).finite()
    assert Course.of(lost.group()).attempts[0].losses == (0.5, math.inf)
    assert Course.of(Course().group()) == Course()


@pytest.mark.parametrize(
    "change",
    [
        {"lengths": torch.tensor([[3, 1]])},
        {"lengths": torch.tensor([1, 2])},
        {"lengths": torch.tensor([[-1, 2], [61, 0]])},
        {"losses": torch.zeros(60, 2)},
        {"checks": torch.zeros(2, 5)},
        {"chosen": torch.tensor([0, 7])},
        {"chosen": torch.tensor([2, 0])},
        {"chosen": torch.tensor([1])},
    ],
)
def test_a_strangers_course_is_checked(change):
    group = {**Course((WELL,), (0, 1)).group(), **change}
    with pytest.raises(InputError, match="record of its distillation is damaged"):
        Course.of(group)
    with pytest.raises(InputError):
        Course.of({name: tensor for name, tensor in group.items() if name != "checks"})


def test_the_moving_average_begins_with_the_first_full_window():
    assert averaged([1.0, 2.0, 3.0]) == [2.0]
    assert averaged([]) == []
    assert averaged(list(map(float, range(32)))) == [14.5, 15.5, 16.5]
