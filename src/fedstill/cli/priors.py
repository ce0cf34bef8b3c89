"""Commands about priors: prior train, prior sample, prior import."""

from __future__ import annotations

import math
import re
import sys
import time
from contextlib import closing
from pathlib import Path
from typing import Annotated, Any

import typer

from fedstill.cli.console import seconds_text
from fedstill.cli.imports import look_here

__all__ = ["app", "import_", "sample", "train"]

app = typer.Typer(help="Generators: train one on public images, look at what it makes.")

SAMPLES_A_CLASS = 10
MOST_ROWS = 100


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
    classes: Annotated[
        str | None,
        typer.Option(
            help="These alone: their numbers, as 281,282, or a subset of ImageNet, as imwoof.", show_default=False
        ),
    ] = None,
) -> None:
    """Draw samples of a prior: a picture with a row a class."""
    import torch

    from fedstill.errors import InputError
    from fedstill.generators.choice import chosen_names, chosen_numbers
    from fedstill.generators.files import load_prior, read_card
    from fedstill.generators.train import sample as draw
    from fedstill.output import save_sheet
    from fedstill.runtime import prepare
    from fedstill.seeds import Seed

    if not 0 < truncation <= 1:
        raise InputError(f"--truncation {truncation}: it lies above 0 and at most at 1")
    names = tuple(map(str, read_card(prior)["classes"]))
    numbers = None
    if classes is not None:
        wanted: Any = classes
        if re.fullmatch(r"[0-9, ]+", classes):
            wanted = [int(each) for each in classes.replace(",", " ").split()]
        names, numbers = chosen_names(wanted, names, "--classes"), chosen_numbers(wanted, "--classes")
    if not 0 < len(names) <= MOST_ROWS:
        raise InputError(f"a picture has 1 to {MOST_ROWS} rows, not {len(names)}: choose classes with --classes 0,1,2")
    prepare()
    generator = load_prior(prior, truncation=truncation, classes=numbers)
    labels = torch.arange(len(names)).repeat_interleave(count)
    images = draw(generator, labels, Seed.root(seed).at("sample"))
    save_sheet(out, {"images": images, "labels": labels}, names)
    typer.echo(f"written: {out}", err=True)


@app.command("import")
def import_(
    out: Annotated[Path, typer.Option(help="The prior's file to write: .safetensors.")],
    file: Annotated[Path | None, typer.Argument(help="An official StyleGAN-XL pickle.", show_default=False)] = None,
    from_url: Annotated[
        str | None,
        typer.Option(
            "--from-url",
            metavar="NAME|ADDRESS",
            help="Fetch it first: an official model such as cifar10 or imagenet128, or an https address. Kept beside the prior.",
            show_default=False,
        ),
    ] = None,
    sha256: Annotated[
        str | None,
        typer.Option(help="What the pickle's SHA-256 must be; checked before it is read.", show_default=False),
    ] = None,
    half: Annotated[bool, typer.Option("--half", help="Store weights as float16: half the size.")] = False,
) -> None:
    """Turn an official StyleGAN-XL pickle into a prior; nothing of the file is run."""
    from fedstill.errors import InputError
    from fedstill.generators.download import address_of, checked_hash
    from fedstill.generators.official import import_prior
    from fedstill.runtime import prepare

    if (file is None) == (from_url is None):
        raise InputError("prior import: give a pickle, or where to fetch one with --from-url")
    if out.suffix != ".safetensors":
        raise InputError(f"--out {out}: a prior's file ends in .safetensors")
    expected = None if sha256 is None else checked_hash(sha256)
    address = "" if from_url is None else address_of(from_url)
    place = file or out.with_suffix(".pkl")
    if address:
        _fetch(address, place, expected)
    prepare()
    generator = import_prior(place, out, half=half, sha256=expected, origin=address)
    millions = sum(parameter.numel() for parameter in generator.parameters()) / 1e6
    typer.echo(
        f"written: {out}: {generator.options.size} x {generator.options.size} pixels, "
        f"{generator.options.classes or 'no'} classes, spaces 0 to {generator.depth}, {millions:.1f} million weights",
        err=True,
    )


def _fetch(address: str, place: Path, expected: str | None) -> None:
    from fedstill.generators.download import Arrived, download

    live, said = sys.stderr.isatty(), -math.inf
    arrived = Arrived(0, None)
    with closing(download(address, place, sha256=expected)) as reports:  # also where it is interrupted
        for arrived in reports:
            now = time.monotonic()
            if arrived.sha256 is not None or now - said >= (0.2 if live else 10):
                of = "" if arrived.total is None else f" of {arrived.total / 1e6:.0f}"
                line = f"{arrived.done / 1e6:.0f}{of} MB of {address}"
                typer.echo(f"\r{line:<100}" if live else line, err=True, nl=not live or arrived.sha256 is not None)
                said = now
    typer.echo(f"kept: {place}, SHA-256 {arrived.sha256}", err=True)
    if expected is None:
        typer.echo("no checksum of it is published, so nothing was compared: note this one, for --sha256", err=True)
