"""FedDGM's section 4 as a measurement: gradients on the union and on the data."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

import tiny
from fedstill.bundle import Bundle
from fedstill.contract import tiny_sites, tiny_world
from fedstill.data.shard import Shard
from fedstill.errors import InputError
from fedstill.evaluate import theory
from fedstill.evaluate.theory import compare, mean_gradient
from fedstill.models.architecture import Architecture
from fedstill.reporter import Silent
from fedstill.rounds import Trained
from fedstill.run import drive
from fedstill.seeds import Seed


class Notes(Silent):
    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


WORLD = tiny_world()
REAL = [site.train for site in tiny_sites().values()]


def weights(number: int) -> dict[str, torch.Tensor]:
    return WORLD.architecture.build(Seed.root(number)).state_dict()


def state(number: int, sets: dict[str, Shard]) -> Bundle:
    groups = {f"synthetic:{client}": {"images": each.images, "labels": each.labels} for client, each in sets.items()}
    return Bundle().put(model=weights(number), **groups)


def union(number: int = 9) -> dict[str, Shard]:
    """Distilled sets of two clients, in units of the pixel range."""
    draw = Seed.root(number).torch()
    shards = (
        Shard(torch.rand(6, 1, 8, 8, generator=draw), torch.arange(6) % 3, WORLD.classes, WORLD.normalisation)
        for _ in range(2)
    )
    return dict(zip(("c00", "c01"), shards, strict=True))


def plainly(number: int, shard: Shard) -> torch.Tensor:
    """The gradient of the mean loss in one piece, float64."""
    network = Trained(WORLD.architecture, weights(number)).module().double().eval()
    loss = F.cross_entropy(network(shard.inputs().double()), shard.labels)
    return torch.cat([part.flatten() for part in torch.autograd.grad(loss, list(network.parameters()))])


def test_a_gradient_in_chunks_over_sites_is_that_of_the_mean_loss(monkeypatch):
    whole = plainly(1, Shard.join(REAL))
    for rows in (7, 100):
        monkeypatch.setattr(theory, "ROWS", rows)
        found = mean_gradient(Trained(WORLD.architecture, weights(1)).module(), REAL, device="cpu")
        assert found.dtype == torch.float64
        torch.testing.assert_close(found, whole, rtol=1e-4, atol=1e-7)


def test_evaluation_mode_soft_labels_by_their_largest_and_weights_untouched():
    options = {"depth": 2, "width": 4, "norm": "batch"}
    architecture = Architecture(name="convnet", channels=1, size=(8, 8), classes=3, options=options)
    network = architecture.build(Seed.root(0))
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    soft = replace(REAL[0], labels=F.one_hot(REAL[0].labels, 3).float() * 0.7 + 0.1)
    hard, softened = (mean_gradient(network, [shard], device="cpu") for shard in (REAL[0], soft))
    assert torch.equal(hard, softened)
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())


def test_cosines_and_norms_are_those_of_the_plain_gradients():
    found, _ = compare(WORLD, state(1, {}), state(2, union()), REAL, device="cpu")
    joined = Shard.join(list(union().values()))
    for number, when in ((1, "before"), (2, "after")):
        real, synthetic = plainly(number, Shard.join(REAL)), plainly(number, joined)
        cosine = torch.nn.functional.cosine_similarity(real, synthetic, dim=0).item()
        assert getattr(found, f"cosine_{when}") == pytest.approx(cosine, abs=1e-5)
        assert getattr(found, f"norm_real_{when}") == pytest.approx(real.norm().item(), rel=1e-4)
        assert getattr(found, f"norm_union_{when}") == pytest.approx(synthetic.norm().item(), rel=1e-4)


def test_the_data_themselves_have_a_cosine_of_one():
    own = {client: site.train for client, site in tiny_sites().items()}
    found, _ = compare(WORLD, state(1, {}), state(2, own), REAL, device="cpu")
    assert (found.cosine_before, found.cosine_after) == pytest.approx((1, 1))


def test_what_is_known_is_not_taken_again_and_changes_nothing(monkeypatch):
    first, known = compare(WORLD, state(1, {}), state(2, union()), REAL, device="cpu")
    anew, _ = compare(WORLD, state(2, union()), state(3, union(5)), REAL, device="cpu")
    taken = []
    plain = theory.mean_gradient
    monkeypatch.setattr(
        theory, "mean_gradient", lambda *args, **more: taken.append(len(args[1])) or plain(*args, **more)
    )
    again, _ = compare(WORLD, state(2, union()), state(3, union(5)), REAL, device="cpu", known=known)
    assert again == anew
    assert taken.count(len(REAL)) == 1
    # of other weights than it was taken at, it is of no use
    stale, _ = compare(WORLD, state(4, union()), state(3, union(5)), REAL, device="cpu", known=known)
    assert stale.norm_real_before != first.norm_real_after


def test_without_a_synthetic_set_or_a_model_there_is_nothing_to_compare():
    assert compare(WORLD, state(1, {}), state(2, {}), REAL, device="cpu") == (None, None)
    headless = state(2, union()).drop("model")
    assert compare(WORLD, headless, headless, REAL, device="cpu") == (None, None)


def test_a_gradient_of_zero_has_no_cosine():
    found, _ = compare(WORLD, state(1, {}), state(2, union()), [REAL[0].take([])], device="cpu")
    assert found.cosine_before is found.cosine_after is None
    assert (found.norm_real_before, found.norm_real_after) == (0, 0)
    assert found.norm_union_before > 0


def test_a_run_with_it_differs_in_nothing_else_and_a_resumed_one_in_nothing(tmp_path):
    plain, asked = (tiny.experiment(tiny.FEDDGM, rounds=2, evaluate={"gradients": on}) for on in (False, True))
    drive(plain, out=tmp_path / "plain")
    drive(asked, out=tmp_path / "asked")
    drive(replace(asked, rounds=1), out=tmp_path / "cut")
    drive(asked, out=tmp_path / "cut", resume=True)
    assert tiny.result(tmp_path / "cut") == tiny.result(tmp_path / "asked")
    rows = tiny.rows(tmp_path / "asked")
    bare = [{key: value for key, value in row.items() if key != "theory"} for row in rows]
    assert bare == tiny.rows(tmp_path / "plain")
    assert set(rows[0]["theory"]) == {
        f"{what}_{when}" for what in ("cosine", "norm_real", "norm_union") for when in ("before", "after")
    }
    assert rows[1]["theory"]["norm_real_before"] == rows[0]["theory"]["norm_real_after"]


def test_a_row_is_what_its_states_say(tmp_path):
    experiment = tiny.experiment(tiny.FEDDGM, rounds=2, evaluate={"gradients": True})
    drive(experiment, out=tmp_path)
    parts = experiment.build()
    first, second = (Bundle.open(tmp_path / "checkpoints" / f"round-000{n}.safetensors") for n in (1, 2))
    found, _ = compare(parts.world, first, second, [site.train for site in parts.sites.values()], device="cpu")
    assert json.loads(json.dumps(vars(found))) == tiny.rows(tmp_path)[1]["theory"]


@pytest.mark.parametrize("name", ["fedavg", "centralised"])
def test_a_method_without_synthetic_sets_is_refused_before_anything_is_read(name, tmp_path):
    experiment = tiny.experiment({**tiny.FEDAVG, "name": name}, evaluate={"gradients": True})
    with pytest.raises(InputError, match=f"evaluate.gradients = true: '{name}' makes no synthetic set"):
        drive(experiment, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_users_own_method_without_synthetic_sets_is_told_once(tmp_path):
    heard = Notes()
    own = {**tiny.FEDAVG, "name": "fedstill.algorithms.averaging:FedAvg"}
    drive(tiny.experiment(own, evaluate={"gradients": True}), out=tmp_path, reporter=heard)
    assert heard.notes == ["round 1 left no synthetic set: evaluate.gradients has nothing to compare"]
    assert all("theory" not in row for row in tiny.rows(tmp_path))
