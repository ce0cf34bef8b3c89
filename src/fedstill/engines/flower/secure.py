"""An engine whose clients' models come as one sum: secure aggregation, the server's side. See ``sums``.

It wraps an engine that brings messages to sites and answers back, and asks them four times for one piece of ``local`` work. What
comes of it is one Reply that stands for all whose models are in the sum. A site that is lost on the way is a Failure with its
reason; where too few are left nothing is summed, and the others are Failures that did their part.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
import torch
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from flwr.common.secure_aggregation.crypto.shamir import combine_shares

from fedstill.bundle import Bundle
from fedstill.engines.client import KEYS, LEAST, LOCAL, MASKED, SHARES, UNMASK
from fedstill.engines.flower.sums import (
    BOX,
    KEY,
    RANGE,
    SEED,
    SHARE,
    About,
    Words,
    decoded,
    keys_of,
    keystream,
    pair_mask,
    size_of,
    threshold,
    to_tensor,
    words_of,
)
from fedstill.errors import InputError
from fedstill.exchange import TOGETHER, Outbox, first_answers
from fedstill.rounds import Engine, Failure, Reply

__all__ = ["SecureEngine"]

T = TypeVar("T")


class _TooFew(Exception):
    """Nothing can be summed; why, as a clause of a sentence."""


@dataclass(frozen=True)
class SecureEngine:
    """Local work as a sum; what else is asked for goes to ``inner`` as it is.

    Attributes:
        inner: brings messages to sites; they are sent the same model, all of them.
        run: by which sites know the run.
        reach: R, how far a number of the model may move.
    """

    inner: Engine
    run: str
    reach: float

    def clients(self) -> Sequence[str]:
        return self.inner.clients()

    def work(self, number: int, outbox: Mapping[str, Bundle], task: str) -> Iterator[Reply | Failure]:
        if task != LOCAL:
            yield from self.inner.work(number, outbox, task)
            return
        asked = _Exchange(self.inner, number)
        try:
            yield _summed(asked, About(self.run, number), outbox, self.reach)
        except _TooFew as few:
            yield from (asked.failed(site, str(few), able=True) for site in outbox if site not in asked.lost)
        yield from (*asked.lost.values(), *asked.spare)


@dataclass
class _Exchange:
    """Messages of one sum, who was lost on the way, answers that nobody asked for, and bytes by site."""

    inner: Engine
    number: int
    lost: dict[str, Failure] = field(default_factory=dict)
    spare: list[Failure] = field(default_factory=list)
    up: dict[str, int] = field(default_factory=dict)
    down: dict[str, int] = field(default_factory=dict)

    def ask(self, task: str, messages: Mapping[str, Bundle], read: Callable[[str, Bundle], T]) -> dict[str, T]:
        """What is read of the answers that can be used, by site in the messages' order; of each other one, ``lost`` says why."""
        found: dict[str, T] = {}
        lost = dict.fromkeys(messages, Failure("", "gave no answer"))
        for answer in first_answers(messages.keys(), self.inner.work(self.number, messages, task), self.spare):
            if isinstance(answer, Failure):
                lost[answer.client] = answer
                continue
            self.up[answer.client] = self.up.get(answer.client, 0) + answer.bundle.nbytes
            try:
                found[answer.client] = read(answer.client, answer.bundle)
            except InputError as error:
                lost[answer.client] = Failure(answer.client, str(error))
        for site in messages.keys() - found.keys():
            self.lost[site] = self.failed(site, lost[site].reason, detail=lost[site].detail)
        return {site: found[site] for site in messages if site in found}

    def beside(self, site: str, message: Bundle) -> Bundle:
        """The message, its bytes counted."""
        self.down[site] = self.down.get(site, 0) + message.nbytes
        return message

    def failed(self, site: str, reason: str, *, detail: str = "", able: bool = False) -> Failure:
        """A Failure with what was sent and came before it."""
        return Failure(site, reason, detail, able, self.up.get(site, 0), self.down.get(site, 0))


def _summed(asked: _Exchange, about: About, outbox: Mapping[str, Bundle], reach: float) -> Reply:
    """The four exchanges.

    Raises:
        _TooFew: they come to nothing.
    """
    keys = asked.ask(KEYS, {site: Bundle() for site in outbox}, _key)
    _enough(keys, LEAST)
    least = threshold(len(keys))
    told = Bundle().put({RANGE: reach}, keys={site: to_tensor(key) for site, key in keys.items()})
    sealed = asked.ask(
        SHARES,
        {site: asked.beside(site, told) for site in keys},
        lambda site, answer: _named(keys_of(answer, BOX), keys.keys() - {site}),
    )
    _enough(sealed, least)
    boxes = {
        site: Bundle().put(keys={each: to_tensor(sealed[each][site]) for each in sealed if each != site})
        for site in sealed
    }
    for site, box in boxes.items():
        asked.beside(site, box)
    sent = outbox[next(iter(sealed))].groups["model"]
    total = np.zeros(size_of(sent), dtype=np.uint64)

    def add(site: str, answer: Bundle) -> None:
        np.add(total, words_of(answer, len(total)), out=total)  # one at a time: nothing else is kept of a vector

    messages = Outbox(lambda site: outbox[site].put(keys=boxes[site].groups["keys"]), list(sealed))
    summed = asked.ask(MASKED, messages, add)
    _enough(summed, least)
    flags = Bundle().put(keys={site: torch.tensor([site in summed], dtype=torch.uint8) for site in sealed})
    # a site that is lost now is in the sum all the same
    before = dict(asked.lost)
    numbers = {site: number for number, site in enumerate(sorted(keys), start=1)}
    shares = asked.ask(
        UNMASK,
        {site: asked.beside(site, flags) for site in summed},
        lambda site, answer: _shares(answer, sealed.keys(), numbers[site]),
    )
    _enough(shares, least)
    asked.lost = before
    try:
        _unmask(total, about, keys, list(shares.values())[:least], summed.keys())
        model, examples = decoded(total, sent, reach=reach, sites=len(summed))
    except (InputError, ValueError) as error:
        raise _TooFew(f"the sum cannot be unmasked, for a site's message was wrong ({error})") from error
    return Reply(
        TOGETHER,
        Bundle().put({"examples": examples}, model=model),
        of=tuple(summed),
        up=sum(asked.up[site] for site in summed),
        down=sum(asked.down[site] for site in summed),
    )


def _unmask(
    total: Words,
    about: About,
    keys: Mapping[str, bytes],
    shares: Sequence[Mapping[str, bytes]],
    summed: Collection[str],
) -> None:
    """Take the masks out of ``total``: of each site in the sum its own, of each other one those that the sites added for it.

    Raises:
        InputError, ValueError: the shares do not come to a secret of the site.
    """
    for site in shares[0]:
        secret = combine_shares([each[site] for each in shares])
        if len(secret) != SEED:
            raise InputError(f"the shares of '{site}' come to nothing")
        if site in summed:
            np.subtract(total, keystream(secret, len(total)), out=total)
            continue
        key = X25519PrivateKey.from_private_bytes(secret)
        if key.public_key().public_bytes_raw() != keys[site][KEY:]:
            raise InputError(f"the shares of '{site}' are not of its key")
        for other in summed:
            np.subtract(total, pair_mask(about, key, keys[other][KEY:], (other, site), len(total)), out=total)


def _enough(found: Collection[str], least: int) -> None:
    if len(found) < least:
        raise _TooFew(f"a secure sum needs {least} sites here, and {len(found)} are left")


def _key(site: str, answer: Bundle) -> bytes:
    """A site's public halves. What no key can be agreed with is refused here, or it would cost all the others their part."""
    (key,) = _named(keys_of(answer, 2 * KEY), {site}).values()
    for half in (key[:KEY], key[KEY:]):
        About("", 0).agreed(X25519PrivateKey.generate(), half)
    return key


def _named(found: dict[str, bytes], wanted: Collection[str]) -> dict[str, bytes]:
    if found.keys() != set(wanted):
        raise InputError("its keys, or shares of them, are not those of the sites of the sum")
    return found


def _shares(answer: Bundle, wanted: Collection[str], number: int) -> dict[str, bytes]:
    """A site's shares, which all have its number."""
    found = _named(keys_of(answer, SHARE), wanted)
    if any(int.from_bytes(share[:4], "little") != number for share in found.values()):
        raise InputError("its shares are another site's")
    return found
