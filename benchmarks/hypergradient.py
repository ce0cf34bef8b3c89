"""Time and peak memory of the trajectory matcher's gradients, in one run, against a textbook unroll.

    python benchmarks/hypergradient.py                     # widths 32 and 128, about ten minutes on one core
    python benchmarks/hypergradient.py --width 32          # one width

Every figure comes from a process of its own: peak memory is that process's largest resident size less what it held before the
pull. Seconds are CPU seconds of the second pull (the first one warms the allocator), one thread. Ratios are within this run.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time

IMAGES, SIZE, DEPTH = 100, 32, 3
AUGMENTATION = "color_crop_cutout_flip_scale_rotate"


def unrolled(matcher, images, labels, rate, seed):
    """The textbook: keep every step's graph, let autograd do the rest."""
    import torch
    from torch.func import functional_call
    from torch.nn import functional as F

    from fedstill.data.augment import apply

    names = [name for name, _ in matcher.network.named_parameters()]
    start = [matcher.start[name] for name in names]
    target = [matcher.target[name] for name in names]
    images = images.clone().requires_grad_()
    eta = torch.tensor(rate, requires_grad=True)
    theta = [part.clone().requires_grad_() for part in start]
    for move in matcher._moves(images, seed):
        logits = functional_call(matcher.network, dict(zip(names, theta, strict=True)), (apply(images, move.drawn),))
        gradient = torch.autograd.grad(F.cross_entropy(logits, labels), theta, create_graph=True)
        theta = [t - eta * g for t, g in zip(theta, gradient, strict=True)]
    far = sum(((a - b) ** 2).sum() for a, b in zip(start, target, strict=True))
    loss = sum(((a - b) ** 2).sum() for a, b in zip(theta, target, strict=True)) / far
    return torch.autograd.grad(loss, (images, eta))[0]


def measure(kind: str, width: int, steps: int, malloc: str, pulls: int) -> dict[str, float]:
    from fedstill.runtime import peak_memory, prepare

    prepare(1, malloc=malloc == "tuned")
    import torch

    from fedstill.data.augment import Augmentation
    from fedstill.distill.matchers import TrajectoryMatcher
    from fedstill.models.architecture import Architecture
    from fedstill.seeds import Seed

    root = Seed.root(0)
    architecture = Architecture(
        name="convnet", channels=3, size=(SIZE, SIZE), classes=10, options={"depth": DEPTH, "width": width}
    )
    start, target = (architecture.build(root.at(name)) for name in ("start", "target"))
    matcher = TrajectoryMatcher(
        network=start,
        start=start.state_dict(),
        target=target.state_dict(),
        steps=steps,
        augmentation=Augmentation.parse(AUGMENTATION),
        gradient="truncated" if kind == "truncated" else "exact",
    )
    images = torch.randn(IMAGES, 3, SIZE, SIZE, generator=root.at("images").torch())
    labels = torch.arange(IMAGES) % 10
    before = peak_memory() or 0
    seconds = 0.0
    for _ in range(pulls):
        began = time.process_time()
        if kind == "unroll":
            unrolled(matcher, images, labels, 0.01, root.at("pull"))
        else:
            matcher.pull(images, labels, 0.01, root.at("pull"))
        seconds = time.process_time() - began
    return {"seconds": seconds, "megabytes": ((peak_memory() or 0) - before) / 2**20}


def child(*arguments: object) -> dict[str, float]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    command = [sys.executable, __file__, "--child", *map(str, arguments)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, action="append", help="of the ConvNet; may be repeated")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--pulls", type=int, default=2, help="the last one is timed")
    parser.add_argument("--child", nargs=5, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        kind, width, steps, malloc, pulls = options.child
        print(json.dumps(measure(kind, int(width), int(steps), malloc, int(pulls))))
        return
    print(f"{IMAGES} images of {SIZE} x {SIZE}, ConvNet-{DEPTH}, {AUGMENTATION}, one thread, {platform.machine()}")
    for width in options.width or [32, 128]:
        print(f"\nwidth {width}, T = {options.steps}")
        print(f"{'':12}{'malloc':>9}{'CPU s':>9}{'MiB':>9}{'time / unroll':>15}{'memory / unroll':>17}")
        for malloc in ("tuned", "default"):
            rows = {k: child(k, width, options.steps, malloc, options.pulls) for k in ("unroll", "exact", "truncated")}
            whole = rows["unroll"]
            for kind, row in rows.items():
                ratios = (row["seconds"] / whole["seconds"], row["megabytes"] / whole["megabytes"])
                print(
                    f"{kind:12}{malloc:>9}{row['seconds']:9.2f}{row['megabytes']:9.0f}{ratios[0]:15.2f}{ratios[1]:17.2f}",
                    flush=True,
                )
        few, many = (child("exact", width, steps, "tuned", 1)["megabytes"] for steps in (5, 50))
        print(f"exact, peak memory at T = 50 against T = 5: {many:.0f} / {few:.0f} MiB = {many / few:.2f}")


if __name__ == "__main__":
    main()
