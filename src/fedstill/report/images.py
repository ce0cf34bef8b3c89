"""Distilled images, by round and by latent space."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from fedstill.report.families import families, shown
from fedstill.report.groups import Group
from fedstill.report.parts import Section, Text
from fedstill.report.pictures import BUDGET, albums, spaces

__all__ = ["images"]

_SPACE = "algorithm.space"
_FOR_SPACES = 3  # of the pictures' bytes, one part in so many, where spaces are compared
_SAY = (
    "One row a class. ● the client holds the class, ○ it does not: where a server distils, such a row is made from what the "
    "client’s update and the generator say together."
)


def images(groups: Sequence[Group]) -> Section | None:
    """The section; None where nothing was distilled. One seed’s images tell as much as all the seeds’ do."""
    by_space = [family for family in families(groups) if family.key == _SPACE]
    beside = BUDGET // _FOR_SPACES if by_space else 0
    made = [*albums({group.first: group.runs[0] for group in groups}, BUDGET - beside)]
    for number, family in enumerate(by_space, start=1):
        # F3 is the space after the generator’s third layer; one that is named, such as pixels, goes by its name
        runs = {
            (f"F{value}" if isinstance(value, int) else shown(value)): group.runs[0] for value, group in family.members
        }
        made += [replace(album, key=f"spaces-{number}") for album in spaces(runs, beside // len(by_space))]
    return Section("images", "Distilled images", (Text(_SAY, "mute"), *made)) if made else None
