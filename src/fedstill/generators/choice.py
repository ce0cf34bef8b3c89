"""Which of a prior's classes the data's are."""

from __future__ import annotations

from collections.abc import Sequence

from fedstill.data.subsets import NUMBERS, SUBSETS
from fedstill.errors import InputError, printable, unknown

__all__ = ["chosen_names", "chosen_numbers", "named_numbers", "strangers"]


def chosen_numbers(choice: str | Sequence[int], key: str) -> tuple[int, ...]:
    """Numbers of a prior's classes: those of a subset of ImageNet by name, or as they are.

    Raises:
        InputError: the subset is unknown; ``key`` is where the user wrote it.
    """
    if not isinstance(choice, str):
        return tuple(choice)
    if choice not in NUMBERS:
        raise unknown(key, choice, NUMBERS)
    return NUMBERS[choice]


def named_numbers(names: Sequence[str], key: str) -> tuple[int, ...]:
    """Numbers of ImageNet's classes by their names, as the subsets have them.

    Raises:
        InputError: no subset has a class of that name; ``key`` is where the user asked for it.
    """
    pairs = (
        (_plain(name), number)
        for at, ids in SUBSETS.items()
        for name, number in zip(ids.values(), NUMBERS[at], strict=True)
    )
    table = dict(pairs)
    if missing := [name for name in names if _plain(name) not in table]:
        raise InputError(
            f"{key} = 'imagenet': no subset of ImageNet that fedstill knows has a class '{printable(missing[0])}': list the "
            "numbers of the prior's classes"
        )
    return tuple(table[_plain(name)] for name in names)


def chosen_names(choice: str | Sequence[int], names: Sequence[str], key: str) -> tuple[str, ...]:
    """What the chosen classes of a prior with classes ``names`` are called: as the subset calls them, or as the prior does.

    Raises:
        InputError: the subset is unknown, or the prior has no such class.
    """
    numbers = chosen_numbers(choice, key)
    if beyond := [number for number in numbers if not 0 <= number < len(names)]:
        raise InputError(f"{key}: the prior has classes 0 to {len(names) - 1}, not {beyond[0]}")
    return tuple(SUBSETS[choice].values()) if isinstance(choice, str) else tuple(names[number] for number in numbers)


def strangers(theirs: Sequence[str], ours: Sequence[str]) -> list[tuple[str, str]]:
    """Classes that a prior and the data, class by class, call by other names; none where the prior has numbers for names."""
    if all(name.isdigit() for name in theirs):
        return []
    pairs = zip(theirs, ours, strict=False)
    return [(mine, yours) for mine, yours in pairs if _plain(mine) != _plain(yours)]


def _plain(name: str) -> str:
    return name.casefold().replace("_", " ").replace("-", " ").strip()
