"""A site's node: it calls the server's SuperLink, takes messages one by one and sends their answers.

Flower's own SuperNode loads the program that the server sent and starts it anew for every message. This one answers messages with
a function of the installed package: what arrives is data. It calls, and is never called, so a site needs no open port.
"""

from __future__ import annotations

import logging
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import httpx
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from cryptography.hazmat.primitives.serialization import load_ssh_private_key
from flwr.app import Message, RecordDict
from flwr.app.message.message import remove_content_from_message
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.proto.fleet_pb2 import (
    ActivateNodeRequest,
    DeactivateNodeRequest,
    PullMessagesRequest,
    PushMessagesRequest,
)
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest
from flwr.proto.message_pb2 import ObjectTree
from flwr.proto.node_pb2 import Node
from flwr.supercore.inflatable.inflatable_object import (
    get_all_nested_objects,
    get_object_tree,
    iterate_object_tree,
    no_object_id_recompute,
)
from flwr.supercore.inflatable.inflatable_protobuf_utils import (
    make_confirm_message_received_fn_protobuf,
    make_pull_object_fn_protobuf,
    make_push_object_fn_protobuf,
)
from flwr.supercore.inflatable.inflatable_utils import (
    inflate_object_from_contents,
    pull_objects,
    push_objects,
)
from flwr.supercore.interceptors.http.runtime_version import RuntimeVersionHttpInterceptor
from flwr.supercore.primitives.asymmetric import public_key_to_bytes
from flwr.supercore.task_identity import TaskIdentity
from flwr.supernode.fleet_http_client import FleetHttpClient
from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor

from fedstill.engines.flower.gate import PIECE
from fedstill.errors import InputError
from fedstill.files import check_private

__all__ = ["Answer", "Door", "private_key", "serve"]

BEAT = 10
"""Seconds for which a sign of life holds, Flower's least; after two without one a node counts as gone."""

_CALL = 60.0
"""Seconds that one call may take."""

_LONGEST_WAIT = 30.0
"""Seconds between tries to connect, which begin with the pause and double."""

Answer = Callable[[str, RecordDict | None], RecordDict]


class _Lost(Exception):
    """The server cannot be reached, or does not know this node any more."""


class _Distrusted(_Lost):
    """What answers there shows a certificate that is not trusted."""


@dataclass(frozen=True)
class Door:
    """How the server is reached.

    Attributes:
        address: ``HOST:PORT``.
        authority: PEM file of the CA that signed the server's certificate; None: those that the system trusts.
        key: the site's private key.
    """

    address: str
    authority: Path | None
    key: EllipticCurvePrivateKey

    def context(self) -> ssl.SSLContext:
        """What the server's certificate is judged by.

        Raises:
            InputError: the CA's file cannot be used.
        """
        try:
            return ssl.create_default_context(cafile=self.authority)
        except (OSError, ssl.SSLError) as error:
            raise InputError(
                f"{self.authority} cannot be read as a CA's certificate ({error}): ask the server's administrator for it"
            ) from error


def private_key(path: Path) -> EllipticCurvePrivateKey:
    """A site's key.

    Raises:
        InputError: it cannot be read, others may read it, it is encrypted, or no elliptic-curve key.
    """
    try:
        check_private(path)
        key = load_ssh_private_key(path.read_bytes(), password=None)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from error
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise InputError(
            f"{path} is no private key in OpenSSH's format, or is encrypted ({error}): "
            "make one with  ssh-keygen -t ecdsa -b 384 -N ''"
        ) from error
    if not isinstance(key, EllipticCurvePrivateKey):
        raise InputError(f"{path} is no elliptic-curve key: make one with  ssh-keygen -t ecdsa -b 384 -N ''")
    return key


def serve(
    door: Door,
    answer: Answer,
    *,
    largest: int,
    note: Callable[[str], None],
    patience: float | None = None,
    pause: float = 1.0,
) -> NoReturn:
    """Answer the server's messages until an interrupt; where the connection is lost it is made again.

    Args:
        door: how the server is reached.
        answer: a message's type and content → its answer's content. Of a message that is too large, or cannot
            be read, the content is None.
        largest: bytes that a message may take on the way.
        note: hears when the connection comes and goes.
        patience: seconds without a connection after which the site gives up; None: it never does.
        pause: seconds between looks for a message.

    Raises:
        InputError: the server is not one of the CA, or ``patience`` is over.
    """
    logging.getLogger("flwr").setLevel(logging.CRITICAL)
    logging.getLogger("httpx").setLevel(logging.WARNING)
    with _client(door) as client:
        told, wait, since, known = "", pause, time.monotonic(), False
        while True:
            try:
                with _signed_in(client, door) as node:
                    note(f"connected to {door.address}")
                    told, wait, known = "", pause, True
                    while True:
                        since = time.monotonic()
                        if not _answered(client, node, answer, largest):
                            time.sleep(pause)
            except _Lost as lost:
                # at the first try a file is wrong; later somebody is on the way, or a certificate is a day late
                if isinstance(lost, _Distrusted) and not known:
                    raise InputError(str(lost)) from lost
                if str(lost) != told:
                    told = str(lost)
                    note(f"{told}; trying again")
                if patience is not None and time.monotonic() - since > patience:
                    raise InputError(f"{told}, for {patience:g} s") from lost
                time.sleep(wait)
                wait = min(wait * 2, _LONGEST_WAIT)


def _client(door: Door) -> FleetHttpClient:
    client = FleetHttpClient(
        f"https://{door.address}",
        interceptors=[
            RuntimeVersionHttpInterceptor(component_name="SuperNode"),
            NodeAuthHttpInterceptor(door.key, door.key.public_key()),
        ],
        verify=door.context(),
        timeout=_CALL,
    )
    inner = client._client
    inner.follow_redirects = False  # a server must not send a site elsewhere, least of all without TLS
    inner.headers["accept-encoding"] = "identity"  # a megabyte may unpack to a gigabyte
    inner.event_hooks = {"response": [_bounded]}
    return client


def _bounded(response: httpx.Response) -> None:
    """Before an answer is read: that it says how long it is, and is no longer than a piece may be.

    Raises:
        httpx.RemoteProtocolError: otherwise.
    """
    length = response.headers.get("content-length", "")
    if not length.isdigit() or int(length) > PIECE or "content-encoding" in response.headers:
        raise httpx.RemoteProtocolError("an answer of unknown or too great length", request=response.request)


@contextmanager
def _signed_in(client: FleetHttpClient, door: Door) -> Iterator[Node]:
    """The node, with a thread that gives signs of life while the main one works."""
    public = public_key_to_bytes(door.key.public_key())
    with _calling(door):
        found = client.ActivateNode(ActivateNodeRequest(public_key=public, heartbeat_interval=BEAT))
    node = Node(node_id=found.node_id)
    over = threading.Event()

    def live() -> None:
        while not over.wait(BEAT / 3):
            # what is wrong the main thread finds out at its next call
            with suppress(httpx.HTTPError, RuntimeError, ValueError):
                client.SendNodeHeartbeat(SendNodeHeartbeatRequest(node=node, heartbeat_interval=BEAT))

    thread = threading.Thread(target=live, daemon=True, name="signs of life")
    thread.start()
    try:
        with _calling(door):
            yield node
    finally:
        over.set()
        thread.join(BEAT)  # a sign of life after the goodbye would take that back
        # a node that says goodbye may come again at once
        with suppress(httpx.HTTPError, RuntimeError, ValueError):
            client.DeactivateNode(DeactivateNodeRequest(node_id=node.node_id))


@contextmanager
def _calling(door: Door) -> Iterator[None]:
    """What a call fails with, as a loss, or as what an administrator has to mend."""
    try:
        yield
    except httpx.HTTPStatusError as error:
        if error.response.status_code == httpx.codes.FORBIDDEN:
            raise _Lost("the server does not have this site's public key") from error
        if error.response.status_code == httpx.codes.UNAUTHORIZED:
            raise _Lost(
                "the server does not accept this site's signature: it was started anew, or the clocks differ"
            ) from error
        if "2004" in error.response.text:
            raise _Lost(
                f"the server counts a client of this site as connected, as up to {2 * BEAT} s after one was killed"
            ) from error
        raise _Lost(f"the server answers with an error ({error.response.status_code})") from error
    except (httpx.HTTPError, OSError) as error:
        if (found := _distrust(error)) is not None:
            raise _Distrusted(
                f"what answers at {door.address} has no certificate of the CA that this site trusts ({found}): compare the "
                "CA's file and the server's name with what the server's administrator says"
            ) from error
        raise _Lost(f"no server of this kind answers at {door.address}") from error
    except _Lost:
        raise
    except Exception as error:  # Flower has many classes for what it cannot read or does not find
        raise _Lost(f"what answers at {door.address} is not understood ({type(error).__name__})") from error


def _distrust(error: BaseException | None) -> str | None:
    """What is wrong with a server's certificate; None where it is something else that failed."""
    while error is not None:
        if isinstance(error, ssl.SSLCertVerificationError):
            return error.verify_message
        error = error.__cause__ or error.__context__
    return None


def _answered(client: FleetHttpClient, node: Node, answer: Answer, largest: int) -> bool:
    """Take one message and answer it; false where there is none."""
    found = client.PullMessages(PullMessagesRequest(node=node))
    if not found.messages_list:
        return False
    message = message_from_proto(found.messages_list[0])
    run = message.metadata.run_id
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = run, run, node.node_id
    content = _content(client, node, run, found.message_object_trees[0], largest)
    make_confirm_message_received_fn_protobuf(client.ConfirmMessageReceived, node, run)(message.metadata.message_id)
    began = time.monotonic()
    reply = Message(answer(message.metadata.message_type, content), reply_to=message)
    _send(client, node, reply, time.monotonic() - began)
    return True


def _content(client: FleetHttpClient, node: Node, run: int, tree: ObjectTree, largest: int) -> RecordDict | None:
    """A message's content; None where it cannot be read, or is too large: no more of it than ``largest`` is held."""
    pull = make_pull_object_fn_protobuf(client.PullObject, node, run)
    held: dict[str, bytes] = {}
    size = 0
    for each in iterate_object_tree(tree):
        if each.object_id in held:
            continue
        # one by one: an answer is at most a piece of an array, and the sum is known before the next is asked for
        held |= pull_objects([each.object_id], pull)
        size += len(held[each.object_id])
        if size > largest:
            return None
    try:
        message = inflate_object_from_contents(tree.object_id, held)
        return message.content if isinstance(message, Message) and message.has_content() else None
    except Exception:  # a stranger's bytes; Flower says with many classes that they are not what they should be
        return None


def _send(client: FleetHttpClient, node: Node, reply: Message, seconds: float) -> None:
    with no_object_id_recompute():
        reply.metadata.__dict__["_message_id"] = reply.object_id
        wanted = client.PushMessages(
            PushMessagesRequest(
                node=node,
                messages_list=[message_to_proto(remove_content_from_message(reply))],
                message_object_trees=[get_object_tree(reply)],
                clientapp_runtime_list=[seconds],
            )
        )
        push = make_push_object_fn_protobuf(client.PushObject, node, reply.metadata.run_id, wanted.session_id)
        push_objects(get_all_nested_objects(reply), push, object_ids_to_push=set(wanted.objects_to_push))
