import math
from dataclasses import dataclass, field

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedstill.bundle import Bundle
from fedstill.errors import InputError
from fedstill.rounds import Desk, Failure, Outcome, Reply, rounds
from fedstill.seeds import Seed

DESK = Desk(Seed.root(0))


@dataclass(frozen=True)
class Sum:
    """Adds up what clients say; finished when the sum passes ``until``."""

    until: float = math.inf

    def init(self, clients, desk):
        return Bundle().put({"sum": 0.0})

    def task(self, state):
        return "local" if state.numbers["sum"] < self.until else None

    def broadcast(self, state, client):
        return Bundle().put({"asked": 1.0})

    def aggregate(self, state, replies, desk):
        names, total = [], 0.0
        for reply in replies:
            names.append(reply.client)
            total += reply.bundle.numbers["value"]
        return Outcome(state.put({"sum": state.numbers["sum"] + total}), {"order": names})


@dataclass
class Script:
    """An engine that answers as it is told."""

    answers: dict = field(default_factory=dict)
    names: tuple = ("a", "b", "c", "d")
    shuffle: list | None = None

    def clients(self):
        return self.names

    def work(self, number, outbox, task):
        for client in self.shuffle or list(outbox):
            if client in outbox:
                assert outbox[client].numbers == {"asked": 1.0}
                answer = self.answers.get(client, 1.0)
                if answer is None:
                    continue
                yield answer if isinstance(answer, Failure) else Reply(client, Bundle().put({"value": answer}))


def run(engine, **options):
    return list(rounds(Sum(), engine, desk=DESK, **{"until": 1, **options}))


@given(st.permutations(["a", "b", "c", "d"]))
def test_arrival_order_is_hidden(order):
    engine = Script({"a": 0.1, "b": 0.2, "c": 0.3, "d": 1e9}, shuffle=list(order))
    (first,) = run(engine)
    assert first.figures["order"] == ["a", "b", "c", "d"]
    assert first.state.numbers["sum"] == ((0.1 + 0.2) + 0.3) + 1e9


def test_failures_silence_and_numbers_that_are_not_finite_are_named():
    (only,) = run(Script({"a": Failure("a", "no disk"), "b": None, "c": math.nan}))
    assert [(failure.client, failure.reason) for failure in only.failures] == [
        ("a", "no disk"),
        ("b", "gave no answer"),
        ("c", "its reply holds numbers that are not finite"),
    ]
    assert only.state.numbers["sum"] == 1.0
    assert only.aggregated


def test_under_the_quorum_the_state_stays():
    (only,) = run(Script({"a": None, "b": None}), quorum=3)
    assert not only.aggregated
    assert only.state.numbers == {"sum": 0.0, "round": 1}


def test_what_falls_short_of_the_quorum_is_not_aggregated():
    class Refuses(Sum):
        def aggregate(self, state, replies, desk):
            raise AssertionError("it was asked to")

    engine = Script({"a": None, "b": None, "c": None})
    (only,) = rounds(Refuses(), engine, desk=DESK, until=1, quorum=2)
    assert not only.aggregated


def test_clients_that_aggregate_leaves_out_are_not_of_the_quorum():
    class Picky(Sum):
        def aggregate(self, state, replies, desk):
            outcome = super().aggregate(state, replies, desk)
            return Outcome(outcome.state, {}, [Failure("a", "sick"), Failure("b", "sick")])

    (only,) = rounds(Picky(), Script(), desk=DESK, until=1, quorum=3)
    assert not only.aggregated
    assert only.state.numbers["sum"] == 0.0
    (only,) = rounds(Picky(), Script(), desk=DESK, until=1, quorum=2)
    assert only.aggregated


def test_nobody_replies():
    (only,) = run(Script(dict.fromkeys("abcd")))
    assert not only.aggregated
    assert len(only.failures) == 4


def test_bytes_both_ways():
    (only,) = run(Script())
    assert (only.bytes_down, only.bytes_up) == (4 * 8, 4 * 8)


@pytest.mark.parametrize(("cohort", "size"), [(1.0, 4), (0.5, 2), (0.01, 1), (3, 3), (1, 1)])
def test_cohort_sizes(cohort, size):
    assert all(len(part.cohort) == size for part in run(Script(), cohort=cohort, until=5))


def test_cohorts_keep_order_change_by_round_and_follow_the_seed():
    first, second = (run(Script(), cohort=2, until=8) for _ in range(2))
    assert [part.cohort for part in first] == [part.cohort for part in second]
    assert len({part.cohort for part in first}) > 1
    assert all(list(part.cohort) == sorted(part.cohort) for part in first)


@pytest.mark.parametrize("cohort", [0.0, -0.5, 1.5, 0, 5, math.nan])
def test_a_cohort_that_cannot_be(cohort):
    with pytest.raises(InputError, match="cohort"):
        run(Script(), cohort=cohort)


@pytest.mark.parametrize(
    ("names", "text"),
    [(("a b",), "client name"), (("a", "a"), "same name"), (("x" * 65,), "client name"), (("..",), "client name")],
)
def test_client_names(names, text):
    with pytest.raises(InputError, match=text):
        run(Script(names=names))


def test_a_quorum_above_the_cohort():
    with pytest.raises(InputError, match="quorum"):
        run(Script(), quorum=5)


def test_a_method_that_is_finished_ends_the_run():
    assert [part.number for part in rounds(Sum(until=8), Script(), desk=DESK, until=10)] == [1, 2]


def test_resume_goes_on_where_it_stopped():
    straight = run(Script(), cohort=2, until=4)
    again = run(Script(), cohort=2, until=4, start=2, state=straight[1].state)
    assert [part.cohort for part in again] == [part.cohort for part in straight[2:]]
    assert again[-1].state == straight[-1].state


def test_a_state_that_was_yielded_is_not_touched_later():
    class Doubling(Sum):
        def init(self, clients, desk):
            return Bundle().put({"sum": 0.0}, model={"w": torch.ones(1)})

        def aggregate(self, state, replies, desk):
            return Outcome(state.put(model={"w": state.groups["model"]["w"].mul_(2)}))

    states = [part.state for part in rounds(Doubling(), Script(), desk=DESK, until=2)]
    assert states[0].groups["model"]["w"].data_ptr() != states[1].groups["model"]["w"].data_ptr()
