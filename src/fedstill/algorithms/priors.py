"""The generator that a method distils through, as its options name it."""

from __future__ import annotations

from typing import Any, Literal

from fedstill.distill.canvas import Generator
from fedstill.errors import InputError
from fedstill.generators import build_generator
from fedstill.generators.precision import Precision
from fedstill.rounds import World

__all__ = ["generator_of", "space_of"]


def generator_of(
    world: World, name: str, *, device: str = "cpu", truncation: float = 1.0, precision: Precision = "float32"
) -> Generator:
    """``algorithm.generator`` for the images of ``world``, on ``device``.

    Raises:
        InputError: as :func:`fedstill.generators.build_generator`; or it knows float32 alone, and ``precision`` is another.
    """
    architecture = world.architecture
    generator: Any = build_generator(
        name,
        channels=architecture.channels,
        size=architecture.size,
        normalisation=world.normalisation.to(device),
        classes=architecture.classes,
        truncation=truncation,
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
