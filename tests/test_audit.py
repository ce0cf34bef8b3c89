"""``fedstill audit``: shadow federations, what a run keeps of its messages, and what the command says."""

from __future__ import annotations

import copy
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

import tiny
from attacked import Told, finished_run, opened
from fedstill import folder
from fedstill.algorithms import ALGORITHMS
from fedstill.algorithms.averaging import FedAvg
from fedstill.attacked import exchange_of, pool_of
from fedstill.audit.federation import Federation, Wanted, run_federation
from fedstill.audit.membership import attack_view
from fedstill.audit.pool import Labelled, build_pool
from fedstill.audit.queries import queries
from fedstill.audit.shadows import Job, Plan, run_shadows
from fedstill.auditing import Asked, Membership, audit_run
from fedstill.bundle import Bundle
from fedstill.cli import invoke
from fedstill.cli.leaks import say_attack
from fedstill.contract import tiny_world
from fedstill.data.shard import Shard
from fedstill.engines.local import LocalEngine
from fedstill.engines.recording import Recording, message_path
from fedstill.errors import InputError
from fedstill.method import Method
from fedstill.rounds import Desk, Reply, Site
from fedstill.run import drive
from fedstill.seeds import Seed
from test_contract import OPTIONS

QUICK = Membership(shadows=3)

finish = partial(finished_run, rounds=2)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run of FedAvg that keeps its messages; three clients of 36 images or so."""
    return finish(tmp_path_factory.mktemp("finished") / "run", output={"keep_messages": True})


@pytest.fixture
def run(finished, tmp_path):
    """The same, for one test to change."""
    return Path(shutil.copytree(finished, tmp_path / "run"))


@pytest.fixture(scope="module")
def audited(finished, tmp_path_factory):
    """What an audit finds in it."""
    run = Path(shutil.copytree(finished, tmp_path_factory.mktemp("audited") / "run"))
    return audit_run(run, Asked(membership=QUICK)), run


# --- what the attacks are worth ----------------------------------------------------------------------------------------


def overfitted(epochs, shadows):
    """Two clients of 24 noise images each, with classes by chance: what a network knows of them it knows by heart."""
    world = tiny_world()
    draw = Seed.root(5).torch()
    images = torch.randint(0, 256, (96, 1, 8, 8), dtype=torch.uint8, generator=draw)
    labels = torch.arange(96) % 3
    shard = Shard(images, labels, world.classes, world.normalisation)
    parts = [shard.take(range(start, stop)) for start, stop in ((0, 24), (24, 48), (48, 96))]
    first, second, spare = (Labelled(part, part.labels.numpy()) for part in parts)
    pool = build_pool({"a": first, "b": second}, [spare], Seed.root(0))
    assert pool.played.all()
    algorithm = FedAvg(
        world=replace(world, architecture=replace(world.architecture, options={"depth": 2, "width": 16})),
        epochs=epochs,
        lr=0.1,
        batch=8,
        momentum=0.9,
    )
    empty = shard.take([])
    plan = Plan(
        federation=Federation(algorithm=algorithm, world=algorithm.world, rounds=2, cohort=1.0, quorum=1, farthest=1e6),
        pool=pool,
        sites={"a": Site(empty, empty, empty), "b": Site(empty, empty, empty)},
        wanted=Wanted(final=True, client=None, round=2, recipe=None),
        folder=Path("unused"),
        identity="",
        device="cpu",
    )
    jobs = [
        Job(number, Seed.root(number), algorithm.init(["a", "b"], Desk(Seed.root(number).at("init"))))
        for number in range(shadows)
    ]
    return plan, jobs


@pytest.mark.slow
def test_an_overfitted_model_tells_its_members(tmp_path):
    plan, jobs = overfitted(epochs=10, shadows=9)
    target, *shadows = run_shadows(replace(plan, folder=tmp_path), jobs, Desk(Seed.root(0)))
    phi, member, rows = target.confidence["final:global"], target.inside, plan.pool.played
    found = attack_view(phi, shadows, "final:global", member, rows, gradients="none", seed=Seed.root(0))["attacks"]
    assert found["lira_online"]["auc"]["low"] > 0.8
    assert found["lira_offline"]["auc"]["low"] > 0.7
    assert found["lira_online"]["targets"]["auc"]["mean"] > 0.8
    assert found["density"] == {"missing": "none"}
    # the same scores say nothing of a membership that is none
    shuffled = np.random.default_rng(0).permutation(member)
    found = attack_view(phi, shadows, "final:global", shuffled, rows, gradients="none", seed=Seed.root(0))["attacks"]
    for attack in ("lira_online", "lira_offline", "confidence"):
        assert found[attack]["auc"]["low"] < 0.5 < found[attack]["auc"]["high"]


# --- a run's audit -------------------------------------------------------------------------------------------------------


def test_what_is_found(audited):
    found, run = audited
    found = found["membership"]
    assert (found["method"], found["round"], found["shadows"]) == ("fedavg", 2, 3)
    assert found["pool"]["members"] == found["pool"]["others"] > 90
    assert found["missing"] == {"distilled": "'fedavg' distils no images"}
    assert found["surrogate"] == {"client": "c00", "round": 2, "source": "kept", "same_bits": None}
    final, surrogate = found["views"]
    assert (final["view"], final["client"]) == ("final:global", None)
    assert (surrogate["view"], surrogate["client"]) == ("surrogate:c00", "c00")
    assert final["accuracy"] == tiny.rows(run)[-1]["accuracy"]["global"]
    for view in (final, surrogate):
        assert set(view["attacks"]) == set(found["about"])
        for attack in view["attacks"].values():
            assert 0 <= attack["auc"]["low"] <= attack["auc"]["value"] <= attack["auc"]["high"] <= 1
            assert abs(attack["members"] - attack["others"]) <= 0.5 * attack["members"]
            assert attack["roc"]["tpr"][-1] == attack["roc"]["fpr"][-1] == 1
            assert "missing" in attack["tpr"]["0.001"]
    assert all(about["citation"] and about["assumptions"] for about in found["about"].values())
    written = json.loads((run / folder.AUDIT).read_text())
    assert written.pop("identities").keys() == {"membership"}
    assert written == {"version": 1, "membership": found}


def test_the_pool_is_the_runs_training_images_and_others(run):
    target = opened(run)
    pool = pool_of(target, Seed.root(0))
    for client, site in target.parts.sites.items():
        held = pool.held(pool.member, client)
        assert {each.tobytes() for each in held.images.numpy()} == {
            each.tobytes() for each in site.train.images.numpy()
        }
        assert pool.shard.normalisation == site.train.normalisation
    seen = {
        each.tobytes()
        for site in target.parts.sites.values()
        for shard in (site.train, site.validation)
        for each in shard.images.numpy()
    }
    assert not any(each.tobytes() in seen for each in pool.shard.images.numpy()[~pool.member])


def test_an_interrupted_audit_goes_on_to_the_same_numbers(run, audited):
    def interrupt(phase, done, total):
        if (phase, done) == ("shadow federations", 2):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        audit_run(run, Asked(membership=QUICK), hears=Told(interrupt))
    assert not (run / folder.AUDIT).exists()
    kept = sorted((run / folder.AUDITED).rglob("shadow-*.safetensors"))
    assert len(kept) == 2
    before = [path.stat().st_mtime_ns for path in kept]
    assert audit_run(run, Asked(membership=QUICK)) == audited[0]
    assert [path.stat().st_mtime_ns for path in kept] == before


def test_damaged_and_foreign_shadows_are_made_again(run, audited):
    source = audited[1]
    shutil.copytree(source / folder.AUDITED, run / folder.AUDITED)
    first, second, third = sorted((run / folder.AUDITED).rglob("shadow-*.safetensors"))
    whole = first.read_bytes()
    first.write_bytes(whole[:100])
    second.write_bytes(whole)  # of another number
    third.unlink()
    assert audit_run(run, Asked(membership=QUICK)) == audited[0]


def test_other_settings_have_shadows_of_their_own_and_more_shadows_take_those_there_are(run, audited):
    shutil.copytree(audited[1] / folder.AUDITED, run / folder.AUDITED)
    began = {path: path.stat().st_mtime_ns for path in (run / folder.AUDITED).rglob("shadow-*")}
    more = audit_run(run, Asked(membership=Membership(shadows=4)))["membership"]
    assert more["shadows"] == 4
    other = audit_run(run, Asked(membership=Membership(shadows=2, client="c02", round=1)))["membership"]
    assert other["surrogate"]["client"] == "c02"
    assert other["surrogate"]["round"] == 1
    assert {path: path.stat().st_mtime_ns for path in began} == began
    assert len(list((run / folder.AUDITED).glob("membership-*"))) == 2


@pytest.mark.slow
def test_processes_find_the_same(run, audited):
    found = audit_run(run, Asked(membership=QUICK), workers=2)
    assert found == audited[0]


@pytest.mark.parametrize("algorithm", [tiny.FEDDGM, tiny.ONESHOT], ids=["feddgm", "oneshot"])
def test_methods_that_distil(algorithm, tmp_path):
    run = finish(tmp_path / "run", algorithm, rounds=1)
    asked = Membership(shadows=2, epochs=2, lr=0.1)
    found = audit_run(run, Asked(membership=asked))["membership"]
    names = [view["view"] for view in found["views"]]
    if algorithm is tiny.FEDDGM:
        assert names == ["final:surrogate", "surrogate:c00", "distilled:convnet"]
        assert found["surrogate"] == {"client": "c00", "round": 1, "source": "re-run", "same_bits": True}
    else:
        assert names == ["final:global", "distilled:convnet"]
        assert found["missing"]["surrogate"].startswith("clients of this method send no network: ")
    assert found["recipe"]["epochs"] == 2
    assert all(each["shadows"] == 2 for each in found["views"])


@pytest.mark.slow
@pytest.mark.parametrize("name", ALGORITHMS)
def test_every_method_of_the_table(name, tmp_path):
    known = Method.keys(name)
    options = {key: value for key, value in OPTIONS[name].items() if key in known}
    virtual = {"virtual": {"ipc": 2, "steps": 2}} if "virtual" in OPTIONS[name] else {}
    run = finish(tmp_path / "run", {"name": name, **options}, rounds=1, **virtual)
    found = audit_run(run, Asked(membership=Membership(shadows=2, epochs=1, lr=0.05)))["membership"]
    there = {view["view"].partition(":")[0] for view in found["views"]}
    assert there | found["missing"].keys() == {"final", "surrogate", "distilled"}
    assert not there & found["missing"].keys()
    assert "final" in there
    assert ("distilled" in there) == ALGORITHMS[name].distils
    sends = "model" in ALGORITHMS[name].sends and name != "vhl"  # whose clients send a network of twice as many classes
    assert ("surrogate" in there) == sends
    if found["surrogate"] is not None:
        assert found["surrogate"]["same_bits"] is True
    assert all("auc" in view["attacks"]["density"] for view in found["views"])


def test_networks_that_stay_with_clients_are_not_attacked(tmp_path):
    run = finish(tmp_path / "run", {**tiny.FEDAVG, "norms": "local"}, rounds=1, model={"norm": "batch"})
    with pytest.raises(
        InputError, match=r"no network is the server's; clients of this run send no whole network: '.*' stays"
    ):
        audit_run(run, Asked(membership=QUICK))


def test_clients_of_a_domain_draw_from_their_domain(tmp_path):
    # dark images on the left, light ones on the right
    draw, arrays = np.random.default_rng(0), {}
    for split, count in (("train", 160), ("test", 60)):
        left = np.arange(count) % 2 == 0
        dark = draw.integers(0, 100, (count, 8, 8), dtype=np.uint8)
        arrays[f"x_{split}"] = np.where(left[:, None, None], dark, dark + 150).astype(np.uint8)
        arrays[f"y_{split}"] = np.arange(count) // 2 % 3
        arrays[f"site_{split}"] = np.where(left, "left", "right")
    np.savez(tmp_path / "arrays.npz", **arrays)
    data = {
        "source": "arrays",
        "path": str(tmp_path / "arrays.npz"),
        "group_column": "site",
        "limit": 60,
        "test_limit": None,
    }
    run = finish(tmp_path / "run", rounds=1, data=data, partition={"kind": "domain"})
    pool = pool_of(opened(run), Seed.root(0))
    light = (pool.shard.images.float().mean((1, 2, 3)) > 125).numpy()
    assert pool.clients == ("left", "right")
    assert (light == (pool.owner == 1)).all()
    assert pool.played.all()
    assert (pool.strata % 3 == pool.shard.labels.numpy()).all()


def test_several_queries_an_image(run, audited):
    found = audit_run(run, Asked(membership=Membership(shadows=3, queries=2)))["membership"]
    first = audited[0]["membership"]
    assert (found["queries"], first["queries"]) == (2, 1)
    for mine, before in zip(found["views"], first["views"], strict=True):
        assert mine["attacks"]["confidence"] == before["attacks"]["confidence"]
        assert mine["attacks"]["lira_online"] != before["attacks"]["lira_online"]
        assert mine["attacks"]["lira_online"]["members"] == before["attacks"]["lira_online"]["members"]
    with pytest.raises(InputError, match="--queries 11: an image has 1 to 10"):
        audit_run(run, Asked(membership=Membership(queries=11)))


def test_queries_are_the_image_and_its_copies(run):
    shard = opened(run).parts.sites["c00"].train.take([0, 1])
    asked = list(queries(shard, 10))
    assert asked[0].images.equal(shard.images)
    assert asked[5].images.equal(shard.images.flip(3))
    right = asked[1].images
    assert right[..., 1:].equal(shard.images[..., :-1])
    assert right[..., 0].equal(shard.images[..., 0])
    assert asked[3].images[..., 1:, :].equal(shard.images[..., :-1, :])
    assert len({each.images.numpy().tobytes() for each in asked}) == 10


# --- messages ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", [tiny.FEDAVG, tiny.FEDDGM], ids=["fedavg", "feddgm"])
def test_a_run_that_keeps_messages_is_the_same_run(algorithm, tmp_path):
    plain, keeping = (tmp_path / name for name in ("plain", "keeping"))
    finish(plain, algorithm)
    finish(keeping, algorithm, output={"keep_messages": True})
    assert tiny.result(plain) == tiny.result(keeping)
    assert not (plain / folder.MESSAGES).exists()
    for number in (1, 2):
        for client in ("c00", "c01", "c02"):
            for way in ("down", "up"):
                assert Bundle.open(message_path(keeping / folder.MESSAGES, number, client, way)).groups
    # what is done again is what was sent
    for client, number in (("c01", 1), ("c02", 2)):
        kept, again = (
            exchange_of(opened(run), client, number, Desk(Seed.root(9)), lambda done, total: None)
            for run in (keeping, plain)
        )
        assert (kept.source, again.source) == ("kept", "re-run")
        assert kept.exchange.number == again.exchange.number == number
        assert kept.exchange.up.to_bytes() == again.exchange.up.to_bytes()
        assert kept.exchange.down.to_bytes() == again.exchange.down.to_bytes()
        assert again.same_bits is (True if number == 2 else None)


def test_messages_of_rounds_that_are_done_again_are_replaced(run):
    stale = run / folder.MESSAGES / "round-0007"
    stale.mkdir()
    (stale / "c00.up.safetensors").write_bytes(b"of a round that was cut off")
    before = message_path(run / folder.MESSAGES, 2, "c00", "up").read_bytes()
    drive(tiny.experiment(tiny.FEDAVG, rounds=3, output={"keep_messages": True}), out=run, resume=True)
    assert not stale.exists()
    assert message_path(run / folder.MESSAGES, 3, "c00", "up").exists()
    assert message_path(run / folder.MESSAGES, 2, "c00", "up").read_bytes() == before
    folder.clear(run)
    assert not (run / folder.MESSAGES).exists()


def test_a_client_out_of_the_cohort_is_heard_in_the_last_round_in_which_it_was_in(tmp_path):
    run = finish(tmp_path / "run", rounds=4, cohort=1, output={"keep_messages": True})
    cohorts = [row["cohort"][0] for row in tiny.rows(run)]
    client = cohorts[-2] if cohorts[-2] != cohorts[-1] else cohorts[0]
    wanted = max(number for number, each in enumerate(cohorts, 1) if each == client)
    target = opened(run)
    kept = exchange_of(target, client, 4, Desk(Seed.root(9)), lambda done, total: None)
    shutil.rmtree(run / folder.MESSAGES)
    again = exchange_of(target, client, 4, Desk(Seed.root(9)), lambda done, total: None)
    assert kept.exchange.number == again.exchange.number == wanted
    assert kept.exchange.up.to_bytes() == again.exchange.up.to_bytes()


def test_shadows_ask_the_clients_that_the_run_asked(tmp_path):
    """Else the last message of a shadow's client is of another round, or there is none."""
    run = finish(tmp_path / "run", rounds=4, cohort=1)
    cohorts = [row["cohort"][0] for row in tiny.rows(run)]
    client = cohorts[0]
    target = opened(run)
    wanted = max(number for number, each in enumerate(cohorts, 1) if each == client)
    for seed in range(4):
        heard = run_federation(
            target.federation(),
            target.parts.sites,
            start=target.parts.start,
            desk=Desk(Seed.root(seed).at("shadow")),
            listened=target.parts.sites,
            until=4,
        )
        assert heard.exchanges.keys() == set(cohorts)
        assert heard.exchanges[client].number == wanted
    asked = Membership(shadows=4, views=("surrogate",), client=client)
    (view,) = audit_run(run, Asked(membership=asked))["membership"]["views"]
    assert view["shadows"] == 4


class Spoilt(LocalEngine):
    """Whose clients answer with a number that is none."""

    def work(self, number, outbox, task):
        yield from (Reply(client, Bundle(numbers={"examples": "many"})) for client in outbox if outbox[client])


def test_a_reply_that_is_no_file_is_passed_on(tmp_path):
    engine = Recording(Spoilt(None, {}, Desk(Seed.root(0))), tmp_path)
    (answer,) = engine.work(1, {"a": Bundle(numbers={"round": 1.0})}, "local")
    assert answer.bundle.numbers == {"examples": "many"}
    assert [path.name for path in tmp_path.rglob("*.safetensors")] == ["a.down.safetensors"]


# --- the command ---------------------------------------------------------------------------------------------------------


def refusal(capsys, *arguments):
    """The one sentence with which the command refuses, after what it said of attacks that it made before."""
    assert invoke(["audit", *map(str, arguments)]) == 2
    *before, last = capsys.readouterr().err.splitlines()
    assert not any(line.startswith("fedstill: ") for line in before)
    return last


def test_tables(run, audited, capsys):
    shutil.copytree(audited[1] / folder.AUDITED, run / folder.AUDITED)
    assert invoke(["audit", str(run), "--membership", "--shadows", "3"]) == 0
    captured = capsys.readouterr()
    found = audited[0]["membership"]
    online = found["views"][0]["attacks"]["lira_online"]
    assert f"{online['auc']['value']:.3f} ({online['auc']['low']:.3f} to {online['auc']['high']:.3f})" in captured.out
    assert f"{online['targets']['auc']['mean']:.3f} ± {online['targets']['auc']['deviation']:.3f}" in captured.out
    assert "not attacked: 'fedavg' distils no images" in captured.out
    assert "surrogate: what c00 sent in round 2, kept" in captured.out
    assert captured.err.endswith(f"\nwritten: {run / folder.AUDIT}; 'fedstill report {run}' shows it\n")


def test_a_view_that_some_shadows_lack_says_so(audited, capsys):
    found = copy.deepcopy(audited[0]["membership"])
    found["views"][1]["shadows"] = 2
    say_attack(Path("run"), "membership", found)
    assert (
        "\nsurrogate:c00: by 2 of the shadow federations; in the others there is none of that round\n"
        in capsys.readouterr().out
    )


def test_json_and_quiet(run, audited, capsys):
    shutil.copytree(audited[1] / folder.AUDITED, run / folder.AUDITED)
    assert invoke(["audit", str(run), "--membership", "--shadows", "3", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == audited[0]
    assert invoke(["audit", str(run), "--membership", "--shadows", "3", "--quiet"]) == 0
    assert capsys.readouterr() == ("", "")


def test_what_it_refuses(run, capsys):
    assert "is no run" in refusal(capsys, run.parent)
    assert "--views = 'finale': did you mean 'final'?" in refusal(capsys, run, "--views", "finale")
    assert "name at least one" in refusal(capsys, run, "--views", ",")
    assert "--client = 'c09'" in refusal(capsys, run, "--client", "c09")
    assert "--round 3: " in refusal(capsys, run, "--round", "3")
    assert "--lr 0.0: it lies above 0" in refusal(capsys, run, "--lr", "0")
    assert refusal(capsys, run, "--shadows", "1")
    assert "there is nothing to attack: 'fedavg' distils no images" in refusal(
        capsys, run, "--membership", "--views", "distilled"
    )
    message_path(run / folder.MESSAGES, 2, "c00", "up").write_bytes(b"cut")
    assert "is damaged" in refusal(capsys, run)
    (run / folder.AUDIT).write_text("{")
    assert "remove it" in refusal(capsys, run)
    (run / folder.AUDIT).unlink()
    shutil.rmtree(run / "checkpoints")
    assert "no round is done that could be attacked" in refusal(capsys, run)
    tiny_text = (run / folder.EXPERIMENT).read_text()
    (run / folder.EXPERIMENT).write_text(tiny_text.replace("limit = 120", "limit = 110"))
    assert "the data are no longer those of the run" in refusal(capsys, run)
    (run / folder.EXPERIMENT).write_text(tiny_text.replace('kind = "local"', 'kind = "sites"'))
    assert "lie at their sites" in refusal(capsys, run)


def test_nothing_asked_for_and_too_few_shadows(run):
    with pytest.raises(InputError, match="nothing is asked for"):
        audit_run(str(run), Asked())
    with pytest.raises(InputError, match="a likelihood ratio needs 2"):
        audit_run(run, Asked(membership=Membership(shadows=1)))


@pytest.mark.slow
def test_kill_9_then_the_same_command_comes_to_the_same_numbers(run, audited):
    command = [sys.executable, "-m", "fedstill", "audit", str(run), "--membership", "--shadows", "3", "--quiet"]
    command += ["--workers", "2"]
    process = subprocess.Popen(command, start_new_session=True)
    until = time.monotonic() + 300
    while not list((run / folder.AUDITED).rglob("shadow-*.safetensors")) and time.monotonic() < until:
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert list((run / folder.AUDITED).rglob("shadow-*.safetensors"))
    assert subprocess.run(command, check=False).returncode == 0
    assert json.loads((run / folder.AUDIT).read_text())["membership"] == audited[0]["membership"]


@pytest.mark.slow
def test_ctrl_c_says_how_to_go_on(run):
    command = [sys.executable, "-m", "fedstill", "audit", str(run), "--membership", "--shadows", "64"]
    process = subprocess.Popen(command, start_new_session=True, stderr=subprocess.PIPE, text=True)
    until = time.monotonic() + 300
    while not list((run / folder.AUDITED).rglob("shadow-*.safetensors")) and time.monotonic() < until:
        time.sleep(0.05)
    said = tiny.interrupt(process)
    assert process.returncode == 130
    assert (
        said.splitlines()[-1]
        == f"fedstill: interrupted; what is done is kept in {run / folder.AUDITED}: give the same command again"
    )
