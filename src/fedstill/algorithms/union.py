"""The union of the clients' synthetic sets: what is kept of it, and training networks on it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from typing import Any, NamedTuple, TypeVar

from fedstill.bundle import Bundle, Group
from fedstill.data.shard import Shard
from fedstill.distill.health import Health
from fedstill.errors import Diverged, InputError
from fedstill.models.architecture import Architecture
from fedstill.models.choice import Choice
from fedstill.rounds import Desk, Failure, Trained, World
from fedstill.train import Fitted, Recipe, fit, predict

__all__ = [
    "Course",
    "DistilledSet",
    "global_networks",
    "join_sets",
    "keep",
    "shard_of",
    "soften",
    "study",
    "without_ruinous",
]

T = TypeVar("T")


class DistilledSet(NamedTuple):
    """What came of one client's update: images in units of the pixel range, on the CPU; ``latents`` only where kept."""

    client: str
    synthetic: Shard
    latents: Group
    health: Health | None

    @property
    def sick(self) -> str | None:
        """Why it is left out of the union; None where it is not."""
        return None if self.health is None else self.health.sick

    def figures(self, reply: Bundle) -> dict[str, Any]:
        """The client's line in the round's figures."""
        figures: dict[str, Any] = {"examples": int(reply.numbers["examples"])}
        if "loss" in reply.numbers:
            figures["loss"] = reply.numbers["loss"]
        return figures if self.health is None else figures | {"matching": asdict(self.health)}


def keep(state: Bundle, sets: Sequence[DistilledSet]) -> Bundle:
    """``state`` with the images of these sets in place of the last round's, and their latents over older ones."""
    good = [each for each in sets if each.sick is None]
    images = {
        f"synthetic:{each.client}": {"images": each.synthetic.images, "labels": each.synthetic.labels} for each in good
    }
    latents = {f"latents:{each.client}": each.latents for each in good if each.latents}
    old = [name for name in state.groups if name.startswith("synthetic:")]
    return state.drop(*old).put(**images, **latents)


def shard_of(group: Group, world: World) -> Shard:
    """The images of a set as a Bundle holds it."""
    return Shard(group["images"], group["labels"], world.classes, world.normalisation)


def join_sets(sets: Mapping[str, Group], world: World) -> Shard:
    """The images of all sets, which are one at least, as one Shard."""
    return Shard.join([shard_of(group, world) for group in sets.values()])


def global_networks(world: World, choices: Sequence[Choice], own: str) -> dict[str, Architecture]:
    """What the server trains on the union beside the clients' network, which is called ``own``; by name.

    Raises:
        InputError: two have the same name.
    """
    titles = [own, *(choice.title for choice in choices)]
    for title in titles[1:]:
        if titles.count(title) > 1:
            raise InputError(f"algorithm.global_models: two networks are called '{title}'; give one a label of its own")
    return {
        choice.title: world.other(choice.name, choice.options, f"algorithm.global_models[{index}]")
        for index, choice in enumerate(choices)
    }


class Course(NamedTuple):
    """One network's training; crosses to a worker process."""

    name: str
    trained: Trained
    recipe: Recipe
    desk: Desk


def study(lesson: Shard, courses: Sequence[Course], desk: Desk) -> dict[str, Fitted]:
    """Train each course's network on ``lesson``, side by side where ``desk.map`` can; by name."""
    done: dict[str, Fitted] = {}
    desk.progress("train", 0, len(courses))
    for course, fitted in zip(courses, desk.map(partial(_take, lesson), courses), strict=True):
        done[course.name] = fitted
        desk.progress("train", len(done), len(courses))
    return done


def without_ruinous(
    sets: Sequence[DistilledSet], teach: Callable[[Sequence[DistilledSet]], T]
) -> tuple[T, list[Failure]]:
    """What ``teach`` makes of the sets, and who had to be left out for it: clients on whose images alone training diverges.

    Who they are is asked only where training on all sets diverges; it then costs about as much again.

    Raises:
        Diverged: it diverges on all sets together and on none, or on each, by itself: the settings are to blame, not a client.
    """
    try:
        return teach(sets), []
    except Diverged as error:
        together = error
    alone = {each.client: _divergence(each, teach) for each in sets}
    left = [each for each in sets if alone[each.client] is None]
    if not 0 < len(left) < len(sets):
        raise together
    ruinous = [
        Failure(client, f"its images cannot be learned from: {why}") for client, why in alone.items() if why is not None
    ]
    return teach(left), ruinous


def _divergence(each: DistilledSet, teach: Callable[[Sequence[DistilledSet]], T]) -> str | None:
    try:
        teach([each])
    except Diverged as error:
        return str(error)
    return None


def soften(shard: Shard, teacher: Trained, temperature: float, *, device: str = "cpu") -> Shard:
    """``shard`` with the teacher's predictions on its clean images as labels: softmax(logits / temperature)."""
    logits = predict(teacher.module(), shard, device=device)
    return replace(shard, labels=(logits / temperature).softmax(1))


def _take(lesson: Shard, course: Course) -> Fitted:
    desk = course.desk
    fitted = fit(
        course.trained.module(),
        lesson,
        course.recipe,
        seed=desk.seed,
        device=desk.device,
        progress=partial(desk.progress, f"train {course.name}"),
    )
    # on the CPU: a worker process cannot hand over a GPU's memory
    return replace(fitted, tensors={name: tensor.cpu() for name, tensor in fitted.tensors.items()})
