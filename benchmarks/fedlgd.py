"""CPU time of FedLGD's three costly pieces, in one process, each against a plain formulation of the same mathematics.

    python benchmarks/fedlgd.py                     # two to four minutes on one core
    python benchmarks/fedlgd.py --malloc default    # with the allocator as the system has it, for both

The paper's DIGITS: 10 classes, 28 x 28 x 3, ConvNet-3 of width 128, 10 images a class on either side.

* ``matching``: an iteration of distribution matching of D^c with the network that arrived, 256 real images a class, DSA.
  Plain: as in distribution.py, class by class.
* ``server step``: a step of gradient matching of D^g. Plain: the gradient of the cross-entropy class by class for all
  parameters, with a graph; then ``loss.backward()``, which goes on to the parameters.
* ``local epoch``: an epoch on D^c and D^g, 200 images in batches of 32, with the contrast. Plain: all of D^g anew at every
  step, with a gradient. Ours once exactly, where only D^g's images in the batch are not taken twice, and once with
  ``anchors = "kept"``, which is another algorithm: features of D^g are those of their last batch, without a gradient.

Plain networks are torch's own layers as they are built. ``cosine`` is between the two gradients at the images; of the epoch,
between the two changes of the weights. Seconds are CPU seconds, one thread, the least of several turns that alternate; the
first turn warms the allocator and is not counted. Ratios are within this run; ``spread`` is their least and largest by turn.
"""

from __future__ import annotations

import argparse
import platform
import time

from distribution import plain as plain_matching
from distribution import plain_network

CLASSES, REAL, IPC, SIZE, WIDTH, BATCH = 10, 256, 10, 28, 128, 32
TEMPERATURE, WEIGHT, LR = 0.07, 10.0, 0.01


def plain_server_step(weights, target, images, labels):
    """dL/d images, a class at a time."""
    import torch
    from torch.nn import functional as F

    network = plain_network(weights)
    names, parameters = zip(*network.named_parameters(), strict=True)
    images = images.clone().requires_grad_()
    total = None
    for k in range(CLASSES):
        logits = network["head"](network["body"](images[labels == k]))
        loss = F.cross_entropy(logits, labels[labels == k]) * (labels == k).sum() / len(labels)
        mine = torch.autograd.grad(loss, parameters, create_graph=True)
        total = mine if total is None else [a + b for a, b in zip(total, mine, strict=True)]
    distance = 0
    for name, gradient in zip(names, total, strict=True):
        if gradient.dim() > 1:
            mine, wanted = gradient.flatten(1), target[name].flatten(1)
            distance = distance + (1 - (mine * wanted).sum(1) / (mine.norm(dim=1) * wanted.norm(dim=1))).sum()
    distance.backward()
    return images.grad


def plain_epoch(weights, lesson, shared, seed):
    """The weights after an epoch; the order of batches is :func:`fedstill.train.fit`'s."""
    import torch
    from torch.nn import functional as F

    from fedstill.losses import supervised_contrast

    network = plain_network(weights)
    optimiser = torch.optim.SGD(network.parameters(), lr=LR)
    anchors, anchor_labels = shared.inputs(), shared.labels
    for rows in torch.split(torch.randperm(len(lesson), generator=seed.at("order").torch()), BATCH):
        labels = lesson.labels[rows]
        features = network["body"](lesson.inputs(rows))
        loss = F.cross_entropy(network["head"](features), labels)
        # an image counts once: those that are in the batch already are left out after they were taken
        outside = ~torch.isin(torch.arange(len(shared)), rows - (len(lesson) - len(shared)))
        everything = torch.cat([features, network["body"](anchors)[outside]])
        contrast = supervised_contrast(everything, torch.cat([labels, anchor_labels[outside]]), temperature=TEMPERATURE)
        optimiser.zero_grad()
        (loss + WEIGHT * contrast).backward()
        optimiser.step()
    return network.state_dict()


def pieces():
    """By name: the plain formulation, and ours; functions of the turn that give a vector to compare."""
    import torch

    from fedstill.algorithms.anchors import Anchors
    from fedstill.algorithms.virtual import VirtualSettings
    from fedstill.data.shard import Normalisation, Shard
    from fedstill.distill.distribution import DistributionMatcher, NearbyNetworks
    from fedstill.distill.gradient import GradientMatcher
    from fedstill.models.architecture import Architecture
    from fedstill.seeds import Seed
    from fedstill.train import Recipe, fit

    root = Seed.root(0)
    architecture = Architecture("convnet", 3, (SIZE, SIZE), CLASSES, {"depth": 3, "width": WIDTH})
    network = architecture.build(root.at("model"))
    weights = network.state_dict()
    names, normalisation = tuple(map(str, range(CLASSES))), Normalisation((0.5,) * 3, (0.5,) * 3)

    def shard(what, each):
        pixels = torch.rand(CLASSES * each, 3, SIZE, SIZE, generator=root.at(what).torch())
        return Shard(pixels, torch.arange(CLASSES).repeat_interleave(each), names, normalisation)

    real, own, shared = shard("real", 2 * REAL), shard("own", IPC), shard("shared", IPC)
    images, labels = shared.inputs(), shared.labels
    matcher = DistributionMatcher(
        NearbyNetworks(network), real, REAL, augmentation=VirtualSettings().matching_augmentation()
    )

    target = dict(
        zip(
            weights,
            torch.autograd.grad(
                torch.nn.functional.cross_entropy(network(own.inputs()), own.labels), list(network.parameters())
            ),
            strict=True,
        )
    )
    gradient = GradientMatcher(network, target)
    lesson = Shard.join([own, shared])

    def epoch(features):
        def done(turn):
            term = Anchors(
                shared=shared,
                own=len(own),
                kind="contrast",
                features=features,
                weight=WEIGHT,
                temperature=TEMPERATURE,
                reduction="mean",
                received=network.eval(),
            )
            recipe = Recipe(epochs=1, lr=LR, batch=BATCH)
            return moved(fit(network, lesson, recipe, seed=root.at("epoch", turn), extra=term).tensors)

        return done

    def moved(tensors):
        return torch.cat([(tensors[name] - tensor).flatten() for name, tensor in weights.items()])

    def plain_training(turn):
        return moved(plain_epoch(weights, lesson, shared, root.at("epoch", turn)))

    return {
        "matching": (
            lambda turn: plain_matching(matcher, images, labels, root.at("step", turn)),
            lambda turn: matcher.pull(images, labels, 0.0, root.at("step", turn)).d_images,
        ),
        "server step": (
            lambda turn: plain_server_step(weights, target, images, labels),
            lambda turn: gradient.pull(images, labels, 0.0, root).d_images,
        ),
        "local epoch, exact": (plain_training, epoch("exact")),
        "local epoch, kept": (plain_training, epoch("kept")),
    }


def compare(plain, ours, turns: int) -> dict[str, float]:
    """Least seconds of each, their ratio by turn, and the least cosine between what they give."""
    from torch.nn import functional as F

    seconds: dict[str, list[float]] = {"plain": [], "ours": []}
    cosines = []
    for turn in range(turns):
        found = []
        for kind, step in (("plain", plain), ("ours", ours)):
            began = time.process_time()
            found.append(step(turn).flatten().double())
            seconds[kind].append(time.process_time() - began)
        cosines.append(F.cosine_similarity(*found, dim=0).item())
    ratios = [a / b for a, b in zip(seconds["plain"][1:], seconds["ours"][1:], strict=True)]
    return {kind: min(times[1:]) for kind, times in seconds.items()} | {
        "cosine": min(cosines),
        "lowest": min(ratios),
        "highest": max(ratios),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=4, help="of each, at least 2; the first one warms the allocator")
    parser.add_argument("--only", default="", help="pieces whose name begins so")
    parser.add_argument(
        "--malloc", choices=("tuned", "default"), default="tuned", help="as fedstill sets it up, or not"
    )
    options = parser.parse_args()

    from fedstill.runtime import prepare

    prepare(1, malloc=options.malloc == "tuned")
    print(
        f"{CLASSES} classes, IPC {IPC}, {SIZE} x {SIZE} x 3, ConvNet-3 of width {WIDTH}, one thread, malloc {options.malloc}, "
        f"{platform.machine()}"
    )
    print(f"{'piece':20}{'plain s':>9}{'fedstill s':>12}{'plain / fedstill':>18}{'spread':>13}{'cosine':>10}")
    for name, (plain, ours) in pieces().items():
        if not name.startswith(options.only):
            continue
        row = compare(plain, ours, options.turns)
        spread = f"{row['lowest']:.2f} - {row['highest']:.2f}"
        print(
            f"{name:20}{row['plain']:9.2f}{row['ours']:12.2f}{row['plain'] / row['ours']:18.2f}{spread:>13}"
            f"{row['cosine']:10.6f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
