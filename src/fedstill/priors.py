"""A prior's training as a file describes it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from pydantic import ConfigDict, Field

from fedstill.data.sources import DataSettings
from fedstill.errors import InputError
from fedstill.generators.train import PriorSettings
from fedstill.settings import override, read_toml, validated

__all__ = ["PriorTraining"]


@dataclass(frozen=True, kw_only=True)
class PriorTraining:
    """``seed``, ``source``, a ``[data]`` table as an experiment has it, and a ``[prior]`` table."""

    __pydantic_config__ = ConfigDict(extra="forbid", allow_inf_nan=False)

    seed: Annotated[int, Field(ge=0, description="of every random number")] = 0
    source: Annotated[str, Field(description="what the images are, in a sentence, for the prior's card")] = ""
    data: DataSettings = field(default_factory=DataSettings)
    prior: PriorSettings = field(default_factory=PriorSettings)

    @classmethod
    def read(cls, path: Path | None, overrides: Sequence[str] = ()) -> PriorTraining:
        """From a TOML file, if any, with ``a.b=VALUE`` settings put in.

        Raises:
            InputError: the file cannot be read, something in it is wrong, or it does not say which images to train on.
        """
        try:
            table = override({} if path is None else read_toml(path), overrides)
            found = validated(cls, table)
            if "source" not in table.get("data", {}):
                # an experiment's default would be the very images that the demo's clients hold
                raise InputError("data.source is missing: say which public images, that no client holds, to train on")
            return found
        except InputError as error:
            raise InputError(f"{path}: {error}" if path else str(error)) from error
