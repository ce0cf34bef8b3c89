"""A site: its description, its classes by name, its images as the federation has them, and whether it is ready."""

from __future__ import annotations

import json
import os
import unicodedata
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import fedstill
import tiny
from fedstill.cli import invoke
from fedstill.data.classes import relabelled
from fedstill.data.shard import Normalisation, Shard
from fedstill.deployment.checks import (
    check_site,
    class_problems,
    clock_problem,
    folder_problem,
    form_problems,
    policy_problems,
    space_problem,
    version_problem,
)
from fedstill.deployment.federation import Federation, agreed, identity
from fedstill.deployment.policy import Policy
from fedstill.deployment.site import SiteSettings, as_site, load_images, starter
from fedstill.deployment.sizes import parse_size, size_text
from fedstill.errors import InputError
from fedstill.experiment import Experiment
from fedstill.seeds import Seed
from fedstill.settings import validated

SEED = Seed.root(0).at("data")
FEDERATION = ("edge", "bar", "dot")


def pictures(folder: Path, classes: dict[str, int], size: int = 8) -> Path:
    for level, (name, count) in enumerate(classes.items()):
        (folder / name).mkdir(parents=True)
        for number in range(count):
            pixels = np.full((size, size), 40 * level + number, np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{number:02d}.png")
    return folder


def described(tmp_path: Path, text: str = "", *, data: str = "", policy: str = "") -> Path:
    """A site's file, over a folder with images of bar and dot."""
    if not (tmp_path / "images").exists():
        pictures(tmp_path / "images", {"bar": 10, "dot": 6})
    path = tmp_path / "site.toml"
    path.write_text(f'name = "a"\nfree = "1 kB"\n{text}\n[data]\npath = "images"\n{data}\n[policy]\n{policy}\n')
    return path


def shard(labels: list[int], classes: tuple[str, ...]) -> Shard:
    images = torch.arange(len(labels), dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 1, 8, 8)
    return Shard(images, torch.tensor(labels, dtype=torch.int64), classes, Normalisation((0.5,), (0.25,)))


def federated(algorithm: dict | None = None, **data: object) -> Experiment:
    return tiny.experiment(algorithm or tiny.FEDAVG, data={"classes": list(FEDERATION), **data})


# --- classes by name ---------------------------------------------------------------------------------------------------


def test_labels_follow_names_whatever_their_order():
    found = relabelled(shard([0, 1, 1, 0], ("dot", "edge")), FEDERATION)
    assert found.classes == FEDERATION
    assert found.labels.tolist() == [2, 0, 0, 2]
    assert found.labels.dtype == torch.int64
    assert torch.equal(found.images, shard([0, 1, 1, 0], ("dot", "edge")).images)


def test_equal_classes_change_nothing():
    held = shard([2, 0, 1], FEDERATION)
    assert torch.equal(relabelled(held, FEDERATION).labels, held.labels)


def test_an_empty_shard_has_the_federation_s_classes_too():
    found = relabelled(shard([], ("dot",)), FEDERATION)
    assert len(found) == 0
    assert found.classes == FEDERATION


def test_a_class_that_the_federation_lacks_is_refused_with_a_suggestion():
    with pytest.raises(InputError, match=r"the class 'bars' is no class of the federation: did you mean 'bar'\?"):
        relabelled(shard([0, 1], ("bars", "dot")), FEDERATION)


def test_a_name_without_an_image_may_be_any():
    assert relabelled(shard([1, 1], ("never seen", "dot")), FEDERATION).labels.tolist() == [2, 2]


def test_a_federation_that_names_a_class_twice_is_refused():
    with pytest.raises(InputError, match="'dot' twice"):
        relabelled(shard([0], ("dot",)), ("dot", "bar", "dot"))


def test_an_accent_may_be_composed_or_not():
    composed, apart = (unicodedata.normalize(form, "Nävus") for form in ("NFC", "NFD"))
    assert composed != apart
    assert relabelled(shard([0], (apart,)), ("bar", composed)).labels.tolist() == [1]


# --- the description ---------------------------------------------------------------------------------------------------


def test_the_starter_is_read_back(tmp_path):
    (tmp_path / "site.toml").write_text(starter("a").to_toml())
    found = SiteSettings.read(tmp_path / "site.toml")
    assert found.name == "a"
    assert found.policy == Policy()
    assert found.policy.largest == 50_000_000
    assert Path(found.folder) == tmp_path / "kept"
    assert found.data.path == str(tmp_path / "images")
    assert "# docs" not in starter().to_toml().splitlines()[0]
    assert all("#" in line or not line.strip() or line.startswith("[") for line in starter().to_toml().splitlines())


def test_paths_are_from_the_file_and_not_from_where_one_stands(tmp_path, monkeypatch):
    path = described(tmp_path, 'folder = "/var/lib/fedstill"')
    monkeypatch.chdir("/")
    found = SiteSettings.read(path)
    assert found.folder == "/var/lib/fedstill"
    assert found.data.path == str(tmp_path / "images")


@pytest.mark.parametrize(
    ("text", "data", "policy", "sentence"),
    [
        ("lack = []", "", "", "lack: no such key: did you mean 'lacks'?"),
        ("", "pth = 'x'", "", "data.pth: no such key: did you mean 'path'?"),
        ("", "", "alow = []", "policy.alow: no such key: did you mean 'allow'?"),
        ("", "", "allow = ['model weight']", "did you mean 'model weights'?"),
        ("", "", "allow = ['surrogate weights']", "did you mean 'model weights'?"),
        ("", "", "allow = 'model weights'", "policy.allow = 'model weights': must be a list"),
        ("", "", "largest = '50 XB'", "policy.largest = '50 XB': must be a size such as '50 MB' or '1.5 GiB'"),
        ("", "", "largest = '0 MB'", "policy.largest = '0 MB': must be at least 1"),
        ("", "", "largest = true", "policy.largest = true: must be an integer"),
        ("", "", "experiments = ['abc']", "policy.experiments[0] = 'abc'"),
        ("", "validation_fraction = 0.6\ntest_fraction = 0.4", "", "leave nothing to train on"),
        ("", "source = 'hub'", "", "a site's images lie at the site"),
        ("lacks = 'dot'", "", "", "lacks = 'dot': must be a list"),
    ],
)
def test_a_wrong_key_or_value_is_one_sentence(tmp_path, text, data, policy, sentence):
    with pytest.raises(InputError) as told:
        SiteSettings.read(described(tmp_path, text, data=data, policy=policy))
    assert sentence in str(told.value)
    assert str(told.value).startswith(str(tmp_path / "site.toml"))


@pytest.mark.parametrize("name", ["", "../a", ".a", "a b", "ä", "a" * 65, "a\n"])
def test_a_name_that_could_be_no_file_s_is_refused(name):
    with pytest.raises(InputError, match="name"):
        validated(SiteSettings, {"name": name})


def test_a_name_is_due():
    with pytest.raises(InputError, match="name is missing"):
        validated(SiteSettings, {})


@pytest.mark.parametrize(
    ("text", "count"),
    [("50 MB", 50_000_000), ("1.5 GiB", 1_610_612_736), ("7B", 7), ("2 kb", 2000), ("1 TB", 10**12), ("0.5 kB", 500)],
)
def test_sizes(text, count):
    assert parse_size(text) == count


@pytest.mark.parametrize(
    "text", ["", "MB", "50", "-1 MB", "1e9 B", "1,5 MB", "50 MB please", "٥ MB", "inf MB", "1" * 400 + " B"]
)
def test_what_is_no_size(text):
    with pytest.raises(ValueError, match="a size such as"):
        parse_size(text)


@pytest.mark.parametrize("count", [1, 999, 1000, 1234, 50_000_000, 1_610_612_736, 1_500_000_000, 10**12])
def test_sizes_are_written_so_that_they_are_read_back(count):
    assert parse_size(size_text(count)) == count


# --- images ------------------------------------------------------------------------------------------------------------


def site_of(settings: SiteSettings, federation: Federation, seed: Seed = SEED):
    loaded = load_images(settings, federation, SEED)
    return as_site(
        settings, loaded, classes=federation.classes, normalisation=Normalisation((0.5,), (0.25,)), seed=seed
    )


def test_a_site_has_all_its_images_and_the_federation_s_form(tmp_path):
    settings = SiteSettings.read(described(tmp_path, data="validation_fraction = 0.25"))
    found = site_of(settings, Federation(classes=FEDERATION, size=(6, 6), channels=3))
    assert (len(found.train), len(found.validation), len(found.test)) == (12, 4, 0)
    assert found.train.size == (6, 6)
    assert found.train.channels == 3
    assert found.train.classes == FEDERATION
    counts = zip(found.train.histogram(), found.validation.histogram(), strict=True)
    assert [trained + kept for trained, kept in counts] == [0, 10, 6]
    assert found.train.normalisation == Normalisation((0.5,), (0.25,))


def test_test_images_of_its_own(tmp_path):
    pictures(tmp_path / "held out", {"dot": 3, "bar": 2})
    path = described(tmp_path, data="test = 'held out'\ntest_fraction = 0.25\nvalidation_fraction = 0")
    found = site_of(SiteSettings.read(path), Federation(classes=FEDERATION))
    assert len(found.validation) == 0
    assert len(found.train) == 12
    assert len(found.test) == 4 + 5
    assert sum(map(torch.tensor, (found.train.histogram(), found.test.histogram()))).tolist() == [0, 12, 9]


def test_a_site_is_the_client_that_a_simulation_has(tmp_path):
    """The same rows in the same order, set aside by the same stream: the same Site, to the bit."""
    experiment = tiny.experiment(partition={"validation": 0.2, "test": 0.1})
    parts = experiment.build()
    client, wanted = next(iter(parts.sites.items()))
    rows = list(parts.partition.clients[client])
    own = parts.data.train.take(rows)
    names = tuple(reversed(own.classes))
    np.savez(tmp_path / "own.npz", images=own.images.numpy(), labels=(len(names) - 1 - own.labels).numpy())
    settings = validated(
        SiteSettings,
        {
            "name": client,
            "data": {
                "source": "arrays",
                "path": str(tmp_path / "own.npz"),
                "classes": list(names),
                "validation_fraction": 0.2,
                "test_fraction": 0.1,
            },
        },
    )
    found = as_site(
        settings,
        load_images(settings, Federation(classes=own.classes), SEED),
        classes=own.classes,
        normalisation=own.normalisation,
        seed=Seed.root(experiment.seed).at("validation", client),
    )
    for mine, theirs in zip(
        (found.train, found.validation, found.test), (wanted.train, wanted.validation, wanted.test), strict=True
    ):
        assert torch.equal(mine.images, theirs.images)
        assert torch.equal(mine.labels, theirs.labels)
        assert (mine.classes, mine.normalisation) == (theirs.classes, theirs.normalisation)


# --- the federation ----------------------------------------------------------------------------------------------------


def test_what_an_experiment_asks_of_a_site():
    found = Federation.of(federated(tiny.ONESHOT, size=[6, 8], channels=3, fit="crop"))
    assert (found.classes, found.size, found.channels, found.fit) == (FEDERATION, (6, 8), 3, "crop")
    assert set(found.sends) == {"synthetic images", "statistics", "numbers"}


def test_an_experiment_without_classes_and_one_that_pools_are_no_federation_s():
    with pytest.raises(InputError, match=r"data\.classes is missing"):
        Federation.of(tiny.experiment())
    with pytest.raises(InputError, match="pools all images on one site"):
        Federation.of(federated({**tiny.FEDAVG, "name": "centralised"}))


def test_an_identity_is_of_what_is_done_at_a_site():
    first = federated()
    known = identity(agreed(first))
    assert len(known) == 64
    for same in (
        federated(path="elsewhere", source="folder"),
        replace(first, rounds=99, name="other"),
        tiny.experiment(data={"classes": list(FEDERATION)}, partition={"clients": 7}),
    ):
        assert identity(agreed(same)) == known
    for other in (
        federated({**tiny.FEDAVG, "epochs": 3}),
        federated(size=16),
        replace(first, seed=1),
        tiny.experiment(data={"classes": ["bar", "edge", "dot"]}),
    ):
        assert identity(agreed(other)) != known
    assert identity(json.loads(json.dumps(dict(reversed(agreed(first).items()))))) == known


# --- checks ------------------------------------------------------------------------------------------------------------


def test_a_site_that_is_ready_has_no_problem(tmp_path):
    settings = SiteSettings.read(described(tmp_path, "lacks = ['edge']"))
    found = check_site(settings, Federation.of(federated()), SEED)
    assert found.problems == ()
    assert found.remarks == (
        "the experiment does not say data.channels: whether this site's images fit the others' cannot be told",
    )
    assert found.held == {"bar": 10, "dot": 6}
    assert found.size == (8, 8)
    assert not Path(settings.folder).exists()


def test_every_problem_is_told_at_once(tmp_path):
    pictures(tmp_path / "images", {"bars": 2, "dot": 3})
    path = described(tmp_path, "lacks = ['dot', 'egde']", data="size = 6", policy="allow = ['numbers']")
    settings = replace(SiteSettings.read(path), free=10**18)
    found = check_site(settings, Federation.of(federated(channels=3, size=8)), SEED)
    told = "\n".join(found.problems)
    for sentence in (
        "GB of free space and is to have 1000000 TB",
        "the class 'bars' is no class of the federation: did you mean 'bar'?",
        "lacks: 'egde' is no class of the federation: did you mean 'edge'?",
        "lacks: 'dot' has 3 images here: take it out of lacks",
        "the class 'bar' has no image here",
        "the class 'edge' has no image here",
        "the images are 6 x 6 pixels and the federation's 8 x 8",
        "'fedavg' sends model weights, which policy.allow does not let leave",
    ):
        assert sentence in told
    assert len(found.problems) == 8


def test_images_that_cannot_be_read_hide_no_other_problem(tmp_path):
    path = described(tmp_path, "lacks = ['egde']")
    (tmp_path / "images" / "bar" / "00.png").write_bytes(b"no picture")
    found = check_site(SiteSettings.read(path), Federation(classes=FEDERATION), SEED)
    assert len(found.problems) == 2
    assert "00.png" in found.problems[0]
    assert "'egde'" in found.problems[1]
    found = check_site(SiteSettings.read(described(tmp_path, data="skip_bad = true")), None, SEED)
    assert found.problems == ()
    assert found.held == {"bar": 9, "dot": 6}
    assert len(found.skipped) == 1


def test_classes_that_two_folders_name_alike_are_one():
    composed, apart = (unicodedata.normalize(form, "Nävus") for form in ("NFC", "NFD"))
    assert class_problems({composed: 1, apart: 2}, [composed], []) == []
    assert class_problems({composed: 1, apart: 2}, [composed], [apart]) == [
        f"lacks: '{composed}' has 3 images here: take it out of lacks"
    ]


def test_form():
    held = shard([0], ("dot",))
    assert form_problems(held, Federation(classes=FEDERATION, size=(8, 8), channels=1)) == []
    assert form_problems(held, Federation(classes=FEDERATION)) == []
    assert len(form_problems(held, Federation(classes=FEDERATION, size=(8, 9), channels=3))) == 2


def test_a_policy_beside_an_experiment():
    federation = Federation.of(federated())
    assert policy_problems(Policy(), federation) == []
    assert policy_problems(Policy(experiments=(federation.identity,)), federation) == []
    (problem,) = policy_problems(Policy(experiments=("0" * 64,)), federation)
    assert federation.identity in problem
    (problem,) = policy_problems(Policy(allow=()), federation)
    assert "'fedavg' sends model weights and numbers" in problem


@pytest.mark.skipif(os.getuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written_to(tmp_path):
    tmp_path.chmod(0o500)
    assert "cannot be made" in str(folder_problem(tmp_path / "kept"))
    assert "cannot be written to" in str(folder_problem(tmp_path))


def test_a_folder_that_is_a_file_or_open_to_others(tmp_path):
    assert folder_problem(tmp_path / "not" / "there") is None
    (tmp_path / "file").write_text("")
    assert "is a file" in str(folder_problem(tmp_path / "file" / "kept"))
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept").chmod(0o755)
    assert "chmod 700" in str(folder_problem(tmp_path / "kept"))
    (tmp_path / "kept").chmod(0o700)
    assert folder_problem(tmp_path / "kept") is None
    assert list((tmp_path / "kept").iterdir()) == []


def test_space(tmp_path):
    assert space_problem(10**9, 10**9, tmp_path) is None
    assert space_problem(None, 10**9, tmp_path) is None
    assert "0.50 GB of free space and is to have 1 GB" in str(space_problem(5 * 10**8, 10**9, tmp_path))


def test_version():
    assert version_problem(fedstill.__version__) is None
    assert "the server has fedstill 0.9 and this site 0.1.0" in str(version_problem("0.9", "0.1.0"))
    for hostile in ("", "1.0; rm -rf /", "1\x1b[2J", "1" * 1000, "latest"):
        assert version_problem(hostile) == "the server states no version of fedstill that can be read"


def test_clock():
    assert clock_problem(1000.0, 1059.0) is None
    assert "61 s ahead of the server's" in str(clock_problem(1000.0, 1061.0))
    assert "100 s behind the server's" in str(clock_problem(1000.0, 900.0))
    for hostile in (float("nan"), float("inf"), -float("inf")):
        assert clock_problem(hostile, 1000.0) == "the server states no time that can be read"


# --- the commands ------------------------------------------------------------------------------------------------------


def test_init_writes_what_check_reads(tmp_path, capsys):
    path = tmp_path / "site.toml"
    assert invoke(["site", "init", "--name", "a", "--out", str(path)]) == 0
    assert invoke(["site", "init", "--out", str(path)]) == 2
    assert "exists already" in capsys.readouterr().err
    assert invoke(["site", "check", str(path)]) == 2
    out, err = capsys.readouterr()
    assert f"problem: data.path = '{tmp_path / 'images'}': there is no such file or folder" in err
    pictures(tmp_path / "images", {"bar": 3, "dot": 2})
    assert invoke(["site", "check", str(path)]) == 0
    out, err = capsys.readouterr()
    assert "site a: 5 images, grey, 8 x 8 pixels" in out
    assert "may leave:\n  model weights:" in out
    assert "synthetic images" in out.split("may not leave: ")[1].splitlines()[0]
    assert err == ""


def test_check_against_an_experiment(tmp_path, capsys):
    experiment = tmp_path / "experiment.toml"
    experiment.write_text(federated(tiny.ONESHOT).to_toml())
    path = described(tmp_path, "lacks = ['edge']")
    assert invoke(["site", "check", str(path), "--experiment", str(experiment)]) == 2
    out, err = capsys.readouterr()
    known = identity(agreed(Experiment.read(experiment)))
    assert f"identity of this experiment: {known}" in out
    assert "lacked" in out
    assert err.splitlines() == [
        "problem: 'oneshot' sends synthetic images and statistics, which policy.allow does not let leave: "
        "add that if it may leave, or take no part"
    ]
    described(
        tmp_path,
        "lacks = ['edge']",
        policy=f"allow = ['numbers', 'statistics', 'synthetic images']\nexperiments = ['{known}']",
    )
    assert invoke(["site", "check", str(path), "--experiment", str(experiment), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["problems"] == []
    assert told["held"] == {"bar": 10, "dot": 6}
    assert told["experiment"] == known


def test_check_against_a_list_of_classes(tmp_path, capsys):
    path = described(tmp_path)
    assert invoke(["site", "check", str(path), "--classes", "bar, dot"]) == 0
    assert invoke(["site", "check", str(path), "--classes", "bar,dots"]) == 2
    assert "did you mean 'dots'?" in capsys.readouterr().err
    assert invoke(["site", "check", str(path), "--classes", " , "]) == 2
    assert invoke(["site", "check", str(path), "--classes", "a", "--experiment", "x.toml"]) == 2
    assert "leave --classes out" in capsys.readouterr().err


def test_own_test_images_whose_scores_cannot_leave_are_told(tmp_path):
    path = described(tmp_path, data="test_fraction = 0.2")
    assert "allow 'statistics'" in str(check_site(SiteSettings.read(path), None, SEED).remarks)
