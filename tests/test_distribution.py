"""Distribution matching against its formula, class by class, by autograd in float64."""

import math
from dataclasses import replace

import pytest
import torch

from fedstill.contract import tiny_world
from fedstill.data.augment import Augmentation, apply
from fedstill.data.shard import Shard
from fedstill.distill.canvas import Canvas, Strokes
from fedstill.distill.distribution import (
    DistributionMatcher,
    FreshNetworks,
    NearbyNetworks,
    Noise,
    draw_near,
)
from fedstill.errors import InputError, RunError
from fedstill.generators.pixels import Pixels
from fedstill.privacy import Look
from fedstill.seeds import Seed

ROOT = Seed.root(0)
SEED = ROOT.at("pull")
DSA = Augmentation.parse("color_crop_cutout_flip_scale_rotate")
WORLD = tiny_world()
ARCHITECTURE = replace(WORLD.architecture, size=(16, 16), options={"depth": 2, "width": 6})
CENTRE = ARCHITECTURE.build(ROOT.at("centre")).double()


def make_real(counts):
    labels = torch.arange(3).repeat_interleave(torch.tensor(counts))
    images = torch.rand(len(labels), 1, 16, 16, dtype=torch.float64, generator=ROOT.at("real").torch())
    shuffled = torch.randperm(len(labels), generator=ROOT.at("order").torch())
    return Shard(images, labels, WORLD.classes, WORLD.normalisation).take(shuffled)


def make_images(labels):
    labels = torch.tensor(labels)
    return torch.randn(len(labels), 1, 16, 16, dtype=torch.float64, generator=ROOT.at("images").torch()), labels


def make(counts=(7, 5, 9), **options):
    return DistributionMatcher(**{"networks": NearbyNetworks(CENTRE, 2.0), "real": make_real(counts), **options})


def by_formula(matcher, images, labels, seed):
    """L, a class at a time; batches and augmentation are drawn as the matcher says it draws them."""
    network = matcher.networks.draw(seed.at("network"))

    def psi(x):
        features = network.features(x)
        return torch.cat([features, network.classify(features)], 1) if matcher.logits else features

    total = torch.zeros((), dtype=torch.float64)
    for k in range(3):
        rows = (matcher.real.labels == k).nonzero().flatten()
        mine = images[labels == k]
        if len(rows) == 0 or len(mine) == 0:
            continue
        rows = rows[torch.randperm(len(rows), generator=seed.at("real", k).torch())[: matcher.batch]]
        drawn = matcher.augmentation.draw(1, (16, 16), seed.at("augment", k).torch())
        real = psi(apply(matcher.real.inputs(rows), drawn)).mean(0)
        total = total + ((real - psi(apply(mine, drawn)).mean(0)) ** 2).sum()
    return total


def relative(found, wanted):
    return ((found - wanted).norm() / wanted.norm()).item()


@pytest.mark.parametrize("augmentation", [Augmentation(), DSA, replace(DSA, mode="all")], ids=["plain", "dsa", "all"])
@pytest.mark.parametrize("logits", [False, True], ids=["features", "logits"])
@pytest.mark.parametrize("chunk", [None, 1, 4])
@pytest.mark.parametrize("batch", [3, 256])
def test_loss_and_gradient_are_the_formulas(augmentation, logits, chunk, batch):
    matcher = make(augmentation=augmentation, logits=logits, chunk=chunk, batch=batch)
    images, labels = make_images([2, 0, 1, 2, 0, 2])
    leaf = images.clone().requires_grad_()
    loss = by_formula(matcher, leaf, labels, SEED)
    (wanted,) = torch.autograd.grad(loss, leaf)
    pull = matcher.pull(images, labels, 0.0, SEED)
    assert pull.loss == pytest.approx(loss.item(), rel=1e-12)
    assert matcher.loss(images, labels, 0.0, SEED) == pytest.approx(loss.item(), rel=1e-12)
    assert relative(pull.d_images, wanted) < 1e-10
    assert pull.d_rate is None


@pytest.mark.parametrize("counts", [(0, 5, 9), (1, 1, 1), (0, 0, 1)], ids=str)
@pytest.mark.parametrize("augmentation", [Augmentation(), DSA], ids=["plain", "dsa"])
def test_classes_may_be_missing_or_hold_one_image(counts, augmentation):
    matcher = make(counts, augmentation=augmentation)
    images, labels = make_images([0, 2, 2, 0])
    leaf = images.clone().requires_grad_()
    loss = by_formula(matcher, leaf, labels, SEED)
    (wanted,) = torch.autograd.grad(loss, leaf)
    pull = matcher.pull(images, labels, 0.0, SEED)
    assert pull.loss == pytest.approx(loss.item(), rel=1e-12)
    assert relative(pull.d_images, wanted) < 1e-10
    absent = [row for row, label in enumerate(labels.tolist()) if counts[label] == 0]
    assert not pull.d_images[absent].any()


def test_nothing_in_common_is_no_pull():
    images, labels = make_images([0, 0])
    pull = make((0, 4, 0)).pull(images, labels, 0.0, SEED)
    assert pull.loss == 0
    assert not pull.d_images.any()


def test_equal_sets_match_whatever_the_augmentation():
    """One choice for real and synthetic: no augmentation drives apart what is the same."""
    matcher = make(augmentation=DSA, logits=True)
    images, labels = matcher.real.inputs(), matcher.real.labels
    for step in range(8):
        assert matcher.pull(images, labels, 0.0, SEED.at(step)).loss < 1e-20


def test_soft_labels_count_for_their_largest_entry():
    images, labels = make_images([0, 1, 2])
    soft = torch.nn.functional.one_hot(labels, 3).double() * 0.5 + 0.1
    hard, found = (make().pull(images, given, 0.0, SEED) for given in (labels, soft))
    assert torch.equal(hard.d_images, found.d_images)


def test_a_pull_leaves_no_trace_and_other_seeds_give_other_draws():
    matcher = make(augmentation=DSA)
    images, labels = make_images([0, 1, 2])
    weights = {name: tensor.clone() for name, tensor in CENTRE.state_dict().items()}
    kept = images.clone()
    first, second, other = (matcher.pull(images, labels, 0.0, seed) for seed in (SEED, SEED, SEED.at("other")))
    assert torch.equal(first.d_images, second.d_images)
    assert not torch.equal(first.d_images, other.d_images)
    assert torch.equal(images, kept)
    assert all(torch.equal(tensor, weights[name]) for name, tensor in CENTRE.state_dict().items())
    assert all(parameter.requires_grad for parameter in CENTRE.parameters())


@pytest.mark.parametrize("radius", [0.0, 0.5, 5.0])
def test_nearby_networks_lie_in_the_ball(radius):
    drawn = [NearbyNetworks(CENTRE, radius).draw(SEED.at(number)) for number in range(2)]
    for network in drawn:
        moves = zip(network.parameters(), CENTRE.parameters(), strict=True)
        distance = math.sqrt(sum((a - b).square().sum().item() for a, b in moves))
        assert distance == pytest.approx(radius, rel=1e-6)  # hundreds of dimensions: on the sphere
        assert not network.training
        assert not any(parameter.requires_grad for parameter in network.parameters())
    first, second = (torch.cat([part.flatten() for part in network.parameters()]) for network in drawn)
    assert torch.equal(first, second) == (radius == 0)


def test_a_wide_ball_does_not_stretch_the_draw():
    network = NearbyNetworks(CENTRE, 1e6).draw(SEED)
    moves = torch.cat([(a - b).flatten() for a, b in zip(network.parameters(), CENTRE.parameters(), strict=True)])
    assert moves.std().item() == pytest.approx(1.0, abs=0.1)


BATCHED = replace(ARCHITECTURE, options={"depth": 2, "width": 4, "norm": "batch"})


def test_batch_norm_sees_no_other_image():
    """ψ is a function of one image: the pull on a class does not depend on how the rest is packed."""
    centre = BATCHED.build(ROOT.at("centre")).double()
    centre(make_real((9, 9, 9)).inputs())  # in training mode: there are running statistics to go by
    matcher = make(networks=NearbyNetworks(centre, 2.0))
    images, labels = make_images([0, 1, 2, 2])
    whole, alone = (replace(matcher, chunk=chunk).pull(images, labels, 0.0, SEED) for chunk in (99, 1))
    torch.testing.assert_close(whole.d_images, alone.d_images)


def test_random_networks_with_batch_norm_are_refused():
    FreshNetworks(ARCHITECTURE).check()
    with pytest.raises(InputError, match=r"'convnet' has BatchNorm, which has seen no image .*networks = 'ball'"):
        FreshNetworks(BATCHED).check()


@pytest.mark.parametrize("norm", ["instance", "group"])
def test_float32_in_whatever_layout_is_the_formula(norm):
    """Real images go through in the layout that is fastest."""
    architecture = replace(ARCHITECTURE, options={"depth": 2, "width": 8, "norm": norm})
    matcher = make(networks=NearbyNetworks(architecture.build(ROOT.at("centre")), 1.0), augmentation=DSA)
    matcher = replace(matcher, real=replace(matcher.real, images=matcher.real.images.float()))
    images, labels = make_images([2, 0, 1, 2])
    leaf = images.float().requires_grad_()
    (wanted,) = torch.autograd.grad(by_formula(matcher, leaf, labels, SEED), leaf)
    assert relative(matcher.pull(images.float(), labels, 0.0, SEED).d_images, wanted) < 1e-4


def test_noise_of_nothing_is_clipping_and_a_large_clip_is_nothing():
    images, labels = make_images([0, 1, 2])
    plain = make().pull(images, labels, 0.0, SEED)
    loose = make(noise=Noise(clip=1e9, multiplier=0.0)).pull(images, labels, 0.0, SEED)
    tight = make(noise=Noise(clip=1.0, multiplier=0.0)).pull(images, labels, 0.0, SEED)
    assert relative(loose.d_images, plain.d_images) < 1e-10  # every class has fewer images than the batch: all join
    assert tight.loss < 4 * 3  # two vectors of norm 1 a class


def private_sums(matcher, augmentation):
    network = matcher.networks.draw(SEED.at("network"))
    drawn = {k: augmentation.draw(1, (16, 16), SEED.at("augment", k).torch()) for k in range(3)}
    wanted = matcher._wanted(network, drawn, torch.zeros(1, 1, 16, 16, dtype=torch.float64), SEED)
    return {k: mean * len(matcher._real[k]) for k, mean in wanted.items()}


def test_one_image_moves_the_private_sums_by_no_more_than_the_clip():
    """What the guarantee rests on; a batch of all, so that the two differ in that image only."""
    matcher = make(noise=Noise(clip=0.5, multiplier=0.0), logits=True)
    rows = list(range(len(matcher.real)))
    whole = private_sums(matcher, DSA)
    for gone in rows:
        label = int(matcher.real.labels[gone])
        less = private_sums(replace(matcher, real=matcher.real.take([row for row in rows if row != gone])), DSA)
        moved = {k: (whole[k] - less[k]).norm().item() for k in range(3)}
        assert moved[label] <= 0.5 + 1e-12
        assert sum(moved.values()) == pytest.approx(moved[label])


def test_noise_has_the_deviation_it_says():
    silent, noisy = (private_sums(make(noise=Noise(clip=0.5, multiplier=m)), DSA) for m in (0.0, 3.0))
    noise = torch.cat([noisy[k] - silent[k] for k in range(3)])
    assert noise.std().item() == pytest.approx(3.0 * 0.5, rel=0.15)


def test_batches_with_noise_are_drawn_image_by_image():
    matcher = make((40, 40, 40), batch=10, noise=Noise(clip=1.0, multiplier=1.0))
    sizes = [len(matcher._batch_rows(0, SEED.at(number))) for number in range(200)]
    assert len(set(sizes)) > 3
    assert sum(sizes) / len(sizes) == pytest.approx(10, abs=1)


def test_a_batch_with_noise_may_be_empty():
    images, labels = make_images([0])
    matcher = make((40, 2, 2), batch=1, noise=Noise(clip=1.0, multiplier=1.0), augmentation=DSA)
    seeds = [SEED.at(number) for number in range(12)]
    assert any(len(matcher._batch_rows(0, seed.at("real", 0))) == 0 for seed in seeds)
    assert all(math.isfinite(matcher.loss(images, labels, 0.0, seed)) for seed in seeds)


def test_the_worst_class_tells_what_steps_cost():
    matcher = make((40, 5, 20), batch=10)
    assert matcher.look([0, 2], 7) == Look(rate=0.5, steps=7)
    assert matcher.look([0, 1, 2], 7) == Look(rate=1.0, steps=7)
    assert matcher.look([0], 7) == Look(rate=0.25, steps=7)


def make_canvas(labels, lr=1.0):
    pixels = Pixels(1, (16, 16), WORLD.normalisation)
    strokes = Strokes(features=lr, styles=0.0, rate=0.0)
    return Canvas.draw(
        pixels, 0, torch.tensor(labels), normalisation=WORLD.normalisation, strokes=strokes, rate=0.0, seed=ROOT
    )


def test_drawing_near_improves_over_the_start():
    matcher = make(networks=FreshNetworks(ARCHITECTURE), augmentation=DSA)
    told = []
    health = draw_near(
        make_canvas([0, 1, 2, 2]), matcher, steps=40, seed=SEED, progress=lambda done, total: told.append((done, total))
    )
    assert health.end < 0.8 * health.start
    assert health.best <= health.end
    assert health.rate is None
    assert health.sick is None
    assert told[-1] == (40, 40)


def test_a_private_matching_tells_no_losses():
    assert (
        draw_near(
            make_canvas([0]), make(networks=FreshNetworks(ARCHITECTURE), noise=Noise(1.0, 1.0)), steps=1, seed=SEED
        )
        is None
    )


def test_a_matching_that_diverges_says_so():
    with pytest.raises(RunError, match="smaller step size"):
        draw_near(make_canvas([0, 1], lr=1e38), make(networks=FreshNetworks(ARCHITECTURE)), steps=20, seed=SEED)
