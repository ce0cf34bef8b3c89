"""Flower's SuperLink in this process, for sites alone: their nodes call it over TLS and sign every call with their keys.

A SuperLink of its own serves three interfaces on one port, and whoever reaches that port may, by the one named Control, start a
program at the server and register a node. Here the network reaches the nodes' interface and nothing else; the run's own side is
served on loopback, behind a token; nodes are registered from the public keys that the server's administrator was given, and no
program travels in either direction. docs/decisions/0007-sites-run-no-code-that-arrives.md says more.

This module, gate.py and node.py hold all that depends on how Flower is built inside; it changes every few releases.
"""

from __future__ import annotations

import logging
import secrets
import socket
import ssl
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import uvicorn
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
from cryptography.hazmat.primitives.serialization import load_ssh_public_key
from flwr.common.constant import NOOP_ACCOUNT_NAME, NOOP_FLWR_AID
from flwr.server.superlink.linkstate import LinkState
from flwr.serverapp import Grid
from flwr.supercore.constant import NOOP_FEDERATION_ID, TaskType
from flwr.supercore.heartbeat import HeartbeatSender, make_task_heartbeat_fn_http
from flwr.supercore.primitives.asymmetric import public_key_to_bytes
from flwr.supercore.task_identity import TaskIdentity
from flwr.superlink.grid import HttpGrid
from flwr.superlink.main import create_app

from fedstill.engines.flower.gate import RUN, Gate, Prefix
from fedstill.errors import InputError, RunError
from fedstill.files import check_private

__all__ = ["Hosted", "Tls", "public_key", "superlink"]

_CALLS = 1000
"""Calls at a time; more are told to come again."""

_ENDS_WITHIN = 10.0
"""Seconds that calls under way have to end."""


@dataclass(frozen=True)
class Tls:
    """The server's certificate, with those that lead to the CA behind it where there are some, and its key: PEM files."""

    certificate: Path
    key: Path

    def check(self) -> None:
        """That they can be read and are of each other.

        Raises:
            InputError: they are not.
        """
        for path in (self.certificate, self.key):
            if not path.is_file():
                raise InputError(f"{path} is not there: 'fedstill certs' makes the server's certificate and key")
        check_private(self.key)
        try:
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(self.certificate, self.key)
        except (OSError, ssl.SSLError) as error:
            raise InputError(
                f"{self.certificate} and {self.key} cannot be used for TLS ({error}): they are to be of each other, in PEM"
            ) from error


class Hosted(NamedTuple):
    """A SuperLink that is up.

    Attributes:
        grid: of its one run.
        nodes: node id by site.
        online: sites whose node is connected now.
        port: on which it listens.
    """

    grid: Grid
    nodes: Mapping[str, int]
    online: Callable[[], frozenset[str]]
    port: int


def public_key(content: bytes, where: str) -> bytes:
    """A site's public key, as ``ssh-keygen`` writes it, in the form that nodes are known by.

    Raises:
        InputError: it is none, or no elliptic-curve one; ``where`` says whose.
    """
    try:
        key = load_ssh_public_key(content)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise InputError(f"{where} is no public key in OpenSSH's format ({error})") from error
    if not isinstance(key, EllipticCurvePublicKey):
        raise InputError(f"{where} is no elliptic-curve key: make one with  ssh-keygen -t ecdsa -b 384")
    found: bytes = public_key_to_bytes(key)
    return found


@contextmanager
def superlink(keys: Mapping[str, bytes], *, host: str, port: int, tls: Tls, largest: int) -> Iterator[Hosted]:
    """A SuperLink, from its start to its end.

    Args:
        keys: by site, its :func:`public_key`; no two the same.
        host: name or address to listen on.
        port: likewise; 0 takes a free one.
        tls: what the server shows of itself.
        largest: bytes of a site's answer.

    Raises:
        InputError: the address cannot be had, or certificate and key not be used.
    """
    tls.check()
    _quiet()
    app = create_app()
    app.state.enable_supernode_auth = True  # no node registers itself
    app.state.superexec_auth_secret = secrets.token_bytes(32)  # nobody else claims the run
    state: LinkState = app.state.linkstate_factory.state()
    nodes = {site: state.create_node(NOOP_FLWR_AID, NOOP_ACCOUNT_NAME, key, 0) for site, key in keys.items()}
    with ExitStack() as stack:
        outer = stack.enter_context(_listening(host, port))
        inner = stack.enter_context(_listening("127.0.0.1", 0))
        stack.enter_context(_served(Gate(app, keys.values(), largest), outer, tls))
        stack.enter_context(_served(Prefix(app, RUN), inner, None))
        grid = stack.enter_context(_run(state, f"127.0.0.1:{inner.getsockname()[1]}"))

        def online() -> frozenset[str]:
            there = state.get_nodes(grid.run.run_id)
            return frozenset(site for site, node in nodes.items() if node in there)

        yield Hosted(grid, nodes, online, outer.getsockname()[1])


@contextmanager
def _run(state: LinkState, address: str) -> Iterator[HttpGrid]:
    """The one run, claimed by this process before it can be by any other."""
    number = state.create_run(None, None, None, {}, NOOP_FEDERATION_ID, None, NOOP_FLWR_AID, TaskType.SERVER_APP)
    run = state.get_run_info(run_ids=[number])[0]
    task = run.primary_task_id
    token = None if task is None else state.claim_task(task)
    if task is None or token is None or not state.activate_task(task):
        raise RunError("Flower's SuperLink does not begin the run")
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = task, number, state.get_node_id()
    grid = HttpGrid(address, insecure=True, token=token)
    grid.set_run(run)
    beat = HeartbeatSender(make_task_heartbeat_fn_http(grid._runtime_client))
    beat.start()
    try:
        yield grid
    finally:
        if beat.is_running:
            beat.stop()
        grid.close()


@contextmanager
def _listening(host: str, port: int) -> Iterator[socket.socket]:
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        listener = socket.create_server((host, port), family=family)
    except (OSError, OverflowError) as error:
        raise InputError(
            f"cannot listen on {host}:{port} ({getattr(error, 'strerror', None) or error}): give another --listen"
        ) from error
    with listener:
        yield listener


@contextmanager
def _served(app: Gate | Prefix, listener: socket.socket, tls: Tls | None) -> Iterator[None]:
    """Calls answered in a thread, so that the main one hears Ctrl-C."""
    server = uvicorn.Server(
        uvicorn.Config(
            app,
            lifespan="off",
            ws="none",
            log_config=None,
            access_log=False,
            server_header=False,
            limit_concurrency=_CALLS,
            timeout_graceful_shutdown=int(_ENDS_WITHIN),
            ssl_certfile=None if tls is None else tls.certificate,
            ssl_keyfile=None if tls is None else tls.key,
        )
    )
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True, name="superlink")
    thread.start()
    try:
        while not server.started:
            thread.join(0.02)
            if not thread.is_alive():
                raise RunError("Flower's SuperLink does not start")
        yield
    finally:
        server.should_exit = True
        thread.join(_ENDS_WITHIN + 5)


def _quiet() -> None:
    """What Flower and its server say of single calls is nothing for a run's terminal; what fails comes back as an answer."""
    for name in ("flwr", "uvicorn", "httpx"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
