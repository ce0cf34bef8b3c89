"""Distilled files: what they say of themselves, what a hostile one cannot do, packing a run, and trying a file elsewhere."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file, save_file

import tiny
from fedstill import distilled as module
from fedstill.bundle import Bundle
from fedstill.cli import invoke
from fedstill.data.augment import Augmentation
from fedstill.data.shard import Normalisation, Shard, quantised
from fedstill.data.testing import fingerprint, match_classes, read_labelled
from fedstill.distilled import FORMAT, Distilled, Maker, Provenance, Quantised, Score, read, write
from fedstill.errors import InputError, RunError
from fedstill.evaluation import Asked, FreshNetworks, evaluate_run
from fedstill.experiment import Experiment
from fedstill.models.architecture import Architecture
from fedstill.models.files import load_model
from fedstill.packing import Packing, pack_run
from fedstill.retrial import Trial, compared, evaluate_file
from fedstill.run import drive
from fedstill.seeds import Seed
from fedstill.train import Recipe

SEED = Seed.root(0)
KEY = "fedstill.distilled"
CLASSES = ("cat", "dog", "Ærø-ferry")
NETWORK = Architecture("convnet", 1, (8, 10), 3, {"depth": 1, "width": 4})
ORIGIN = Provenance("0.1.0", "2.9.0", "feddgm", 3, 0, "a" * 64, "b" * 64, "c" * 64)
RECIPE = Recipe(epochs=3, lr=0.02, batch=16, augmentation=replace(Augmentation.parse("color_flip"), flip=0.25))


def made(*, soft: bool = False, levels: bool = False, **changes: Any) -> Distilled:
    """Six images of two clients."""
    draw = SEED.at("images").torch()
    images = 1.4 * torch.rand(6, 1, 8, 10, generator=draw) - 0.2
    labels = torch.tensor([0, 2, 2, 1, 0, 2])
    shard = Shard(
        (images.clamp(0, 1) * 255).to(torch.uint8) if levels else images,
        torch.rand(6, 3, generator=draw).softmax(1) if soft else labels,
        CLASSES,
        Normalisation((0.4,), (0.25,)),
    )
    fields: dict[str, Any] = {
        "shard": shard,
        "makers": (Maker("north", 4, 0.0123), Maker("south", 2)),
        "rows": torch.tensor([0, 0, 0, 0, 1, 1]),
        "fit": "crop",
        "recipe": RECIPE,
        "threads": 2,
        "provenance": ORIGIN,
        "quantised": Quantised(7, images.numel()) if levels else None,
        "scores": (Score("small", NETWORK, (0.5, 0.625), "d" * 64, 8, (0.5, 0.75) if levels else ()),),
    }
    return Distilled(**(fields | changes))


def card_of(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    card: dict[str, Any] = json.loads(header["__metadata__"][KEY])
    return card


def rewrite(
    path: Path, *, tensors: dict[str, Any] | None = None, without: tuple[str, ...] = (), **changes: Any
) -> None:
    """A file as a damaged or a hostile writer would make it."""
    write(path, made())
    card = card_of(path) | changes
    for key in without:
        del card[key]
    save_file({**load_file(path), **(tensors or {})}, path, {KEY: json.dumps(card)})


def refusal(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """The one sentence with which a command refuses."""
    assert invoke([str(argument) for argument in arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    return captured.err


# --- the file --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("levels", [False, True])
def test_what_is_written_comes_back_bit_for_bit(tmp_path, soft, levels):
    path, wanted = tmp_path / "deep" / "d.safetensors", made(soft=soft, levels=levels)
    write(path, wanted)
    found = read(path)
    for name in ("images", "labels"):
        one, other = getattr(found.shard, name), getattr(wanted.shard, name)
        assert one.dtype == other.dtype
        assert torch.equal(one, other)
    assert torch.equal(found.rows, wanted.rows)
    for name in ("makers", "fit", "recipe", "threads", "provenance", "quantised", "scores"):
        assert getattr(found, name) == getattr(wanted, name)
    assert (found.shard.classes, found.shard.normalisation) == (CLASSES, wanted.shard.normalisation)
    assert card_of(path)["histogram"] == wanted.shard.histogram()
    content = path.read_bytes()
    write(path, found)
    assert path.read_bytes() == content
    assert [each.name for each in path.parent.iterdir()] == ["d.safetensors"]


GOOD = made().shard
MAKERS = [{"name": "north", "images": 4, "rate": None}, {"name": "south", "images": 2, "rate": None}]
LESSON = {"epochs": 1, "lr": 0.1, "batch": 4}
SCORE = {
    "name": "s",
    "architecture": NETWORK.to_json(),
    "accuracies": [0.5],
    "test": "d" * 64,
    "images": 8,
    "floats": [],
}


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"version": FORMAT + 1, "novel": 1}, "was written by a newer fedstill"),
        ({"version": "one"}, "is damaged: version: "),
        ({"without": ("recipe",)}, "is damaged: recipe: "),
        ({"novel": 1}, "is damaged: novel: "),
        (
            {"tensors": {"images": GOOD.images.double()}},
            r"its images are float64 \[6, 1, 8, 10\] where uint8 or float32",
        ),
        ({"tensors": {"images": GOOD.images[0]}}, r"its images are float32 \[1, 8, 10\]"),
        ({"tensors": {"images": GOOD.images[:0]}}, r"its images are float32 \[0, 1, 8, 10\]"),
        ({"tensors": {"images": GOOD.images / 0}}, "its images are not finite"),
        ({"tensors": {"images": GOOD.images[:5]}}, r"its labels are int64 \[6\] for 5 images"),
        ({"tensors": {"labels": GOOD.labels.int()}}, r"its labels are int32 \[6\]"),
        ({"tensors": {"labels": GOOD.labels + 1}}, "its labels are not all of 0 to 2"),
        ({"tensors": {"labels": GOOD.labels - 1}}, "its labels are not all of 0 to 2"),
        (
            {"tensors": {"labels": torch.full((6, 4), 0.25)}},
            r"its labels are float32 \[6, 4\] for 6 images of 3 classes",
        ),
        ({"tensors": {"labels": torch.full((6, 3), 0.5)}}, "its soft labels are no distributions"),
        ({"tensors": {"labels": torch.full((6, 3), float("nan"))}}, "its soft labels are no distributions"),
        ({"tensors": {"makers": torch.full((6,), 2)}}, "its makers are not all of 0 to 1"),
        ({"tensors": {"makers": torch.zeros(6)}}, r"its makers are float32 \[6\]"),
        ({"tensors": {"more": torch.zeros(1)}}, "it holds images, labels, makers, more where"),
        ({"histogram": [2, 1, 4]}, r"its histogram says \[2, 1, 4\] images a class, and it holds \[2, 1, 3\]"),
        ({"makers": [{**MAKERS[0], "images": 5}, MAKERS[1]]}, "'north' made 5 images, and it holds 4"),
        ({"makers": [MAKERS[0], {**MAKERS[1], "name": "north"}]}, "two of its maker names are the same"),
        ({"makers": [{**MAKERS[0], "name": "\x1b[2J"}, MAKERS[1]]}, r"a maker is called '\\x1b"),
        ({"makers": [{**MAKERS[0], "rate": -1.0}, MAKERS[1]]}, "makers.0.rate"),
        ({"classes": ["a", "b"]}, "its labels are not all of 0 to 1"),
        ({"classes": ["a", "b", "b"]}, "two of its class names are the same"),
        ({"classes": []}, "it names no class"),
        ({"normalisation": {"mean": [0.1, 0.1], "std": [1.0, 1.0]}}, "its normalisation is of 2 and 2 channels"),
        ({"normalisation": {"mean": [0.1], "std": [0.0]}}, "a deviation that is not above 0"),
        ({"normalisation": {"mean": [float("nan")], "std": [1.0]}}, "normalisation.mean.0: "),
        ({"recipe": LESSON | {"epochs": 10**9}}, "recipe.epochs = 1000000000 lies outside 1 to 1e"),
        ({"recipe": LESSON | {"epochs": 10**400}}, "recipe.epochs = 1000"),
        ({"recipe": LESSON | {"lr": 0.0}}, "recipe.lr = 0.0 lies outside"),
        ({"recipe": LESSON | {"secret": 1}}, "recipe.secret: "),
        (
            {"recipe": LESSON | {"augmentation": {"operations": ["flip", "flip"]}}},
            "recipe.augmentation.operations are not",
        ),
        ({"recipe": LESSON | {"augmentation": {"operations": ["smear"]}}}, "recipe.augmentation.operations are not"),
        ({"recipe": LESSON | {"augmentation": {"scale": 0.0}}}, "recipe.augmentation.scale = 0.0 lies outside"),
        ({"provenance": {**vars(ORIGIN), "data": "somewhere"}}, "provenance.data: "),
        ({"provenance": {**vars(ORIGIN), "method": "a\nb"}}, "its provenance names method"),
        ({"quantised": {"clipped": 0, "values": 480}}, "what it says of its quantisation"),
        ({"scores": [SCORE | {"accuracies": [1.5]}]}, "scores.0.accuracies.0: "),
        ({"scores": [SCORE | {"architecture": {"name": "convnet"}}]}, "not an architecture"),
        (
            {"scores": [SCORE | {"architecture": NETWORK.to_json() | {"classes": 9}}]},
            "'s' is no network for these images",
        ),
        ({"scores": [SCORE | {"floats": [0.5, 0.5]}]}, "2 accuracies with floats for 1 without"),
        ({"threads": 10**6}, "threads: "),
    ],
)
def test_a_file_that_does_not_add_up_is_refused(tmp_path, changes, why):
    path = tmp_path / "d.safetensors"
    rewrite(path, **changes)
    with pytest.raises(InputError, match=why) as caught:
        read(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_is_no_distilled_file_is_refused(tmp_path):
    path = tmp_path / "d.safetensors"
    for content in (b"", b"\x80\x04K\x01.", b"\xff" * 64, b"\x08\0\0\0\0\0\0\0notjson!"):
        path.write_bytes(content)
        with pytest.raises(InputError, match="cannot be read as safetensors"):
            read(path)
    for metadata in (None, {"format": "pt"}, {"fedstill.model": "{}"}):
        save_file({"images": torch.zeros(2)}, path, metadata)
        with pytest.raises(InputError, match="is not a distilled file: give one that 'fedstill pack' wrote"):
            read(path)
    save_file({"images": torch.zeros(2)}, path, {KEY: "[" * 100_000})
    with pytest.raises(InputError, match="is damaged: its description: "):
        read(path)
    for absent in (tmp_path / "absent", tmp_path):
        with pytest.raises(InputError, match=f"^cannot read {absent}: "):
            read(absent)
    write(path, made())
    with pytest.raises(InputError, match="was not written by fedstill as a model"):
        load_model(path)


def test_a_header_that_claims_too_much_is_not_parsed(tmp_path):
    path = tmp_path / "d.safetensors"
    path.write_bytes((50 * 2**20).to_bytes(8, "little") + b" " * 64)
    with pytest.raises(InputError, match="its header claims 52,428,800 bytes"):
        read(path)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    path = tmp_path_factory.mktemp("whole") / "d.safetensors"
    write(path, made())
    return path


def test_a_cut_file_is_refused(whole, tmp_path):
    content = whole.read_bytes()
    for length in (4, 100, len(content) // 2, len(content) - 1):
        (tmp_path / "cut").write_bytes(content[:length])
        with pytest.raises(InputError):
            read(tmp_path / "cut")


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_whatever_is_changed_is_refused_in_a_sentence_or_adds_up(whole, tmp_path, data):
    content = bytearray(whole.read_bytes())
    header = int.from_bytes(content[:8], "little") + 8
    for _ in range(data.draw(st.integers(1, 3))):
        # half of the changes in the header, which is what decides
        end = data.draw(st.sampled_from([header, len(content)]))
        place = data.draw(st.integers(0, end - 1))
        match data.draw(st.sampled_from(["set", "cut", "insert", "delete"])):
            case "set":
                content[place] = data.draw(st.sampled_from(b'0123456789"[]{},:e-.\x00\xff') | st.integers(0, 255))
            case "cut":
                del content[max(place, 1) :]
                break
            case "insert":
                content[place:place] = data.draw(st.binary(min_size=1, max_size=3))
            case "delete":
                del content[place]
    path = tmp_path / "mutant"
    path.write_bytes(bytes(content))
    said = ""
    try:
        write(tmp_path / "again", read(path))
    except InputError as error:
        said = str(error)
    assert "\n" not in said
    assert not said.startswith("cannot write")


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"makers": (Maker("north", 6),)}, "its makers are not all of 0 to 0"),
        ({"makers": (Maker("north", 4, float("nan")), Maker("south", 2))}, "makers.0.rate: "),
        ({"recipe": replace(RECIPE, lr=float("inf"))}, "recipe.lr: "),
        ({"shard": replace(GOOD, images=GOOD.images.double())}, "its images are float64"),
        ({"shard": replace(GOOD, labels=torch.rand(6, 3))}, "its soft labels are no distributions"),
        ({"shard": replace(GOOD, classes=("a", "b", "c\n"))}, "a class is called"),
    ],
)
def test_what_no_reader_would_take_is_not_written(tmp_path, changes, why):
    path = tmp_path / "d.safetensors"
    with pytest.raises(InputError, match=f"^cannot write {path}: it would be refused, for it is damaged: .*{why}"):
        write(path, made(**changes))
    assert not path.exists()


def test_a_disk_that_refuses_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "d.safetensors"
    write(path, made())
    content = path.read_bytes()

    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(RunError, match=r"cannot write .*No space left"):
        write(path, made(soft=True))
    assert path.read_bytes() == content
    assert [each.name for each in tmp_path.iterdir()] == ["d.safetensors"]


@pytest.mark.slow
def test_a_kill_while_writing_leaves_the_old_file(tmp_path):
    path = tmp_path / "d.safetensors"
    write(path, made())
    content = path.read_bytes()
    code = (
        "import os, signal\nfrom pathlib import Path\nfrom fedstill import distilled\n"
        "Path.replace = lambda *arguments: os.kill(os.getpid(), signal.SIGKILL)\n"
        f"distilled.write({str(path)!r}, distilled.read({str(path)!r}))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], timeout=60, check=False, env=os.environ)
    assert done.returncode == -signal.SIGKILL
    assert path.read_bytes() == content
    read(path)


# --- packing ---------------------------------------------------------------------------------------------------------


NETWORKS = [{"name": "convnet", "depth": 1, "width": 4}]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    out = tmp_path_factory.mktemp("finished") / "run"
    drive(tiny.experiment({**tiny.FEDDGM, "global_models": NETWORKS}, rounds=2, output={"keep_synthetic": 2}), out=out)
    return out


@pytest.fixture(scope="module")
def packed(finished, tmp_path_factory):
    """A file with scores of two networks, two seeds each."""
    path = tmp_path_factory.mktemp("packed") / "tiny.safetensors"
    pack_run(finished, path, Packing(score=True, seeds=2, epochs=3))
    return path


def test_a_run_is_packed(finished, packed):
    found, sets = read(packed), Bundle.open(finished / "synthetic" / "round-0002.safetensors").members("synthetic")
    sets = dict(sorted(sets.items()))
    assert torch.equal(found.shard.images, torch.cat([group["images"] for group in sets.values()]))
    assert [maker.name for maker in found.makers] == list(sets) == ["c00", "c01", "c02"]
    assert found.rows.tolist() == [0] * 10 + [1] * 10 + [2] * 10
    assert found.shard.classes == tuple("0123456789")
    assert (found.recipe.epochs, found.recipe.lr, found.recipe.momentum) == (3, 0.01, 0.9)
    parts = Experiment.read(finished / "experiment.toml").build()
    origin = found.provenance
    assert (origin.method, origin.round, origin.seed) == ("feddgm", 2, 0)
    assert (origin.data, origin.partition) == (parts.identity["images and labels"], parts.partition.hash)
    assert found.shard.normalisation == parts.world.normalisation
    assert [score.images for score in found.scores] == [50, 50]
    assert found.scores[0].test == fingerprint(parts.data.test)
    # nothing of this machine, and the same bytes again
    assert str(finished.parent).encode() not in packed.read_bytes()
    again = packed.with_name("again.safetensors")
    pack_run(finished, again, Packing(epochs=3))
    write(again, replace(read(again), scores=found.scores))
    assert again.read_bytes() == packed.read_bytes()


def test_its_scores_are_those_of_the_runs_fresh_networks(finished, packed, tmp_path):
    run = Path(shutil.copytree(finished, tmp_path / "run"))
    fresh = evaluate_run(run, Asked(fresh=FreshNetworks(seeds=2, epochs=3)))["fresh"]["results"]
    assert [each["accuracy"] for each in fresh] == [
        value for score in read(packed).scores for value in score.accuracies
    ]


def test_rounding_is_counted_and_its_cost_is_kept(finished, tmp_path, capsys):
    path = tmp_path / "small.safetensors"
    models = ["--model", "convnet:depth=1,width=4", "--seeds", "2", "--epochs", "2"]
    assert invoke(["pack", str(finished), "-o", str(path), "--quantise", "--cost", *models]) == 0
    said, found = capsys.readouterr().out, read(path)
    sets = Bundle.open(finished / "synthetic" / "round-0002.safetensors").members("synthetic")
    floats = torch.cat([group["images"] for _, group in sorted(sets.items())])
    assert found.shard.images.dtype == torch.uint8
    inside = (floats >= 0) & (floats <= 1)
    assert ((found.shard.images.float() / 255 - floats).abs()[inside]).max() <= 0.5 / 255 + 1e-6
    assert found.quantised is not None
    assert 0 < found.quantised.clipped <= int((~inside).sum())
    assert found.quantised.values == floats.numel()
    assert f"{found.quantised.clipped:,} of {floats.numel():,} values" in said
    assert "unrounded" in said
    (score,) = found.scores
    assert len(score.accuracies) == len(score.floats) == 2
    pack_run(finished, path, Packing(score=True, models=("convnet:depth=1,width=4",), seeds=2, epochs=2))
    assert read(path).scores[0].accuracies == score.floats


def test_pixels_beyond_the_range_are_clipped_and_those_that_only_round_are_not():
    images = torch.tensor([-0.01, -0.001, 0.0, 0.5, 1.0, 1.001, 1.01]).view(1, 1, 1, 7)
    levels, clipped = quantised(images)
    assert levels.flatten().tolist() == [0, 0, 0, 128, 255, 255, 255]
    assert clipped == 2


def test_clients_may_stay_unnamed_and_a_learnt_step_size_travels(finished, tmp_path):
    run = Path(shutil.copytree(finished, tmp_path / "run"))
    file = run / "synthetic" / "round-0002.safetensors"
    bundle = Bundle.open(file)
    group = {**bundle.groups["synthetic:c01"], "rate": torch.tensor(0.03125)}
    bundle.put(**{"synthetic:c01": group}).save(file)
    found = pack_run(run, tmp_path / "d.safetensors", Packing(anonymous=True))
    assert found.makers == (Maker("1", 10), Maker("2", 10, 0.03125), Maker("3", 10))
    assert b"c01" not in (tmp_path / "d.safetensors").read_bytes()
    bundle.put(**{"synthetic:c01": {**group, "rate": torch.tensor(-1.0)}}).save(file)
    with pytest.raises(InputError, match="the set of 'c01' has a student's step size that is not one number above 0"):
        pack_run(run, tmp_path / "d.safetensors", Packing())


def test_packing_says_what_it_wrote(finished, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert invoke(["pack", str(finished), "--round", "1"]) == 0
    assert (
        "tiny-round-0001.safetensors: 30 images of 1 x 8 x 8, float32, by 3 clients, 10 classes"
        in capsys.readouterr().out
    )
    assert invoke(["pack", str(finished), "-o", "a.safetensors", "--json", "--quantise"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["images"], found["dtype"], found["scores"]) == ([30, 1, 8, 8], "uint8", [])
    assert found["bytes"] == Path("a.safetensors").stat().st_size
    assert invoke(["pack", str(finished), "--quiet", "-o", "b.safetensors"]) == 0
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["--round", 7], "keeps the synthetic sets of rounds 1, 2"),
        (["--cost"], "--cost is what rounding costs: give --quantise too"),
        (["--model", "resnet18"], "--model is of networks to score: give --score too"),
        (["--score", "--model", "convnt"], "did you mean 'convnet'?"),
        (["--lr", "nan"], "--lr nan: it lies above 0"),
    ],
)
def test_what_cannot_be_packed_is_refused(finished, tmp_path, capsys, arguments, why):
    assert why in refusal(capsys, "pack", finished, "-o", tmp_path / "x.safetensors", *arguments)
    assert not list(tmp_path.iterdir())


def test_a_file_of_another_kind_is_not_replaced(finished, tmp_path, capsys):
    model = Path(shutil.copy(finished / "models" / "surrogate.safetensors", tmp_path))
    content = model.read_bytes()
    assert "is no distilled file, so it is not replaced" in refusal(capsys, "pack", finished, "-o", model)
    assert model.read_bytes() == content
    assert "is no run: there is no experiment.toml" in refusal(capsys, "pack", tmp_path, "-o", tmp_path / "x")


# --- elsewhere -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def elsewhere(finished, tmp_path_factory):
    """The run's test images, as a stranger has them: PNG files in folders, and Parquet with other numbers for the classes."""
    place = tmp_path_factory.mktemp("elsewhere")
    test = Experiment.read(finished / "experiment.toml").build().data.test
    names = tuple(reversed(test.classes))
    rows = []
    for row, (image, label) in enumerate(zip(test.images, test.labels.tolist(), strict=True)):
        file = place / "folder" / test.classes[label] / f"{row}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image[0].numpy()).save(file)
        rows.append({"image": {"bytes": file.read_bytes(), "path": None}, "label": names.index(test.classes[label])})
    schema = pa.schema(
        [("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])), ("label", pa.int64())],
        metadata={"huggingface": json.dumps({"info": {"features": {"label": {"names": names}}}})},
    )
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), place / "test.parquet")
    np.savez(place / "test.npz", images=test.images[:, 0].numpy(), labels=test.labels.numpy())
    (place / "experiment.toml").write_text(tiny.experiment(seed=0).to_toml())
    return place


@pytest.mark.parametrize(
    "trial",
    [{"test": "folder"}, {"test": "test.parquet"}, {"test": "test.npz"}, {"experiment": "experiment.toml"}],
    ids=lambda trial: next(iter(trial.values())),
)
def test_a_file_gives_its_recorded_scores_wherever_the_test_images_lie(packed, elsewhere, trial):
    (key, name), wanted = *trial.items(), read(packed)
    found = evaluate_file(packed, Trial(seeds=2, **{key: elsewhere / name}))
    assert found["test"] == {"images": 50, "sha256": wanted.scores[0].test}
    assert [each["verdict"] for each in found["networks"]] == ["same", "same"]
    accuracies = [each["accuracy"] for each in found["results"]]
    assert accuracies == [value for score in wanted.scores for value in score.accuracies]
    assert found["file"]["method"] == "feddgm"


def test_the_command_prints_the_matrix_and_what_it_agrees_with(packed, elsewhere, capsys):
    given = ["--model", "convnet:depth=1,width=4", "--model", "convnet:depth=3,width=2", "--seeds", 2]
    assert invoke(["evaluate", str(packed), "--test", str(elsewhere / "folder"), *map(str, given)]) == 0
    captured = capsys.readouterr()
    assert "fresh networks on the 30 images of" in captured.out
    assert "(feddgm, round 2), 3 epochs; 50 test images" in captured.out
    assert "convnet:depth=1,width=4: equal to the recorded" in captured.out
    assert "convnet:depth=3,width=2: the file has no score of this network" in captured.out
    assert captured.err == ""
    assert (
        invoke(
            ["evaluate", str(packed), "--test", str(elsewhere / "folder"), *map(str, given), "--epochs", "1", "--json"]
        )
        == 0
    )
    found = json.loads(capsys.readouterr().out)
    assert found["recipe"]["epochs"] == 1
    assert [each["verdict"] for each in found["networks"]] == [None, None]
    assert "by the file's own recipe" in found["networks"][0]["words"]


def test_when_scores_agree():
    recorded = Score("s", NETWORK, (0.5, 0.52, 0.54), "d" * 64, 8)

    def verdict(*accuracies, test="d" * 64, score=recorded, same_recipe=True):
        return compared(accuracies, score, test=test, same_recipe=same_recipe)

    assert verdict(0.5, 0.52, 0.54) == ("same", "equal to the recorded 52.0 ± 2.0 % of 3 networks, seed by seed")
    assert verdict(0.5)[0] == "same"
    assert verdict(0.53, 0.54, 0.55) == (
        "agrees",
        "agrees with the recorded 52.0 ± 2.0 % of 3 networks: 2.0 points apart, within its deviation",
    )
    assert verdict(0.6, 0.6, 0.6)[0] == "differs"
    assert verdict(0.9, test="e" * 64)[0] is None
    assert verdict(0.9, same_recipe=False)[0] is None
    assert verdict(0.9, score=None) == (None, "the file has no score of this network")
    single = replace(recorded, accuracies=(0.5,))
    assert verdict(0.51, score=single)[0] is None
    assert verdict(0.49, 0.53, score=single)[0] == "agrees"


def test_pictures_are_brought_to_the_files_form(tmp_path):
    """Size, channels and fit are the file's: what ``data.size`` and ``data.channels`` make of larger colour pictures."""
    draw = np.random.default_rng(0)
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        Image.fromarray(draw.integers(0, 256, (24, 30, 3), np.uint8)).save(tmp_path / name / "a.png")
    found = read_labelled(tmp_path, GOOD, fit="crop", what="d")
    assert found.images.shape == (2, 1, 8, 10)
    assert found.images.dtype == torch.uint8
    colour = replace(
        GOOD, images=GOOD.images.expand(-1, 3, -1, -1), normalisation=Normalisation((0.4,) * 3, (0.2,) * 3)
    )
    assert read_labelled(tmp_path, colour, fit="stretch", what="d").images.shape == (2, 3, 8, 10)
    odd = replace(GOOD, images=GOOD.images.expand(-1, 2, -1, -1))
    with pytest.raises(InputError, match="d has images of 2 channels: test images have 1 or 3"):
        read_labelled(tmp_path, odd, fit="crop", what="d")


def test_classes_are_matched_by_name():
    shard = Shard(
        torch.zeros(3, 1, 2, 2, dtype=torch.uint8), torch.tensor([2, 0, 2]), ("b", "z", "a"), GOOD.normalisation
    )
    found = match_classes(shard, ("a", "b", "c"), where="here")
    assert (found.labels.tolist(), found.classes) == ([0, 1, 0], ("a", "b", "c"))
    assert fingerprint(found) == fingerprint(shard) == fingerprint(shard.take([2, 0, 1]))
    assert fingerprint(shard) != fingerprint(replace(shard, labels=torch.tensor([2, 0, 0])))
    with pytest.raises(
        InputError, match="here has images of the class 'a', and the classes that were learnt are b, c: "
    ):
        match_classes(shard, ("b", "c"), where="here")


def test_what_cannot_be_tried_is_refused(packed, finished, elsewhere, tmp_path, capsys):
    folder, unscored = elsewhere / "folder", tmp_path / "u.safetensors"
    write(unscored, replace(read(packed), scores=()))
    strange = shutil.copytree(folder, tmp_path / "strange")
    (strange / "7").rename(strange / "seven")
    (tmp_path / "x.txt").touch()
    (tmp_path / "empty").mkdir()
    for arguments, why in [
        ([packed], "holds no test images: give them with --test PATH or by --experiment FILE"),
        ([packed, "--test", folder, "--experiment", "x.toml"], "one of the two"),
        ([packed, "--test", tmp_path / "nowhere"], "there is no such file or folder"),
        ([packed, "--test", tmp_path / "x.txt"], "is neither Parquet nor .npz nor a folder"),
        ([packed, "--test", tmp_path / "empty"], "holds no class folder with an image in it"),
        ([packed, "--test", strange], "has images of the class 'seven'"),
        ([packed, "--test", folder, "--model", "convnt"], "did you mean 'convnet'?"),
        ([packed, "--test", folder, "--mmd"], "is a file: --mmd"),
        ([packed, "--test", folder, "--lr", "0"], "--lr 0.0: it lies above 0"),
        ([unscored, "--test", folder], "has no scores that name networks: say which to train"),
        ([finished / "models" / "surrogate.safetensors", "--test", folder], "is not a distilled file"),
        ([finished, "--fresh", "--test", folder], "--test and --experiment are of a distilled file"),
        ([tmp_path / "gone.safetensors", "--mmd"], "is no run: there is no experiment.toml"),
    ]:
        assert why in refusal(capsys, "evaluate", *arguments)


def test_a_file_runs_no_code_unless_allowed(packed, elsewhere, capsys):
    found = read(packed)
    foreign = replace(found.scores[0].architecture, name="code_that_is_nowhere:factory", options={})
    path = packed.with_name("trap.safetensors")
    write(path, replace(found, scores=(replace(found.scores[0], architecture=foreign),)))
    said = refusal(capsys, "evaluate", path, "--test", elsewhere / "folder")
    assert "give --allow-import if you trust the file" in said
    assert "cannot import it" in refusal(capsys, "evaluate", path, "--test", elsewhere / "folder", "--allow-import")


def test_a_runs_folder_is_evaluated_as_before_and_as_json(finished, tmp_path, capsys):
    run = Path(shutil.copytree(finished, tmp_path / "run"))
    arguments = ["--fresh", "--seeds", "1", "--epochs", "1", "--json"]
    assert invoke(["evaluate", str(run), *arguments]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["fresh"] == json.loads((run / "evaluation.json").read_text())["fresh"]


def test_the_format_is_told_from_its_start(packed, finished):
    assert module.is_distilled(packed)
    assert not module.is_distilled(finished / "models" / "surrogate.safetensors")
    assert not module.is_distilled(finished)


def test_what_a_run_made_bytes_has_no_floats_to_compare_with(tmp_path):
    method = {"name": "oneshot", "ipc": 1, "distill_steps": 0, "global_epochs": 2, "quantise": True}
    drive(tiny.experiment(method, rounds=1), out=tmp_path / "run")
    with pytest.raises(InputError, match="keeps bytes already"):
        pack_run(tmp_path / "run", tmp_path / "x.safetensors", Packing(quantise=True, cost=True, score=True))
    assert not (tmp_path / "x.safetensors").exists()


def test_a_network_that_no_memory_holds_is_refused_before_it_is_built(packed, elsewhere, capsys):
    found = read(packed)
    huge = replace(found.scores[0].architecture, name="resnet18", options={"width": 4096, "norm": "group"})
    path = packed.with_name("huge.safetensors")
    write(path, replace(found, scores=(replace(found.scores[0], architecture=huge),)))
    said = refusal(capsys, "evaluate", path, "--test", elsewhere / "folder")
    assert re.search(r"'resnet18': its weights take \d+\.\d GB, and \d+\.\d GB of memory are free", said)
