"""VHL: Virtual Homogeneity Learning (Tang et al., "Virtual Homogeneity Learning: Defending against Data Heterogeneity in
Federated Learning", ICML 2022).

All clients hold the same virtual images x̃, of as many virtual classes as there are real ones and alike to none of them. They
are noise of an untrained generator (:mod:`fedstill.generators.virtual`), so every party makes them from one number that the
server draws. The network has a head of 2K classes: real class k is k, virtual class k is K + k. FedAvg, with

    L = CE(x, y) + a CE(x̃, K + ỹ) + b SupCon({ψ(x), y} ∪ {ψ(x̃) without gradient, ỹ}) + c SupCon({ψ(x̃), ỹ})

The second term makes features that tell virtual classes apart, the third pulls those of real class k to those of virtual class
k, which are the same everywhere: so features of one class agree between clients that never saw each other's images.

Symbols: a ``virtual_weight``, b ``matching_weight``, c ``contrast_weight``, τ of both SupCon ``temperature``; images a virtual
class ``virtual_ipc``, spreads of their latents ``class_spread`` and ``sample_spread``.

What is scored and saved is the network with the head of the real classes, the state's ``model``; the other rows travel with it
and lie in ``model:virtual``. A step takes its virtual images anew and without repetition, as they are. BatchNorm, where there
is any, sees them in a batch of their own, and its statistics count them. A real image whose class has no other image in the
step, real or virtual, is only a negative of the third term; so a client may lack classes, or hold one image.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated

import torch
from pydantic import Field
from torch.nn import functional as F

from fedstill.algorithms.averaging import BatchSize, Decay, Epochs, FedAvg, Momentum, Norms, Rate
from fedstill.algorithms.robust import Hostile, Rule
from fedstill.bundle import Bundle
from fedstill.data.shard import Shard, hard_labels
from fedstill.generators.virtual import virtual_images
from fedstill.losses import supervised_contrast
from fedstill.models.heads import LinearHead, linear_head
from fedstill.rounds import Desk, Outcome, Reply, Site, Trained, World
from fedstill.seeds import Seed
from fedstill.train import Batch, Extra, classification_loss

__all__ = ["VHL"]

ROWS = "model:virtual"
NUMBER = "virtual"
_EXACT = 10  # bits taken off a seed's 63, so that a float64 carries it


@dataclass(frozen=True, kw_only=True)
class VHL:
    """Virtual Homogeneity Learning. Defaults are the released code's for CIFAR-10, but for the generator, which is ours."""

    world: World
    virtual_weight: Annotated[float, Field(ge=0, description="a, of cross-entropy on virtual images [code]")] = 1.0
    matching_weight: Annotated[
        float, Field(ge=0, description="b, of contrast between real images and fixed virtual ones [code]")
    ] = 1.0
    contrast_weight: Annotated[float, Field(ge=0, description="c, of contrast among virtual images [code]")] = 0.1
    temperature: Annotated[float, Field(gt=0, description="of both contrasts [code]")] = 0.07
    virtual_ipc: Annotated[int, Field(ge=1, description="images a virtual class [code: 200 or 5000]")] = 200
    virtual_batch: Annotated[int, Field(ge=1, description="virtual images a local step [code]")] = 128
    class_spread: Annotated[float, Field(ge=0, description="deviation of the classes' mean latents [code]")] = 0.5
    sample_spread: Annotated[float, Field(ge=0, description="deviation of latents within a class [code]")] = 0.3
    epochs: Epochs = 1
    lr: Rate = 0.01
    batch: BatchSize = 128
    momentum: Momentum = 0.9
    decay: Decay = 1e-4
    norms: Norms = "average"
    rule: Rule = "mean"
    hostile: Hostile = None

    def init(self, clients: Sequence[str], desk: Desk) -> Bundle:
        """The network, the virtual classes' rows of its head, and the number that the virtual images come from.

        Raises:
            InputError: the network's ``classify`` is no linear layer, images have neither 1 nor 3 channels; or as
                :meth:`FedAvg.init`.
        """
        number = desk.seed.at(NUMBER).number >> _EXACT
        self._virtual(number)
        return self._apart(self._averaging.init(clients, desk)).put({NUMBER: number})

    @property
    def needs_replies(self) -> tuple[int, str]:
        """As :attr:`FedAvg.needs_replies`."""
        return FedAvg.ruled(self).needs_replies

    def task(self, state: Bundle) -> str | None:
        return "local"

    def broadcast(self, state: Bundle, client: str) -> Bundle:
        message = self._averaging.broadcast(self._whole(state), client)
        return message.put({NUMBER: state.numbers[NUMBER]})

    def local(self, inbox: Bundle, site: Site, memory: Bundle, desk: Desk) -> tuple[Bundle, Bundle]:
        virtual = self._virtual(int(inbox.numbers[NUMBER])).to(desk.device).whitened()
        term = self._term(virtual, desk.seed.at("virtual batches"))
        visit = self._averaging.train(inbox, self._widened(site.train), memory, desk, extra=term)
        return visit.reply, visit.memory

    def score(self, inbox: Bundle, site: Site, memory: Bundle, desk: Desk) -> Bundle:
        return FedAvg.of(self).score(inbox, site, memory, desk)

    def aggregate(self, state: Bundle, replies: Iterable[Reply], desk: Desk) -> Outcome:
        outcome = self._averaging.aggregate(self._whole(state), replies, desk)
        return replace(outcome, state=self._apart(outcome.state))

    def models(self, state: Bundle) -> Mapping[str, Trained]:
        return FedAvg.of(self).models(state)

    # --- two heads in one ----------------------------------------------------------------------------------------

    @property
    def _classes(self) -> int:
        """K, of real classes and of virtual ones."""
        return self.world.architecture.classes

    @property
    def _averaging(self) -> FedAvg:
        """FedAvg of the network with a head of 2K classes."""
        wide = replace(self.world.architecture, classes=2 * self._classes)
        return replace(FedAvg.ruled(self), world=replace(self.world, architecture=wide))

    @property
    def _head(self) -> LinearHead:
        return linear_head(self.world.architecture, wanted_for="a head for virtual classes")

    def _whole(self, state: Bundle) -> Bundle:
        """The state whose ``model`` has 2K classes."""
        return state.drop(ROWS).put(model=self._head.join(state.groups["model"], state.groups[ROWS]))

    def _apart(self, state: Bundle) -> Bundle:
        """What :meth:`_whole` put together."""
        model, rows = self._head.split(state.groups["model"], self._classes)
        return state.put(**{"model": model, ROWS: rows})

    def _widened(self, shard: Shard) -> Shard:
        """Soft labels over 2K classes; hard ones are numbers of classes as they are."""
        if shard.labels.dim() == 1:
            return shard
        return replace(shard, labels=F.pad(shard.labels, (0, self._classes)))

    # --- virtual images ------------------------------------------------------------------------------------------

    def _virtual(self, number: int) -> Shard:
        """All virtual images; class ỹ is labelled ỹ, from 0."""
        images = virtual_images(
            channels=self.world.architecture.channels,
            size=self.world.architecture.size,
            classes=self._classes,
            each=self.virtual_ipc,
            class_spread=self.class_spread,
            sample_spread=self.sample_spread,
            seed=Seed((NUMBER, str(number))),
        )
        labels = torch.arange(self._classes).repeat_interleave(self.virtual_ipc)
        return Shard(images, labels, self.world.classes, self.world.normalisation)

    def _term(self, virtual: Shard, seed: Seed) -> Extra:
        def term(batch: Batch) -> torch.Tensor:
            rows = torch.randperm(len(virtual), generator=seed.at(batch.step).torch())[: self.virtual_batch]
            classes = virtual.labels[rows]
            features = batch.network.features(virtual.inputs(rows))
            told_apart = classification_loss(batch.network.classify(features), self._classes + classes)
            labels = hard_labels(batch.labels)
            matched = supervised_contrast(
                torch.cat([batch.features, features.detach()]),
                torch.cat([labels, classes]),
                temperature=self.temperature,
            )
            contrast = supervised_contrast(features, classes, temperature=self.temperature)
            return self.virtual_weight * told_apart + self.matching_weight * matched + self.contrast_weight * contrast

        return term
