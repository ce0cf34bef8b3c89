"""An engine on Flower's Grid: who is there, what is sent, and what comes of it.

Flower's own strategies take one array record and one metric record a reply, which is less than most methods send; so its message
interface is used, and ``rounds`` stays the one loop. Node ids are random and answers come as they are done; clients are known by
name, from a roll call, and an answer belongs to the message that it replies to.
"""

from __future__ import annotations

import math
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
from queue import Empty, Queue
from typing import Any, NamedTuple

from flwr.app import ConfigRecord, Error, Message, RecordDict
from flwr.serverapp import Grid

from fedstill.bundle import Bundle
from fedstill.engines.client import SCORE, memory_before
from fedstill.engines.flower.records import from_records, to_records
from fedstill.engines.memory import Memory
from fedstill.errors import InputError, RunError, printable
from fedstill.rounds import Desk, Failure, Reply
from fedstill.runtime import Spent

__all__ = ["CONTROL", "NAME", "WORK", "FlowerEngine", "Pulling", "push", "roll_call"]

NAME, WORK = "query.name", "train.work"
"""The messages: who are you, and a piece of work."""

CONTROL = "fedstill"
"""The ConfigRecord of what is about a message and no part of its Bundle."""

AT_ONCE = 50
"""Messages under way: all at once, the answers of a thousand clients would lie in memory together, and take as long."""

CALLS = 3
"""Times that a node whose process fails is asked for its name."""

_REASON = 1000
"""Letters of a client's reason: it is a stranger's."""

_LONGEST = 30 * 24 * 3600.0
"""A message without a time-out of ours lasts so long, in seconds; Flower's own default is half a day."""


class _Sent(NamedTuple):
    client: str
    deadline: float  # of all its tries
    due: float = 0.0
    tries: int = 0


@dataclass(frozen=True)
class FlowerEngine:
    """Clients are nodes of a Grid.

    Attributes:
        grid: Flower's, of a run that is under way.
        nodes: node id by client.
        desk: the run's; its progress is told of every answer.
        memory: what clients remember between rounds, which travels with their work in a simulation; None: they are sites, which
            keep their own.
        spent: is told what clients' processes took, in a simulation.
        also: what every message says of its run beside round, task and client.
        online: clients whose nodes are connected now; None: all are. Who is not is a Failure at once.
        timeout: seconds from a message's sending after which its client is a Failure; None: it is waited for.
        at_once: messages under way. More than there are processes wait for one, and with a ``timeout`` that counts.
        pause: seconds between looks for answers.
        pauses: seconds before another try of a message whose process failed: it may have been another client's that this one had
            to wait for. What a client's own code raises is an answer, and not tried again.
    """

    grid: Grid
    nodes: Mapping[str, int]
    desk: Desk
    memory: Memory | None
    spent: Spent
    also: Mapping[str, str | bool] = field(default_factory=dict)
    online: Callable[[], frozenset[str]] | None = None
    timeout: float | None = None
    at_once: int = AT_ONCE
    pause: float = 0.02
    pauses: tuple[float, ...] = (1.0, 5.0, 15.0)

    @cached_property
    def strangers(self) -> Pulling:
        """Answers of real sites, as they come."""
        return Pulling(self.grid, self.pause)

    def clients(self) -> Sequence[str]:
        return list(self.nodes)

    def work(self, number: int, outbox: Mapping[str, Bundle], task: str) -> Iterator[Reply | Failure]:
        waiting: dict[str, _Sent] = {}
        again: list[_Sent] = []
        unsent = iter(outbox)
        done = 0
        while True:
            answers: list[Reply | Failure] = []
            for sent in self._next(again, unsent, self.at_once - len(waiting)):
                identity = self._send(number, sent.client, outbox[sent.client], task)
                if identity is None:
                    answers.append(Failure(sent.client, "is not connected"))
                else:
                    waiting[identity] = sent
            answers += self._arrived(waiting, again, number, task)
            for answer in answers:
                done += 1
                yield answer
            if not (waiting or again or answers):
                return
            self.desk.progress(task, done, len(outbox))
            if not answers:
                time.sleep(self.pause)

    def _next(self, again: list[_Sent], unsent: Iterator[str], room: int) -> list[_Sent]:
        """What to send now: what is due for another try, and the next of those that had none."""
        now = time.monotonic()
        due = [sent for sent in again if sent.due <= now]
        again[:] = [sent for sent in again if sent.due > now]
        deadline = now + (math.inf if self.timeout is None else self.timeout)
        return due + [_Sent(client, deadline) for client in islice(unsent, max(0, room - len(due)))]

    def _send(self, number: int, client: str, inbox: Bundle, task: str) -> str | None:
        """Its identity; None where the node is not connected."""
        if self.online is not None and client not in self.online():
            return None
        content = to_records(inbox)
        about: dict[str, Any] = {**self.also, "round": number, "task": task, "client": client}
        if self.memory is not None:
            about["memory"] = self.memory.read(client, memory_before(number, task)).to_bytes()
        content[CONTROL] = ConfigRecord(about)
        message = Message(content, self.nodes[client], WORK, ttl=self.timeout or _LONGEST)
        return push(self.grid, message)

    def _arrived(
        self, waiting: dict[str, _Sent], again: list[_Sent], number: int, task: str
    ) -> Iterator[Reply | Failure]:
        """Answers that are there, and clients whose time is up; they are waited for no longer."""
        now = time.monotonic()
        for identity, message in self._pull(waiting):
            sent = waiting.pop(identity, None)
            if sent is None:
                continue
            if message is None:
                yield Failure(sent.client, "its answer cannot be read")
            elif message.has_error() and sent.tries < len(self.pauses):
                again.append(sent._replace(due=now + self.pauses[sent.tries], tries=sent.tries + 1))
            else:
                yield self._read(sent.client, message, number, task)
        late = [identity for identity, sent in waiting.items() if now >= sent.deadline]
        overdue = [sent for sent in again if now >= sent.deadline]
        again[:] = [sent for sent in again if now < sent.deadline]
        for sent in (*(waiting.pop(identity) for identity in late), *overdue):
            yield Failure(sent.client, f"gave no answer within {self.timeout:g} s")

    def _pull(self, waiting: Mapping[str, _Sent]) -> Iterator[tuple[str, Message | None]]:
        if self.memory is None:
            yield from self.strangers(waiting)
            return
        for message in self.grid.pull_messages(list(waiting)):
            yield message.metadata.reply_to_message_id, message

    def _read(self, client: str, message: Message, number: int, task: str) -> Reply | Failure:
        if message.has_error():
            told = _told(message.error) if self.memory is not None else ("went away before it answered",)
            return Failure(client, *told)
        try:
            about = message.content.config_records[CONTROL]
            if "failure" in about:
                # a traceback is of use where it is of this machine
                detail = "" if self.memory is None else str(about.get("detail", ""))
                return Failure(client, printable(str(about["failure"]), _REASON), detail)
            reply = from_records(message.content)
            if self.memory is not None:
                self.spent.add(int(_number(about["peak"])), _number(about["cpu_seconds"]))
                if task != SCORE:
                    memory = about["memory"]
                    if not isinstance(memory, bytes):
                        raise TypeError("its memory is no bytes")
                    self.memory.write(client, number, Bundle.from_bytes(memory, source="its memory"))
        except (InputError, KeyError, TypeError, ValueError, OverflowError) as error:
            return Failure(client, printable(f"its answer cannot be read: {error}", _REASON))
        return Reply(client, reply)


class Pulling:
    """Strangers' answers: one that cannot be read, or never ends, takes no other with it, and what it says that it answers is not
    believed. Every message that is waited for has a thread, since Flower waits in a call for what a site has promised.

    Called with the identities of messages, it gives the answers that are there, with the identity of the message that each
    answers; None where Flower cannot read it. What is asked for no more is forgotten.
    """

    def __init__(self, grid: Grid, pause: float) -> None:
        self._grid = grid
        self._pause = pause
        self._asked: set[str] = set()
        self._came: Queue[tuple[str, Message | None]] = Queue()

    def __call__(self, identities: Iterable[str]) -> list[tuple[str, Message | None]]:
        wanted = set(identities)
        new, self._asked = wanted - self._asked, wanted
        for identity in sorted(new):
            threading.Thread(target=self._wait_for, args=(identity,), daemon=True, name="pulling").start()
        found: list[tuple[str, Message | None]] = []
        with suppress(Empty):
            while True:
                identity, message = self._came.get_nowait()
                if identity in self._asked:
                    self._asked.discard(identity)
                    found.append((identity, message))
        return found

    def _wait_for(self, identity: str) -> None:
        while identity in self._asked:
            try:
                found = list(self._grid.pull_messages([identity]))
            except Exception:  # Flower trips over what is not built as it builds it, with many classes
                self._came.put((identity, None))
                return
            if found:
                self._came.put((identity, found[0]))
                return
            time.sleep(self._pause)


def push(grid: Grid, message: Message) -> str | None:
    """Send it; its identity, None where Flower does not know the node, or not any more."""
    try:
        # Flower gives nothing, or an empty identity, where it cannot send
        return next(iter(grid.push_messages([message])), None) or None
    except Exception:
        # whoever it is for may end it before all of it is there; what comes of it is an answer, or an error of Flower's
        return message.metadata.message_id or None


def _told(error: Error) -> tuple[str, str]:
    """What Flower says of a client that gave no answer: its first line in short, and all of it."""
    whole = error.reason or f"code {error.code}"
    first = re.sub(r"^<class '(?:[\w.]*\.)?(\w+)'>:<'", r"\1: ", whole.partition("\n")[0]).removesuffix("'>")
    return printable(f"its process failed: {first}", _REASON), whole


def _number(value: Any) -> float:
    if not isinstance(value, int | float) or not 0 <= value < math.inf:
        raise TypeError(f"{value!r} is no such number")
    return float(value)


def roll_call(
    grid: Grid, expected: Sequence[str], *, alive: Callable[[], None], timeout: float | None, pause: float = 0.05
) -> dict[str, int]:
    """Ask every node for its name until all ``expected`` clients are there.

    Args:
        grid: Flower's, of a run that is under way; its nodes may come one by one.
        expected: names of clients, in the order of the result.
        alive: called at every look; raises where waiting is of no use.
        timeout: seconds to wait; None: as long as it takes.
        pause: seconds between looks.

    Returns:
        Node id by client, in the order of ``expected``.

    Raises:
        RunError: time is up, a node's process fails again and again, or two nodes give one name.
    """
    found: dict[str, int] = {}
    asked: dict[str, int] = {}
    refused: dict[int, int] = {}
    known: set[int] = set()
    until = math.inf if timeout is None else time.monotonic() + timeout
    while len(found) < len(expected):
        alive()
        for node in set(grid.get_node_ids()) - known:
            known.add(node)
            for identity in grid.push_messages([Message(RecordDict(), node, NAME)]):
                asked[identity] = node
        for message in grid.pull_messages(list(asked)) if asked else ():
            node = asked.pop(message.metadata.reply_to_message_id)
            if message.has_error():
                refused[node] = refused.get(node, 0) + 1
                if refused[node] == CALLS:
                    raise RunError(f"a client does not answer the roll call: {_told(message.error)[0]}")
                known.discard(node)  # it is asked again
                continue
            name = _name(message.content)
            if name in found:
                raise RunError(f"two nodes call themselves '{name}': give every site a name of its own")
            if name in expected:
                found[name] = node
        if time.monotonic() > until:
            missing = [name for name in expected if name not in found]
            raise RunError(f"{len(missing)} of {len(expected)} clients are not there, such as '{missing[0]}'")
        time.sleep(pause)
    return {name: found[name] for name in expected}


def _name(content: RecordDict) -> str:
    about = content.config_records.get(CONTROL)
    return "" if about is None else str(about.get("client", ""))
