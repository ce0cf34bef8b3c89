"""Exact or truncated? The matching loss after the same number of steps along each gradient, for ConvNets of depth 2 to 5.

    python experiments/gradient_by_depth.py                                   # scikit-learn's digits at 32 px
    python experiments/gradient_by_depth.py --path train.parquet --channels 3

One client holds two classes and trains from θ_g, which is fresh (as in round 1) or was trained for some epochs on all
classes (as in later rounds). Both gradients start from the same latents, take the same number of Adam steps and see the
same draws; the loss at the end is that of ``fedstill.distill.health``. The cosine is between the two gradients, at the start
and at the end of the exact run.
The table that it prints is what ``preferred_gradient`` rests on (docs/decisions/0003-gradient.md).
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from dataclasses import replace

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

from fedstill.data.augment import Augmentation
from fedstill.data.sources import DataSettings, load
from fedstill.distill.canvas import Canvas, Strokes
from fedstill.distill.health import agreement, match
from fedstill.distill.matchers import TrajectoryMatcher
from fedstill.generators.pixels import Pixels
from fedstill.models.architecture import Architecture
from fedstill.runtime import prepare
from fedstill.seeds import Seed
from fedstill.train import Recipe, fit


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--path", help="a Parquet file; without it, digits")
    parser.add_argument("--channels", type=int, default=1)
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--width", type=int, default=32)
    parser.add_argument("--depths", type=int, nargs="+", default=[2, 3, 4, 5])
    parser.add_argument("--ipc", type=int, default=2)
    parser.add_argument("--steps", type=int, default=30, help="T_d")
    parser.add_argument("--student-steps", type=int, default=10, help="T_s")
    parser.add_argument("--epochs", type=int, default=10, help="T_l")
    parser.add_argument("--augmentation", default="none")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    options = parser.parse_args()
    prepare(1)
    source = {"source": "parquet", "path": options.path, "limit": 2000} if options.path else {"source": "digits"}
    data = load(DataSettings(**source, size=options.size, channels=options.channels), Seed.root(0)).train
    print("| depth | θ_g | loss at the start | exact, end | truncated, end | cosine, start | cosine, end | s |")
    print("|---|---|---|---|---|---|---|---|")
    for depth in options.depths:
        for warm in (False, True):
            began = time.process_time()
            results = [
                one(data, depth, warm, Seed.root(seed).at("depth", depth, warm), options) for seed in options.seeds
            ]
            cells = [
                f"{statistics.mean(column):.2f} ± {statistics.stdev(column):.2f}"
                if len(column) > 1
                else f"{column[0]:.2f}"
                for column in zip(*results, strict=True)
            ]
            start = "trained" if warm else "fresh"
            print(f"| {depth} | {start} | {' | '.join(cells)} | {time.process_time() - began:.0f} |", flush=True)


def one(data, depth, warm, seed, options):
    architecture = Architecture(
        "convnet", data.channels, data.size, len(data.classes), {"depth": depth, "width": options.width}
    )
    network = architecture.build(seed.at("model"))
    if warm:
        network.load_state_dict(fit(network, data, Recipe(epochs=2, lr=0.05, batch=32), seed=seed.at("warm")).tensors)
    mine = data.take(torch.nonzero(data.labels < 2)[:, 0][:200])
    target = fit(network, mine, Recipe(epochs=options.epochs, lr=0.05, batch=32), seed=seed.at("client")).tensors
    matcher = TrajectoryMatcher(
        network=network,
        start=network.state_dict(),
        target=target,
        steps=options.student_steps,
        augmentation=Augmentation.parse(options.augmentation),
    )
    labels = torch.arange(len(data.classes)).repeat_interleave(options.ipc)

    def paint(scale: float) -> Canvas:
        strokes = Strokes(features=0.1, styles=0.0, rate=1e-4, optimiser="adam").scaled(scale)
        generator = Pixels(data.channels, data.size, data.normalisation)
        return Canvas.draw(
            generator, 0, labels, normalisation=data.normalisation, strokes=strokes, rate=0.05, seed=seed.at("draw")
        )

    cosine = agreement(paint(1.0), matcher, seed.at("start"))
    _, exact = match(paint, matcher, steps=options.steps, seed=seed.at("match"), retries=0, conditioning=True)
    other = replace(matcher, gradient="truncated")
    _, truncated = match(paint, other, steps=options.steps, seed=seed.at("match"), retries=0)
    return exact.start, exact.end, truncated.end, cosine, exact.conditioning


if __name__ == "__main__":
    main()
