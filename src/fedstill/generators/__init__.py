"""Generators: what a latent becomes an image through. Pixels, shipped priors, priors of one's own.

A generator is a torch module with the attributes ``depth``, ``channels``, ``size`` and ``classes`` and the methods
``draw``, ``lift`` and ``render``; :class:`~fedstill.generators.style.StyleGenerator` is one to read. It may have a ``chunk``,
the most images it takes at a time. Reading this table imports no torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from fedstill.errors import InputError, unknown
from fedstill.tables import resolve

if TYPE_CHECKING:
    from fedstill.data.shard import Normalisation

__all__ = ["PRIORS", "build_generator"]

PRIORS: Mapping[str, str] = MappingProxyType({"digits": "digits.safetensors"})
"""Shipped priors: name → file in ``fedstill/generators/priors``; a model card of the same name lies beside it."""


def build_generator(
    name: str,
    *,
    channels: int,
    size: tuple[int, int],
    normalisation: Normalisation,
    classes: int,
    truncation: float = 1.0,
    prior_classes: str | Sequence[int] | None = None,
    key: str = "algorithm.generator",
) -> Any:
    """The generator that ``name`` stands for, checked against the data it is to make images like.

    Args:
        name: ``"pixels"``; a shipped prior (:data:`PRIORS`); the path of a ``.safetensors`` prior; or a user's own
            ``package.module:factory``, called with ``channels``, ``size``, ``normalisation`` and ``classes`` by name.
        channels: channels of the data's images.
        size: their height and width in pixels.
        normalisation: that of the data.
        classes: number of the data's classes.
        truncation: ψ of a prior, shipped or in a file; 1 switches it off.
        prior_classes: which of a prior's classes the data's are, in the data's order: their numbers, or the name of a subset of
            ImageNet (:data:`fedstill.data.subsets.NUMBERS`) for a prior of its thousand; None: the same, in the same order.
            Pixels are of no class, and so of any choice.
        key: where the user wrote ``name``; errors quote it.

    Raises:
        InputError: the name is unknown, the file cannot be read, or the generator does not fit the data, knows no truncation
            or has no such classes.
    """
    is_prior = name in PRIORS or name.endswith(".safetensors")
    if truncation != 1 and not is_prior:
        raise InputError(f"{key} = '{name}' knows no truncation: leave it at 1, or choose a prior")
    classes_key = f"{key.rpartition('.')[0]}.prior_classes".lstrip(".")
    if prior_classes is not None and not is_prior and name != "pixels":
        raise InputError(f"{key} = '{name}' has no classes to choose from: leave out {classes_key}, or choose a prior")
    if name == "pixels":
        from fedstill.generators.pixels import Pixels

        return Pixels(channels, size, normalisation)
    if is_prior:
        from fedstill.generators.choice import chosen_numbers
        from fedstill.generators.files import load_prior

        numbers = None if prior_classes is None else chosen_numbers(prior_classes, classes_key)
        if numbers is not None and len(numbers) != classes:
            raise InputError(
                f"{classes_key} names {len(numbers)} classes of the prior and the data has {classes}: name one for each, in "
                "the data's order"
            )
        generator: Any = load_prior(name, truncation=truncation, classes=numbers)
    elif ":" in name:
        factory = resolve({}, name, key)
        generator = factory(channels=channels, size=size, normalisation=normalisation, classes=classes)
        missing = [part for part in _PARTS if not hasattr(generator, part)]
        if missing:
            raise InputError(
                f"{key} = '{name}': what it built has no '{missing[0]}'; a generator has {', '.join(_PARTS)}"
            )
    else:
        raise unknown(key, name, ["pixels", *PRIORS])
    _check_fit(
        generator,
        f"{key} = '{name}'",
        channels=channels,
        size=size,
        classes=classes,
        chosen_by=classes_key if is_prior else "",
    )
    return generator


_PARTS = ("depth", "channels", "size", "classes", "draw", "lift", "render")


def _check_fit(
    generator: Any, where: str, *, channels: int, size: tuple[int, int], classes: int, chosen_by: str
) -> None:
    height, width = generator.size
    if (height, width) != tuple(size):
        wanted = f"data.size = {height}" if height == width else f"images of {height} x {width}"
        raise InputError(
            f"{where} makes images of {height} x {width} pixels and the data's are {size[0]} x {size[1]}: "
            f"set {wanted}, or choose another generator"
        )
    if generator.channels != channels:
        raise InputError(
            f"{where} makes images of {generator.channels} channels and the data's have {channels}: "
            f"set data.channels = {generator.channels}, or choose another generator"
        )
    if generator.classes is not None and generator.classes != classes:
        choose = (
            f"say with {chosen_by} which of them the data's are, " if chosen_by and generator.classes > classes else ""
        )
        raise InputError(
            f"{where} knows {generator.classes} classes and the data has {classes}: {choose}choose another generator, "
            "'pixels', or train a prior on public images of the data's classes"
        )
