"""Layers of our own: to the bit what torch's are, or to rounding where they say so, and what torch's refuse."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedstill.models.architecture import Architecture
from fedstill.models.layers import BatchNorm, InstanceNorm, MeanPool, best_layout
from fedstill.seeds import Seed

SEED = Seed.root(0)
CPU = torch.device("cpu")


def draw(*shape: int, dtype: torch.dtype = torch.float32, name: str = "x") -> Tensor:
    scales = torch.logspace(-3, 3, shape[-1], dtype=dtype)  # sums that another order would round otherwise
    return torch.randn(shape, generator=SEED.at(name, *shape).torch(), dtype=dtype) * scales


# --- MeanPool --------------------------------------------------------------------------------------------------------


def derivatives(pool: nn.Module, maps: Tensor) -> list[Tensor]:
    """Means, a gradient through them, and a gradient through that one, for everything it depends on."""
    leaf = maps.detach().requires_grad_()
    means = pool(leaf)
    v = draw(*means.shape, dtype=maps.dtype, name="v").requires_grad_()
    (first,) = torch.autograd.grad((means.square() * v).sum(), leaf, create_graph=True)
    second = torch.autograd.grad((first * draw(*maps.shape, dtype=maps.dtype, name="w")).sum(), (leaf, v))
    return [means.detach(), first.detach(), *second]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "shape", [(4, 16, 28, 28), (3, 40, 27, 15), (60, 64, 5, 9), (2, 3, 101, 64), (40, 128, 2, 2), (2, 3, 6, 5)]
)
@pytest.mark.parametrize("layout", ["contiguous", "channels last", "turned"])
def test_means_are_torchs_to_the_bit_and_so_are_two_derivatives(
    dtype: torch.dtype, shape: tuple[int, ...], layout: str
) -> None:
    maps = draw(*shape, dtype=dtype)
    if layout == "channels last":
        maps = maps.contiguous(memory_format=torch.channels_last)
    elif layout == "turned":
        maps = maps.transpose(2, 3)
    for found, wanted in zip(derivatives(MeanPool(), maps), derivatives(nn.AvgPool2d(2), maps), strict=True):
        assert torch.equal(found, wanted)


def test_means_work_under_vmap() -> None:
    maps = draw(3, 4, 8, 30, 32)

    def gradients(pool: nn.Module) -> Tensor:
        found: Tensor = torch.func.vmap(torch.func.grad(lambda x: pool(x).square().sum()))(maps)
        return found

    assert torch.equal(gradients(MeanPool()), gradients(nn.AvgPool2d(2)))


def test_an_exported_network_has_one_node_for_its_means() -> None:
    program = torch.export.export(nn.Sequential(MeanPool()), (draw(4, 16, 28, 28),))
    assert [str(node.target) for node in program.graph.nodes if node.op == "call_function"] == [
        "aten.avg_pool2d.default"
    ]


# --- norms -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("side", [1, 2, 7])
def test_instance_norm_is_group_norm_in_every_layout(side: int) -> None:
    norm, torchs = InstanceNorm(6), nn.GroupNorm(6, 6)
    with torch.no_grad():
        norm.weight.copy_(torch.linspace(-1, 2, 6))
        norm.bias.copy_(torch.linspace(0, 3, 6))
    torchs.load_state_dict(norm.state_dict())
    maps = torch.randn(5, 6, side, side + 1, generator=SEED.torch()) + 3
    last = maps.contiguous(memory_format=torch.channels_last)
    kept = last.clone()
    assert torch.equal(norm(maps), torchs(maps))
    assert torch.equal(norm(last), torchs(last))  # with a graph
    with torch.no_grad():
        torch.testing.assert_close(norm(last), torchs(maps), rtol=1e-4, atol=1e-5)
    assert torch.equal(last, kept)


def test_batch_norm_takes_a_single_number_a_channel() -> None:
    norm, torchs = BatchNorm(3), nn.BatchNorm2d(3)
    several, one = torch.randn(4, 3, 2, 2, generator=SEED.torch()), torch.full((1, 3, 1, 1), 2.0)
    for _ in range(2):
        assert torch.equal(norm(several), torchs(several))
    assert all(torch.equal(norm.state_dict()[name], tensor) for name, tensor in torchs.state_dict().items())
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        nn.BatchNorm2d(3)(one)
    found = norm(one.requires_grad_())
    torch.testing.assert_close(found, torchs.eval()(one))
    assert torch.autograd.grad(found.sum(), one)[0].abs().min() > 0
    assert all(torch.equal(norm.state_dict()[name], tensor) for name, tensor in torchs.state_dict().items())


# --- layouts ---------------------------------------------------------------------------------------------------------

NETWORKS: list[tuple[str, int, dict[str, Any]]] = [
    ("convnet", 16, {"width": 8}),
    ("convnet", 16, {"width": 8, "norm": "batch"}),
    ("resnet18", 16, {"width": 4}),
    ("vgg11", 32, {"width": 2}),
    ("vit", 16, {"dim": 8, "depth": 1, "heads": 2, "head_dim": 4, "mlp": 8}),
]


@pytest.mark.parametrize(("name", "size", "options"), NETWORKS)
def test_every_network_takes_its_best_layout(name: str, size: int, options: dict[str, Any]) -> None:
    network = Architecture(name, 3, (size, size), 4, options).build(SEED).double().eval()
    images = torch.randn(6, 3, size, size, generator=SEED.torch(), dtype=torch.float64)
    assert best_layout(network, CPU) == torch.channels_last
    with torch.no_grad():
        found = network.features(images.contiguous(memory_format=torch.channels_last))
        torch.testing.assert_close(found, network.features(images))


def test_what_is_slow_or_unknown_stays_as_it_is() -> None:
    grouped = Architecture("convnet", 3, (16, 16), 4, {"width": 8, "norm": "group"}).build(SEED)
    assert best_layout(grouped, CPU) == torch.contiguous_format
    assert best_layout(nn.Flatten(), CPU) == torch.contiguous_format
    plain = Architecture("convnet", 3, (16, 16), 4, {"width": 8}).build(SEED)
    assert best_layout(plain, torch.device("meta")) == torch.contiguous_format


def test_a_convnet_is_what_it_is_with_torchs_layers() -> None:
    """Names, numbers and bits: a model file of one is a model file of the other."""
    network = Architecture("convnet", 3, (28, 28), 4, {"width": 16}).build(SEED)
    parts = [f"{part}.{what}" for part in ("conv", "norm") for what in ("weight", "bias")]
    names = {f"body.block{number}.{part}" for number in (1, 2, 3) for part in parts}
    x, tensors = torch.randn(8, 3, 28, 28, generator=SEED.torch()), network.state_dict()
    assert set(tensors) == names | {"head.weight", "head.bias"}
    logits = network(x)
    for number in (1, 2, 3):
        conv_weight, conv_bias, weight, bias = (tensors[f"body.block{number}.{part}"] for part in parts)
        x = F.conv2d(x, conv_weight, conv_bias, padding=1)
        x = F.avg_pool2d(F.relu(F.group_norm(x, 16, weight, bias)), 2)
    assert torch.equal(logits, F.linear(x.flatten(1), tensors["head.weight"], tensors["head.bias"]))
