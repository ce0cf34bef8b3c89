"""The command that makes a file of a run's distilled images: pack."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fedstill.cli.console import bytes_text, say_table
from fedstill.cli.evaluation import progress_bar, spread
from fedstill.cli.imports import look_here

if TYPE_CHECKING:
    from fedstill.distilled import Distilled, Score

__all__ = ["pack"]


def pack(
    run: Annotated[Path, typer.Argument(help="Folder of a run that keeps synthetic sets.", show_default=False)],
    out: Annotated[
        Path | None,
        typer.Option("-o", "--out", help="The file. Default: NAME-ROUND.safetensors, here.", show_default=False),
    ] = None,
    number: Annotated[
        int | None, typer.Option("--round", help="Whose synthetic set. Default: the newest kept.", show_default=False)
    ] = None,
    anonymous: Annotated[bool, typer.Option("--anonymous", help="Number the clients instead of naming them.")] = False,
    quantise: Annotated[
        bool, typer.Option("--quantise", help="Round pixels to 256 levels: a quarter of the bytes.")
    ] = False,
    score: Annotated[
        bool,
        typer.Option(
            "--score",
            help="Train fresh networks on the images, test them on the run's own test images, and "
            "keep their scores in the file.",
        ),
    ] = False,
    cost: Annotated[
        bool,
        typer.Option(
            "--cost", help="With --quantise: score the images as they were before rounding too, and keep both."
        ),
    ] = False,
    models: Annotated[
        list[str] | None,
        typer.Option(
            "--model",
            metavar="NAME[:KEY=VALUE,…]",
            help="A network to score: resnet18, or convnet:depth=3,width=32. Repeatable. Default: those that the run trains.",
        ),
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Networks of each kind to score.")] = 3,
    epochs: Annotated[
        int | None, typer.Option(min=1, help="Of the recipe in the file. Default: the run's own.", show_default=False)
    ] = None,
    lr: Annotated[
        float | None, typer.Option(help="Step size of the recipe. Default: the run's own.", show_default=False)
    ] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Processes that train. Default: the run's own.", show_default=False)
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")] = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object instead of lines.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Say nothing unless something is wrong.")] = False,
) -> None:
    """Make one file of a run's distilled images, to be used elsewhere; 'fedstill evaluate FILE' tries it."""
    from fedstill.errors import InputError
    from fedstill.packing import Packing, default_name, pack_run

    if lr is not None and not lr > 0:
        raise InputError(f"--lr {lr}: it lies above 0")
    if cost and not quantise:
        raise InputError("--cost is what rounding costs: give --quantise too")
    if models and not (score or cost):
        raise InputError("--model is of networks to score: give --score too")
    look_here()
    packing = Packing(
        round=number,
        epochs=epochs,
        lr=lr,
        anonymous=anonymous,
        quantise=quantise,
        score=score,
        cost=cost,
        models=tuple(models or ()),
        seeds=seeds,
    )
    out = Path(default_name(run, number)) if out is None else out
    with progress_bar(quiet=quiet or as_json) as progress:
        packed = pack_run(run, out, packing, workers=workers, device=device, progress=progress)
    if as_json:
        typer.echo(json.dumps(_facts(out, packed), allow_nan=False))
    elif not quiet:
        _say(out, packed)


def _facts(out: Path, packed: Distilled) -> dict[str, Any]:
    """Plain values: all but the images."""
    shard = packed.shard
    return {
        "file": str(out),
        "bytes": out.stat().st_size,
        "images": list(shard.images.shape),
        "dtype": str(shard.images.dtype).removeprefix("torch."),
        "classes": list(shard.classes),
        "histogram": shard.histogram(),
        "makers": [asdict(maker) for maker in packed.makers],
        "provenance": asdict(packed.provenance),
        "quantised": None if packed.quantised is None else asdict(packed.quantised),
        "scores": [{**vars(each), "architecture": each.architecture.to_json()} for each in packed.scores],
    }


def _say(out: Path, packed: Distilled) -> None:
    shard, origin = packed.shard, packed.provenance
    count, *shape = shard.images.shape
    makers = "1 client" if len(packed.makers) == 1 else f"{len(packed.makers)} clients"
    typer.echo(
        f"{out}: {count} images of {' x '.join(map(str, shape))}, {str(shard.images.dtype).removeprefix('torch.')}, by {makers}, "
        f"{len(shard.classes)} classes; {origin.method}, round {origin.round}; {bytes_text(out.stat().st_size)}"
    )
    if (quantised := packed.quantised) is not None:
        share = 100 * quantised.clipped / quantised.values
        typer.echo(
            f"rounded to 256 levels; {quantised.clipped:,} of {quantised.values:,} values ({share:.1f} %) were clipped"
        )
    if packed.scores:
        typer.echo(f"fresh networks on these images, {packed.scores[0].images} test images")
        floats = ["unrounded", "difference"] if any(each.floats for each in packed.scores) else []
        say_table("", ["network", "seeds", "accuracy", *floats], [_line(each) for each in packed.scores])


def _line(score: Score) -> list[str]:
    cells = [score.name, str(len(score.accuracies)), spread(score.accuracies)]
    if not score.floats:
        return cells
    # by seed: the two networks begin alike
    pairs = zip(score.accuracies, score.floats, strict=True)
    return [*cells, spread(score.floats), spread([after - before for after, before in pairs])]
