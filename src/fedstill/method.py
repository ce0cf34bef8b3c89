"""An algorithm as an experiment file names it: its name, and its options, validated from its own annotations."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, cast, get_type_hints

from pydantic import BaseModel, ConfigDict, Field, create_model

from fedstill.algorithms import ALGORITHMS
from fedstill.algorithms.updates import OnUpdates, UpdateSettings, uncovered
from fedstill.algorithms.virtual import VIRTUAL, OnVirtual, VirtualSettings
from fedstill.errors import InputError
from fedstill.rounds import Algorithm, World
from fedstill.settings import validated
from fedstill.tables import resolve

__all__ = ["UPDATE", "Method"]

UPDATE = "update"
"""The table of a file."""

_BUDGET = "privacy_epsilon"


@dataclass(frozen=True)
class Method:
    """An algorithm as an experiment file names it: ``name``, and its own options, validated from its annotations."""

    name: str
    options: BaseModel

    @classmethod
    def parse(cls, table: Any) -> Method:
        """From the ``[algorithm]`` table.

        Raises:
            InputError: the name is unknown, the user's own factory is no dataclass, or an option is wrong.
        """
        if isinstance(table, Method):
            return table
        if not isinstance(table, Mapping) or not isinstance(table.get("name"), str):
            raise InputError(f"algorithm: must be a table with a name, one of {', '.join(sorted(ALGORITHMS))}")
        name = table["name"]
        given = _by_new_names(name, {key: value for key, value in table.items() if key != "name"})
        for key, value in _fixed(name).items():
            if key in given:
                raise InputError(f"algorithm.{key} = {given[key]!r}: '{name}' fixes it at {value!r}; remove this key")
        if _BUDGET in given and (why := ALGORITHMS[name].no_budget if name in ALGORITHMS else ""):
            raise InputError(
                f"algorithm.{_BUDGET} = {given[_BUDGET]}: '{name}' has no such budget, for {why}; leave it out"
            )
        lacks = ALGORITHMS[name].lacks if name in ALGORITHMS else {}
        for key in lacks.keys() & given.keys():
            raise InputError(
                f"algorithm.{key} = {given[key]}: '{name}' has no such option, for {lacks[key]}; leave it out"
            )
        return cls(name, validated(_options_model(name), given, where="algorithm"))

    @staticmethod
    def keys(name: str) -> frozenset[str]:
        """The options that a user may give to the algorithm ``name``; what its name fixes is none.

        Raises:
            InputError: as :meth:`parse`, for the name.
        """
        return frozenset(_options_model(name).model_fields)

    @property
    def pooled(self) -> bool:
        """Whether all data lie on one site."""
        return self.name in ALGORITHMS and ALGORITHMS[self.name].pooled

    @property
    def may_distil(self) -> bool:
        """Whether the server's state may hold synthetic sets; of the user's own that is not known."""
        return self.name not in ALGORITHMS or ALGORITHMS[self.name].distils

    @property
    def makes_virtual(self) -> bool:
        """Whether the method reads the ``[virtual]`` table itself: its dataclass has a field of that name."""
        return any(each.name == VIRTUAL for each in dataclasses.fields(self.factory))

    @property
    def own_images(self) -> str:
        """Why virtual images are nothing to it; empty where they are something."""
        return ALGORITHMS[self.name].own_images if self.name in ALGORITHMS else ""

    def build(
        self, world: World, virtual: VirtualSettings | None = None, update: UpdateSettings | None = None
    ) -> Algorithm:
        """The algorithm itself; on clients' virtual images where ``virtual`` says how to make them, with their updates as
        ``update`` says.

        Raises:
            InputError: virtual images are nothing to it, or its clients send what ``update`` does not cover.
        """
        algorithm = self._on_images(world, virtual)
        if update is None or not update.acts:
            return algorithm
        update.check()
        if why := self._uncovered():
            raise InputError(f"[update]: '{self.name}' takes no such table, for {why}; leave it out")
        return OnUpdates(inner=algorithm, update=update)

    def _uncovered(self) -> str:
        """Why what its clients send is not covered; of the user's own that is found out when they do."""
        if self.name not in ALGORITHMS:
            return ""
        if self.pooled:
            return "it pools all images on one site, and nothing is sent"
        return uncovered(ALGORITHMS[self.name].sends, self.options)

    def _on_images(self, world: World, virtual: VirtualSettings | None) -> Algorithm:
        """The algorithm, on the images that its clients train on."""
        if self.makes_virtual:
            return cast(Algorithm, self.factory(world=world, virtual=virtual or VirtualSettings(), **self.fields()))
        algorithm = cast(Algorithm, self.factory(world=world, **self.fields()))
        if virtual is not None and not virtual.use and virtual.privacy_epsilon is not None:
            raise InputError(
                f"virtual.{_BUDGET} = {virtual.privacy_epsilon:g}: with virtual.use = false clients train on their real images, "
                "which it does not cover; leave one of them out"
            )
        if virtual is None or not virtual.use:
            return algorithm
        if getattr(self.options, _BUDGET, None) is not None:
            raise InputError(
                f"algorithm.{_BUDGET}: it would protect the virtual images that clients train on and not the real ones that "
                f"these are made of; set virtual.{_BUDGET} instead, or virtual.use = false"
            )
        if self.own_images:
            raise InputError(
                f"virtual: '{self.name}' takes no virtual images, for {self.own_images}; set virtual.use = false"
            )
        return OnVirtual(inner=algorithm, virtual=virtual, world=world)

    @property
    def factory(self) -> Any:
        """The algorithm's dataclass."""
        return _factory(self.name)

    def fields(self) -> dict[str, Any]:
        """All its fields but ``world``."""
        given = {name: getattr(self.options, name) for name in type(self.options).model_fields}
        return {**given, **_fixed(self.name)}

    def table(self) -> dict[str, Any]:
        """Plain values, every default written out."""
        return {"name": self.name, **self.options.model_dump(mode="json")}


def _by_new_names(name: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """``given`` as files of this version have it."""
    renamed = ALGORITHMS[name].renamed if name in ALGORITHMS else {}
    for old in given.keys() & renamed.keys():
        if renamed[old] in given:
            raise InputError(
                f"algorithm.{old}: it is called algorithm.{renamed[old]} now, which is there too; remove it"
            )
    return {renamed.get(key, key): value for key, value in given.items()}


def _fixed(name: str) -> Mapping[str, Any]:
    return ALGORITHMS[name].fixed if name in ALGORITHMS else {}


def _factory(name: str) -> Any:
    factory = resolve({known: entry.factory for known, entry in ALGORITHMS.items()}, name, "algorithm.name")
    if not (isinstance(factory, type) and dataclasses.is_dataclass(factory)):
        raise InputError(f"algorithm.name = '{name}': it must be a frozen dataclass with a field 'world'")
    return factory


@cache
def _options_model(name: str) -> type[BaseModel]:
    """A pydantic model of the algorithm's fields, less ``world``, ``virtual`` and those that its name fixes."""
    factory = _factory(name)
    try:
        hints = get_type_hints(factory, include_extras=True)
    except NameError as error:
        raise InputError(f"algorithm.name = '{name}': its annotations cannot be read ({error})") from error
    fields: dict[str, Any] = {}
    for each in dataclasses.fields(factory):
        if each.name in ("world", VIRTUAL) or each.name in _fixed(name) or not each.init:
            continue
        default: Any = each.default
        if each.default_factory is not dataclasses.MISSING:
            default = Field(default_factory=each.default_factory)
        elif each.default is dataclasses.MISSING:
            default = ...
        fields[each.name] = (hints[each.name], default)
    config = ConfigDict(extra="forbid", frozen=True, arbitrary_types_allowed=True, allow_inf_nan=False)
    return create_model("Options", __config__=config, **fields)
