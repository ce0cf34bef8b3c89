"""What was run: one value where all runs share it, and whose it is where they do not."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from fedstill.errors import InputError
from fedstill.generators import PRIORS
from fedstill.report import cells, words
from fedstill.report.groups import Group, flatten, title
from fedstill.report.parts import Facts, Folded, Grid, Section
from fedstill.report.reading import as_list
from fedstill.report.runs import Run

__all__ = ["facts", "mismatch", "owners"]

_PLACE = ("system", "cpu", "gpu")
_UNKNOWN = "not recorded"
_MANY = 6  # tables of settings that a reader finds at a glance


def facts(runs: Sequence[Run], groups: Sequence[Group], labels: Mapping[int, str]) -> Section:
    """The section; ``labels`` by a run's identity."""
    tables = (_settings(f"settings-{number}", group) for number, group in enumerate(groups, start=1))
    folded = tuple(Folded(table.title, (table,)) for table in tables)
    if len(folded) > _MANY:
        folded = (Folded(f"All settings of {len(folded)} methods", folded),)
    return Section("facts", "What was run", (Facts(tuple(_facts(runs, labels))), *folded))


def _facts(runs: Sequence[Run], labels: Mapping[int, str]) -> Iterator[tuple[str, tuple[tuple[str, str], ...]]]:
    readers: list[tuple[str, Callable[[Run], str]]] = [
        ("Method", title),
        ("Data", _data),
        ("Partition", _partition),
        ("Partition hash", lambda run: run.holding.hash[:12] if run.holding is not None else ""),
        ("Clients train", lambda run: _options(run.settings.get("model"), "name")),
        ("Prior", _prior),
        ("Seed", lambda run: "" if run.seed is None else str(run.seed)),
        ("Rounds", lambda run: str(run.rows[-1].number) if run.rows else "none"),
        ("Versions", lambda run: _provenance(run, place=False)),
        ("Hardware", lambda run: _provenance(run, place=True)),
        ("Published values", _published),
    ]
    for name, read in readers:
        whose: dict[str, list[Run]] = {}
        for run in runs:
            whose.setdefault(read(run) or _UNKNOWN, []).append(run)
        if name in ("Method", "Seed"):
            yield name, ((", ".join(whose), ""),)
            continue
        if name == "Published values":
            whose.pop(_UNKNOWN, None)  # that a run names none is nothing to tell
        alone = sum(map(len, whose.values())) == len(runs) and len(whose) == 1
        if whose:
            yield name, tuple((value, "" if alone else owners(its, runs, labels)) for value, its in whose.items())
    yield "Wall time", ((_wall(runs), ""),)


def owners(some: Sequence[Run], runs: Sequence[Run], labels: Mapping[int, str]) -> str:
    """``some`` of ``runs`` in few words: the seeds or the methods where they are whole ones, else every label."""
    readers: list[tuple[Callable[[Run], Any], str]] = [
        (lambda run: run.seed, "seed "),
        (title, ""),
        (lambda run: labels[id(run)].removesuffix(f", seed {run.seed}"), ""),
    ]
    for reader, word in readers:
        keys = {reader(run): None for run in some}
        if None not in keys and len(some) == sum(reader(run) in keys for run in runs):
            return ", ".join(f"{word}{key}" for key in keys)
    return "; ".join(labels[id(run)] for run in some)


def _data(run: Run) -> str:
    table = run.settings.get("data")
    if not isinstance(table, Mapping):
        return ""
    # which column of a file holds what says nothing about the data, nor how images would be corrupted or whitened that are not
    idle = [] if table.get("corruptions") else ["severity", "spread", "frost"]
    idle += [] if table.get("zca") else ["zca_epsilon"]
    told = {key: value for key, value in table.items() if not key.endswith("_column") and key not in idle}
    if not (domains := [each for each in as_list(table.get("domains")) if isinstance(each, Mapping)]):
        return _options(told, "source")
    joined = f"{len(domains)} domains: {', '.join(map(_domain, domains))}"
    rest = _options({key: value for key, value in told.items() if key not in ("source", "domains")}, "")
    return f"{joined}{rest}"


def _domain(table: Mapping[str, Any]) -> str:
    """``MNIST (mnist/train.parquet, rows 0 to 7437)``: the end of a path tells files apart; all of it is in the settings."""
    path = "/".join(Path(str(table["path"])).parts[-2:]) if table.get("path") else str(table.get("source", ""))
    parts = [path] if path else []
    for key, name in (("rows", "rows"), ("test_rows", "test rows")):
        if len(ends := as_list(table.get(key))) == 2:
            parts.append(f"{name} {ends[0]} to {ends[1]}")
    return f"{table.get('name', _UNKNOWN)}" + (f" ({', '.join(parts)})" if parts else "")


def _options(table: Any, first: str) -> str:
    if not isinstance(table, Mapping):
        return ""
    rest = [f"{key} {_plain(value)}" for key, value in flatten(table) if key != first and _telling(value)]
    return ", ".join([str(table.get(first, "")), *rest])


def _partition(run: Run) -> str:
    if run.sites:
        return f"real sites, which alone know what they hold: {', '.join(run.sites)}"
    table = run.settings.get("partition")
    if not isinstance(table, Mapping):
        return run.holding.kind if run.holding is not None else ""
    kind = str(table.get("kind", ""))
    # each scheme reads some of the settings; the others would only mislead here
    used = {"dirichlet": ("alpha", "min_size"), "kshard": ("shards",), "kclass": ("classes",)}
    if kind == "domain":
        keys = (*(("parts", "alpha", "min_size") if table.get("parts", 1) != 1 else ()), "validation", "test")
    else:
        keys = ("clients", *used.get(kind, ()), "validation", "test")
    own = table.get("options")
    shown = {key: table[key] for key in keys if key in table} | (dict(own) if isinstance(own, Mapping) else {})
    return _options({"kind": kind, **shown}, "kind")


def _prior(run: Run) -> str:
    """What the run's generator was trained on before the clients' data came into play."""
    table = run.settings.get("algorithm")
    if not isinstance(table, Mapping):
        return ""
    generator = table.get("generator")
    if not isinstance(generator, str) or generator == "pixels":
        return "none"
    name = Path(generator).name
    if generator not in PRIORS and not generator.endswith(".safetensors"):
        return f"{name}, trained on: unknown (a generator of the user's own)"
    from fedstill.generators.files import read_card  # torch comes with it, and many pages have no prior

    try:
        card = read_card(generator)
    except InputError:
        return f"{name}, trained on: unknown (its file is not there or cannot be read)"
    source, digest = (card.get(key) or "unknown" for key in ("trained_on", "data_sha256"))
    return f"{name}, trained on: {source}; data hash {str(digest)[:12]}"


def _provenance(run: Run, *, place: bool) -> str:
    hardware = run.summary.get("hardware")
    tables = [run.provenance, {"hardware": hardware} if isinstance(hardware, Mapping) else {}]
    found = {key.rpartition(".")[2]: str(value) for table in tables for key, value in flatten(table)}
    if place:
        return "; ".join(found[key] for key in _PLACE if key in found)
    return ", ".join(f"{key} {value}" for key, value in found.items() if key not in _PLACE)


def _telling(value: Any) -> bool:
    return value is not None and value is not False and value != "" and value != []


def _plain(value: Any) -> str:
    if isinstance(value, list):
        return ("; " if any(isinstance(each, Mapping) for each in value) else ", ").join(map(_plain, value))
    return (
        ", ".join(f"{key} {_plain(inner)}" for key, inner in value.items())
        if isinstance(value, Mapping)
        else str(value)
    )


def _wall(runs: Sequence[Run]) -> str:
    """Of all runs together: each method's own stands in the tables."""
    known = [run.wall_seconds for run in runs if run.wall_seconds is not None]
    if not known:
        return _UNKNOWN
    of = f" for {len(known)} of {len(runs)} runs" if len(known) < len(runs) else f" for {len(runs)} runs"
    return words.duration(sum(known)) + (of if len(runs) > 1 else "")


def _published(run: Run) -> str:
    table = run.settings.get("published")
    return str(table.get("source") or "source not named") if isinstance(table, Mapping) and run.published else ""


def _settings(key: str, group: Group) -> Grid:
    """Every setting of the group's first run, by its dotted key."""
    rows = ((cells.word(name), cells.word(_plain(value))) for name, value in flatten(group.runs[0].settings))
    return Grid(key, f"All settings of {group.first}", ("Setting", "Value"), tuple(rows), 2)


def mismatch(runs: Sequence[Run]) -> Iterator[str]:
    """Curves stand in one figure; say so where they do not stand on the same data."""
    if len({repr([run.settings.get("data"), run.settings.get("partition")]) for run in runs if run.settings}) > 1:
        yield "These runs do not share their data and partition: across those, accuracies are not comparable."
        return
    hashes: dict[int | None, set[str]] = {}
    for run in runs:
        if run.holding is not None:
            hashes.setdefault(run.seed, set()).add(run.holding.hash)
    if any(len(found) > 1 for found in hashes.values()):
        yield "Runs of the same seed were dealt different partitions: their accuracies are not comparable."
