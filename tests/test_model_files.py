"""Model files: what they say of themselves, what a hostile one cannot do, and ONNX."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import fedstill
from fedstill.data.shard import Normalisation
from fedstill.errors import InputError, MissingExtra, RunError
from fedstill.models.architecture import Architecture
from fedstill.models.files import FORMAT, load_model, save_model
from fedstill.models.onnx import export_onnx
from fedstill.seeds import Seed

SEED = Seed.root(0)
CLASSES = ("cat", "dog", "Ærø-ferry")
GREY = Normalisation((0.4,), (0.25,))
CONVNET = Architecture("convnet", 1, (8, 10), 3, {"depth": 2, "width": 4, "norm": "batch"})
PIXELS = torch.rand(5, 1, 8, 10, generator=SEED.at("pixels").torch())


def write(path: Path, architecture: Architecture = CONVNET, **changes: Any) -> nn.Module:
    network = architecture.build(SEED.at("model"))
    given: dict[str, Any] = {"architecture": architecture, "classes": CLASSES, "normalisation": GREY}
    save_model(path, network.state_dict(), **(given | changes))
    return network.eval()


def rewrite(
    path: Path, *, tensors: dict[str, Tensor] | None = None, without: tuple[str, ...] = (), **changes: Any
) -> None:
    """Change the description or the weights of a model file, as a damaged or a hostile one would have them."""
    write(path)
    state = load_file(path)
    with path.open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    card = json.loads(header["__metadata__"]["fedstill.model"]) | changes
    for key in without:
        del card[key]
    save_file(state | (tensors or {}), path, {"fedstill.model": json.dumps(card)})


def test_a_model_comes_back_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "models" / "global.safetensors"
    network = write(path, notes={"method": "feddgm", "round": 3, "accuracy": 0.5, "validation": float("nan")})
    classifier = fedstill.load_model(str(path))
    assert torch.equal(classifier(PIXELS), network(GREY.apply(PIXELS)))
    assert classifier.classes == CLASSES
    assert classifier.normalisation == GREY
    assert classifier.architecture == CONVNET.resolved()
    assert classifier.notes == {
        "fedstill": fedstill.__version__,
        "method": "feddgm",
        "round": 3,
        "accuracy": 0.5,
        "validation": None,
    }
    assert not classifier.training
    assert not classifier(PIXELS).requires_grad
    assert sorted(file.name for file in path.parent.iterdir()) == ["global.safetensors"]


def test_how_images_are_brought_to_size_travels_with_the_weights(tmp_path: Path) -> None:
    write(tmp_path / "m", fit="crop")
    assert load_model(tmp_path / "m").fit == "crop"
    rewrite(tmp_path / "m", fit="squeeze")
    with pytest.raises(InputError, match=r"is damaged: fit: "):
        load_model(tmp_path / "m")


def test_a_file_of_format_1_does_not_say_how_and_means_stretch(tmp_path: Path) -> None:
    rewrite(tmp_path / "m", without=("fit",), version=1)
    assert load_model(tmp_path / "m").fit == "stretch"


def test_labels_are_names_with_probabilities(tmp_path: Path) -> None:
    write(tmp_path / "m")
    classifier = load_model(tmp_path / "m")
    probabilities = classifier(PIXELS).softmax(1)
    for row, (name, probability) in zip(probabilities, classifier.label(PIXELS), strict=True):
        assert probability == pytest.approx(row.max().item())
        assert name == CLASSES[int(row.argmax())]
    assert classifier.label(PIXELS[:0]) == []


@pytest.mark.parametrize(
    "pixels",
    [torch.zeros(2, 3, 8, 10), torch.zeros(2, 1, 10, 8), PIXELS[0], torch.zeros(2, 1, 8, 10, dtype=torch.uint8)],
)
def test_pixels_of_another_kind_are_refused(tmp_path: Path, pixels: Tensor) -> None:
    write(tmp_path / "m")
    with pytest.raises(InputError, match=r"takes pixels as floats in 0 to 1 of shape \[n, 1, 8, 10\], not "):
        load_model(tmp_path / "m").label(pixels)


@pytest.mark.parametrize("content", [b"", b"\x80\x04K\x01.", b"\xff" * 64, b"\x08\0\0\0\0\0\0\0notjson!"])
def test_what_is_not_safetensors_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "m").write_bytes(content)
    with pytest.raises(InputError, match="it cannot be read as safetensors"):
        load_model(tmp_path / "m")


def test_a_missing_file_or_a_folder_is_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "absent", tmp_path):
        with pytest.raises(InputError, match=f"^cannot read {path}: "):
            load_model(path)


def test_safetensors_of_others_are_refused(tmp_path: Path) -> None:
    for metadata in (None, {"format": "pt"}):
        save_file({"weight": torch.zeros(2)}, tmp_path / "m", metadata)
        with pytest.raises(InputError, match="was not written by fedstill"):
            load_model(tmp_path / "m")


def test_a_cut_file_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "m")
    content = (tmp_path / "m").read_bytes()
    for length in (4, 100, len(content) // 2, len(content) - 1):
        (tmp_path / "m").write_bytes(content[:length])
        with pytest.raises(InputError):
            load_model(tmp_path / "m")


NAN = torch.full((3,), float("nan"))


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"version": FORMAT + 1, "novel": 1}, "was written by a newer fedstill"),
        ({"version": "one"}, "is damaged: version: "),
        ({"classes": ["a", "b"]}, "2 names of classes do not fit the architecture, which has 3"),
        ({"classes": [1, 2, 3]}, "is damaged: classes.0: "),
        ({"mean": [0.1, 0.2]}, "2 means of the normalisation do not fit"),
        ({"mean": [float("nan")]}, "is damaged: mean.0: "),
        ({"std": [0.0]}, "is damaged: std.0: "),
        ({"architecture": {"name": "convnet"}}, "m: model: not an architecture"),
        ({"architecture": CONVNET.to_json() | {"name": "convnt"}}, "is not fedstill's own"),
        ({"architecture": CONVNET.to_json() | {"options": {"widht": 4}}}, "m: model.widht = 4: did you mean 'width'"),
        ({"architecture": CONVNET.to_json()}, None),
        ({"architecture": CONVNET.to_json() | {"options": {"depth": 2, "width": 4}}}, "'body.block1.norm.num_batches"),
        ({"architecture": CONVNET.to_json() | {"options": {"depth": 2, "width": 4096}}}, "weights do not fit"),
        ({"architecture": CONVNET.to_json() | {"size": [10**9, 10**9]}}, "weights do not fit"),
        ({"architecture": CONVNET.to_json() | {"size": [10**30, 10**30]}}, "can be so large"),
        ({"tensors": {"head.bias": NAN}}, "the weights 'head.bias' are not finite"),
        ({"tensors": {"head.bias": NAN[:2]}}, r"'head.bias' is float32 \[2\] and not float32 \[3\]"),
        ({"tensors": {"head.bias": NAN.double()}}, r"'head.bias' is float64 \[3\] and not float32 \[3\]"),
        ({"tensors": {"tail.bias": NAN}}, "'tail.bias' is none of its weights"),
    ],
)
def test_a_file_that_does_not_add_up_is_refused(tmp_path: Path, changes: dict[str, Any], text: str | None) -> None:
    rewrite(tmp_path / "m", **changes)
    if text is None:
        load_model(tmp_path / "m")
        return
    with pytest.raises(InputError, match=text):
        load_model(tmp_path / "m")


def test_a_file_runs_no_code_unless_allowed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "trap.py").write_text(
        "from pathlib import Path\n"
        "from fedstill.models.conv import convnet\n"
        f"Path({str(tmp_path / 'ran')!r}).touch()\n"
        "def factory(*, channels, size, classes):\n"
        "    return convnet(channels=channels, size=size, classes=classes, depth=2, width=4, norm='batch')\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    rewrite(tmp_path / "m", architecture=CONVNET.to_json() | {"name": "trap:factory", "options": {}})
    with pytest.raises(InputError, match="pass allow_import=True if you trust the file"):
        load_model(tmp_path / "m")
    assert not (tmp_path / "ran").exists()
    assert load_model(tmp_path / "m", allow_import=True)(PIXELS).shape == (5, 3)
    assert (tmp_path / "ran").exists()


def test_an_unknown_device_is_answered(tmp_path: Path) -> None:
    write(tmp_path / "m")
    with pytest.raises(InputError, match=r"^device = 'toaster': "):
        load_model(tmp_path / "m", device="toaster")


def test_what_does_not_fit_is_not_written(tmp_path: Path) -> None:
    path = tmp_path / "m"
    with pytest.raises(InputError, match="2 names of classes do not fit"):
        write(path, classes=("a", "b"))
    state = CONVNET.build(SEED).state_dict()
    given: dict[str, Any] = {"architecture": CONVNET, "classes": CLASSES, "normalisation": GREY}
    with pytest.raises(InputError, match=r"'head.bias' is missing"):
        save_model(path, {name: tensor for name, tensor in state.items() if name != "head.bias"}, **given)
    with pytest.raises(RunError, match=r"the weights 'head.bias' are not finite"):
        save_model(path, state | {"head.bias": NAN}, **given)
    assert not path.exists()


@pytest.mark.parametrize(
    "architecture",
    [
        CONVNET,
        Architecture("resnet18", 1, (10, 12), 3, {"width": 2}),
        Architecture("vit", 1, (8, 12), 3, {"dim": 8, "depth": 1, "heads": 2, "head_dim": 4, "mlp": 8}),
    ],
    ids=lambda architecture: architecture.name,
)
def test_onnx_gives_the_same_logits(tmp_path: Path, architecture: Architecture) -> None:
    pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    write(tmp_path / "m", architecture, fit="crop")
    classifier = load_model(tmp_path / "m")
    export_onnx(classifier, tmp_path / "m.onnx")
    session = runtime.InferenceSession(tmp_path / "m.onnx")
    for count in (1, 5):
        pixels = torch.rand(count, 1, *architecture.size, generator=SEED.torch())
        (logits,) = session.run(["logits"], {"pixels": pixels.numpy()})
        torch.testing.assert_close(torch.from_numpy(logits), classifier(pixels), rtol=1e-4, atol=1e-4)
    metadata = session.get_modelmeta().custom_metadata_map
    assert json.loads(metadata["classes"]) == list(CLASSES)
    assert json.loads(metadata["mean"]) == [0.4]
    assert json.loads(metadata["std"]) == [0.25]
    assert metadata["fit"] == "crop"
    assert Architecture.from_json(json.loads(metadata["architecture"])) == architecture.resolved()


def test_onnx_without_its_extra_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "m")
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(MissingExtra, match=r"pip install 'fedstill\[onnx\]'"):
        export_onnx(load_model(tmp_path / "m"), tmp_path / "m.onnx")
