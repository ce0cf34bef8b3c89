"""A prior's training: same bits when resumed, and errors in sentences."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from fedstill.data.shard import Normalisation, Shard
from fedstill.errors import InputError, RunError
from fedstill.generators import train
from fedstill.generators.discriminator import Discriminator
from fedstill.generators.files import load_prior, read_card
from fedstill.generators.train import CHECKPOINT, GRID, PRIOR, PriorSettings, Progress, sample, train_prior
from fedstill.seeds import Seed

SEED = Seed.root(5)
TINY = PriorSettings(
    kimg=0.096, batch=8, width=4, critic_width=4, z_width=4, w_width=6, every=3, r1_every=2, shift=1, half=False
)


def stripes(count: int = 60, *, size: int = 16, channels: int = 1) -> Shard:
    """Class 0: bright at the top; class 1: at the bottom; class 2: at the left. With noise."""
    labels = torch.arange(count) % 3
    images = torch.randint(0, 40, (count, channels, size, size), generator=SEED.torch(), dtype=torch.uint8)
    images[labels == 0, :, : size // 2] += 200
    images[labels == 1, :, size // 2 :] += 200
    images[labels == 2, :, :, : size // 2] += 200
    return Shard(images, labels, ("top", "bottom", "left"), Normalisation((0.5,) * channels, (0.5,) * channels))


def run(
    out: Path, settings: PriorSettings = TINY, *, shard: Shard | None = None, resume: bool = False
) -> list[Progress]:
    return list(train_prior(shard or stripes(), settings=settings, seed=SEED, out=out, resume=resume))


def test_a_resumed_training_continues_to_the_same_bits(tmp_path: Path) -> None:
    straight = run(tmp_path / "straight")
    first = train_prior(stripes(), settings=TINY, seed=SEED, out=tmp_path / "broken")
    reports = [next(first), next(first)]
    first.close()
    reports += run(tmp_path / "broken", resume=True)

    assert [r.step for r in straight] == [3, 6, 9, 12]
    assert [replace(r, seconds=0, seconds_left=0) for r in reports] == [
        replace(r, seconds=0, seconds_left=0) for r in straight
    ]
    for name in (PRIOR, CHECKPOINT, GRID):
        assert (tmp_path / "straight" / name).read_bytes() == (tmp_path / "broken" / name).read_bytes()


def test_the_seed_decides(tmp_path: Path) -> None:
    run(tmp_path / "a")
    list(train_prior(stripes(), settings=TINY, seed=SEED.at("other"), out=tmp_path / "b"))
    assert (tmp_path / "a" / PRIOR).read_bytes() != (tmp_path / "b" / PRIOR).read_bytes()


def test_a_finished_training_can_be_resumed_to_nothing_more(tmp_path: Path) -> None:
    run(tmp_path)
    assert run(tmp_path, resume=True) == []


def test_reports_files_and_card(tmp_path: Path) -> None:
    reports = run(tmp_path, shard=stripes(channels=3, size=20))
    assert [r.steps for r in reports] == [12] * 4
    assert reports[-1].seconds_left == 0
    assert reports[0].kimg == pytest.approx(0.024)
    assert all(math.isfinite(r.generator_loss) and math.isfinite(r.critic_loss) for r in reports)
    assert all(r.penalty is not None and r.penalty >= 0 for r in reports)
    with Image.open(tmp_path / GRID) as grid:
        assert grid.width > 2 * 10 * 20
        assert grid.height > 2 * 3 * 20
    card = read_card(tmp_path / PRIOR)
    assert card["classes"] == ["top", "bottom", "left"]
    assert card["images"] == 60
    assert card["recipe"]["batch"] == 8
    assert load_prior(tmp_path / PRIOR).centres.abs().sum() > 0


def test_it_learns_classes(tmp_path: Path) -> None:
    settings = replace(
        TINY,
        kimg=2,
        batch=16,
        width=8,
        z_width=8,
        w_width=16,
        rate=0.005,
        critic_rate=0.005,
        average_kimg=0.2,
        every=500,
    )
    run(tmp_path, settings)
    images = sample(load_prior(tmp_path / PRIOR), torch.arange(3).repeat_interleave(50), SEED).float()
    top, bottom, left = images.view(3, 50, 16, 16).mean(1)
    assert top[:7].mean() > top[9:].mean() + 60
    assert bottom[9:].mean() > bottom[:7].mean() + 60
    assert left[:, :7].mean() > left[:, 9:].mean() + 60


def test_one_pass_of_the_critic_gives_the_gradient_of_the_non_saturating_loss(tmp_path: Path) -> None:
    """What the trainer hands to its optimisers against autograd of both losses, each by itself."""
    settings = replace(TINY, r1=0.0, shift=0, pack=2)
    shard = stripes()
    trainer = train._Trainer(train._options(shard, settings), settings, SEED, "cpu")
    seen: dict[str, list[torch.Tensor]] = {}
    trainer._update = lambda name, _parameters, gradients, *_: seen.update({name: list(gradients)})  # type: ignore[method-assign]
    pool = train._Pool.of(shard, "cpu")
    trainer.step(pool, 7)

    place = SEED.at("step", 7)
    images, labels = pool.draw(4, 2, place.at("rows"))
    made = trainer.generator.render(trainer.generator.draw(labels.repeat_interleave(2), place.at("z")), 0)
    softplus = torch.nn.functional.softplus
    losses = {
        "generator": (trainer.generator, softplus(-trainer.critic(made, labels)).mean()),
        "critic": (
            trainer.critic,
            softplus(trainer.critic(made.detach(), labels)).mean() + softplus(-trainer.critic(images, labels)).mean(),
        ),
    }
    for name, (network, loss) in losses.items():
        for found, wanted in zip(seen[name], torch.autograd.grad(loss, list(network.parameters())), strict=True):
            torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-5)


def test_packs_hold_one_class_and_classes_are_as_frequent_as_they_are() -> None:
    shard = stripes(60).take([*range(0, 60, 3), *range(1, 60, 6)])  # 20 of class 0, 10 of class 1, none of class 2
    pool = train._Pool.of(shard, "cpu")
    images, labels = pool.draw(3000, 3, SEED)
    top = (images[:, 0, :8].mean((1, 2)) > images[:, 0, 8:].mean((1, 2))).view(3000, 3)
    assert torch.equal(top, (labels == 0)[:, None].expand(-1, 3))
    assert abs((labels == 0).float().mean() - 2 / 3) < 0.03
    assert len(images.flatten(1).unique(dim=0)) == 30


def test_the_critic_judges_every_pack_by_itself() -> None:
    with SEED.scope():
        critic = Discriminator(1, 16, 3, width=4, pack=2)
        images = torch.randn(6, 1, 16, 16)
    labels = torch.tensor([0, 2, 1])
    together = critic(images, labels)
    torch.testing.assert_close(together[1:2], critic(images[2:4], labels[1:2]))
    assert not torch.allclose(together, critic(images, labels.flip(0)))


@pytest.mark.parametrize("most", [1, 3])
def test_shifts_move_whole_images_and_let_gradients_through(most: int) -> None:
    images = torch.zeros(200, 1, 16, 16)
    images[:, :, 8, 8] = 1
    images.requires_grad_()
    moved = train._shifted(images, most, SEED)
    assert torch.equal(moved.sum((1, 2, 3)), torch.ones(200))
    places = {divmod(int(i), 16) for i in moved.flatten(1).argmax(1)}
    assert places <= {(8 + y, 8 + x) for y in range(-most, most + 1) for x in range(-most, most + 1)}
    assert len(places) > most
    (gradient,) = torch.autograd.grad(moved.sum(), images)
    assert torch.equal(gradient[:, 0, 8, 8], torch.ones(200))


def test_a_training_that_diverges_says_what_to_change_and_keeps_the_last_state(tmp_path: Path) -> None:
    reports = train_prior(stripes(), settings=replace(TINY, rate=1e30, critic_rate=1e30), seed=SEED, out=tmp_path)
    with pytest.raises(RunError, match="lower rate"):
        list(reports)
    assert not (tmp_path / PRIOR).exists()


def test_a_folder_in_use_is_not_overwritten_and_an_empty_one_not_resumed(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no training to resume"):
        run(tmp_path, resume=True)
    run(tmp_path)
    before = (tmp_path / CHECKPOINT).read_bytes()
    with pytest.raises(InputError, match="already holds a training"):
        run(tmp_path)
    with pytest.raises(InputError, match="other images, settings or seed"):
        run(tmp_path, replace(TINY, rate=0.1), resume=True)
    with pytest.raises(InputError, match="other images, settings or seed"):
        run(tmp_path, shard=stripes(57), resume=True)
    assert (tmp_path / CHECKPOINT).read_bytes() == before


def test_images_that_do_not_suit_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    shard = stripes()
    soft = replace(shard, labels=torch.full((60, 3), 1 / 3))
    oblong = replace(shard, images=shard.images[:, :, :12])
    for bad, words in [
        (soft, "hard labels"),
        (oblong, r"square images .* data\.size"),
        (shard.take([]), "no images"),
        (stripes(size=18), r"data\.size"),
        (stripes(channels=2), r"data\.channels"),
    ]:
        with pytest.raises(InputError, match=words):
            train_prior(bad, settings=TINY, seed=SEED, out=tmp_path / "out")
    with pytest.raises(InputError, match="multiple of pack"):
        PriorSettings(batch=7, pack=2)
    assert not (tmp_path / "out").exists()
