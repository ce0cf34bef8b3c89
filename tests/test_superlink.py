"""The server's side of the wire: what it listens to, whom it knows, and how sites are gathered."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest

pytest.importorskip("flwr")

from flwr.app import Error, Message, RecordDict
from flwr.proto.fleet_pb2 import ActivateNodeRequest, PullMessagesRequest, RegisterNodeFleetRequest
from flwr.proto.node_pb2 import Node
from flwr.supercore.primitives.asymmetric import public_key_to_bytes
from flwr.supercore.task_identity import TaskIdentity

from fedstill.deployment.certs import make_certificates
from fedstill.deployment.hosting import Served, site_keys
from fedstill.engines.flower.calls import Readiness
from fedstill.engines.flower.gathering import gathered
from fedstill.engines.flower.node import Door, _client, private_key, serve
from fedstill.engines.flower.superlink import Hosted, Tls, public_key, superlink
from fedstill.errors import InputError, RunError


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tmp_path_factory.mktemp("keys") / "keys"
    make_certificates(folder, hosts=None, sites=("north", "south", "stranger"), days=2, replace=False)
    return folder


@pytest.fixture(scope="module")
def hosted(keys: Path) -> Iterator[Hosted]:
    known = {name: public_key((keys / "sites" / f"{name}.pub").read_bytes(), name) for name in ("north", "south")}
    with superlink(known, host="127.0.0.1", port=0, tls=Tls(keys / "server.pem", keys / "server.key")) as there:
        yield there


def door(keys: Path, hosted: Hosted, name: str) -> Door:
    return Door(f"127.0.0.1:{hosted.port}", keys / "ca.crt", private_key(keys / "sites" / f"{name}.key"))


def test_a_known_site_signs_in_and_is_online_from_then_on(keys: Path, hosted: Hosted) -> None:
    at = door(keys, hosted, "north")
    own = public_key_to_bytes(at.key.public_key())
    with _client(at) as client:
        found = client.ActivateNode(ActivateNodeRequest(public_key=own, heartbeat_interval=10))
        assert found.node_id == hosted.nodes["north"]
        assert hosted.online() == {"north"}
        assert not client.PullMessages(PullMessagesRequest(node=Node(node_id=found.node_id))).messages_list
        # as nobody else than itself
        with pytest.raises(httpx.HTTPStatusError) as refused:
            client.PullMessages(PullMessagesRequest(node=Node(node_id=hosted.nodes["south"])))
    assert refused.value.response.status_code == 401


def test_a_stranger_neither_signs_in_nor_registers(keys: Path, hosted: Hosted) -> None:
    at = door(keys, hosted, "stranger")
    own = public_key_to_bytes(at.key.public_key())
    with _client(at) as client:
        for ask, request in (
            (client.ActivateNode, ActivateNodeRequest(public_key=own, heartbeat_interval=10)),
            (client.RegisterNode, RegisterNodeFleetRequest(public_key=own)),
        ):
            with pytest.raises(httpx.HTTPStatusError):
                ask(request)
    with pytest.raises(InputError, match="the server has no place for this site"):
        serve(at, lambda kind, content: RecordDict(), largest=1, note=lambda _: None, patience=0.0, pause=0.01)


def test_only_the_nodes_interface_is_on_the_network(keys: Path, hosted: Hosted) -> None:
    at = f"https://127.0.0.1:{hosted.port}"
    with httpx.Client(verify=ssl.create_default_context(cafile=keys / "ca.crt")) as client:
        for path in (
            "/",
            "/docs",
            "/health",
            "/v1/control/list-nodes",
            "/v1/control/start-run",
            "/v1/runtime/acquire-task",
        ):
            assert client.post(f"{at}{path}", content=b"").status_code == 404, path
        assert client.post(f"{at}/v1/fleet/../control/list-nodes", content=b"").status_code in (404, 405)
        assert client.post(f"{at}/v1/fleet/push-object", content=iter([b"a", b"b"])).status_code == 411
    # a gigabyte is refused before it comes
    trusted = ssl.create_default_context(cafile=keys / "ca.crt")
    with (
        socket.create_connection(("127.0.0.1", hosted.port)) as plain,
        trusted.wrap_socket(plain, server_hostname="127.0.0.1") as call,
    ):
        call.sendall(b"POST /v1/fleet/push-object HTTP/1.1\r\nHost: x\r\nContent-Length: 1073741824\r\n\r\n")
        assert call.recv(100).startswith(b"HTTP/1.1 413 ")


def test_a_certificate_of_another_ca_is_not_trusted(keys: Path, hosted: Hosted, tmp_path: Path) -> None:
    make_certificates(tmp_path / "others", hosts=None, sites=(), days=2, replace=False)
    at = Door(f"127.0.0.1:{hosted.port}", tmp_path / "others" / "ca.crt", private_key(keys / "sites" / "north.key"))
    with pytest.raises(
        InputError, match=r"has no certificate of the CA that this site trusts \(unable to get local issuer"
    ):
        serve(at, lambda kind, content: RecordDict(), largest=1, note=lambda _: None)


def test_files_that_are_no_keys_are_refused(keys: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is not there: 'fedstill certs' makes"):
        Tls(tmp_path / "none", tmp_path / "none").check()
    with pytest.raises(InputError, match="cannot be used for TLS"):
        Tls(keys / "server.pem", keys / "ca.key").check()
    with pytest.raises(InputError, match="is no public key in OpenSSH's format"):
        public_key(b"ssh-rsa nonsense", "north.pub")
    with pytest.raises(InputError, match="is no private key in OpenSSH's format"):
        private_key(keys / "sites" / "north.pub")
    with pytest.raises(InputError, match="cannot be read: No such file"):
        private_key(tmp_path / "none")
    with pytest.raises(InputError, match="cannot be read as a CA's certificate"):
        Door("h:1", keys / "ca.key", private_key(keys / "sites" / "north.key")).context()
    with pytest.raises(InputError, match="holds no site's public key"):
        site_keys(tmp_path)
    (tmp_path / "a b.pub").write_bytes(b"")
    with pytest.raises(InputError, match="a site's name has 1 to 64 letters"):
        site_keys(tmp_path)


def test_an_address_that_is_taken_is_refused(keys: Path) -> None:
    tls = Tls(keys / "server.pem", keys / "server.key")
    with (
        socket.create_server(("127.0.0.1", 0)) as taken,
        pytest.raises(InputError, match=r"cannot listen on 127\.0\.0\.1:"),
    ):
        superlink({}, host="127.0.0.1", port=taken.getsockname()[1], tls=tls).__enter__()


# --- gathering: a Grid of which every answer is said beforehand --------------------------------------------------------


class Script:
    """Nodes that answer what they are told to, once each is asked."""

    def __init__(self, answers: dict[str, list[Readiness | None]]) -> None:
        TaskIdentity.task_id = TaskIdentity.run_id = TaskIdentity.node_id = 1
        self.nodes = {name: number for number, name in enumerate(answers, start=10)}
        self.answers = answers
        self.waiting: list[Any] = []

    def push_messages(self, messages: list[Message]) -> list[str]:
        for message in messages:
            name = next(name for name, number in self.nodes.items() if number == message.metadata.dst_node_id)
            message.metadata.__dict__["_message_id"] = f"{name}-{len(self.answers[name])}"
            answer = self.answers[name].pop(0)
            content = Error(5, "gone") if answer is None else answer.to_records()
            self.waiting.append(
                SimpleNamespace(
                    metadata=SimpleNamespace(reply_to_message_id=message.metadata.message_id),
                    has_error=lambda answer=answer: answer is None,
                    content=content,
                )
            )
        return [message.metadata.message_id for message in messages]

    def pull_messages(self, identities: list[str]) -> list[Any]:
        found, self.waiting = self.waiting, []
        return found


def gather(script: Script, **more: Any) -> tuple[dict[str, Readiness], list[str]]:
    notes: list[str] = []
    there = Hosted(script, script.nodes, lambda: frozenset(name for name, left in script.answers.items() if left), 0)  # type: ignore[arg-type]
    asked: dict[str, Any] = {"least": 1, "wait": None, "again": 0.0, "pause": 0.001} | more
    facts = {"run": "", "experiment": "", "settings": "", "version": ""}
    found = gathered(there, facts, progress=lambda *_: None, note=notes.append, **asked)
    return found, notes


def test_sites_are_asked_until_they_are_ready() -> None:
    late = [None, Readiness("no room"), Readiness("no room"), Readiness(None, scored=True)]
    found, notes = gather(Script({"north": late, "south": [Readiness(None)]}))
    assert found == {"north": Readiness(None, scored=True), "south": Readiness(None)}
    assert sorted(notes) == [
        "site 'north' is not ready: it went away",
        "site 'north' is not ready: no room",
        "site 'north' is ready",
        "site 'south' is ready",
    ]


def test_when_time_is_up_the_quorum_begins_or_nobody() -> None:
    found, _ = gather(Script({"north": [], "south": [Readiness(None)]}), wait=0.05)
    assert list(found) == ["south"]
    with pytest.raises(RunError, match=r"1 of 2 sites are ready after 0.05 s, and the quorum is 2"):
        gather(Script({"north": [], "south": [Readiness(None)]}), wait=0.05, least=2)


def test_an_answer_is_a_strangers_text() -> None:
    assert Readiness.read(RecordDict()) == Readiness("its answer cannot be read")
    assert Readiness.read(Readiness("\x1b[2J" + "a" * 1000).to_records()).reason == "?[2J" + "a" * 195 + "…"


def test_two_sites_with_one_key_are_refused(keys: Path) -> None:
    same = dict.fromkeys(("north", "south"), keys / "sites" / "north.pub")
    venue = Served(keys=same, certificate=keys / "server.pem", key=keys / "server.key", host="127.0.0.1", port=0)
    parts: Any = None
    experiment: Any = None
    with pytest.raises(InputError, match="the sites 'north' and 'south' have the same key"):
        venue.open(experiment, parts, parts, parts, kept=None, note=lambda _: None).__enter__()
