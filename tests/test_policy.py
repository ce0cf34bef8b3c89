"""What may be worked on and what may leave: every word, and what a stranger sends."""

from __future__ import annotations

from typing import get_args, get_type_hints

import pytest
import torch

from fedstill import contract
from fedstill.algorithms import ALGORITHMS
from fedstill.bundle import GROUPS, Bundle
from fedstill.deployment.messages import Facts, facts
from fedstill.deployment.policy import (
    NUMBERS,
    WORDS,
    Policy,
    against_reply,
    against_task,
    printable,
    word_of,
)
from fedstill.engines.local import LocalEngine
from fedstill.rounds import Desk, rounds
from fedstill.seeds import Seed
from fedstill.tables import resolve
from test_contract import OPTIONS

EXPERIMENT = "a" * 64
ALL = Policy(allow=tuple(WORDS))


def message(*groups: str, values: int = 4, numbers: dict[str, float] | None = None) -> Bundle:
    return Bundle({name: {"x": torch.zeros(values)} for name in groups}, numbers or {})


def reply(*groups: str, **numbers: float) -> Facts:
    return facts(message(*groups, numbers=numbers))


def task(policy: Policy, inbox: Bundle | None = None, name: str = "local", **more: object) -> str | None:
    return against_task(policy, facts(inbox or message("model")), name, **{"experiment": EXPERIMENT, **more})


# --- words -------------------------------------------------------------------------------------------------------------


def test_every_group_has_one_word_and_every_word_can_be_written():
    assert sorted(word.group for word in WORDS.values() if word.group) == sorted(GROUPS)
    (many, _) = get_args(get_type_hints(Policy)["allow"])
    assert get_args(many) == tuple(WORDS)


@pytest.mark.parametrize("group", GROUPS)
def test_a_group_is_known_by_its_kind(group):
    assert word_of(group) == word_of(f"{group}:c03") == word_of(f"{group}:resnet18 b")


@pytest.mark.parametrize(
    "group",
    ["", "images", "models", ":model", "model:", "model:a/b", "model/x", "model:a\n", "Model", "model:" + "a" * 65],
)
def test_what_is_no_group_has_no_word(group):
    assert word_of(group) is None


class Recorded:
    """The groups of every answer, by task."""

    def __init__(self, inner: LocalEngine) -> None:
        self.inner, self.groups, self.numbers = inner, set(), True

    def clients(self):
        return self.inner.clients()

    def work(self, number, outbox, task):
        for answer in self.inner.work(number, outbox, task):
            self.groups |= {name.partition(":")[0] for name in answer.bundle.groups}
            self.numbers = self.numbers and bool(answer.bundle.numbers)
            yield answer


@pytest.mark.parametrize("name", OPTIONS)
def test_a_method_sends_what_its_entry_says(name):
    """What an administrator is told before they allow it is what leaves."""
    entry = ALGORITHMS[name]
    options = {**OPTIONS[name], **entry.fixed}
    algorithm = resolve({name: entry.factory}, name, "name")(world=contract.tiny_world(), **options)
    engine = Recorded(LocalEngine(algorithm, contract.tiny_sites(clients=2), Desk(Seed.root(0))))
    list(rounds(algorithm, engine, desk=Desk(Seed.root(0)), until=3))
    assert set(entry.sends) <= engine.groups <= {*entry.sends, *entry.may_send}
    assert engine.numbers


# --- tasks -------------------------------------------------------------------------------------------------------------


def test_a_task_that_nothing_stands_against():
    assert task(Policy(), sends=("model weights", NUMBERS)) is None
    assert task(Policy(experiments=(EXPERIMENT,)), name="score") is None


def test_what_arrives_needs_no_permission_to_leave():
    assert task(Policy(allow=()), message("model", "synthetic:global", "control")) is None


def test_another_experiment_is_refused():
    told = task(Policy(experiments=("b" * 64, "c" * 64)))
    assert told == "the site's policy does not name this experiment"


@pytest.mark.parametrize("name", ["", "locale", "__class__", "local\n"])
def test_a_task_that_is_none_is_refused(name):
    assert str(task(Policy(), name=name)).startswith("the site knows no task")


def test_a_message_of_the_largest_size_and_one_byte_more():
    size = facts(message("model")).bytes
    assert task(Policy(largest=size)) is None
    assert task(Policy(largest=size - 1)) == "the message is larger than the site's policy takes"


def test_names_count_for_the_size():
    many = Bundle({"model": {"n" * 1000 + str(index): torch.zeros(0) for index in range(100)}})
    assert many.nbytes == 0
    assert task(Policy(largest=50_000), many) == "the message is larger than the site's policy takes"


def test_names_that_clash_in_a_file_hide_no_bytes():
    hidden = Bundle({"model:a": {"x/y": torch.zeros(10_000)}, "model:a/x": {"y": torch.zeros(1)}})
    assert facts(hidden).bytes > 40_000
    assert str(task(Policy(), hidden)).startswith("the message holds 'model:a/x'")


def test_what_could_not_leave_is_not_worked_on():
    told = task(Policy(), sends=("synthetic images", NUMBERS))
    assert told == "the site's policy lets no synthetic images leave"


# --- replies -----------------------------------------------------------------------------------------------------------


def test_a_reply_of_what_is_allowed_leaves():
    assert against_reply(Policy(), reply("model", examples=3)) is None
    assert against_reply(ALL, reply(*GROUPS, examples=3)) is None
    assert against_reply(Policy(allow=()), facts(Bundle())) is None


@pytest.mark.parametrize("word", [word for word in WORDS if word != NUMBERS])
def test_each_word_keeps_its_group_back(word):
    policy = Policy(allow=tuple(each for each in WORDS if each != word))
    group = WORDS[word].group
    for name in (group, f"{group}:c03"):
        assert against_reply(policy, reply(name, examples=3)) == f"the site's policy lets no {word} leave"
    # also where there is nothing in it
    assert against_reply(policy, facts(Bundle({group: {}}))) == f"the site's policy lets no {word} leave"


def test_numbers_are_a_word_too():
    policy = Policy(allow=("model weights",))
    assert against_reply(policy, reply("model")) is None
    assert against_reply(policy, reply("model", loss=0.3)) == "the site's policy lets no numbers leave"


def test_a_group_that_nobody_knows_never_leaves():
    assert against_reply(ALL, reply("rows")) == "the reply holds 'rows', which the site does not know"


def test_a_reply_that_is_too_large():
    assert against_reply(Policy(largest=100), reply("model")) == "the reply is larger than the site's policy lets out"


def test_a_refusal_tells_nothing_but_its_reason():
    policy = Policy(allow=("numbers",), largest=123_456, experiments=("b" * 64,))
    told = [
        task(policy),
        task(Policy(allow=(), largest=1)),
        against_reply(policy, reply("model")),
        against_reply(Policy(largest=1), reply("model")),
        task(policy, name="\x1b[2J" + "x" * 10_000),
    ]
    for sentence in told:
        assert sentence is not None
        assert len(sentence) < 100
        assert sentence.isprintable()
        assert not {"123456", "b" * 64, "numbers"} & set(sentence.replace("'", " ").split())


def test_a_stranger_s_text_is_cut_and_plain():
    assert printable("a\x1b[31mb\u202ec\n") == "a?[31mb?c?"
    assert len(printable("a" * 1000)) == 40
    assert printable("straße") == "straße"
