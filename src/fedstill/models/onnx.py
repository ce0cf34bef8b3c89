"""Classifiers as ONNX files, for runtimes without torch."""

from __future__ import annotations

import importlib
import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from fedstill.errors import MissingExtra
from fedstill.files import write_bytes
from fedstill.models.files import Classifier

__all__ = ["export_onnx"]


def export_onnx(classifier: Classifier, path: str | Path) -> None:
    """Write ``classifier`` as ONNX: input ``pixels`` [n, c, h, w] in 0 … 1, output ``logits`` [n, classes], any n.

    The file's ``metadata_props`` hold ``classes`` (a JSON list, in the order of the logits), ``mean`` and ``std`` (JSON
    lists) and, where images are whitened, ``zca_epsilon`` (these for information: the graph normalises and whitens by itself),
    ``fit`` (``stretch`` or ``crop``: how images are brought to size before) and ``architecture`` (JSON).

    Raises:
        MissingExtra: onnx or onnxscript is not installed.
        RunError: the disk refuses the file.
    """
    for package in ("onnx", "onnxscript"):
        try:
            importlib.import_module(package)
        except ImportError as error:
            raise MissingExtra(package, extra="onnx", wanted_for="an ONNX file") from error
    device = next(classifier.parameters()).device
    # two images: with one, the exporter takes the batch for a constant
    example = torch.zeros(2, classifier.architecture.channels, *classifier.architecture.size, device=device)
    with _quiet_exporter():
        program = torch.onnx.export(
            classifier,
            (example,),
            input_names=["pixels"],
            output_names=["logits"],
            dynamic_shapes=({0: torch.export.Dim("n")},),
            dynamo=True,
            verbose=False,
        )
    assert program is not None  # it is None for dynamo=False alone
    program.model.metadata_props.update(
        classes=json.dumps(classifier.classes),
        **{name: json.dumps(value) for name, value in classifier.normalisation.to_json().items()},
        fit=classifier.fit,
        architecture=json.dumps(classifier.architecture.to_json()),
    )
    write_bytes(Path(path), program.model_proto.SerializeToString())


@contextmanager
def _quiet_exporter() -> Iterator[None]:
    """Without torch's notes to itself: of torchvision, which nobody needs here, and of what it will rename."""
    registry = logging.getLogger("torch.onnx._internal.exporter._registration")
    level = registry.level
    registry.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=r".*isinstance\(treespec, LeafSpec\)", category=FutureWarning)
            yield
    finally:
        registry.setLevel(level)
