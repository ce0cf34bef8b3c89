"""Whether clients' distilled sets agree: the figures, who is accused, and what the three methods make of it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from fedstill.algorithms.agreement import FLOOR, OTHERS, accusations, agreements, look
from fedstill.algorithms.feddgm import FedDGM
from fedstill.algorithms.oneshot import OneShot
from fedstill.algorithms.sharing import FedDM
from fedstill.algorithms.union import DistilledSet
from fedstill.contract import check_algorithm, tiny_sites, tiny_world
from fedstill.data.shard import Shard
from fedstill.engines.local import LocalEngine
from fedstill.engines.memory import Memory
from fedstill.errors import InputError
from fedstill.rounds import Desk, Round, Trained, rounds
from fedstill.seeds import Seed
from fedstill.train import Recipe

NAMES = ("x", "y", "z")
RECIPE = Recipe(epochs=20, lr=0.1, batch=8)
SEED = Seed.root(0)


def readings(*rows: list[float], holds: list[list[int]] | None = None) -> tuple[Tensor, Tensor]:
    """a(c,d,k) where client c is read as ``rows[c]`` says by everybody, and everybody reads alike."""
    count = len(rows)
    held = torch.ones(count, len(rows[0])) > 0 if holds is None else torch.tensor(holds) > 0
    table = torch.tensor(rows, dtype=torch.float64)[:, None].repeat(1, count, 1)
    table[~(held[:, None] & held[None])] = torch.nan
    table[torch.eye(count) > 0] = torch.nan
    return table, held


def sets(*, spoilt: str | None = None, clients: int = 5) -> list[DistilledSet]:
    """Bars at three heights, which a tiny network learns at once; of one client the labels are turned round."""
    world, found = tiny_world(), []
    for index in range(clients):
        client = f"c{index}"
        labels = torch.arange(12) % 3
        images = torch.rand(12, 1, 8, 8, generator=SEED.at(client).torch()) * 0.3
        for row, label in enumerate(labels.tolist()):
            images[row, :, 2 * label : 2 * label + 3] += 0.6
        labels = (labels + (client == spoilt)) % 3
        found.append(DistilledSet(client, Shard(images, labels, world.classes, world.normalisation), {}, None))
    return found


def looked(disagreeing: Any, given: list[DistilledSet], **desk: Any) -> Any:
    architecture = tiny_world().architecture
    start = Trained(architecture, architecture.build(SEED.at("model")).state_dict())
    return look(disagreeing, given, start, RECIPE, Desk(SEED.at("look"), **desk))


def test_figures_are_the_definition() -> None:
    table, held = readings([0.9, 0.8], [0.9, 0.8], [0.9, 0.8], [0.1, 0.8])
    found = agreements(table, held)
    # others read c3's images of class 0 at 0.1, and its network theirs at 0.9; of c0 the medians are 0.9 both ways
    assert found[3].agreement == pytest.approx((0.5 + 0.8) / 2)
    assert (found[3].where, found[3].worst) == (0, pytest.approx(0.5 - 0.9))
    assert found[0].agreement == pytest.approx(0.85)


def test_a_class_that_few_others_have_is_not_assessed() -> None:
    holds = [[1, 1, 0], [1, 1, 0], [1, 1, 0], [1, 0, 1], [1, 0, 0]]
    found = agreements(*readings(*[[0.9, 0.1, 0.9]] * 5, holds=holds))
    assert OTHERS == 3
    assert [(its.assessed, its.classes) for its in found] == [(1, 2), (1, 2), (1, 2), (1, 2), (1, 1)]
    assert all(its.agreement == pytest.approx(0.9) for its in found)


def test_who_has_no_class_in_common_is_neither_assessed_nor_accused() -> None:
    holds = [[1, 0]] * 4 + [[0, 1]]
    found = agreements(*readings(*[[0.9, 0.0]] * 5, holds=holds))
    assert found[4].agreement is None
    assert found[4].assessed == 0
    assert accusations(found, NAMES) == [None] * 5


def test_nothing_learned_of_a_set_leaves_how_others_read_it() -> None:
    table, held = readings(*[[0.9]] * 4, [0.2])
    table[:, 4] = torch.nan
    assert agreements(table, held)[4].agreement == pytest.approx(0.2)


def test_a_set_that_is_wrong_all_over_is_accused() -> None:
    found = agreements(*both([0.9, 0.9, 0.9], [0.0, 0.0, 0.0]))
    *honest, accused = accusations(found, NAMES)
    assert honest == [None] * 4
    assert accused == f"its images disagree with the others': 0% are read alike, below {0.9 - FLOOR:.0%}"


def test_one_class_that_means_something_else_is_accused() -> None:
    found = agreements(*both([0.9, 0.9, 0.9, 0.9, 0.9], [0.9, 0.0, 0.9, 0.9, 0.9]))
    assert found[4].agreement == pytest.approx(0.72)  # not enough by itself
    told = accusations(found, "pqrst")[4]
    assert told is not None
    assert told.startswith(
        "its images of class 'q' disagree with the others': they are read alike 90 points less often"
    )


def both(most: list[float], last: list[float]) -> tuple[Tensor, Tensor]:
    """The last of five is read, and reads, as ``last`` says."""
    table, held = readings(most, most, most, most, last)
    table[:4, 4] = torch.tensor(last, dtype=torch.float64)
    return table, held


def test_honest_sets_that_scatter_accuse_nobody() -> None:
    # wide but honest: the deviation, not the floor, decides
    rows = [[share] for share in (0.9, 0.75, 0.6, 0.45, 0.3, 0.2)]
    assert accusations(agreements(*readings(*rows)), NAMES) == [None] * 6


def test_three_clients_accuse_nobody() -> None:
    assert accusations(agreements(*readings([0.9], [0.9], [0.0])), NAMES) == [None] * 3


def test_turned_labels_are_found_and_dropped() -> None:
    given = sets(spoilt="c2")
    flag, drop = looked("flag", given), looked("drop", given)
    assert [each.client for each in flag.kept] == [each.client for each in given]
    assert not flag.failures
    assert flag.figures == drop.figures
    assert {client for client, its in flag.figures.items() if its["flagged"]} == {"c2"}
    assert [each.client for each in drop.kept] == ["c0", "c1", "c3", "c4"]
    (failure,) = drop.failures
    assert failure.client == "c2"
    assert failure.reason.startswith("its images disagree with the others': 0% are read alike")


def test_honest_sets_are_kept() -> None:
    found = looked("drop", sets())
    assert len(found.kept) == 5
    assert not any(its["flagged"] for its in found.figures.values())
    assert all(its["agreement"] > 0.9 for its in found.figures.values())


def test_keep_asks_nothing() -> None:
    given = sets(spoilt="c2")
    assert looked("keep", given) == (given, {}, [])
    assert looked("drop", []) == ([], {}, [])


def test_order_and_company_do_not_matter_to_what_a_set_teaches() -> None:
    given = sets(spoilt="c2")
    assert looked("flag", given).figures == looked("flag", given[::-1]).figures


def test_a_set_on_which_training_diverges_accuses_nobody_else() -> None:
    given = sets()
    shard = given[1].synthetic
    wild = Shard(shard.images * 1e30, shard.labels, shard.classes, shard.normalisation)
    found = looked("flag", [given[0], given[1]._replace(synthetic=wild), *given[2:]])
    assert not any(its["flagged"] for client, its in found.figures.items() if client != "c1")


# --- the methods -------------------------------------------------------------------------------------------------------

FEDDM = {"match_steps": 2, "ipc": 2, "global_epochs": 2, "real_batch": 4, "augmentation": "none"}
FEDDGM = {
    "epochs": 1,
    "ipc": 1,
    "distill_steps": 1,
    "student_steps": 1,
    "global_epochs": 2,
    "loss_limit": 100.0,
    "lr_features": 1.0,
    "conditioning": False,
}
ONESHOT = {
    "experts": 1,
    "expert_epochs": 2,
    "span": 1,
    "latest": 1,
    "student_steps": 1,
    "distill_steps": 1,
    "judges": 1,
    "judge_epochs": 1,
    "ipc": 2,
    "retries": 0,
    "global_epochs": 2,
}
METHODS = {"feddm": (FedDM, FEDDM), "oneshot": (OneShot, ONESHOT), "feddgm": (FedDGM, FEDDGM)}


def one_round(name: str, tmp_path: Any, disagreeing: str) -> Round:
    factory, options = METHODS[name]
    method = factory(world=tiny_world(), disagreeing=disagreeing, **options)
    sites = tiny_sites(5)
    desk = Desk(SEED.at("run"))
    engine = LocalEngine(method, sites, desk, Memory(tmp_path / disagreeing))
    state = method.init(tuple(sites), Desk(SEED.at("init"))).detached()
    return next(iter(rounds(method, engine, desk=desk, until=1, cohort=1.0, state=state)))


@pytest.mark.parametrize("name", METHODS)
def test_to_flag_changes_no_bit(name: str, tmp_path: Any) -> None:
    keep, flag = (one_round(name, tmp_path, disagreeing) for disagreeing in ("keep", "flag"))
    assert flag.state.to_bytes() == keep.state.to_bytes()
    assert all("flagged" not in line for line in keep.figures["clients"].values())
    assert all(line["assessed"] <= line["classes"] for line in flag.figures["clients"].values())


@pytest.mark.parametrize("name", METHODS)
def test_who_is_dropped_is_a_failure_and_in_no_union(name: str, tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def accuse(found: Any, names: Any) -> list[str | None]:
        return ["its images disagree"] + [None] * (len(found) - 1)

    monkeypatch.setattr("fedstill.algorithms.agreement.accusations", accuse)
    done = one_round(name, tmp_path, "drop")
    (failure,) = done.failures
    assert failure.reason == "its images disagree"
    assert done.figures["clients"][failure.client]["flagged"] is True
    kept = done.state.members("synthetic")
    assert set(kept) == set(done.figures["clients"]) - {failure.client}
    assert done.figures["union"] == sum(len(group["labels"]) for group in kept.values())


@pytest.mark.parametrize("name", METHODS)
def test_the_contract_holds(name: str) -> None:
    factory, options = METHODS[name]
    assert check_algorithm(factory, {**options, "disagreeing": "drop"})


def test_prior_only_has_nothing_to_compare() -> None:
    method = FedDGM(world=tiny_world(), distill_steps=0, disagreeing="flag")
    with pytest.raises(InputError, match=r"algorithm\.disagreeing = 'flag': without distillation steps"):
        method.init(("a",), Desk(SEED))
