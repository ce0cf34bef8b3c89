"""Secure aggregation: what the server gets is the mean, and nothing else; what each side refuses."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import chain, combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

pytest.importorskip("flwr")

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

import tiny
from fedstill.algorithms import ALGORITHMS
from fedstill.algorithms.averaging import FedAvg
from fedstill.algorithms.contrast import MOON
from fedstill.algorithms.fedopt import FedAdam
from fedstill.bundle import Bundle, Group
from fedstill.contract import tiny_sites, tiny_world
from fedstill.deployment.federation import check_summable
from fedstill.deployment.summing import SUMS, Summing
from fedstill.engines.client import KEYS, MASKED, SHARES, SUM, UNMASK
from fedstill.engines.flower.secure import SecureEngine
from fedstill.engines.flower.sums import (
    BOX,
    MASKED_GROUP,
    RANGE,
    SHARE,
    STEPS,
    About,
    decoded,
    encoded,
    keystream,
    pair_mask,
    threshold,
)
from fedstill.engines.local import LocalEngine
from fedstill.engines.memory import Memory
from fedstill.errors import InputError
from fedstill.exchange import TOGETHER
from fedstill.experiment import Experiment
from fedstill.method import Method
from fedstill.report import write_report
from fedstill.rounds import Desk, Failure, Reply, rounds
from fedstill.run import drive
from fedstill.seeds import Seed
from fedstill.workplace import Here, Workplace
from rooms import RUN, Ready, Room, call

REACH = 64.0
STEP = REACH / STEPS
SENT: Group = {
    "weight": torch.linspace(-3, 3, 40).reshape(5, 8),
    "running_var": torch.tensor([0.0, 0.5, 2.0]),
    "half": torch.tensor([1.0, -2.0], dtype=torch.bfloat16),
    "batches": torch.tensor(7),
}
DESK = Desk(Seed.root(0))


def client_reply(number: int) -> Bundle:
    """A site's honest work: of unequal weight, and a variance that goes to zero."""
    moved = torch.randn(5, 8, generator=Seed.root(number).torch())
    model = {
        **SENT,
        "weight": SENT["weight"] + moved,
        "running_var": SENT["running_var"] * (number % 2),
        "batches": SENT["batches"] + number,
    }
    return Bundle().put({"examples": 10 + 3 * number, "loss": 1.0}, model=model)


def ready(count: int) -> Ready:
    return Ready({f"s{number}": client_reply(number) for number in range(count)})


def work(room: Room, number: int = 1, reach: float = REACH) -> list[Reply | Failure]:
    outbox = {site: Bundle().put({"round": number}, model=SENT) for site in room.clients()}
    return list(SecureEngine(room, RUN, reach).work(number, outbox, "local"))


def mean(replies: Mapping[str, Bundle], name: str) -> Tensor:
    total = sum(reply.numbers["examples"] for reply in replies.values())
    terms = [reply.groups["model"][name].double() * reply.numbers["examples"] for reply in replies.values()]
    return torch.stack(terms).sum(0) / total


def assert_sum_of(reply: Reply, replies: Mapping[str, Bundle]) -> None:
    """What came is the mean of these, to a step and the last digit of its type."""
    assert reply.client == TOGETHER
    assert reply.of == tuple(sorted(replies))
    assert reply.bundle.numbers == {"examples": sum(each.numbers["examples"] for each in replies.values())}
    model = reply.bundle.groups["model"]
    assert model.keys() == SENT.keys()
    assert model["batches"] == SENT["batches"]
    for name in ("weight", "running_var"):
        assert model[name].dtype == torch.float32
        assert (model[name].double() - mean(replies, name)).abs().max() <= STEP + 2.0**-22
    assert model["half"].dtype == torch.bfloat16
    assert model["running_var"].min() >= 0


def subsets(sites: list[str]) -> list[frozenset[str]]:
    return [frozenset(each) for each in chain.from_iterable(combinations(sites, n) for n in range(len(sites) + 1))]


# --- the sum -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [3, 4, 8])
def test_a_sum_is_the_weighted_mean(tmp_path: Path, count: int) -> None:
    room = Room(ready(count), tmp_path)
    (reply,) = work(room)
    assert isinstance(reply, Reply)
    assert_sum_of(reply, room.inner.replies)  # type: ignore[attr-defined]
    assert reply.received == sum(answer.nbytes for answer in room.seen.values())
    keys, boxes, flags = count * (count * 64 + 8), count * (count - 1) * BOX, count * count
    assert reply.down == keys + boxes + flags


@pytest.mark.parametrize("lost", ["silent", "deaf"])
@pytest.mark.parametrize("task", SUM)
def test_whoever_is_lost_whenever_the_rest_is_summed_or_nothing_is(tmp_path: Path, task: str, lost: str) -> None:
    sites = [f"s{number}" for number in range(4)]
    for number, gone in enumerate(subsets(sites), start=1):
        room = Room(ready(4), tmp_path, **{lost: {task: gone}})
        answers = work(room, number)
        left = [site for site in sites if site not in gone]
        named = {answer.client: answer for answer in answers}
        if len(left) < 3:
            assert named.keys() == set(sites)
            for site, answer in named.items():
                assert isinstance(answer, Failure)
                assert answer.able == (site not in gone)
                if answer.able:
                    assert answer.reason.startswith("a secure sum needs 3 sites here, and ")
            continue
        reply = named.pop(TOGETHER)
        assert isinstance(reply, Reply)
        summed = sites if task == UNMASK else left  # what came before is in the sum
        assert_sum_of(reply, {site: client_reply(int(site[1])) for site in summed})
        assert named.keys() == set(sites) - set(summed)
        if lost == "deaf" and named:
            assert {answer.reason for answer in named.values() if isinstance(answer, Failure)} == {
                f"was lost after {task}"
            }


def test_sites_are_lost_at_every_exchange_of_one_round(tmp_path: Path) -> None:
    silent = {KEYS: frozenset({"s0"}), SHARES: frozenset({"s1"}), MASKED: frozenset({"s2"}), UNMASK: frozenset({"s3"})}
    (reply, *failures) = work(Room(ready(9), tmp_path, silent=silent))
    assert isinstance(reply, Reply)
    assert_sum_of(reply, {site: client_reply(int(site[1])) for site in ("s3", "s4", "s5", "s6", "s7", "s8")})
    assert [failure.client for failure in failures] == ["s0", "s1", "s2"]
    assert failures[2].received > failures[1].received > failures[0].received == 0


def test_a_threshold_is_more_than_half_and_three() -> None:
    assert [threshold(count) for count in (3, 4, 5, 6, 7, 30)] == [3, 3, 3, 4, 4, 16]
    assert all(2 * threshold(count) > count for count in range(3, 100))


def test_numbers_are_within_a_step_and_between_what_was_sent_and_came_back() -> None:
    sent = {"a": torch.tensor([0.5, 0.1, 1e-9, 0.0])}
    back = [{"a": torch.zeros(4)}, {"a": torch.tensor([0.0, 0.0, 1e-10, 1e-3])}]
    total = sum(encoded(each, sent, 7, reach=REACH, sites=2) for each in back)
    found, examples = decoded(total, sent, reach=REACH, sites=2)  # type: ignore[arg-type]
    assert examples == 14
    assert found["a"].min() >= 0
    assert (found["a"] - (back[0]["a"] + back[1]["a"]) / 2).abs().max() <= STEP


def test_the_range_reaches_to_its_end_and_no_farther() -> None:
    sent = {"a": torch.zeros(1, dtype=torch.float64)}
    edge = {"a": torch.full((1,), 2.0, dtype=torch.float64)}
    most = 2**32 // 3
    total = encoded(edge, sent, most, reach=2.0, sites=3) * np.uint64(3)
    assert decoded(total, sent, reach=2.0, sites=3)[0]["a"] == 2.0
    for model, examples, said in (
        ({"a": edge["a"] + 1e-8}, 1, "moved by more than engine.secure_range = 2 in 'a'"),
        ({"a": edge["a"] * np.nan}, 1, "moved by more than"),
        ({"a": edge["a"].float()}, 1, "not of the names, shapes and types"),
        ({"b": edge["a"]}, 1, "not of the names, shapes and types"),
        (edge, most + 1, "its number of images cannot be part"),
        (edge, 0, "its number of images cannot be part"),
        (edge, 1.5, "its number of images cannot be part"),
    ):
        with pytest.raises(InputError, match=said):
            encoded(model, sent, examples, reach=2.0, sites=3)


# --- what the server sees ------------------------------------------------------------------------------------------------


def uniform(words: np.ndarray[Any, Any]) -> bool:
    """Whether its bytes are spread as chance spreads them: chi-square of 255 degrees, within six deviations."""
    counts = np.bincount(words.view(np.uint8), minlength=256)
    expected = counts.sum() / 256
    return bool(abs(((counts - expected) ** 2 / expected).sum() - 255) < 6 * (2 * 255) ** 0.5)


def test_what_a_site_sends_tells_nothing_and_is_another_in_another_round(tmp_path: Path) -> None:
    large = {"a": torch.zeros(20_000)}
    replies = {f"s{number}": Bundle().put({"examples": 5}, model=large) for number in range(4)}
    room = Room(Ready(replies), tmp_path)
    seen = []
    for number in (1, 2):
        outbox = {site: Bundle().put(model=large) for site in replies}
        (reply,) = SecureEngine(room, RUN, REACH).work(number, outbox, "local")
        assert isinstance(reply, Reply)
        assert torch.equal(reply.bundle.groups["model"]["a"], large["a"])
        seen.append({site: room.seen[MASKED, site].groups[MASKED_GROUP]["sum"].numpy() for site in replies})
    assert not uniform(encoded(large, large, 5, reach=REACH, sites=4))
    vectors = [vector for each in seen for vector in each.values()]
    assert all(uniform(vector) for vector in vectors)
    # nor any two of them together, nor all but one
    assert all(uniform(one - other) and uniform(one + other) for one, other in combinations(vectors, 2))
    assert uniform(seen[0]["s0"] + seen[0]["s1"] + seen[0]["s2"])
    # and all of them only without their own masks
    assert uniform(np.asarray(sum(seen[0].values())))


def test_no_message_but_the_masked_one_knows_of_the_model(tmp_path: Path) -> None:
    room = Room(ready(4), tmp_path)
    work(room)
    assert {task for task, _ in room.seen} == set(SUM)
    for (task, _), answer in room.seen.items():
        assert list(answer.groups) == ([MASKED_GROUP] if task == MASKED else ["keys"])
        assert not answer.numbers


def test_two_sites_agree_on_a_mask_that_is_of_one_sum_alone() -> None:
    one, other = X25519PrivateKey.generate(), X25519PrivateKey.generate()
    public = [each.public_key().public_bytes_raw() for each in (one, other)]
    about = About(RUN, 1)
    mine = pair_mask(about, one, public[1], ("a", "b"), 50)
    assert not (mine + pair_mask(about, other, public[0], ("b", "a"), 50)).any()
    for elsewhere in (About(RUN, 2), About("1" * 32, 1)):
        assert not np.array_equal(mine, pair_mask(elsewhere, one, public[1], ("a", "b"), 50))
    assert np.array_equal(keystream(bytes(32), 5), keystream(bytes(32), 9)[:5])


# --- what a site refuses -------------------------------------------------------------------------------------------------


def upto(room: Room, last: str, change: Callable[[Bundle], Bundle], folder: Path, times: int = 1) -> Bundle | str:
    """The site s0's answer to a message that was changed, in a sum that was honest before."""
    told: list[Bundle | str] = []

    class Tap:
        clients = room.clients

        def work(self, number: int, outbox: Mapping[str, Bundle], task: str) -> Any:
            if task != last:
                yield from room.work(number, outbox, task)
                return
            part, inbox = room.parts["s0"], change(outbox["s0"])
            told.extend(part.answer(call("s0", number, task), inbox, folder, room.local) for _ in range(times))

    list(SecureEngine(Tap(), RUN, REACH).work(1, {site: Bundle().put(model=SENT) for site in room.clients()}, "local"))
    return told[-1]


def keys(change: Callable[[dict[str, Tensor]], Mapping[str, Tensor]]) -> Callable[[Bundle], Bundle]:
    return lambda inbox: inbox.put(keys=change(dict(inbox.groups["keys"])))


def without(*names: str) -> Callable[[Bundle], Bundle]:
    return keys(lambda held: {name: each for name, each in held.items() if name not in names})


def flip(tensor: Tensor) -> Tensor:
    return torch.cat([tensor[:-1], tensor[-1:] ^ 1])


OUT_OF_TURN = "the site holds no part of this sum"


@pytest.mark.parametrize(
    ("task", "change", "said"),
    [
        (SHARES, without("s0"), "not those of a sum that the site is part of"),
        (SHARES, keys(lambda held: {**held, "s0": held["s1"]}), "not those of a sum that the site is part of"),
        (SHARES, keys(lambda held: {**held, "s1": held["s2"]}), "two sites have the same key"),
        (SHARES, keys(lambda held: {**held, "s1": torch.cat([held["s1"][:32]] * 2)}), "two sites have the same key"),
        (SHARES, without("s1", "s2", "s3"), "a secure sum is of 3 sites or more, and 2 gave keys"),
        (SHARES, keys(lambda held: {**held, "s1": held["s1"][:63]}), "not of its form"),
        (SHARES, keys(lambda held: {**held, "s1": held["s1"].float()}), "not of its form"),
        (SHARES, keys(lambda held: {**held, "s1": torch.cat([held["s1"][:32] * 0, held["s1"][32:]])}), "a key is none"),
        (SHARES, lambda inbox: inbox.put({RANGE: 0.0}), "how far a model may move"),
        (SHARES, lambda inbox: inbox.put({RANGE: np.inf}), "how far a model may move"),
        (SHARES, lambda inbox: inbox.put({RANGE: np.nan}), "how far a model may move"),
        (MASKED, without("s1", "s2", "s3"), "shares came of 1 other sites, which are too few"),
        (MASKED, keys(lambda held: {**held, "s9": held["s1"]}), "not part of the sum"),
        (MASKED, keys(lambda held: {**held, "s0": held["s1"]}), "not part of the sum"),
        (MASKED, keys(lambda held: {**held, "s1": flip(held["s1"])}), "what 's1' sealed for the site cannot be opened"),
        (MASKED, keys(lambda held: {**held, "s1": held["s2"]}), "what 's1' sealed for the site cannot be opened"),
        (UNMASK, without("s1"), "not the one that the site took part in"),
        (UNMASK, keys(lambda held: {**held, "s9": held["s1"]}), "not the one that the site took part in"),
        (UNMASK, keys(lambda held: {**held, "s0": held["s0"] * 0}), "not the one that the site took part in"),
        (UNMASK, keys(lambda held: {**held, "s1": held["s1"] + 1}), "not the one that the site took part in"),
        (UNMASK, keys(lambda held: {**held, **{name: held[name] * 0 for name in ("s1", "s2", "s3")}}), "is of 2 sites"),
    ],
)
def test_what_a_site_refuses(tmp_path: Path, task: str, change: Callable[[Bundle], Bundle], said: str) -> None:
    room = Room(ready(5), tmp_path)
    told = upto(room, task, change, tmp_path)
    assert isinstance(told, str)
    assert said in told
    # and what it knew is gone
    again = room.parts["s0"].answer(call("s0", 1, UNMASK), Bundle(), tmp_path, room.local)
    assert isinstance(again, str)
    assert OUT_OF_TURN in again


@pytest.mark.parametrize("task", [SHARES, MASKED, UNMASK])
def test_a_message_that_comes_twice_is_answered_once(tmp_path: Path, task: str) -> None:
    told = upto(Room(ready(5), tmp_path), task, lambda inbox: inbox, tmp_path, times=2)
    assert isinstance(told, str)
    assert OUT_OF_TURN in told


def test_of_every_site_one_share_is_given_and_never_both(tmp_path: Path) -> None:
    room = Room(ready(5), tmp_path, deaf={MASKED: frozenset({"s4"})})
    work(room)
    for site in ("s0", "s1", "s2", "s3"):
        shares = room.seen[UNMASK, site].groups["keys"]
        assert {name: tensor.shape for name, tensor in shares.items()} == {f"s{k}": (SHARE,) for k in range(5)}


def test_a_site_that_was_restarted_holds_no_part(tmp_path: Path) -> None:
    room = Room(ready(4), tmp_path)

    def hand(task: str, site: str, answer: Bundle) -> Bundle:
        if task == SHARES:
            room.parts["s1"] = Summing("s1")
        return answer

    room.hand = hand
    (reply, failure) = work(room)
    assert isinstance(reply, Reply)
    assert reply.of == ("s0", "s2", "s3")
    assert isinstance(failure, Failure)
    assert failure.client == "s1"
    assert OUT_OF_TURN in failure.reason


def test_a_message_of_another_round_or_run_finds_nothing(tmp_path: Path) -> None:
    for change in ({"round": 2}, {"run": "1" * 32}):
        part = Summing("s0")
        assert isinstance(part.answer(call("s0", 1, KEYS), Bundle(), tmp_path, Room(ready(3), tmp_path).local), Bundle)
        other = replace(call("s0", 1, SHARES), **change)  # type: ignore[arg-type]
        told = part.answer(other, Bundle(), tmp_path, Room(ready(3), tmp_path).local)
        assert isinstance(told, str)
        assert OUT_OF_TURN in told


def test_a_round_done_again_is_not_unmasked_with_other_sites_in_it(tmp_path: Path) -> None:
    (first,) = work(Room(ready(5), tmp_path))
    assert isinstance(first, Reply)
    # the server was killed, and so were the sites: the same sum is given again, to the same bits
    (second,) = work(Room(ready(5), tmp_path))
    assert isinstance(second, Reply)
    assert second.bundle.to_bytes() == first.bundle.to_bytes()
    answers = work(Room(ready(5), tmp_path, silent={KEYS: frozenset({"s4"})}))
    assert all(isinstance(answer, Failure) for answer in answers)
    assert any("was unmasked before, of other sites" in answer.reason for answer in answers)  # type: ignore[union-attr]
    (tmp_path / "s0" / SUMS).write_text("{")
    with pytest.raises(Exception, match="nothing is unmasked until it is put back"):
        work(Room(ready(5), tmp_path))


def test_a_method_that_answers_with_more_than_a_model_is_not_summed(tmp_path: Path) -> None:
    replies = {site: reply.put(control=SENT) for site, reply in ready(3).replies.items()}
    answers = work(Room(Ready(replies), tmp_path))
    assert len(answers) == 3
    assert all("more than a model" in answer.reason for answer in answers)  # type: ignore[union-attr]


# --- what the server refuses ---------------------------------------------------------------------------------------------


def hostile(task: str, change: Callable[[Bundle], Bundle]) -> Callable[[str, str, Bundle], Bundle]:
    """The site s1 sends something else."""
    return lambda asked, site, answer: change(answer) if (asked, site) == (task, "s1") else answer


def vector(change: Callable[[Tensor], Tensor]) -> Callable[[Bundle], Bundle]:
    return lambda answer: answer.put(**{MASKED_GROUP: {"sum": change(answer.groups[MASKED_GROUP]["sum"])}})


@pytest.mark.parametrize(
    ("task", "change", "said"),
    [
        (KEYS, lambda answer: Bundle(), "not those of the sites of the sum"),
        (KEYS, keys(lambda held: {"s2": held["s1"]}), "not those of the sites of the sum"),
        (KEYS, keys(lambda held: {"s1": held["s1"][:5]}), "not of its form"),
        (KEYS, keys(lambda held: {"s1": held["s1"] * 0}), "a key is none"),
        (SHARES, without("s0"), "not those of the sites of the sum"),
        (SHARES, keys(lambda held: {**held, "s1": held["s0"]}), "not those of the sites of the sum"),
        (SHARES, keys(lambda held: {**held, "s0": held["s0"].int()}), "not of its form"),
        (MASKED, lambda answer: Bundle(), "not of the form that was asked for"),
        (MASKED, vector(lambda held: held[:-1]), "not of the form that was asked for"),
        (MASKED, vector(lambda held: held.double()), "not of the form that was asked for"),
    ],
)
def test_an_answer_that_cannot_be_used_costs_its_site_the_round(
    tmp_path: Path, task: str, change: Callable[[Bundle], Bundle], said: str
) -> None:
    (reply, failure) = work(Room(ready(5), tmp_path, hand=hostile(task, change)))
    assert isinstance(reply, Reply)
    assert_sum_of(reply, {site: client_reply(int(site[1])) for site in ("s0", "s2", "s3", "s4")})
    assert isinstance(failure, Failure)
    assert failure.client == "s1"
    assert not failure.able
    assert said in failure.reason


@pytest.mark.parametrize(
    "change",
    [
        without("s0"),
        keys(lambda held: {**held, "s0": held["s0"][:9]}),
        keys(lambda held: {**held, "s0": torch.cat([held["s0"][:4] + 1, held["s0"][4:]])}),
    ],
)
def test_shares_of_a_wrong_form_are_done_without(tmp_path: Path, change: Callable[[Bundle], Bundle]) -> None:
    (reply,) = work(Room(ready(5), tmp_path, hand=hostile(UNMASK, change)))
    assert isinstance(reply, Reply)
    assert len(reply.of) == 5


@pytest.mark.parametrize("lost", [frozenset(), frozenset({"s4"})])
@pytest.mark.parametrize(
    ("task", "change"),
    [
        (UNMASK, keys(lambda held: {name: flip(share) for name, share in held.items()})),
        (UNMASK, keys(lambda held: {name: torch.cat([share[:4], share[4:] ^ 1]) for name, share in held.items()})),
        (
            UNMASK,
            keys(
                lambda held: {
                    name: torch.cat([share[:4], flip(share[4:20]), share[20:]]) for name, share in held.items()
                }
            ),
        ),
        (MASKED, vector(lambda held: held + torch.arange(len(held)) * 2**50)),
        (MASKED, vector(lambda held: torch.cat([held[:-1], held[-1:] - 2**40]))),
    ],
)
def test_a_sum_that_comes_to_nothing_is_withheld(
    tmp_path: Path, lost: frozenset[str], task: str, change: Callable[[Bundle], Bundle]
) -> None:
    room = Room(ready(5), tmp_path, hand=hostile(task, change), silent={MASKED: lost})
    answers = work(room)
    assert len(answers) == 5
    for answer in answers:
        assert isinstance(answer, Failure)
        assert answer.able == (answer.client not in lost)
        assert ("a site's message was wrong" in answer.reason) == answer.able


def test_answers_that_nobody_asked_for_are_named(tmp_path: Path) -> None:
    class Twice(Room):
        def work(self, number: int, outbox: Mapping[str, Bundle], task: str) -> Any:
            for answer in super().work(number, outbox, task):
                yield answer
                if task == MASKED:
                    yield answer

    (reply, *failures) = work(Twice(ready(3), tmp_path))
    assert isinstance(reply, Reply)
    assert_sum_of(reply, ready(3).replies)
    assert {failure.reason for failure in failures} == {"answered more than once: its first answer counts"}  # type: ignore[union-attr]


# --- in rounds -----------------------------------------------------------------------------------------------------------

METHODS: list[tuple[Any, dict[str, Any]]] = [
    (FedAvg, {"epochs": 2, "lr": 0.05}),
    (FedAdam, {"epochs": 1, "lr": 0.05}),
    (MOON, {"epochs": 1, "lr": 0.05}),
]


@pytest.mark.parametrize(("method", "options"), METHODS)
def test_three_rounds_come_to_what_plain_ones_come_to(tmp_path: Path, method: Any, options: dict[str, Any]) -> None:
    algorithm, sites = method(world=tiny_world(), **options), tiny_sites(4)
    plain = list(rounds(algorithm, LocalEngine(algorithm, sites, DESK, Memory()), desk=DESK, until=3))
    room = Room(LocalEngine(algorithm, sites, DESK, Memory()), tmp_path)
    secure = list(rounds(algorithm, SecureEngine(room, RUN, REACH), desk=DESK, until=3, quorum=4))
    for one, other in zip(plain, secure, strict=True):
        assert other.aggregated
        assert not other.failures
        # a step and the last digit of a float32 in each round; training carries them on
        for name, tensor in one.state.groups["model"].items():
            assert (other.state.groups["model"][name].double() - tensor.double()).abs().max() <= one.number * 2e-7
        total = sum(len(site.train) for site in sites.values())
        assert other.figures["clients"] == {}
        assert other.figures["together"] == {"clients": ("c00", "c01", "c02", "c03"), "examples": total}
        assert other.bytes_up > one.bytes_up
        assert other.bytes_down > one.bytes_down


def test_those_in_a_sum_are_the_quorum(tmp_path: Path) -> None:
    algorithm, sites = FedAvg(world=tiny_world(), epochs=1), tiny_sites(4)
    for number, (quorum, gone) in enumerate([(3, {"c01"}), (4, {"c01"}), (1, {"c01", "c02"})]):
        (tmp_path / str(number)).mkdir()
        room = Room(
            LocalEngine(algorithm, sites, DESK, Memory()), tmp_path / str(number), silent={MASKED: frozenset(gone)}
        )
        (only,) = rounds(algorithm, SecureEngine(room, RUN, REACH), desk=DESK, until=1, quorum=quorum)
        assert only.aggregated == (number == 0)
        assert {failure.client for failure in only.failures if not failure.able} == gone
        if number == 1:
            assert only.withheld == "3 of the replies can be used, and the quorum is 4"
        if number == 2:
            assert {failure.client for failure in only.failures} == set(sites)
        assert only.bytes_up > 0


def test_a_sum_that_lies_too_far_is_a_failure_of_all_in_it(tmp_path: Path) -> None:
    algorithm = FedAvg(world=tiny_world(), epochs=1)
    room = Room(LocalEngine(algorithm, tiny_sites(3), DESK, Memory()), tmp_path)
    (only,) = rounds(algorithm, SecureEngine(room, RUN, REACH), desk=DESK, until=1, farthest=1e-9)
    assert [failure.client for failure in only.failures] == ["c00", "c01", "c02"]
    assert not only.aggregated


# --- a run ---------------------------------------------------------------------------------------------------------------


class Sites(Here):
    """In process, and every piece of local work a secure sum; the first of the sites is lost in round 2."""

    def __init__(self, folder: Path) -> None:
        object.__setattr__(self, "folder", folder)

    def open(self, *arguments: Any, **more: Any) -> Any:
        from contextlib import contextmanager

        @contextmanager
        def opened() -> Any:
            with Here.open(self, *arguments, **more) as there:
                room = Room(there.engine, self.folder)  # type: ignore[attr-defined]
                secure = SecureEngine(room, RUN, REACH)

                class Sometimes:
                    clients = secure.clients

                    def work(self, number: int, outbox: Mapping[str, Bundle], task: str) -> Any:
                        room.silent = {KEYS: frozenset({"c00"})} if number == 2 else {}
                        return secure.work(number, outbox, task)

                yield Workplace(Sometimes(), there.desk, there.spent, there.scored)

        return opened()


def test_a_run_goes_on_after_a_round_that_came_to_nothing_and_its_page_says_so(tmp_path: Path) -> None:
    (tmp_path / "sites").mkdir()
    done = drive(tiny.experiment(), out=tmp_path / "run", venue=Sites(tmp_path / "sites"))
    rows = tiny.rows(tmp_path / "run")
    assert [row["aggregated"] for row in rows] == [True, False, True]
    assert rows[0]["together"]["clients"] == ["c00", "c01", "c02"]
    assert rows[0]["together"]["examples"] > 0
    assert "loss" not in rows[0]["clients"][0]
    assert "examples" not in rows[0]["clients"][0]
    assert [failure["client"] for failure in rows[1]["failures"]] == ["c01", "c02", "c00"] or len(
        rows[1]["failures"]
    ) == 3
    page = done.report.read_text()
    assert "a secure sum needs 3 sites here, and 2 are left" in page
    write_report([tmp_path / "run"], tmp_path / "again.html")


# --- settings ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ALGORITHMS)
def test_a_method_goes_with_sums_or_says_why_not(name: str) -> None:
    method = Method.parse({"name": name})
    summed = {"fedavg", "centralised", "fedprox", "fedavgm", "fedadam", "moon", "vhl"}
    assert (ALGORITHMS[name].alone == "") == (name in summed)
    if name in summed:
        check_summable(method, 3)
    else:
        with pytest.raises(InputError, match=f"'{name}' does not go with secure aggregation, for its "):
            check_summable(method, 3)


def test_settings_that_do_not_go_with_sums_are_refused() -> None:
    with pytest.raises(InputError, match=r"algorithm.rule = 'median': it compares clients' models one by one"):
        check_summable(Method.parse({"name": "fedavg", "rule": "median"}), 5)
    with pytest.raises(InputError, match="2 sites are asked in a round, and a sum hides nothing of fewer than 3"):
        check_summable(Method.parse({"name": "fedavg"}), 2)
    with pytest.raises(InputError, match="fedstill does not know whether its server can do with a sum"):
        check_summable(Method.parse({"name": "test_attendant:Leaky"}), 5)
    for kind in ("local", "flower"):
        with pytest.raises(InputError, match=r"engine.secure = true: secure aggregation is for real sites"):
            Here().parts(tiny.experiment(engine={"kind": kind, "secure": True}))
    with pytest.raises(InputError, match=r"engine\.secure_range"):
        tiny.experiment(engine={"secure_range": 0.0})
    assert list(tiny.experiment(engine={"kind": "sites", "secure_range": 2.0}).engine.remarks()) == [
        "engine.secure_range = 2.0 does nothing with engine.secure = false"
    ]


def test_the_setting_is_no_part_of_what_an_experiment_is_known_by() -> None:
    table = tiny.table(engine={"secure": True})
    assert json.dumps(Experiment.from_table(table).settings()) == json.dumps(tiny.experiment().settings())
