"""Scores of a round: every model on the common test images, and the received model on the clients' own images."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import reduce

from fedstill.bundle import Bundle
from fedstill.data.shard import Shard
from fedstill.errors import InputError
from fedstill.rounds import Engine, Failure, Reply, Site, Trained, first_answers
from fedstill.scores import MOST, OWN_TEST, Scores, score

__all__ = ["ClientScore", "ClientScores", "Tally", "has_own_images", "score_clients", "score_models", "scoring_message"]


@dataclass(frozen=True)
class Tally:
    """Clients' scores together.

    Attributes:
        correct, examples: summed over clients.
        mean: accuracy, unweighted over the clients that have such images; None where none has.
    """

    correct: int
    examples: int
    mean: float | None


@dataclass(frozen=True)
class ClientScore:
    """What one client found for the model it received.

    Attributes:
        correct, examples: on its validation images.
        test: on its own test images; None for a client that has none.
    """

    correct: int = 0
    examples: int = 0
    test: Scores | None = None

    @property
    def validation(self) -> float | None:
        """Accuracy on its validation images; None for a client that has none."""
        return self.correct / self.examples if self.examples else None


@dataclass(frozen=True)
class ClientScores:
    """What all clients found.

    Attributes:
        clients: by name, in order.
        nbytes: payload of the messages there and back.
        failures: clients that gave no usable score.
    """

    clients: Mapping[str, ClientScore] = field(default_factory=dict)
    nbytes: int = 0
    failures: tuple[Failure, ...] = ()

    @property
    def validation(self) -> Tally:
        """On validation images, kept out of training to choose by."""
        found = self.clients.values()
        return _tally([(each.correct, each.examples) for each in found])

    @property
    def test(self) -> Tally:
        """On the clients' own test images."""
        found = [each.test for each in self.clients.values() if each.test is not None]
        return _tally([(each.correct, each.examples) for each in found])

    @property
    def own(self) -> Scores | None:
        """On the clients' own test images, as if they were one client's; None where no client has any."""
        found = [each.test for each in self.clients.values() if each.test is not None]
        return reduce(operator.add, found) if found else None


def score_models(models: Mapping[str, Trained], test: Shard, *, device: str) -> dict[str, Scores]:
    """Every model on clean images: no augmentation, evaluation mode."""
    return {name: score(trained.module(), test, device=device) for name, trained in models.items()}


def scoring_message(state: Bundle) -> Bundle | None:
    """What clients are sent to score: the ``model`` group; None for a state without one, which is not scored."""
    return Bundle().put(model=state.groups["model"]) if "model" in state.groups else None


def has_own_images(site: Site) -> bool:
    """Whether there is anything to score at ``site``."""
    return len(site.validation) + len(site.test) > 0


def score_clients(engine: Engine, number: int, state: Bundle, clients: Iterable[str], *, classes: int) -> ClientScores:
    """Let clients score the ``model`` group of ``state`` on images of their own; only counts come back.

    An answer that cannot be such counts, and none at all, is a Failure.
    """
    message = scoring_message(state)
    if message is None:
        return ClientScores()
    outbox = dict.fromkeys(clients, message)
    received = 0
    found: dict[str, ClientScore] = {}
    failures: dict[str, Failure] = {}
    spare: list[Failure] = []
    for answer in first_answers(outbox.keys(), engine.work(number, outbox, "score"), spare):
        if isinstance(answer, Failure):
            failures[answer.client] = answer
            continue
        received += answer.bundle.nbytes
        try:
            found[answer.client] = _read(answer, classes)
        except InputError as error:
            failures[answer.client] = Failure(answer.client, str(error))
    for client in outbox:
        if client not in found and client not in failures:
            failures[client] = Failure(client, "gave no answer")
    return ClientScores(
        clients=dict(sorted(found.items())),
        nbytes=received + len(outbox) * message.nbytes,
        failures=(*(failures[client] for client in sorted(failures)), *spare),
    )


def _read(reply: Reply, classes: int) -> ClientScore:
    """A client's answer, which is a stranger's.

    Raises:
        InputError: it holds no counts.
    """
    numbers, own = reply.bundle.numbers, reply.bundle.groups.get(OWN_TEST)
    hits, images = (numbers.get(f"validation_{what}", 0) for what in ("correct", "examples"))
    counts = Bundle(numbers={"correct": hits, "examples": images}).finite() and 0 <= hits <= images <= MOST
    if not (counts and float(hits).is_integer() and float(images).is_integer()):
        raise InputError(f"its validation counts are no counts: {hits} of {images}")
    return ClientScore(int(hits), int(images), None if own is None else Scores.read(own, classes=classes))


def _tally(counts: Iterable[tuple[int, int]]) -> Tally:
    held = [(correct, examples) for correct, examples in counts if examples]
    shares = [correct / examples for correct, examples in held]
    return Tally(
        correct=sum(correct for correct, _ in held),
        examples=sum(examples for _, examples in held),
        mean=sum(shares) / len(shares) if shares else None,
    )
