"""Networks: published sizes, what they refuse and how, and that they can be differentiated twice."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.func import functional_call
from torch.nn.functional import cross_entropy

from fedstill.errors import InputError
from fedstill.models import MODELS
from fedstill.models.architecture import Architecture
from fedstill.seeds import Seed

SEED = Seed.root(0).at("model")

SMALL: dict[str, tuple[tuple[int, int], dict[str, Any]]] = {
    "convnet": ((9, 12), {"depth": 2, "width": 6}),
    "resnet18": ((10, 12), {"width": 4}),
    "resnet34": ((10, 12), {"width": 2}),
    "vgg11": ((32, 40), {"width": 2}),
    "vit": ((8, 12), {"dim": 8, "depth": 2, "heads": 2, "head_dim": 4, "mlp": 8}),
}


def architecture(name: str, *, channels: int = 3, size: tuple[int, int] = (32, 32), classes: int = 10, **options: Any):
    return Architecture(name, channels, size, classes, options)


def small(name: str, **options: Any) -> Architecture:
    size, own = SMALL[name]
    return architecture(name, channels=2, size=size, classes=3, **(own | options))


@pytest.mark.parametrize(
    ("name", "size", "options", "count"),
    [
        ("convnet", 32, {"depth": 2}, 233_610),
        ("convnet", 32, {"depth": 3}, 320_010),
        ("convnet", 32, {"depth": 4}, 452_490),
        ("convnet", 32, {"depth": 5}, 596_490),
        ("convnet", 128, {"depth": 5}, 615_690),
        ("resnet18", 32, {}, 11_173_962),
        ("resnet18", 32, {"norm": "batch"}, 11_173_962),
        ("resnet18", 128, {}, 11_181_642),
        ("resnet34", 128, {"stem": "cifar"}, 21_282_122),
        ("vgg11", 32, {}, 9_231_114),
        ("vit", 32, {}, 9_523_722),
    ],
)
def test_parameter_counts_are_the_published_ones(name: str, size: int, options: dict[str, Any], count: int) -> None:
    with torch.device("meta"):
        network = architecture(name, size=(size, size), **options).build(SEED)
    assert sum(parameter.numel() for parameter in network.parameters()) == count


def test_convnet_3_is_the_default() -> None:
    assert architecture("convnet").resolved().options == {
        "depth": 3,
        "width": 128,
        "norm": "instance",
        "groups": 8,
        "activation": "relu",
        "pooling": "avg",
    }


def test_small_networks_cover_the_table() -> None:
    assert SMALL.keys() == MODELS.keys()


@pytest.mark.parametrize("name", SMALL)
def test_forward_is_classify_of_features(name: str) -> None:
    here = small(name)
    network = here.build(SEED).eval()
    inputs = torch.randn(4, 2, *here.size, generator=SEED.at("x").torch())
    features = network.features(inputs)
    assert features.dim() == 2
    assert network.classify(features).shape == (4, 3)
    assert torch.equal(network(inputs), network.classify(features))
    here.check()


@pytest.mark.parametrize("name", SMALL)
def test_same_seed_same_bits(name: str) -> None:
    before = torch.random.get_rng_state()
    one, two, other = (small(name).build(seed).state_dict() for seed in (SEED, SEED, SEED.at("other")))
    assert all(torch.equal(one[key], two[key]) for key in one)
    assert any(not torch.equal(one[key], other[key]) for key in one)
    assert torch.equal(before, torch.random.get_rng_state())


@pytest.mark.parametrize("name", SMALL)
def test_a_network_can_be_copied_and_pickled(name: str) -> None:
    network = small(name).build(SEED).eval()
    inputs = torch.ones(1, 2, *small(name).size)
    for twin in (copy.deepcopy(network), pickle.loads(pickle.dumps(network))):
        assert torch.equal(network(inputs), twin(inputs))


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("convnet", {"activation": "softplus"}),
        ("convnet", {"activation": "tanh", "norm": "group", "groups": 3, "pooling": "max"}),
        ("convnet", {"activation": "silu", "norm": "batch"}),
        ("convnet", {"activation": "gelu", "norm": "none"}),
        ("resnet18", {"activation": "silu"}),
        ("resnet18", {"activation": "silu", "norm": "group", "groups": 2, "stem": "imagenet"}),
        ("resnet34", {"activation": "elu"}),
        ("vgg11", {"activation": "silu"}),
        ("vit", {}),
    ],
)
def test_second_derivatives_agree_with_finite_differences(name: str, options: dict[str, Any]) -> None:
    """The derivative of s = ⟨g(θ, x), v⟩ along a direction in x and θ, as trajectory matching needs it."""
    here = small(name, **options)
    network = here.build(SEED).double()
    names = [key for key, _ in network.named_parameters()]
    buffers = {key: buffer.clone() for key, buffer in network.named_buffers()}
    generator = SEED.at("directions").torch()

    def normal(like: torch.Tensor) -> torch.Tensor:
        return torch.randn(like.shape, generator=generator, dtype=torch.float64)

    images = normal(torch.empty(3, 2, *here.size))
    theta = [parameter.detach() for parameter in network.parameters()]
    v = [normal(parameter) for parameter in theta]
    along = [normal(part) / 10 for part in (images, *theta)]
    labels = torch.tensor([0, 1, 2])

    def product(at: list[torch.Tensor], graph: bool) -> torch.Tensor:
        params = [part.requires_grad_() for part in at[1:]]
        tensors = dict(zip(names, params, strict=True)) | {key: buffer.clone() for key, buffer in buffers.items()}
        with SEED.at("dropout").scope():
            loss = cross_entropy(functional_call(network, tensors, (at[0],)), labels)
        gradient = torch.autograd.grad(loss, params, create_graph=graph)
        return sum(((g * d).sum() for g, d in zip(gradient, v, strict=True)), torch.zeros(()))

    point = [part.clone().requires_grad_() for part in (images, *theta)]
    derivatives = torch.autograd.grad(product(point, True), point, materialize_grads=True)
    exact = sum((d * a).sum().item() for d, a in zip(derivatives, along, strict=True))
    step = 1e-6
    ahead, behind = (
        product([part + sign * step * a for part, a in zip((images, *theta), along, strict=True)], False).item()
        for sign in (1, -1)
    )
    assert derivatives[0].abs().max() > 0
    assert exact == pytest.approx((ahead - behind) / (2 * step), rel=1e-4, abs=1e-7)


@settings(max_examples=40, deadline=None)
@given(
    height=st.integers(1, 40),
    width=st.integers(1, 40),
    channels=st.integers(1, 5),
    depth=st.integers(1, 6),
    classes=st.integers(1, 4),
)
def test_a_convnet_takes_every_size_it_can_halve(
    height: int, width: int, channels: int, depth: int, classes: int
) -> None:
    here = architecture("convnet", channels=channels, size=(height, width), classes=classes, depth=depth, width=4)
    if min(height, width) >= 2**depth:
        here.check()
    else:
        with pytest.raises(InputError, match=rf"model\.depth = {depth} halves {height} x {width} pixels below one"):
            here.check()


@settings(max_examples=15, deadline=None)
@given(height=st.integers(1, 40), width=st.integers(1, 40), stem=st.sampled_from(["cifar", "imagenet"]))
def test_a_resnet_sees_its_image_or_refuses(height: int, width: int, stem: str) -> None:
    here = architecture("resnet18", channels=1, size=(height, width), classes=2, stem=stem, width=2)
    try:
        network = here.build(SEED).eval()
    except InputError as error:
        assert "use size >= " in str(error)  # noqa: PT017 - either outcome is right, each for its sizes
        assert max(height, width) <= (8 if stem == "cifar" else 32)
        return
    pictures = torch.randn(2, 1, height, width, generator=SEED.at("pictures").torch())
    one, two = network.features(pictures)
    assert not torch.equal(one, two)


@pytest.mark.parametrize(
    ("name", "size", "options", "text"),
    [
        ("convnt", 32, {}, "model.name = 'convnt': did you mean 'convnet'?"),
        ("convnet", 32, {"widht": 64}, "model.widht = 64: did you mean 'width'?"),
        ("convnet", 32, {"size": 64}, "model.size = 64: the data decide it; remove this line"),
        ("convnet", 32, {"width": "64"}, "model.width = '64': it must be a valid integer"),
        ("convnet", 32, {"width": True}, "model.width = True: it must be a valid integer"),
        ("convnet", 32, {"width": 0}, "model.width = 0: it must be greater than or equal to 1"),
        ("convnet", 32, {"norm": "instanc"}, "model.norm = 'instanc': did you mean 'instance'?"),
        ("convnet", 32, {"norm": 1}, "model.norm = 1: it must be 'instance', 'group', 'batch' or 'none'"),
        (
            "convnet",
            32,
            {"norm": "group", "groups": 7},
            "model.groups = 7 does not divide 128 feature channels: use a divisor of them",
        ),
        (
            "convnet",
            16,
            {"depth": 5},
            "model.depth = 5 halves 16 x 16 pixels below one: use depth <= 4 or size >= 32",
        ),
        (
            "vgg11",
            28,
            {},
            "model.name = 'vgg11': it halves the image 5 times, and 28 x 28 pixels are too few for that: "
            "use size >= 32",
        ),
        (
            "resnet18",
            8,
            {},
            "model.norm = 'instance' needs more than one pixel, and the last map of 8 x 8 pixels has one: "
            "use size >= 9 or norm = 'group'",
        ),
        ("vit", 30, {}, "model.patch = 4 does not divide 30 x 30 pixels: use a common divisor of both sides"),
    ],
)
def test_what_a_user_gets_wrong_is_answered(name: str, size: int, options: dict[str, Any], text: str) -> None:
    with pytest.raises(InputError) as caught:
        Architecture(name, 3, (size, size), 10, options).build(SEED)
    assert str(caught.value) == text


def test_errors_say_where_the_user_wrote_it() -> None:
    key = "algorithm.global_models[0]"
    with pytest.raises(InputError, match=r"^algorithm\.global_models\[0\]\.widht = 3: did you mean 'width'\?$"):
        Architecture("convnet", 3, (32, 32), 10, {"widht": 3}, key=key).build(SEED)
    assert Architecture("vit", 3, (32, 32), 10, key=key) == Architecture("vit", 3, (32, 32), 10)


@pytest.mark.parametrize(("channels", "size", "classes"), [(0, (8, 8), 2), (3, (8, 0), 2), (3, (8, 8), 0)])
def test_numbers_below_one_are_refused(channels: int, size: tuple[int, int], classes: int) -> None:
    with pytest.raises(InputError, match="at least 1"):
        Architecture("convnet", channels, size, classes)


def test_json_round_trip() -> None:
    here = architecture("vit", size=(8, 12), dropout=0.5, dim=16)
    assert Architecture.from_json(here.to_json()) == here
    assert hash(Architecture.from_json(here.to_json())) == hash(here)
    assert pickle.loads(pickle.dumps(here)) == here


@pytest.mark.parametrize(
    "change",
    [
        {"size": [8]},
        {"size": "8x8"},
        {"classes": "10"},
        {"options": {"depth": [3]}},
        {"options": None},
        {"options": {"x": float("nan")}},
    ],
)
def test_json_of_something_else_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="not an architecture"):
        Architecture.from_json(architecture("convnet").to_json() | change)


def test_reading_the_table_imports_no_torch() -> None:
    code = "import sys, fedstill.models; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


class Linear(nn.Module):
    """A user's own network, which knows nothing of fedstill."""

    def __init__(self, *, channels: int, size: tuple[int, int], classes: int, hidden: int = 4) -> None:
        super().__init__()
        if hidden > 100:
            raise ValueError("hidden = too many")
        self.hidden = nn.Linear(channels * size[0] * size[1], hidden)
        self.head = nn.Linear(hidden, classes)

    def features(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.hidden(inputs.flatten(1))

    def classify(self, features: torch.Tensor) -> torch.Tensor:
        return self.head(features)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.classify(self.features(inputs))


def headless(*, channels: int, size: tuple[int, int], classes: int) -> nn.Module:
    return nn.Linear(channels, classes)


def wrong_count(*, channels: int, size: tuple[int, int], classes: int) -> nn.Module:
    return Linear(channels=channels, size=size, classes=classes + 1)


def too_wide(*, channels: int, size: tuple[int, int], classes: int) -> nn.Module:
    return Linear(channels=channels + 1, size=size, classes=classes)


def old_style(classes: int, size: int) -> nn.Module:
    raise AssertionError(classes, size)


def test_a_users_own_factory_works() -> None:
    here = architecture(f"{__name__}:Linear", size=(4, 4), hidden=5)
    here.check()
    assert here.build(SEED)(torch.zeros(2, 3, 4, 4)).shape == (2, 10)


@pytest.mark.parametrize(
    ("factory", "options", "text"),
    [
        ("Linear", {"hiden": 5}, r"model\.hiden = 5: did you mean 'hidden'\?"),
        ("Linear", {"hidden": "a"}, r"model\.hidden = 'a': it must be a valid integer"),
        ("Linear", {"hidden": 101}, r"model\.hidden = too many"),
        ("headless", {}, r"gives a Linear without features and classify; fedstill needs"),
        ("headless", {"width": 1}, r"model\.width = 1: this network has no options"),
        ("wrong_count", {}, r"classify gives the shape \[1, 11\] and not \[1, 10\]"),
        ("too_wide", {}, r"on one image of 3 x 4 x 4 it fails: "),
        ("old_style", {}, r"it does not take channels; a factory takes channels, size, classes by keyword"),
        ("SEED", {}, r"it is a Seed and not a function that builds a network"),
        ("absent", {}, r"cannot import it"),
    ],
)
def test_a_users_own_factory_that_does_not_fit_is_answered(factory: str, options: dict[str, Any], text: str) -> None:
    with pytest.raises(InputError, match=text):
        architecture(f"{__name__}:{factory}", size=(4, 4), **options).check()
