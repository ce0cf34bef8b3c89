"""The clients' own scores: what the server makes of their answers, honest or not."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import pytest
import torch

from fedstill.algorithms.averaging import FedAvg
from fedstill.bundle import Bundle
from fedstill.contract import tiny_sites, tiny_world
from fedstill.engines.local import LocalEngine
from fedstill.evaluate.scoring import has_own_images, score_clients
from fedstill.rounds import Desk, Failure, Reply
from fedstill.scores import BINS, OWN_TEST, Scores, score
from fedstill.seeds import Seed

CLASSES = 3
STATE = Bundle().put(model={"w": torch.zeros(3)}, gradient={"g": torch.zeros(9)})


@dataclass(frozen=True)
class FakeEngine:
    answers: tuple[Reply | Failure, ...]

    def clients(self):
        return [answer.client for answer in self.answers]

    def work(self, number, outbox, task):
        assert task == "score"
        assert all(set(message.groups) == {"model"} for message in outbox.values())
        yield from self.answers


def counts(*right_and_wrong: tuple[int, int]) -> Scores:
    """Scores with so many right and wrong by class, a wrong one taken for the next class; all of confidence 0.5."""
    confusion = torch.zeros(CLASSES, CLASSES, dtype=torch.int64)
    for label, (right, wrong) in enumerate(right_and_wrong):
        confusion[label, label], confusion[label, (label + 1) % CLASSES] = right, wrong
    bins = torch.zeros(BINS, 3, dtype=torch.float64)
    bins[7] = torch.tensor([confusion.sum(), 0.5 * confusion.sum(), confusion.trace()])
    return Scores(confusion, bins)


def answer(client: str, correct: float = 0, examples: float = 0, test: Scores | None = None) -> Reply:
    bundle = Bundle().put({"validation_correct": correct, "validation_examples": examples})
    return Reply(client, bundle if test is None else bundle.put(**{OWN_TEST: test.group()}))


def scored(*answers: Reply | Failure, asked: list[str] | None = None):
    engine = FakeEngine(answers)
    return score_clients(engine, 1, STATE, engine.clients() if asked is None else asked, classes=CLASSES)


def test_means_are_unweighted_over_clients_that_have_images():
    found = scored(answer("b", 1, 2), answer("a", 30, 30), answer("c"), Failure("d", "was away"))
    assert (found.validation.correct, found.validation.examples, found.validation.mean) == (31, 32, 0.75)
    assert {client: each.validation for client, each in found.clients.items()} == {"a": 1.0, "b": 0.5, "c": None}
    assert (found.test.correct, found.test.examples, found.test.mean) == (0, 0, None)
    assert found.nbytes == 4 * 12 + 3 * 16
    assert [failure.client for failure in found.failures] == ["d"]


def test_a_clients_own_test_images_are_counted_by_class():
    found = scored(
        answer("a", test=counts((8, 2), (0, 0), (5, 5))), answer("b", test=counts((1, 0))), answer("c", 1, 1)
    )
    assert (found.test.correct, found.test.examples) == (14, 21)
    assert found.test.mean == pytest.approx((13 / 20 + 1) / 2)
    assert found.clients["a"].test.per_class == (0.8, None, 0.5)
    assert found.clients["c"].test is None
    assert found.own.confusion.tolist() == [[9, 2, 0], [0, 0, 0], [5, 0, 5]]
    assert found.own.per_class == (9 / 11, None, 0.5)
    assert found.own.calibration_error == pytest.approx(14 / 21 - 0.5)
    assert scored(answer("a", 1, 1)).own is None
    assert found.nbytes == 3 * (12 + 16) + 2 * 8 * (CLASSES**2 + 45)


def test_the_order_of_arrival_changes_nothing():
    answers = [
        answer("a", 1, 3, counts((1, 1))),
        answer("b", 2, 7, counts((2, 0))),
        Failure("c", "x"),
        Failure("d", "y"),
    ]
    straight, back = scored(*answers), scored(*reversed(answers))
    assert list(straight.clients) == list(back.clients)
    assert (straight.validation, straight.test) == (back.validation, back.test)
    assert straight.failures == back.failures


def test_who_does_not_answer_is_named():
    found = scored(answer("a", 1, 1), asked=["a", "b"])
    assert found.failures == (Failure("b", "gave no answer"),)


@pytest.mark.parametrize(
    ("correct", "examples"),
    [
        (-1, 5),
        (6, 5),
        (1.5, 5),
        (1, 2.5),
        (math.nan, 5),
        (1, math.nan),
        (1, math.inf),
        (math.inf, math.inf),
        (-2, -1),
        (1, 2.0**41),
    ],
)
def test_validation_counts_that_are_none_are_a_failure(correct, examples):
    found = scored(answer("a", correct, examples), answer("b", 1, 2))
    assert found.failures[0].client == "a"
    assert found.failures[0].reason.startswith("its validation counts are no counts")
    assert (found.validation.correct, found.validation.examples) == (1, 2)


def test_hostile_scores_are_a_failure_and_their_bytes_are_counted():
    shifted = counts((8, 2))
    wrong = Scores(shifted.confusion, shifted.bins + 1)
    found = scored(answer("a", 1, 1, wrong), answer("b", test=counts((3, 1))))
    assert [failure.client for failure in found.failures] == ["a"]
    assert "no counts" in found.failures[0].reason
    assert list(found.clients) == ["b"]
    assert (found.validation.examples, found.test.examples) == (0, 4)
    assert found.nbytes == 2 * (12 + 16 + 8 * (CLASSES**2 + 45))


def test_a_state_without_a_model_is_not_scored():
    found = score_clients(FakeEngine(()), 1, Bundle(), ["a"], classes=CLASSES)
    assert (found.validation.mean, found.test.mean, found.nbytes, found.failures) == (None, None, 0, ())


def test_fedavg_sends_what_a_client_finds_and_no_more():
    algorithm, desk = FedAvg(world=tiny_world()), Desk(Seed.root(0))
    whole = tiny_sites()["c00"]
    sites = {"c00": whole, "c01": replace(whole, test=whole.test.take([])), "c02": whole}
    state = algorithm.init(list(sites), desk)
    found = score_clients(LocalEngine(algorithm, sites, desk), 1, state, sites, classes=CLASSES)
    network = algorithm.models(state)["global"].module()
    expected = score(network, whole.test)
    assert torch.equal(found.clients["c00"].test.confusion, expected.confusion)
    assert torch.equal(found.clients["c02"].test.bins, expected.bins)
    assert found.clients["c01"].test is None
    assert found.clients["c01"].validation == score(network, whole.validation).accuracy
    assert has_own_images(whole)
    assert not has_own_images(replace(whole, validation=whole.test.take([]), test=whole.test.take([])))
