"""A prior of a thousand classes for data of ten: which of them the data's are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import tiny
from fedstill.cli import invoke
from fedstill.data.subsets import NUMBERS, SUBSETS
from fedstill.errors import InputError
from fedstill.experiment import Experiment
from fedstill.generators.choice import named_numbers
from fedstill.generators.files import save_prior
from fedstill.generators.stylegan_xl import StyleGANXL
from fedstill.generators.xl_options import plan
from fedstill.run import drive
from fedstill.seeds import Seed


@pytest.fixture(scope="module")
def prior(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a thousand classes, as an import of the published one leaves it."""
    with Seed.root(0).scope():
        generator = StyleGANXL(plan((16,), classes=1000, widest=8, budget=128, channels=1))
    generator.track_magnitudes(Seed.root(1))
    path = tmp_path_factory.mktemp("prior") / "p.safetensors"
    save_prior(path, generator, {"classes": [str(label) for label in range(1000)], "trained_on": "nothing"})
    return path


def experiment(prior: Path, choice: Any, method: dict[str, Any] = tiny.FEDDGM) -> Experiment:
    settings = method | {"generator": str(prior), "space": 5}
    if choice is not None:
        settings |= {"prior_classes": choice}
    return tiny.experiment(settings, rounds=1, data={"size": 16}, model={"depth": 2, "width": 4})


@pytest.mark.parametrize("choice", ["imfruit", list(range(990, 1000))])
def test_a_run_distils_through_the_chosen_classes(prior: Path, tmp_path: Path, choice: Any) -> None:
    drive(experiment(prior, choice), out=tmp_path / "run")
    assert len(tiny.rows(tmp_path / "run")[-1]["clients"]) == 3
    kept = Experiment.read(tmp_path / "run" / "experiment.toml").algorithm.options.model_dump()
    assert kept["prior_classes"] == (choice if isinstance(choice, str) else tuple(choice))


@pytest.mark.parametrize(
    ("choice", "words"),
    [
        (None, r"say with algorithm\.prior_classes which of them"),
        ([1, 2, 3], "names 3 classes of the prior and the data has 10"),
        (list(range(991, 1001)), "class 1000 is asked for"),
        ("imfruits", "did you mean 'imfruit'"),
        ([-1] * 10, "prior_classes"),
        (1.5, "prior_classes"),
    ],
)
def test_a_run_of_other_classes_is_refused_before_it_begins(
    prior: Path, tmp_path: Path, choice: Any, words: str
) -> None:
    with pytest.raises(InputError, match=words) as error:
        drive(experiment(prior, choice), out=tmp_path / "run")
    assert "\n" not in str(error.value)


def test_names_that_differ_are_remarked_on(prior: Path, tmp_path: Path) -> None:
    parts = experiment(prior, "imfruit").build()
    (remark,) = parts.remarks(1)
    assert "such as 'pineapple' for '0'" in remark
    assert "algorithm.prior_classes" in remark
    assert not experiment(prior, list(range(10))).build().remarks(1)  # numbers are no names


def test_classes_are_found_by_name(prior: Path, tmp_path: Path) -> None:
    for name, ids in SUBSETS.items():
        assert named_numbers(tuple(ids.values()), "key") == NUMBERS[name]
    assert named_numbers(("old_english_sheepdog", "Tench"), "key") == (229, 0)
    with pytest.raises(InputError, match="has a class '0': list the numbers"):
        drive(experiment(prior, "imagenet"), out=tmp_path / "run")


def test_chosen_classes_are_drawn(prior: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    heights = {}
    for choice in ("281, 0", "imwoof"):
        png = tmp_path / "s.png"
        assert invoke(["prior", "sample", str(prior), "--out", str(png), "--count", "1", "--classes", choice]) == 0
        with Image.open(png) as picture:
            heights[choice] = picture.size[1]
    assert heights["imwoof"] > 3 * heights["281, 0"]
    capsys.readouterr()
    for more, words in (
        ([], "1 to 100 rows, not 1000: choose classes with --classes"),
        (["--classes", ","], "1 to 100 rows, not 0"),
        (["--classes", "1000"], "has classes 0 to 999, not 1000"),
        (["--classes", "imwof"], "did you mean 'imwoof'"),
    ):
        assert invoke(["prior", "sample", str(prior), "--out", str(tmp_path / "s.png"), *more]) == 2
        assert words in capsys.readouterr().err


def test_a_dry_run_takes_the_choice_and_shows_the_remark(
    prior: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "e.toml"
    file.write_text(experiment(prior, "imfruit").to_toml())
    assert 'prior_classes = "imfruit"' in file.read_text()
    assert invoke(["run", str(file), "--dry-run"]) == 0
    said = capsys.readouterr()
    assert "'pineapple' for '0'" in said.out + said.err
