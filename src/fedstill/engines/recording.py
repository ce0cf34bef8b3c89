"""An engine that keeps what travels: each message of a training round and each reply, as a Bundle's file.

    messages/round-0003/c04.down.safetensors     what was sent to c04
    messages/round-0003/c04.up.safetensors       what came back, before anybody judged it

It is what a server sees, and what an audit attacks. Scoring, which moves counts, is not kept. The clients'
work is the same to the bit, whether messages are kept or not.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from fedstill.bundle import Bundle
from fedstill.engines.client import SCORE
from fedstill.files import numbered, round_stem
from fedstill.rounds import Engine, Failure, Reply

__all__ = ["Recording", "message_path", "set_back"]


def message_path(folder: Path, number: int, client: str, way: Literal["down", "up"]) -> Path:
    """Where the message of round ``number`` to (``down``) or from (``up``) ``client`` is kept."""
    return folder / round_stem(number) / f"{client}.{way}.safetensors"


def set_back(folder: Path, done: int) -> None:
    """Remove the messages of rounds above ``done``, which are done again."""
    for number in numbered(folder, ""):
        if number > done:
            shutil.rmtree(folder / round_stem(number), ignore_errors=True)


@dataclass(frozen=True)
class Recording:
    """``inner``, whose messages are kept in ``folder``. A round that is done again replaces what it left.

    A reply that is no Bundle's file to be (a number in it is none) is passed on and not kept.
    """

    inner: Engine
    folder: Path

    def clients(self) -> Sequence[str]:
        return self.inner.clients()

    def work(self, number: int, outbox: Mapping[str, Bundle], task: str) -> Iterator[Reply | Failure]:
        if task == SCORE:
            yield from self.inner.work(number, outbox, task)
            return
        for answer in self.inner.work(number, _Sent(outbox, self.folder, number), task):
            if isinstance(answer, Reply):
                with suppress(TypeError, ValueError, OverflowError):
                    answer.bundle.save(message_path(self.folder, number, answer.client, "up"))
            yield answer


@dataclass(frozen=True)
class _Sent(Mapping[str, Bundle]):
    """Messages that are kept when the engine takes them."""

    outbox: Mapping[str, Bundle]
    folder: Path
    number: int

    def __getitem__(self, client: str) -> Bundle:
        message = self.outbox[client]
        message.save(message_path(self.folder, self.number, client, "down"))
        return message

    def __iter__(self) -> Iterator[str]:
        return iter(self.outbox)

    def __len__(self) -> int:
        return len(self.outbox)
