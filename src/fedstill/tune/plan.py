"""File and options → a search: what is varied, and the experiment of each trial. Nothing is run or written here."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fedstill.conduct import PublishedSettings
from fedstill.data.settings import DataSettings
from fedstill.errors import InputError
from fedstill.experiment import Experiment, by_content
from fedstill.search import Choice, Integers, Params, Part, Range, Space
from fedstill.seeds import Seed
from fedstill.settings import override, read_toml, told
from fedstill.sweep.sheet import said_of
from fedstill.sweep.table import check_pinned, check_seeds, covers, leaves, put, read_vary

__all__ = ["Search", "read"]

_RANGE = re.compile(r"(?P<low>[^:]*?[^.:])\.\.(?P<high>[^:]+?)(?P<log>:\s*log)?")
_WHOLE = re.compile(r"[+-]?\d+")

_LEFT_ALONE = ("size", "channels", "fit", "mean", "std", "zca", "zca_epsilon")
"""Keys of ``data`` that change how images are seen, and not which."""

_UNSAID = (("data.zca", False), ("data.zca_epsilon", DataSettings().zca_epsilon))
"""What searches do not tell that are older than these settings."""


@dataclass(frozen=True)
class Search:
    """What is searched.

    Attributes:
        table: of the experiment, as TOML would give it; what is varied may stand there or not.
        experiment: the same, validated.
        space: what is varied, by dotted key.
        seeds: every trial is run with each.
        prune: trials that fall behind are given up.
    """

    table: Mapping[str, Any]
    experiment: Experiment
    space: Space
    seeds: tuple[int, ...]
    prune: bool = True

    @property
    def seed(self) -> Seed:
        """Of what is tried, which no run's own numbers hang on."""
        return Seed.root(self.seeds[0]).at("tune")

    def trial(self, params: Params, seed: int) -> Experiment:
        """The experiment with ``params``.

        Raises:
            InputError: they do not go together.
        """
        return _with(self.table, {**params, "seed": seed})

    def identity(self) -> dict[str, Any]:
        """All that decides the search's results but the number of its trials, by name, as plain JSON values."""
        settings = by_content(told(self.experiment.anchored().settings()))
        fixed = {
            key: value
            for key, value in settings.items()
            if key != "seed" and not any(covers(each, key) for each in self.space.parts) and (key, value) not in _UNSAID
        }
        varied = {f"--vary {key}": part.to_json() for key, part in self.space.parts.items()}
        more = {"rounds": self.experiment.rounds, "--seeds": list(self.seeds), "pruning": self.prune}
        plain: dict[str, Any] = json.loads(json.dumps({**fixed, **varied, **more}))
        return plain


def read(
    file: str | Path,
    *,
    vary: Sequence[str],
    settings: Sequence[str] = (),
    seeds: Sequence[int] | None = None,
    prune: bool = True,
) -> Search:
    """A search from an experiment file.

    Args:
        file: the experiment.
        vary: ``KEY=LOW..HIGH``, ``KEY=LOW..HIGH:log`` or ``KEY=VALUE,VALUE,…``, as ``--vary`` has them. A range with whole ends
            is one of whole numbers where the key takes no others.
        settings: ``KEY=VALUE``, as ``--set`` has them.
        seeds: of each trial's runs; None: the experiment's own.
        prune: as :class:`Search`.

    Raises:
        InputError: the file cannot be read; a key is unknown or not to be varied, or one of its values is refused; clients keep
            no validation images; one sentence.
    """
    path = Path(file)
    check_seeds(seeds, "--seeds")
    over = override({}, settings)
    if "seed" in over and seeds is not None:
        raise InputError("--set seed: --seeds is given too; keep one of them")
    with said_of(path):
        table = override(read_toml(path), settings)
        experiment = replace(Experiment.from_table(table), published=PublishedSettings())
        _check_validation(experiment)
    _check_keys(vary)
    varied = read_vary(vary)
    if not varied:
        raise InputError(
            "nothing is varied: give at least one --vary, such as --vary algorithm.lr=0.001..0.1:log or --vary KEY=VALUE,VALUE"
        )
    check_pinned(leaves(over), varied, "--set")
    space = Space({key: _part(key, values, table) for key, values in varied.items()})
    return Search(table, experiment, space, tuple(seeds or (experiment.seed,)), prune)


def _check_validation(experiment: Experiment) -> None:
    if not experiment.partition.validation:
        raise InputError(
            "partition.validation = 0: trials are judged by images that clients keep out of training, and here they keep none; "
            "set it to 0.1 or so"
        )


def _check_keys(texts: Sequence[str]) -> None:
    """That a key does not change what trials are judged by. All else is for :func:`read_vary` to say."""
    for text in texts:
        key = text.partition("=")[0].strip()
        if key in ("algorithm", "algorithm.name"):
            raise InputError(
                f"--vary {key}: methods have options of their own; tune each by itself, or compare them in a sweep"
            )
        if key == "seed":
            raise InputError("--vary seed: give each trial several seeds with --seeds 0,1,2")
        head, _, rest = key.partition(".")
        if head == "partition" or (head == "data" and rest.partition(".")[0] not in _LEFT_ALONE):
            raise InputError(
                f"--vary {key}: trials with other images or clients cannot be told apart by their scores; compare them in a sweep"
            )


def _part(key: str, values: Sequence[Any], table: Mapping[str, Any]) -> Part:
    with _said_of(key):
        if len(values) == 1:
            return _range(key, values[0], table)
        for value in values:
            _with(table, {key: value})
        return Choice(tuple(values))


def _range(key: str, text: Any, table: Mapping[str, Any]) -> Range | Integers:
    found = _RANGE.fullmatch(text.strip()) if isinstance(text, str) else None
    if found is None:
        raise InputError(
            f"{text} is a single value: give a range, such as 0.001..0.1 or 0.001..0.1:log, or several values with commas"
        )
    ends, log = (found["low"].strip(), found["high"].strip()), found["log"] is not None
    try:
        low, high = map(float, ends)
    except ValueError as error:
        raise InputError(f"{text}: write a range as LOW..HIGH or LOW..HIGH:log, with numbers") from error
    part: Range | Integers = Range(low, high, log)
    if all(map(_WHOLE.fullmatch, ends)) and not _takes(table, key, low + 0.5):
        part = Integers(int(low), int(high), log)
    for end in (part.low, part.high):
        _with(table, {key: end})
    return part


def _takes(table: Mapping[str, Any], key: str, value: Any) -> bool:
    try:
        _with(table, {key: value})
    except InputError:
        return False
    return True


def _with(table: Mapping[str, Any], values: Mapping[str, Any]) -> Experiment:
    whole = dict(table)
    for key, value in values.items():
        whole = put(whole, key, value)
    return replace(Experiment.from_table(whole), published=PublishedSettings())


@contextmanager
def _said_of(key: str) -> Iterator[None]:
    """Mistakes are said of this option."""
    try:
        yield
    except InputError as error:
        raise InputError(f"--vary {key}: {error}") from error
