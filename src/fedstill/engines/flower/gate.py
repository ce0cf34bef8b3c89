"""Who gets through to the SuperLink: what is asked for, by whom, and how much of it, before anything of a call is read.

Flower reads a call before it looks at its signature, and takes a site's word for the sender of a message; here a stranger's call
ends at its head, and a site can answer messages in its own name and do nothing else.
"""

from __future__ import annotations

import datetime
from base64 import b64decode
from binascii import Error as Base64Error
from collections.abc import Awaitable, Callable, Collection, Mapping, MutableMapping
from typing import Any

from flwr.common.constant import SUPERLINK_NODE_ID, SYSTEM_TIME_TOLERANCE, TIMESTAMP_HEADER, TIMESTAMP_TOLERANCE
from flwr.proto.fleet_pb2 import PushMessagesRequest
from flwr.supercore.constant import FLEET_HTTP_PUBLIC_KEY_HEADER, FLEET_HTTP_SIGNATURE_HEADER
from flwr.supercore.date import now
from flwr.supercore.primitives.asymmetric import bytes_to_public_key, verify_signature
from google.protobuf.message import DecodeError

__all__ = ["NODES", "RUN", "Gate", "Prefix"]

NODES, RUN = "/v1/fleet/", "/v1/runtime/"
"""Where the nodes' interface begins, and the run's."""

PIECE = 64 * 2**20
"""Bytes of a piece of an answer at most; arrays travel in pieces of 20 MiB."""

CALL = 8 * 2**20
"""Bytes of any other call at most; the longest is a list of an answer's pieces."""

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Any]]
Send = Callable[[Any], Awaitable[None]]


class Prefix:
    """Of an ASGI application, what lies under a prefix."""

    def __init__(self, app: Any, prefix: str) -> None:
        self._app = app
        self._prefix = prefix

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        if scope["path"].startswith(self._prefix):
            await self._app(scope, receive, send)
        else:
            await _refuse(send, 404)


class Gate:
    """Of the SuperLink, the nodes' interface, for those whose keys are known.

    Attributes:
        largest: bytes of an answer, all its pieces together.
    """

    def __init__(self, app: Any, keys: Collection[bytes], largest: int) -> None:
        self._app = Prefix(app, NODES)
        self._keys = frozenset(keys)
        self.largest = largest
        self._pushed: dict[bytes, int] = {}  # bytes of the answer that a site is sending

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        path, headers = scope["path"], dict(scope["headers"])
        if not path.startswith(NODES):
            await _refuse(send, 404)
            return
        key, refused = self._signer(headers)
        if refused:
            await _refuse(send, refused)
            return
        length = headers.get(b"content-length", b"")
        if not length.isdigit():
            await _refuse(send, 411)
            return
        if self._too_much(key, path, int(length)):
            await _refuse(send, 413)
            return
        if path == f"{NODES}push-messages":
            body = await _body(receive, int(length))
            if not _answers(body):
                await _refuse(send, 403)
                return
            self._pushed[key] = 0
            receive = _again(body)
        await self._app(scope, receive, send)

    def _too_much(self, key: bytes, path: str, length: int) -> bool:
        if path != f"{NODES}push-object":
            return length > CALL
        self._pushed[key] = self._pushed.get(key, 0) + length
        return length > PIECE or self._pushed[key] > self.largest

    def _signer(self, headers: Mapping[bytes, bytes]) -> tuple[bytes, int]:
        """Whose key the call is signed with, and 0; or with what it is refused: 403, a key that is not known; 401, no signature
        of that key, or not of this time.
        """
        try:
            key, signature = (
                b64decode(headers[name.lower().encode()], validate=True)
                for name in (FLEET_HTTP_PUBLIC_KEY_HEADER, FLEET_HTTP_SIGNATURE_HEADER)
            )
            if key not in self._keys:
                return key, 403
            stamp = headers[TIMESTAMP_HEADER.lower().encode()]
            age = (now() - datetime.datetime.fromisoformat(stamp.decode("ascii"))).total_seconds()
            fresh = -SYSTEM_TIME_TOLERANCE < age < TIMESTAMP_TOLERANCE + SYSTEM_TIME_TOLERANCE
            signed = fresh and verify_signature(bytes_to_public_key(key), stamp, signature)
            return key, 0 if signed else 401
        except (KeyError, ValueError, TypeError, Base64Error):
            return b"", 401


def _answers(body: bytes) -> bool:
    """Whether a push holds answers to the server alone, of the node that pushes; that it is that node, Flower looks at."""
    try:
        pushed = PushMessagesRequest.FromString(body)
    except DecodeError:
        return False
    return len(pushed.messages_list) == 1 and all(
        each.metadata.reply_to_message_id
        and each.metadata.src_node_id == pushed.node.node_id
        and each.metadata.dst_node_id == SUPERLINK_NODE_ID
        for each in pushed.messages_list
    )


async def _body(receive: Receive, length: int) -> bytes:
    parts = bytearray()
    while len(parts) <= length:
        event = await receive()
        parts += event.get("body", b"")
        if event["type"] != "http.request" or not event.get("more_body"):
            break
    return bytes(parts)


def _again(body: bytes) -> Receive:
    """What was read, to be read once more."""
    events = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive() -> Any:
        return events.pop() if events else {"type": "http.disconnect"}

    return receive


async def _refuse(send: Send, status: int) -> None:
    # what the caller still has to say is not waited for
    headers = [(b"content-length", b"0"), (b"connection", b"close")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": b""})
