"""FedAvg: Federated Averaging (McMahan et al., AISTATS 2017, Algorithm 1), on which its whole family is built.

    client:  w_k ← w_t, E epochs of SGD with batches of B on its own n_k images
    server:  w_{t+1} = Σ_k (n_k / n) w_k,    n = Σ n_k over the clients that replied

Symbols: w ``model``, E ``epochs``, B ``batch``, n_k ``examples``, η ``lr``.

BatchNorm. ``norms = "average"``: its scales, shifts and running statistics are averaged like the rest, its integer counters
never (the first client's stay). ``norms = "local"`` is FedBN (Li et al., ICLR 2021, Algorithm 1): all that BatchNorm layers
hold stays in the client's memory and never travels; a client's first round begins with fresh ones. The server then holds no
whole network, so it scores and saves none; clients score what they received with their own.

``rule`` puts another combination in place of the mean, one that withstands hostile clients: :mod:`fedstill.algorithms.robust`.

A method of the family composes FedAvg: it takes the fields of :class:`Budget`, and ``FedAvg.of(self)`` does the rest;
:meth:`FedAvg.train` takes its loss term. One whose server takes FedAvg's step, or goes on from it, takes those of
:class:`Ruled` too, and ``FedAvg.ruled(self)``. Others have no such option: FedNova and SCAFFOLD add up steps and control variates
that fit the mean of the same clients only, of FedProto's class means there may be one alone, and FedLGD matches images to the
mean's gradient.

``privacy_epsilon`` makes a client's images differentially private (:mod:`fedstill.algorithms.protection`): its local training is
DP-SGD (:mod:`fedstill.privacy`) with the noise for ``privacy_rounds`` rounds of E ⌈n_k / B⌉ steps, q = min(1, B / n_k). A method
whose loss looks at no image but through FedAvg's takes the fields of :class:`Private`, and ``FedAvg.private(self)``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Annotated, Any, Literal, NamedTuple, Protocol

from pydantic import Field
from torch import nn

from fedstill.algorithms.protection import (
    PrivacyClip,
    PrivacyDelta,
    PrivacyEpsilon,
    PrivacyRounds,
    Protected,
    check_descent,
    next_round,
    remarks,
    said,
    spent,
    told,
    unsaid,
)
from fedstill.algorithms.replies import Mean, Sieve
from fedstill.algorithms.robust import Hostile, Rule, check_rule, combine, least_models, setting_of
from fedstill.bundle import Bundle, Group
from fedstill.data.shard import Shard
from fedstill.errors import InputError, RunError
from fedstill.models.layers import BATCH_NORMS
from fedstill.privacy import Privacy, Sampling
from fedstill.rounds import Desk, Outcome, Reply, Site, Trained, World
from fedstill.scores import OWN_TEST, score
from fedstill.seeds import Seed
from fedstill.train import Extra, Fitted, Penalty, Recipe, fit

__all__ = [
    "BatchSize",
    "Budget",
    "Decay",
    "Epochs",
    "FedAvg",
    "Momentum",
    "Norms",
    "Private",
    "Rate",
    "Ruled",
    "Visit",
    "figures",
]

Epochs = Annotated[int, Field(ge=1, description="E, local epochs a round")]
Rate = Annotated[float, Field(gt=0, description="step size of local SGD")]
BatchSize = Annotated[int, Field(ge=1, description="B, images a local step")]
Momentum = Annotated[float, Field(ge=0, lt=1, description="of local SGD; starts anew each round")]
Decay = Annotated[float, Field(ge=0, description="weight decay of local SGD")]
Norms = Annotated[
    Literal["average", "local"],
    Field(description="BatchNorm: average, or local: it stays with the client (FedBN)"),
]

_OWN_NORMS = "model:norms"
_FRESH = Seed(("norms",))  # BatchNorm starts at constants, whatever the seed


class Budget(Protocol):
    """How clients train: fields that every method of the family has."""

    @property
    def world(self) -> World: ...
    @property
    def epochs(self) -> int: ...
    @property
    def lr(self) -> float: ...
    @property
    def batch(self) -> int: ...
    @property
    def momentum(self) -> float: ...
    @property
    def decay(self) -> float: ...
    @property
    def norms(self) -> Literal["average", "local"]: ...


class Ruled(Budget, Protocol):
    """A budget, and how the models of a round become one."""

    @property
    def rule(self) -> Rule: ...
    @property
    def hostile(self) -> int | None: ...


class Private(Ruled, Protected, Protocol):
    """The same, and how private a client's training is."""


class Visit(NamedTuple):
    """A client's training: what it sends, what it remembers, and how it went.

    ``reply`` has the group ``model`` and the numbers ``examples`` and ``loss`` (mean of the last epoch); of private training, in
    place of the loss, ``epsilon``, ``delta`` and ``noise``.
    """

    reply: Bundle
    memory: Bundle
    fitted: Fitted


@dataclass(frozen=True, kw_only=True)
class FedAvg:
    """Federated Averaging. Defaults are those with which FedDGM's paper ran it on CIFAR-10."""

    world: World
    epochs: Epochs = 20
    lr: Rate = 0.01
    batch: BatchSize = 256
    momentum: Momentum = 0.9
    decay: Decay = 1e-5
    norms: Norms = "average"
    rule: Rule = "mean"
    hostile: Hostile = None
    privacy_epsilon: PrivacyEpsilon = None
    privacy_delta: PrivacyDelta = 1e-5
    privacy_clip: PrivacyClip = 1.0
    privacy_rounds: PrivacyRounds = None

    @classmethod
    def of(cls, method: Budget) -> FedAvg:
        """FedAvg on the budget of another method, by the mean."""
        return cls(
            world=method.world,
            epochs=method.epochs,
            lr=method.lr,
            batch=method.batch,
            momentum=method.momentum,
            decay=method.decay,
            norms=method.norms,
        )

    @classmethod
    def ruled(cls, method: Ruled) -> FedAvg:
        """FedAvg on the budget of another method, by its rule."""
        return replace(cls.of(method), rule=method.rule, hostile=method.hostile)

    @classmethod
    def private(cls, method: Private) -> FedAvg:
        """FedAvg on the budgets of another method, by its rule."""
        return replace(
            cls.ruled(method),
            privacy_epsilon=method.privacy_epsilon,
            privacy_delta=method.privacy_delta,
            privacy_clip=method.privacy_clip,
            privacy_rounds=method.privacy_rounds,
        )

    @property
    def needs_replies(self) -> tuple[int, str]:
        """How many replies a round comes of at least, and by which setting."""
        return least_models(self.rule, self.hostile), setting_of(self.rule, self.hostile)

    def init(self, clients: Sequence[str], desk: Desk) -> Bundle:
        """The state's ``model``: what travels.

        Raises:
            InputError: norms are to be local, and the network has none; ``rule`` and ``hostile`` do not go together; or the
                network cannot learn privately.
            MissingExtra: it is to, and Opacus is not installed.
        """
        check_rule(self.rule, self.hostile)
        check_descent(self)
        network = self.world.architecture.build(desk.seed.at("model"))
        own = self._own(network)
        if self.norms == "local" and not own:
            raise InputError(
                f"algorithm.norms = 'local': the network '{self.world.architecture.name}' has no BatchNorm to keep; "
                "use algorithm.norms = 'average', or model.norm = 'batch' where the network has that option"
            )
        return Bundle().put(model={name: tensor for name, tensor in network.state_dict().items() if name not in own})

    def task(self, state: Bundle) -> str | None:
        return "local"

    def broadcast(self, state: Bundle, client: str) -> Bundle:
        return Bundle().put(model=state.groups["model"])

    def local(self, inbox: Bundle, site: Site, memory: Bundle, desk: Desk) -> tuple[Bundle, Bundle]:
        visit = self.train(inbox, site.train, memory, desk)
        return visit.reply, visit.memory

    def train(
        self,
        inbox: Bundle,
        shard: Shard,
        memory: Bundle,
        desk: Desk,
        *,
        extra: Extra | None = None,
        penalty: Penalty | None = None,
    ) -> Visit:
        """Train the ``model`` that arrived on ``shard``, with one more loss term where there is one.

        Raises:
            RunError: ``shard`` holds no image, training diverges, or the client's budget is spent.
        """
        if len(shard) == 0:
            raise RunError("the client has no training image")
        look = Sampling(len(shard), self.batch).look(self.epochs)
        guarantee = next_round(self, look, images=len(shard), memory=memory)
        recipe = Recipe(epochs=self.epochs, lr=self.lr, batch=self.batch, momentum=self.momentum, decay=self.decay)
        fitted = fit(
            self.received(inbox, memory).module(),
            shard,
            recipe,
            seed=desk.seed,
            device=desk.device,
            extra=extra,
            penalty=penalty,
            privacy=None if guarantee is None else Privacy(guarantee.noise, self.privacy_clip),
            progress=partial(desk.progress, "train"),
        )
        sent = inbox.groups["model"].keys()
        own = {name: tensor for name, tensor in fitted.tensors.items() if name not in sent}
        numbers = {"loss": fitted.losses[-1]} if guarantee is None else asdict(guarantee)
        memory = memory if guarantee is None else spent(memory, look.steps)
        return Visit(
            reply=Bundle().put(
                {"examples": fitted.examples, **numbers},
                model={name: tensor for name, tensor in fitted.tensors.items() if name in sent},
            ),
            memory=memory.put(**{_OWN_NORMS: own}) if own else memory,
            fitted=fitted,
        )

    def received(self, inbox: Bundle, memory: Bundle) -> Trained:
        """The network that arrived, whole: with the client's own norms where these are local."""
        tensors = inbox.groups["model"]
        if self.norms == "local":
            own = memory.groups.get(_OWN_NORMS) or self._fresh_norms()
            tensors = {**tensors, **own}
        return Trained(self.world.architecture, tensors)

    def score(self, inbox: Bundle, site: Site, memory: Bundle, desk: Desk) -> Bundle:
        network = self.received(inbox, memory).module()
        held = score(network, site.validation, device=desk.device)
        counts = Bundle().put({"validation_correct": held.correct, "validation_examples": held.examples})
        if len(site.test) == 0:
            return counts
        return counts.put(**{OWN_TEST: score(network, site.test, device=desk.device).group()})

    def aggregate(self, state: Bundle, replies: Iterable[Reply], desk: Desk) -> Outcome:
        """Figures: with Krum each client's score ``krum``, and who was ``chosen``."""
        mean, models, clients = Mean(), dict[str, Group](), dict[str, dict[str, Any]]()
        sieve = Sieve(replies, {"model": state.groups["model"]}, wrong=partial(unsaid, self))
        for reply in sieve:
            model = reply.bundle.groups["model"]
            if self.rule == "mean":
                mean.add(model, reply.bundle.numbers["examples"])
            else:
                models[reply.client] = model
            clients[reply.client] = figures(reply.bundle) | told(said(self, reply.bundle))
        least, setting = self.needs_replies
        if len(clients) < least:
            why = f"{setting} needs {least} replies that can be used, and there are {len(clients)}"
            return Outcome(state, {"clients": clients}, sieve.failures, withheld=why)
        if self.rule == "mean":
            return Outcome(state.put(model=mean.result()), {"clients": clients}, sieve.failures)
        combined = combine(self.rule, self.hostile, models)
        return Outcome(state.put(model=combined.model), combined.figures(clients), sieve.failures)

    def models(self, state: Bundle) -> Mapping[str, Trained]:
        if self.norms == "local":
            return {}
        return {"global": Trained(self.world.architecture, state.groups["model"])}

    def remarks(self, rounds: int) -> Sequence[str]:
        """What a user of ``rounds`` rounds may want to know before they begin."""
        return remarks(self, rounds)

    def trained_names(self, state: Bundle) -> list[str]:
        """Tensors of the state's ``model`` that training moves by gradients; the others are buffers."""
        network = self.world.architecture.build(_FRESH)
        return [name for name, _ in network.named_parameters() if name in state.groups["model"]]

    def _own(self, network: nn.Module) -> set[str]:
        """Tensors that stay with the client."""
        if self.norms == "average":
            return set()
        return {
            f"{place}.{name}"
            for place, module in network.named_modules()
            if isinstance(module, BATCH_NORMS)
            for name in module.state_dict()
        }

    def _fresh_norms(self) -> Group:
        network = self.world.architecture.build(_FRESH)
        own = self._own(network)
        return {name: tensor for name, tensor in network.state_dict().items() if name in own}


def figures(reply: Bundle) -> dict[str, Any]:
    """A client's line in the round's figures: ``examples``, and ``loss`` where it gave one."""
    line: dict[str, Any] = {"examples": int(reply.numbers["examples"])}
    return line | ({"loss": reply.numbers["loss"]} if "loss" in reply.numbers else {})
