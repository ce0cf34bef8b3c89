"""The server's side of the wire: what it listens to, whom it knows, and how sites are gathered."""

from __future__ import annotations

import asyncio
import datetime
import socket
import ssl
import threading
import time
from base64 import b64encode
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
import torch

pytest.importorskip("flwr")

from flwr.app import ConfigRecord, Error, Message, RecordDict
from flwr.common.constant import TIMESTAMP_HEADER
from flwr.proto.fleet_pb2 import ActivateNodeRequest, PullMessagesRequest, PushMessagesRequest, RegisterNodeFleetRequest
from flwr.proto.message_pb2 import Metadata
from flwr.proto.node_pb2 import Node
from flwr.supercore.constant import FLEET_HTTP_PUBLIC_KEY_HEADER, FLEET_HTTP_SIGNATURE_HEADER
from flwr.supercore.date import now
from flwr.supercore.inflatable.inflatable_utils import ObjectPushError
from flwr.supercore.primitives.asymmetric import public_key_to_bytes, sign_message
from flwr.supercore.task_identity import TaskIdentity

from fedstill.bundle import Bundle
from fedstill.deployment.certs import make_certificates
from fedstill.deployment.hosting import Served, site_keys
from fedstill.engines.flower.calls import Readiness
from fedstill.engines.flower.gate import CALL, Gate
from fedstill.engines.flower.gathering import gathered
from fedstill.engines.flower.node import Door, _client, private_key, serve
from fedstill.engines.flower.post import CONTROL, FlowerEngine, Pulling
from fedstill.engines.flower.superlink import Hosted, Tls, public_key, superlink
from fedstill.errors import InputError, RunError
from fedstill.experiment import Experiment
from fedstill.rounds import Desk, Failure
from fedstill.runtime import Spent
from fedstill.seeds import Seed


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tmp_path_factory.mktemp("keys") / "keys"
    make_certificates(folder, hosts=None, sites=("north", "south", "stranger"), days=2, replace=False)
    return folder


@pytest.fixture(scope="module")
def hosted(keys: Path) -> Iterator[Hosted]:
    known = {name: public_key((keys / "sites" / f"{name}.pub").read_bytes(), name) for name in ("north", "south")}
    with superlink(
        known, host="127.0.0.1", port=0, tls=Tls(keys / "server.pem", keys / "server.key"), largest=10**6
    ) as there:
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
    with pytest.raises(InputError, match="the server does not have this site's public key"):
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
        # who does not sign is refused before anything of the call is read
        assert client.post(f"{at}/v1/fleet/push-object", content=iter([b"a", b"b"])).status_code == 401
    trusted = ssl.create_default_context(cafile=keys / "ca.crt")
    with (
        socket.create_connection(("127.0.0.1", hosted.port)) as plain,
        trusted.wrap_socket(plain, server_hostname="127.0.0.1") as call,
    ):
        call.sendall(b"POST /v1/fleet/push-object HTTP/1.1\r\nHost: x\r\nContent-Length: 1073741824\r\n\r\n")
        assert call.recv(100).startswith(b"HTTP/1.1 401 ")


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
    no_key = tmp_path / "no.key"
    no_key.write_bytes((keys / "sites" / "north.pub").read_bytes())
    no_key.chmod(0o600)
    with pytest.raises(InputError, match="is no private key in OpenSSH's format"):
        private_key(no_key)
    no_key.chmod(0o644)
    with pytest.raises(InputError, match="lets other users read a private key"):
        private_key(no_key)
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
        superlink({}, host="127.0.0.1", port=taken.getsockname()[1], tls=tls, largest=1).__enter__()


# --- the gate: heads of calls ------------------------------------------------------------------------------------------


class Behind:
    """What the gate lets through."""

    def __init__(self) -> None:
        self.bodies: list[bytes] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.bodies.append((await receive())["body"])
        await send({"type": "http.response.start", "status": 200, "headers": []})


def knock(keys: Path, path: str, body: bytes = b"", *, name: str = "north", largest: int = 100, **changes: Any) -> int:
    """The status of a call."""
    key = private_key(keys / "sites" / f"{name}.key")
    known = [
        public_key_to_bytes(private_key(keys / "sites" / f"{each}.key").public_key()) for each in ("north", "south")
    ]
    stamp = (now() + datetime.timedelta(seconds=changes.get("ahead", 0))).isoformat().encode()
    signed = {
        FLEET_HTTP_PUBLIC_KEY_HEADER: b64encode(public_key_to_bytes(key.public_key())),
        FLEET_HTTP_SIGNATURE_HEADER: b64encode(sign_message(key, changes.get("signed", stamp))),
        TIMESTAMP_HEADER: stamp,
    }
    head = [(name.lower().encode(), value) for name, value in signed.items()]
    if (length := changes.get("length", len(body))) is not None:
        head.append((b"content-length", str(length).encode()))
    statuses: list[int] = []

    async def receive() -> Any:
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(event: Any) -> None:
        statuses.extend([event["status"]] if "status" in event else [])

    gate = changes.get("gate") or Gate(Behind(), known, largest)
    asyncio.run(gate({"type": "http", "path": path, "headers": head}, receive, send))
    return statuses[0]


def test_who_may_call(keys: Path) -> None:
    at = "/v1/fleet/pull-messages"
    assert knock(keys, at) == 200
    assert knock(keys, at, name="stranger") == 403
    assert knock(keys, at, signed=b"something else") == 401
    assert knock(keys, at, ahead=60) == 401
    assert knock(keys, at, ahead=-3600) == 401
    assert knock(keys, at, length=None) == 411
    assert knock(keys, at, length=CALL + 1) == 413
    assert knock(keys, "/v1/control/start-run") == 404
    assert asyncio.run(Gate(Behind(), [], 1)({"type": "websocket"}, None, None)) is None  # type: ignore[func-returns-value, arg-type]


def push(**metadata: Any) -> bytes:
    pushed = PushMessagesRequest(node=Node(node_id=7))
    pushed.messages_list.add().metadata.MergeFrom(
        Metadata(**({"src_node_id": 7, "dst_node_id": 1, "reply_to_message_id": "m"} | metadata))
    )
    return bytes(pushed.SerializeToString())


def test_a_site_answers_in_its_own_name_and_does_nothing_else(keys: Path) -> None:
    at = "/v1/fleet/push-messages"
    assert knock(keys, at, push()) == 200
    assert knock(keys, at, push(src_node_id=1)) == 403
    assert knock(keys, at, push(dst_node_id=9)) == 403
    assert knock(keys, at, push(reply_to_message_id="")) == 403
    assert knock(keys, at, PushMessagesRequest(node=Node(node_id=7)).SerializeToString()) == 403
    assert knock(keys, at, b"\xff\xff") == 403


def test_an_answer_has_an_end(keys: Path) -> None:
    behind = Behind()
    own = [public_key_to_bytes(private_key(keys / "sites" / "north.key").public_key())]
    gate = Gate(behind, own, 100)
    assert knock(keys, "/v1/fleet/push-object", b"a" * 60, gate=gate) == 200
    assert knock(keys, "/v1/fleet/push-object", b"a" * 60, gate=gate) == 413
    assert knock(keys, "/v1/fleet/push-messages", push(), gate=gate) == 200
    assert knock(keys, "/v1/fleet/push-object", b"a" * 60, gate=gate) == 200
    assert behind.bodies[1] == push()


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
        found = [each for each in self.waiting if each.metadata.reply_to_message_id in identities]
        self.waiting = [each for each in self.waiting if each not in found]
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
    with pytest.raises(
        RunError, match=r"1 of 2 sites are ready after 0.05 s, and the quorum is 2: not ready is 'north'"
    ):
        gather(Script({"north": [], "south": [Readiness(None)]}), wait=0.05, least=2)


def test_an_answer_is_a_strangers_text() -> None:
    assert Readiness.read(RecordDict()) == Readiness("its answer cannot be read")
    assert Readiness.read(Readiness("\x1b[2J" + "a" * 1000).to_records()).reason == "?[2J" + "a" * 195 + "…"


def test_one_answer_that_flower_trips_over_takes_no_other_with_it() -> None:
    class Grid:
        def pull_messages(self, identities: list[str]) -> list[Any]:
            if "bad" in identities:
                raise AttributeError("metadata")
            # what an answer says that it answers is a stranger's word
            told = SimpleNamespace(reply_to_message_id="bad")
            return [SimpleNamespace(metadata=told, name=each) for each in identities if each != "late"]

    grid: Any = Grid()
    pull = Pulling(grid, pause=0.01)
    found: dict[str, str | None] = {}
    until = time.monotonic() + 30
    while len(found) < 3 and time.monotonic() < until:
        found |= {identity: message and message.name for identity, message in pull(["a", "bad", "late", "b"])}
    pull([])
    assert found == {"a": "a", "bad": None, "b": "b"}


def test_an_answer_that_never_ends_holds_up_no_other() -> None:
    stuck = threading.Event()

    class Grid:
        def pull_messages(self, identities: list[str]) -> list[Any]:
            if "slow" in identities:
                stuck.wait()
            return [SimpleNamespace(name=each) for each in identities]

    grid: Any = Grid()
    pull = Pulling(grid, pause=0.01)
    found: dict[str, str | None] = {}
    until = time.monotonic() + 30
    while not found and time.monotonic() < until:
        found |= {identity: message and message.name for identity, message in pull(["slow", "b"])}
    assert found == {"b": "b"}
    # and once it is waited for no longer, what it brings is nobody's
    pull([])
    stuck.set()
    time.sleep(0.1)
    assert list(pull(["c"])) in ([], [("c", SimpleNamespace(name="c"))])


def test_a_message_that_was_ended_before_all_of_it_was_there_is_waited_for(keys: Path) -> None:
    class Grid:
        def push_messages(self, messages: list[Message]) -> list[str]:
            messages[0].metadata.__dict__["_message_id"] = "m"
            raise ObjectPushError("o", 1, "s")

        def pull_messages(self, identities: list[str]) -> list[Any]:
            assert identities == ["m"]
            told = {CONTROL: ConfigRecord({"failure": "the site takes no such"})}
            return [SimpleNamespace(has_error=lambda: False, content=RecordDict(told))]

    grid: Any = Grid()
    TaskIdentity.task_id = TaskIdentity.run_id = TaskIdentity.node_id = 1
    engine = FlowerEngine(grid, {"south": 7}, Desk(Seed.root(0)), None, Spent())
    answers = list(engine.work(1, {"south": Bundle({"model": {"a": torch.zeros(1)}})}, "local"))
    assert answers == [Failure("south", "the site takes no such")]


def test_a_site_that_is_not_connected_is_a_failure_at_once(hosted: Hosted) -> None:
    nodes = {"south": hosted.nodes["south"], "also": 12345}
    engine = FlowerEngine(hosted.grid, nodes, Desk(Seed.root(0)), None, Spent(), online=hosted.online)
    message = Bundle({"model": {"a": torch.zeros(1)}})
    answers = list(engine.work(1, {"south": message, "also": message}, "local"))
    assert answers == [Failure(name, "is not connected") for name in nodes]


def test_a_test_set_needs_a_source_that_reads_it(keys: Path) -> None:
    data = {"size": 8, "channels": 1, "classes": ["a", "b"], "mean": [0.5], "std": [0.5], "test": "nope.npz"}
    venue = Served(keys={"north": keys}, certificate=keys, key=keys, host="", port=0)
    with pytest.raises(InputError, match=r"data.test = 'nope.npz': data.source = 'digits' reads no file"):
        venue.parts(Experiment.from_table({"data": data, "model": {"depth": 2}, "algorithm": {"name": "fedavg"}}))


def test_two_sites_with_one_key_are_refused(keys: Path) -> None:
    same = dict.fromkeys(("north", "south"), keys / "sites" / "north.pub")
    venue = Served(keys=same, certificate=keys / "server.pem", key=keys / "server.key", host="127.0.0.1", port=0)
    parts: Any = None
    experiment: Any = None
    with pytest.raises(InputError, match="the sites 'north' and 'south' have the same key"):
        venue.open(experiment, parts, parts, parts, kept=None, note=lambda _: None).__enter__()
