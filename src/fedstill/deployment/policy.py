"""What a site takes part in, and what may leave it: pure functions of a policy and of what a message holds.

    [policy]
    allow = ["model weights", "numbers"]
    largest = "50 MB"
    experiments = ["9f2c…"]

Each answers with one sentence, or None where nothing stands against the message. The sentence is what the server is told, as the
reason of a Failure; so it names the kind of thing that was refused and nothing of the site's: no path, no limit, no other
permission.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Annotated, Literal, NamedTuple

from pydantic import ConfigDict, Field

from fedstill.deployment.messages import Facts
from fedstill.deployment.sizes import Size
from fedstill.engines.client import KEYS, LOCAL, MASKED, SCORE, SHARES, SUM, UNMASK
from fedstill.errors import printable

__all__ = ["NUMBERS", "SUM_SENDS", "TASKS", "WORDS", "Policy", "Word", "against_reply", "against_task", "word_of"]

NUMBERS = "numbers"
"""The word for what is in no group of tensors."""


class Word(NamedTuple):
    """A word of a policy: the group of Bundles that it stands for, and what a site gives away with it."""

    group: str
    meaning: str


WORDS: Mapping[str, Word] = MappingProxyType(
    {
        "model weights": Word(
            "model", "a network trained on the site's images: any network, FedDGM's small surrogate is one of them"
        ),
        NUMBERS: Word(
            "",
            "how many images the site has, its training loss, how many of its validation images a network gets right",
        ),
        "statistics": Word(
            "statistics",
            "scores on the site's own test images by class, which count these; how well a distillation went (OneShot)",
        ),
        "class means": Word("prototypes", "mean features of each class, and its number of images (FedProto)"),
        "control variates": Word("control", "mean gradients of the site's training (SCAFFOLD)"),
        "gradients": Word("gradient", "gradients, from which images can be guessed (FedLGD)"),
        "synthetic images": Word(
            "synthetic", "images distilled from the site's own, which may look like these (FedDM, OneShot)"
        ),
        "latents": Word("latents", "what a generator makes such images of; no method of fedstill's sends it"),
        "optimiser state": Word("optimiser", "running means of gradients; no method of fedstill's sends it"),
        "keys": Word("keys", "keys made for one secure sum, and shares of them: nothing of the site's images"),
    }
)
"""Every group that a message can have, in words; the order is that of the table in docs/sites.md."""

_BY_GROUP = {word.group: name for name, word in WORDS.items() if word.group}

TASKS = (LOCAL, SCORE, *SUM)
"""What a server may ask for."""

SUM_SENDS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {KEYS: ("keys",), SHARES: ("keys",), MASKED: ("model weights",), UNMASK: ("keys",)}
)
"""Words for what a site's part in a secure sum sends, by task; a masked model is still one."""

_SUFFIX = re.compile(
    r"[A-Za-z0-9._-][A-Za-z0-9._ -]{0,63}"
)  # never '/': names of group and tensor must not run together

Hash = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


@dataclass(frozen=True, kw_only=True)
class Policy:
    """The ``[policy]`` table of a site."""

    __pydantic_config__ = ConfigDict(extra="forbid", allow_inf_nan=False)

    allow: Annotated[
        tuple[
            Literal[
                "model weights",
                "numbers",
                "statistics",
                "class means",
                "control variates",
                "gradients",
                "synthetic images",
                "latents",
                "optimiser state",
                "keys",
            ],
            ...,
        ],
        Field(description="what may leave the site; docs/sites.md says what each word gives away"),
    ] = ("model weights", "numbers", "keys")
    largest: Annotated[Size, Field(description="a larger message is refused, in either direction: 50 MB, 1.5 GiB")] = (
        50_000_000
    )
    experiments: Annotated[
        tuple[Hash, ...],
        Field(description="identities of the experiments that the site takes part in; empty = any"),
    ] = ()
    secure: Annotated[
        bool, Field(description="the site's model leaves in a sum of several sites' alone (secure aggregation)")
    ] = False


def word_of(group: str) -> str | None:
    """The word for a group of a Bundle, such as ``synthetic:c03``; None where fedstill knows no such group."""
    kind, colon, suffix = group.partition(":")
    return None if colon and not _SUFFIX.fullmatch(suffix) else _BY_GROUP.get(kind)


def against_task(
    policy: Policy, inbox: Facts, task: str, *, experiment: str, sends: Collection[str] = ()
) -> str | None:
    """Why the site does not do ``task`` for a message that arrived; None where it may.

    Args:
        policy: the site's.
        inbox: what arrived.
        task: what the server asks for.
        experiment: identity of the experiment as the site has worked it out from the settings that arrived
            (:func:`fedstill.deployment.federation.identity`), never as the server states it.
        sends: words for what the task's answer will hold, where that is known (``Federation.sends``): what could not leave is not
            worked on.
    """
    if task not in TASKS:
        return f"the site knows no task '{printable(task)}'"
    if policy.experiments and experiment not in policy.experiments:
        return "the site's policy does not name this experiment"
    if policy.secure and task == LOCAL:
        return "the site sends its model in a sum alone: the experiment needs engine.secure = true"
    if inbox.bytes > policy.largest:
        return "the message is larger than the site's policy takes"
    if strangers := _strangers(inbox):
        return f"the message holds '{printable(strangers[0])}', which the site does not know"
    return _forbidden(policy, sends)


def against_reply(policy: Policy, reply: Facts) -> str | None:
    """Why a reply does not leave the site; None where it may."""
    if strangers := _strangers(reply):
        return f"the reply holds '{printable(strangers[0])}', which the site does not know"
    words = {word for group in reply.groups if (word := word_of(group)) is not None}
    if (forbidden := _forbidden(policy, words | ({NUMBERS} if reply.numbers else set()))) is not None:
        return forbidden
    return "the reply is larger than the site's policy lets out" if reply.bytes > policy.largest else None


def _strangers(message: Facts) -> list[str]:
    return [group for group in message.groups if word_of(group) is None]


def _forbidden(policy: Policy, words: Collection[str]) -> str | None:
    forbidden = [word for word in WORDS if word in words and word not in policy.allow]
    return f"the site's policy lets no {forbidden[0]} leave" if forbidden else None
