"""Files and options → cells: every experiment of a sweep, validated before the first is run. Nothing is run or written here.

What a cell's experiment is made of, later over earlier:

1. the file, without its ``[sweep]``. Of ``[algorithm]`` a method gets the options that it has;
2. what ``[[sweep.methods]]`` lays over it, key by key; a ``model`` of another name takes the place of the file's;
3. ``--set``; of ``algorithm`` again what the method has;
4. one value of each key of ``[sweep.grid]``, of the method's own ``grid`` and of ``--vary``. A table as a value takes the
   place of the experiment's. A method is not varied by an ``algorithm`` option that it does not have.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Any

from fedstill.errors import InputError, suggestion
from fedstill.experiment import SWEEP, Experiment
from fedstill.method import Method
from fedstill.settings import override
from fedstill.sweep.names import apart, words
from fedstill.sweep.published import check, entries, published
from fedstill.sweep.sheet import METHOD, Sheet, Variant, inner, open_sheet, said_of
from fedstill.sweep.table import Grid, check_pinned, check_seeds, covers, leaves, put, read_vary, repeated

__all__ = ["Cell", "read", "title"]


@dataclass(frozen=True)
class Cell:
    """One run of a sweep.

    Attributes:
        name: of its folder; no two cells of a sweep have the same.
        label: of its method.
        experiment: all its settings.
        setting: what of them the grids chose, by dotted key.
        seed: the experiment's.
    """

    name: str
    label: str
    experiment: Experiment
    setting: Mapping[str, Any]
    seed: int

    @property
    def group(self) -> str:
        """Its name without the seed: cells of one group differ in nothing else."""
        return self.name.removesuffix(f"-{self.seed}")


@dataclass(frozen=True)
class _Draft:
    """A cell before it has a seed and a name that no other has."""

    name: str
    label: str
    experiment: Experiment
    setting: Mapping[str, Any]

    @cached_property
    def settings(self) -> Mapping[str, Any]:
        return self.experiment.settings()


def read(
    files: Sequence[str | Path],
    *,
    seeds: Sequence[int] | None = None,
    vary: Sequence[str] = (),
    settings: Sequence[str] = (),
) -> tuple[Cell, ...]:
    """The cells of ``files``: all methods and settings with the first seed, then with the next.

    Args:
        files: sweep files, and experiment files, each of which is one method called after its file.
        seeds: in place of the files' own.
        vary: ``KEY=VALUE,VALUE,…``, as ``--vary`` has them; in place of a grid's values for KEY.
        settings: ``KEY=VALUE``, as ``--set`` has them, for every cell.

    Raises:
        InputError: a file cannot be read, or says something that no sweep or no experiment can; one sentence.
    """
    if not files:
        raise InputError("a sweep needs at least one file")
    if (twice := repeated([str(file) for file in files])) is not None:
        raise InputError(f"{twice} is given twice")
    check_seeds(seeds, "--seeds")
    over, more = _over(settings), read_vary(vary)
    check_pinned(leaves(over), more, "--set")
    sheets = [open_sheet(Path(file)) for file in files]
    _check_options(sheets, over, more)
    narrowed = bool(vary or settings)
    every = [(sheet, draft) for sheet in sheets for draft in _drafts(sheet, over, more, narrowed=narrowed)]
    names = apart([draft.name for _, draft in every], [sheet.path.stem for sheet, _ in every])
    turns = [seeds or sheet.sweep.seeds or (draft.experiment.seed,) for sheet, draft in every]
    cells = tuple(
        _cell(draft, name, its[turn])
        for turn in range(max(map(len, turns)))
        for (_, draft), name, its in zip(every, names, turns, strict=True)
        if turn < len(its)
    )
    _check_alike(cells)
    return cells


def title(files: Sequence[str | Path]) -> str:
    """What a sweep is called, and its folder: the name of its one file's experiment.

    Raises:
        InputError: there are several, or the name is none for a folder.
    """
    if len(files) != 1:
        raise InputError("--out is missing: several files are one sweep, which has no name of its own")
    given = open_sheet(Path(files[0])).base.get("name", Experiment.name)
    with said_of(Path(files[0])):
        return Experiment.from_table({"name": given}).name


def _cell(draft: _Draft, name: str, seed: int) -> Cell:
    experiment = replace(draft.experiment, seed=seed)
    return Cell(f"{name}-{seed}", draft.label, experiment, draft.setting, seed)


def _over(settings: Sequence[str]) -> dict[str, Any]:
    over = override({}, settings)
    for key, instead in {SWEEP: "--seeds and --vary", "seed": "--seeds"}.items():
        if key in over:
            raise InputError(f"--set {key}: what is set goes to every cell; use {instead}")
    return over


def _check_options(sheets: Sequence[Sheet], over: Mapping[str, Any], more: Grid) -> None:
    """That a method has each option of ``algorithm`` that is given to those that have it."""
    everywhere: set[str] = set()
    for sheet in sheets:
        with said_of(sheet.path):
            own = [Method.keys(sheet.algorithm(variant, over)) for variant in sheet.variants]
            here = set[str]().union(*own)
            if not sheet.plain:  # whose one method answers for itself
                _check_known((f"{METHOD}.{key}" for key in sheet.shared), here, "")
            _check_known(sheet.grid, here, "sweep.grid ")
            for variant, its in zip(sheet.variants, own, strict=True):
                _check_known(variant.grid, its, f"sweep.methods '{variant.label}': grid ")
            everywhere |= here
    _check_known((key for key, _ in leaves(over)), {*everywhere, "name"}, "--set ")
    _check_known(more, everywhere, "--vary ")


def _check_known(keys: Iterable[str], known: Collection[str], place: str) -> None:
    for key in keys:
        if covers(METHOD, key) and key.split(".")[1] not in known:
            option = key.removeprefix(f"{METHOD}.")
            raise InputError(f"{place}{key}: no method here has such an option: {suggestion(option, known)}")


def _drafts(sheet: Sheet, over: Mapping[str, Any], more: Grid, *, narrowed: bool) -> list[_Draft]:
    """``narrowed``: by options, so that not all that the file says is published needs to fit."""
    with said_of(sheet.path):
        drafts = [draft for variant in sheet.variants for draft in _of_variant(sheet, variant, over, more)]
        found = entries(sheet.sweep.published)
        if not narrowed:
            check(found, drafts)
        return [
            replace(draft, experiment=replace(draft.experiment, published=its))
            for draft, its in zip(drafts, published(found, drafts), strict=True)
        ]


def _of_variant(sheet: Sheet, variant: Variant, over: Mapping[str, Any], more: Grid) -> Iterator[_Draft]:
    table = _table(sheet, variant, over)
    varied = _varied(sheet, variant, over, more)
    texts = [words(key, values) for key, values in varied.items()]
    choices = [list(zip(values, its, strict=True)) for values, its in zip(varied.values(), texts, strict=True)]
    for chosen in product(*choices):
        setting = {key: value for key, (value, _) in zip(varied, chosen, strict=True)}
        name = "-".join([variant.label, *(word for _, word in chosen)])
        try:
            whole = table
            for key, value in setting.items():
                whole = put(whole, key, value)
            experiment = Experiment.from_table(whole)
        except InputError as error:
            raise InputError(f"{'' if sheet.plain and not setting else f'{name}: '}{error}") from error
        yield _Draft(name, variant.label, experiment, setting)


def _table(sheet: Sheet, variant: Variant, over: Mapping[str, Any]) -> dict[str, Any]:
    """The variant's experiment, but for what is varied."""
    name = sheet.algorithm(variant, over)
    keys = Method.keys(name)
    table = _laid(_laid(sheet.base, variant.table, networks=True), over)
    table[METHOD] = {
        **{key: value for key, value in sheet.shared.items() if key in keys or sheet.plain},
        **inner(variant.table, METHOD),
        **{key: value for key, value in inner(over, METHOD).items() if key in keys},
        "name": name,
    }
    title = table.get("name", Experiment.name)
    if not sheet.plain and isinstance(title, str):
        table["name"] = f"{title}-{variant.label}"
    return table


def _varied(sheet: Sheet, variant: Variant, over: Mapping[str, Any], more: Grid) -> Grid:
    """What is varied of the variant: ``more`` takes the place of the file's values for the same key."""
    chosen = {
        key: values
        for key, values in {**sheet.grid, **variant.grid}.items()
        if key in more or not any(covers(each, key) for each in more)
    }
    check_pinned(leaves(over), {key: values for key, values in chosen.items() if key not in more}, "--set")
    keys = Method.keys(sheet.algorithm(variant, over))
    return {
        key: values
        for key, values in {**chosen, **more}.items()
        if not covers(METHOD, key) or key.split(".")[1] in keys
    }


def _laid(base: Mapping[str, Any], over: Mapping[str, Any], *, networks: bool = False) -> dict[str, Any]:
    """``over`` on ``base``, the tables of both key by key.

    ``networks``: a ``model`` of another name takes the place of what stood there, whose options are another network's.
    """
    result = dict(base)
    for key, value in over.items():
        old = base.get(key)
        if not (isinstance(value, Mapping) and isinstance(old, Mapping)):
            result[key] = value
        elif networks and key == "model" and _other(old, value):
            result[key] = dict(value)
        else:
            result[key] = {**old, **value}
    return result


def _other(old: Mapping[str, Any], new: Mapping[str, Any]) -> bool:
    return bool("name" in new and new["name"] != old.get("name", Experiment().model.name))


def _check_alike(cells: Sequence[Cell]) -> None:
    """That no run would repeat another."""
    seen: dict[str, Cell] = {}
    for cell in cells:
        other = seen.setdefault(json.dumps(cell.experiment.settings(), sort_keys=True), cell)
        if other is not cell:
            raise InputError(f"{other.name} and {cell.name} have the same settings: one would repeat the other")
