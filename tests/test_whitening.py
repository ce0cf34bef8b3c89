"""ZCA whitening: what it makes of images, that it can be undone, and that it travels with runs, models and distilled files."""

from __future__ import annotations

import json
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

import fedstill
import tiny
from fedstill.bundle import Bundle
from fedstill.cli import invoke
from fedstill.data.augment import DSA, Augmentation, apply
from fedstill.data.settings import DataSettings
from fedstill.data.shard import Normalisation, Shard
from fedstill.data.sources import digest, load
from fedstill.data.whitening import LARGEST, TENSORS, Whitening, estimate, pack, unpack
from fedstill.distill.canvas import Canvas, Strokes
from fedstill.distilled import Distilled, Maker, Provenance, read, write
from fedstill.errors import InputError
from fedstill.experiment import Experiment
from fedstill.generators.pixels import Pixels
from fedstill.kept import check_data
from fedstill.models.architecture import Architecture
from fedstill.models.files import load_model, save_model
from fedstill.models.onnx import export_onnx
from fedstill.packing import Packing, pack_run
from fedstill.report.runs import read_run
from fedstill.retrial import Trial, evaluate_file
from fedstill.run import drive
from fedstill.seeds import Seed
from fedstill.spaces import Range, Space
from fedstill.train import Recipe, fit, predict
from fedstill.tune.plan import Search

SEED = Seed.root(0)
ZCA = {"data": {"zca": True}}
CLASSES = ("cat", "dog", "Ærø-ferry")


def photographs(count: int = 300, shape: tuple[int, int, int] = (2, 4, 5)) -> Tensor:
    """uint8 images whose values are correlated, and of which one never changes."""
    draw = SEED.at("photographs", *shape).torch()
    values = shape[0] * shape[1] * shape[2]
    mixed = torch.randn(count, values, generator=draw) @ (torch.randn(values, values, generator=draw) / values**0.5)
    images = (128 + 40 * mixed).clamp(0, 255).to(torch.uint8)
    images[:, -1] = 17
    return images.view(count, *shape)


def pixels(images: Tensor) -> Tensor:
    return images.float() / 255


def small(shape: tuple[int, int, int] = (1, 8, 10), epsilon: float = 0.1) -> Whitening:
    return estimate(photographs(40, shape), epsilon)


# --- what it is --------------------------------------------------------------------------------------------------------


def test_whitened_images_are_uncorrelated_and_of_unit_variance() -> None:
    images = photographs()[:, :, :, :-1]
    found = estimate(images, 1e-6).apply(pixels(images)).flatten(1)
    assert found.mean(0).abs().max() < 1e-3
    assert torch.allclose(torch.cov(found.T), torch.eye(found.shape[1]), atol=2e-2)


def test_it_is_the_matrix_of_the_definition() -> None:
    images = photographs(2500)  # more rows than are summed at a time
    rows = images.flatten(1).double().numpy() / 255
    spread, directions = np.linalg.eigh(np.cov(rows.T))
    root = directions @ np.diag((spread + 0.1) ** 0.5) @ directions.T
    found = estimate(images, 0.1)
    assert np.allclose(found.mean.numpy(), rows.mean(0), atol=1e-7)
    assert np.allclose(found.matrix.numpy(), np.linalg.inv(root), atol=1e-5)
    assert np.allclose(found.inverse.numpy(), root, atol=1e-6)
    assert torch.equal(found.matrix, found.matrix.T)


def test_the_order_of_images_changes_nothing() -> None:
    images = photographs(2500)
    assert estimate(images, 0.1) == estimate(images.flip(0), 0.1)
    assert estimate(images, 0.1) != estimate(images, 0.2) != estimate(images[1:], 0.2)


@pytest.mark.parametrize(("epsilon", "error"), [(0.1, 1e-5), (1e-6, 1e-4)])
def test_undo_brings_images_back(epsilon: float, error: float) -> None:
    images = photographs()
    whitening = estimate(images, epsilon)
    beyond = 3 * pixels(images) - 1
    for given in (pixels(images), beyond, beyond.double(), beyond.contiguous(memory_format=torch.channels_last)):
        found = whitening.undo(whitening.apply(given))
        assert found.dtype == given.dtype
        assert (found - given).abs().max() < error
        assert (whitening.apply(whitening.undo(given)) - given).abs().max() < 10 * error
    assert whitening.apply(pixels(images[:0])).shape == (0, 2, 4, 5)


def test_gradients_pass_it() -> None:
    whitening = small((1, 2, 3))
    leaf = pixels(photographs(3, (1, 2, 3))).double().requires_grad_()
    assert torch.autograd.gradcheck(whitening.apply, leaf)
    assert torch.autograd.gradcheck(whitening.undo, leaf)


def test_it_survives_a_process_and_a_dictionary() -> None:
    whitening = small()
    again = pickle.loads(pickle.dumps(whitening))
    assert again == whitening
    assert len({whitening, again}) == 1
    assert whitening.to("cpu") is whitening
    assert whitening != "another thing"


# --- data --------------------------------------------------------------------------------------------------------------


def get(**settings: Any) -> Any:
    return load(DataSettings(**{"size": 8, "limit": 120, "test_limit": 50, **settings}), Seed.root(0))


def test_data_are_whitened_by_the_training_images() -> None:
    loaded, plain = get(zca=True), get()
    assert loaded.train.normalisation == loaded.test.normalisation
    assert loaded.train.normalisation.whitening == estimate(loaded.train.images, 0.1)
    assert torch.equal(loaded.test.images, plain.test.images)
    back = loaded.test.normalisation.undo(loaded.test.inputs())
    assert torch.allclose(back, pixels(plain.test.images), atol=1e-5)
    assert len({digest(each) for each in (plain, loaded, get(zca=True, zca_epsilon=0.2))}) == 3
    assert digest(loaded) == digest(get(zca=True))


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"mean": (0.5,), "std": (0.5,)}, r"data\.zca = true stands in place of data\.mean and data\.std"),
        ({"std": (0.5,)}, r"data\.zca = true stands in place of data\.mean and data\.std"),
        ({"limit": 1}, r"data\.zca = true: a covariance takes two training images at least, and there is 1: raise"),
        ({"size": (111, 111)}, r"images of 1 x 111 x 111 have 12,321 values, and ZCA whitening is for 12,288 at most"),
    ],
)
def test_what_cannot_be_whitened_is_refused(settings: dict[str, Any], why: str) -> None:
    with pytest.raises(InputError, match=why) as caught:
        get(zca=True, **settings)
    assert "\n" not in str(caught.value)
    assert LARGEST == 64 * 64 * 3


def test_estimates_of_the_same_images_agree_to_the_last_bits() -> None:
    one = get(zca=True).train.normalisation
    whitening = one.whitening
    again = replace(one, whitening=replace(whitening, matrix=whitening.matrix * (1 + 1e-7)))
    assert one != again
    assert one.agrees(again)
    assert again.agrees(one)
    for other in ({"zca_epsilon": 0.11}, {"limit": 119}, {"size": 9}):
        assert not one.agrees(get(**{"zca": True, **other}).train.normalisation)
    plain = get().train.normalisation
    assert plain.agrees(get().train.normalisation)
    assert not plain.agrees(one)
    assert not one.agrees(plain)


def test_an_epsilon_that_float32_cannot_hold_is_refused() -> None:
    with pytest.raises(InputError, match=r"^data\.zca_epsilon = 1e-07: must be at least 1e-06"):
        Experiment.from_table({"data": {"zca_epsilon": 1e-7}})


def test_inspect_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "e.toml"
    path.write_text(tiny.experiment(**ZCA).to_toml())
    assert invoke(["data", "inspect", str(path)]) == 0
    assert "pixels in 0 … 1: ZCA whitening of all 64 values, epsilon 0.1" in capsys.readouterr().out
    assert invoke(["data", "inspect", str(path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["zca_epsilon"] == 0.1


# --- what works on inputs ----------------------------------------------------------------------------------------------


def whitened_shard(shape: tuple[int, int, int] = (1, 8, 10)) -> Shard:
    images = photographs(40, shape)
    channels = shape[0]
    normalisation = Normalisation((0.0,) * channels, (1.0,) * channels, estimate(images, 0.1))
    return Shard(images, torch.arange(40) % 3, CLASSES, normalisation)


def test_whitening_once_gives_the_same_inputs() -> None:
    shard = whitened_shard()
    once = shard.whitened()
    assert once.normalisation.whitening is None
    assert torch.allclose(once.inputs(torch.arange(7)), shard.inputs(torch.arange(7)), atol=1e-6)
    assert once.whitened() is once
    assert torch.equal(once.labels, shard.labels)
    floats = replace(shard, images=pixels(shard.images).double())
    assert floats.whitened().images.dtype == torch.float64
    assert Shard.join([shard.take([0]), shard.take([1])]).images.shape[0] == 2


def test_a_device_is_whitened_on() -> None:
    shard = whitened_shard()
    moved = shard.to("meta").normalisation.whitening
    assert moved is not None
    assert {each.device.type for each in (moved.mean, moved.matrix, moved.inverse)} == {"meta"}
    assert shard.normalisation.to("cpu") == shard.normalisation


def test_training_and_scoring_see_whitened_images() -> None:
    shard = whitened_shard()
    network = Architecture("convnet", 1, (8, 10), 3, {"depth": 1, "width": 4}).build(SEED)
    plain = Normalisation((0.0,), (1.0,))
    by_hand = replace(shard, images=shard.inputs(), normalisation=plain)
    for epochs in (1, 3):
        recipe = Recipe(epochs=epochs, lr=0.1, batch=16, augmentation=Augmentation.parse(DSA))
        one, other = (fit(network, each, recipe, seed=SEED) for each in (shard, by_hand))
        assert all(torch.allclose(one.tensors[name], other.tensors[name], atol=1e-4) for name in one.tensors)
    assert torch.allclose(predict(network, shard), predict(network, by_hand), atol=1e-5)


def test_a_canvas_lives_in_whitened_space_and_hands_out_pixels() -> None:
    shard = whitened_shard()
    generator = Pixels(1, (8, 10), shard.normalisation)
    canvas = Canvas(
        generator,
        0,
        {"f": shard.inputs(slice(0, 4))},
        shard.labels[:4],
        normalisation=shard.normalisation,
        strokes=Strokes(features=1.0, styles=0.0, rate=0.0),
        rate=0.1,
        chunk=3,
    )
    assert torch.allclose(canvas.render(), shard.inputs(slice(0, 4)), atol=1e-5)
    images = canvas.shard(CLASSES)
    assert torch.allclose(images.images, pixels(shard.images[:4]), atol=1e-5)
    assert torch.allclose(images.inputs(), canvas.render(), atol=1e-5)
    drawn = Augmentation.parse("color").draw(4, (8, 10), SEED.torch())
    assert torch.isfinite(apply(canvas.render(), drawn)).all()


# --- runs --------------------------------------------------------------------------------------------------------------

ONESHOT = tiny.ONESHOT | {"distill_steps": 4, "judges": 1, "global_epochs": 30}


@pytest.fixture(scope="module")
def averaged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("averaged") / "run"
    drive(tiny.experiment(**ZCA), out=out)
    return out


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("shared") / "run"
    drive(tiny.experiment(ONESHOT, rounds=1, **ZCA), out=out)
    return out


def test_a_run_resumes_to_the_same_bits(averaged: Path, tmp_path: Path) -> None:
    drive(tiny.experiment(rounds=1, **ZCA), out=tmp_path / "run")
    drive(tiny.experiment(**ZCA), out=tmp_path / "run", resume=True)
    assert tiny.result(tmp_path / "run") == tiny.result(averaged)
    check_data(averaged, Experiment.read(averaged / "experiment.toml").build())


def test_a_model_of_a_run_takes_pixels(averaged: Path, tmp_path: Path) -> None:
    parts = tiny.experiment(**ZCA).build()
    classifier, test = fedstill.load_model(averaged / "models" / "global.safetensors"), parts.data.test
    assert classifier.normalisation == parts.world.normalisation
    found = classifier(pixels(test.images)).argmax(1)
    accuracy = (found == test.labels).float().mean().item()
    assert accuracy == pytest.approx(tiny.rows(averaged)[-1]["accuracy"]["global"])
    plain = replace(test, normalisation=Normalisation((0.0,), (1.0,)))
    assert not torch.equal(predict(classifier.network, plain).argmax(1), found)
    for number, image in enumerate(test.images[:9]):
        Image.fromarray(image[0].numpy()).save(tmp_path / f"{number}.png")
    names = [name for name, _ in classifier.label(pixels(test.images[:9]))]
    assert names == [classifier.classes[label] for label in found[:9]]


def test_predict_labels_files(averaged: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    test = tiny.experiment(**ZCA).build().data.test
    model = averaged / "models" / "global.safetensors"
    for number, image in enumerate(test.images[:9]):
        Image.fromarray(image[0].numpy()).save(tmp_path / f"{number}.png")
    assert invoke(["predict", str(model), str(tmp_path)]) == 0
    told = [line.split("\t")[1] for line in capsys.readouterr().out.splitlines()]
    assert told == [name for name, _ in load_model(model).label(pixels(test.images[:9]))]


def test_oneshot_distils_whitened_images_and_sends_pixels(shared: Path) -> None:
    parts = tiny.experiment(ONESHOT, rounds=1, **ZCA).build()
    sets = Bundle.open(shared / "synthetic" / "round-0001.safetensors").members("synthetic")
    assert len(sets) == 3
    for group in sets.values():
        assert group["images"].min() > -3
        assert group["images"].max() < 4
    # images as they were drawn from the client's real ones lie near these, in pixels
    images = torch.cat([group["images"] for group in sets.values()])
    real = pixels(parts.data.train.images)
    assert max(float((real - image).abs().amax((1, 2, 3)).min()) for image in images) < 1.5


def test_a_packed_file_gives_the_recorded_accuracy_elsewhere(shared: Path, tmp_path: Path) -> None:
    path = tmp_path / "d.safetensors"
    packed = pack_run(shared, path, Packing(score=True, seeds=2, epochs=3, quantise=True, cost=True))
    assert packed.shard.normalisation == tiny.experiment(**ZCA).build().world.normalisation
    # a file of the data alone, which knows nothing of whitening
    elsewhere = tmp_path / "elsewhere.toml"
    elsewhere.write_text(tiny.experiment().to_toml())
    found = evaluate_file(path, Trial(experiment=elsewhere, seeds=2))
    assert [each["verdict"] for each in found["networks"]] == ["same"]
    test = tiny.experiment().build().data.test
    for number, (image, label) in enumerate(zip(test.images, test.labels.tolist(), strict=True)):
        (tmp_path / "test" / str(label)).mkdir(parents=True, exist_ok=True)
        Image.fromarray(image[0].numpy()).save(tmp_path / "test" / str(label) / f"{number}.png")
    again = evaluate_file(path, Trial(test=tmp_path / "test", seeds=2))
    assert again["networks"] == found["networks"]


# --- files -------------------------------------------------------------------------------------------------------------

CONVNET = Architecture("convnet", 1, (8, 10), 3, {"depth": 1, "width": 4})


def distilled_file(path: Path, whitening: Whitening | None) -> None:
    images = torch.rand(6, 1, 8, 10, generator=SEED.at("distilled").torch())
    shard = Shard(images, torch.tensor([0, 2, 2, 1, 0, 2]), CLASSES, Normalisation((0.0,), (1.0,), whitening))
    write(
        path,
        Distilled(
            shard=shard,
            makers=(Maker("north", 6),),
            rows=torch.zeros(6, dtype=torch.int64),
            recipe=Recipe(epochs=1, lr=0.1, batch=4),
            provenance=Provenance("0.1.0", "2.9.0", "oneshot", 1, 0, "a" * 64, "b" * 64, "c" * 64),
        ),
    )


def model_file(path: Path, whitening: Whitening | None) -> None:
    save_model(
        path,
        CONVNET.build(SEED).state_dict(),
        architecture=CONVNET,
        classes=CLASSES,
        normalisation=Normalisation((0.0,), (1.0,), whitening),
    )


FILES = [
    pytest.param(distilled_file, lambda path: read(path).shard.normalisation, "fedstill.distilled", 2, id="distilled"),
    pytest.param(model_file, lambda path: load_model(path).normalisation, "fedstill.model", 3, id="model"),
]


@pytest.mark.parametrize(("put", "take", "key", "version"), FILES)
def test_files_hold_it_bit_for_bit(tmp_path: Path, put: Any, take: Any, key: str, version: int) -> None:
    whitening = small()
    put(tmp_path / "f", whitening)
    assert take(tmp_path / "f") == Normalisation((0.0,), (1.0,), whitening)
    assert torch.equal(take(tmp_path / "f").whitening.inverse, whitening.inverse)
    held = load_file(tmp_path / "f")
    assert held["zca_mean"].shape == (80,)
    assert held["zca_matrix"].shape == (80 * 81 // 2,)
    rows, columns = np.tril_indices(80)
    assert torch.equal(held["zca_matrix"], whitening.matrix[rows, columns])
    card = _card(tmp_path / "f", key)
    assert card["version"] == version
    content = (tmp_path / "f").read_bytes()
    put(tmp_path / "f", take(tmp_path / "f").whitening)
    assert (tmp_path / "f").read_bytes() == content


def _card(path: Path, key: str) -> dict[str, Any]:
    with path.open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    card: dict[str, Any] = json.loads(header["__metadata__"][key])
    return card


NAN = torch.full((80,), float("nan"))
LINE = 80 * 81 // 2


@pytest.mark.parametrize(("put", "take", "key", "version"), FILES)
@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"zca_mean": NAN}, "its zca_mean is not finite"),
        (
            {"zca_mean": torch.zeros(79)},
            r"its zca_mean is float32 \[79\], and images of 1 x 8 x 10 take float32 \[80\]",
        ),
        ({"zca_mean": torch.zeros(80).double()}, r"its zca_mean is float64 \[80\]"),
        ({"zca_mean": None}, "it says that ZCA whitens its images, and holds no zca_mean"),
        ({"zca_matrix": None}, "it says that ZCA whitens its images, and holds no zca_matrix"),
        (
            {"zca_matrix": torch.eye(80)},
            r"its zca_matrix is float32 \[80, 80\], and images of .* take float32 \[3240\]",
        ),
        ({"zca_matrix": torch.full((LINE,), float("inf"))}, "its zca_matrix is not finite"),
        ({"zca_matrix": torch.zeros(LINE)}, "its zca_matrix is not positive definite"),
        ({"zca_matrix": torch.ones(LINE)}, "its zca_matrix is not positive definite"),
        ({"zca_matrix": -pack(small())["zca_matrix"]}, "its zca_matrix is not positive definite"),
    ],
)
def test_damaged_whitening_is_refused(
    tmp_path: Path, put: Any, take: Any, key: str, version: int, changes: dict[str, Tensor | None], why: str
) -> None:
    path = tmp_path / "f"
    put(path, small())
    tensors = {name: each for name, each in {**load_file(path), **changes}.items() if each is not None}
    save_file(tensors, path, {key: json.dumps(_card(path, key))})
    with pytest.raises(InputError, match=f"^{path} is damaged: {why}") as caught:
        take(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("put", "take", "key", "version"), FILES)
@pytest.mark.parametrize("epsilon", [0.0, -1.0, "much", float("nan"), None])
def test_a_card_that_says_something_else_is_refused(
    tmp_path: Path, put: Any, take: Any, key: str, version: int, epsilon: Any
) -> None:
    path = tmp_path / "f"
    put(path, small())
    card, tensors = _card(path, key), load_file(path)
    card.get("normalisation", card)["zca_epsilon"] = epsilon
    save_file(tensors, path, {key: json.dumps(card)})
    with pytest.raises(InputError, match=str(path)):
        take(path)


def test_images_too_large_to_be_whitened_are_refused() -> None:
    tensors = dict(zip(TENSORS, (torch.zeros(1), torch.zeros(1)), strict=True))
    with pytest.raises(
        InputError, match=r"^F is damaged: it says that ZCA whitens images of 3 x 65 x 65, and it takes 12,288"
    ):
        unpack(tensors, shape=(3, 65, 65), epsilon=0.1, place="F")


def test_onnx_whitens_too(tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    model_file(tmp_path / "m", small())
    classifier = load_model(tmp_path / "m")
    export_onnx(classifier, tmp_path / "m.onnx")
    given = torch.rand(5, 1, 8, 10, generator=SEED.torch())
    session = onnxruntime.InferenceSession(tmp_path / "m.onnx")
    (found,) = session.run(None, {"pixels": given.numpy()})
    assert np.allclose(found, classifier(given).numpy(), atol=1e-4)
    assert session.get_modelmeta().custom_metadata_map["zca_epsilon"] == "0.1"


# --- without it --------------------------------------------------------------------------------------------------------


def test_without_it_files_are_of_the_versions_of_before(tmp_path: Path) -> None:
    distilled_file(tmp_path / "d", None)
    card = _card(tmp_path / "d", "fedstill.distilled")
    assert card["version"] == 1
    assert card["normalisation"] == {"mean": [0.0], "std": [1.0]}
    model_file(tmp_path / "m", None)
    card = _card(tmp_path / "m", "fedstill.model")
    assert list(card) == ["version", "architecture", "classes", "mean", "std", "fit", "notes"]
    assert card["version"] == 2


def test_without_it_experiments_are_those_of_before() -> None:
    identity = tiny.experiment().build().identity
    assert not [key for key in identity if "zca" in key]
    # of the digits as they were loaded and normalised before there was any whitening
    assert identity["images and labels"] == "5da8ab836249800f7868ac7bfc6afbb7671a1dd8642d3838ba53a52beebe9f73"
    space = Space({"algorithm.lr": Range(0.01, 0.1)})
    search = Search(tiny.table(), tiny.experiment(), space, (0,))
    assert not [key for key in search.identity() if "zca" in key]
    whitened = replace(search, experiment=tiny.experiment(data={"zca": True, "zca_epsilon": 0.2})).identity()
    assert (whitened["data.zca"], whitened["data.zca_epsilon"]) == (True, 0.2)
    assert repr(Normalisation((0.5,), (0.25,))) == "Normalisation(mean=(0.5,), std=(0.25,))"
    assert tiny.experiment(**ZCA).build().identity["images and labels"] != identity["images and labels"]


def test_a_run_of_before_is_of_the_same_settings_on_the_page(tmp_path: Path) -> None:
    text = tiny.experiment().to_toml()
    assert "zca = false" in text
    for name, kept in (
        ("new", text),
        ("old", "\n".join(line for line in text.splitlines() if not line.startswith("zca"))),
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / "experiment.toml").write_text(kept)
    new, old = (read_run(tmp_path / name) for name in ("new", "old"))
    assert repr(new.settings) == repr(old.settings)
