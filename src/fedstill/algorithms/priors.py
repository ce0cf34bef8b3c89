"""The generator that a method distils through, as its options name it."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from fedstill.distill.canvas import Generator
from fedstill.errors import InputError
from fedstill.generators import PRIORS, build_generator
from fedstill.generators.choice import chosen_names, named_numbers, strangers
from fedstill.generators.files import read_card
from fedstill.generators.precision import Precision
from fedstill.rounds import World

__all__ = ["PriorClasses", "class_remark", "generator_of", "space_of"]

_KEY = "algorithm.prior_classes"
_BY_NAME = "imagenet"

PriorClasses = Annotated[
    str | tuple[Annotated[int, Field(ge=0)], ...] | None,
    Field(
        description="which of the prior's classes the data's are: a list of numbers, in the data's order; imagenet: those of the "
        "thousand that are called the same; or immeow | imwoof | imfruit | imfood | immisc | imagenette; none: the same"
    ),
]


def generator_of(
    world: World,
    name: str,
    *,
    device: str = "cpu",
    truncation: float = 1.0,
    precision: Precision = "float32",
    prior_classes: PriorClasses = None,
) -> Generator:
    """``algorithm.generator`` for the images of ``world``, on ``device``.

    Raises:
        InputError: as :func:`fedstill.generators.build_generator`; or it knows float32 alone, and ``precision`` is another.
    """
    architecture = world.architecture
    if prior_classes == _BY_NAME and name != "pixels":
        prior_classes = named_numbers(world.classes, _KEY)
    generator: Any = build_generator(
        name,
        channels=architecture.channels,
        size=architecture.size,
        normalisation=world.normalisation.to(device),
        classes=architecture.classes,
        truncation=truncation,
        prior_classes=prior_classes,
    )
    if precision != "float32":
        if not hasattr(generator, "precision"):
            raise InputError(
                f"algorithm.precision = '{precision}': the generator '{name}' works in float32 alone; leave it at that, or "
                "choose a StyleGAN-XL prior"
            )
        generator.precision = precision
    placed: Generator = generator.to(device)
    return placed


def class_remark(world: World, name: str, prior_classes: PriorClasses) -> str | None:
    """What to say where the prior ``name`` calls its classes otherwise than the data does; None: nothing."""
    if prior_classes == _BY_NAME or (name not in PRIORS and not name.endswith(".safetensors")):
        return None
    try:
        theirs = tuple(map(str, read_card(name).get("classes", ())))
        if prior_classes is not None:
            theirs = chosen_names(prior_classes, theirs, _KEY)
    except InputError:
        return None  # a run refuses it in its own words
    if not (others := strangers(theirs, world.classes)):
        return None
    mine, yours = others[0]
    return (
        f"the prior '{name}' calls {len(others)} of the {len(world.classes)} classes otherwise than the data does, such as "
        f"'{mine}' for '{yours}': see that they are the same, in the same order, or set algorithm.prior_classes"
    )


def space_of(generator: Generator, name: str, wanted: int | Literal["pixels"]) -> int:
    """``algorithm.space`` of the generator ``name``; pixels are its deepest.

    Raises:
        InputError: it has no such space.
    """
    if wanted == "pixels":
        return generator.depth
    if wanted > generator.depth:
        raise InputError(
            f"algorithm.space = {wanted}: the generator '{name}' has spaces 0 to {generator.depth} "
            f"({generator.depth} is pixels)"
        )
    return wanted
