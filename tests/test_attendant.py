"""Who answers at a site: what is worked on, what is not, what the server is told and what the ledger says."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import fedstill
import tiny
from fedstill.algorithms.averaging import FedAvg
from fedstill.bundle import Bundle
from fedstill.deployment.federation import Federation, agreed, code_named, form, identity, restored
from fedstill.deployment.ledger import Ledger, totals
from fedstill.deployment.policy import Policy
from fedstill.deployment.privacy import PrivacySettings
from fedstill.deployment.site import ServerSettings, SiteData, SiteSettings
from fedstill.errors import InputError
from fedstill.experiment import Experiment
from fedstill.rounds import Desk, Failure, Reply, Site, World

pytest.importorskip("flwr")

from flwr.app import ConfigRecord, RecordDict

from fedstill.deployment.attendant import MEMORIES, RUNS, SiteAttendant
from fedstill.engines.flower.calls import READY, Call, Readiness, answering, question, run_facts
from fedstill.engines.flower.post import CONTROL, WORK
from fedstill.engines.flower.records import from_records, to_records
from fedstill.engines.flower.secure import SecureEngine

CLASSES = ("a", "b")
RUN = "0" * 32
FORM = {"size": 4, "channels": 1, "classes": list(CLASSES), "mean": [0.5], "std": [0.5]}


def experiment(algorithm: Mapping[str, Any] = tiny.FEDAVG, **data: Any) -> Experiment:
    table = tiny.table(dict(algorithm), model={"depth": 1})
    return Experiment.from_table({**table, "data": {**FORM, **data}})


def call(asked: Experiment | None = None, **changes: Any) -> Call:
    asked = asked or experiment()
    made = Call(
        run=RUN,
        experiment=asked.name,
        settings=json.loads(json.dumps(agreed(asked))),
        version=fedstill.__version__,
        client="north",
        round=1,
        task="local",
        time=time.time(),
    )
    return replace(made, **changes)


def inbox(asked: Experiment | None = None) -> Bundle:
    """What the server sends for the first round."""
    asked = asked or experiment()
    channels, size, normalisation = form(asked)
    world = asked.world(CLASSES, normalisation, channels=channels, size=size)
    algorithm = asked.algorithm.build(world)
    state = asked.beginning(algorithm, world, ("north", "south"), 1.0)
    return algorithm.broadcast(state.put({"round": 1}), "north")


@dataclass(frozen=True, kw_only=True)
class Leaky:
    """FedAvg whose answer holds an image."""

    world: World

    def __getattr__(self, name: str) -> Any:
        return getattr(FedAvg(world=self.world), name)

    def local(self, inbox: Bundle, site: Site, memory: Bundle, desk: Desk) -> tuple[Bundle, Bundle]:
        reply, memory = FedAvg(world=self.world).local(inbox, site, memory, desk)
        return reply.put(synthetic={"images": site.train.images[:1]}), memory


class Place:
    """A site in a folder."""

    def __init__(self, folder: Path, **settings: Any) -> None:
        generator = np.random.default_rng(0)
        labels = np.arange(12) % 2
        np.savez(folder / "images.npz", images=generator.integers(0, 256, (12, 4, 4), dtype=np.uint8), labels=labels)
        data = SiteData(source="arrays", path=str(folder / "images.npz"), classes=CLASSES)
        described: dict[str, Any] = {"name": "north", "folder": str(folder / "kept"), "free": 1, "data": data}
        self.settings = SiteSettings(**{**described, **settings})
        self.notes: list[str] = []
        self.attendant = SiteAttendant(self.settings, self.notes.append)

    @property
    def ledger(self) -> list[tuple[str, str, str | None]]:
        return [(each.task, each.direction, each.refused) for each in Ledger.open(self.settings.ledger).entries]


def test_a_site_that_is_ready_says_so_and_writes_it_down(tmp_path: Path) -> None:
    place = Place(tmp_path)
    assert place.attendant.ready(call(round=0, task="ready")) == Readiness(None, scored=True)
    assert place.ledger == [("ready", "in", None), ("ready", "out", None)]


def test_work_is_done_written_down_and_remembered(tmp_path: Path) -> None:
    moon = experiment({"name": "moon", "epochs": 1})
    place = Place(tmp_path)
    first = place.attendant.work(call(moon), inbox(moon))
    assert isinstance(first, Bundle)
    assert set(first.groups) == {"model"}
    assert place.ledger == [("local", "in", None), ("local", "out", None)]
    kept = tmp_path / "kept" / RUNS / RUN
    assert (kept / "memory" / "north" / "round-0001.safetensors").exists()
    assert kept.stat().st_mode & 0o777 == 0o700
    # the round again, as after the server was killed: to the same bits
    again = Place(tmp_path).attendant.work(call(moon), inbox(moon))
    assert isinstance(again, Bundle)
    assert again.to_bytes() == first.to_bytes()


def test_a_memory_that_is_gone_is_no_empty_memory(tmp_path: Path) -> None:
    moon = experiment({"name": "moon", "epochs": 1})
    place = Place(tmp_path)
    for number in range(1, MEMORIES + 2):
        assert isinstance(place.attendant.work(call(moon, round=number), inbox(moon)), Bundle)
    assert isinstance(place.attendant.work(call(moon, round=MEMORIES), inbox(moon)), Bundle)
    told = place.attendant.work(call(moon, round=2), inbox(moon))
    assert told == "the site's work failed; its administrator can see why"
    assert "the server asks for a round below 2, and the site remembers rounds from 2 on alone" in place.notes


@pytest.mark.parametrize(
    ("changes", "settings", "said"),
    [
        ({"client": "south"}, {}, "the site's key is that of 'south' at the server, and the site has another name"),
        ({"version": "0.0.1"}, {}, "the server has fedstill 0.0.1 and this site"),
        ({"version": "\x1b[2J"}, {}, "the server states no version of fedstill that can be read"),
        ({"task": "train"}, {}, "the site knows no task 'train'"),
        ({}, {"policy": Policy(allow=("numbers",))}, "the site's policy lets no model weights leave"),
        ({}, {"policy": Policy(largest=100)}, "the message is larger than the site's policy takes"),
        ({}, {"policy": Policy(experiments=("0" * 64,))}, "the site's policy does not name this experiment"),
        ({"settings": {"algorithm.name": 3}}, {}, "the run's settings cannot be read"),
    ],
)
def test_what_is_not_worked_on(tmp_path: Path, changes: dict[str, Any], settings: dict[str, Any], said: str) -> None:
    place = Place(tmp_path, **settings)
    told = place.attendant.work(call(**changes), inbox())
    assert isinstance(told, str)
    assert said in told
    (line,) = place.ledger
    assert line[1] == "in"
    assert line[2] is not None
    assert line[2] in told
    assert not (tmp_path / "kept" / RUNS).exists()


def test_what_an_exception_says_stays_at_the_site(tmp_path: Path) -> None:
    place = Place(tmp_path)
    os.unlink(tmp_path / "images.npz")
    told = place.attendant.work(call(), inbox())
    assert told == "the site's work failed; its administrator can see why"
    assert str(tmp_path) in place.notes[0]
    assert place.attendant.ready(call()) == Readiness("the site is not ready; its administrator can see why")
    assert place.ledger[1] == ("local", "out", told)
    # a broken message, which the algorithm's code trips over
    place = Place(tmp_path)
    assert place.attendant.work(call(), Bundle({"model": {}})) == told
    assert any("Traceback" in note for note in place.notes)


def test_what_cannot_be_written_down_does_not_leave(tmp_path: Path) -> None:
    place = Place(tmp_path)
    (tmp_path / "kept").mkdir(mode=0o700)
    (tmp_path / "kept" / "ledger.jsonl").mkdir()
    told = place.attendant.work(call(), inbox())
    assert told == "the site cannot write the message down, so it is not worked on"
    assert place.attendant.ready(call()) == Readiness(told)


def test_an_answer_that_the_policy_keeps_back_is_not_sent(tmp_path: Path) -> None:
    # what a method of one's own sends is known from its answer alone
    own = experiment({"name": "test_attendant:Leaky"})
    policy = Policy(experiments=(identity(agreed(own)),))
    place = Place(tmp_path, policy=policy)
    assert place.attendant.work(call(own), inbox()) == "the site's policy lets no synthetic images leave"
    assert place.ledger == [("local", "in", None), ("local", "out", "the site's policy lets no synthetic images leave")]


def test_code_that_is_not_fedstills_is_refused_unless_the_experiment_is_named(tmp_path: Path) -> None:
    own = experiment({"name": "test_attendant:Leaky"})
    place = Place(tmp_path)
    assert place.attendant.work(call(own), inbox()) == "the run's settings cannot be read"
    assert identity(agreed(own)) in place.notes[0]
    assert code_named({"a": [{"b": "package.module:factory"}]}) == "package.module:factory"
    for hidden in ("this:a b", "os:system\n", ":x", "a b:c"):
        assert code_named({"a": [3, None, {"b": hidden}]}) == hidden
        assert code_named({hidden: 1}) == hidden
    assert code_named({"data.classes": ["a:b"], "algorithm.name": "fedavg"}) is None


@pytest.mark.parametrize("key", ["output.trackers", "engine.kind", "data.path", "data.source", "x"])
def test_settings_that_do_not_concern_a_site_are_refused(key: str) -> None:
    with pytest.raises(InputError, match=f"'{key}' is no setting that concerns a site"):
        restored({**call().settings, key: "y"}, {})


def test_nothing_that_a_message_trips_over_ends_the_site(tmp_path: Path) -> None:
    place = Place(tmp_path)
    answer = answering(place.attendant)
    odd = {**run_facts(RUN, "tiny", {**agreed(experiment()), "model.name": ["."], "seed": "x"}), "client": "north"}
    content = RecordDict({CONTROL: ConfigRecord({**odd, "round": 0, "task": "ready"})})
    assert Readiness.read(answer(READY, content)).reason is not None
    content = to_records(Bundle({"model": {"a": torch.zeros(2, dtype=torch.complex128)}}))
    content[CONTROL] = ConfigRecord({**odd, **run_facts(RUN, "t", agreed(experiment())), "round": 1, "task": "local"})
    assert "failure" in answer(WORK, content).config_records[CONTROL]
    assert place.ledger[-1][2] is not None


def test_noised_answers_have_an_end_over_all_runs(tmp_path: Path) -> None:
    place = Place(tmp_path, privacy=PrivacySettings(clip=1.0, answers=2))
    assert isinstance(place.attendant.work(call(), inbox()), Bundle)
    assert isinstance(place.attendant.work(call(run="1" * 32), inbox()), Bundle)
    told = "the site's work failed; its administrator can see why"
    assert Place(tmp_path, privacy=PrivacySettings(clip=1.0, answers=2)).attendant.work(call(), inbox()) == told
    (tmp_path / "kept" / "privacy.json").write_text("{")
    assert place.attendant.work(call(), inbox()) == told


def test_what_did_not_leave_is_not_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    moon = experiment({"name": "moon", "epochs": 1})
    place = Place(tmp_path)
    monkeypatch.setattr("fedstill.deployment.attendant.against_reply", lambda *_: "it may not leave")
    assert place.attendant.work(call(moon), inbox(moon)) == "it may not leave"
    assert not (tmp_path / "kept" / RUNS / RUN / "memory").exists()


def test_what_another_run_left_to_be_worked_on_is_removed(tmp_path: Path) -> None:
    place = Place(tmp_path)
    left = tmp_path / "kept" / RUNS / ("1" * 32) / "scratch" / "experts"
    left.mkdir(parents=True)
    own = tmp_path / "kept" / RUNS / RUN / "scratch"
    own.mkdir(parents=True)
    for folder in (tmp_path / "kept", own.parent):
        folder.chmod(0o700)
    assert isinstance(place.attendant.work(call(), inbox()), Bundle)
    assert not left.parent.exists()
    assert own.exists()


def test_a_clock_far_off_is_told(tmp_path: Path) -> None:
    place = Place(tmp_path)
    found = place.attendant.ready(call(time=time.time() - 3600)).reason
    assert found is not None
    assert "3600 s ahead of the server's" in found


def test_test_images_and_validation_images_are_scored_on(tmp_path: Path) -> None:
    data = SiteData(source="arrays", path=str(tmp_path / "images.npz"), classes=CLASSES, validation_fraction=0.0)
    assert Place(tmp_path, data=data).attendant.ready(call()) == Readiness(None, scored=False)


def test_a_site_may_add_noise_to_what_leaves(tmp_path: Path) -> None:
    place = Place(tmp_path, privacy=PrivacySettings(clip=0.1, noise=1e-9))
    assert place.attendant.ready(call()) == Readiness(None, scored=False)
    sent = inbox()
    answer = place.attendant.work(call(), sent)
    assert isinstance(answer, Bundle)
    assert set(answer.numbers) == {"examples"}
    moved = [(answer.groups["model"][name] - each).square().sum() for name, each in sent.groups["model"].items()]
    assert float(sum(moved)) ** 0.5 == pytest.approx(0.1, rel=1e-3)
    told = place.attendant.work(call(task="score"), sent)
    assert told == "the site's privacy covers model weights alone, so it does not score"


def test_where_there_is_noise_a_training_that_diverged_leaves_like_any_other(tmp_path: Path) -> None:
    # weights that a server chose: at them the loss is no number
    sent = inbox()
    sent = sent.put(model={name: torch.full_like(each, 1e30) for name, each in sent.groups["model"].items()})
    assert Place(tmp_path).attendant.work(call(), sent) == "training diverged"
    place = Place(tmp_path, privacy=PrivacySettings(clip=1e30, noise=1.0, answers=1))
    answer = place.attendant.work(call(), sent)
    assert isinstance(answer, Bundle)
    assert answer.numbers == {"examples": 11}  # as of any training: of 12 images one is held back for validation
    assert all(not torch.equal(answer.groups["model"][name], each) for name, each in sent.groups["model"].items())
    assert any("training diverged" in note for note in place.notes)
    told = place.attendant.work(call(), sent)  # it was counted
    assert told == "the site's work failed; its administrator can see why"
    assert any("1 noised answers have left" in note for note in place.notes)


def test_what_noise_would_not_cover_is_refused_before_any_work(tmp_path: Path) -> None:
    place = Place(tmp_path, privacy=PrivacySettings(clip=1.0))
    distilling = experiment({"name": "feddm"})
    assert place.attendant.ready(call(distilling)).reason == "the site is not ready; its administrator can see why"
    assert place.attendant.work(call(distilling), inbox(distilling)) == "the run's settings cannot be read"
    assert any("its clients send synthetic images and labels and no network" in note for note in place.notes)


# --- messages -----------------------------------------------------------------------------------------------------------


def test_a_message_is_answered_as_records(tmp_path: Path) -> None:
    place = Place(tmp_path)
    answer = answering(place.attendant)
    facts = run_facts(RUN, "tiny", agreed(experiment()))
    assert Readiness.read(answer(READY, question(facts, "north"))) == Readiness(None, scored=True)
    content = to_records(inbox())
    content[CONTROL] = ConfigRecord({**facts, "round": 1, "task": "local", "client": "north"})
    reply = answer(WORK, content)
    assert "failure" not in reply.config_records[CONTROL]
    assert set(from_records(reply).groups) == {"model"}


@pytest.mark.parametrize(
    ("about", "said"),
    [
        (None, "it is larger than the site takes, or damaged"),
        ({}, "does not say what it is"),
        ({"run": "../../etc"}, "does not say of which run it is"),
        ({"round": -1}, "does not say of which run it is"),
        ({"settings": "{"}, "does not say what it is"),
        ({"settings": "[" * 100_000}, "does not say what it is"),
        ({"settings": "[]"}, "does not say of which run it is"),
    ],
)
def test_messages_that_cannot_be_read_are_refused(tmp_path: Path, about: dict[str, Any] | None, said: str) -> None:
    place = Place(tmp_path)
    facts = {**run_facts(RUN, "tiny", agreed(experiment())), "round": 1, "task": "local", "client": "north"}
    content = None if about is None else RecordDict({CONTROL: ConfigRecord({**facts, **about} if about else {})})
    told = answering(place.attendant)(WORK, content).config_records[CONTROL]["failure"]
    assert said in str(told)
    assert len(place.notes) == 1


def test_an_unknown_kind_of_message_is_refused(tmp_path: Path) -> None:
    content = question(run_facts(RUN, "tiny", agreed(experiment())), "north")
    told = answering(Place(tmp_path).attendant)("train.evil\x1b", content).config_records[CONTROL]["failure"]
    assert told == "the site knows no message 'train.evil?'"


# --- secure sums --------------------------------------------------------------------------------------------------------


class Attendants:
    """An engine of attendants: everything but the network."""

    def __init__(self, places: Mapping[str, Place], asked: Experiment) -> None:
        self.answers = {name: answering(place.attendant) for name, place in places.items()}
        self.facts = run_facts(RUN, "tiny", agreed(asked), secure=True)

    def clients(self) -> Sequence[str]:
        return list(self.answers)

    def work(self, number: int, outbox: Mapping[str, Bundle], task: str) -> Iterator[Reply | Failure]:
        for site in outbox:
            content = to_records(outbox[site])
            content[CONTROL] = ConfigRecord({**self.facts, "round": number, "task": task, "client": site})
            found = self.answers[site](WORK, content)
            told = found.config_records[CONTROL].get("failure")
            yield Reply(site, from_records(found)) if told is None else Failure(site, str(told))


def test_sites_that_send_their_models_in_a_sum_alone(tmp_path: Path) -> None:
    asked = experiment()
    names = ("north", "south", "west")
    plain, summing = (
        {name: Place(folder(tmp_path / kind / name), name=name, policy=policy) for name in names}
        for kind, policy in (("plain", Policy()), ("summing", Policy(secure=True)))
    )
    models = {name: place.attendant.work(call(asked, client=name), inbox(asked)) for name, place in plain.items()}
    engine = SecureEngine(Attendants(summing, asked), RUN, 1.0)
    (reply,) = engine.work(1, dict.fromkeys(names, inbox(asked)), "local")
    assert isinstance(reply, Reply)
    assert reply.of == names
    for name, tensor in reply.bundle.groups["model"].items():
        each = [found.groups["model"][name].double() for found in models.values() if isinstance(found, Bundle)]
        assert (tensor.double() - sum(each) / 3).abs().max() < 1e-6
    for place in summing.values():
        tasks = ("keys", "shares", "masked", "unmask")
        assert place.ledger == [(task, way, None) for task in tasks for way in ("in", "out")]
        sent = totals(Ledger.open(place.settings.ledger).entries, "out")
        assert set(sent) == {"keys", "model weights"}
        assert sent["model weights"].names == ("model:masked",)
        # and nothing else of the model's
        assert place.attendant.ready(call(asked, client=place.settings.name, secure=True)) == Readiness(
            None, scored=True
        )
        told = "the site sends its model in a sum alone: the experiment needs engine.secure = true"
        assert place.attendant.ready(call(asked, client=place.settings.name)).reason == told
        assert place.attendant.work(call(asked, client=place.settings.name), inbox(asked)) == told
        scores = place.attendant.work(call(asked, client=place.settings.name, task="score"), inbox(asked))
        assert isinstance(scores, Bundle)


def test_a_sites_own_noise_is_in_before_its_masks(tmp_path: Path) -> None:
    asked = experiment()
    names = ("north", "south", "west")
    privacy = PrivacySettings(clip=1e-7)  # of a change that short nothing is left in a mean
    places = {name: Place(folder(tmp_path / name), name=name, privacy=privacy) for name in names}
    engine = SecureEngine(Attendants(places, asked), RUN, 1.0)
    (reply,) = engine.work(1, dict.fromkeys(names, inbox(asked)), "local")
    assert isinstance(reply, Reply)
    for name, tensor in inbox(asked).groups["model"].items():
        assert (reply.bundle.groups["model"][name] - tensor).abs().max() < 1e-5


def test_a_policy_without_keys_takes_no_part_in_sums(tmp_path: Path) -> None:
    place = Place(tmp_path, policy=Policy(allow=("model weights", "numbers")))
    assert place.attendant.ready(call(secure=True)).reason == "the site's policy lets no keys leave"
    assert place.attendant.work(call(task="keys"), Bundle()) == "the site's policy lets no keys leave"
    assert place.attendant.ready(call()) == Readiness(None, scored=True)


def folder(path: Path) -> Path:
    path.mkdir(parents=True)
    return path


# --- settings -----------------------------------------------------------------------------------------------------------


def test_settings_come_back_as_the_experiment_that_they_tell_of() -> None:
    asked = experiment(tiny.FEDDGM | {"global_models": [{"name": "mlp"}]})
    told = json.loads(json.dumps(agreed(asked)))
    assert agreed(restored(told, {})) == agreed(asked)
    assert Federation.of(restored(told, {})).identity == identity(told)


@pytest.mark.parametrize(
    "method",
    [
        tiny.ONESHOT | {"privacy_epsilon": 8.0, "start": "noise"},
        {"name": "feddm", "privacy_noise": 1.0, "privacy_clip": 1.0},
    ],
)
def test_noise_that_the_server_could_take_off_is_refused(method: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="its noise comes from the run's seed, which a federation's server knows"):
        Federation.of(experiment(method))


def test_a_prior_is_found_by_its_content() -> None:
    asked = experiment(tiny.FEDDGM | {"generator": "digits", "space": 0})
    told = agreed(asked)
    content = str(told["algorithm.generator"])
    assert restored(told, {content: "digits"}).algorithm == asked.algorithm
    with pytest.raises(
        InputError, match=r"algorithm.generator: the experiment's prior \(SHA-256 \w{12}…\) is not here"
    ):
        restored(told, {})


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ({"size": None}, "data.size is missing"),
        ({"mean": None}, "data.mean is missing"),
        ({"zca": True, "mean": None, "std": None}, "whitening is learnt from all images together"),
        ({"mean": [0.1, 0.2], "std": [1.0, 1.0]}, "give 1 numbers each"),
    ],
)
def test_the_form_of_images_has_to_be_stated(data: dict[str, Any], said: str) -> None:
    given = {key: value for key, value in {**FORM, **data}.items() if value is not None}
    with pytest.raises(InputError, match=said):
        form(Experiment.from_table({"data": given}))


def test_a_site_names_its_server_beside_its_file(tmp_path: Path) -> None:
    (tmp_path / "site.toml").write_text(
        'name = "north"\npriors = ["p.safetensors"]\n[server]\naddress = "fed.example.org:9092"\nkey = "north.key"\n'
    )
    found = SiteSettings.read(tmp_path / "site.toml")
    assert found.server == ServerSettings(address="fed.example.org:9092", key=str(tmp_path / "north.key"))
    assert found.priors == (str(tmp_path / "p.safetensors"),)
    (tmp_path / "site.toml").write_text('name = "north"\n[server]\naddress = "fed.example.org"\n')
    with pytest.raises(InputError, match=r"server.address = 'fed.example.org'"):
        SiteSettings.read(tmp_path / "site.toml")


def test_an_update_in_few_bits_leaves_as_model_weights_and_not_with_the_sites_own_noise(tmp_path: Path) -> None:
    table = tiny.table(model={"depth": 1}, update={"clip": 1.0, "bits": 4})
    asked = Experiment.from_table({**table, "data": FORM})
    place = Place(tmp_path)
    assert place.attendant.ready(call(asked, round=0, task="ready")) == Readiness(None, scored=True)
    answer = place.attendant.work(call(asked), inbox(asked))
    assert isinstance(answer, Bundle)
    assert set(answer.groups) == {"model:codes", "model:scales"}
    private = Place(tmp_path, privacy=PrivacySettings(clip=1.0))
    told = private.attendant.ready(call(asked, round=0, task="ready"))
    assert told == Readiness("the site is not ready; its administrator can see why")
    assert any("the site's privacy covers whole model weights alone" in note for note in private.notes)
