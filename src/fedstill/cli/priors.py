"""Commands about priors: prior train, prior sample, prior import."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from fedstill.cli.console import seconds_text
from fedstill.cli.imports import look_here

__all__ = ["app", "import_", "sample", "train"]

app = typer.Typer(help="Generators: train one on public images, look at what it makes.")

SAMPLES_A_CLASS = 10


@app.command("train")
def train(
    file: Annotated[
        Path | None, typer.Argument(help="A TOML file with seed, source, [data] and [prior].", show_default=False)
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for the prior, its checkpoint and its sample grid.")] = Path(
        "prior"
    ),
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a key: data.size=16. Repeatable.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Of every random number.", show_default=False)] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the training that the folder holds.")] = False,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")] = "auto",
    threads: Annotated[int, typer.Option(min=1, help="Compute threads.")] = 1,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Say nothing unless something is wrong.")] = False,
) -> None:
    """Train a prior on public images; it must never see what the clients hold."""
    from fedstill.data.sources import load
    from fedstill.generators.train import GRID, PRIOR, train_prior
    from fedstill.priors import PriorTraining
    from fedstill.runtime import pick_device, prepare
    from fedstill.seeds import Seed

    overrides = [*(settings or ()), *([] if seed is None else [f"seed={seed}"])]
    look_here()
    wanted = PriorTraining.read(file, overrides)
    prepare(threads)
    device = pick_device(device)
    root = Seed.root(wanted.seed)
    shard = load(wanted.data, root.at("data")).train
    steps = train_prior(
        shard,
        settings=wanted.prior,
        seed=root.at("prior"),
        out=out,
        resume=resume,
        device=device,
        source=wanted.source,
    )
    try:
        for report in steps:
            if not quiet:
                _say(report)
    except KeyboardInterrupt:
        again = " ".join(["fedstill prior train", *([str(file)] if file else []), "--out", str(out), "--resume"])
        typer.echo(f"fedstill: interrupted; continue, with the same settings, with  {again}", err=True)
        raise typer.Exit(130) from None
    if not quiet:
        typer.echo(f"done: {out / PRIOR}, samples {out / GRID}", err=True)


def _say(report: Any) -> None:
    line = (
        f"step {report.step}/{report.steps}  {report.kimg:.0f} k images  "
        f"generator {report.generator_loss:.3f}  critic {report.critic_loss:.3f}  {seconds_text(report.seconds_left)} left"
    )
    # on a terminal the line stands still; elsewhere it is a log
    live = sys.stderr.isatty() and report.step < report.steps
    typer.echo(f"\r{line:<100}" if sys.stderr.isatty() else line, err=True, nl=not live)


@app.command("sample")
def sample(
    prior: Annotated[str, typer.Argument(help="A shipped prior's name, or a prior's file.")],
    out: Annotated[Path, typer.Option(help="PNG file to write.")],
    count: Annotated[int, typer.Option(min=1, max=100, help="Images a class.")] = SAMPLES_A_CLASS,
    seed: Annotated[int, typer.Option(min=0, help="Of the samples.")] = 0,
    truncation: Annotated[float, typer.Option(help="psi of the mapping network, above 0; 1 is off.")] = 1.0,
) -> None:
    """Draw samples of a prior: a picture with a row a class."""
    import torch

    from fedstill.errors import InputError
    from fedstill.generators.files import load_prior, read_card
    from fedstill.generators.train import sample as draw
    from fedstill.output import save_sheet
    from fedstill.runtime import prepare
    from fedstill.seeds import Seed

    if not 0 < truncation <= 1:
        raise InputError(f"--truncation {truncation}: it lies above 0 and at most at 1")
    prepare()
    generator = load_prior(prior, truncation=truncation)
    names = tuple(map(str, read_card(prior)["classes"]))
    labels = torch.arange(len(names)).repeat_interleave(count)
    images = draw(generator, labels, Seed.root(seed).at("sample"))
    save_sheet(out, {"images": images, "labels": labels}, names)
    typer.echo(f"written: {out}", err=True)


@app.command("import")
def import_(
    file: Annotated[Path, typer.Argument(help="An official StyleGAN-XL pickle.", show_default=False)],
    out: Annotated[Path, typer.Option(help="The prior's file to write: .safetensors.")],
    half: Annotated[bool, typer.Option("--half", help="Store weights as float16: half the size.")] = False,
) -> None:
    """Turn an official StyleGAN-XL pickle into a prior; nothing of the file is run."""
    from fedstill.errors import InputError
    from fedstill.generators.official import import_prior
    from fedstill.runtime import prepare

    if out.suffix != ".safetensors":
        raise InputError(f"--out {out}: a prior's file ends in .safetensors")
    prepare()
    generator = import_prior(file, out, half=half)
    millions = sum(parameter.numel() for parameter in generator.parameters()) / 1e6
    typer.echo(
        f"written: {out}: {generator.options.size} x {generator.options.size} pixels, "
        f"{generator.options.classes or 'no'} classes, spaces 0 to {generator.depth}, {millions:.1f} million weights",
        err=True,
    )
