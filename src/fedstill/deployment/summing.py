"""A site's part in secure sums, exchange by exchange: what it knows in between, and which sums it has unmasked.

What is known in between lies in this process alone, is for one sum at a time, and is taken away by the message that uses it: a
message that comes twice, or after a restart, finds nothing. Who was in the sum of a round is written down before it is unmasked.
A server that was killed may have a round done again, with the same bits; were other sites in it the second time, the difference
of the two sums would be what single ones sent.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from fedstill.bundle import Bundle
from fedstill.engines.client import KEYS, MASKED, SHARES
from fedstill.engines.flower.calls import Call
from fedstill.engines.flower.party import Keyed, Masked, Opened, Shared, advertised, masked, opened, revealed, shared
from fedstill.engines.flower.sums import About
from fedstill.errors import InputError, RunError
from fedstill.files import write_json

__all__ = ["SUMS", "Summing"]

SUMS = "sums.json"
"""Who was in the sum of each round, in a run's folder at the site."""

Known = Keyed | Shared | Masked
T = TypeVar("T", Keyed, Shared, Masked)


class Summing:
    """See the module."""

    def __init__(self, site: str) -> None:
        self._site = site
        self._known: Known | None = None
        self._about: About | None = None

    def answer(
        self, call: Call, inbox: Bundle, folder: Path, local: Callable[[Call, Bundle], Bundle | str]
    ) -> Bundle | str:
        """What a task of :data:`~fedstill.engines.client.SUM` is answered with, or why it is not, as the server may know it.

        Args:
            call: the message.
            inbox: what it holds.
            folder: of the run, at the site.
            local: the site's work, of the same message.

        Raises:
            RunError: the system refuses a file.
        """
        about = About(call.run, call.round)
        try:
            if call.task == KEYS:
                known, message = advertised(about, self._site)
                return self._keep(about, known, message)
            if call.task == SHARES:
                return self._keep(about, *shared(self._taken(about, Keyed), inbox))
            if call.task == MASKED:
                held = opened(self._taken(about, Shared), inbox)
                inbox = inbox.drop("keys")
                done = local(call, inbox)
                return done if isinstance(done, str) else self._keep(about, *_masked(held, done, inbox))
            summed, message = revealed(self._taken(about, Masked), inbox)
            _write_down(folder / SUMS, call.round, summed)
            return message
        except InputError as error:
            return str(error)

    def _taken(self, about: About, kind: type[T]) -> T:
        known, self._known = self._known, None
        if self._about != about or not isinstance(known, kind):
            raise InputError("the site holds no part of this sum: it was restarted in between, or asked out of turn")
        return known

    def _keep(self, about: About, known: Known, message: Bundle) -> Bundle:
        self._about, self._known = about, known
        return message


def _masked(held: Opened, done: Bundle, inbox: Bundle) -> tuple[Masked, Bundle]:
    if done.groups.keys() != {"model"}:
        raise InputError("the method's answer is more than a model, and is not sent in a sum")
    return masked(held, done.groups["model"], inbox.groups["model"], done.numbers["examples"])


def _write_down(path: Path, number: int, summed: tuple[str, ...]) -> None:
    """Who is in the sum of a round.

    Raises:
        InputError: others were in one of that round that was unmasked before.
        RunError: it cannot be read or written.
    """
    try:
        known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        before = known.get(str(number), list(summed))
    except (OSError, ValueError, AttributeError) as error:
        raise RunError(f"cannot read {path} ({error}): nothing is unmasked until it is put back, or removed") from error
    if before != list(summed):
        raise InputError(f"a sum of round {number} was unmasked before, of other sites")
    write_json(path, {**known, str(number): list(summed)})
