"""Several data sets as domains, several clients a domain, the subsets of ImageNet, and the files of experiments/data."""

from __future__ import annotations

import io
import tomllib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from pydantic import TypeAdapter

import tiny
from fedstill.data.partition import PartitionSettings, partition
from fedstill.data.settings import anchored
from fedstill.data.shard import Normalisation, Shard
from fedstill.data.sources import DataSettings, Loaded, digest, load
from fedstill.data.subsets import NUMBERS, SUBSETS
from fedstill.errors import InputError
from fedstill.experiment import Experiment
from fedstill.run import drive
from fedstill.seeds import Seed
from fedstill.sites import build_sites, plan_uses

SEED = Seed.root(0)
PARTS = sorted((Path(__file__).parents[1] / "experiments" / "data").glob("*.toml"))


def png(level: int, side: int, *, colour: bool) -> bytes:
    stream = io.BytesIO()
    pixels = np.full((side, side, 3) if colour else (side, side), level, np.uint8)
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def write_set(path: Path, first: int, labels: list[int], *, side: int = 8, colour: bool = False) -> str:
    rows = [{"bytes": png(first + row, side, colour=colour), "path": None} for row in range(len(labels))]
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"image": rows, "label": labels}), path)
    return str(path)


@pytest.fixture
def two(tmp_path: Path) -> list[dict[str, object]]:
    """Grey and small with test images of its own, colour and larger without."""
    grey = write_set(tmp_path / "grey" / "train.parquet", 0, [0, 1, 2] * 8)
    test = write_set(tmp_path / "grey" / "test.parquet", 100, [0, 1, 2] * 3)
    colour = write_set(tmp_path / "colour.parquet", 150, [0, 1, 2] * 10, side=12, colour=True)
    return [{"name": "Grey", "path": grey, "test": test}, {"name": "Colour", "path": colour}]


def get(domains: object, **options: object) -> Loaded:
    given = {"source": "domains", "size": 6, "channels": 3, "domains": domains, **options}
    return load(TypeAdapter(DataSettings).validate_python(given), SEED)


def fails(match: str, domains: object, **options: object) -> None:
    with pytest.raises(InputError, match=match) as caught:
        get(domains, **options)
    assert "\n" not in str(caught.value)


def levels(loaded: Loaded, which: str) -> list[int]:
    return getattr(loaded, which).images[:, 0, 0, 0].tolist()


def test_domains_are_joined_in_one_form(two: list[dict[str, object]]) -> None:
    loaded = get(two)
    assert loaded.train.images.shape == (24 + 24, 3, 6, 6)
    assert loaded.test.images.shape == (9 + 6, 3, 6, 6)
    assert loaded.train_groups == ("Grey",) * 24 + ("Colour",) * 24
    assert loaded.test_groups == ("Grey",) * 9 + ("Colour",) * 6
    assert levels(loaded, "test")[:9] == list(range(100, 109))
    apart = set(levels(loaded, "test")[9:])
    assert apart.isdisjoint(levels(loaded, "train"))
    assert loaded.test.histogram() == [5, 5, 5]
    # a domain's own split depends on no seed
    assert digest(loaded) == digest(
        load(
            TypeAdapter(DataSettings).validate_python({"source": "domains", "size": 6, "channels": 3, "domains": two}),
            Seed.root(9),
        )
    )


def test_rows_are_chosen_by_number(two: list[dict[str, object]]) -> None:
    two[0] |= {"rows": [3, 8], "test_rows": [6, 8]}
    loaded = get(two)
    assert levels(loaded, "train")[:6] == [3, 4, 5, 6, 7, 8]
    assert levels(loaded, "test")[:3] == [106, 107, 108]


def test_limits_are_shared_by_domain_and_class(two: list[dict[str, object]]) -> None:
    loaded = get(two, limit=12, test_limit=6)
    assert loaded.train_groups == ("Grey",) * 6 + ("Colour",) * 6
    assert loaded.train.histogram() == [4, 4, 4]


def test_a_domain_is_a_client_with_its_own_test_images(two: list[dict[str, object]], tmp_path: Path) -> None:
    data = {"source": "domains", "size": 8, "channels": 3, "limit": None, "test_limit": None, "domains": two}
    experiment = tiny.experiment(data=data, partition={"kind": "domain"}, rounds=1)
    sites = experiment.build().sites
    assert {name: (len(site.train) + len(site.validation), len(site.test)) for name, site in sites.items()} == {
        "Colour": (24, 6),
        "Grey": (24, 9),
    }
    drive(experiment, out=tmp_path / "run")
    kept = Experiment.read(tmp_path / "run" / "experiment.toml")
    assert kept.data == experiment.anchored().data
    assert {client["client"] for client in tiny.rows(tmp_path / "run")[0]["clients"]} == {"Grey", "Colour"}


def test_paths_of_domains_and_frost_become_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_set(tmp_path / "a.parquet", 0, [0, 1])
    monkeypatch.chdir(tmp_path)
    domain = {"name": "a", "path": "a.parquet", "test": "none.parquet"}
    settings = TypeAdapter(DataSettings).validate_python({"domains": [domain], "frost": "a.parquet"})
    found = anchored(settings)
    assert found.domains is not None
    assert (found.domains[0].path, found.domains[0].test) == (str(tmp_path / "a.parquet"), "none.parquet")
    assert found.frost == str(tmp_path / "a.parquet")


def test_domain_mistakes(two: list[dict[str, object]], tmp_path: Path) -> None:
    one = two[0]
    fails("data.domains is missing", None)
    fails("'Grey' is the name of two domains", [one, one])
    fails("data.path: with data.source = 'domains' it belongs to no domain", two, path="x")
    fails("'x' has the source 'hub', which cannot be joined", [{"name": "x", "source": "hub"}])
    fails("'x': data.path is missing", [{"name": "x"}])
    fails("'x': .*there is no such file", [{"name": "x", "path": str(tmp_path / "none")}])
    fails("'x': source = 'parqet': did you mean 'parquet'", [{"name": "x", "source": "parqet"}])
    fails(r"'Grey': rows = \[3, 99\], but there are 24 rows", [one | {"rows": [3, 99]}])
    fails(r"'Grey': test_rows = \[5, 4\]", [one | {"test_rows": [5, 4]}])
    fails("'Colour': test_rows are given, but no test images", [two[1] | {"test_rows": [0, 1]}])
    fewer = {"name": "few", "path": write_set(tmp_path / "few.parquet", 0, [0, 1] * 4)}
    fails("'few' has the classes 0, 1, but 'Grey' 0, 1, 2", [one, fewer])
    assert get([one, fewer], classes=["0", "1", "2"]).train.classes == ("0", "1", "2")
    lone = {"name": "lone", "path": write_set(tmp_path / "lone.parquet", 0, [0, 1, 2])}
    fails("'lone': 3 images, no two of a class", [lone])


def test_an_unknown_key_of_a_domain_is_answered_from_its_table() -> None:
    table = {"data": {"source": "domains", "domains": [{"name": "a"}, {"name": "b", "pth": "x"}]}}
    with pytest.raises(InputError, match=r"data.domains\[1\].pth: no such key: did you mean 'path'"):
        Experiment.from_table(table)


# several clients a domain


def many(groups: int = 3, each: int = 60) -> Loaded:
    def shard(count: int) -> Shard:
        labels = torch.arange(groups * count) % 3
        return Shard(
            torch.zeros(groups * count, 1, 1, 1, dtype=torch.uint8),
            labels,
            ("a", "b", "c"),
            Normalisation((0.0,), (1.0,)),
        )

    names = ["fog", "snow", "frost"][:groups]
    return Loaded(
        train=shard(each),
        test=shard(30),
        train_groups=tuple(name for name in names for _ in range(each)),
        test_groups=tuple(name for name in names for _ in range(30)),
        skipped=(),
    )


def test_parts_share_a_domain_and_its_test_images() -> None:
    loaded = many()
    settings = PartitionSettings(kind="domain", parts=3, alpha=2.0, min_size=5)
    dealt = partition(settings, loaded.train, loaded.train_groups, SEED)
    assert list(dealt.clients)[:3] == ["fog-1", "fog-2", "fog-3"]
    assert len(dealt.clients) == 9
    assert sorted(row for rows in dealt.clients.values() for row in rows) == list(range(180))
    for client, rows in dealt.clients.items():
        assert {loaded.train_groups[row] for row in rows} == {client.rpartition("-")[0]}
        assert len(rows) >= 5
    uses = plan_uses(settings, loaded, dealt, SEED.at("uses"))
    again = plan_uses(settings, loaded, dealt, SEED.at("uses"))
    assert uses == again
    assert sorted(row for rows in uses.domain.values() for row in rows) == list(range(90))
    sites = build_sites(uses, loaded, pooled=False)
    for client, site in sites.items():
        held = np.array(dealt.histogram[client])
        share = held / np.array([20, 20, 20])
        assert np.abs(np.array(site.test.histogram()) - 10 * share).max() <= 1


def test_one_part_is_what_it_was() -> None:
    loaded = many()
    dealt = partition(PartitionSettings(kind="domain"), loaded.train, loaded.train_groups, SEED)
    assert {name: len(rows) for name, rows in dealt.clients.items()} == {"fog": 60, "frost": 60, "snow": 60}
    assert dealt.clients["fog"] == tuple(range(60))


def test_too_many_parts_are_refused_by_the_domains_name() -> None:
    loaded = many(each=20)
    with pytest.raises(InputError, match=r"take 30 training images of each domain, and 'fog' has 20"):
        partition(PartitionSettings(kind="domain", parts=3), loaded.train, loaded.train_groups, SEED)


def test_parts_are_in_the_identity_only_where_they_are_asked_for() -> None:
    assert "partition.parts" not in tiny.experiment().build().identity


# ImageNet


def test_subsets_are_ten_classes_each() -> None:
    of = {wnid: number for name, ids in SUBSETS.items() for wnid, number in zip(ids, NUMBERS[name], strict=True)}
    ordered = [of[wnid] for wnid in sorted(of)]
    assert ordered == sorted(set(ordered))  # ImageNet counts its classes in the order of their ids
    assert 0 <= ordered[0] < ordered[-1] < 1000
    for classes in SUBSETS.values():
        assert len(classes) == len(set(classes.values())) == 10
        assert all(wnid[0] == "n" and wnid[1:].isdigit() and len(wnid) == 9 for wnid in classes)


def test_a_subset_is_read_from_an_imagenet_folder(tmp_path: Path) -> None:
    for split, count in (("train", 2), ("val", 1)):
        for number, wnid in enumerate([*SUBSETS["imfruit"], "n01440764"]):
            folder = tmp_path / split / wnid
            folder.mkdir(parents=True)
            for row in range(count):
                (folder / f"{wnid}_{row}.JPEG").write_bytes(png(10 * number + row, 8, colour=True))
    options = {"source": "imagenet", "path": str(tmp_path), "subset": "imfruit"}
    loaded = load(TypeAdapter(DataSettings).validate_python(options), SEED)
    assert loaded.train.classes[0] == "pineapple"
    assert loaded.train.histogram() == [2] * 10
    assert loaded.test.histogram() == [1] * 10
    for change, match in (
        ({"subset": None}, "data.subset is missing"),
        ({"subset": "imfruits"}, "did you mean 'imfruit'"),
        ({"subset": "imwoof"}, "n02096294 is missing or holds no image: class 'Australian terrier'"),
    ):
        with pytest.raises(InputError, match=match):
            load(TypeAdapter(DataSettings).validate_python(options | change), SEED)


@pytest.mark.parametrize("file", PARTS, ids=lambda file: file.stem)
def test_parts_of_experiments_are_experiments(file: Path) -> None:
    experiment = Experiment.read(file)
    assert experiment.name == file.stem
    # the run's own copy reads back
    assert Experiment.from_table(tomllib.loads(experiment.to_toml())) == experiment
