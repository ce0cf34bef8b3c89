"""Whether clients' distilled sets agree: the figures, who is accused, and what the three methods make of it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from fedstill.algorithms.agreement import OTHERS, Agreement, accusations, agreements, anew, look
from fedstill.algorithms.feddgm import FedDGM
from fedstill.algorithms.oneshot import OneShot
from fedstill.algorithms.sharing import FedDM
from fedstill.algorithms.union import DistilledSet
from fedstill.contract import check_algorithm, tiny_sites, tiny_world
from fedstill.data.shard import Shard
from fedstill.engines.local import LocalEngine
from fedstill.engines.memory import Memory
from fedstill.errors import InputError
from fedstill.rounds import Desk, Round, rounds
from fedstill.seeds import Seed
from fedstill.settings import told
from fedstill.train import Recipe

NAMES = ("x", "y", "z")
RECIPE = Recipe(epochs=20, lr=0.1, batch=8)
SEED = Seed.root(0)


def guesses(*clients: dict[int, list[int]]) -> tuple[Tensor, Tensor, Tensor]:
    """Everybody reads an image as what it shows. A client's set: by class, what its images of it show; its network has learned to
    call the first of them so, and all else by its name.
    """
    shown, owner, labels = [], [], []
    for index, held in enumerate(clients):
        for label, images in held.items():
            shown += images
            owner += [index] * len(images)
            labels += [label] * len(images)
    table = torch.zeros(len(clients), len(shown), len(NAMES), dtype=torch.float64)
    for index, held in enumerate(clients):
        called = {images[0]: label for label, images in held.items()}
        for place, what in enumerate(shown):
            table[index, place, called.get(what, what)] = 1
    return table, torch.tensor(owner), torch.tensor(labels)


HONEST = {0: [0, 0], 1: [1, 1], 2: [2, 2]}


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
    at = Desk(SEED.at("look"), **desk)
    return look(disagreeing, given, anew(tiny_world().architecture, at), RECIPE, at)


def test_figures_are_the_definition() -> None:
    # half of c3's images of x show a z; its network, which learned of the other half, reads all of the others' right
    found = agreements(*guesses(HONEST, HONEST, HONEST, {**HONEST, 0: [0, 2]}))
    assert found[3].agreement == pytest.approx((0.75 + 1 + 1) / 3)
    assert (found[3].where, found[3].worst, found[3].assessed, found[3].classes) == (
        0,
        pytest.approx(0.75 - 11 / 12),
        3,
        3,
    )
    # six of the others' seven images that are called x show one
    assert found[0].agreement == pytest.approx(((1 + 5 / 6) / 2 + 1 + 1) / 3)


def test_a_class_that_few_others_have_is_not_assessed() -> None:
    both, left, alone = {0: [0], 1: [1]}, {0: [0], 2: [2]}, {0: [0]}
    found = agreements(*guesses(both, both, both, left, alone))
    assert OTHERS == 3
    assert [(its.assessed, its.classes) for its in found] == [(1, 2), (1, 2), (1, 2), (1, 2), (1, 1)]
    assert all(its.agreement == 1 for its in found)


def test_who_has_no_class_in_common_is_neither_assessed_nor_accused() -> None:
    found = agreements(*guesses(*[{0: [0]}] * 4, {1: [2]}))
    assert found[4] == (None, None, None, 0, 1)
    assert accusations(found, NAMES) == [None] * 5


def test_nothing_learned_of_a_set_leaves_how_others_read_it() -> None:
    table, owner, labels = guesses(*[HONEST] * 4, {**HONEST, 0: [0, 2]})
    table[4] = torch.nan
    found = agreements(table, owner, labels)
    assert found[4].agreement == pytest.approx((0.5 + 1 + 1) / 3)
    assert found[0].agreement == pytest.approx(((1 + 7 / 8) / 2 + 1 + 1) / 3)


def test_a_set_that_is_wrong_all_over_is_accused() -> None:
    *honest, accused = accusations(agreements(*guesses(*[HONEST] * 4, {0: [1], 1: [2], 2: [0]})), NAMES)
    assert honest == [None] * 4
    assert accused is not None
    assert accused.startswith("its images disagree with the others': 0% are read alike, below ")


def test_one_class_that_means_something_else_is_accused() -> None:
    found = [*[Agreement(0.9, -0.1, 0, 3, 3)] * 6, Agreement(0.7, -0.9, 1, 3, 3)]
    *honest, accused = accusations(found, NAMES)
    assert honest == [None] * 6
    assert accused == (
        "its images of class 'y' disagree with the others': they are read alike 90 points less often, beyond 65"
    )


def test_a_minority_that_conspires_is_outvoted() -> None:
    turned = {0: [1], 1: [2], 2: [0]}
    told = accusations(agreements(*guesses(*[HONEST] * 7, turned, turned)), NAMES)
    assert [why is not None for why in told] == [False] * 7 + [True] * 2


def test_honest_sets_that_scatter_accuse_nobody() -> None:
    # wide but honest: the deviation, not the floor, decides
    found = [Agreement(share, share - 0.5, 0, 1, 1) for share in (0.9, 0.75, 0.6, 0.45, 0.3, 0.15)]
    assert accusations(found, NAMES) == [None] * 6
    assert accusations([*found[:1] * 5, found[1]], NAMES) == [None] * 6  # within the floors
    assert accusations([*found[:1] * 5, found[3]], NAMES)[5] is not None


def test_three_clients_accuse_nobody() -> None:
    found = [Agreement(share, share - 1, 0, 1, 1) for share in (1.0, 1.0, 0.0)]
    assert accusations(found, NAMES) == [None] * 3


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


def test_an_older_run_and_one_that_keeps_all_say_the_same() -> None:
    assert told({"algorithm.name": "feddm", "algorithm.disagreeing": "keep"}) == {"algorithm.name": "feddm"}
    assert "algorithm.disagreeing" in told({"algorithm.name": "feddm", "algorithm.disagreeing": "drop"})
