"""Commands that look: data inspect, list, report, check; and data prepare."""

from __future__ import annotations

import inspect
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fedstill.cli.imports import look_here

if TYPE_CHECKING:
    from fedstill.data.partition import Partition
    from fedstill.data.sources import Loaded

__all__ = ["check", "data_app", "inspect_data", "list_choices", "prepare_data", "report"]

data_app = typer.Typer(help="Look at data, and prepare them.")


@data_app.callback()
def _data() -> None:
    """Look at data, and prepare them."""


@data_app.command("inspect")
def inspect_data(
    file: Annotated[
        Path | None, typer.Argument(help="An experiment file; its [data] and [partition] count.", show_default=False)
    ] = None,
    source: Annotated[str | None, typer.Option(help="data.source", show_default=False)] = None,
    path: Annotated[str | None, typer.Option(help="data.path", show_default=False)] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Override a key: partition.alpha=0.1. Repeatable."),
    ] = None,
    sheet: Annotated[Path | None, typer.Option(help="Write a contact sheet, a row a class, to this PNG file.")] = None,
    columns: Annotated[int, typer.Option(min=1, max=100, help="Images a class on the sheet.")] = 10,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="Leave unreadable images out and list them.")] = False,
) -> None:
    """Count images by class and client, and show some."""
    from fedstill.data.partition import partition
    from fedstill.data.sources import load
    from fedstill.experiment import Experiment
    from fedstill.seeds import Seed
    from fedstill.settings import override, read_toml

    look_here()
    given = [f"data.{key}={value}" for key, value in (("source", source), ("path", path)) if value is not None]
    overrides = [*given, *(settings or ()), *(["data.skip_bad=true"] if skip_bad else [])]
    table = override({} if file is None else read_toml(file), overrides)
    experiment = Experiment.from_table(table) if file is None else Experiment.read(file, overrides)
    root = Seed.root(experiment.seed)
    loaded = load(experiment.data, root.at("data"))
    # who holds what is asked for by a [partition]; its defaults would say nothing about the data
    dealt = None
    if "partition" in table:
        dealt = partition(experiment.partition, loaded.train, loaded.train_groups, root.at("partition"))
    if as_json:
        typer.echo(json.dumps(_facts(loaded, dealt)))
    else:
        _say_facts(loaded, dealt)
    if sheet is not None:
        _write_sheet(sheet, loaded, columns)
        typer.echo(f"written: {sheet}", err=True)


@data_app.command("prepare")
def prepare_data(
    name: Annotated[
        str, typer.Argument(help="cifar10, cifar10c, mnist, fashion_mnist, svhn, usps, imfruit, folder, …")
    ],
    source: Annotated[Path, typer.Option("--from", help="File or folder with the originals.", show_default=False)],
    out: Annotated[Path, typer.Option(help="Folder for the Parquet files.", show_default=False)],
    size: Annotated[
        int | None, typer.Option(min=1, max=4096, help="Pixels to bring pictures to.", show_default="as they are")
    ] = None,
    severity: Annotated[int, typer.Option(min=1, max=5, help="Of cifar10c.")] = 3,
    unverified: Annotated[
        bool, typer.Option("--unverified", help="Take originals that differ from the published ones.")
    ] = False,
) -> None:
    """Write a data set's originals as Parquet; what was interrupted is gone on with."""
    from fedstill.data.prepare import prepare, recipe

    for each in prepare(recipe(name), source, out, size=size, severity=severity, unverified=unverified):
        typer.echo(f"{'kept' if each.kept else 'written'}: {out / each.file}, {each.rows} images", err=True)
    typer.echo(f"use it with  data.source = 'parquet'  and  data.path = '{out}'")


def _facts(loaded: Loaded, dealt: Partition | None) -> dict[str, Any]:
    from fedstill.data.sources import digest

    train = loaded.train
    return {
        "train": len(train),
        "test": len(loaded.test),
        "channels": train.channels,
        "size": list(train.size),
        "mean": list(train.normalisation.mean),
        "std": list(train.normalisation.std),
        "zca_epsilon": None if (whitening := train.normalisation.whitening) is None else whitening.epsilon,
        "classes": list(train.classes),
        "train_histogram": train.histogram(),
        "test_histogram": loaded.test.histogram(),
        "domains": None if loaded.train_groups is None else dict(sorted(Counter(loaded.train_groups).items())),
        "sha256": digest(loaded),
        "clients": None if dealt is None else {name: list(held) for name, held in dealt.histogram.items()},
        "figures": None if dealt is None else dict(dealt.figures),
        "skipped": [{"image": name, "reason": reason} for name, reason in loaded.skipped],
    }


def _say_facts(loaded: Loaded, dealt: Partition | None) -> None:
    from fedstill.cli.console import say_table
    from fedstill.data.sources import digest

    train = loaded.train
    height, width = train.size
    kind = "grey" if train.channels == 1 else "colour"
    typer.echo(f"{len(train)} training and {len(loaded.test)} test images, {kind}, {height} x {width} pixels")
    if (whitening := train.normalisation.whitening) is None:
        mean, std = (
            ", ".join(f"{each:.3f}" for each in values)
            for values in (train.normalisation.mean, train.normalisation.std)
        )
        typer.echo(f"pixels in 0 … 1: mean {mean}, standard deviation {std}")
    else:
        typer.echo(f"pixels in 0 … 1: ZCA whitening of all {whitening.values:,} values, epsilon {whitening.epsilon:g}")
    typer.echo(f"sha256 of all that: {digest(loaded)}")
    for name, reason in loaded.skipped:
        typer.echo(f"left out: {name}: {reason}")
    lines = [["training", str(len(train)), *map(str, train.histogram())]]
    lines.append(["test", str(len(loaded.test)), *map(str, loaded.test.histogram())])
    for name, held in (dealt.histogram if dealt else {}).items():
        lines.append([name, str(sum(held)), *map(str, held)])
    say_table("images a class", ["", "images", *train.classes], lines)


def _write_sheet(path: Path, loaded: Loaded, columns: int) -> None:
    from fedstill.output import save_sheet

    train = loaded.train
    rows: list[int] = []
    for label in range(len(train.classes)):
        rows += (train.labels == label).nonzero().flatten()[:columns].tolist()
    some = train.take(rows)
    save_sheet(path, {"images": some.images, "labels": some.labels}, train.classes)


def list_choices() -> None:
    """List algorithms, networks, data sources, partitions and generators."""
    for title, choices in _choices():
        typer.echo(f"{title}:")
        width = max(map(len, choices))
        for name, summary in choices.items():
            typer.echo(f"  {name:<{width}}  {summary}")
    typer.echo("Each may also be your own package.module:factory.")


def _choices() -> Iterator[tuple[str, Mapping[str, str]]]:
    from fedstill.algorithms import ALGORITHMS
    from fedstill.data.partition import PARTITIONS
    from fedstill.data.sources import SOURCES
    from fedstill.generators import PRIORS
    from fedstill.generators.files import read_card
    from fedstill.models import MODELS

    yield "algorithms (algorithm.name)", {name: entry.summary for name, entry in ALGORITHMS.items()}
    yield "networks (model.name)", _summaries(MODELS, "model.name")
    yield "data sources (data.source)", _summaries(SOURCES, "data.source")
    yield "partitions (partition.kind)", _summaries(PARTITIONS, "partition.kind")
    priors = {name: f"shipped prior; trained on {read_card(name)['trained_on']}" for name in PRIORS}
    yield (
        "generators (algorithm.generator)",
        {
            "pixels": "no prior: the images themselves are distilled",
            **priors,
            "FILE.safetensors": "a prior of your own",
        },
    )


def _summaries(table: Mapping[str, str], key: str) -> dict[str, str]:
    """The first sentence of each factory's docstring."""
    from fedstill.tables import resolve

    texts = {name: inspect.getdoc(resolve(table, name, key)) or "" for name in table}
    return {name: _first_sentence(text) for name, text in texts.items()}


def _first_sentence(text: str) -> str:
    """Without the markup of docstrings."""
    paragraph = " ".join(text.split("\n\n")[0].split())
    sentence = re.split(r"(?<=[^.])\.(?:\s|$)", paragraph)[0]
    return re.sub(r":\w+:`([^`]*)`|``([^`]*)``", r"\1\2", sentence)


def report(
    runs: Annotated[list[Path], typer.Argument(help="Folders of runs, or folders that hold runs.", show_default=False)],
    out: Annotated[Path, typer.Option(help="HTML file to write.")] = Path("report.html"),
    csv: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Write every table there as CSV.", show_default=False)
    ] = None,
    latex: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Write the tables that a paper prints there as LaTeX.", show_default=False),
    ] = None,
    markdown: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Write the tables that a paper prints there as Markdown.", show_default=False),
    ] = None,
    png: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Write every chart there as PNG.", show_default=False)
    ] = None,
    svg: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Write every chart there as SVG.", show_default=False)
    ] = None,
    audit_pictures: Annotated[
        bool,
        typer.Option("--audit-pictures", help="Put the pictures of audits on the page: they show training images."),
    ] = False,
) -> None:
    """Write one page that compares runs."""
    from fedstill.report import write_report

    write_report(runs, out, csv=csv, latex=latex, markdown=markdown, png=png, svg=svg, audit_pictures=audit_pictures)
    for written in (out, csv, latex, markdown, png, svg):
        if written is not None:
            typer.echo(f"written: {written}", err=True)


def check(
    algorithm: Annotated[str, typer.Argument(help="Your own package.module:factory, or a name of 'fedstill list'.")],
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Set one of its fields: epochs=1. Repeatable."),
    ] = None,
) -> None:
    """Run an algorithm through the contract that every algorithm keeps, in a tiny world."""
    from fedstill.contract import check_algorithm
    from fedstill.errors import RunError
    from fedstill.method import Method
    from fedstill.runtime import prepare
    from fedstill.settings import override

    look_here()
    prepare()
    method = Method.parse({"name": algorithm, **override({}, settings or ())})
    try:
        kept = check_algorithm(method.factory, method.fields())
    except AssertionError as error:
        raise RunError(f"{algorithm} breaks the contract: {error}") from error
    for clause in kept:
        typer.echo(f"kept: {clause}")
