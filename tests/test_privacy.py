"""DP-SGD: a step against a literal loop, the accountant against closed forms, what is refused."""

import math
import sys
from dataclasses import replace

import pytest
import torch
from scipy.stats import norm
from torch import nn
from torch.nn import functional as F

from fedstill.contract import tiny_sites, tiny_world
from fedstill.data.augment import DSA, Augmentation, apply
from fedstill.errors import InputError, MissingExtra, RunError
from fedstill.models.architecture import Architecture
from fedstill.privacy import Privacy, Sampling, check_network, epsilon_of, noise_for
from fedstill.seeds import Seed
from fedstill.train import Recipe, fit

pytest.importorskip("opacus")

SEED = Seed.root(0).at("privacy")
SHARD = tiny_sites()["c02"].train
SHAPE = (1, 8, 8)
RECIPE = Recipe(epochs=3, lr=0.1, batch=5)
PRIVATE = Privacy(noise=1.0, clip=0.5)


def make(**options):
    return replace(tiny_world().architecture, options={"depth": 2, "width": 4, **options}).build(Seed.root(0))


def same(left, right):
    return all(torch.equal(left[name], right[name]) for name in left)


# --- the accountant ----------------------------------------------------------------------------------------------------


def gaussian_delta(epsilon, noise):
    """Of one Gaussian mechanism, exactly (Balle and Wang 2018, Theorem 8)."""
    return norm.cdf(0.5 / noise - epsilon * noise) - math.exp(epsilon) * norm.cdf(-0.5 / noise - epsilon * noise)


@pytest.mark.parametrize("noise", [0.7, 1.0, 2.0, 10.0])
@pytest.mark.parametrize("steps", [1, 16])
def test_full_batches_are_gaussian_mechanisms(noise, steps):
    """T of them are one of noise σ / √T: its exact ε is below the accountant's, and zCDP's above."""
    delta = 1e-5
    found = epsilon_of(noise=noise, rate=1.0, steps=steps, delta=delta)
    assert gaussian_delta(found, noise / math.sqrt(steps)) <= delta
    assert gaussian_delta(0.8 * found, noise / math.sqrt(steps)) > delta
    rho = steps / (2 * noise**2)
    assert found <= rho + 2 * math.sqrt(rho * math.log(1 / delta))


def test_sampling_is_told_as_the_definition_has_it():
    """Rényi's divergence at one order, integrated numerically, gives a bound that the accountant does not exceed by more."""
    noise, rate, steps, delta = 1.5, 0.1, 40, 1e-5
    x = torch.linspace(-30, 30, 200_001, dtype=torch.float64)
    off = torch.exp(-((x / noise) ** 2) / 2)
    on = (1 - rate) * off + rate * torch.exp(-(((x - 1) / noise) ** 2) / 2)
    bounds = []
    for order in range(2, 65):
        divergence = torch.log((on**order * off ** (1 - order)).nan_to_num(0.0).sum() / off.sum()).item() / (order - 1)
        bounds.append(steps * divergence + math.log1p(-1 / order) - (math.log(delta) + math.log(order)) / (order - 1))
    assert epsilon_of(noise=noise, rate=rate, steps=steps, delta=delta) == pytest.approx(min(bounds), rel=1e-3)


def test_more_noise_spends_less_and_more_steps_more():
    def spent(**changes):
        return epsilon_of(**{"noise": 1.0, "rate": 0.1, "steps": 50, "delta": 1e-5, **changes})

    assert spent(noise=2.0) < spent() < spent(noise=0.8)
    assert spent(steps=20) < spent() < spent(steps=100)
    assert spent(rate=0.05) < spent() < spent(rate=0.2)
    assert spent(delta=1e-4) < spent() < spent(delta=1e-6)
    assert spent(noise=0.0) == math.inf


@pytest.mark.parametrize("epsilon", [0.1, 1.0, 8.0, 50.0])
@pytest.mark.parametrize(("rate", "steps"), [(1.0, 1), (0.05, 300), (0.3, 10)])
def test_the_noise_spends_what_was_wanted_and_no_more(epsilon, rate, steps):
    noise = noise_for(epsilon, rate=rate, steps=steps, delta=1e-5)
    spent = epsilon_of(noise=noise, rate=rate, steps=steps, delta=1e-5)
    assert 0.998 * epsilon <= spent <= epsilon


def test_a_budget_that_no_noise_meets_is_said():
    with pytest.raises(RunError, match=r"no noise makes 1000000 steps private to epsilon = 0\.0001"):
        noise_for(1e-4, rate=1.0, steps=10**6, delta=1e-5)


def test_without_opacus_it_is_said_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "opacus", None)
    with pytest.raises(
        MissingExtra, match=r"needs the package 'opacus': install it with  pip install 'fedstill\[dp\]'"
    ):
        noise_for(3.0, rate=0.125, steps=7, delta=1e-5)
    with pytest.raises(MissingExtra):
        fit(make(), SHARD, RECIPE, seed=SEED, privacy=PRIVATE)


# --- batches -----------------------------------------------------------------------------------------------------------


def test_every_image_joins_by_itself():
    sampling = Sampling(images=50, batch=20)
    assert (sampling.rate, sampling.expected, sampling.steps) == (0.4, 20, 3)
    generator = SEED.torch()
    drawn = [rows for _ in range(400) for rows in sampling.batches(generator)]
    assert len(drawn) == 1200
    taken = torch.zeros(1200, 50)
    for step, rows in enumerate(drawn):
        assert len(rows.unique()) == len(rows)
        taken[step, rows] = 1
    # a binomial's deviation over 1200 steps is 0.014; of a size, 3.46
    assert (taken.mean(0) - 0.4).abs().max() < 5 * 0.0142
    sizes = taken.sum(1)
    assert sizes.mean() == pytest.approx(20, abs=0.5)
    assert sizes.std() == pytest.approx(math.sqrt(50 * 0.4 * 0.6), rel=0.1)
    together = (taken.T @ taken / 1200)[~torch.eye(50, dtype=torch.bool)]
    assert together.mean() == pytest.approx(0.16, abs=0.005)


def test_a_batch_of_all_images_is_all_of_them():
    sampling = Sampling(images=7, batch=20)
    assert (sampling.rate, sampling.expected, sampling.steps) == (1.0, 7, 1)
    (rows,) = sampling.batches(SEED.torch())
    assert rows.tolist() == list(range(7))


# --- a step ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("norm", ["instance", "group", "none"])
@pytest.mark.parametrize("batch", [6, 100])
def test_a_step_is_the_formula(norm, batch):
    """Against one image at a time: clipped by the norm over all parameters, summed, noised, divided by what was expected."""
    network = make(norm=norm, groups=2) if norm == "group" else make(norm=norm)
    recipe = Recipe(epochs=1, lr=0.1, batch=batch, decay=0.01, augmentation=Augmentation.parse(DSA))
    short = SHARD.take(range(batch)) if batch == 6 else SHARD
    fitted = fit(network, short, recipe, seed=SEED, privacy=PRIVATE)
    sampling = Sampling(len(short), batch)
    (rows,) = sampling.batches(SEED.at("order").torch())
    images = apply(short.inputs(rows), recipe.augmentation.draw(len(rows), short.size, SEED.at("augment").torch()))
    total = [torch.zeros_like(parameter) for parameter in network.parameters()]
    clipped = 0
    for image, label in zip(images, short.labels[rows], strict=True):
        gradients = torch.autograd.grad(F.cross_entropy(network(image[None]), label[None]), list(network.parameters()))
        length = math.sqrt(sum(float(gradient.square().sum()) for gradient in gradients))
        clipped += length > PRIVATE.clip
        for place, gradient in zip(total, gradients, strict=True):
            place += gradient * min(1.0, PRIVATE.clip / length)
    assert clipped
    noise = SEED.at("noise").torch()
    for (name, parameter), gradient in zip(network.named_parameters(), total, strict=True):
        drawn = torch.normal(0.0, PRIVATE.noise * PRIVATE.clip, parameter.shape, generator=noise)
        step = (gradient + drawn) / sampling.expected + recipe.decay * parameter.detach()
        torch.testing.assert_close(fitted.tensors[name], parameter.detach() - 0.1 * step, rtol=1e-4, atol=1e-5)


def test_no_noise_and_no_clipping_is_plain_descent():
    recipe = Recipe(epochs=3, lr=0.1, batch=100, momentum=0.5)
    private = fit(make(), SHARD, recipe, seed=SEED, privacy=Privacy(noise=0.0, clip=1e6))
    plain = fit(make(), SHARD, recipe, seed=SEED)
    for name, tensor in plain.tensors.items():
        torch.testing.assert_close(private.tensors[name], tensor, rtol=1e-4, atol=1e-5)
    assert private.losses == ()
    assert private.steps == plain.steps == 3


def test_private_training_repeats_itself_and_leaves_the_network_alone():
    network = make()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    first, second = (fit(network, SHARD, RECIPE, seed=SEED, privacy=PRIVATE) for _ in range(2))
    assert same(first.tensors, second.tensors)
    assert same(before, network.state_dict())
    assert not same(first.tensors, fit(network, SHARD, RECIPE, seed=SEED.at(1), privacy=PRIVATE).tensors)
    assert first.steps == 12
    plain = fit(network, SHARD, RECIPE, seed=SEED)  # Opacus leaves nothing behind in what others train
    assert same(plain.tensors, fit(make(), SHARD, RECIPE, seed=SEED).tensors)


def test_an_empty_batch_is_a_step_on_noise():
    def empty(seed):
        return not any(len(rows) for rows in Sampling(2, 1).batches(seed.at("order").torch()))

    seed = next(place for place in (SEED.at(n) for n in range(1000)) if empty(place))
    network = make()
    fitted = fit(network, SHARD.take([0, 1]), Recipe(epochs=1, lr=0.1, batch=1), seed=seed, privacy=PRIVATE)
    assert fitted.steps == 2
    wanted = {name: parameter.detach().clone() for name, parameter in network.named_parameters()}
    noise = seed.at("noise").torch()
    for _ in range(2):
        for tensor in wanted.values():
            tensor -= 0.1 * torch.normal(0.0, PRIVATE.noise * PRIVATE.clip, tensor.shape, generator=noise)
    for name, tensor in wanted.items():
        torch.testing.assert_close(fitted.tensors[name], tensor)


def test_divergence_is_said_by_the_weights():
    with pytest.raises(RunError, match="its weights are not finite: use a smaller lr than 1e\\+38"):
        fit(make(), SHARD, Recipe(epochs=5, lr=1e38, batch=5), seed=SEED, privacy=Privacy(1.0, 1e3))


# --- networks ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "size", "options"),
    [
        ("convnet", 8, {"depth": 2, "width": 4}),
        ("convnet", 8, {"depth": 2, "width": 8, "norm": "group", "groups": 4, "pooling": "max"}),
        ("resnet18", 32, {"width": 4}),
        ("vgg11", 32, {"width": 4, "norm": "none"}),
        ("vit", 8, {"dim": 16, "depth": 1, "heads": 2, "head_dim": 8, "mlp": 16}),
    ],
)
def test_every_network_of_the_table_has_private_gradients(name, size, options):
    network = Architecture(name, 1, (size, size), 3, options).build(SEED)
    check_network(network, (1, size, size))


@pytest.mark.parametrize("name", ["convnet", "resnet18"])
def test_batch_norm_is_refused(name):
    network = Architecture(name, 1, (32, 32), 3, {"width": 4, "norm": "batch"}).build(SEED)
    before = {key: tensor.clone() for key, tensor in network.state_dict().items()}
    with pytest.raises(
        InputError, match=r"^model: a layer of the network learns from a whole batch, as BatchNorm does"
    ):
        check_network(network, (1, 32, 32))
    assert same(before, network.state_dict())


class Own(nn.Module):
    """A network that is no Network: with a layer between body and head that may be at odds with privacy."""

    def __init__(self, odd):
        super().__init__()
        self.body, self.odd, self.head = nn.Linear(64, 5), odd, nn.Linear(5, 3)
        self.scale = nn.Parameter(torch.ones(5)) if odd is None else None

    def features(self, inputs):
        features = self.body(inputs.flatten(1))
        return features * self.scale if self.odd is None else self.odd(features)

    def classify(self, features):
        return self.head(features)


class Centred(nn.Module):
    def forward(self, features):
        return features - features.mean(0)


class Counting(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("seen", torch.zeros(5))

    def forward(self, features):
        self.seen += features.detach().sum(0)
        return features


class Drawing(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(5))

    def forward(self, features):
        return F.dropout(features * self.scale, 0.5)


@pytest.mark.parametrize(
    ("odd", "words"),
    [
        (Centred(), "learns from a whole batch"),
        (Counting(), "learns from a whole batch"),
        (Drawing(), "cannot tell the gradients of single images apart in this network"),
        (None, "cannot tell the gradients of single images apart in 'scale'"),
    ],
)
def test_a_network_of_ones_own_is_tried_out(odd, words):
    with pytest.raises(InputError, match=words) as caught:
        check_network(Own(odd), SHAPE)
    assert "\n" not in str(caught.value)
    check_network(Own(nn.ReLU()), SHAPE)
