"""What it costs to keep experts' snapshots in half the room: how far what is matched and its gradient move.

    python benchmarks/snapshots.py                                     # scikit-learn's digits; seconds on one core
    python benchmarks/snapshots.py experiments/oneshot/laptop/table1.toml   # any experiment's images

One expert of the first client is trained and its snapshots are kept as float16, and as float16 differences from the start. For
pieces (start epoch, epochs) of its way, against float32:

* ``target``: the error of θ_{t+M} − θ_t, the way that a student is to make, by its own length;
* ``gradient``: ‖g' − g‖ / ‖g‖ of the matching loss at one real image a class, five student steps, DSA; the median over
  draws of augmentation, and the largest.

For scale: what float32 itself leaves uncertain, the same pull with every weight moved by one part in 10⁷.
"""

from __future__ import annotations

import argparse
import statistics

PIECES = ((0, 1), (0, 3), (5, 1), (8, 3))
EPOCHS, DRAWS = 12, 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("experiment", nargs="?")
    given = parser.parse_args()

    import torch

    from fedstill.data.augment import DSA, Augmentation
    from fedstill.distill.experts import train_experts
    from fedstill.distill.matchers import TrajectoryMatcher
    from fedstill.distill.virtual import begin
    from fedstill.experiment import starter
    from fedstill.runtime import prepared
    from fedstill.seeds import Seed
    from fedstill.sweep import read
    from fedstill.train import Recipe

    experiment = read([given.experiment])[0].experiment if given.experiment else starter("oneshot")
    seed = Seed.root(0)
    augmentation = Augmentation.parse(DSA, key="augmentation")

    def flat(tensors):
        return torch.cat([tensor.flatten() for tensor in tensors.values() if tensor.is_floating_point()])

    def ways(experts):
        start = experts.snapshot(0, 0)

        def differences(epoch):
            found = experts.snapshot(0, epoch)
            return {name: start[name] + (tensor - start[name]).half().float() for name, tensor in found.items()}

        def shaken(epoch):
            generator = seed.at("shaken", epoch).torch()
            return {
                name: tensor * (1 + 1e-7 * torch.randn(tensor.shape, generator=generator))
                for name, tensor in experts.snapshot(0, epoch).items()
            }

        return {
            "float16": lambda epoch: {k: v.half().float() for k, v in experts.snapshot(0, epoch).items()},
            "differences": differences,
            "1e-7": shaken,
        }

    with prepared(1):
        parts = experiment.build()
        real = next(iter(parts.sites.values())).train
        architecture = parts.world.architecture
        recipe = Recipe(epochs=EPOCHS, lr=0.02, batch=64, augmentation=augmentation)
        experts = train_experts(architecture, real, recipe, count=1, precision="float32", seed=seed.at("expert"))
        first = begin(real, ipc=1, start="real", missing="none", seed=seed.at("start"))
        images, labels = first.inputs(), first.labels
        network = architecture.build(seed.at("student"))
        print(
            f"{len(real)} images, {architecture.name}, {flat(experts.snapshot(0, 0)).numel()} parameters, {EPOCHS} epochs"
        )
        print(f"{'piece':>8} {'kept as':>12} {'target':>9} {'gradient':>9} {'largest':>9}")
        for epoch, span in PIECES:

            def pulls(snapshot, epoch=epoch, span=span):
                matcher = TrajectoryMatcher(
                    network, snapshot(epoch), snapshot(epoch + span), steps=5, augmentation=augmentation
                )
                return [matcher.pull(images, labels, 0.02, seed.at("draw", k)).d_images for k in range(DRAWS)]

            way = flat(experts.snapshot(0, epoch + span)) - flat(experts.snapshot(0, epoch))
            exact = pulls(lambda t: experts.snapshot(0, t))
            for name, snapshot in ways(experts).items():
                missed = flat(snapshot(epoch + span)) - flat(snapshot(epoch)) - way
                errors = [((a - b).norm() / b.norm()).item() for a, b in zip(pulls(snapshot), exact, strict=True)]
                print(
                    f"{epoch:>4} + {span} {name:>12} {(missed.norm() / way.norm()).item():>9.1e} "
                    f"{statistics.median(errors):>9.1e} {max(errors):>9.1e}"
                )


if __name__ == "__main__":
    main()
