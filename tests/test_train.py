import pytest
import torch
from torch.nn import functional as F

from fedstill.contract import tiny_sites, tiny_world
from fedstill.data.augment import Augmentation
from fedstill.errors import RunError
from fedstill.scores import score
from fedstill.seeds import Seed
from fedstill.train import Recipe, classification_loss, fit, predict

RECIPE = Recipe(epochs=3, lr=0.1, batch=5)
SEED = Seed.root(0).at("fit")


def make():
    return tiny_world().architecture.build(Seed.root(0)), tiny_sites()["c02"].train


def same(left, right):
    return all(torch.equal(left[name], right[name]) for name in left)


def test_training_leaves_the_network_alone_and_repeats_itself():
    network, shard = make()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    first, second = (fit(network, shard, RECIPE, seed=SEED) for _ in range(2))
    assert same(before, network.state_dict())
    assert same(first.tensors, second.tensors)
    assert not same(first.tensors, before)
    assert (first.steps, first.examples, len(first.losses)) == (3 * 4, 20, 3)


def test_one_full_batch_step_is_the_formula():
    network, shard = make()
    fitted = fit(network, shard, Recipe(epochs=1, lr=0.1, batch=100), seed=SEED)
    loss = F.cross_entropy(network(shard.inputs()), shard.labels)
    gradients = torch.autograd.grad(loss, list(network.parameters()))
    for (name, parameter), gradient in zip(network.named_parameters(), gradients, strict=True):
        torch.testing.assert_close(fitted.tensors[name], parameter.detach() - 0.1 * gradient)


def test_it_learns():
    network, shard = make()
    fitted = fit(network, shard, Recipe(epochs=60, lr=0.1, batch=5), seed=SEED)
    network.load_state_dict(fitted.tensors)
    assert fitted.losses[-1] < fitted.losses[0]
    assert score(network, shard).accuracy > 0.9


def test_an_extra_term_sees_the_batch_and_counts():
    network, shard = make()
    start = {name: parameter.detach().clone() for name, parameter in network.named_parameters()}
    seen = []

    def proximal(batch):
        seen.append((batch.step, len(batch.labels), batch.features.shape[1], batch.logits.shape[1]))
        return 1e3 * sum(((batch.params[name] - start[name]) ** 2).sum() for name in start)

    recipe = Recipe(epochs=1, lr=1e-4, batch=8)
    plain, held = fit(network, shard, recipe, seed=SEED), fit(network, shard, recipe, seed=SEED, extra=proximal)

    def moved(fitted):
        return sum((fitted.tensors[name] - start[name]).norm().item() for name in start)

    assert moved(held) < moved(plain)
    assert [row[:2] for row in seen] == [(0, 8), (1, 8), (2, 4)]
    assert seen[0][3] == 3


def test_augmentation_changes_training_and_not_scoring():
    network, shard = make()
    recipe = Recipe(epochs=1, lr=0.1, batch=5, augmentation=Augmentation.parse("flip_crop"))
    assert not same(fit(network, shard, recipe, seed=SEED).tensors, fit(network, shard, RECIPE, seed=SEED).tensors)
    assert torch.equal(score(network, shard).bins, score(network, shard).bins)


def test_soft_labels_at_temperature_one_are_cross_entropy():
    logits, labels = torch.randn(4, 3, generator=SEED.torch()), torch.tensor([0, 1, 2, 0])
    hard = classification_loss(logits, labels)
    torch.testing.assert_close(classification_loss(logits, F.one_hot(labels, 3).float()), hard)


def test_soft_labels_pull_to_the_teacher():
    teacher, temperature = torch.randn(4, 3, generator=SEED.torch()), 2.0
    logits = teacher.clone().requires_grad_()
    loss = classification_loss(logits, (teacher / temperature).softmax(1), temperature)
    (gradient,) = torch.autograd.grad(loss, logits)
    assert gradient.abs().max() < 1e-6


def test_divergence_is_said():
    network, shard = make()
    with pytest.raises(RunError, match="smaller lr"):
        fit(network, shard, Recipe(epochs=20, lr=1e30, batch=5), seed=SEED)


def test_scoring_puts_the_mode_back_and_takes_nothing():
    network, shard = make()
    assert network.training
    assert predict(network, shard).shape == (20, 3)
    assert network.training
    assert predict(network, shard.take([])).shape == (0, 3)
