"""Sizes as people write them: ``"50 MB"``."""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

__all__ = ["Size", "parse_size", "size_text"]

_UNITS = {
    **{unit: 1000**power for power, unit in enumerate(("b", "kb", "mb", "gb", "tb"))},
    **{unit: 1024**power for power, unit in enumerate(("kib", "mib", "gib", "tib"), start=1)},
}
_SIZE = re.compile(r"([0-9]{1,15}(?:\.[0-9]{1,9})?) *([A-Za-z]{1,3})")


def parse_size(value: Any) -> Any:
    """``"50 MB"`` as a whole number of bytes; units of 1000 (kB, MB, GB, TB) or of 1024 (KiB, MiB, GiB, TiB).

    Raises:
        ValueError: it is no such thing. What is no text is left to its type.
    """
    if not isinstance(value, str):
        return value
    found = _SIZE.fullmatch(value.strip())
    if found is None or (unit := _UNITS.get(found[2].lower())) is None:
        raise ValueError("a size such as '50 MB' or '1.5 GiB'")
    return round(float(found[1]) * unit)


def size_text(count: int) -> str:
    """The shortest text of so many bytes that :func:`parse_size` reads back exactly: ``50 MB``."""
    for unit, size in (("TB", 1000**4), ("GB", 1000**3), ("MB", 1000**2), ("kB", 1000)):
        if count >= size and count % (size // 1000) == 0:
            return f"{f'{count / size:.3f}'.rstrip('0').rstrip('.')} {unit}"
    return f"{count} B"


Size = Annotated[int, BeforeValidator(parse_size), Field(ge=1)]
"""A number of bytes in a settings table."""
