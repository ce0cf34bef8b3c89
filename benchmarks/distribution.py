"""CPU time of one iteration of distribution matching, in one run, against a plain formulation class by class.

    python benchmarks/distribution.py                     # two to four minutes on one core
    python benchmarks/distribution.py --logits            # FedDM's loss: features and logits

10 classes, 256 real images each, 10 synthetic ones, ConvNet-3 of width 128, 28 x 28 x 3, DSA. The plain formulation is how such
code is usually written: a loop over classes, a network of torch's own layers as it is built (its parameters want gradients), real
features with a graph that is then dropped, ``loss.backward()``. With ``--logits`` it calls the network once for features and once
for logits. Both have the same weights and draw the same batches and augmentations, and their gradients are compared.

A process each for the allocator as the system has it and as fedstill sets it up. Seconds are CPU seconds, one thread, the least
of several turns that alternate between the two. Ratios are within this run; ``spread`` is their least and largest by turn.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time

CLASSES, REAL, IPC, SIZE, WIDTH = 10, 256, 10, 28, 128
AUGMENTATION = "color_crop_cutout_flip_scale_rotate"


def plain_network(weights):
    """The same ConvNet of torch.nn alone."""
    from collections import OrderedDict

    from torch import nn

    def block(channels):
        return nn.Sequential(
            OrderedDict(
                conv=nn.Conv2d(channels, WIDTH, 3, padding=1),
                norm=nn.GroupNorm(WIDTH, WIDTH),
                activation=nn.ReLU(),
                pool=nn.AvgPool2d(2),
            )
        )

    body = nn.Sequential(OrderedDict(block1=block(3), block2=block(WIDTH), block3=block(WIDTH), flatten=nn.Flatten()))
    network = nn.ModuleDict({"body": body, "head": nn.Linear(WIDTH * (SIZE // 8) ** 2, CLASSES)})
    network.load_state_dict(weights)
    return network


def plain(matcher, images, labels, seed):
    """The loop; gives dL/d images."""
    import torch

    from fedstill.data.augment import apply

    network = plain_network(matcher.networks.draw(seed.at("network")).state_dict())
    embed, classify = network["body"], network["head"]
    images = images.clone().requires_grad_()
    loss = 0
    for k in range(CLASSES):
        rows = (matcher.real.labels == k).nonzero().flatten()
        rows = rows[torch.randperm(len(rows), generator=seed.at("real", k).torch())[:REAL]]
        drawn = matcher.augmentation.draw(1, (SIZE, SIZE), seed.at("augment", k).torch())
        real, synthetic = apply(matcher.real.inputs(rows), drawn), apply(images[labels == k], drawn)
        wanted, found = embed(real).detach(), embed(synthetic)
        loss = loss + ((wanted.mean(0) - found.mean(0)) ** 2).sum()
        if matcher.logits:
            wanted, found = classify(embed(real)).detach(), classify(embed(synthetic))
            loss = loss + ((wanted.mean(0) - found.mean(0)) ** 2).sum()
    loss.backward()
    return images.grad


def measure(malloc: str, logits: bool, turns: int) -> dict[str, float]:
    from fedstill.runtime import prepare

    prepare(1, malloc=malloc == "tuned")
    import torch
    from torch.nn import functional as F

    from fedstill.data.augment import Augmentation
    from fedstill.data.shard import Normalisation, Shard
    from fedstill.distill.distribution import DistributionMatcher, NearbyNetworks
    from fedstill.models.architecture import Architecture
    from fedstill.seeds import Seed

    root = Seed.root(0)
    architecture = Architecture(
        name="convnet", channels=3, size=(SIZE, SIZE), classes=CLASSES, options={"depth": 3, "width": WIDTH}
    )
    total = CLASSES * REAL * 2
    pixels = torch.randint(0, 256, (total, 3, SIZE, SIZE), generator=root.at("real").torch(), dtype=torch.uint8)
    names = tuple(map(str, range(CLASSES)))
    matcher = DistributionMatcher(
        networks=NearbyNetworks(architecture.build(root.at("model")), 5.0),
        real=Shard(pixels, torch.arange(total) % CLASSES, names, Normalisation((0.5,) * 3, (0.5,) * 3)),
        batch=REAL,
        augmentation=Augmentation.parse(AUGMENTATION),
        logits=logits,
    )
    labels = torch.arange(CLASSES).repeat_interleave(IPC)
    images = torch.randn(len(labels), 3, SIZE, SIZE, generator=root.at("images").torch())
    kinds = {
        "plain": lambda seed: plain(matcher, images, labels, seed),
        "fedstill": lambda seed: matcher.pull(images, labels, 0.0, seed).d_images,
    }
    seconds: dict[str, list[float]] = {kind: [] for kind in kinds}
    cosines = []
    for turn in range(turns):
        gradients = []
        for kind, step in kinds.items():
            began = time.process_time()
            gradients.append(step(root.at("step", turn)).flatten())
            seconds[kind].append(time.process_time() - began)
        cosines.append(F.cosine_similarity(*(gradient.double() for gradient in gradients), dim=0).item())
    # the first turn warms the allocator
    ratios = [a / b for a, b in zip(seconds["plain"][1:], seconds["fedstill"][1:], strict=True)]
    return {kind: min(times) for kind, times in seconds.items()} | {
        "cosine": min(cosines),
        "lowest": min(ratios),
        "highest": max(ratios),
    }


def child(*arguments: object) -> dict[str, float]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    command = [sys.executable, __file__, "--child", *map(str, arguments)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--logits", action="store_true", help="match logits beside features")
    parser.add_argument(
        "--turns", type=int, default=4, help="of each kind, at least 2; the first one warms the allocator"
    )
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        malloc, logits, turns = options.child
        print(json.dumps(measure(malloc, logits == "True", int(turns))))
        return
    what = "features and logits" if options.logits else "features"
    print(
        f"{CLASSES} classes x {REAL} real images, IPC {IPC}, {SIZE} x {SIZE}, ConvNet-3 of width {WIDTH}, {what}, "
        f"one thread, {platform.machine()}"
    )
    print(f"{'malloc':9}{'plain s':>9}{'fedstill s':>12}{'plain / fedstill':>18}{'spread':>13}{'cosine':>10}")
    for malloc in ("default", "tuned"):
        row = child(malloc, options.logits, options.turns)
        ratio = row["plain"] / row["fedstill"]
        spread = f"{row['lowest']:.2f} - {row['highest']:.2f}"
        print(
            f"{malloc:9}{row['plain']:9.2f}{row['fedstill']:12.2f}{ratio:18.2f}{spread:>13}{row['cosine']:10.6f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
