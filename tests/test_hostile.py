"""Hostile and broken replies: every method of the table goes on without them, and says whom it left out and why."""

import math
from dataclasses import dataclass, replace

import pytest
import torch

from fedstill.algorithms import ALGORITHMS
from fedstill.algorithms.averaging import FedAvg
from fedstill.algorithms.feddgm import FedDGM
from fedstill.algorithms.fednova import FedNova
from fedstill.algorithms.fedopt import FedAvgM
from fedstill.algorithms.oneshot import OneShot
from fedstill.algorithms.scaffold import Scaffold
from fedstill.algorithms.sharing import FedDM
from fedstill.algorithms.union import DistilledSet, without_ruinous
from fedstill.bundle import Bundle
from fedstill.contract import CLAUSES, tiny_sites, tiny_world
from fedstill.data.shard import Shard
from fedstill.engines.local import LocalEngine
from fedstill.engines.memory import Memory
from fedstill.errors import Diverged
from fedstill.evaluate.scoring import score_clients
from fedstill.rounds import Desk, Failure, Outcome, Reply, rounds
from fedstill.seeds import Seed
from fedstill.spoilt import ABSURD, SPOILT
from fedstill.tables import resolve
from test_contract import OPTIONS

WORLD = tiny_world()
BATCH = {**WORLD.architecture.options, "norm": "batch"}
DESK = Desk(Seed.root(0))


def made(name, **options):
    entry = ALGORITHMS[name]
    return resolve({name: entry.factory}, name, "algorithm.name")(
        world=WORLD, **(OPTIONS[name] | dict(entry.fixed) | options)
    )


@dataclass
class Tampered:
    """An engine whose first client's replies are spoilt, in as many rounds as there are ``spoils``: each gives another Bundle."""

    inner: LocalEngine
    spoils: tuple

    def clients(self):
        return self.inner.clients()

    def work(self, number, outbox, task):
        for answer in self.inner.work(number, outbox, task):
            if answer.client == "c00" and number <= len(self.spoils):
                answer = Reply("c00", self.spoils[number - 1](answer.bundle))
            yield answer


def run(algorithm, *spoils, sites=4, more=1):
    """As many rounds as there are ``spoils``, and ``more``."""
    engine = Tampered(LocalEngine(algorithm, tiny_sites(sites), DESK, Memory()), spoils)
    return list(rounds(algorithm, engine, desk=DESK, until=len(spoils) + more))


# --- every method ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in ALGORITHMS if name != "prioronly"])
def test_no_method_of_the_table_takes_what_is_far_too_large(name):
    """The contract allows a method of a user's own to live with it. PriorOnly's clients send a number alone."""
    spoils = [SPOILT[what] for what in sorted(ABSURD) if what.startswith("numbers far")]
    rest = [] if name == "oneshot" else spoils[1:]  # it is done after the first round that counts
    algorithm = made(name)
    done = run(algorithm, *([lambda bundle, spoil=spoil: next(spoil(bundle)) for spoil in [spoils[0], *rest]]), sites=2)
    *spoilt, last = done
    for each in spoilt or done:
        assert [failure.client for failure in each.failures] == ["c00"]
        assert each.aggregated
        assert each.state.finite()
    assert not spoilt or not last.failures  # it goes on with all


def test_the_table_spoils_all_there_is():
    """Every entry has something to spoil in a reply with a group and numbers, and each differs from the reply."""
    reply = Bundle().put(
        {"examples": 3, "loss": 0.5}, model={"a": torch.rand(2, 3), "b": torch.rand(2), "n": torch.tensor(3)}
    )
    for what, spoil in SPOILT.items():
        found = list(spoil(reply))
        assert found, what
        for bundle in found:
            assert bundle.groups is not reply.groups or bundle.numbers is not reply.numbers
    assert SPOILT.keys() >= ABSURD
    assert not list(SPOILT["a tensor of NaN"](Bundle().put({"examples": 1})))


@dataclass(frozen=True, kw_only=True)
class Trusting(FedAvg):
    """Averages what it gets."""

    def aggregate(self, state, replies, desk):
        models = [reply.bundle.groups["model"] for reply in replies]
        mean = {name: torch.stack([model[name] for model in models]).mean(0) for name in models[0]}
        return Outcome(state.put(model=mean))


@dataclass(frozen=True, kw_only=True)
class Careless(FedAvg):
    """Leaves misfits out, and keeps a count of them in its state."""

    def aggregate(self, state, replies, desk):
        outcome = super().aggregate(state, replies, desk)
        return replace(outcome, state=outcome.state.put({"bad": float(len(outcome.failures))}))


@pytest.mark.parametrize(
    ("broken", "text"),
    [
        (Trusting, "a dimension more is not refused, and changes the state"),
        (Careless, "is refused, and yet changes the state"),
    ],
)
def test_a_method_that_trusts_its_clients_is_told(broken, text):
    clause = CLAUSES["a spoilt reply is refused or without effect, and ends no run"]
    assert text in clause(broken(world=WORLD, epochs=1))
    assert clause(FedAvg(world=WORLD, epochs=1)) is None


# --- the loop -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Script:
    """An engine that gives the same answers in every round."""

    answers: tuple
    names: tuple = ("a", "b")

    def clients(self):
        return self.names

    def work(self, number, outbox, task):
        yield from self.answers


@dataclass(frozen=True)
class Sum:
    """Adds up what clients say, as a tensor."""

    def init(self, clients, desk):
        return Bundle().put(statistics={"sum": torch.zeros(())})

    def task(self, state):
        return "local"

    def broadcast(self, state, client):
        return Bundle()

    def aggregate(self, state, replies, desk):
        found = state.groups["statistics"]["sum"] + sum(reply.bundle.numbers["value"] for reply in replies)
        return Outcome(state.put(statistics={"sum": found}))


def answer(client, value):
    return Reply(client, Bundle().put({"value": value}))


def total(*answers):
    (only,) = rounds(Sum(), Script(answers), desk=DESK, until=1)
    return only.state.groups["statistics"]["sum"].item(), [(each.client, each.reason) for each in only.failures], only


def test_who_was_not_asked_is_not_heard():
    found, failures, _ = total(answer("stranger", 100.0), answer("b", 2.0), answer("a", 1.0), answer("late", 100.0))
    assert found == 3.0
    assert failures == [("stranger", "answered, and was not asked"), ("late", "answered, and was not asked")]


@pytest.mark.parametrize("again", [answer("a", 100.0), Failure("a", "died after all")])
def test_the_first_answer_counts(again):
    """Also where the second comes before the first is used."""
    why = ("a", "answered more than once: its first answer counts")
    assert total(answer("a", 1.0), again, answer("b", 2.0))[:2] == (3.0, [why])
    assert total(answer("b", 2.0), answer("a", 1.0), again)[:2] == (3.0, [why])
    assert total(answer("b", 2.0), again, answer("a", 1.0))[1][-1] == why


def test_bytes_of_answers_that_do_not_count_are_counted():
    assert total(answer("a", 1.0), answer("a", 1.0), answer("x", 1.0), answer("b", 1.0))[2].bytes_up == 4 * 8


def test_a_state_that_would_not_be_finite_is_not_taken():
    found, failures, only = total(answer("a", 3e38), answer("b", 3e38))
    assert (found, failures, only.aggregated) == (0.0, [], False)
    assert only.withheld == "the new state would hold numbers that are not finite"


def test_under_the_quorum_it_is_said():
    _, failures, only = total(answer("a", math.nan))
    assert [client for client, _ in failures] == ["a", "b"]
    assert only.withheld == "0 of the replies can be used, and the quorum is 1"


def test_momentum_does_not_blow_up_over_rounds():
    """Each round's reply is just near enough; the server's momentum adds up what is near."""
    algorithm = FedAvgM(world=WORLD, epochs=1, server_momentum=0.99, server_lr=1e3)
    state = algorithm.init(["a", "b"], DESK)

    class Escalating(Script):
        def work(self, number, outbox, task):
            for client, inbox in outbox.items():
                model = {name: tensor * 9e5 for name, tensor in inbox.groups["model"].items()}
                yield Reply(client, Bundle().put({"examples": 1}, model=model))

    done = list(rounds(algorithm, Escalating(()), desk=DESK, until=8, state=state))
    assert all(each.state.finite() for each in done)
    assert not done[-1].aggregated


def test_scores_of_strangers_second_scores_and_text():
    state = Bundle().put(model={"w": torch.ones(1)})
    good = Bundle().put({"validation_correct": 1, "validation_examples": 2})
    text = Bundle(numbers={"validation_correct": "all", "validation_examples": 2})
    engine = Script((Reply("x", good), Reply("a", good), Reply("a", good), Reply("b", text)))
    found = score_clients(engine, 1, state, ["a", "b"], classes=3)
    assert list(found.clients) == ["a"]
    assert {failure.client: failure.reason for failure in found.failures} == {
        "a": "answered more than once: its first answer counts",
        "b": "its validation counts are no counts: all of 2",
        "x": "answered, and was not asked",
    }


# --- what only one sort of method has -------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [FedAvg, FedNova, Scaffold, FedDGM])
def test_a_variance_below_zero_is_refused(kind):
    options = {"epochs": 1, "batch": 8}
    if kind is FedDGM:
        options |= {"distill_steps": 1, "student_steps": 1, "ipc": 1, "global_epochs": 1, "loss_limit": 1e9}
    algorithm = kind(world=replace(WORLD, architecture=replace(WORLD.architecture, options=BATCH)), **options)
    name = "body.block2.norm.running_var"

    def spoil(bundle):
        model = bundle.groups["model"]
        return bundle.put(model={**model, name: model[name] - 1e3})

    (only,) = run(algorithm, spoil, more=0)
    reasons = {failure.client: failure.reason for failure in only.failures}
    assert reasons["c00"] == f"its reply's variance '{name}' is below 0"
    assert (only.state.groups["model"][name] >= 0).all()


def shard(value=0.5, kind=torch.float32):
    images = torch.full((3, 1, 8, 8), value, dtype=kind)
    return Shard(images, torch.arange(3), WORLD.classes, WORLD.normalisation)


def sets(*clients):
    return [DistilledSet(client, shard(), {}, None) for client in clients]


def teach(*ruinous):
    def taught(some):
        clients = [each.client for each in some]
        if bad := [client for client in clients if client in ruinous]:
            raise Diverged(f"it diverged with {bad}")
        return clients

    return taught


def test_who_ruins_the_training_on_the_union_is_found_and_left_out():
    assert without_ruinous(sets("a", "b", "c"), teach()) == (["a", "b", "c"], [])
    done, failures = without_ruinous(sets("a", "b", "c"), teach("b"))
    assert done == ["a", "c"]
    assert [(each.client, each.reason) for each in failures] == [
        ("b", "its images cannot be learned from: it diverged with ['b']")
    ]


def test_where_all_ruin_it_or_none_alone_the_settings_are_to_blame():
    with pytest.raises(Diverged, match=r"\['a', 'b'\]"):
        without_ruinous(sets("a", "b"), teach("a", "b"))

    def together(some):
        if len(some) > 1:
            raise Diverged("together")

    with pytest.raises(Diverged, match="together"):
        without_ruinous(sets("a", "b"), together)


WILD = 1e5


def stop_at(images):
    if images.abs().max() >= WILD / 2:
        raise Diverged("training diverged")


class BrittleDM(FedDM):
    def _train(self, state, union, desk):
        stop_at(union.images)
        return super()._train(state, union, desk)


class BrittleShot(OneShot):
    def _learned(self, state, desk):
        stop_at(self._union(state).images)
        return super()._learned(state, desk)


class BrittleDGM(FedDGM):
    def _distil(self, start, job):
        done = super()._distil(start, job)
        wild = replace(done.synthetic, images=torch.full_like(done.synthetic.images, WILD))
        return done._replace(synthetic=wild, health=None) if job.target["head.bias"].eq(WILD).all() else done

    def _train(self, state, union, desk):
        stop_at(union.images)
        return super()._train(state, union, desk)


def spoil_images(bundle):
    synthetic = bundle.groups["synthetic"]
    return bundle.put(synthetic={**synthetic, "images": torch.full_like(synthetic["images"], WILD)})


def spoil_head(bundle):
    model = bundle.groups["model"]
    return bundle.put(model={**model, "head.bias": torch.full_like(model["head.bias"], WILD)})


@pytest.mark.parametrize(
    ("kind", "spoil"), [(BrittleDM, spoil_images), (BrittleShot, spoil_images), (BrittleDGM, spoil_head)]
)
def test_images_that_end_the_servers_training_cost_their_client_the_round(kind, spoil):
    algorithm = kind(world=WORLD, **OPTIONS[kind.__mro__[1].__name__.lower()])
    (first,) = run(algorithm, spoil, sites=2, more=0)
    assert [(failure.client, failure.reason) for failure in first.failures] == [
        ("c00", "its images cannot be learned from: training diverged")
    ]
    assert first.aggregated
    assert list(first.state.members("synthetic")) == ["c01"]
    assert first.figures["union"] == len(first.state.groups["synthetic:c01"]["images"])
    (wanted,) = run(algorithm, lambda bundle: Bundle(), sites=2, more=0)
    assert first.state.to_bytes() == wanted.state.to_bytes()


def test_a_search_whose_clients_of_a_round_have_nothing_to_choose_by_goes_on():
    options = OPTIONS["oneshot"] | {"search": "clients", "trials": 2, "at_once": 2, "search_over": ("lr",)}
    algorithm = OneShot(world=WORLD, **options)
    sites = tiny_sites()
    none = {name: replace(site, validation=site.train.take([])) for name, site in sites.items()}
    engine = LocalEngine(algorithm, sites, DESK)
    (first,) = rounds(algorithm, engine, desk=DESK, until=1)
    poor = LocalEngine(algorithm, none, DESK)
    (second,) = rounds(algorithm, poor, desk=DESK, until=2, start=1, state=first.state)
    assert not second.aggregated
    assert "no client of the round has validation images to choose by" in second.withheld
    (third,) = rounds(algorithm, engine, desk=DESK, until=3, start=2, state=second.state)
    assert third.aggregated
    assert algorithm.task(third.state) is None


def test_one_withheld_round_of_feddm_keeps_the_images_of_the_round_before():
    algorithm = FedDM(world=WORLD, **OPTIONS["feddm"])
    engine = LocalEngine(algorithm, {"c00": tiny_sites()["c00"]}, DESK, Memory())
    tampered = Tampered(engine, (lambda bundle: bundle, lambda bundle: Bundle()))
    first, second = rounds(algorithm, tampered, desk=DESK, until=2)
    assert not second.aggregated
    assert torch.equal(*(each.state.groups["synthetic:c00"]["images"] for each in (first, second)))
