"""How good is the shipped prior ``digits``? Prints the scores of its model card.

    python experiments/prior_digits.py MNIST_TRAIN.parquet MNIST_TEST.parquet

Both files have a column ``image`` (a struct whose ``bytes`` are an encoded image) and a column ``label``.

Three questions, each answered by a small convolutional network at 16 x 16 pixels, trained for as many steps, on
images shifted by up to one pixel:

* faithful: of 5,000 raw samples, which share is of the class asked for, according to a network trained on real MNIST?
* useful: what does a network trained on 5,000 raw samples and nothing else score on the real MNIST test images?
* transferable: what does that same network score on scikit-learn's digits (UCI), another set by other writers, 8 x 8
  pixels scaled up to 16 x 16?

And, for comparison, a network trained on 5,000 real MNIST images.

A last line asks whether samples are copies: the median distance to the nearest MNIST training image, for samples and,
as what to expect of new digits, for MNIST test images.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedstill.data.shard import Shard
from fedstill.data.sources import DataSettings, load
from fedstill.generators.files import load_prior
from fedstill.generators.train import sample
from fedstill.seeds import Seed

SIZE = 16


def read_mnist(train: Path, test: Path) -> tuple[Shard, Shard]:
    """Training and test images, resized whole to 16 x 16."""
    settings = DataSettings(source="parquet", path=str(train), test=str(test), size=SIZE, channels=1)
    loaded = load(settings, Seed.root(0))
    return loaded.train, loaded.test


def read_uci_digits() -> Shard:
    """All 1,797 images of scikit-learn's ``load_digits``, bright on dark as MNIST."""
    loaded = load(DataSettings(source="digits", size=SIZE, mean=(0.5,), std=(0.5,)), Seed.root(0))
    return Shard.join([loaded.train, loaded.test])


def classifier(seed: Seed) -> nn.Module:
    with seed.scope():
        return nn.Sequential(
            *(nn.Conv2d(1, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.AvgPool2d(2)),
            *(nn.Conv2d(32, 64, 3, padding=1), nn.BatchNorm2d(64), nn.ReLU(), nn.AvgPool2d(2)),
            *(nn.Conv2d(64, 128, 3, padding=1), nn.BatchNorm2d(128), nn.ReLU(), nn.AvgPool2d(2)),
            *(nn.Flatten(), nn.Linear(512, 10)),
        )


def fit(images: Tensor, labels: Tensor, seed: Seed, *, steps: int, batch: int = 100) -> nn.Module:
    """Adam with a cosine schedule, on batches shifted by up to one pixel."""
    model = classifier(seed.at("weights"))
    optimiser = torch.optim.Adam(model.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    for step in range(steps):
        random = seed.at("step", step).torch()
        rows = torch.randint(len(images), (batch,), generator=random)
        down, across = torch.randint(3, (2,), generator=random).tolist()
        x = F.pad(scaled(images[rows]), (1, 1, 1, 1), value=-1.0)[..., down : down + SIZE, across : across + SIZE]
        loss = F.cross_entropy(model(x), labels[rows])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    return model.eval()


def accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    with torch.inference_mode():
        guesses = torch.cat([model(scaled(part)).argmax(1) for part in images.split(1000)])
    return float((guesses == labels).float().mean())


def nearest(images: Tensor, among: Tensor) -> float:
    """Median Euclidean distance to the nearest of ``among``, pixels in 0 … 1."""
    pool = among.flatten(1).float() / 255
    parts = (part.flatten(1).float() / 255 for part in images.split(500))
    return torch.cat([torch.cdist(part, pool).amin(1) for part in parts]).median().item()


def scaled(images: Tensor) -> Tensor:
    """0 … 255 → −1 … 1."""
    return images.float() / 127.5 - 1


def main() -> None:
    arguments = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    arguments.add_argument("train", type=Path, help="MNIST's training images, Parquet")
    arguments.add_argument("test", type=Path, help="MNIST's test images, Parquet")
    arguments.add_argument("--prior", default="digits", help="a shipped prior's name or a prior's file")
    arguments.add_argument("--samples", type=int, default=5000)
    arguments.add_argument("--steps", type=int, default=1000, help="of 100 images, for each network; the judge: twice")
    arguments.add_argument("--seeds", type=int, default=3, help="repeats with other samples and other networks")
    options = arguments.parse_args()

    train, test = read_mnist(options.train, options.test)
    uci = read_uci_digits()
    generator = load_prior(options.prior)
    labels = torch.arange(options.samples) % 10
    print("seed  judge  faithful  useful  transferable  | trained on as many real images: MNIST test, UCI digits")
    for number in range(options.seeds):
        seed, began = Seed.root(number), time.perf_counter()
        judge = fit(train.images, train.labels, seed.at("judge"), steps=2 * options.steps)
        made = sample(generator, labels, seed.at("samples"))
        student = fit(made, labels, seed.at("student"), steps=options.steps)
        some = train.take(torch.randperm(len(train), generator=seed.at("rows").torch())[: options.samples])
        real = fit(some.images, some.labels, seed.at("real"), steps=options.steps)
        print(
            f"{number:4}  {accuracy(judge, test.images, test.labels):.3f}  {accuracy(judge, made, labels):8.3f}  "
            f"{accuracy(student, test.images, test.labels):6.3f}  {accuracy(student, uci.images, uci.labels):12.3f}  | "
            f"{accuracy(real, test.images, test.labels):.3f}, {accuracy(real, uci.images, uci.labels):.3f}"
            f"  ({time.perf_counter() - began:.0f} s)",
            flush=True,
        )
    samples, others = (nearest(images[:2000], train.images) for images in (made, test.images))
    print(f"median distance to the nearest training image: samples {samples:.3f}, test images {others:.3f}")


if __name__ == "__main__":
    main()
