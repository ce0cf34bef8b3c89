from __future__ import annotations

import dataclasses
import hashlib
import sys
import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import fedstill.generators
import tiny
from fedstill.algorithms import ALGORITHMS
from fedstill.algorithms.feddgm import FedDGM
from fedstill.errors import InputError
from fedstill.experiment import Experiment, starter
from fedstill.method import Method
from fedstill.settings import override
from fedstill.sites import POOLED

WRONG = [
    ({"model": {"widht": 3}}, "model.widht = 3: did you mean 'width'?"),
    ({"model": {"name": "convnt"}}, "model.name = 'convnt': did you mean 'convnet'?"),
    ({"modl": {}}, "modl: no such key: did you mean 'model'?"),
    ({"data": {"siz": 8}}, "data.siz: no such key: did you mean 'size'?"),
    ({"data": {"size": 0}}, "data.size = 0: must be at least 1 or a list"),
    ({"data": 3}, "data = 3: must be a table"),
    ({"algorithm": {"name": "feddgm", "ipc": "five"}}, "algorithm.ipc = 'five': must be an integer"),
    ({"algorithm": {"name": "feddgm", "ipc": 0}}, "algorithm.ipc = 0: must be at least 1"),
    ({"algorithm": {"name": "feddgm", "ipcs": 1}}, "algorithm.ipcs: no such key: did you mean 'ipc'?"),
    ({"algorithm": {"name": "feddgm", "world": 1}}, "algorithm.world: no such key"),
    ({"algorithm": {"name": "feddgm", "lr": float("nan")}}, "algorithm.lr = nan: must be a finite number"),
    ({"algorithm": {"name": "fedavgg"}}, "algorithm.name = 'fedavgg': did you mean 'fedavg'?"),
    ({"algorithm": {"name": "prioronly", "distill_steps": 3}}, "'prioronly' fixes it at 0; remove this key"),
    ({"algorithm": {"gradient": "exat"}}, "must be 'auto', 'exact' or 'truncated': did you mean 'exact'?"),
    ({"algorithm": "fedavg"}, "algorithm: must be a table with a name"),
    ({"algorithm": {"name": "os:path"}}, "algorithm.name = 'os:path': it must be a frozen dataclass"),
    ({"algorithm": {"name": "no_such_module:X"}}, "algorithm.name = 'no_such_module:X': cannot import it"),
    ({"partition": {"alpha": 0}}, "partition.alpha = 0: must be above 0"),
    ({"partition": {"validation": 1}}, "partition.validation = 1: must be below 1"),
    ({"partition": {"test": -0.1}}, "partition.test = -0.1: must be at least 0"),
    (
        {"partition": {"test": 0.9}},
        "partition.validation = 0.1 and partition.test = 0.9 leave a client nothing to train on",
    ),
    ({"output": {"keep_synthetic": 0}}, "output.keep_synthetic = 0: must be at least 1"),
    ({"output": {"trackers": "wandb"}}, "output.trackers = 'wandb': must be a list"),
    ({"evaluate": {"gradients": 1}}, "evaluate.gradients = 1: must be true or false"),
    ({"evaluate": {"gradient": True}}, "evaluate.gradient: no such key: did you mean 'gradients'?"),
    ({"published": {"accuracy": {"resnet18": 73.7}}}, "published.accuracy.resnet18 = 73.7: must be at most 1"),
    ({"published": {"accuracy": {"resnet18": -0.1}}}, "published.accuracy.resnet18 = -0.1: must be at least 0"),
    ({"published": {"accuracy": {"resnet18": "73 %"}}}, "published.accuracy.resnet18 = '73 %': must be a number"),
    ({"published": {"sorce": "x"}}, "published.sorce: no such key: did you mean 'source'?"),
    ({"engine": {"workers": 1.5}}, "engine.workers = 1.5: must be an integer"),
    ({"engine": {"device": "gpu"}}, "engine.device = 'gpu': must be 'auto', 'cpu', 'cuda' or 'mps'"),
    ({"rounds": True}, "rounds = true: must be an integer"),
    ({"partition": {"alpha": float("inf")}}, "partition.alpha = inf: must be a finite number"),
    ({"data": {"mean": [float("nan")]}}, "data.mean[0] = nan: must be a finite number"),
    ({"name": "a b"}, "name = 'a b': must be text that matches"),
    ({"name": ".."}, "name = '..': must be text that matches"),
    ({"name": ".git"}, "name = '.git': must be text that matches"),
    ({"name": "-x"}, "name = '-x': must be text that matches"),
    ({"cohort": 0}, "cohort = 0: must be above 0"),
    ({"cohort": 1.5}, "cohort = 1.5: must be above 0; a fraction such as 0.5 is at most 1.0"),
    ({"cohort": "all"}, "cohort = 'all': must be a fraction"),
    (
        {"sweep": {"seeds": [0, 1]}},
        "[sweep] makes several experiments of this file: they are run with  fedstill sweep",
    ),
]


@pytest.mark.parametrize(("table", "sentence"), WRONG, ids=lambda value: str(value)[:40])
def test_wrong_settings_are_answered_with_key_value_and_reason(table, sentence):
    with pytest.raises(InputError) as caught:
        Experiment.from_table(table)
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("table", "sentence"),
    [
        ({"partition": {"kind": "iid", "clients": 500}}, "partition.clients = 500"),
        ({"cohort": 4}, "cohort = 4: there are 3 clients"),
        ({"quorum": 4}, "quorum = 4"),
        ({"model": {"depth": 5}}, "model.depth"),
        ({"data": {"source": "digit"}}, "data.source = 'digit': did you mean 'digits'?"),
        ({"data": {"source": "folder", "path": "nowhere"}}, "data.path = 'nowhere': there is no such file or folder"),
        ({"data": {"source": "folder"}}, "data.path is missing"),
        ({"algorithm": {"name": "feddgm", "space": 3}}, "algorithm.space = 3"),
        ({"algorithm": {"name": "feddgm", "generator": "pixel"}}, "algorithm.generator = 'pixel'"),
        ({"algorithm": {"name": "feddgm", "global_models": [{"name": "vgg12"}]}}, "algorithm.global_models[0].name"),
        (
            {"algorithm": {"name": "feddgm", "global_models": [{"name": "convnet", "label": "a/b", "depth": 2}]}},
            "the network 'a/b' names a file",
        ),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_does_not_fit_together_is_refused_when_the_parts_are_built(table, sentence):
    with pytest.raises(InputError) as caught:
        tiny.experiment(**table).build()
    assert sentence in str(caught.value)


@pytest.mark.parametrize("name", sorted(ALGORITHMS))
def test_a_starter_reads_back_as_itself_with_a_comment_a_key(name):
    experiment = starter(name)
    text = experiment.to_toml()
    assert Experiment.from_table(tomllib.loads(text)) == experiment
    method = text.partition("[algorithm]")[2].partition("\n[")[0].strip().splitlines()
    assert all("#" in line for line in method if not line.startswith("name"))


def test_every_default_is_written_out_and_unset_keys_are_comments():
    text = starter("feddgm").to_toml()
    assert "\nwidth = 128" in text
    assert "\n# student_batch =" in text
    assert "\nlr_features = 1000.0  # step size of f or pixels" in text


@given(
    st.sampled_from(["fedavg", "feddgm"]),
    st.integers(0, 2**40),
    st.floats(1e-6, 1e3),
    st.one_of(st.integers(1, 9), st.floats(0.01, 1)),
    st.lists(st.sampled_from([{"name": "resnet18", "width": 8}, {"name": "vit"}]), max_size=2),
)
def test_toml_round_trip(name, seed, lr, cohort, networks):
    algorithm = {"name": name, "lr": lr} | ({"global_models": networks} if name == "feddgm" else {})
    experiment = Experiment.from_table({"seed": seed, "cohort": cohort, "algorithm": algorithm})
    again = Experiment.from_table(tomllib.loads(experiment.to_toml({"fedstill": "0"})))
    assert again == experiment
    assert type(again.cohort) is type(cohort)


def test_overrides_are_toml_values_and_text_needs_no_quotes():
    table = override({"a": 1}, ["b.c=5", "d=convnet", 'e="x"', "f=[1, 2]", "g.h.i=true", "a=0.5"])
    assert table == {"a": 0.5, "b": {"c": 5}, "d": "convnet", "e": "x", "f": [1, 2], "g": {"h": {"i": True}}}


@pytest.mark.parametrize("setting", ["seed", "=5", "a..b=5", "seed.x=1"])
def test_malformed_overrides_are_refused(setting):
    with pytest.raises(InputError, match="--set"):
        override({"seed": 1}, [setting])


def test_overrides_do_not_touch_the_table_they_are_put_into():
    table = {"data": {"size": 8}}
    override(table, ["data.size=16"])
    assert table == {"data": {"size": 8}}


def test_a_file_that_is_no_toml_is_answered_with_line_and_column(tmp_path):
    file = tmp_path / "x.toml"
    file.write_text("seed = 1\nrounds 5\n")
    with pytest.raises(InputError, match=r"x\.toml is not TOML: .*line 2, column 8"):
        Experiment.read(file)


def test_an_error_in_a_file_names_the_file(tmp_path):
    file = tmp_path / "x.toml"
    file.write_text("sed = 1\n")
    with pytest.raises(InputError, match=r"x\.toml: sed: no such key: did you mean 'seed'\?"):
        Experiment.read(file)


def test_published_figures_are_written_only_where_there_are_some():
    assert "[published]" not in starter("feddgm").to_toml()
    table = {
        "source": 'FedDGM, "Table 1"',
        "accuracy": {"resnet18": 0.737, "ConvNet 5": 1},
        "clients": {"MNIST": 0.971, "average": 0.9},
    }
    experiment = Experiment.from_table({"published": table})
    text = experiment.to_toml()
    assert tomllib.loads(text)["published"] == table
    assert Experiment.from_table(tomllib.loads(text)) == experiment
    overridden = override({}, ["published.accuracy.resnet18=0.7"])
    assert Experiment.from_table(overridden).published.accuracy == {"resnet18": 0.7}


def test_clients_hold_disjoint_rows_and_validation_is_held_out():
    parts = tiny.experiment(partition={"validation": 0.2}).build()
    held = sum(len(site.train) + len(site.validation) for site in parts.sites.values())
    assert list(parts.sites) == ["c00", "c01", "c02"]
    assert held == sum(map(len, parts.partition.clients.values())) == 120
    assert all(len(site.validation) > 0 for site in parts.sites.values())


def test_a_ceiling_pools_the_very_rows_that_clients_train_on():
    federated, pooled = (
        tiny.experiment({**tiny.FEDAVG, "name": name}, cohort=2).build() for name in ("fedavg", "centralised")
    )
    assert list(pooled.sites) == [POOLED]
    assert len(pooled.sites[POOLED].train) == sum(len(site.train) for site in federated.sites.values())
    assert pooled.partition == federated.partition


def test_identity_knows_what_decides_results_and_nothing_else():
    one = tiny.experiment().build().identity
    same = tiny.experiment(
        name="x",
        rounds=9,
        engine={"workers": 2},
        output={"keep_synthetic": 9, "trackers": ["wandb"]},
        published={"source": "x", "accuracy": {"global": 0.5}},
    )
    assert same.build().identity == one
    changes = ({"seed": 1}, {"threads": 2}, {"cohort": 2}, {"model": {"width": 5}}, {"data": {"test_limit": 40}})
    for change in (*changes, {"partition": {"test": 0.1}}):
        assert tiny.experiment(**change).build().identity != one


def test_a_prior_is_known_by_its_content_shipped_or_not(tmp_path):
    shipped = Path(fedstill.generators.__file__).parent / "priors" / "digits.safetensors"
    copy = tmp_path / "copy.safetensors"
    copy.write_bytes(shipped.read_bytes())
    settings = {**tiny.FEDDGM, "space": 0}
    one, other = (
        tiny.experiment({**settings, "generator": name}, data={"size": 16}).build().identity
        for name in ("digits", str(copy))
    )
    assert one == other
    assert one["algorithm.generator"] == hashlib.sha256(shipped.read_bytes()).hexdigest()


def test_paths_in_a_runs_own_copy_are_absolute(tmp_path, monkeypatch):
    (tmp_path / "images").mkdir()
    monkeypatch.chdir(tmp_path)
    found = Experiment.from_table({"data": {"source": "folder", "path": "images", "test": "nowhere"}}).anchored()
    assert found.data.path == str(tmp_path / "images")
    assert found.data.test == "nowhere"


def test_a_users_own_algorithm_is_validated_from_its_annotations(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(
        "from dataclasses import dataclass\n"
        "from typing import Annotated, Any\n"
        "from pydantic import Field\n"
        "@dataclass(frozen=True, kw_only=True)\n"
        "class Mine:\n"
        "    world: Any\n"
        "    strength: Annotated[float, Field(gt=0, description='how much')]\n"
        "    tags: tuple[str, ...] = ()\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    method = Method.parse({"name": "mine:Mine", "strength": 2, "tags": ["a"]})
    built = method.build(world=None)
    assert (built.strength, built.tags) == (2.0, ("a",))
    with pytest.raises(InputError, match=r"algorithm\.strength is missing"):
        Method.parse({"name": "mine:Mine"})
    with pytest.raises(InputError, match=r"algorithm\.strength = -1: must be above 0"):
        Method.parse({"name": "mine:Mine", "strength": -1})
    sys.modules.pop("mine")


def test_every_field_of_a_method_can_be_set_except_its_world_and_what_its_name_fixes():
    given_fields = set(type(Method.parse({"name": "prioronly"}).options).model_fields)
    assert given_fields == {field.name for field in dataclasses.fields(FedDGM)} - {"world", "distill_steps"}
