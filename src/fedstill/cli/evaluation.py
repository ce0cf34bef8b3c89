"""The command that measures after a run: evaluate."""

from __future__ import annotations

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

__all__ = ["evaluate"]


def evaluate(
    run: Annotated[Path, typer.Argument(help="Folder of a run.", show_default=False)],
    fresh: Annotated[bool, typer.Option("--fresh", help="Train fresh networks on a saved synthetic set.")] = False,
    models: Annotated[
        list[str] | None,
        typer.Option(
            "--model",
            metavar="NAME[:KEY=VALUE,…]",
            help="A fresh network: resnet18, or convnet:depth=3,width=32. Repeatable. Default: those that the run trains.",
        ),
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Fresh networks of each kind.")] = 3,
    number: Annotated[
        int | None, typer.Option("--round", help="Whose synthetic set. Default: the newest kept.", show_default=False)
    ] = None,
    epochs: Annotated[
        int | None, typer.Option(min=1, help="Of fresh networks. Default: the run's own.", show_default=False)
    ] = None,
    lr: Annotated[
        float | None, typer.Option(help="Step size of fresh networks. Default: the run's own.", show_default=False)
    ] = None,
    mmd: Annotated[
        bool, typer.Option("--mmd", help="Compare clients' images, real and virtual, with a standard error.")
    ] = False,
    tsne: Annotated[bool, typer.Option("--tsne", help="Map clients' images by t-SNE.")] = False,
    features: Annotated[
        str, typer.Option(help="Of --mmd and --tsne: random, pixels, model (the run's own), or a model's file.")
    ] = "random",
    images: Annotated[
        int | None, typer.Option(min=1, help="Of each client, for --mmd and --tsne.", show_default=False)
    ] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Processes that train. Default: the run's own.", show_default=False)
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")] = "auto",
    allow_import: AllowImport = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Say nothing unless something is wrong.")] = False,
) -> None:
    """Measure a run afterwards: fresh networks on its synthetic set, how unlike its clients are, a map of their images."""
    from fedstill.errors import InputError
    from fedstill.evaluation import Asked, FreshNetworks, evaluate_run
    from fedstill.folder import EVALUATION

    if not fresh and (models or any(value is not None for value in (number, epochs, lr))):
        raise InputError("--model, --round, --epochs and --lr are of fresh networks: give --fresh too")
    if lr is not None and not lr > 0:
        raise InputError(f"--lr {lr}: it lies above 0")
    look_here()
    wanted = FreshNetworks(models=tuple(models or ()), seeds=seeds, round=number, epochs=epochs, lr=lr)
    asked = Asked(
        fresh=wanted if fresh else None,
        mmd=mmd,
        tsne=tsne,
        features=features,
        images=images,
        allow_import=allow_import,
    )
    with _progress(quiet=quiet) as progress:
        found = evaluate_run(run, asked, workers=workers, device=device, progress=progress)
    if quiet:
        return
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


@contextmanager
def _progress(*, quiet: bool) -> Iterator[Callable[[str, int, int], None] | None]:
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
    recipe, results = found["recipe"], found["results"]
    lines = []
    for model in dict.fromkeys(each["model"] for each in results):
        mine = [each for each in results if each["model"] == model]
        figures = ("accuracy", "balanced_accuracy", "calibration_error")
        lines.append([model, str(len(mine)), *(_spread([each[figure] for each in mine]) for figure in figures)])
    epochs = "1 epoch" if recipe["epochs"] == 1 else f"{recipe['epochs']} epochs"
    # not as the table's title, which is wrapped at the table's width
    typer.echo(f"fresh networks on the {found['images']} synthetic images of round {found['round']}, {epochs}")
    say_table(
        "",
        ["network", "seeds", "accuracy", "balanced", "calibration error"],
        lines,
    )


def _say_map(what: str, found: Mapping[str, Any]) -> None:
    typer.echo(f"t-SNE of {len(found['points'])} {what}, features: {found['features']}")


def _spread(values: Sequence[float | None]) -> str:
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
