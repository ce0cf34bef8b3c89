"""Poisoned clients of a study: what they train on, and how success is measured."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import tiny
from fedstill.data.poison import PATCH, PoisonSettings, plan_attack, poison
from fedstill.data.shard import Normalisation, Shard
from fedstill.deployment.federation import Federation, restored
from fedstill.errors import InputError
from fedstill.experiment import Experiment, starter
from fedstill.run import drive
from fedstill.seeds import Seed

CLASSES = ("a", "b", "c", "d")
CLIENTS = ("c00", "c01", "c02")
HELD = {"c00": range(20), "c01": range(20, 40), "c02": range(40, 60)}
SEED = Seed.root(0)


def shard(images: int = 60, *, side: int = 8) -> Shard:
    pixels = torch.randint(0, 200, (images, 1, side, side), generator=SEED.torch(), dtype=torch.uint8)
    return Shard(pixels, torch.arange(images) % len(CLASSES), CLASSES, Normalisation((0.5,), (0.5,)))


def carried_out(test: Shard | None = None, **settings: Any) -> Any:
    attack = plan_attack(PoisonSettings(**settings), shard(), CLIENTS)
    return poison(attack, shard(), HELD, shard(12) if test is None else test, SEED)


@given(shift=st.integers(1, 9).filter(lambda shift: shift % 4), clients=st.integers(0, 3))
def test_a_shift_changes_every_label_of_hostile_clients_and_nothing_else(shift: int, clients: int) -> None:
    done, clean = carried_out(shift=shift, clients=clients), shard()
    assert done.clients == CLIENTS[3 - clients :]
    assert torch.equal(done.train.images, clean.images)
    for client, rows in HELD.items():
        moved = shift if client in done.clients else 0
        assert torch.equal(done.train.labels[list(rows)], (clean.labels[list(rows)] + moved) % 4)


def test_a_named_source_alone_becomes_the_target() -> None:
    done, clean = carried_out(source="b", target="d", clients=("c01",)), shard()
    changed = done.train.labels != clean.labels
    assert torch.equal(changed, (clean.labels == 1) & (torch.arange(60) // 20 == 1))
    assert set(done.train.labels[changed].tolist()) == {3}
    assert set(done.probe.labels.tolist()) == {3}
    assert len(done.probe) == 3
    assert torch.equal(done.probe.images, shard(12).images[1::4])


@given(share=st.floats(0.01, 1), patch=st.integers(1, 8), corner=st.sampled_from(["top-left", "bottom-right"]))
def test_a_backdoor_stamps_its_share_and_labels_it_as_the_target(share: float, patch: int, corner: Any) -> None:
    done = carried_out(kind="backdoor", target=2, share=share, patch=patch, corner=corner)
    clean, box = shard(), slice(None, patch) if corner == "top-left" else slice(-patch, None)
    bright = (done.train.images[:, :, box, box] == 255).flatten(1).all(1)
    assert bright.sum() == max(1, round(share * 20))
    assert bright[:40].sum() == 0
    assert set(done.train.labels[bright].tolist()) == {2}
    assert torch.equal(done.train.labels[~bright], clean.labels[~bright])
    assert torch.equal(done.train.images[~bright], clean.images[~bright])
    rest = done.train.images.clone()
    rest[:, :, box, box] = clean.images[:, :, box, box]
    assert torch.equal(rest, clean.images)  # nothing but the square


def test_success_is_measured_on_stamped_images_of_other_classes() -> None:
    done = carried_out(kind="backdoor", target="a", patch=2)
    assert len(done.probe) == 9
    assert set(done.probe.labels.tolist()) == {0}
    assert (done.probe.images[:, :, -2:, -2:] == 255).all()
    assert torch.equal(done.probe.images[:, :, :6], shard(12).take([r for r in range(12) if r % 4]).images[:, :, :6])


def test_images_in_units_of_the_range_are_stamped_with_one() -> None:
    test = shard(4)
    done = carried_out(replace(test, images=test.images.float() / 255), kind="backdoor", patch=1)
    assert (done.probe.images[:, :, -1, -1] == 1).all()


def test_the_square_is_three_pixels_of_mnist_and_one_at_least() -> None:
    sides = {side: plan_attack(PoisonSettings(kind="backdoor"), shard(4, side=side), CLIENTS) for side in (4, 16, 28)}
    assert {side: -attack.rows.start for side, attack in sides.items()} == {4: 1, 16: 2, 28: 3}
    assert pytest.approx(3) == PATCH * 28


def test_who_is_stamped_depends_on_nobody_else() -> None:
    alone, both = (carried_out(kind="backdoor", clients=names) for names in (("c01",), ("c00", "c01")))
    assert torch.equal(alone.train.images[20:40], both.train.images[20:40])


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"clients": 4}, "poison.clients = 4: there are 3 clients"),
        ({"clients": ("c1",)}, "poison.clients = 'c1': did you mean 'c0"),
        ({"shift": 8}, "poison.shift = 8: of 4 classes it changes no label"),
        ({"source": "x"}, "poison.source = 'x': known: a, b, c, d"),
        ({"source": 4}, "poison.source = 4: classes are numbered from 0 to 3"),
        ({"source": "a", "target": 0}, "poison.source = 'a': it is poison.target too"),
        ({"kind": "backdoor", "source": 1}, "poison.source = 1: a backdoor is for images of all classes"),
        ({"kind": "backdoor", "patch": 9}, "poison.patch = 9: images have 8 x 8 pixels"),
    ],
)
def test_what_cannot_be_is_refused(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said.replace("(", r"\(")):
        plan_attack(PoisonSettings(**settings), shard(), CLIENTS)


def test_the_table_is_read_written_and_overridden(tmp_path: Path) -> None:
    found = tiny.experiment(poison={"kind": "backdoor", "clients": ["c01"], "target": 3})
    assert found.poison == PoisonSettings(kind="backdoor", clients=("c01",), target=3)
    path = tmp_path / "experiment.toml"
    path.write_text(found.to_toml())
    assert Experiment.read(path) == found
    assert Experiment.read(path, ["poison.kind=labels", "poison.clients=2"]).poison == PoisonSettings(
        clients=2, target=3
    )
    with pytest.raises(InputError, match=r"poison\.knid: no such key: did you mean 'kind'"):
        tiny.experiment(poison={"knid": "labels"})
    with pytest.raises(InputError, match=r"poison\.share = 0: must be above 0"):
        tiny.experiment(poison={"share": 0})


def test_without_the_table_an_experiment_is_what_it_was() -> None:
    assert not any(key.startswith("poison") for key in starter("fedavg").settings())
    assert "[poison]" not in starter("fedavg").to_toml()
    with_it = tiny.experiment(poison={"clients": 0}).settings()
    assert {key for key in with_it if key.startswith("poison.")} >= {"poison.kind", "poison.clients"}


def test_a_deployment_refuses_it_and_so_does_a_site() -> None:
    hostile = tiny.experiment(data={"classes": list("0123456789")}, poison={})
    with pytest.raises(InputError, match=r"^poison: hostile clients are for studies"):
        Federation.of(hostile)
    with pytest.raises(InputError, match=r"'poison\.kind' is no setting that concerns a site"):
        restored({"poison.kind": "labels"}, {})


@pytest.mark.parametrize("method", ["fedavg", "centralised"])
def test_a_run_says_how_far_the_attack_got(tmp_path: Path, method: str) -> None:
    attacked = tiny.experiment({**tiny.FEDAVG, "name": method}, rounds=1, poison={"source": 1, "target": 7})
    drive(attacked, out=tmp_path / "run")
    (row,) = tiny.rows(tmp_path / "run")
    held = row["confusion"]["global"][1]
    assert row["attack"] == {
        "clients": ["c02"],
        "success": {"global": held[7] / sum(held)},
        "examples": sum(held),
    }


def test_clients_0_measures_and_changes_nothing(tmp_path: Path) -> None:
    for name, settings in (("without", {}), ("nobody", {"poison": {"clients": 0}})):
        drive(tiny.experiment(rounds=1, **settings), out=tmp_path / name)
    without, nobody = (tiny.result(tmp_path / name) for name in ("without", "nobody"))
    models = [name for name in without if name.startswith("models")]
    assert models
    assert all(without[name] == nobody[name] for name in models)
    assert "attack" not in without["rows"][0]
    assert nobody["rows"][0]["attack"]["clients"] == []
