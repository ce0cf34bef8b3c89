"""What server and site say to each other beside a message's Bundle, in one ConfigRecord.

The server asks whether a site is ready, and for work. Each of its messages says of which run it is and with which settings, so
that a site that was restarted needs nothing of what it was told before.
"""

from __future__ import annotations

import json
import re
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from flwr.app import ConfigRecord, RecordDict

import fedstill
from fedstill.bundle import Bundle
from fedstill.engines.flower.post import CONTROL, WORK
from fedstill.engines.flower.records import from_records, to_records
from fedstill.errors import InputError, printable

__all__ = ["READY", "Attendant", "Call", "Readiness", "answering", "question", "run_facts"]

READY = "query.ready"
"""The message that asks whether a site is ready; :data:`fedstill.engines.flower.post.WORK` asks for work."""

_RUN = re.compile(r"[0-9a-f]{32}")
_LONGEST = 1_000_000
"""Letters of a run's settings, which are some thousand."""


@dataclass(frozen=True)
class Call:
    """What a server's message says of itself; read without trust.

    Attributes:
        run: 32 hexadecimal digits, which a resumed run keeps.
        experiment: the run's name.
        settings: as :func:`fedstill.deployment.federation.agreed` gives them.
        version: the server's fedstill.
        client: the site's name as the server knows it.
        round: 0 in the question whether the site is ready.
        task: what is asked for; ``ready`` in that question.
        secure: whether models are to leave sites in a sum alone.
        time: of the server's clock, seconds since 1970; None where it is not said.
    """

    run: str
    experiment: str
    settings: Mapping[str, Any]
    version: str
    client: str
    round: int
    task: str
    time: float | None
    secure: bool = False

    @classmethod
    def read(cls, content: RecordDict) -> Call:
        """Of a message.

        Raises:
            InputError: it says something else.
        """
        about: Any = content.config_records.get(CONTROL, {})
        try:
            text = {key: str(about[key]) for key in ("run", "experiment", "version", "client", "task")}
            number, clock = int(about["round"]), about.get("time")
            settings = json.loads(str(about["settings"])[:_LONGEST])
        except (KeyError, ValueError, TypeError, RecursionError) as error:
            raise InputError(f"the message does not say what it is: {error}") from error
        if not _RUN.fullmatch(text["run"]) or not 0 <= number < 10**9 or not isinstance(settings, dict):
            raise InputError("the message does not say of which run it is")
        return cls(
            settings=settings,
            round=number,
            time=clock if isinstance(clock, float) else None,
            secure=about.get("secure") is True,
            **text,
        )


@dataclass(frozen=True)
class Readiness:
    """A site's answer to :data:`READY`.

    Attributes:
        reason: why it is not ready; None where it is.
        scored: whether it has images of its own to score on.
    """

    reason: str | None
    scored: bool = False

    def to_records(self) -> RecordDict:
        """As it is sent."""
        return RecordDict({CONTROL: ConfigRecord({"reason": self.reason or "", "scored": self.scored})})

    @classmethod
    def read(cls, content: RecordDict) -> Readiness:
        """As it arrived; what says nothing is no readiness."""
        about: Any = content.config_records.get(CONTROL)
        if about is None or not isinstance(about.get("reason"), str):
            return cls("its answer cannot be read")
        return cls(printable(about["reason"], 200) or None, about.get("scored") is True)


def run_facts(run: str, experiment: str, settings: Mapping[str, Any], *, secure: bool = False) -> dict[str, str | bool]:
    """What every message of a run says, as :meth:`Call.read` reads it."""
    return {
        "run": run,
        "experiment": experiment,
        "settings": json.dumps(settings),
        "version": fedstill.__version__,
        "secure": secure,
    }


def question(facts: Mapping[str, str | bool], client: str) -> RecordDict:
    """The content of :data:`READY`."""
    about: dict[str, Any] = {**facts, "client": client, "round": 0, "task": "ready", "time": time.time()}
    return RecordDict({CONTROL: ConfigRecord(about)})


class Attendant(Protocol):
    """Who answers at a site. Nothing of it is raised but what ends the site's program."""

    def ready(self, call: Call) -> Readiness:
        """Whether the site is ready for the run."""
        ...

    def work(self, call: Call, inbox: Bundle) -> Bundle | str:
        """What the work made, or why there is nothing, as the server may know it."""
        ...

    def unread(self, why: str, told: str) -> None:
        """A message came that could not be read; ``told`` is what the server is told of it."""
        ...


def answering(attendant: Attendant) -> Callable[[str, RecordDict | None], RecordDict]:
    """The attendant's answers, as :func:`fedstill.engines.flower.node.serve` wants them."""

    def answer(kind: str, content: RecordDict | None) -> RecordDict:
        try:
            return _answer(attendant, kind, content)
        except InputError as error:
            why = told = str(error)
        except Exception:
            # what a stranger's message can trip over is not all known; it must not end the site's program
            why, told = traceback.format_exc(), "the site cannot make anything of the message"
        attendant.unread(why, told)
        return _refusal(told)

    return answer


def _answer(attendant: Attendant, kind: str, content: RecordDict | None) -> RecordDict:
    """
    Raises:
        InputError: the message cannot be read.
    """
    if content is None:
        raise InputError("it is larger than the site takes, or damaged")
    call = Call.read(content)
    if kind == READY:
        return attendant.ready(call).to_records()
    if kind != WORK:
        raise InputError(f"the site knows no message '{printable(kind)}'")
    done = attendant.work(call, from_records(content))
    if isinstance(done, str):
        return _refusal(done)
    records = to_records(done)
    records[CONTROL] = ConfigRecord({})
    return records


def _refusal(reason: str) -> RecordDict:
    return RecordDict({CONTROL: ConfigRecord({"failure": reason})})
