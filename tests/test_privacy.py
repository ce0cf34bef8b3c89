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
from fedstill.data.shard import Normalisation, Shard
from fedstill.errors import InputError, MissingExtra, RunError
from fedstill.models.architecture import Architecture
from fedstill.privacy import ORDERS, Privacy, Sampling, check_network, epsilon_of, noise_for
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


REFERENCES = [  # noise, rate, steps, delta, and what dp-accounting 0.6.0 says: Rényi at our orders, privacy loss distributions
    (1.0, 0.01, 1000, 1e-5, 2.1077530754515745, 1.8289344130120775),
    (1.03, 0.1, 100, 1e-5, 7.6304980064607895, 6.667355183819122),
    (4.5, 0.1, 100, 1e-5, 0.9427573967057992, 0.8566220560000254),
    (0.8, 0.05, 300, 1e-6, 11.881393859235143, 10.610505598749448),
    (2.0, 1.0, 40, 1e-5, 19.05359753163139, 17.856594676379498),
    (20.0, 0.3, 500, 1e-4, 1.2037345149857777, 1.0816308072707348),
]
"""Of the event ``SelfComposed(PoissonSampled(rate, Gaussian(noise)), steps)``. That package's pin of attrs is below ours, so it
is no dependency; :func:`test_the_references_are_that_packages` makes them anew where it is installed."""


@pytest.mark.parametrize(("noise", "rate", "steps", "delta", "renyi", "tight"), REFERENCES)
def test_another_accountant_says_the_same(noise, rate, steps, delta, renyi, tight):
    """Google's, from its own code; and by a tighter method it finds no more."""
    found = epsilon_of(noise=noise, rate=rate, steps=steps, delta=delta)
    assert found == pytest.approx(renyi, rel=1e-9)
    assert 0.85 * found < tight < found


@pytest.mark.parametrize(("noise", "rate", "steps", "delta", "renyi", "tight"), REFERENCES)
def test_opacus_own_orders_say_about_the_same(noise, rate, steps, delta, renyi, tight):
    from opacus.accountants import RDPAccountant

    accountant = RDPAccountant()
    accountant.history = [(noise, rate, steps)]
    found = epsilon_of(noise=noise, rate=rate, steps=steps, delta=delta)
    # more orders, each an upper bound, of which theirs are the more below 11
    assert accountant.get_epsilon(delta) == pytest.approx(found, rel=0.03)
    accountant.history = [(noise, rate, 1)] * min(steps, 100)  # step by step, as a training loop would count
    apart = epsilon_of(noise=noise, rate=rate, steps=min(steps, 100), delta=delta)
    assert accountant.get_epsilon(delta, alphas=list(ORDERS)) == pytest.approx(apart, rel=1e-9)


@pytest.mark.parametrize(("noise", "rate", "steps", "delta", "renyi", "tight"), REFERENCES[:1])
def test_the_references_are_that_packages(noise, rate, steps, delta, renyi, tight):
    accounting = pytest.importorskip("dp_accounting")
    sampled = accounting.PoissonSampledDpEvent(rate, accounting.GaussianDpEvent(noise))
    accountant = accounting.rdp.RdpAccountant(list(ORDERS))
    accountant.compose(accounting.SelfComposedDpEvent(sampled, steps))
    assert accountant.get_epsilon(delta) == pytest.approx(renyi, rel=1e-12)


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


# --- what an attacker gets ---------------------------------------------------------------------------------------------


class Single(nn.Module):
    """One weight w: logits (w · mean pixel, 0). A black image has no gradient, a white one always the clipping norm."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Linear(1, 1, bias=False)
        nn.init.zeros_(self.weight.weight)

    def features(self, inputs):
        return self.weight(inputs.mean((1, 2, 3))[:, None])

    def classify(self, features):
        return torch.cat([features, torch.zeros_like(features)], 1)


def increments(canary, *, noise, epochs, seed):
    """How far each epoch of two steps at q = 1/2 moves the weight. The step size is so small that every epoch is alike: each is a
    run of its own of what is told apart."""
    images = torch.zeros(2, 1, 2, 2)
    images[0] = float(canary)
    shard = Shard(images, torch.zeros(2, dtype=torch.int64), ("a", "b"), Normalisation((0.0,), (1.0,)))
    weights = []
    fit(
        Single(),
        shard,
        Recipe(epochs=epochs, lr=1e-4, batch=1),
        seed=seed,
        privacy=Privacy(noise=noise, clip=0.01),
        watch=lambda tensors: weights.append(tensors["weight.weight"].item()),
    )
    return torch.tensor(weights, dtype=torch.float64).diff()


@pytest.mark.slow
def test_no_attack_on_training_beats_its_guarantee():
    """TPR ≤ e^ε FPR + δ at every threshold, both ways round, within four deviations; and the attack comes near enough to tell
    that a third of ε would be a lie."""
    noise, epochs, delta = 0.8, 2000, 1e-2
    there, away = (increments(canary, noise=noise, epochs=epochs, seed=SEED.at("canary", canary)) for canary in (1, 0))
    epsilon = epsilon_of(noise=noise, rate=0.5, steps=2, delta=delta)
    thresholds = torch.cat([there, away]).quantile(torch.linspace(0.01, 0.99, 99, dtype=torch.float64))
    hits, alarms = ((each[None] > thresholds[:, None]).double().mean(1) for each in (there, away))

    def excess(bound):
        """By how many deviations the worst threshold is beyond what ``bound`` allows."""
        worst = -math.inf
        for tpr, fpr in ((hits, alarms), (1 - hits, 1 - alarms), (alarms, hits), (1 - alarms, 1 - hits)):
            # of a rate that is seen as 0 in n runs, up to 9 / n is no surprise
            variance = tpr * (1 - tpr) + math.exp(2 * bound) * (fpr * (1 - fpr) + 9 / epochs)
            worst = max(worst, ((tpr - math.exp(bound) * fpr - delta) / (variance / epochs).sqrt()).max().item())
        return worst

    assert excess(epsilon) < 4
    assert excess(epsilon / 3) > 4


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


def test_a_network_far_from_its_start_has_them_too():
    """A bias that InstanceNorm takes away again has no gradient but rounding's, which was once taken for another image's."""
    network = Architecture("convnet", 1, (16, 16), 10, {"depth": 2, "width": 16}).build(SEED)
    with torch.no_grad():
        network.head.weight.mul_(3000)
    check_network(network, (1, 16, 16))


class Folded(nn.Module):
    """Takes four parts of an image for four images."""

    def __init__(self):
        super().__init__()
        self.body = nn.Linear(16, 5)

    def features(self, images):
        return self.body(images.unfold(2, 4, 4).unfold(3, 4, 4).reshape(-1, 16)).view(len(images), -1, 5).mean(1)

    def classify(self, features):
        return features


def test_a_network_of_which_parts_of_images_would_be_clipped_is_refused():
    with pytest.raises(InputError, match="cannot tell the gradients of single images apart in 'body"):
        check_network(Folded(), (1, 8, 8))


def test_an_image_whose_gradient_is_no_number_adds_nothing():
    """Whether training ends in numbers that are not finite must not tell of one image."""
    shard = tiny_sites()["c00"].train
    images = shard.inputs().clone()
    images[3] = 1e38  # its features overflow
    odd = replace(shard, images=images, normalisation=type(shard.normalisation)((0.0,), (1.0,)))
    without = odd.take(torch.tensor([row for row in range(len(odd)) if row != 3]))
    network = Architecture("convnet", 1, (8, 8), 3, {"depth": 1, "width": 4, "norm": "none"}).build(SEED)
    recipe = Recipe(epochs=1, lr=0.1, batch=len(odd))
    found = fit(network, odd, recipe, seed=SEED, privacy=Privacy(1.0, 1.0))
    wanted = fit(network, without, replace(recipe, batch=len(odd) - 1), seed=SEED, privacy=Privacy(1.0, 1.0))
    assert all(bool(each.isfinite().all()) for each in found.tensors.values())
    ratio = (len(odd) - 1) / len(odd)  # the step is divided by the number of images, which is told
    before = network.state_dict()
    for name, each in found.tensors.items():
        assert torch.allclose((each - before[name]), (wanted.tensors[name] - before[name]) * ratio, atol=1e-4)


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
