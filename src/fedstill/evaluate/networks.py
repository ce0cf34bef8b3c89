"""Networks as the command line names them: ``convnet:depth=3,width=32`` is ``{name = "convnet", depth = 3, width = 32}``."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from fedstill.errors import InputError
from fedstill.models import MODELS
from fedstill.models.architecture import Architecture
from fedstill.models.choice import Choice
from fedstill.rounds import World
from fedstill.settings import parse

__all__ = ["named", "read_choice"]


def read_choice(text: str) -> Choice:
    """``NAME`` or ``NAME:key=value,key=value``; the key ``label`` is what results call it.

    A NAME may hold a colon itself, where it is the user's own ``package.module:factory``.

    Raises:
        InputError: the text is not of that form.
    """
    name, _, tail = text.rpartition(":")
    if "=" not in tail and name not in MODELS:
        name, tail = text, ""
    options = {}
    for setting in filter(None, tail.split(",")):
        key, _, value = (part.strip() for part in setting.partition("="))
        parsed = parse(value)
        if not key or not value or not isinstance(parsed, bool | int | float | str):
            raise InputError(f"--model {text}: write it as NAME or as NAME:key=value,key=value")
        options[key] = parsed
    return Choice(name.strip(), str(options.pop("label", "")), options)


def named(choices: Sequence[Choice], world: World) -> Mapping[str, Architecture]:
    """Architectures by title, for the images and classes of ``world``; one that is given twice counts once.

    Where several bear one name, the options in which they differ are added: ``convnet:depth=2``, ``convnet:depth=3``.

    Raises:
        InputError: a network or an option is unknown, or two networks bear one label.
    """
    different: list[tuple[Choice, Architecture]] = []
    for choice in choices:
        architecture = world.other(choice.name, choice.options, "--model").resolved()
        if all(architecture != known for _, known in different):
            different.append((choice, architecture))
    names = [_name(choice, architecture, different) for choice, architecture in different]
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise InputError(f"--model: two networks are called '{twice[0]}'; give one a label of its own: label=NAME")
    return {name: architecture for name, (_, architecture) in zip(names, different, strict=True)}


def _name(choice: Choice, architecture: Architecture, among: Sequence[tuple[Choice, Architecture]]) -> str:
    likes = [other.options for rival, other in among if rival.title == choice.title]
    if choice.label or len(likes) == 1:
        return choice.title
    own = architecture.options
    differing = [key for key in own if any(options.get(key) != own[key] for options in likes)]
    return f"{choice.title}:{','.join(f'{key}={_text(own[key])}' for key in differing)}"


def _text(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
