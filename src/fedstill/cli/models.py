"""Commands about trained models: predict, export."""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path
from typing import Annotated, Literal, cast

import typer

from fedstill.cli.imports import look_here

__all__ = ["export", "predict"]

BATCH = 500

AllowImport = Annotated[
    bool,
    typer.Option("--allow-import", help="Import the package.module:factory that the file names, if it names one."),
]


def predict(
    model: Annotated[Path, typer.Argument(help="A model file: models/NAME.safetensors of a run.")],
    folder: Annotated[Path, typer.Argument(help="A folder with images at any depth, or one image.")],
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line.")] = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Comma-separated, with a header.")] = False,
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="Leave unreadable images out and count them.")] = False,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")] = "auto",
    allow_import: AllowImport = False,
) -> None:
    """Label new images: a line each with its name, class and probability."""
    from fedstill.data.images import load_folder_images
    from fedstill.errors import InputError
    from fedstill.models.files import load_model
    from fedstill.runtime import pick_device, prepare

    if as_json and as_csv:
        raise InputError("--json and --csv exclude each other: give one")
    if allow_import:
        look_here()
    prepare()
    device = pick_device(device)
    classifier = load_model(model, device, allow_import=allow_import)
    architecture = classifier.architecture
    if architecture.channels not in (1, 3):
        raise InputError(f"{model} takes images of {architecture.channels} channels: files of 1 or 3 can be read")
    found = load_folder_images(
        folder,
        size=architecture.size,
        channels=cast(Literal[1, 3], architecture.channels),
        fit=classifier.fit,
        skip_bad=skip_bad,
    )
    labels = [
        label
        for start in range(0, len(found.images), BATCH)
        for label in classifier.label(found.images[start : start + BATCH].to(device).float() / 255)
    ]
    table = csv.writer(sys.stdout, lineterminator="\n")
    if as_csv:
        table.writerow(["image", "class", "probability"])
    for name, (label, probability) in zip(found.names, labels, strict=True):
        if as_csv:
            table.writerow([name, label, f"{probability:.4f}"])
        elif as_json:
            typer.echo(json.dumps({"image": name, "class": label, "probability": round(probability, 4)}))
        else:
            typer.echo(f"{name}\t{label}\t{probability:.4f}")
    if found.skipped:
        name, reason = found.skipped[0]
        count = len(found.skipped)
        typer.echo(
            f"{count} unreadable {'image' if count == 1 else 'images'} left out; the first: {name}: {reason}", err=True
        )


def export(
    model: Annotated[Path, typer.Argument(help="A model file: models/NAME.safetensors of a run.")],
    onnx: Annotated[Path, typer.Option("--onnx", help="Write ONNX to this file.")],
    allow_import: AllowImport = False,
) -> None:
    """Write a model for other runtimes: ONNX, from plain pixels to logits, normalisation inside."""
    from fedstill.models.files import load_model
    from fedstill.models.onnx import export_onnx
    from fedstill.runtime import prepare

    if allow_import:
        look_here()
    prepare()
    export_onnx(load_model(model, allow_import=allow_import), onnx)
    typer.echo(f"written: {onnx}", err=True)
