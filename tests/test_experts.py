"""Experts, and the way a student follows them; gradients against a textbook unroll, in float64."""

from dataclasses import replace

import pytest
import torch

from fedstill.algorithms.oneshot import OneShot
from fedstill.contract import tiny_sites, tiny_world
from fedstill.data.augment import Augmentation
from fedstill.distill import experts as experts_module
from fedstill.distill.experts import ExpertMatcher, Experts, train_experts
from fedstill.privacy import Privacy
from fedstill.seeds import Seed
from fedstill.train import Recipe, fit

DSA = Augmentation.parse("color_crop_cutout_flip_scale_rotate")
RECIPE = Recipe(epochs=3, lr=0.1, batch=8)
SEED = Seed.root(0).at("experts")
REAL = tiny_sites()["c00"].train


def trained(folder=None, architecture=None, **changes):
    settings = {"count": 2, "precision": "float32", "seed": SEED, "folder": folder}
    return train_experts(architecture or tiny_world().architecture, REAL, RECIPE, **{**settings, **changes})


def test_a_trajectory_is_what_training_goes_through():
    experts = trained()
    network = tiny_world().architecture.build(SEED.at(1, "model"))
    for epochs in range(4):
        wanted = fit(network, REAL, replace(RECIPE, epochs=epochs), seed=SEED.at(1, "train")).tensors
        found = experts.snapshot(1, epochs)
        assert found.keys() == wanted.keys()
        assert all(torch.equal(found[name], wanted[name]) for name in wanted)


@pytest.mark.parametrize("norm", ["instance", "batch"])
def test_files_hold_the_same(tmp_path, norm):
    architecture = replace(tiny_world().architecture, options={"depth": 2, "width": 4, "norm": norm})
    held, kept = trained(architecture=architecture), trained(tmp_path, architecture)
    assert not kept.held
    for epoch in range(4):
        one, other = held.snapshot(0, epoch), kept.snapshot(0, epoch)
        assert one.keys() == other.keys()
        assert all(torch.equal(one[name], other[name]) and one[name].dtype == other[name].dtype for name in one)
        assert all(one[name].shape == other[name].shape for name in one)


@pytest.mark.parametrize("norm", ["instance", "batch"])
def test_differences_in_half_the_room(tmp_path, norm):
    architecture = replace(tiny_world().architecture, options={"depth": 2, "width": 4, "norm": norm})
    whole = trained(architecture=architecture)
    held, kept = (trained(folder, architecture, precision="differences") for folder in (None, tmp_path / "half"))
    start = whole.snapshot(0, 0)
    for epoch in range(4):
        for name, tensor in whole.snapshot(0, epoch).items():
            for found in (held.snapshot(0, epoch), kept.snapshot(0, epoch)):
                assert found.keys() == start.keys()
                assert found[name].dtype == tensor.dtype
                # float16 has eleven bits: they are those of what training moved
                bound = (tensor - start[name]).abs() * 2**-11 + 2**-24 + 1e-7 if tensor.is_floating_point() else 0
                assert ((found[name] - tensor).abs() <= bound).all()
    floats = [tensor for tensor in whole.held[0].values() if tensor.is_floating_point()]
    weights = sum(tensor[0].numel() for tensor in floats)
    room = [sum(each.nbytes for each in experts.held[0].values()) for experts in (whole, held)]
    # four snapshots: two bytes of each for four, and the start once more
    assert room[0] - room[1] == 4 * weights * (4 - 2) - 4 * weights


def test_experts_that_are_there_are_not_trained_again(tmp_path, monkeypatch):
    trained(tmp_path, count=1)
    times = []
    monkeypatch.setattr(experts_module, "fit", lambda *a, **k: times.append(1) or fit(*a, **k))
    found = trained(tmp_path)
    assert len(times) == 1
    whole = trained()
    assert all(torch.equal(found.snapshot(k, 3)["head.weight"], whole.snapshot(k, 3)["head.weight"]) for k in (0, 1))


@pytest.mark.parametrize(
    "changes",
    [
        {"seed": Seed.root(1)},
        {"precision": "differences"},
        {"privacy": Privacy(1.0, 1.0)},
        {"architecture": replace(tiny_world().architecture, options={})},
    ],
)
def test_those_of_another_experiment_are_made_anew(tmp_path, monkeypatch, changes):
    trained(tmp_path)
    times = []
    monkeypatch.setattr(experts_module, "fit", lambda *a, **k: times.append(1) or fit(*a, **k))
    trained(tmp_path, **changes)
    assert len(times) == 2


def test_a_damaged_file_is_made_anew(tmp_path):
    wanted = trained(tmp_path).snapshot(0, 3)
    path = tmp_path / "expert-000.safetensors"
    path.write_bytes(path.read_bytes()[:100])
    found = trained(tmp_path).snapshot(0, 3)
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def matcher(**changes):
    network = tiny_world().architecture.build(SEED.at("student")).double()
    settings = {"steps": 3, "span": 2, "latest": 2, "augmentation": DSA}
    return ExpertMatcher(trained(), network, **{**settings, **changes})


def test_pieces_are_drawn_from_all_experts_and_starts_before_the_latest():
    follow = matcher()
    ends = {(k, t): trained().snapshot(k, t)["head.weight"] for k in (0, 1) for t in range(4)}

    def place(group):
        return next(where for where, tensor in ends.items() if torch.equal(tensor, group["head.weight"]))

    seen = set()
    for n in range(40):
        piece = follow.piece(SEED.at(n))
        (expert, start), (same, end) = place(piece.start), place(piece.target)
        assert expert == same
        assert end == start + 2
        seen.add((expert, start))
    assert seen == {(0, 0), (0, 1), (1, 0), (1, 1)}


def test_a_span_beyond_the_experts_is_no_matcher():
    with pytest.raises(AssertionError):
        matcher(latest=3)


@pytest.mark.parametrize("batch", [None, 4])
def test_the_gradient_is_autograds(batch):
    """Augmentation, random batches, a learnable step size: exact to 1e-10."""
    import test_matchers

    follow = matcher(batch=batch)
    seed = SEED.at("pull")
    images = torch.randn(6, 1, 8, 8, dtype=torch.float64, generator=seed.at("images").torch()).requires_grad_()
    labels, rate = torch.arange(6) % 3, torch.tensor(0.05, dtype=torch.float64, requires_grad=True)
    pull = follow.pull(images.detach(), labels, rate.item(), seed)
    piece = follow.piece(seed)
    double = replace(
        piece,
        start={name: tensor.double() for name, tensor in piece.start.items()},
        target={name: tensor.double() for name, tensor in piece.target.items()},
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(test_matchers, "SEED", seed.at("student"))
        loss = test_matchers.unrolled(double, images, labels, rate)
    d_images, d_rate = torch.autograd.grad(loss, (images, rate))
    assert pull.loss == pytest.approx(loss.item(), rel=1e-12)
    assert test_matchers.relative(pull.d_images, d_images) < 1e-10
    assert pull.d_rate == pytest.approx(d_rate.item(), rel=1e-10)


def test_the_class_of_defaults_is_the_published_one():
    """The report's and MTT's values, as the facts list them."""
    method = OneShot(world=tiny_world())
    assert (method.experts, method.expert_epochs, method.expert_lr, method.expert_batch) == (30, 50, 0.01, 256)
    assert (method.distill_steps, method.student_steps, method.span, method.latest) == (2000, 20, 3, 25)
    assert (method.lr_images, method.student_lr, method.image_momentum) == (1000.0, 0.01, 0.5)
    assert (method.check_every, method.judges) == (200, 3)
    assert Experts(1, 2).count == 1
