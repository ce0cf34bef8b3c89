"""Partitions: what every scheme promises, the figures of the published ones, and each refusal."""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from dataclasses import replace
from itertools import chain

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from fedstill.data.partition import PARTITIONS, Partition, PartitionSettings, from_flwr, hold_out, partition, safe_names
from fedstill.data.shard import Normalisation, Shard
from fedstill.data.split import stratified
from fedstill.errors import InputError, MissingExtra
from fedstill.experiment import Experiment
from fedstill.seeds import Seed

SEED = Seed.root(0)
QUICK = settings(max_examples=40, deadline=None)
label_lists = st.lists(st.integers(0, 6), min_size=1, max_size=200)


def shard(labels: list[int] | np.ndarray, classes: int = 10) -> Shard:
    values = torch.as_tensor(labels, dtype=torch.long)
    pixels = torch.zeros(len(values), 1, 1, 1, dtype=torch.uint8)
    return Shard(pixels, values, tuple(f"k{number}" for number in range(classes)), Normalisation((0.0,), (1.0,)))


BALANCED = shard(np.repeat(np.arange(10), 100))


def deal(
    data: Shard = BALANCED, groups: tuple[str, ...] | None = None, seed: Seed = SEED, **options: object
) -> Partition:
    return partition(TypeAdapter(PartitionSettings).validate_python(options), data, groups, seed)


def everyone(dealt: Partition) -> list[int]:
    return list(chain.from_iterable(dealt.clients.values()))


def complete(dealt: Partition, count: int) -> bool:
    return sorted(everyone(dealt)) == list(range(count))


@given(label_lists, st.integers(1, 12), st.integers(0, 5))
@QUICK
def test_iid_is_disjoint_complete_and_even(labels: list[int], clients: int, seed: int) -> None:
    clients = min(clients, len(labels))
    dealt = deal(shard(labels), kind="iid", clients=clients, seed=Seed.root(seed))
    assert complete(dealt, len(labels))
    sizes = [len(rows) for rows in dealt.clients.values()]
    assert max(sizes) - min(sizes) <= 1


@given(
    label_lists,
    st.integers(1, 12),
    st.sampled_from([1e-6, 1e-3, 0.01, 0.1, 1.0, 100.0]),
    st.integers(1, 20),
    st.integers(0, 5),
)
@QUICK
def test_dirichlet_is_disjoint_complete_and_meets_the_smallest_size(
    labels: list[int], clients: int, alpha: float, min_size: int, seed: int
) -> None:
    clients = min(clients, len(labels))
    min_size = min(min_size, len(labels) // clients)
    dealt = deal(shard(labels), kind="dirichlet", clients=clients, alpha=alpha, min_size=min_size, seed=Seed.root(seed))
    assert complete(dealt, len(labels))
    assert min(len(rows) for rows in dealt.clients.values()) >= min_size


def test_dirichlet_mends_what_no_draw_can_meet_and_says_so() -> None:
    dealt = deal(kind="dirichlet", clients=100, alpha=1e-4, min_size=10)
    assert {len(rows) for rows in dealt.clients.values()} == {10}
    assert dealt.figures["moved"] > 0


def test_dirichlet_is_more_unequal_at_small_alpha() -> None:
    def held(alpha: float) -> float:
        counts = [np.array(row) > 0 for row in deal(kind="dirichlet", alpha=alpha).histogram.values()]
        return float(np.mean([each.sum() for each in counts]))

    assert held(0.01) < 4 < held(0.3) < held(100.0) == 10


@given(label_lists, st.integers(1, 8), st.integers(1, 4), st.integers(0, 5))
@QUICK
def test_kshard_is_disjoint_with_equal_sizes(labels: list[int], clients: int, shards: int, seed: int) -> None:
    length = len(labels) // clients // shards
    if length == 0:
        with pytest.raises(InputError, match=r"partition\.shards"):
            deal(shard(labels), kind="kshard", clients=clients, shards=shards)
        return
    dealt = deal(shard(labels), kind="kshard", clients=clients, shards=shards, seed=Seed.root(seed))
    assert {len(rows) for rows in dealt.clients.values()} == {length * shards}
    assert len(set(everyone(dealt))) == len(everyone(dealt))


def test_kshard_has_the_published_schemes_statistics() -> None:
    classes = [
        sum(count > 0 for count in row)
        for seed in range(50)
        for row in deal(kind="kshard", shards=2, seed=Seed.root(seed)).histogram.values()
    ]
    assert 3.6 < np.mean(classes) < 4.0
    assert 0.1 < classes.count(2) / len(classes) < 0.2


@given(st.integers(1, 7), st.integers(1, 12), st.integers(1, 7), st.integers(0, 5))
@QUICK
def test_kclass_gives_exactly_k_classes(classes: int, clients: int, k: int, seed: int) -> None:
    k = min(k, classes)
    data = shard(np.repeat(np.arange(classes), 15))
    dealt = deal(data, kind="kclass", clients=clients, classes=k, seed=Seed.root(seed))
    assert all(sum(count > 0 for count in row) == k for row in dealt.histogram.values())
    holders = (np.array(list(dealt.histogram.values())) > 0).sum(0)[:classes]
    assert holders.max() - holders.min() <= 1
    assert len(set(everyone(dealt))) == len(everyone(dealt))
    if clients * k >= classes:
        assert complete(dealt, len(data))
    shares = np.array(list(dealt.histogram.values()))
    assert all(np.ptp(column[column > 0]) <= 1 for column in shares.T if column.any())


def test_domain_makes_a_client_of_each_group() -> None:
    groups = tuple(["Zürich/Nord", "zurich-nord", ".hidden", "Basel"] * 250)
    dealt = deal(kind="domain", groups=groups)
    assert sorted(dealt.clients) == ["Basel", "Zurich-Nord", "hidden", "zurich-nord-2"]
    assert complete(dealt, 1000)
    assert dealt.clients["Basel"] == tuple(range(3, 1000, 4))


@given(st.lists(st.text(max_size=80), max_size=20))
@QUICK
def test_group_names_become_safe_and_stay_distinct(groups: list[str]) -> None:
    names = safe_names(groups)
    assert set(names) == set(groups)
    assert len({name.lower() for name in names.values()}) == len(names)
    for name in names.values():
        assert 1 <= len(name) <= 64
        assert name.isascii()
        assert name.strip(".")
        assert all(letter.isalnum() or letter in "._-" for letter in name)


@pytest.mark.parametrize("kind", ["iid", "dirichlet", "kshard", "kclass"])
def test_the_seed_decides(kind: str) -> None:
    first, again, other = (deal(kind=kind, seed=Seed.root(number)) for number in (0, 0, 1))
    assert first == again
    assert first.hash != other.hash
    assert list(first.clients) == [f"c{number:02d}" for number in range(10)]
    assert {name: sum(row) for name, row in first.histogram.items()} == {k: len(v) for k, v in first.clients.items()}


def test_json_round_trip_and_check() -> None:
    dealt = deal()
    again = Partition.from_json(json.loads(json.dumps(dealt.to_json())))
    assert again == dealt
    again.check(BALANCED)
    for other in (shard([0] * 1000), shard([0, 1])):
        with pytest.raises(InputError, match="dealt from other data"):
            again.check(other)
    for damaged in ([], {"kind": "iid"}, {**dealt.to_json(), "clients": {"c00": ["x"]}}):
        with pytest.raises(InputError, match=r"p\.json is no partition"):
            Partition.from_json(damaged, source="p.json")


def test_refusals() -> None:
    few = shard([0, 1, 2])
    for match, data, options in (
        ("partition.kind = 'iidd': did you mean 'iid'", BALANCED, {"kind": "iidd"}),
        ("partition.clients = 4 with one image each", few, {"kind": "iid", "clients": 4}),
        ("partition.min_size = 2 images each take 4", few, {"kind": "dirichlet", "clients": 2, "min_size": 2}),
        ("partition.classes = 4: .* have but 3 classes", few, {"kind": "kclass", "classes": 4}),
        ("class 'k0' has 1 images for 2 clients", few, {"kind": "kclass", "classes": 3, "clients": 2}),
        ("the data name no groups", few, {"kind": "domain"}),
    ):
        with pytest.raises(InputError, match=match):
            deal(data, **options)
    with pytest.raises(InputError, match="it must be above 0"):
        partition(replace(PartitionSettings(), alpha=0.0), BALANCED, None, SEED)
    for wrong in ({"alpha": 0}, {"clients": 0}, {"validation": 1}, {"alhpa": 1}):
        with pytest.raises(ValidationError):
            TypeAdapter(PartitionSettings).validate_python(wrong)


def test_every_setting_is_described() -> None:
    schema = TypeAdapter(PartitionSettings).json_schema()
    assert all("description" in field for field in schema["properties"].values())
    assert set(PARTITIONS) == {"iid", "dirichlet", "kshard", "kclass", "domain"}


@given(label_lists, st.floats(0, 0.9), st.floats(0, 0.9), st.integers(0, 5))
@QUICK
def test_hold_out_is_seeded_disjoint_and_leaves_every_class(
    labels: list[int], fraction: float, test: float, seed: int
) -> None:
    data, rows = shard(labels), range(0, len(labels), 2)
    held = hold_out(data, rows, validation=fraction, test=test, seed=Seed.root(seed))
    assert sorted(held.train + held.validation + held.test) == list(rows)
    assert {labels[row] for row in held.train} == {labels[row] for row in rows}
    assert held == hold_out(data, rows, validation=fraction, test=test, seed=Seed.root(seed))
    assert held.validation == hold_out(data, rows, validation=fraction, test=0.0, seed=Seed.root(seed)).validation
    spare = len(rows) - len({labels[row] for row in rows})
    assert bool(held.validation) == (fraction > 0 and spare > 0)
    assert bool(held.test) == (test > 0 and spare > len(held.validation))


@given(label_lists, st.integers(0, 200), st.integers(0, 5))
@QUICK
def test_stratified_takes_each_classes_share(labels: list[int], count: int, seed: int) -> None:
    values, count = np.array(labels), min(count, len(labels))
    chosen = stratified(values, count, Seed.root(seed))
    assert len(set(chosen.tolist())) == count
    for label in set(labels):
        share = (values == label).sum() * count / len(values)
        assert abs((values[chosen] == label).sum() - share) < 1 + 1e-9


def test_flower_partitioners_deal_too() -> None:
    partitioners = pytest.importorskip("flwr_datasets.partitioner")
    even = from_flwr(partitioners.IidPartitioner(num_partitions=4), BALANCED)
    assert complete(even, 1000)
    skewed = from_flwr(
        partitioners.DirichletPartitioner(num_partitions=3, partition_by="y", alpha=0.5), BALANCED, label_column="y"
    )
    assert complete(skewed, 1000)
    natural = from_flwr(partitioners.NaturalIdPartitioner("group"), BALANCED, groups=tuple("ab" * 500))
    assert [len(rows) for rows in natural.clients.values()] == [500, 500]
    with pytest.raises(InputError, match="PathologicalPartitioner cannot deal"):
        from_flwr(
            partitioners.PathologicalPartitioner(num_partitions=2, partition_by="label", num_classes_per_partition=99),
            BALANCED,
        )


def test_flower_partitioners_deal_in_a_run() -> None:
    pytest.importorskip("flwr_datasets")
    first, again, other, even = (
        deal(kind="flwr:DirichletPartitioner", clients=4, options={"alpha": alpha}, seed=Seed.root(seed))
        for seed, alpha in ((0, 0.1), (0, 0.1), (1, 0.1), (0, 1000.0))
    )
    assert first == again
    assert first.hash != other.hash
    assert list(first.clients) == ["c00", "c01", "c02", "c03"]
    assert all(complete(dealt, 1000) for dealt in (first, other, even))
    assert np.std(list(first.histogram.values())) > 3 * np.std(list(even.histogram.values()))
    assert first.options == {"clients": 4, "validation": 0.1, "test": 0.0, "alpha": 0.1}
    assert Partition.from_json(json.loads(json.dumps(first.to_json()))) == first
    # no seed, no column to deal by
    assert complete(deal(kind="flwr:LinearPartitioner", clients=3), 1000)


def test_flower_partitioners_by_natural_id_deal_groups() -> None:
    pytest.importorskip("flwr_datasets")
    groups = tuple("abcd" * 250)
    natural = deal(kind="flwr:NaturalIdPartitioner", groups=groups)
    assert [len(rows) for rows in natural.clients.values()] == [250] * 4
    pairs = deal(kind="flwr:GroupedNaturalIdPartitioner", groups=groups, options={"group_size": 2})
    assert [len(rows) for rows in pairs.clients.values()] == [500] * 2
    assert len(deal(kind="flwr:NaturalIdPartitioner", options={"partition_by": "label"}).clients) == 10
    with pytest.raises(InputError, match="NaturalIdPartitioner': the data name no groups"):
        deal(kind="flwr:NaturalIdPartitioner")


@pytest.mark.parametrize(
    ("kind", "options", "match"),
    [
        ("DirichletPartitoner", {}, "'flwr:DirichletPartitoner': did you mean 'flwr:DirichletPartitioner'"),
        ("Partitioner", {}, "partition.kind = 'flwr:Partitioner'"),
        ("DirichletPartitioner", {}, r"partition\.options\.alpha is missing: DirichletPartitioner needs it"),
        ("DirichletPartitioner", {"alhpa": 1}, r"partition\.options\.alhpa: .* did you mean 'alpha'"),
        ("DirichletPartitioner", {"alpha": 1, "seed": 3}, r"partition\.options\.seed: fedstill sets it"),
        ("DirichletPartitioner", {"alpha": -1.0}, "DirichletPartitioner"),
        ("DirichletPartitioner", {"alpha": "much"}, "DirichletPartitioner"),
        ("DirichletPartitioner", {"alpha": 1, "partition_by": "colour"}, "with the columns label, fedstill_row"),
        ("ShardPartitioner", {}, "ShardPartitioner"),
        ("VerticalEvenPartitioner", {}, "VerticalEvenPartitioner"),
    ],
)
def test_flower_partitioners_refuse_in_one_sentence(kind: str, options: dict[str, object], match: str) -> None:
    pytest.importorskip("flwr_datasets")
    with pytest.raises(InputError, match=match) as caught:
        deal(kind=f"flwr:{kind}", options=options)
    assert "\n" not in str(caught.value)


def test_flower_options_survive_the_experiments_file() -> None:
    table = {"partition": {"kind": "flwr:DirichletPartitioner", "options": {"alpha": 0.1, "self_balancing": True}}}
    experiment = Experiment.from_table(table)
    assert Experiment.from_table(tomllib.loads(experiment.to_toml())) == experiment
    assert experiment.partition.options == {"alpha": 0.1, "self_balancing": True}
    with pytest.raises(InputError, match=r"partition\.options\.alpha = \[1\]: must be"):
        Experiment.from_table({"partition": {"kind": "flwr:DirichletPartitioner", "options": {"alpha": [1]}}})


def test_options_are_for_flower_alone() -> None:
    with pytest.raises(InputError, match=r"partition\.options is for kinds that begin with 'flwr:', not for 'iid'"):
        deal(kind="iid", options={"alpha": 0.1})
    assert deal(kind="iid", options={}) == deal(kind="iid")


def test_flower_partitioners_in_a_run_need_their_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "flwr_datasets.partitioner", None)
    with pytest.raises(MissingExtra, match="flwr:IidPartitioner' needs the package 'flwr-datasets'"):
        deal(kind="flwr:IidPartitioner")


def test_flower_partitioners_need_their_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(MissingExtra, match="flower"):
        from_flwr(object(), BALANCED)


def test_optional_packages_are_not_imported_early() -> None:
    code = (
        "import sys, fedstill.data.partition, fedstill.data.schemes, fedstill.data.sources, fedstill.data.parquet; "
        "sys.exit(bool({'datasets', 'flwr_datasets', 'flwr'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
