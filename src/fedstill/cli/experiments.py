"""Commands about experiments: init, run, resume, demo."""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib.resources import as_file, files
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fedstill.cli.console import bytes_text, percent, reporter, say_table, seconds_text
from fedstill.cli.imports import look_here

if TYPE_CHECKING:
    from fedstill.cost import Cost
    from fedstill.experiment import Experiment
    from fedstill.run import Finished
    from fedstill.workplace import Venue

__all__ = ["demo", "drive_and_say", "init", "overrides_of", "resume", "run"]

DEMO = ("feddgm", "fedavg", "prioronly")

Workers = Annotated[int | None, typer.Option(help="Processes that share the work.", show_default=False)]
Engine = Annotated[str | None, typer.Option(help="local, or flower: its simulation on Ray.", show_default=False)]
Device = Annotated[str | None, typer.Option(help="auto, cpu, cuda or mps.", show_default=False)]
Rounds = Annotated[int | None, typer.Option(help="Number of the last round.", show_default=False)]
Json = Annotated[bool, typer.Option("--json", help="One JSON object a round on standard output.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Say nothing unless something is wrong.")]


def init(
    method: Annotated[
        str, typer.Argument(help="An algorithm of 'fedstill list', or package.module:factory.")
    ] = "feddgm",
    out: Annotated[Path | None, typer.Option(help="Write to this file instead of standard output.")] = None,
) -> None:
    """Print an experiment file with every key, its default and its meaning."""
    from fedstill.errors import InputError
    from fedstill.experiment import starter
    from fedstill.files import write_text

    look_here()
    text = starter(method).to_toml()
    if out is None:
        typer.echo(text, nl=False)
        return
    if out.exists():
        raise InputError(f"{out} exists already: give another --out")
    write_text(out, text)


def run(
    file: Annotated[Path, typer.Argument(help="An experiment file; 'fedstill init' writes one.")],
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Override a key: algorithm.ipc=5. Repeatable."),
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Of every random number.", show_default=False)] = None,
    rounds: Rounds = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the run.", show_default="runs/NAME")] = None,
    engine: Engine = None,
    workers: Workers = None,
    device: Device = None,
    as_json: Json = False,
    quiet: Quiet = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what the run would cost, and do not start it.")
    ] = False,
    keep_messages: Annotated[
        bool, typer.Option("--keep-messages", help="Keep every message to and from clients, for 'fedstill audit'.")
    ] = False,
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="Leave unreadable images out and count them.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Remove the run that the folder holds.")] = False,
) -> None:
    """Run an experiment."""
    from fedstill.experiment import Experiment

    look_here()
    given = {
        "seed": seed,
        "rounds": rounds,
        "engine.kind": engine,
        "engine.workers": workers,
        "engine.device": device,
    }
    if keep_messages:
        given["output.keep_messages"] = "true"
    if skip_bad:
        given["data.skip_bad"] = "true"
    experiment = Experiment.read(file, [*(settings or ()), *overrides_of(given)])
    if dry_run:
        from fedstill.cost import estimate

        _say_cost(estimate(experiment), as_json=as_json)
        return
    drive_and_say(experiment, out or Path("runs") / experiment.name, as_json=as_json, quiet=quiet, overwrite=overwrite)


def resume(
    folder: Annotated[Path, typer.Argument(help="Folder of a run.")],
    rounds: Rounds = None,
    engine: Engine = None,
    workers: Workers = None,
    device: Device = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Continue a run that was interrupted, or, with --rounds, one that is finished."""
    from fedstill.errors import InputError
    from fedstill.experiment import Experiment
    from fedstill.folder import EXPERIMENT

    look_here()
    file = folder / EXPERIMENT
    if not file.exists():
        raise InputError(f"{folder} holds no run to resume: there is no {EXPERIMENT} in it")
    given = {"rounds": rounds, "engine.kind": engine, "engine.workers": workers, "engine.device": device}
    experiment = Experiment.read(file, overrides_of(given))
    drive_and_say(experiment, folder, as_json=as_json, quiet=quiet, resume=True)


def demo(
    out: Annotated[Path, typer.Option(help="Folder of the demo; an earlier demo in it is replaced.")] = Path("demo"),
    workers: Workers = None,
    quiet: Quiet = False,
) -> None:
    """Run FedDGM, FedAvg and PriorOnly on digits, ten clients with few classes each, and compare them on one page."""
    from fedstill.experiment import Experiment
    from fedstill.report import write_report

    experiments = {}
    for method in DEMO:
        with as_file(files("fedstill.demo").joinpath(f"{method}.toml")) as file:
            experiments[out / method] = Experiment.read(file, overrides_of({"engine.workers": workers}))
    folders = list(experiments)
    for folder, experiment in experiments.items():
        _check_demo(folder, experiment)
    for folder, experiment in experiments.items():
        drive_and_say(experiment, folder, as_json=False, quiet=quiet, overwrite=True, last_word=False)
    page = out / "report.html"
    write_report(folders, page)
    rows = {method: _rows(folder) for method, folder in zip(DEMO, folders, strict=True)}
    say_table("accuracy by round", *_by_round(rows))
    say_table("accuracy by bytes", *_by_bytes(rows))
    typer.echo(f"page: {page}")


def _check_demo(folder: Path, wanted: Experiment) -> None:
    """That what the demo would replace is a demo."""
    from fedstill.errors import InputError
    from fedstill.experiment import Experiment
    from fedstill.folder import EXPERIMENT

    if not (folder / EXPERIMENT).exists():
        return
    held = Experiment.read(folder / EXPERIMENT)
    if (held.data, held.partition, held.model, held.algorithm) != (
        wanted.data,
        wanted.partition,
        wanted.model,
        wanted.algorithm,
    ):
        raise InputError(f"{folder} holds a run that is not this demo's: give another --out, or remove it")


def overrides_of(given: dict[str, Any]) -> list[str]:
    """``KEY=VALUE`` of what was given on the command line."""
    return [f"{key}={value}" for key, value in given.items() if value is not None]


def drive_and_say(
    experiment: Experiment,
    out: Path,
    *,
    as_json: bool,
    quiet: bool,
    resume: bool = False,
    overwrite: bool = False,
    last_word: bool = True,
    venue: Venue | None = None,
) -> Finished:
    """Run it, and say how it goes and where its models are."""
    from fedstill.folder import EXPERIMENT, resume_command
    from fedstill.run import BEST, MODELS, drive

    try:
        with reporter(as_json=as_json, quiet=quiet) as hears:
            done = drive(experiment, out=out, resume=resume, overwrite=overwrite, reporter=hears, venue=venue)
    except KeyboardInterrupt:
        # nothing was begun where there is no experiment in the folder yet
        how = f"; continue with  {resume_command(out)}" if (out / EXPERIMENT).exists() else ""
        typer.echo(f"fedstill: interrupted{how}", err=True)
        raise typer.Exit(130) from None
    if last_word and not quiet and not as_json:
        models = done.out / MODELS
        best = f" (those of round {done.selected_round}, the best on the clients' validation images: {models / BEST})"
        where = f"models in {models}{best if (models / BEST).is_dir() else ''}"
        # a method may leave each client with a network of its own, and the server with none
        said = where if done.accuracy else "no model is the server's"
        typer.echo(f"done: {said}, page {done.report}", err=True)
    return done


# --- demo: its two tables ----------------------------------------------------------------------------------------------


def _rows(folder: Path) -> list[dict[str, Any]]:
    from fedstill.folder import METRICS

    return [json.loads(line) for line in (folder / METRICS).read_text(encoding="utf-8").splitlines()]


def _by_round(rows: dict[str, list[dict[str, Any]]]) -> tuple[list[str], list[list[str]]]:
    """A line a method and model, a column a round."""
    last = max(row["round"] for each in rows.values() for row in each)
    lines = []
    for method, each in rows.items():
        for model in each[-1]["accuracy"]:
            by_round = {row["round"]: percent(row["accuracy"][model]) for row in each}
            lines.append([method, model, *(by_round.get(number, "") for number in range(1, last + 1))])
    return ["method", "model", *(f"round {number}" for number in range(1, last + 1))], lines


def _by_bytes(rows: dict[str, list[dict[str, Any]]]) -> tuple[list[str], list[list[str]]]:
    """A line a method and model; columns are what the first method had moved after each of its rounds."""
    moved = {method: _moved(each) for method, each in rows.items()}
    budgets = moved[DEMO[0]]
    lines = []
    for method, each in rows.items():
        for model in each[-1]["accuracy"]:
            cells = []
            for budget in budgets:
                within = [row for row, spent in zip(each, moved[method], strict=True) if spent <= budget]
                cells.append(percent(within[-1]["accuracy"][model]) if within else "–")
            lines.append([method, model, *cells])
    return ["method", "model", *(f"≤ {bytes_text(budget)}" for budget in budgets)], lines


def _moved(rows: Sequence[dict[str, Any]]) -> list[int]:
    """Bytes up and down until the end of each round."""
    return [sum(row["bytes_up"] + row["bytes_down"] for row in rows[: end + 1]) for end in range(len(rows))]


# --- run --dry-run -----------------------------------------------------------------------------------------------------


def _say_cost(cost: Cost, *, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(cost.to_json()))
        return
    say_table(
        "training images a client and class",
        ["client", "images", *cost.classes],
        [[client, str(sum(held)), *map(str, held)] for client, held in cost.histogram.items()],
    )
    typer.echo("")
    for name, count in cost.parameters.items():
        typer.echo(f"{name}: {count:,} parameters")
    mean = "" if len(set(cost.traffic)) == 1 else "on average "
    typer.echo(
        f"bytes a round, {cost.cohort} clients: {mean}up {bytes_text(cost.bytes_up)}, down {bytes_text(cost.bytes_down)}, "
        f"scoring {bytes_text(cost.bytes_scoring)}; in {cost.rounds} rounds {bytes_text(cost.total_bytes)}"
    )
    if cost.memory is not None:
        typer.echo(f"memory: at least {bytes_text(cost.memory)} a process, {cost.workers} at work")
    phases = ", ".join(f"{phase} {seconds_text(seconds)}" for phase, seconds in cost.seconds.items())
    for phase, seconds in cost.seconds_once.items():
        typer.echo(f"time before the first round, {phase} images of all clients: {seconds_text(seconds)}")
    typer.echo(
        f"time a round with {cost.workers} {'worker' if cost.workers == 1 else 'workers'}: {phases}; "
        f"in {cost.rounds} rounds about {seconds_text(cost.total_seconds)}"
    )
    for remark in cost.remarks:
        typer.echo(f"note: {remark}")
