"""The command that measures after a run: evaluate."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import combinations
from pathlib import Path
from statistics import mean, stdev
from typing import Annotated, Any

import typer

from fedstill.cli.console import percent, say_table
from fedstill.cli.imports import look_here
from fedstill.cli.models import AllowImport

__all__ = ["evaluate", "progress_bar", "spread"]

RANDOM = "random"


def evaluate(
    path: Annotated[
        Path,
        typer.Argument(
            metavar="RUN|FILE", help="Folder of a run, or a file that 'fedstill pack' wrote.", show_default=False
        ),
    ],
    fresh: Annotated[
        bool,
        typer.Option("--fresh", help="Of a run: train fresh networks on a saved synthetic set. Of a file: always."),
    ] = False,
    models: Annotated[
        list[str] | None,
        typer.Option(
            "--model",
            metavar="NAME[:KEY=VALUE,…]",
            help="A fresh network: resnet18, or convnet:depth=3,width=32. Repeatable. Default: those that the run trains, or "
            "that the file has scores of.",
        ),
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Fresh networks of each kind.")] = 3,
    number: Annotated[
        int | None,
        typer.Option("--round", help="Of a run: whose synthetic set. Default: the newest kept.", show_default=False),
    ] = None,
    epochs: Annotated[
        int | None,
        typer.Option(min=1, help="Of fresh networks. Default: the run's or the file's own.", show_default=False),
    ] = None,
    lr: Annotated[
        float | None,
        typer.Option(help="Step size of fresh networks. Default: the run's or the file's own.", show_default=False),
    ] = None,
    test: Annotated[
        Path | None,
        typer.Option(
            help="Of a file: labelled test images; a Parquet or .npz file, or a folder with one folder a class.",
            show_default=False,
        ),
    ] = None,
    experiment: Annotated[
        Path | None,
        typer.Option(
            help="Of a file, instead of --test: an experiment file whose [data] has them.", show_default=False
        ),
    ] = None,
    mmd: Annotated[
        bool, typer.Option("--mmd", help="Of a run: compare clients' images, real and virtual, with a standard error.")
    ] = False,
    tsne: Annotated[bool, typer.Option("--tsne", help="Of a run: map clients' images by t-SNE.")] = False,
    features: Annotated[
        str, typer.Option(help="Of --mmd and --tsne: random, pixels, model (the run's own), or a model's file.")
    ] = RANDOM,
    images: Annotated[
        int | None, typer.Option(min=1, help="Of each client, for --mmd and --tsne.", show_default=False)
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(min=1, help="Processes that train. Default: the run's own; of a file, 1.", show_default=False),
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")] = "auto",
    allow_import: AllowImport = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object instead of tables.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Say nothing unless something is wrong.")] = False,
) -> None:
    """Measure a run afterwards: fresh networks on its synthetic set, how unlike its clients are, a map of their images.

    Or measure a distilled file, on test images of your own: networks trained on its images alone, beside its recorded scores.
    """
    from fedstill.errors import InputError

    of_file = path.is_file()
    if lr is not None and not lr > 0:
        raise InputError(f"--lr {lr}: it lies above 0")
    if of_file and (mmd or tsne or features != RANDOM or number is not None or images is not None):
        raise InputError(f"{path} is a file: --mmd, --tsne, --features, --images and --round are of a run's folder")
    if not of_file and (test is not None or experiment is not None):
        raise InputError(f"--test and --experiment are of a distilled file, and {path} is no file")
    if not of_file and not fresh and (models or any(value is not None for value in (number, epochs, lr))):
        raise InputError("--model, --round, --epochs and --lr are of fresh networks: give --fresh too")
    look_here()
    with progress_bar(quiet=quiet) as progress:
        if of_file:
            from fedstill.retrial import Trial, evaluate_file

            trial = Trial(
                test=test,
                experiment=experiment,
                models=tuple(models or ()),
                seeds=seeds,
                epochs=epochs,
                lr=lr,
                allow_import=allow_import,
            )
            found = evaluate_file(path, trial, workers=workers or 1, device=device, progress=progress)
        else:
            from fedstill.evaluation import Asked, FreshNetworks, evaluate_run

            wanted = FreshNetworks(models=tuple(models or ()), seeds=seeds, round=number, epochs=epochs, lr=lr)
            asked = Asked(
                fresh=wanted if fresh else None,
                mmd=mmd,
                tsne=tsne,
                features=features,
                images=images,
                allow_import=allow_import,
            )
            found = evaluate_run(path, asked, workers=workers, device=device, progress=progress)
    if quiet and not as_json:
        return
    if as_json:
        typer.echo(json.dumps(found, allow_nan=False))
    elif of_file:
        _say_file(path, found)
    else:
        _say_run(path, found)


def _say_run(run: Path, found: Mapping[str, Any]) -> None:
    from fedstill.folder import EVALUATION

    if "fresh" in found:
        _say_fresh(found["fresh"])
    if "mmd" in found:
        _say_mmd(found["mmd"])
        if "virtual" in found["mmd"]:
            _say_virtual(found["mmd"]["virtual"])
    if "tsne" in found:
        _say_map("images", found["tsne"])
        virtual = found["tsne"].get("virtual", {})
        if "points" in virtual:
            _say_map("virtual images", virtual)
        elif virtual and "mmd" not in found:  # else it was said
            typer.echo(virtual["missing"])
    typer.echo(f"written: {run / EVALUATION}; 'fedstill report {run}' shows it", err=True)


def _say_file(path: Path, found: Mapping[str, Any]) -> None:
    file, recipe, networks = found["file"], found["recipe"], found["networks"]
    typer.echo(
        f"fresh networks on the {file['images']} images of {path} ({file['method']}, round {file['round']}), "
        f"{_epochs(recipe)}; {found['test']['images']} test images"
    )
    _say_scores(found["results"])
    for each in networks:
        typer.echo(f"{each['model']}: {each['words']}")


def _epochs(recipe: Mapping[str, Any]) -> str:
    return "1 epoch" if recipe["epochs"] == 1 else f"{recipe['epochs']} epochs"


@contextmanager
def progress_bar(*, quiet: bool) -> Iterator[Callable[[str, int, int], None] | None]:
    """A bar of the phase at work, on a terminal; elsewhere nothing."""
    if quiet or not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("reading data", total=None)
        at = ""

        def tell(phase: str, done: int, total: int) -> None:
            nonlocal at
            if phase != at:
                at = phase
                bar.reset(task, description=phase, total=total)
            bar.update(task, completed=done, total=total)

        yield tell


def _say_fresh(found: Mapping[str, Any]) -> None:
    # not as the table's title, which is wrapped at the table's width
    typer.echo(
        f"fresh networks on the {found['images']} synthetic images of round {found['round']}, {_epochs(found['recipe'])}"
    )
    _say_scores(found["results"])


def _say_scores(results: Sequence[Mapping[str, Any]]) -> None:
    """A line a network: mean ± deviation over its seeds."""
    lines = []
    for model in dict.fromkeys(each["model"] for each in results):
        mine = [each for each in results if each["model"] == model]
        figures = ("accuracy", "balanced_accuracy", "calibration_error")
        lines.append([model, str(len(mine)), *(spread([each[figure] for each in mine]) for figure in figures)])
    say_table("", ["network", "seeds", "accuracy", "balanced", "calibration error"], lines)


def _say_map(what: str, found: Mapping[str, Any]) -> None:
    typer.echo(f"t-SNE of {len(found['points'])} {what}, features: {found['features']}")


def spread(values: Sequence[float | None]) -> str:
    """Mean ± sample standard deviation; of one value the value."""
    known = [value for value in values if value is not None]
    if len(known) < 2:
        return percent(known[0] if known else None)
    return f"{100 * mean(known):.1f} ± {100 * stdev(known):.1f} %"


def _say_mmd(found: Mapping[str, Any]) -> None:
    clients, squared, error = found["clients"], found["squared"], found["error"]
    pairs = [(squared[a][b], error[a][b], clients[a], clients[b]) for a, b in combinations(range(len(clients)), 2)]
    least, most = min(pairs), max(pairs)
    lines = [
        ["nearest", f"{least[2]} and {least[3]}", f"{least[0]:.4f}", f"{least[1]:.4f}"],
        [
            "mean",
            f"{len(pairs)} {'pair' if len(pairs) == 1 else 'pairs'}",
            f"{mean(pair[0] for pair in pairs):.4f}",
            "",
        ],
        ["furthest", f"{most[2]} and {most[3]}", f"{most[0]:.4f}", f"{most[1]:.4f}"],
    ]
    if found["halves"]:
        halves = found["halves"]
        # clients share no image, so their halves are independent of each other
        off = math.sqrt(sum(half["error"] ** 2 for half in halves)) / len(halves)
        lines.append(
            ["check", "halves of a client, mean", f"{mean(half['squared'] for half in halves):.4f}", f"{off:.4f}"]
        )
    typer.echo(f"MMD² of clients, {found['images']} images each, features: {found['features']}")
    say_table(
        "",
        ["", "clients", "MMD²", "standard error"],
        lines,
    )
    for each in found["left_out"]:
        typer.echo(f"left out: {each['client']}: {each['reason']}")


def _say_virtual(found: Mapping[str, Any]) -> None:
    if "missing" in found:
        typer.echo(found["missing"])
        return
    told = found["change"]
    typer.echo(
        f"the same by {found['images']} real and {found['images']} virtual images each"
        f"{', as the clients began' if found['initial'] else ''}, after round {found['round']}, mean over pairs"
    )
    say_table(
        "",
        ["", "MMD²", "95 % interval over clients"],
        [
            ["real", f"{told['before']:.4f}", ""],
            ["virtual", f"{told['after']:.4f}", ""],
            ["difference", f"{told['difference']:+.4f}", _interval(told["low"], told["high"], "+.4f")],
            ["ratio", _number(told["ratio"], ".2f"), _interval(told["ratio_low"], told["ratio_high"], ".2f")],
            ["further apart", f"{told['rose']} of {told['pairs']} pairs", ""],
        ],
    )
    typer.echo(
        f"distilled images are no independent draws: 'virtual' may be too low, by about {found['slack']:.4f} at most"
    )
    for each in found["left_out"]:
        typer.echo(f"left out: {each['client']}: {each['reason']}")


def _number(value: float | None, form: str) -> str:
    return "–" if value is None else format(value, form)


def _interval(low: float | None, high: float | None, form: str) -> str:
    return "–" if low is None or high is None else f"{low:{form}} to {high:{form}}"
