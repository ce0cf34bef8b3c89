"""A run that begins with the network of a model file."""

from __future__ import annotations

import shutil

import pytest
import torch

import tiny
from fedstill import drive, load_model
from fedstill.bundle import Bundle
from fedstill.errors import InputError
from fedstill.models.files import save_model
from fedstill.warm import started_from

ONESHOT = {"name": "oneshot", "ipc": 2, "distill_steps": 0, "global_epochs": 5}


@pytest.fixture(scope="module")
def left(tmp_path_factory):
    """The model file that a OneShot run leaves."""
    out = tmp_path_factory.mktemp("warm") / "oneshot"
    drive(tiny.experiment(ONESHOT, rounds=1), out=out)
    return out / "models" / "global.safetensors"


def test_clients_are_sent_the_networks_weights_first(left):
    state = tiny.experiment(start=str(left)).build().start
    for name, tensor in load_model(left).network.state_dict().items():
        assert torch.equal(state.groups["model"][name], tensor)


def test_only_the_network_that_clients_train_is_the_files(left):
    cold = tiny.experiment(tiny.FEDDGM | {"global_models": [{"name": "convnet", "depth": 3}]}).build().start
    warm = tiny.experiment(tiny.FEDDGM | {"global_models": [{"name": "convnet", "depth": 3}]}, start=str(left)).build()
    assert cold.groups.keys() == warm.start.groups.keys()
    changed = {
        group
        for group in cold.groups
        if any(not torch.equal(tensor, warm.start.groups[group][name]) for name, tensor in cold.groups[group].items())
    }
    assert changed == {"model"}


def test_a_run_is_known_by_the_files_content_and_goes_on_from_any_folder(left, tmp_path, monkeypatch):
    moved = tmp_path / "elsewhere.safetensors"
    shutil.copy(left, moved)
    one, other = (tiny.experiment(start=str(path)).build().identity for path in (left, moved))
    assert one == other
    assert "start" not in tiny.experiment().build().identity  # so that older checkpoints go on
    assert one != tiny.experiment().build().identity

    monkeypatch.chdir(tmp_path)
    drive(tiny.experiment(start=moved.name, rounds=1), out="half")
    drive(tiny.experiment(start=moved.name, rounds=2), out="whole")
    (tmp_path / "below").mkdir()
    monkeypatch.chdir(tmp_path / "below")
    drive(tiny.Experiment.read("../half/experiment.toml", ["rounds=2"]), out=tmp_path / "half", resume=True)
    assert tiny.result(tmp_path / "half") == tiny.result(tmp_path / "whole")


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"model": {"width": 8}}, r"its network is not the one .*model\.width \(there 4, here 8\)"),
        ({"data": {"mean": [0.5], "std": [0.5]}}, r"normalised otherwise: set data\.mean = \["),
        ({"data": {"size": 12}}, r"model\.size \(there \[8, 8\], here \[12, 12\]\)"),
    ],
)
def test_a_file_that_does_not_fit_is_refused(left, changed, sentence):
    with pytest.raises(InputError, match=sentence):
        tiny.experiment(start=str(left), **changed).build()


def test_a_method_that_sends_no_network_refuses_one(left):
    with pytest.raises(InputError, match="sends clients no network"):
        tiny.experiment(ONESHOT, start=str(left)).build()
    with pytest.raises(InputError, match="sends clients no network"):
        started_from(Bundle(), str(left), tiny.experiment().build().world)


def test_other_classes_are_refused(left, tmp_path):
    table = tiny.table(start=str(left))
    found = load_model(left)

    other = tmp_path / "other.safetensors"
    save_model(
        other,
        found.network.state_dict(),
        architecture=found.architecture,
        classes=tuple(reversed(found.classes)),
        normalisation=found.normalisation,
    )
    with pytest.raises(
        InputError, match="other classes than the data have, or in another order: 9, 8, 7, 6, 5 and 5 more"
    ):
        tiny.Experiment.from_table(table | {"start": str(other)}).build()


@pytest.mark.parametrize("content", [None, b"", b"not a model"])
def test_what_is_no_model_file_is_refused(tmp_path, content):
    path = tmp_path / "none.safetensors"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=r"none\.safetensors"):
        tiny.experiment(start=str(path)).build()


def test_whitened_images_go_with_a_network_that_learnt_from_such(tmp_path):
    drive(tiny.experiment(ONESHOT, rounds=1, data={"zca": True}), out=tmp_path)
    path = str(tmp_path / "models" / "global.safetensors")
    assert tiny.experiment(start=path, data={"zca": True}).build().start.groups["model"]
    with pytest.raises(InputError, match=r"they were whitened: set data\.zca = true and data\.zca_epsilon = 0\.1"):
        tiny.experiment(start=path).build()
