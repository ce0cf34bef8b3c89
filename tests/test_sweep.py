"""A sweep's files: which cells come of them, and how each mistake is answered. Nothing is run here."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

import tiny
from fedstill.cli import invoke
from fedstill.errors import InputError
from fedstill.experiment import Experiment
from fedstill.sweep.forecast import expected, makespan
from fedstill.sweep.grid import Cell, read, title
from fedstill.sweep.machine import has_room, plan
from fedstill.sweep.names import apart, words

BASE = """
name = "tiny"
rounds = 3
[data]
size = 8
[partition]
kind = "dirichlet"
clients = 3
[model]
depth = 2
width = 4
"""

METHODS = """
[algorithm]
epochs = 2
lr = 0.1
mu = 0.5
[sweep]
seeds = [0, 1]
[sweep.grid]
"partition.alpha" = [0.5, 5.0]
[[sweep.methods]]
algorithm = { name = "fedavg", lr = 0.2 }
[[sweep.methods]]
label = "prox"
algorithm = { name = "fedprox" }
grid = { model = [ { name = "convnet", depth = 1, width = 4 }, { name = "resnet18", width = 4 } ] }
"""


@pytest.fixture
def write(tmp_path):
    def write(text: str, name: str = "tiny.toml", base: str = BASE) -> Path:
        path = tmp_path / name
        path.write_text(base + text)
        return path

    return write


def names(cells: tuple[Cell, ...]) -> list[str]:
    return [cell.name for cell in cells]


def refused(path: Path, **options) -> str:
    with pytest.raises(InputError) as caught:
        read([path], **options)
    text = str(caught.value)
    assert "\n" not in text
    return text


# --- cells -------------------------------------------------------------------------------------------------------------


def test_methods_times_settings_times_seeds(write):
    cells = read([write(METHODS)])
    assert names(cells) == [
        f"{each}-{seed}"
        for seed in (0, 1)
        for each in (
            "fedavg-alpha0.5",
            "fedavg-alpha5.0",
            "prox-alpha0.5-convnet",
            "prox-alpha0.5-resnet18",
            "prox-alpha5.0-convnet",
            "prox-alpha5.0-resnet18",
        )
    ]
    first, last = cells[0], cells[-1]
    assert (first.label, first.seed, first.group) == ("fedavg", 0, "fedavg-alpha0.5")
    assert first.setting == {"partition.alpha": 0.5}
    assert (first.experiment.name, last.experiment.name) == ("tiny-fedavg", "tiny-prox")
    assert (last.experiment.seed, last.experiment.partition.alpha) == (1, 5.0)
    assert last.setting["model"] == {"name": "resnet18", "width": 4}


def test_shared_options_go_to_methods_that_have_them_and_a_methods_own_win(write):
    cells = read([write(METHODS)])
    fedavg, prox = cells[0].experiment.algorithm.fields(), cells[2].experiment.algorithm.fields()
    assert (fedavg["epochs"], fedavg["lr"], "mu" in fedavg) == (2, 0.2, False)
    assert (prox["epochs"], prox["lr"], prox["mu"]) == (2, 0.1, 0.5)


def test_what_a_name_fixes_is_not_given_to_it(write):
    cells = read(
        [
            write(
                '[algorithm]\ndistill_steps = 7\n[[sweep.methods]]\nalgorithm = {name = "feddgm"}\n'
                '[[sweep.methods]]\nalgorithm = {name = "prioronly"}\n'
            )
        ]
    )
    assert [cell.experiment.algorithm.fields()["distill_steps"] for cell in cells] == [7, 0]


def test_a_methods_tables_are_laid_over_the_files_and_a_network_of_another_name_takes_its_place(write):
    sweep = """
[algorithm]
name = "fedavg"
[[sweep.methods]]
label = "wide"
model = { width = 8 }
rounds = 1
partition = { clients = 4 }
[[sweep.methods]]
label = "other"
model = { name = "resnet18" }
"""
    wide, other = (cell.experiment for cell in read([write(sweep)]))
    assert wide.model.options["depth"] == 2
    assert (wide.model.options["width"], wide.rounds, wide.partition.clients) == (8, 1, 4)
    assert other.model == Experiment.from_table({"model": {"name": "resnet18"}}).model
    assert (other.rounds, other.partition.clients) == (3, 3)


def test_one_method_without_a_list_of_methods(write):
    cells = read([write('[algorithm]\nname = "fedavg"\n[sweep]\nseeds = [4, 2]\n')])
    assert names(cells) == ["fedavg-4", "fedavg-2"]
    assert cells[0].experiment.name == "tiny-fedavg"


def test_keys_may_be_written_without_quotes(write):
    cells = read([write('[algorithm]\nname = "fedavg"\n[sweep.grid]\npartition.alpha = [1.0, 2.0]\n')])
    assert [cell.setting for cell in cells] == [{"partition.alpha": 1.0}, {"partition.alpha": 2.0}]


def test_an_algorithms_option_varies_the_methods_that_have_it(write):
    text = METHODS.replace('"partition.alpha" = [0.5, 5.0]', '"algorithm.mu" = [0.1, 0.2]').replace("mu = 0.5\n", "")
    cells = read([write(text)], seeds=[7])
    assert names(cells)[:3] == ["fedavg-7", "prox-mu0.1-convnet-7", "prox-mu0.1-resnet18-7"]


def test_experiment_files_are_methods_called_after_their_files(write):
    one = write('[algorithm]\nname = "fedavg"\n', "soft.toml")
    other = write('[algorithm]\nname = "fedavg"\nlr = 0.5\n', "hard.toml")
    cells = read([one, other], seeds=[0, 1])
    assert names(cells) == ["soft-0", "hard-0", "soft-1", "hard-1"]
    assert {cell.experiment.name for cell in cells} == {"tiny"}
    assert names(read([one])) == ["soft-0"]


@pytest.mark.parametrize("name", ["digits", "fashion", "cifar10"])
def test_the_kept_comparisons_are_sweeps(name):
    files = sorted((Path(__file__).parents[1] / "experiments" / name).glob("*.toml"))
    cells = read(files, seeds=[0, 1, 2])
    assert names(cells)[: len(files)] == [f"{file.stem}-0" for file in files]
    assert cells[0].experiment == Experiment.read(files[0])


def test_options_go_to_every_cell_and_over_what_files_say(write):
    cells = read([write(METHODS)], seeds=[3], settings=["algorithm.lr=0.5", "rounds=1", "algorithm.mu=0.7"])
    assert {cell.experiment.rounds for cell in cells} == {1}
    assert {cell.experiment.algorithm.fields()["lr"] for cell in cells} == {0.5}
    assert {cell.seed for cell in cells} == {3}
    assert "mu" not in cells[0].experiment.algorithm.fields()


def test_vary_adds_a_key_and_takes_the_place_of_a_grids(write):
    cells = read([write(METHODS)], seeds=[0], vary=["partition.alpha=1.5", "algorithm.lr=0.1,0.3"])
    assert names(cells)[:2] == ["fedavg-alpha1.5-lr0.1-0", "fedavg-alpha1.5-lr0.3-0"]
    assert len(cells) == 6


def test_vary_takes_words_and_toml(write):
    file = write('[algorithm]\nname = "feddgm"\n')
    assert [cell.setting["algorithm.space"] for cell in read([file], vary=["algorithm.space=0,3,pixels"])] == [
        0,
        3,
        "pixels",
    ]
    cells = read([file], vary=['data.corruptions=["fog"],["frost","fog"]'])
    assert names(cells) == ["tiny-corruptionsfog-0", "tiny-corruptionsfrost-fog-0"]


def test_cells_of_two_files_that_would_be_called_the_same(write):
    cells = read([write(METHODS, "one.toml"), write(METHODS.replace("0.2", "0.3"), "two.toml", BASE.replace("8", "9"))])
    assert "one-fedavg-alpha0.5-0" in names(cells)
    assert "two-fedavg-alpha0.5-0" in names(cells)
    assert len(set(names(cells))) == len(cells) == 24


def test_a_sweep_is_called_after_its_one_file(write):
    file = write(METHODS)
    assert title([file]) == "tiny"
    with pytest.raises(InputError, match="--out is missing"):
        title([file, file])


def test_reading_is_pure(write):
    file = write(METHODS)
    assert read([file]) == read([file])
    assert [path.name for path in file.parent.iterdir()] == ["tiny.toml"]


# --- published values --------------------------------------------------------------------------------------------------


def test_published_values_go_to_the_cells_they_fit(write):
    cells = read(
        [
            write(
                METHODS
                + """
[[sweep.published]]
source = "A, Table 1"
method = "prox"
when = { "partition.alpha" = 0.5 }
accuracy = { convnet = 0.7, average = 0.6 }
[[sweep.published]]
source = "B"
when = { partition.alpha = 0.5, model.name = "resnet18" }
accuracy = { resnet18 = 0.5 }
"""
            )
        ]
    )
    said = {cell.group: cell.experiment.published for cell in cells}
    assert said["fedavg-alpha0.5"].accuracy == {}
    assert said["prox-alpha5.0-convnet"].source == ""
    assert (said["prox-alpha0.5-convnet"].source, said["prox-alpha0.5-convnet"].accuracy) == (
        "A, Table 1",
        {"convnet": 0.7, "average": 0.6},
    )
    both = said["prox-alpha0.5-resnet18"]
    assert (both.source, both.accuracy) == ("A, Table 1; B", {"convnet": 0.7, "average": 0.6, "resnet18": 0.5})


def test_options_that_narrow_a_sweep_may_leave_published_values_without_a_cell(write):
    file = write(METHODS + '[[sweep.published]]\nwhen = { "partition.alpha" = 5.0 }\naccuracy = { convnet = 0.7 }\n')
    cells = read([file], vary=["partition.alpha=0.5"])
    assert {str(cell.experiment.published.accuracy) for cell in cells} == {"{}"}


# --- mistakes ----------------------------------------------------------------------------------------------------------

ONE = '[algorithm]\nname = "fedavg"\n'


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (ONE + "[sweep]\nsedes = [0]", "sweep.sedes: no such key: did you mean 'seeds'?"),
        (ONE + 'sweep = 5', "algorithm.sweep: no such key"),
        (ONE + "[sweep]\nseeds = []", "sweep.seeds = []: must be a list of at least 1"),
        (ONE + '[sweep]\nseeds = [0, "a"]', "sweep.seeds[1] = 'a': must be an integer"),
        (ONE + "[sweep]\nseeds = [0.5]", "sweep.seeds[0] = 0.5: must be an integer"),
        (ONE + "[sweep]\nseeds = [-1]", "sweep.seeds[0] = -1: must be at least 0"),
        (ONE + "[sweep]\nseeds = [1, 2, 1]", "sweep.seeds: 1 is there twice"),
        (ONE + "[sweep.grid]\npartition.alpha = 0.5", 'sweep.grid "partition.alpha" = 0.5: must be a list of values'),
        (ONE + "[sweep.grid]\npartition.alpha = []", 'sweep.grid "partition.alpha" = []: give at least one value'),
        (ONE + "[sweep.grid]\npartition.alpha = [1, 1]", 'sweep.grid "partition.alpha": 1 is there twice'),
        (
            ONE + "[sweep.grid]\npartition.alhpa = [1]",
            "sweep.grid \"partition.alhpa\": no such key: did you mean 'partition.alpha'?",
        ),
        (ONE + "[sweep.grid]\nparition.alpha = [1]", 'sweep.grid "parition.alpha": no such key'),
        (ONE + "[sweep.grid]\ncohort.x = [1]", 'sweep.grid "cohort.x": no such key'),
        (ONE + "[sweep.grid]\nseed = [1]", 'sweep.grid "seed": list seeds under sweep.seeds'),
        (ONE + "[sweep.grid]\nengine.workers = [1]", 'sweep.grid "engine.workers": engine changes no result'),
        (ONE + "[sweep.grid]\nrounds = [1]", 'sweep.grid "rounds": rounds changes no result'),
        (ONE + '[sweep.grid]\nalgorithm.name = ["fedavg"]', "give each method a [[sweep.methods]] table of its own"),
        (
            ONE + "[sweep.grid]\nmodel = [{depth = 1}]\n\"model.width\" = [4]",
            'sweep.grid "model": "model.width" is varied too',
        ),
        (
            ONE + "[sweep.grid]\nalgorithm.epohcs = [1]",
            "sweep.grid algorithm.epohcs: no method here has such an option: did you mean 'epochs'?",
        ),
        (ONE + "[sweep.grid]\nmodel.depht = [1]", "fedavg-depht1: model.depht = 1: did you mean 'depth'?"),
        (ONE + "[sweep.grid]\npartition.alpha = [0.5, -1.0]", "fedavg-alpha-1.0: partition.alpha = -1.0: must be above 0"),
        (ONE + '[sweep.grid]\nmodel = ["resnet18"]', "fedavg-modelresnet18: model = 'resnet18': must be a table"),
        ("[algorithm]\nlr = 0.1\n[sweep]", "algorithm.name is missing: name the method there, or list [[sweep.methods]]"),
        ("[[sweep.methods]]\nlabel = 'a'", "sweep.methods 'a': algorithm.name is missing"),
        (ONE + "[[sweep.methods]]\nlabel = 'a b'", "sweep.methods[0].label = 'a b': must be up to 48 letters"),
        (ONE + "[[sweep.methods]]\nlabel = ''", "sweep.methods[0].label = '': must be"),
        (ONE + "[[sweep.methods]]\nlabels = 'a'", "sweep.methods[0].labels: no such key: did you mean 'label'?"),
        (ONE + "[[sweep.methods]]\nseed = 1", "sweep.methods[0].seed = 1: list seeds under sweep.seeds"),
        (ONE + "[[sweep.methods]]\nname = 'a'", "sweep.methods[0].name = 'a': cells are named after"),
        (ONE + "[[sweep.methods]]\nalgorithm = 'fedavg'", "sweep.methods[0].algorithm = 'fedavg': must be a table"),
        (ONE + "[[sweep.methods]]\n[[sweep.methods]]", "sweep.methods: two methods have the label 'fedavg'"),
        (
            "[[sweep.methods]]\nalgorithm = {name = 'fedagv'}",
            "algorithm.name = 'fedagv': did you mean 'fedavg'?",
        ),
        (
            "[algorithm]\nepohcs = 1\n[[sweep.methods]]\nalgorithm = {name = 'fedavg'}",
            "algorithm.epohcs: no method here has such an option: did you mean 'epochs'?",
        ),
        (
            "[[sweep.methods]]\nalgorithm = {name = 'fedavg', mu = 0.1}",
            "fedavg: algorithm.mu: no such key",
        ),
        (
            ONE + "[[sweep.methods]]\ngrid = {partition.alpha = [1]}\n[sweep.grid]\npartition.alpha = [2]",
            "sweep.methods 'fedavg': its grid has \"partition.alpha\", and sweep.grid has \"partition.alpha\"",
        ),
        (
            ONE + "[[sweep.methods]]\npartition.alpha = 1\n[sweep.grid]\npartition.alpha = [2]",
            "sweep.methods 'fedavg' sets \"partition.alpha\", which \"partition.alpha\" of a grid would overwrite",
        ),
        (
            ONE + "[[sweep.methods]]\n[[sweep.methods]]\nlabel = 'same'",
            "fedavg-0 and same-0 have the same settings: one would repeat the other",
        ),
        (ONE + "[[sweep.published]]\nsorce = 'a'", "sweep.published[0].sorce: no such key: did you mean 'source'?"),
        (ONE + "[[sweep.published]]\naccuracy = {convnet = 70.1}", "accuracy.convnet = 70.1: must be at most 1"),
        (ONE + "[[sweep.published]]\nwhen = 1", "sweep.published[0].when = 1: must be a table"),
        (ONE + "[[sweep.published]]\nmethod = 1", "sweep.published[0].method = 1: must be a label in quotes"),
        (
            ONE + "[[sweep.published]]\nmethod = 'fedavgg'",
            "sweep.published[0] fits no cell: method = 'fedavgg': did you mean 'fedavg'?",
        ),
        (
            ONE + "[[sweep.published]]\nwhen = {partition.alhpa = 1}",
            "sweep.published[0] fits no cell: when \"partition.alhpa\": no such setting: did you mean 'partition.alpha'?",
        ),
        (
            ONE + "[[sweep.published]]\nwhen = {partition.alpha = 0.9}",
            'sweep.published[0] fits no cell: when "partition.alpha" = 0.9: cells have 0.5',
        ),
        (
            ONE + "[[sweep.published]]\naccuracy = {convent = 0.7}",
            "sweep.published[0].accuracy.convent: no such network: did you mean 'convnet'?",
        ),
        (
            ONE + "[[sweep.published]]\naccuracy = {convnet = 0.7}\n[[sweep.published]]\naccuracy = {convnet = 0.8}",
            "sweep.published[1].accuracy.convnet = 0.8: sweep.published[0] says 0.7 of the same cells",
        ),
    ],
)  # fmt: skip
def test_a_mistake_is_one_sentence_that_names_file_and_key(text, sentence, write):
    file = write(text)
    said = refused(file)
    assert sentence in said
    assert said.startswith((f"{file}: ", "fedavg-0 and"))


def test_sweep_must_be_a_table(write):
    assert "sweep = 5: must be a table" in refused(write("", base="sweep = 5\n" + BASE))


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"seeds": []}, "--seeds: give at least one seed"),
        ({"seeds": [1, 1]}, "--seeds: 1 is there twice"),
        ({"seeds": [-1]}, "--seeds: -1 is below 0"),
        ({"settings": ["seed=1"]}, "--set seed: what is set goes to every cell; use --seeds"),
        ({"settings": ["sweep.seeds=[1]"]}, "--set sweep: what is set goes to every cell; use --seeds and --vary"),
        ({"settings": ["algorithm.ipc=1"]}, "--set algorithm.ipc: no method here has such an option"),
        ({"settings": ["partition.alpha=1"]}, '--set sets "partition.alpha", which "partition.alpha" of a grid'),
        ({"vary": ["algorithm.ipc=1"]}, "--vary algorithm.ipc: no method here has such an option"),
        ({"vary": ["partition.alpha"]}, "--vary partition.alpha: write it as --vary table.key=value,value"),
        ({"vary": ["partition.alpha="]}, '--vary "partition.alpha" = []: give at least one value'),
        ({"vary": ["data.size=8", "data.size=16"]}, "--vary data.size: it is given twice"),
        ({"vary": ["data.size=8"], "settings": ["data.size=8"]}, '--set sets "data.size"'),
        ({"vary": ["dta.size=8"]}, '--vary "dta.size": no such key'),
    ],
)
def test_mistakes_in_options(options, sentence, write):
    assert sentence in refused(write(METHODS), **options)


def test_files_that_are_none_twice_or_not_there(write):
    file = write(METHODS)
    for files, sentence in (
        ([], "at least one file"),
        ([file, file], "is given twice"),
        ([file.with_name("no.toml")], "cannot read"),
    ):
        with pytest.raises(InputError, match=sentence):
            read(files)


def test_run_sends_a_sweep_file_to_sweep(write, capsys):
    file = write(METHODS)
    assert invoke(["run", str(file)]) == 2
    said = capsys.readouterr().err
    assert said == (
        f"fedstill: {file}: [sweep] makes several experiments of this file: they are run with  fedstill sweep\n"
    )


# --- names, times, places ----------------------------------------------------------------------------------------------


def test_words_of_values():
    assert words("partition.alpha", [0.5, 1e-05, 3]) == ["alpha0.5", "alpha1e-05", "alpha3"]
    assert words("data.path", ["data/a b", "/x/ü.parquet"]) == ["patha_b", "path.parquet"]
    assert words("algorithm.logits", [True, False]) == ["logitstrue", "logitsfalse"]
    tables = [{"name": "convnet", "depth": 3}, {"name": "convnet", "depth": 5}, {"name": "my.nets:Wide"}]
    assert words("model", tables) == ["convnet-depth3", "convnet-depth5", "Wide"]


def test_a_name_fits_a_file_system_and_has_no_blank():
    first, second = apart(["a" * 300, "a" * 299 + "b"], ["my file", "other"])
    assert max(len(first), len(second)) == 200
    assert first.startswith("my_file-a")
    assert second.startswith("other-a")


def test_names_are_apart_whatever_the_file_system():
    assert apart(["a", "A", "b"], ["x", "y", "x"]) == ["x-a", "y-A", "b"]
    assert apart(["a", "a"], ["x", "x"]) == ["a", "a-2"]
    assert apart(["a", "a", "a-2"], ["x", "x", "x"]) == ["a", "a-2", "a-2-2"]


def test_the_time_of_all_with_some_places():
    assert makespan([], [3, 3, 3, 3], 2) == 6
    assert makespan([5], [1, 1, 1], 2) == 5
    assert makespan([5, 1], [10], 2) == 11
    assert makespan([], [], 2) == 0


def test_a_rounds_time_is_expected_from_the_likest_cells(write):
    cells = read([write(METHODS)])
    by_name = {cell.name: cell for cell in cells}
    first = cells[0]
    took = {"prox-alpha0.5-convnet-0": (by_name["prox-alpha0.5-convnet-0"], 8.0)}
    assert expected(first, {}) is None
    assert expected(first, took) == 8
    took["fedavg-alpha5.0-0"] = (by_name["fedavg-alpha5.0-0"], 2.0)
    assert expected(first, took) == 2
    took["fedavg-alpha0.5-1"] = (by_name["fedavg-alpha0.5-1"], 3.0)
    assert expected(first, took) == 3


@pytest.mark.parametrize(
    ("given", "jobs", "limit"),
    [
        ({}, 8, "cores"),
        ({"threads": 3}, 2, "cores"),
        ({"threads": 9}, 1, "cores"),
        ({"cells": 2}, 2, "cells"),
        ({"cells": 0}, 1, "cells"),
        ({"need": 30}, 3, "memory"),
        ({"need": 300}, 1, "memory"),
        ({"need": 30, "free": None}, 8, "cores"),
        ({"shared": True}, 1, "device"),
        ({"jobs": 20, "need": 300, "shared": True}, 20, "asked"),
    ],
)
def test_how_many_at_a_time(given, jobs, limit):
    machine = {"cells": 39, "threads": 1, "jobs": None, "shared": False, "cores": 8, "need": None, "free": 100}
    found = plan(**{**machine, **given})
    assert (found.jobs, found.limit) == (jobs, limit)


def test_a_cell_begins_where_those_at_work_leave_it_room_when_they_are_grown():
    assert has_room(100, 30, [])
    assert has_room(100, 30, [10, 30])
    assert not has_room(60, 30, [0, 30, 10])
    assert has_room(None, 30, [0])
    assert has_room(10, None, [0])


def test_a_cells_experiment_is_its_files(write):
    table = tiny.table(seed=3)
    file = write(Experiment.from_table(table).to_toml(), base="")
    (cell,) = read([file])
    assert cell.experiment == Experiment.read(file)
    assert tomllib.loads(cell.experiment.to_toml()) == tomllib.loads(file.read_text())


def test_the_documented_file_is_one(tmp_path: Path) -> None:
    text = (Path(__file__).parents[1] / "docs" / "sweeps.md").read_text()
    (tmp_path / "sweep.toml").write_text(text.partition("```toml\n")[2].partition("```")[0])
    cells = read([tmp_path / "sweep.toml"])
    assert len(cells) == (2 * 2 + 2) * 3
    assert "fedavg-alpha0.5-resnet18-0" in {cell.name for cell in cells}
    assert [cell.name for cell in cells if cell.experiment.published.accuracy] == [
        f"fedavg-alpha0.5-{network}-{seed}" for seed in (0, 1, 2) for network in ("convnet", "resnet18")
    ]
