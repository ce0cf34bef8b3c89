"""Safetensors files that say what they are: one JSON object in their metadata, the *card*, checked before anything is believed.

Model files and distilled files are such. Nothing is unpickled, and reading one runs no code.
"""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ValidationError
from safetensors import SafetensorError, safe_open
from torch import Tensor

from fedstill.errors import InputError

__all__ = ["LONGEST_HEADER", "parse_card", "read_described"]

LONGEST_HEADER = 8 * 2**20
"""Bytes of a header, which names every tensor and holds the card; a longer one is refused before it is parsed."""

Card = TypeVar("Card", bound=BaseModel)


class _Version(BaseModel):
    """Read before all else, so that a newer file is told from a damaged one."""

    version: int


def read_described(
    path: Path, *, key: str, card: type[Card], newest: int, what: str, foreign: str
) -> tuple[Card, dict[str, Tensor]]:
    """The card and the tensors of a file.

    Args:
        path: of the file.
        key: of the metadata that holds the card.
        card: what it is to be.
        newest: version of the format that is known.
        what: the file is, for errors: ``a model file``.
        foreign: what is said of a safetensors file that lacks the card.

    Raises:
        InputError: the file is missing, not safetensors, without a card, from a newer fedstill, or its card is damaged.
    """
    try:
        with path.open("rb") as start:
            header = int.from_bytes(start.read(8), "little")
        if header > LONGEST_HEADER:
            raise InputError(
                f"{path} is not {what}, or is damaged: it cannot be read as safetensors (its header claims {header:,} bytes)"
            )
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get(key)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - the file is no mapping
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error
    except SafetensorError as error:
        raise InputError(f"{path} is not {what}, or is damaged: it cannot be read as safetensors ({error})") from error
    if text is None:
        raise InputError(f"{path} {foreign}")
    return parse_card(text, card=card, newest=newest, place=str(path)), tensors


def parse_card(text: str, *, card: type[Card], newest: int, place: str) -> Card:
    """The card that ``text`` is.

    Raises:
        InputError: it is of a newer format, or damaged; ``place`` says whose.
    """
    try:
        version = _Version.model_validate_json(text).version
        if version > newest:
            raise InputError(
                f"{place} was written by a newer fedstill (format {version}; this one reads up to {newest}): "
                "upgrade fedstill"
            )
        return card.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        loc = ".".join(map(str, first["loc"])) or "its description"
        raise InputError(f"{place} is damaged: {loc}: {' '.join(first['msg'].split())}") from error
