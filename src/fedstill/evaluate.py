"""Scores of a round: every model on clean test images, and the received model on the clients' own validation images."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from fedstill.bundle import Bundle
from fedstill.data.shard import Shard
from fedstill.rounds import Engine, Failure, Trained
from fedstill.train import accuracy

__all__ = ["Validation", "accuracies", "validate"]


@dataclass(frozen=True)
class Validation:
    """What the clients' scores come to.

    Attributes:
        correct, examples: summed over clients.
        clients: accuracy by client; None for one that has no validation images.
        nbytes: payload of the messages there and back.
        failures: clients that gave no score.
    """

    correct: int = 0
    examples: int = 0
    clients: Mapping[str, float | None] = field(default_factory=dict)
    nbytes: int = 0
    failures: tuple[Failure, ...] = ()

    @property
    def mean(self) -> float | None:
        """Unweighted over the clients that have validation images; None where none has."""
        shares = [share for share in self.clients.values() if share is not None]
        return sum(shares) / len(shares) if shares else None


def accuracies(models: Mapping[str, Trained], test: Shard, *, device: str) -> dict[str, float]:
    """Accuracy of every model on clean images: no augmentation, evaluation mode."""
    return {name: accuracy(trained.module(), test, device=device) for name, trained in models.items()}


def validate(engine: Engine, number: int, state: Bundle, clients: Iterable[str]) -> Validation:
    """Let clients score the ``model`` group of ``state`` on images of their own; only counts come back.

    A state without that group is not scored.
    """
    if "model" not in state.groups:
        return Validation()
    message = Bundle().put(model=state.groups["model"])
    outbox = dict.fromkeys(clients, message)
    correct = examples = received = 0
    shares: dict[str, float | None] = {}
    failures = []
    for answer in engine.work(number, outbox, "score"):
        if isinstance(answer, Failure):
            failures.append(answer)
            continue
        received += answer.bundle.nbytes
        hits, total = (int(answer.bundle.numbers.get(f"validation_{what}", 0)) for what in ("correct", "examples"))
        shares[answer.client] = hits / total if total else None
        correct, examples = correct + hits, examples + total
    return Validation(
        correct=correct,
        examples=examples,
        clients=dict(sorted(shares.items())),
        nbytes=received + len(outbox) * message.nbytes,
        failures=tuple(failures),
    )
