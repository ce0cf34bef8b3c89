"""Generators keep their contract, and priors survive their files."""

from __future__ import annotations

import contextlib
import json
import math
import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load, save

import fedstill.generators
from fedstill.data.shard import Normalisation
from fedstill.errors import InputError, RunError
from fedstill.generators import PRIORS, build_generator
from fedstill.generators.choice import chosen_names, strangers
from fedstill.generators.files import load_prior, read_card, save_prior
from fedstill.generators.pixels import Pixels
from fedstill.generators.style import StyleGenerator, StyleOptions
from fedstill.generators.train import sample
from fedstill.seeds import Seed

SEED = Seed.root(1)
GREY = Normalisation((0.1,), (0.3,))


def small(**changes: Any) -> StyleGenerator:
    options = {"channels": 1, "size": 16, "classes": 3, "width": 4, "z_width": 6, "w_width": 8, **changes}
    with SEED.at("weights").scope():
        return StyleGenerator(StyleOptions(**options))


@pytest.mark.parametrize("input", ["constant", "fourier"])
@pytest.mark.parametrize(("size", "channels"), [(16, 1), (20, 3), (24, 1), (28, 3), (32, 1)])
def test_the_image_does_not_depend_on_the_space_it_is_rendered_from(size: int, channels: int, input: str) -> None:
    generator = small(size=size, channels=channels, input=input).double()
    latent = generator.draw(torch.tensor([0, 2, 1]), SEED)
    straight = generator.render(latent, 0)
    assert straight.shape == (3, channels, size, size)
    assert straight.dtype == torch.float64
    for space in range(generator.depth + 1):
        there = generator.lift(latent, space)
        torch.testing.assert_close(generator.render(there, space), straight, rtol=0, atol=1e-10)
        assert ("w" in there) == (space < generator.depth)
        if "w" in there:
            assert there["w"].shape == (3, generator.depth - space, 8)
    torch.testing.assert_close(generator.lift(latent, generator.depth)["f"], straight, rtol=0, atol=0)


def test_every_entry_of_a_latent_matters_to_its_image() -> None:
    generator = small()
    for space in range(generator.depth + 1):
        latent = generator.lift(generator.draw(torch.tensor([1]), SEED), space)
        leaves = {name: tensor.detach().requires_grad_() for name, tensor in latent.items()}
        gradients = torch.autograd.grad(generator.render(leaves, space).square().sum(), list(leaves.values()))
        for name, gradient in zip(leaves, gradients, strict=True):
            rows = gradient[0] if name == "w" else gradient
            assert all(row.abs().sum() > 0 for row in rows)


@pytest.mark.parametrize("space", [0, 3, 6])
def test_first_and_second_derivatives_are_right(space: int) -> None:
    generator = small(width=4, classes=2).double()
    latent = generator.lift(generator.draw(torch.tensor([1]), SEED), space)
    names = list(latent)
    direction = torch.randn(1, 1, 16, 16, generator=SEED.torch(), dtype=torch.float64)
    # along one random line: a full check of every entry would take minutes and say no more
    lines = {name: torch.randn(latent[name].shape, generator=SEED.torch(), dtype=torch.float64) for name in names}

    def along(distance: torch.Tensor) -> torch.Tensor:
        moved = {name: latent[name].detach() + distance * lines[name] for name in names}
        return (generator.render(moved, space) * direction).sum() + generator.render(moved, space).square().sum()

    start = torch.tensor(0.01, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(along, start)
    assert torch.autograd.gradgradcheck(along, start)


def test_draws_are_repeatable_follow_the_label_and_differ_within_a_class() -> None:
    generator = small()
    labels = torch.tensor([0, 0, 1])
    once, again = generator.draw(labels, SEED), generator.draw(labels, SEED)
    other = generator.draw(torch.tensor([2, 0, 1]), SEED)
    assert torch.equal(once["w"], again["w"])
    assert not torch.equal(once["w"], generator.draw(labels, SEED.at("other"))["w"])
    assert not torch.allclose(once["w"][0], once["w"][1])
    assert not torch.allclose(once["w"][0], other["w"][0])
    assert torch.equal(once["w"][1:], other["w"][1:])


def test_truncation_moves_styles_towards_the_mean_of_their_class() -> None:
    generator = small()
    generator.track_centres(SEED.at("centres"), samples=20_000)
    labels = torch.arange(3)
    full = generator.draw(labels, SEED)["w"][:, 0]
    mean = torch.stack([generator.draw(torch.full((20_000,), c), SEED.at(c))["w"][:, 0].mean(0) for c in range(3)])
    torch.testing.assert_close(generator.centres, mean, rtol=0, atol=0.03)
    generator.truncation = 0.25
    torch.testing.assert_close(
        generator.draw(labels, SEED)["w"][:, 0], generator.centres + 0.25 * (full - generator.centres)
    )
    generator.truncation = 0.0
    torch.testing.assert_close(generator.draw(labels, SEED)["w"][:, 0], generator.centres)


@given(mean=st.floats(0, 1), std=st.floats(0.05, 1))
@settings(max_examples=20)
def test_pixels_are_normalised_network_inputs(mean: float, std: float) -> None:
    normalisation = Normalisation((mean, 0.5, mean), (std, 0.25, std))
    pixels = Pixels(3, (4, 5), normalisation)
    latent = pixels.draw(torch.zeros(7, dtype=torch.long), SEED)
    assert latent.keys() == {"f"}
    assert latent["f"].shape == (7, 3, 4, 5)
    inputs = normalisation.apply((pixels.render(pixels.lift(latent, 0), 0) + 1) / 2)
    torch.testing.assert_close(inputs, latent["f"], rtol=1e-4, atol=1e-4)


def test_pixels_start_standard_normal() -> None:
    values = Pixels(1, (32, 32), GREY).draw(torch.zeros(100, dtype=torch.long), SEED)["f"]
    assert abs(values.mean()) < 0.02
    assert abs(values.std() - 1) < 0.02


def test_pixels_refuse_a_normalisation_of_other_channels() -> None:
    with pytest.raises(InputError, match=r"data\.channels = 3"):
        Pixels(3, (4, 4), GREY)


@pytest.mark.parametrize(
    ("changes", "key"), [({"size": 18}, "data.size"), ({"size": 64}, "data.size"), ({"channels": 4}, "data.channels")]
)
def test_sizes_and_channels_that_cannot_be_made_are_refused(changes: dict[str, int], key: str) -> None:
    with pytest.raises(InputError, match=key):
        StyleOptions(**{"channels": 1, "size": 16, "classes": 2, **changes})


def test_samples_are_bytes_and_do_not_depend_on_what_is_asked_after_them() -> None:
    generator = small()
    labels = torch.arange(9) % 3
    images = sample(generator, labels, SEED, chunk=4)
    assert images.dtype == torch.uint8
    assert images.shape == (9, 1, 16, 16)
    assert torch.equal(images[:4], sample(generator, labels[:4], SEED, chunk=4))


@pytest.mark.parametrize(("half", "tolerance"), [(False, 0.0), (True, 0.02)])
def test_a_prior_survives_its_file(tmp_path: Path, half: bool, tolerance: float) -> None:
    generator = small(size=20, channels=3, input="fourier")
    generator.track_centres(SEED)
    card = {"classes": ["a", "b", "ü"], "trained_on": "noise", "steps": 0}
    save_prior(tmp_path / "p.safetensors", generator, card, half=half)
    read = load_prior(tmp_path / "p.safetensors", truncation=0.7)
    generator.truncation = 0.7
    latent, wanted = (g.draw(torch.arange(3), SEED) for g in (read, generator))
    torch.testing.assert_close(read.render(latent, 0), generator.render(wanted, 0), rtol=0, atol=tolerance)
    assert read.options == generator.options
    assert read_card(tmp_path / "p.safetensors") == card
    assert {p.dtype for p in read.parameters()} == {torch.float32}
    assert not any(p.requires_grad for p in read.parameters())


@pytest.fixture(scope="module")
def prior(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("prior") / "p.safetensors"
    save_prior(path, small(), {"classes": ["a", "b", "c"]})
    return path.read_bytes()


def with_head(content: bytes, change: Any) -> bytes:
    size = int.from_bytes(content[:8], "little")
    head = json.loads(json.loads(content[8 : 8 + size])["__metadata__"]["fedstill"])
    change(head)
    return save(load(content), {"fedstill": json.dumps(head)})


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda head: head.update(version=3), "upgrade fedstill"),
        (lambda head: head.update(network="stylegan-xl"), "cannot build"),
        (lambda head: head.update(network="other"), r"cannot build \(network: other\)"),
        (lambda head: head.update(network=[]), "cannot build"),
        (lambda head: head.update(format="other"), "not a prior"),
        (lambda head: head.pop("card"), "not a prior"),
        (lambda head: head.pop("options"), "cannot build"),
        (lambda head: head["options"].update(size=64), "cannot build"),
        (lambda head: head["options"].update(width=10**9), "width"),
        (lambda head: head["options"].update(surprise=1), "surprise"),
        (lambda head: head["options"].update(width=1024), "does not fit its own description"),
        (lambda head: head["options"].update(input="fourier"), "does not fit its own description"),
    ],
)
def test_a_file_that_claims_something_else_is_refused(tmp_path: Path, prior: bytes, change: Any, words: str) -> None:
    path = tmp_path / "p.safetensors"
    path.write_bytes(with_head(prior, change))
    with pytest.raises(InputError, match=words) as error:
        load_prior(path)
    assert str(path) in str(error.value)


def test_weights_that_are_not_finite_are_refused(tmp_path: Path, prior: bytes) -> None:
    size = int.from_bytes(prior[:8], "little")
    metadata = json.loads(prior[8 : 8 + size])["__metadata__"]
    tensors = load(prior)
    tensors["mapping.first.bias"][0] = math.nan
    (tmp_path / "p.safetensors").write_bytes(save(tensors, metadata))
    with pytest.raises(InputError, match="not finite"):
        load_prior(tmp_path / "p.safetensors")


def test_weights_too_large_for_half_precision_are_not_written(tmp_path: Path) -> None:
    generator = small()
    with torch.no_grad():
        generator.mapping.first.bias[0] = 1e6
    with pytest.raises(RunError, match="half = false"):
        save_prior(tmp_path / "p.safetensors", generator, {})
    assert list(tmp_path.iterdir()) == []
    save_prior(tmp_path / "p.safetensors", generator, {}, half=False)


def test_a_missing_prior_is_answered_with_the_names_that_exist(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="'digits'"):
        load_prior(tmp_path / "absent.safetensors")


@given(data=st.data())
@settings(max_examples=100)
def test_damaged_files_are_refused_in_a_sentence(prior: bytes, data: st.DataObject) -> None:
    header = 8 + int.from_bytes(prior[:8], "little")
    if data.draw(st.booleans()):
        damaged = prior[: data.draw(st.integers(0, len(prior) - 1))]
    else:
        place = data.draw(st.integers(0, header - 1))
        damaged = prior[:place] + bytes([prior[place] ^ data.draw(st.integers(1, 255))]) + prior[place + 1 :]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "p.safetensors"
        path.write_bytes(damaged)
        with contextlib.suppress(InputError):  # a flipped byte of the card may leave a sound file
            load_prior(path)


@pytest.mark.parametrize("name", sorted(PRIORS))
def test_shipped_priors_load_make_images_and_have_a_model_card(name: str) -> None:
    generator = load_prior(name)
    images = sample(generator, torch.arange(generator.options.classes), SEED)
    assert images.float().std() > 20
    card = read_card(name)
    assert len(card["classes"]) == generator.options.classes
    assert {"trained_on", "data_sha256", "recipe", "steps"} <= card.keys()
    path = Path(fedstill.generators.__file__).parent / "priors" / PRIORS[name]
    assert path.stat().st_size <= 4 * 2**20
    assert path.with_suffix(".md").read_text(encoding="utf-8").startswith("# ")


def test_reading_the_table_imports_no_torch() -> None:
    code = "import sys, fedstill.generators; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def build(name: str, *, channels: int = 1, size: tuple[int, int] = (16, 16), classes: int = 3, **more: Any) -> Any:
    normalisation = Normalisation((0.5,) * channels, (0.5,) * channels)
    return build_generator(name, channels=channels, size=size, normalisation=normalisation, classes=classes, **more)


def test_generators_are_built_by_name_by_path_and_by_factory(tmp_path: Path, prior: bytes) -> None:
    path = tmp_path / "p.safetensors"
    path.write_bytes(prior)
    assert build("pixels", size=(9, 7), classes=100).size == (9, 7)
    assert build(str(path), truncation=0.5).truncation == 0.5
    assert build(f"{__name__}:own").depth == 6


def test_a_prior_of_more_classes_has_those_that_are_chosen(tmp_path: Path, prior: bytes) -> None:
    path = tmp_path / "p.safetensors"
    path.write_bytes(prior)
    whole, chosen = load_prior(path), build(str(path), classes=2, prior_classes=[2, 0])
    assert chosen.classes == 2
    labels = torch.tensor([0, 1, 1])
    numbers = torch.tensor([2, 0, 0])
    mine, theirs = chosen.draw(labels, Seed.root(5)), whole.draw(numbers, Seed.root(5))
    assert torch.equal(chosen.render(mine, 0), whole.render(theirs, 0))
    chosen.truncation = whole.truncation = 0.5
    assert torch.equal(chosen.draw(labels, Seed.root(5))["w"], whole.draw(numbers, Seed.root(5))["w"])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"classes": 2}, r"say with algorithm\.prior_classes which of them"),
        ({"classes": 2, "prior_classes": [1]}, "names 1 classes of the prior and the data has 2"),
        ({"classes": 2, "prior_classes": [1, 3]}, "has classes 0 to 2, and class 3 is asked for"),
        ({"classes": 10, "prior_classes": "imwoof"}, "class 193 is asked for"),
        ({"classes": 10, "prior_classes": "imwoofs"}, "did you mean 'imwoof'"),
    ],
)
def test_a_choice_of_classes_that_does_not_fit_is_answered(
    tmp_path: Path, prior: bytes, options: dict[str, Any], words: str
) -> None:
    path = tmp_path / "p.safetensors"
    path.write_bytes(prior)
    with pytest.raises(InputError, match=words):
        build(str(path), **options)


def test_classes_of_what_is_no_prior_cannot_be_chosen() -> None:
    with pytest.raises(InputError, match=r"leave out algorithm\.prior_classes"):
        build(f"{__name__}:own", prior_classes=[0, 1, 2])
    assert build("pixels", prior_classes=[0, 1, 2]).depth == 0  # there is no prior that it could be of


def test_names_that_differ_are_found() -> None:
    assert strangers(("0", "1"), ("cat", "dog")) == []
    assert strangers(("Cat", "hot_dog"), ("cat", "hot dog")) == []
    assert strangers(("cat", "dog"), ("dog", "dog")) == [("cat", "dog")]
    assert chosen_names("imfruit", [str(each) for each in range(1000)], "x")[:2] == ("pineapple", "banana")
    assert chosen_names([1, 0], ("a", "b"), "x") == ("b", "a")
    with pytest.raises(InputError, match="classes 0 to 1, not 2"):
        chosen_names([2], ("a", "b"), "x")


def own(*, channels: int, size: tuple[int, int], normalisation: Normalisation, classes: int) -> StyleGenerator:
    return small(channels=channels, size=size[0], classes=classes)


def broken(*, channels: int, size: tuple[int, int], normalisation: Normalisation, classes: int) -> SimpleNamespace:
    return SimpleNamespace(depth=1)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({"size": (20, 20)}, r"set data\.size = 16"),
        ({"channels": 3}, r"set data\.channels = 1"),
        ({"classes": 7}, "knows 3 classes and the data has 7"),
    ],
)
def test_a_prior_that_does_not_fit_the_data_is_refused(
    tmp_path: Path, prior: bytes, data: dict[str, Any], words: str
) -> None:
    path = tmp_path / "p.safetensors"
    path.write_bytes(prior)
    with pytest.raises(InputError, match=words):
        build(str(path), **data)


def test_unknown_and_broken_generators_are_answered() -> None:
    with pytest.raises(InputError, match="did you mean 'pixels'"):
        build("pixel")
    with pytest.raises(InputError, match="has no 'channels'"):
        build(f"{__name__}:broken")
    with pytest.raises(InputError, match="no truncation"):
        build("pixels", truncation=0.7)
    with pytest.raises(InputError, match="cannot import"):
        build("no_such_module:factory")
