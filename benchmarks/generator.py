"""Seconds and peak memory of StyleGAN-XL's generator, forward and vector-Jacobian product from F5, in one run against the
literal formulation: zeros stuffed, padded and filtered by depthwise convolutions, weights of each image's own. fedstill tunes
the allocator of its processes, which helps the literal formulation most: it is shown with the system's allocator, as other code
would run it, and with the tuned one, which is fedstill's gain by arithmetic alone.

    python benchmarks/generator.py                          # both CIFAR models, about five minutes on one core
    python benchmarks/generator.py --model 19.6M --images 4
    python benchmarks/generator.py --memory --model 18.0M --images 100          # one step of a Canvas
    python benchmarks/generator.py --memory --model ImageNet-128 --images 2     # from F12

Weights are random, in float32, and frozen. Every figure comes from a process of its own, in CPU seconds of its best pass, one
thread; peak memory is that process's largest resident size less what it held before the first pass. A pass of the vector-Jacobian
product is forward and backward. Ratios are within this run. ``--memory`` takes one step of a Canvas instead, as distillation
does, and gives that process's largest resident size in all: weights, latents, momentum and a chunk's graph.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

SPACE = 5
MODELS: dict[str, dict[str, Any]] = {
    "18.0M": {},
    "19.6M": {"layers": 7, "kernel": 3, "radial": False, "widest": 512, "budget": 32768},
}
LARGE = "ImageNet-128"  # for --memory alone
KINDS = ("literal", "literal, tuned", "fedstill")
WORKS = ("forward", "vjp")


def measure(model: str, kind: str, work: str, images: int, passes: int) -> dict[str, float]:
    from fedstill.runtime import peak_memory, prepare

    prepare(1, malloc=kind != "literal")
    import torch

    sys.path.append(str(Path(__file__).parent.parent / "tests"))
    import xl_literal
    from fedstill.generators.stylegan_xl import StyleGANXL
    from fedstill.generators.xl_options import plan
    from fedstill.seeds import Seed

    seed = Seed.root(0)
    with seed.at("weights").scope():
        generator = StyleGANXL(plan((32,), classes=10, **MODELS[model])).requires_grad_(False)
    # half the parameters lie before F5, and a benchmark's latent need not come from there
    first = generator.options.layers[SPACE]
    noise = seed.at("latents").torch()
    features = torch.randn(images, first.in_channels, first.in_size, first.in_size, generator=noise)
    styles = torch.randn(images, generator.depth - SPACE, generator.options.w_width, generator=noise)
    wanted = torch.randn(images, 3, 32, 32, generator=noise)

    def render(f, w):
        if kind == "fedstill":
            return generator.render({"f": f, "w": w}, SPACE)
        return xl_literal.render(generator, f, w, SPACE, xl_literal.fir_by_convolution)

    held, seconds = peak_memory(), []
    for _ in range(passes):
        began = time.process_time()
        if work == "forward":
            with torch.no_grad():
                result = render(features, styles)
        else:
            leaves = features.detach().requires_grad_(), styles.detach().requires_grad_()
            result = torch.autograd.grad(render(*leaves), leaves, wanted)[0]
        seconds.append(time.process_time() - began)
    return {
        "seconds": min(seconds) / images,
        "bytes": peak_memory() - held,
        "check": float(result.double().square().mean()),
    }


def step(model: str, images: int) -> dict[str, float]:
    """One step of a Canvas on ``images``, drawn at its space."""
    from fedstill.runtime import peak_memory, prepare

    prepare(1)
    import torch

    from fedstill.data.shard import Normalisation
    from fedstill.distill.canvas import Canvas, Pull, Strokes
    from fedstill.generators.stylegan_xl import StyleGANXL
    from fedstill.generators.xl_options import plan
    from fedstill.seeds import Seed

    seed = Seed.root(0)
    with seed.at("weights").scope():
        options = plan((16, 32, 64, 128), classes=1000) if model == LARGE else plan((32,), classes=10, **MODELS[model])
        generator = StyleGANXL(options).requires_grad_(False)
    space = 12 if model == LARGE else SPACE
    first = options.layers[space]
    noise = seed.at("latents").torch()
    latent = {
        "f": torch.randn(images, first.in_channels, first.in_size, first.in_size, generator=noise),
        "w": torch.randn(images, generator.depth - space, options.w_width, generator=noise),
    }
    canvas = Canvas(
        generator,
        space,
        latent,
        torch.zeros(images, dtype=torch.long),
        normalisation=Normalisation((0.5,) * 3, (0.5,) * 3),
        strokes=Strokes(features=1.0, styles=1.0, rate=0),
        rate=0.01,
    )
    del latent
    held, began = peak_memory(), time.process_time()
    canvas.push(Pull(0.0, torch.randn(images, options.channels, options.size, options.size, generator=noise)))
    return {
        "images": images,
        "chunk": canvas.chunk,
        "seconds": time.process_time() - began,
        "held": held,
        "peak": peak_memory(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=[*MODELS, LARGE], action="append", help="repeatable; both")
    parser.add_argument("--images", type=int, default=1, help="that go through at once")
    parser.add_argument("--passes", type=int, default=2)
    parser.add_argument("--memory", action="store_true", help="of a step of a Canvas")
    parser.add_argument("--one", nargs=3, metavar=("MODEL", "KIND", "WORK"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        print(json.dumps(measure(*given.one, given.images, given.passes)))
        return
    if given.memory:
        print(json.dumps(step((given.model or ["18.0M"])[0], given.images)))
        return
    if LARGE in (given.model or ()):
        parser.error(f"{LARGE} is for --memory")
    print(
        f"{platform.processor() or platform.machine()}, python {platform.python_version()}, {given.images} image(s) at once"
    )
    print(f"{'model':8}{'work':10}{'':16}{'s/image':>10}{'MB':>9}{'faster':>9}{'memory':>9}")
    for model in given.model or MODELS:
        for work in WORKS:
            base = None
            for kind in KINDS:
                command = [sys.executable, __file__, "--images", str(given.images), "--passes", str(given.passes)]
                made = subprocess.run(
                    [*command, "--one", model, kind, work],
                    check=True,
                    stdout=subprocess.PIPE,
                    env={**os.environ, "OMP_NUM_THREADS": "1"},
                )
                found = json.loads(made.stdout)
                base = base or found
                if abs(found["check"] / base["check"] - 1) > 1e-3:
                    raise SystemExit(f"the two disagree: {base['check']} and {found['check']}")
                print(
                    f"{model:8}{work:10}{kind:16}{found['seconds']:10.2f}{found['bytes'] / 1e6:9.0f}"
                    f"{base['seconds'] / found['seconds']:9.2f}{found['bytes'] / base['bytes']:9.2f}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
