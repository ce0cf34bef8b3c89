"""Real sites on loopback: a SuperLink with TLS and keys, and programs that are killed."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

import tiny
from federations import federation, table, until
from fedstill.bundle import Bundle
from fedstill.deployment.certs import make_certificates
from fedstill.engines.client import SUM
from fedstill.engines.local import LocalEngine
from fedstill.experiment import Experiment
from fedstill.rounds import Desk, rounds
from fedstill.run import drive
from fedstill.seeds import Seed

pytest.importorskip("flwr")
pytestmark = pytest.mark.slow

MOON = {"name": "moon", "epochs": 15, "lr": 0.05, "batch": 4}


def test_sites_give_what_clients_in_process_give(tmp_path: Path) -> None:
    with federation(tmp_path / "fed", table(tiny.FEDDGM, rounds=2)) as fed:
        drive(fed.simulated, out=tmp_path / "simulated")
        sites = [fed.attend(name) for name in ("c00", "c01")]
        said = fed.serve().ended()
        assert "site 'c00' is ready" in said
        assert tiny.rows(fed.out) == tiny.rows(tmp_path / "simulated")
        for kept in ("models", "synthetic"):
            for path in (tmp_path / "simulated" / kept).rglob("*"):
                if path.is_file():
                    assert (fed.out / path.relative_to(tmp_path / "simulated")).read_bytes() == path.read_bytes(), path
        assert "real sites, which alone know what they hold: c00, c01" in (fed.out / "report.html").read_text()
        tasks = [(line["round"], line["task"], line["direction"], line["refused"]) for line in fed.ledger("c00")]
        of_round = [(task, way) for task in ("local", "score") for way in ("in", "out")]
        assert tasks == [
            (0, "ready", "in", None),
            (0, "ready", "out", None),
            *((number, task, way, None) for number in (1, 2) for task, way in of_round),
        ]
        for site, number in zip(sites, (signal.SIGINT, signal.SIGTERM), strict=True):
            site.send(number)
            assert "Traceback" not in site.ended(130)


def test_who_is_not_known_is_refused_and_a_server_that_is_not_either(tmp_path: Path) -> None:
    with federation(tmp_path / "fed", table(tiny.FEDAVG, rounds=1)) as fed:
        # a stranger has the CA's certificate, and a key that nobody registered
        make_certificates(fed.folder / "others", hosts=None, sites=("c00",), days=2, replace=False)
        fed.change("c00", server__key="../others/sites/c00.key")
        server = fed.serve()
        until(lambda: "listening" in server.said, server)
        stranger = fed.attend("c00", "--patience", "3")
        assert "does not have this site's public key" in stranger.ended(2)
        # and a site is shown a certificate of another CA than it knows
        fed.change("c01", server__authority="../others/ca.crt")
        assert "has no certificate of the CA that this site trusts" in fed.attend("c01").ended(2)
        server.send(signal.SIGINT)
        assert "is ready" not in server.ended(130)
        assert not fed.ledger("c00")
        assert not fed.ledger("c01")


def test_a_site_that_is_killed_costs_its_part_of_the_round_and_comes_again(tmp_path: Path) -> None:
    with federation(tmp_path / "fed", table(MOON, rounds=8, engine={"timeout": 60.0})) as fed:
        steady, mortal = (fed.attend(name) for name in ("c00", "c01"))
        server = fed.serve()
        until(lambda: any(line["round"] == 1 for line in fed.ledger("c01")), server, steady, mortal)
        mortal.send(signal.SIGKILL)
        until(lambda: (fed.out / "metrics.jsonl").exists() and tiny.rows(fed.out), server, steady)
        again = fed.attend("c01")
        server.ended()
        rows = tiny.rows(fed.out)
        assert [failure["client"] for failure in rows[0]["failures"] if "no score" not in failure["reason"]] == ["c01"]
        assert next(each["client"] for each in rows[0]["clients"]) == "c00"
        assert rows[0]["aggregated"]
        assert not rows[-1]["failures"]
        assert again.runs


def test_a_server_that_is_killed_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    with federation(tmp_path / "fed", table(MOON, rounds=4)) as fed:
        drive(fed.simulated, out=tmp_path / "simulated")
        sites = [fed.attend(name) for name in ("c00", "c01")]
        server = fed.serve()
        until(lambda: any(line["round"] == 3 for line in fed.ledger("c01")), server, *sites)
        server.send(signal.SIGKILL)
        assert "round 4/4" in fed.serve("--resume").ended()
        assert tiny.rows(fed.out) == tiny.rows(tmp_path / "simulated")
        for path in (tmp_path / "simulated" / "models").rglob("*.safetensors"):
            assert (fed.out / path.relative_to(tmp_path / "simulated")).read_bytes() == path.read_bytes()
        assert all(site.runs for site in sites)


def test_of_sites_whose_models_are_summed_one_is_killed_after_its_keys(tmp_path: Path) -> None:
    asked = table(
        {**tiny.FEDAVG, "epochs": 15, "batch": 4},
        rounds=2,
        engine={"secure": True, "timeout": 60.0},
        partition={"kind": "iid", "clients": 4, "validation": 0.1},
    )
    with federation(tmp_path / "fed", asked) as fed:
        for name in ("c00", "c01", "c02", "c03"):
            fed.change(name, policy__secure=True)
        *steady, mortal = (fed.attend(name) for name in ("c00", "c01", "c02", "c03"))
        server = fed.serve()
        # it is at its training; the others have its keys and shares, and count on its masks
        until(lambda: any(line["task"] == "masked" for line in fed.ledger("c03")), server, mortal)
        mortal.send(signal.SIGKILL)
        until((fed.out / "checkpoints" / "round-0001.json").exists, server, *steady)
        found = Bundle.from_bytes(fed.state(1)).groups["model"]
        server.ended()
        rows = tiny.rows(fed.out)
        left = ["c00", "c01", "c02"]
        for row in rows:
            assert row["aggregated"]
            assert row["together"]["clients"] == left
            assert [failure["client"] for failure in row["failures"] if "no score" not in failure["reason"]] == ["c03"]
        # what the server has is what the three would have sent it
        parts = Experiment.from_table({**asked, "engine": {}}).build()
        desk = Desk(Seed.root(0).at("run"))
        engine = LocalEngine(parts.algorithm, {name: parts.sites[name] for name in left}, desk)
        (plain,) = rounds(parts.algorithm, engine, desk=desk, until=1, state=parts.start)
        assert plain.state.groups["model"].keys() == found.keys()
        assert all((found[name] - tensor).abs().max() < 1e-6 for name, tensor in plain.state.groups["model"].items())
        of_round = [(line["task"], line["direction"]) for line in fed.ledger("c00") if line["round"] == 1]
        assert of_round == [(task, way) for task in (*SUM, "score") for way in ("in", "out")]
