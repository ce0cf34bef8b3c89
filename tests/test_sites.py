"""Which of its images a client trains on, chooses by and is tested on."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace

import numpy as np
import pytest
import torch

import tiny
from fedstill.data.partition import PartitionSettings, partition
from fedstill.data.shard import Normalisation, Shard
from fedstill.data.sources import Loaded
from fedstill.errors import InputError
from fedstill.run import drive
from fedstill.seeds import Seed
from fedstill.sites import POOLED, Uses, build_sites, plan_uses

SEED = Seed.root(0)

BEFORE_HASH = "9e61398b4b048fb7313a458f8919395dc93135e486cf8fe0e7b86884b06d5353"
BEFORE_TRAIN = "5e9ad2930495214a"


def numbered(first: int, count: int) -> Shard:
    """Images whose one pixel is their number, of two classes in turn."""
    numbers = torch.arange(first, first + count)
    normalisation = Normalisation((0.0,), (1.0,))
    return Shard(numbers.to(torch.uint8).view(-1, 1, 1, 1), numbers % 2, ("a", "b"), normalisation)


LOADED = Loaded(
    train=numbered(0, 60),
    test=numbered(100, 24),
    train_groups=("Basel", "Zürich", "Bern") * 20,
    test_groups=("Zürich", "Basel", "Genf") * 8,
    skipped=(),
)


def planned(loaded: Loaded = LOADED, **settings: object) -> Uses:
    chosen = replace(PartitionSettings(), **settings)
    dealt = partition(chosen, loaded.train, loaded.train_groups, SEED.at("partition"))
    return plan_uses(chosen, loaded, dealt, SEED.at("validation"))


def pixels(shard: Shard) -> list[int]:
    return shard.images.flatten().tolist()


def test_a_domains_test_images_are_its_clients_own():
    sites = build_sites(planned(kind="domain"), LOADED, pooled=False)
    assert pixels(sites["Zurich"].test) == list(range(100, 124, 3))
    assert pixels(sites["Basel"].test) == list(range(101, 124, 3))
    # nobody trains on Genf, and Bern has no test images
    assert set(sites) == {"Basel", "Bern", "Zurich"}
    assert len(sites["Bern"].test) == 0


def test_kept_images_stand_beside_those_of_the_domain():
    uses = planned(kind="domain", test=0.2)
    sites = build_sites(uses, LOADED, pooled=False)
    own = uses.held["Basel"].test
    assert len(own) == 4
    assert pixels(sites["Basel"].test) == [*own, *range(101, 124, 3)]
    assert pixels(sites["Bern"].test) == list(uses.held["Bern"].test)


def test_other_partitions_and_data_without_test_domains_use_none():
    assert planned(kind="iid", clients=3).domain == {}
    assert planned(replace(LOADED, test_groups=None), kind="domain").domain == {}


def test_every_row_has_one_use_and_shares_are_of_all_that_a_client_holds():
    uses = planned(kind="iid", clients=2, validation=0.2, test=0.3)
    for held in uses.held.values():
        assert (len(held.train), len(held.validation), len(held.test)) == (15, 6, 9)
        assert list(held.train) == sorted(held.train)
        labels = np.array(held.test) % 2
        assert abs(labels.sum() - 4.5) <= 1
    rows = [row for held in uses.held.values() for part in (held.train, held.validation, held.test) for row in part]
    assert sorted(rows) == list(range(60))


def test_what_is_kept_for_testing_changes_no_row_of_validation_and_no_dealing():
    with_test, without = (planned(kind="iid", clients=3, test=share) for share in (0.2, 0.0))
    for client, held in with_test.held.items():
        other = without.held[client]
        assert held.validation == other.validation
        assert set(held.train) | set(held.test) == set(other.train)
        assert other.test == ()


def test_a_ceiling_is_tested_on_everybodys():
    uses = planned(kind="domain", test=0.2)
    sites = build_sites(uses, LOADED, pooled=False)
    pooled = build_sites(uses, LOADED, pooled=True)
    assert list(pooled) == [POOLED]
    for use in ("train", "validation", "test"):
        everybodys = sorted(number for site in sites.values() for number in pixels(getattr(site, use)))
        assert pixels(getattr(pooled[POOLED], use)) == everybodys


def test_a_share_that_leaves_nothing_to_train_on_is_refused():
    with pytest.raises(InputError, match=r"partition.validation = 0.5 and partition.test = 0.5 leave a client nothing"):
        PartitionSettings(validation=0.5, test=0.5)


def test_a_record_has_the_rows_of_every_use():
    uses = planned(kind="domain", test=0.2)
    found = json.loads(json.dumps(uses.to_json()))
    assert set(found) == {"validation", "test", "domain_test"}
    assert found["test"]["Basel"] == list(uses.held["Basel"].test)
    assert found["domain_test"] == {"Basel": list(range(1, 24, 3)), "Bern": [], "Zurich": list(range(0, 24, 3))}


def test_without_the_key_a_run_is_what_it_was_before_the_key_was_known():
    parts = tiny.experiment().build()
    assert "partition.test" not in parts.identity
    # as the version before it dealt and split
    assert parts.partition.hash == BEFORE_HASH
    assert digest([site.train.images for site in parts.sites.values()]) == BEFORE_TRAIN
    assert tiny.experiment(partition={"test": 0.2}).build().identity["partition.test"] == 0.2


def digest(tensors: list[torch.Tensor]) -> str:
    return hashlib.sha256(b"".join(tensor.numpy().tobytes() for tensor in tensors)).hexdigest()[:16]


def test_clients_own_test_images_in_a_run(tmp_path):
    drive(tiny.experiment(rounds=1, cohort=2, partition={"test": 0.2}), out=tmp_path)
    (row,) = tiny.rows(tmp_path)
    assert [client["client"] for client in row["clients"][:2]] == row["cohort"]
    assert {client["client"] for client in row["clients"]} == {"c00", "c01", "c02"}
    assert set(row["clients"][2]) == {"client", "validation", "test"}
    tests = [client["test"] for client in row["clients"]]
    assert row["test"]["examples"] == sum(each["examples"] for each in tests)
    assert row["test"]["correct"] == sum(each["correct"] for each in tests)
    assert row["test"]["mean"] == pytest.approx(sum(each["accuracy"] for each in tests) / 3)
    assert np.sum(row["test"]["confusion"]) == row["test"]["examples"]
    assert np.trace(row["test"]["confusion"]) == row["test"]["correct"]
    held = json.loads((tmp_path / "partition.json").read_text())
    assert [len(held["test"][client["client"]]) for client in row["clients"]] == [each["examples"] for each in tests]
    # four of ten classes a client: the others have no recall
    assert [sum(recall is not None for recall in each["per_class"]) for each in tests] == [4, 4, 4]
