"""The files of experiments/: all can be read, and those for the papers' tables say what they claim to say."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from fedstill.data.shard import Normalisation
from fedstill.data.subsets import SUBSETS
from fedstill.errors import InputError
from fedstill.experiment import Experiment
from fedstill.generators.style import StyleOptions
from fedstill.models.architecture import Architecture
from fedstill.priors import PriorTraining
from fedstill.rounds import Desk, World
from fedstill.seeds import Seed
from fedstill.sweep import Cell, read

ROOT = Path(__file__).parents[1]
EXPERIMENTS = ROOT / "experiments"
FEDDGM = EXPERIMENTS / "feddgm"
LAPTOP = FEDDGM / "laptop"
PAPER = sorted(FEDDGM.glob("*.toml"))
SMALL = sorted(LAPTOP.glob("*.toml"))
FEDLGD = EXPERIMENTS / "fedlgd"
FEDLGD_PAPER = sorted([*FEDLGD.glob("table*.toml"), *FEDLGD.glob("ablation-*.toml")])
FEDLGD_SMALL = sorted((FEDLGD / "laptop").glob("*.toml"))
ONESHOT = EXPERIMENTS / "oneshot"
ONESHOT_FILES = sorted(ONESHOT.rglob("*.toml"))
PRIORS = sorted((EXPERIMENTS / "priors").glob("*.toml"))
TABLES = ("table1.toml", "table2.toml", "table3.toml")


def named(path: Path) -> str:
    return str(path.relative_to(EXPERIMENTS))


@cache
def cells(path: Path) -> tuple[Cell, ...]:
    return read([path])


def comment(path: Path) -> str:
    """The lines before the first setting, as one line."""
    lines = path.read_text(encoding="utf-8").splitlines()
    first = next(index for index, line in enumerate(lines) if not line.startswith("#"))
    return " ".join(line.removeprefix("#").strip() for line in lines[:first])


def settings(cell: Cell) -> dict[str, Any]:
    return {**cell.experiment.settings(), "rounds": cell.experiment.rounds}


# --- every file --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", PRIORS, ids=named)
def test_a_priors_file_is_read(path: Path) -> None:
    found = PriorTraining.read(path)
    StyleOptions(
        channels=found.data.channels or 0, size=found.data.size or 0, classes=10, width=found.prior.width
    )  # its own checks
    assert found.source


@pytest.mark.parametrize("path", sorted({*EXPERIMENTS.rglob("*.toml")} - {*PRIORS}), ids=named)
def test_a_file_is_read(path: Path) -> None:
    names = [cell.name for cell in cells(path)]
    assert names
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("path", sorted(EXPERIMENTS.rglob("*.toml")), ids=named)
def test_what_a_comment_names_is_there(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    for file in re.findall(r"[\w./-]+\.(?:toml|md|py)\b", text):
        assert (ROOT / file).is_file() or (path.parent / file).is_file(), file


@pytest.mark.parametrize("path", PAPER + SMALL + FEDLGD_PAPER + FEDLGD_SMALL + ONESHOT_FILES, ids=named)
def test_the_comment_counts_the_runs(path: Path) -> None:
    stated = re.search(r"(\d+) runs\b", comment(path))
    assert stated is not None
    assert int(stated.group(1)) == len(cells(path))


@pytest.mark.parametrize("folder", [FEDDGM, FEDLGD, ONESHOT], ids=named)
def test_the_readme_counts_the_runs(folder: Path) -> None:
    rows = [
        line.split("|")[1:-1]
        for line in (folder / "README.md").read_text(encoding="utf-8").splitlines()
        if line[:3] == "| `"
    ]
    found = {row[0].strip(" `"): next(filter(str.isdigit, map(str.strip, row))) for row in rows if ".toml` " in row[0]}
    assert found
    for name, runs in found.items():
        assert len(cells(folder / name)) == int(runs), name


# --- paper scale -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TABLES)
def test_every_run_of_a_table_has_its_published_value(name: str) -> None:
    for cell in cells(FEDDGM / name):
        published = cell.experiment.published
        assert published.source == f"FedDGM, Table {name[5]}"
        assert "average" in published.accuracy


def test_a_published_average_is_the_mean_of_its_networks() -> None:
    found = {tuple(cell.experiment.published.accuracy.items()) for cell in cells(FEDDGM / "table1.toml")}
    assert len(found) == 20
    for row in map(dict, found):
        average = row.pop("average")
        assert set(row) == {"convnet", "resnet18", "vgg11", "vit"}
        # both were rounded to a tenth of a per cent
        assert sum(row.values()) / 4 == pytest.approx(average, abs=0.0011)


@pytest.mark.parametrize("path", [path for path in PAPER if path.name not in TABLES], ids=named)
def test_what_the_paper_has_no_numbers_for_has_none(path: Path) -> None:
    assert not any(cell.experiment.published.accuracy for cell in cells(path))


def test_the_networks_are_the_papers() -> None:
    def counts(name: str, size: int) -> dict[str, int]:
        options = labelled(FEDDGM / name, "feddgm")[0].experiment.algorithm.options
        return {each.title: parameters(each, size) for each in options.global_models}

    cifar = {"convnet": 596_490, "resnet18": 11_173_962, "vgg11": 9_231_114, "vit": 9_523_722}
    imagenet = {"convnet": 615_690, "resnet18": 11_181_642, "resnet34": 21_282_122}
    assert counts("table1.toml", 32) == cifar
    assert counts("table2.toml", 128) == counts("table3.toml", 128) == imagenet
    depths = {cell.setting["model.depth"]: cell for cell in cells(FEDDGM / "ablation-surrogate.toml")}
    found = {depth: parameters(cell.experiment.model, 32) for depth, cell in depths.items()}
    assert found == {2: 233_610, 3: 320_010, 4: 452_490, 5: 596_490}


@pytest.mark.parametrize("path", [folder / name for folder in (FEDDGM, LAPTOP) for name in TABLES], ids=named)
def test_clients_and_server_train_the_same_networks(path: Path) -> None:
    clients = {cell.experiment.model.title: cell.experiment.model.flat() for cell in labelled(path, "fedavg")}
    server = labelled(path, "feddgm")[0].experiment.algorithm.options.global_models
    assert list(clients) == [each.title for each in server]
    for each in server:
        assert each.flat().items() <= clients[each.title].items()  # which has its defaults written out


def test_the_third_table_is_the_second_on_other_data() -> None:
    second = [settings(cell) for cell in at(FEDDGM / "table2.toml", 0.5)]
    third = [settings(cell) for cell in cells(FEDDGM / "table3.toml") if cell.experiment.data.subset == "imfruit"]
    assert second == third


@pytest.mark.parametrize("path", sorted([*FEDDGM.glob("ablation-*.toml"), *FEDLGD.glob("ablation-*.toml")]), ids=named)
def test_an_ablation_goes_through_the_first_table(path: Path) -> None:
    table = at(FEDDGM / "table1.toml", 0.5) if path.parent == FEDDGM else with_ten_images("fedlgd")
    wanted = [settings(cell) for cell in table if cell.label == path.parent.name]
    assert len(wanted) == 3
    assert [found for cell in cells(path) if (found := settings(cell)) in wanted] == wanted


@pytest.mark.parametrize(
    ("controls", "table"),
    [
        (FEDDGM / "table1-controls.toml", FEDDGM / "table1.toml"),
        (FEDDGM / "imagenet-controls.toml", FEDDGM / "table3.toml"),
        (LAPTOP / "table1-controls.toml", LAPTOP / "table1.toml"),
        (LAPTOP / "table2-controls.toml", LAPTOP / "table2.toml"),
    ],
    ids=named,
)
def test_controls_differ_from_their_table_in_what_they_control(controls: Path, table: Path) -> None:
    of = {"feddm": "feddm", "feddgm": "feddgm", "centralised": "fedavg", "prioronly": "feddgm"}
    for cell in cells(controls):
        mine = settings(cell)
        method = cell.experiment.algorithm.name
        theirs = [
            settings(other)
            for other in cells(table)
            if other.label == of[method] and other.experiment.model == cell.experiment.model
        ]
        free = ["algorithm.name"]
        if method in ("centralised", "prioronly"):
            free += ["partition.alpha"]
        if method == "feddm":
            free += ["algorithm.ipc"]
        if method == "feddgm":
            free += ["algorithm.generator", "algorithm.space", "algorithm.chunk"]
        if method == "prioronly":  # what distils has no part in it
            free += [f"algorithm.{key}" for key in ("gradient", "loss_limit")]
        shared = [key for key in mine if key not in free]
        assert any(all(other.get(key) == mine[key] for key in shared) for other in theirs), cell.name


def distillers(path: Path) -> Iterator[Experiment]:
    """One experiment of each method of the file that asks for the prior."""
    labels = set()
    for cell in cells(path):
        prior = getattr(cell.experiment.algorithm.options, "generator", "pixels")
        if prior.startswith("priors/") and cell.label not in labels:
            labels.add(cell.label)
            yield cell.experiment


@pytest.mark.parametrize("path", PAPER, ids=named)
def test_only_the_missing_prior_stops_it(path: Path) -> None:
    found = list(distillers(path))
    assert found
    for experiment in found:
        size = 32 if experiment.data.source == "parquet" else 128
        with pytest.raises(InputError, match=r"cannot read the prior priors/stylegan-xl-[a-z0-9]+\.safetensors"):
            begin(experiment, size)


@pytest.mark.parametrize("name", TABLES)
def test_with_another_generator_it_begins(name: str) -> None:
    pixels = ["algorithm.generator=pixels", "algorithm.space=pixels", "algorithm.global_models=[]"]
    cell = next(cell for cell in read([FEDDGM / name], settings=pixels) if cell.label == "feddgm")
    begin(cell.experiment, 32 if name == "table1.toml" else 128)


# --- FedLGD ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TABLES)
def test_every_published_mean_over_clients_is_there(name: str) -> None:
    known = {"fedavg", "vhl", "fedlgd"} if name == "table2.toml" else {cell.label for cell in cells(FEDLGD / name)}
    for cell in cells(FEDLGD / name):
        published = cell.experiment.published
        assert not published.accuracy  # which is on all test images together
        assert ("average" in published.clients) == (cell.label in known)
        assert published.source == (f"FedLGD, Table {name[5]}" if cell.label in known else "")


def test_a_published_mean_over_clients_is_that_of_its_clients() -> None:
    rows = {tuple(cell.experiment.published.clients.items()) for cell in cells(FEDLGD / "table1.toml")}
    (row,) = (dict(row) for row in rows if len(row) > 1)
    average = row.pop("average")
    domains = cells(FEDLGD / "table1.toml")[0].experiment.data.domains
    assert domains is not None
    assert set(row) == {domain.name for domain in domains}
    assert sum(row.values()) / 5 == pytest.approx(average, abs=0.0011)


def test_the_networks_are_fedlgds() -> None:
    found = {cell.experiment.model.title: cell.experiment.model for cell in cells(FEDLGD / "table1.toml")}
    assert {name: parameters(model, 28) for name, model in found.items()} == {
        "resnet18": 11_173_962,
        "convnet": 311_050,
    }
    retina = cells(FEDLGD / "table3.toml")[0].experiment
    assert parameters(retina.model, 96, classes=len(retina.data.classes or ())) == 336_386


def test_fedlgds_selected_rounds_are_the_papers() -> None:
    options: Any = labelled(FEDLGD / "table1.toml", "fedlgd")[0].experiment.algorithm.options
    assert [number for number in range(1, 101) if number in options.selected] == [each + 1 for each in range(0, 50, 5)]


@pytest.mark.parametrize(
    "path", [folder / name for folder in (FEDLGD, FEDLGD / "laptop") for name in TABLES], ids=named
)
def test_all_methods_of_fedlgds_tables_have_the_same_images_and_steps(path: Path) -> None:
    training = tuple(f"algorithm.{key}" for key in ("lr", "batch", "epochs", "momentum", "decay"))
    shared = ("virtual.", "data.", "partition.", *training)
    of: dict[str, set[str]] = {}
    for cell in cells(path):
        if cell.label != "fedavg-raw":
            mine = {key: value for key, value in settings(cell).items() if key.startswith(shared)}
            of.setdefault(str(cell.setting), set()).add(str(mine))
    assert all(len(found) == 1 for found in of.values())


@pytest.mark.parametrize("folder", [FEDLGD, FEDLGD / "laptop"], ids=named)
def test_fedlgds_controls_differ_from_its_table_in_what_they_control(folder: Path) -> None:
    differ = {
        "fedavg-longer": {"virtual.steps"},
        "fedavg-twice": {"algorithm.epochs"},
        "fedlgd-still": {"algorithm.match_steps"},
        "fedlgd-plain": {"algorithm.regulariser"},
        "fedlgd-neither": {"algorithm.match_steps", "algorithm.regulariser"},
        "fedlgd-both": {"algorithm.selected_training"},
        "fedlgd-new": {"algorithm.match_at"},
        "fedlgd-gradients": {"algorithm.average"},
        "fedlgd-late": {"algorithm.selected"},
        "fedlgd-kept": {"algorithm.anchors"},
        "vhl-classes": {"algorithm.matching_weight", "algorithm.contrast_weight"},
        "vhl-contrasts": {"algorithm.virtual_weight"},
        "fedavg-raw": {"virtual"},
        "centralised": {"algorithm.name", "virtual"},
    }
    table = with_ten_images("fedavg", "vhl", "fedlgd") if folder == FEDLGD else cells(folder / "table1.toml")
    theirs = {(cell.label, cell.seed): settings(cell) for cell in table}
    for cell in cells(folder / "table1-controls.toml"):
        method = next((each for each in ("fedlgd", "vhl") if each in cell.label), "fedavg")
        mine, other = settings(cell), theirs[method, cell.seed]
        changed = {key for key in mine.keys() | other.keys() if mine.get(key) != other.get(key)}
        if not any(key.startswith("virtual.") for key in mine):
            changed = {key for key in changed if not key.startswith("virtual.")} | {"virtual"}
        assert changed == differ[cell.label], cell.name


# --- laptop ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", SMALL + FEDLGD_SMALL, ids=named)
def test_a_laptops_file_says_how_long_it_takes(path: Path) -> None:
    assert re.search(r"[Ll]ongest run: about \d+ min", comment(path))
    assert re.search(r"all of them: about [\d.]+ (?:min|h)", comment(path))


@pytest.mark.parametrize("path", SMALL + FEDLGD_SMALL, ids=named)
def test_a_laptops_file_claims_no_published_number(path: Path) -> None:
    for cell in cells(path):
        assert not cell.experiment.published.accuracy
        assert getattr(cell.experiment.algorithm.options, "generator", "pixels") in ("pixels", "digits")
    assert {cell.seed for cell in cells(path)} == {0, 1, 2}


@pytest.mark.parametrize("path", SMALL + FEDLGD_SMALL, ids=named)
def test_a_laptops_networks_are_small(path: Path) -> None:
    size = cells(path)[0].experiment.data.size or 32
    assert isinstance(size, int)
    models = {cell.experiment.model.title: cell.experiment.model for cell in cells(path)}
    assert all(parameters(model, size) < 500_000 for model in models.values())


@pytest.mark.parametrize("name", [path.name for path in sorted(FEDLGD.glob("ablation-*.toml"))])
def test_every_ablation_of_fedlgd_has_a_laptops_version(name: str) -> None:
    paper, small = cells(FEDLGD / name), cells(FEDLGD / "laptop" / name)
    assert {(cell.label, *cell.setting) for cell in paper} == {(cell.label, *cell.setting) for cell in small}


@pytest.mark.parametrize("name", [path.name for path in sorted(FEDDGM.glob("ablation-*.toml"))] + list(TABLES))
def test_everything_of_the_paper_has_a_laptops_version(name: str) -> None:
    paper, small = FEDDGM / name, LAPTOP / name
    assert {cell.label for cell in cells(paper)} <= {cell.label for cell in cells(small)}
    if name != "table3.toml":  # which has other data sets instead of the subsets
        assert set(cells(paper)[0].setting) == set(cells(small)[0].setting)


def test_oneshots_tables_have_the_reports_numbers() -> None:
    """Of each cell but the base and the distilled set of 10 shards with 10 images a class, which the report lacks."""
    found = {
        (cell.label, cell.experiment.partition.shards, cell.setting.get("algorithm.ipc")): value
        for name in ("table1.toml", "table1-two-shards.toml")
        for cell in cells(ONESHOT / name)
        if (value := cell.experiment.published.accuracy.get("global")) is not None
    }
    assert len(found) == 5 + 5 + 3
    for shards, ipc in ((2, 1), (2, 10), (5, 1), (5, 10), (10, 1)):
        assert found["base", shards, ipc] < found["oneshot", shards, ipc] < found["fedavg", shards, None]


def test_oneshots_base_and_distilled_sets_have_the_same_budget_at_the_server() -> None:
    keys = {
        "algorithm.search",
        "algorithm.trials",
        "algorithm.search_over",
        "algorithm.global_epochs",
        "algorithm.global_augmentation",
        "rounds",
    }
    for path in ONESHOT_FILES:
        given = [
            {key: settings(cell)[key] for key in keys} for cell in cells(path) if cell.label in ("base", "oneshot")
        ]
        assert all(each == given[0] for each in given)


# --- parts -------------------------------------------------------------------------------------------------------------


def at(path: Path, alpha: float) -> list[Cell]:
    return [cell for cell in cells(path) if cell.experiment.partition.alpha == alpha]


def with_ten_images(*labels: str) -> list[Cell]:
    """Of FedLGD's first table, with a ConvNet."""
    return [
        cell
        for cell in cells(FEDLGD / "table1.toml")
        if cell.label in labels and cell.experiment.model.name == "convnet" and cell.setting["virtual.ipc"] == 10
    ]


def labelled(path: Path, label: str) -> list[Cell]:
    return [cell for cell in cells(path) if cell.label == label]


def architecture(name: str, options: Any, size: int, classes: int = 10) -> Architecture:
    return Architecture(name=name, channels=3, size=(size, size), classes=classes, options=options, key="model")


def parameters(choice: Any, size: int, classes: int = 10) -> int:
    network = architecture(choice.name, choice.options, size, classes).build(Seed.root(0))
    return sum(parameter.numel() for parameter in network.parameters())


def begin(experiment: Experiment, size: int) -> None:
    """What a run does before it asks its first client."""
    model = architecture(experiment.model.name, experiment.model.options, size).resolved()
    names = tuple(SUBSETS["imfruit"].values()) if size == 128 else tuple("0123456789")
    world = World(model, names, Normalisation((0.5,) * 3, (0.25,) * 3))
    experiment.algorithm.build(world).init(("a",), Desk(Seed.root(0)))
