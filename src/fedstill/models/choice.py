"""A network as an experiment file names it: one flat table of a name and the network's own options."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

from pydantic import BeforeValidator, PlainSerializer

__all__ = ["Choice", "NetworkChoice"]

Scalar = bool | int | float | str


@dataclass(frozen=True)
class Choice:
    """``{name = "convnet", depth = 3, width = 32}``; ``label`` tells two of the same name apart.

    Attributes:
        name: a name of :data:`fedstill.models.MODELS`, or ``package.module:factory``.
        label: under which results and model files appear; the name where it is empty.
        options: the network's own.
    """

    name: str
    label: str = ""
    options: Mapping[str, Scalar] = field(default_factory=dict)

    @property
    def title(self) -> str:
        return self.label or self.name.rpartition(":")[2]

    def flat(self) -> dict[str, Scalar]:
        """The table as a user writes it."""
        label = {"label": self.label} if self.label else {}
        return {"name": self.name, **label, **self.options}


def _gather(table: Any) -> Any:
    if not isinstance(table, Mapping) or "options" in table:
        return table
    own = {"name", "label"}
    return {
        **{key: value for key, value in table.items() if key in own},
        "options": {key: value for key, value in table.items() if key not in own},
    }


NetworkChoice = Annotated[Choice, BeforeValidator(_gather), PlainSerializer(lambda choice: choice.flat())]
"""A :class:`Choice` that pydantic reads from and writes to the flat table."""
