"""``fedstill audit`` beside membership: inversion, nearest neighbours and class histograms on tiny runs of several methods."""

from __future__ import annotations

import json
import re
import shutil
from functools import partial
from pathlib import Path

import pytest
import torch
from PIL import Image

import fedstill
import tiny
from attacked import Told, finished_run, opened
from fedstill import auditing, folder
from fedstill.algorithms import ALGORITHMS
from fedstill.algorithms.virtual import kept_set
from fedstill.attacked import exchanges_of, held_out, memory_of
from fedstill.attacks import inversion as inverting
from fedstill.attacks.inversion import _step
from fedstill.attacks.updates import update_seen
from fedstill.audit.perceptual import absent
from fedstill.audit.seen import update_of
from fedstill.auditing import Asked, Attributes, Inversion, Membership, Neighbours, audit_run
from fedstill.cli import invoke
from fedstill.data.shard import Shard
from fedstill.engines.memory import Memory
from fedstill.errors import InputError
from fedstill.method import Method
from fedstill.privacy import Privacy
from fedstill.rounds import Desk
from fedstill.seeds import Seed
from fedstill.train import Recipe
from test_contract import OPTIONS

QUICK = Inversion(steps=3, images=4)
SMALL = {
    "feddm": {"ipc": 2, "match_steps": 2, "global_epochs": 2},
    "fedlgd": {key: value for key, value in OPTIONS["fedlgd"].items() if key != "virtual"},
}

finish = partial(finished_run, rounds=1)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run of FedAvg that keeps its messages."""
    return finish(tmp_path_factory.mktemp("finished") / "run", output={"keep_messages": True})


@pytest.fixture
def run(finished, tmp_path):
    """The same, for one test to change."""
    return Path(shutil.copytree(finished, tmp_path / "run"))


def check_pictures(run, found, rows=2):
    assert found["pictures"]
    for picture in found["pictures"]:
        with Image.open(run / picture) as image:
            assert image.size[1] > rows * 40


def check_inversion(run, found, kinds):
    assert found["citation"].startswith("Geiping")
    assert found["assumptions"]
    assert list(found["cases"]) == ["one", "few", "sent"]
    assert [case["images"] for case in found["cases"].values()] == [1, 4, 4]
    for case in found["cases"].values():
        assert set(case["against"]) == kinds
        for of in case["against"].values():
            assert -1 <= of["measures"]["ssim"]["mean"] <= 1
            assert 0 < of["measures"]["psnr"]["p"] <= 1
    assert len(found["pictures"]) == 3
    check_pictures(run, found)


# --- methods -------------------------------------------------------------------------------------------------------------


def test_fedavg(run):
    asked = Asked(inversion=QUICK, neighbours=Neighbours(), attributes=Attributes())
    found = audit_run(run, asked)
    assert found["neighbours"] == {"nothing": "'fedavg' distils no images"}
    check_inversion(run, found["inversion"], {"real"})
    assert found["inversion"]["source"] == "kept"
    target = opened(run)
    assert found["inversion"]["cases"]["sent"]["behind"] == len(target.parts.sites["c00"].train)
    # a step on one image names its class
    label = found["inversion"]["cases"]["one"]["labels"][0]
    assert target.parts.sites["c00"].train.histogram()[label] > 0
    read = found["attributes"]
    assert not read["re_run"]
    assert set(read["readings"]) == {"signs", "bias"}
    assert read["missing"] == {}
    for of in read["readings"].values():
        assert of["citation"]
        assert of["assumptions"]
        assert set(of["clients"]) == {"c00", "c01", "c02"}
        # each client lacks six classes of ten, which its update shows
        assert of["distance"] < of["guess"] / 2
    written = json.loads((run / folder.AUDIT).read_text())
    assert written.pop("identities").keys() == found.keys()
    assert written == {"version": 1, **found}


def test_feddm_sends_images_and_no_update(tmp_path):
    run = finish(tmp_path / "run", {"name": "feddm", **SMALL["feddm"]})
    found = audit_run(run, Asked(inversion=QUICK, neighbours=Neighbours(worst=3), attributes=Attributes()))
    assert found["inversion"] == {"nothing": "clients of 'feddm' send no update of a network"}
    near = found["neighbours"]
    assert near["source"] == "server"
    assert near["clients"] == 3
    assert near["citation"]
    assert near["assumptions"]
    assert list(near["spaces"]) == ["pixels", "untrained convnet, depth 3, width 128"]
    assert all(len(of["worst"]) == 3 for of in near["spaces"].values())
    check_pictures(run, near)
    assert set(found["attributes"]["readings"]) == {"hard"}
    assert found["attributes"]["missing"] == {"updates": "clients of 'feddm' send no update of a network"}
    assert not found["attributes"]["re_run"]


def test_base_sets_of_real_images_are_found_to_be_copies(tmp_path):
    run = finish(tmp_path / "run", {**tiny.ONESHOT, "distill_steps": 0})
    near = audit_run(run, Asked(neighbours=Neighbours()))["neighbours"]
    for of in near["spaces"].values():
        assert of["closer"] == 1
        assert of["gap"] > of["chance"][1]
        assert of["p"] < 0.01
        assert of["worst"][0]["ratio"] < 0.1
    with pytest.raises(InputError, match=r"^clients of .oneshot. send no update of a network$"):
        audit_run(run, Asked(inversion=QUICK))


@pytest.mark.slow
def test_fedlgd_is_inverted_to_its_virtual_images(tmp_path):
    run = finish(tmp_path / "run", {"name": "fedlgd", **SMALL["fedlgd"]}, virtual={"ipc": 2, "steps": 2})
    found = audit_run(run, Asked(inversion=QUICK, neighbours=Neighbours(), attributes=Attributes()))
    check_inversion(run, found["inversion"], {"real", "virtual"})
    assert found["inversion"]["pixels_told"] == "the reply"
    low, high = found["inversion"]["pixels"]
    assert low < 0 < 1 < high
    assert found["inversion"]["cases"]["sent"]["behind"] == 8
    assert found["inversion"]["same_bits"] is True
    assert found["neighbours"]["source"] == "clients"
    assert found["neighbours"]["spaces"]["pixels"]["images"] == 24
    assert set(found["attributes"]["readings"]) == {"signs"}
    assert found["attributes"]["missing"]["bias"].startswith("clients train on virtual images")


@pytest.mark.slow
@pytest.mark.parametrize("name", ALGORITHMS)
def test_every_method_of_the_table(name, tmp_path):
    known = Method.keys(name)
    options = {key: value for key, value in OPTIONS[name].items() if key in known}
    virtual = {"virtual": {"ipc": 2, "steps": 2}} if "virtual" in OPTIONS[name] else {}
    run = finish(tmp_path / "run", {"name": name, **options}, **virtual)
    found = audit_run(run, Asked(inversion=QUICK, neighbours=Neighbours(), attributes=Attributes()))
    assert ("nothing" in found["neighbours"]) == (not ALGORITHMS[name].distils)
    # VHL's network has twice as many classes as the run's
    updates = "model" in ALGORITHMS[name].sends and name != "vhl"
    assert ("nothing" in found["inversion"]) == (not updates)
    if name == "centralised":
        assert found["attributes"]["nothing"].startswith("the run has one client alone")
    elif updates:
        assert "signs" in found["attributes"]["readings"]
    assert all(each.get("nothing", "x") for each in found.values())


def test_virtual_images_under_another_method_are_the_clients(tmp_path):
    run = finish(tmp_path / "run", virtual={"ipc": 2, "steps": 0})
    found = audit_run(run, Asked(inversion=QUICK, neighbours=Neighbours()))
    assert found["inversion"]["kind"] == "virtual"
    assert found["inversion"]["pixels_told"] == "the images"
    assert found["neighbours"]["source"] == "clients"
    shutil.rmtree(run / "memory")
    (run / folder.AUDIT).unlink()
    with pytest.raises(InputError, match="holds no memory of its clients"):
        audit_run(run, Asked(neighbours=Neighbours()))


@pytest.mark.parametrize(
    ("algorithm", "settings", "why"),
    [
        (tiny.FEDAVG, {"virtual": {"ipc": 2, "steps": 0}}, "clients train on virtual images"),
        ({**tiny.FEDAVG, "name": "fedprox", "mu": 0.1}, {}, "terms that hold clients near"),
        ({**tiny.FEDAVG, "name": "fedprox", "mu": 0.0}, {}, None),
        ({**tiny.FEDAVG, "name": "scaffold"}, {}, "control variates"),
    ],
)
def test_the_bias_is_not_read_where_something_else_moves_it(algorithm, settings, why, tmp_path):
    run = finish(tmp_path / "run", algorithm, rounds=1, **settings)
    found = audit_run(run, Asked(attributes=Attributes()))["attributes"]
    assert ("bias" in found["readings"]) == (why is None)
    assert found["missing"].get("bias", "").startswith(why or "")
    assert "signs" in found["readings"]


def test_the_network_of_the_first_round_is_attacked_too(tmp_path):
    run = finish(tmp_path / "run", rounds=2)
    found = audit_run(run, Asked(inversion=Inversion(steps=40, images=2)))["inversion"]
    assert list(found["cases"]) == ["first", "one", "few", "sent"]
    assert found["cases"]["first"]["images"] == 1
    assert found["cases"]["first"]["labels"] == found["cases"]["one"]["labels"]  # of the same image
    assert found["pictures"][0] == "audit/inversion-first.png"
    earlier = audit_run(run, Asked(inversion=Inversion(steps=40, images=2, round=1)))["inversion"]
    assert list(earlier["cases"]) == ["one", "few", "sent"]  # it is the round itself


def test_virtual_images_of_one_grey_alone_are_a_case_that_is_missing(tmp_path, monkeypatch):
    run = finish(tmp_path / "run", rounds=1)
    own = inverting._Own("real", opened(run).parts.sites["c00"].train, (0.5, 0.5), "the images")
    monkeypatch.setattr(inverting, "_own", lambda *_: own)
    found = audit_run(run, Asked(inversion=QUICK, attributes=Attributes()))
    assert {"one", "few", "sent"} == found["inversion"]["cases"].keys()
    assert all("between two values" in case["missing"] for case in found["inversion"]["cases"].values())
    assert "readings" in found["attributes"]


def test_virtual_images_of_an_earlier_round_are_sought(tmp_path):
    fedlgd = {"name": "fedlgd", **SMALL["fedlgd"]}
    long, short = (
        finish(tmp_path / str(rounds), fedlgd, rounds=rounds, virtual={"ipc": 2, "steps": 2}) for rounds in (4, 1)
    )
    target = opened(long)
    memory = memory_of(target, "c00", 1, Desk(Seed.root(9)), lambda done, total: None)
    own, then, now = (
        kept_set(each, target.parts.world).images
        for each in (memory, Memory(short / "memory").read("c00", 2), Memory(long / "memory").read("c00", 5))
    )
    assert torch.equal(own, then)
    assert not torch.equal(own, now)
    found = audit_run(long, Asked(inversion=Inversion(steps=2, images=2, round=1)))["inversion"]
    assert found["pixels"] == audit_run(short, Asked(inversion=Inversion(steps=2, images=2)))["inversion"]["pixels"]
    assert not (long / folder.AUDITED / "again").exists()


def test_a_client_that_protects_its_gradients_is_attacked_with_its_noise(tmp_path, capsys):
    pytest.importorskip("opacus")
    private = {**tiny.FEDAVG, "privacy_epsilon": 4.0, "privacy_delta": 1e-2, "privacy_clip": 0.5, "privacy_rounds": 1}
    run = finish(tmp_path / "run", private)
    asked = Asked(inversion=QUICK, membership=Membership(shadows=2))
    found = audit_run(run, asked)
    noise = tiny.rows(run)[0]["clients"][0]["privacy"]["noise"]
    assert found["inversion"]["protection"] == {"noise": noise, "clip": 0.5}
    target = opened(run)
    heard = exchanges_of(target, ("c00",), 1, Desk(Seed.root(9)), lambda done, total: None)["c00"]
    received = update_seen(heard.exchange, target).received
    image, recipe = target.parts.sites["c00"].train.take([0]), Recipe(epochs=1, lr=1.0, batch=1)

    def moved(privacy):
        change = update_of(received, image, recipe, privacy=privacy, desk=Desk(Seed.root(1))).change
        return torch.cat([tensor.flatten() for tensor in change.values()])

    # a step of length 1 on the clipped gradient, and noise of 0.5 σ in each of its coordinates
    assert moved(Privacy(0.0, 0.5)).norm() <= 0.5 + 1e-5
    assert (moved(Privacy(noise, 0.5)) - moved(Privacy(0.0, 0.5))).std() == pytest.approx(0.5 * noise, rel=0.1)
    # what its attacks show against its word
    members = found["membership"]
    assert members["privacy"]["looks"] == 2 * 4 * len(members["views"])
    for view in members["views"]:
        assert view["claim"] == {
            "epsilon": max(client["privacy"]["epsilon"] for client in tiny.rows(run)[0]["clients"])
            if view["client"] is None
            else tiny.rows(run)[0]["clients"][0]["privacy"]["epsilon"],
            "delta": 1e-2,
        }
        assert all(each["bound"]["exceeds"] in (None, False) for each in view["attacks"].values() if "bound" in each)
    assert (
        invoke(["audit", str(run), "--membership", "--inversion", "--shadows", "2", "--steps", "3", "--images", "4"])
        == 0
    )
    out = capsys.readouterr().out
    assert "gradients are clipped to 0.5 and have noise of" in out
    assert "guaranteed: epsilon = " in out
    assert "not more" in out


def test_updates_that_are_cut_and_noised_are_attacked_as_they_leave(tmp_path):
    run = finish(tmp_path / "run", rounds=2, update={"clip": 0.1, "noise": 50.0, "bits": 8})
    found = audit_run(run, Asked(inversion=QUICK, membership=Membership(shadows=2)))
    assert not any("missing" in case for case in found["inversion"]["cases"].values())
    target = opened(run)
    exchange = exchanges_of(target, ("c00",), 1, Desk(Seed.root(9)), lambda done, total: None)["c00"].exchange
    received = update_seen(exchange, target).received
    made = _step(target, received, target.parts.sites["c00"].train.take([0]), 0.1, None, Desk(Seed.root(1)))
    change = torch.cat([tensor.flatten() for tensor in made.what.change.values()])
    assert change.std() == pytest.approx(5.0, rel=0.1)  # noise alone, of which 0.1 is what it covers


def test_norms_that_stay_with_clients_leave_nothing_to_retrace(tmp_path):
    run = finish(tmp_path / "run", {**tiny.FEDAVG, "norms": "local"}, model={"norm": "batch"})
    found = audit_run(run, Asked(inversion=QUICK, attributes=Attributes()))
    for each in found.values():
        assert "clients of this run send no whole network: 'body" in each["nothing"]
        assert each["nothing"].endswith("stays with them, so nothing can be retraced")


# --- what they are given -------------------------------------------------------------------------------------------------


def test_all_clients_are_heard_at_once_and_as_they_are_kept(run):
    target, desk = opened(run), Desk(Seed.root(9))
    kept = exchanges_of(target, ("c00", "c01", "c02"), 1, desk, lambda done, total: None)
    told = []
    (run / folder.MESSAGES).rename(run / "elsewhere")
    again = exchanges_of(target, ("c02", "c00"), 1, desk, lambda *line: told.append(line))
    assert told == [(0, 1), (1, 1)]
    for client, each in again.items():
        assert each.source == "re-run"
        assert each.same_bits
        assert each.exchange.up.to_bytes() == kept[client].exchange.up.to_bytes()
        change = update_seen(each.exchange, target).change
        assert any(bool(tensor.any()) for tensor in change.values())


def test_attacks_share_the_rounds_that_are_done_again(run):
    shutil.rmtree(run / folder.MESSAGES)
    told = []
    asked = Asked(inversion=QUICK, attributes=Attributes(), membership=Membership(shadows=2, views=("surrogate",)))

    def interrupt(phase, done, total):
        told.append((phase, done))
        if (phase, done) == ("shadow federations", 1):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        audit_run(run, asked, hears=Told(interrupt))
    assert [line for line in told if line[0] == "rounds again"] == [("rounds again", 0), ("rounds again", 1)]
    assert (run / folder.AUDITED / "again").exists()
    found = audit_run(run, asked, hears=Told(lambda *line: told.append(line[:2])))  # goes on with what was heard
    assert sum(line[0] == "rounds again" for line in told) == 2
    assert found["inversion"]["source"] == found["membership"]["surrogate"]["source"] == "re-run"
    assert found["inversion"]["same_bits"] is True
    assert not (run / folder.AUDITED / "again").exists()


def test_held_out_images_are_nobodys_training_images(run):
    target = opened(run)
    held = held_out(target, "c00")
    seen = {each.tobytes() for site in target.parts.sites.values() for each in site.train.images.numpy()}
    assert len(held) >= 50
    assert not any(each.tobytes() in seen for each in held.images.numpy())
    assert isinstance(held, Shard)
    assert held.images.dtype == torch.uint8


# --- going on ------------------------------------------------------------------------------------------------------------


def test_an_audit_goes_on_with_the_attacks_that_are_missing(run):
    asked = Asked(inversion=QUICK, attributes=Attributes(), membership=Membership(shadows=2))

    def interrupt(phase, done, total):
        if phase == "shadow federations":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        audit_run(run, asked, hears=Told(interrupt))
    kept = json.loads((run / folder.AUDIT).read_text())
    assert kept["identities"].keys() == {"inversion", "attributes"}
    phases = []
    found = audit_run(run, asked, hears=Told(lambda phase, done, total: phases.append(phase)))
    assert not any(phase.startswith(("invert", "attributes")) for phase in phases)
    assert "shadow federations" in phases
    assert {name: found[name] for name in ("inversion", "attributes")} == {
        name: kept[name] for name in ("inversion", "attributes")
    }


def test_other_settings_and_lost_pictures_are_made_again(run):
    first = audit_run(run, Asked(inversion=QUICK))["inversion"]
    (run / first["pictures"][0]).unlink()
    assert audit_run(run, Asked(inversion=QUICK))["inversion"] == first
    check_pictures(run, first)
    other = audit_run(run, Asked(inversion=Inversion(steps=2, images=2, client="c01")))["inversion"]
    assert (other["client"], other["steps"], other["cases"]["few"]["images"]) == ("c01", 2, 2)


# --- the command ---------------------------------------------------------------------------------------------------------


def test_tables(run, capsys):
    given = ["--inversion", "--neighbours", "--attributes", "--steps", "3", "--images", "4"]
    assert invoke(["audit", str(run), *given]) == 0
    captured = capsys.readouterr()
    found = json.loads((run / folder.AUDIT).read_text())
    assert "nearest neighbours: not attacked: 'fedavg' distils no images" in captured.out
    assert "inversion: fedavg, c00 in round 1 (kept), 3 steps, 1 search" in captured.out
    assert f"{found['inversion']['cases']['few']['against']['real']['measures']['psnr']['mean']:.1f}" in captured.out
    assert f"sent, 4 of {found['inversion']['cases']['sent']['behind']}" in captured.out
    assert f"{found['attributes']['readings']['signs']['distance']:.3f}" in captured.out
    for picture in found["inversion"]["pictures"]:
        assert f"picture: {run / picture}" in captured.out
    assert captured.err.endswith(f"\nwritten: {run / folder.AUDIT}; 'fedstill report {run}' shows it\n")


@pytest.mark.parametrize("changed", ["version", "lpips", "again"])
def test_what_was_found_is_found_anew_where_that_may_differ(changed, run, monkeypatch):
    asked = Asked(inversion=QUICK, attributes=Attributes())
    told: list[tuple[str, bool]] = []

    class Hears(Told):
        def ended(self, attack, found, seconds):
            told.append((attack, seconds is not None))

    hears = Hears(lambda *_: None)
    audit_run(run, asked, hears=hears)
    audit_run(run, asked, hears=hears)
    if changed == "version":
        monkeypatch.setattr(fedstill, "__version__", "9.9.9")
    elif changed == "lpips":
        monkeypatch.setattr(auditing, "absent", lambda: "there" if absent() is None else None)
    audit_run(run, asked, again=changed == "again", hears=hears)
    before, between, after = (dict(told[each : each + 2]) for each in (0, 2, 4))
    assert before == {"attributes": True, "inversion": True}
    assert between == {"attributes": False, "inversion": False}
    assert after == {"attributes": changed != "lpips", "inversion": True}


def test_tables_of_neighbours(tmp_path, capsys):
    run = finish(tmp_path / "run", {**tiny.ONESHOT, "distill_steps": 0})
    assert invoke(["audit", str(run), "--neighbours", "--attributes"]) == 0
    out = capsys.readouterr().out
    assert "nearest neighbours: oneshot after round 1, distilled images of 3 clients, as the server holds them" in out
    assert "100.0 %" in out
    assert re.search(r"\nnearest: a copy has 0; by chance it is \d\.\d\d to \d\.\d\d in pixels, ", out)
    assert "distilled labels" in out
    assert "not read: clients of 'oneshot' send no update of a network" in out


@pytest.mark.slow
def test_without_an_attack_named_all_are_made(run, capsys):
    given = ["--shadows", "2", "--steps", "2", "--images", "2", "--json"]
    assert invoke(["audit", str(run), *given]) == 0
    found = json.loads(capsys.readouterr().out)
    assert list(found) == ["neighbours", "attributes", "inversion", "membership"]
    assert [name for name in found if "nothing" in found[name]] == ["neighbours"]


def test_what_it_refuses(run, capsys):
    def refusal(*arguments):
        assert invoke(["audit", str(run), *arguments]) == 2
        captured = capsys.readouterr()
        assert captured.err.count("\n") == 1
        return captured.err

    assert "'fedavg' distils no images" in refusal("--neighbours")
    assert "--client = 'c09'" in refusal("--inversion", "--neighbours", "--client", "c09")
    assert "--round 4: " in refusal("--attributes", "--round", "4")
    assert not (run / folder.AUDIT).exists()
    with pytest.raises(InputError, match="--images 0: at least one"):
        audit_run(run, Asked(inversion=Inversion(images=0)))
    with pytest.raises(InputError, match="at least one pair"):
        audit_run(run, Asked(neighbours=Neighbours(worst=0)))
    with pytest.raises(InputError, match="steps and restarts are at least 1"):
        audit_run(run, Asked(inversion=Inversion(steps=0)))
