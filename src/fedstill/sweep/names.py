"""What cells are called: names of folders that say what is in them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["LABEL", "apart", "words"]

LABEL = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,47}")
"""What a method may be called."""

_LONGEST = 40  # characters of a word
_WHOLE = 200  # of a name; a seed and an ending are yet to come, and most file systems end at 255


def words(key: str, values: Sequence[Any]) -> list[str]:
    """What each value of the varied ``key`` adds to a name: ``alpha0.9``; a table goes by its own name, ``resnet18``.

    Tables of one name are told apart by what differs: ``convnet-depth3``, ``convnet-depth5``.
    """
    last = key.rpartition(".")[2]
    plain = [_word(value) if isinstance(value, Mapping) else f"{last}{_word(value)}" for value in values]
    return [
        word + _difference(value, [other for other, its in zip(values, plain, strict=True) if its == word])
        for value, word in zip(values, plain, strict=True)
    ]


def apart(names: Sequence[str], origins: Sequence[str]) -> list[str]:
    """``names``, no two alike, not even where a file system makes no difference between ``A`` and ``a``.

    Those that would be the same begin with where they come from, where that helps; else they are numbered. What is too long
    for a folder is cut.
    """
    short = [name[:_WHOLE] for name in names]
    counts = _counts(short)
    longer = [
        f"{_word(origin)}-{name}"[:_WHOLE] if counts[name.lower()] > 1 else name
        for name, origin in zip(short, origins, strict=True)
    ]
    found = longer if max(_counts(longer).values(), default=1) == 1 else short
    taken: set[str] = set()
    for index, name in enumerate(found):
        number = 2
        while found[index].lower() in taken:
            found[index] = f"{name}-{number}"
            number += 1
        taken.add(found[index].lower())
    return found


def _counts(names: Sequence[str]) -> dict[str, int]:
    lower = [name.lower() for name in names]
    return {name: lower.count(name) for name in lower}


def _word(value: Any) -> str:
    match value:
        case bool():
            return str(value).lower()
        case Mapping():
            named = next((value[key] for key in ("label", "name", "kind", "source") if value.get(key)), "table")
            return _word(str(named))
        case list():
            return "-".join(map(_word, value))[:_LONGEST] or "none"
    last = re.split("[:/\\\\]", str(value).rstrip("/\\"))[-1]  # of a path, or of package.module:factory
    return re.sub(r"[^A-Za-z0-9._-]+", "_", last).strip("_")[:_LONGEST] or "none"


def _difference(value: Any, alike: Sequence[Any]) -> str:
    tables = [each for each in alike if isinstance(each, Mapping)]
    if len(tables) < 2 or not isinstance(value, Mapping):
        return ""
    keys = dict.fromkeys(key for table in tables for key in table)
    differ = [key for key in keys if any(table.get(key) != value.get(key) for table in tables)]
    return "".join(f"-{key}{_word(value[key])}" for key in differ if key in value)
