"""A site's part in a secure sum: what it knows after each exchange, and what it answers the next one. See ``sums``.

Every function takes what the one before it gave and the server's message, and gives what is known from then on and the answer.
The server's word is taken for which keys are whose, as in the paper's honest-but-curious setting; what else it says is looked at,
and refused with an InputError whose sentence it may know.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from flwr.common.secure_aggregation.crypto.shamir import create_shares

from fedstill.bundle import Bundle, Group
from fedstill.engines.client import LEAST
from fedstill.engines.flower.sums import (
    BOX,
    KEY,
    MASKED_GROUP,
    RANGE,
    SEED,
    SHARE,
    About,
    encoded,
    keys_of,
    keystream,
    pair_mask,
    threshold,
    to_tensor,
)
from fedstill.errors import InputError

__all__ = ["Keyed", "Masked", "Opened", "Shared", "advertised", "masked", "opened", "revealed", "shared"]

_NONCE = 12


@dataclass(frozen=True)
class Keyed:
    """After ``keys``: the site's own pairs for this sum."""

    about: About
    site: str
    sealing: X25519PrivateKey
    masking: X25519PrivateKey

    @property
    def public(self) -> bytes:
        """The public halves, one after the other."""
        return self.sealing.public_key().public_bytes_raw() + self.masking.public_key().public_bytes_raw()


@dataclass(frozen=True)
class Shared:
    """After ``shares``.

    Attributes:
        keyed: before.
        seed: b_u.
        keys: the public halves of all sites that gave some, this one among them.
        own: the site's own shares of b_u and s_u.
        reach: R.
    """

    keyed: Keyed
    seed: bytes
    keys: Mapping[str, bytes]
    own: bytes
    reach: float


@dataclass(frozen=True)
class Opened:
    """When ``masked`` was read, before the work.

    Attributes:
        shared: before.
        held: of every site whose masks may be in the sum, this one among them: its shares of seed and key, one after the other.
    """

    shared: Shared
    held: Mapping[str, bytes]


@dataclass(frozen=True)
class Masked:
    """After ``masked``: as in :class:`Opened`; what hides the site's own vector is forgotten.

    Attributes:
        site: its name.
        held: shares by site.
        least: t.
    """

    site: str
    held: Mapping[str, bytes]
    least: int


def advertised(about: About, site: str) -> tuple[Keyed, Bundle]:
    """The answer to ``keys``."""
    # from the system and not from a Seed: who knows the experiment must not know these
    keyed = Keyed(about, site, X25519PrivateKey.generate(), X25519PrivateKey.generate())
    return keyed, Bundle().put(keys={site: to_tensor(keyed.public)})


def shared(keyed: Keyed, inbox: Bundle) -> tuple[Shared, Bundle]:
    """The answer to ``shares``: the other sites' shares, each sealed for that site alone.

    Raises:
        InputError: too few sites, keys that are none or are two sites', or the site's own is not among them.
    """
    keys = keys_of(inbox, 2 * KEY)
    reach = inbox.numbers.get(RANGE, 0.0)
    if keys.get(keyed.site) != keyed.public:
        raise InputError("the keys are not those of a sum that the site is part of")
    if len(keys) < LEAST:
        raise InputError(f"a secure sum is of {LEAST} sites or more, and {len(keys)} gave keys")
    if len({key[part : part + KEY] for key in keys.values() for part in (0, KEY)}) < 2 * len(keys):
        raise InputError("two sites have the same key")
    if not 0 < reach < float("inf"):
        raise InputError("the server does not say how far a model may move")
    seed, sites = secrets.token_bytes(SEED), sorted(keys)
    least = threshold(len(sites))
    both = zip(
        *(create_shares(each, least, len(sites)) for each in (seed, keyed.masking.private_bytes_raw())), strict=True
    )
    shares = {site: of_seed + of_key for site, (of_seed, of_key) in zip(sites, both, strict=True)}
    sealed = {site: to_tensor(_seal(keyed, site, keys[site], shares[site])) for site in sites if site != keyed.site}
    return Shared(keyed, seed, keys, shares[keyed.site], reach), Bundle().put(keys=sealed)


def opened(before: Shared, inbox: Bundle) -> Opened:
    """What ``masked`` brings beside the model: the other sites' shares.

    Raises:
        InputError: they are of too few sites, of others than gave keys, or not sealed by these for this site.
    """
    boxes = keys_of(inbox, BOX)
    site = before.keyed.site
    if strange := boxes.keys() - (before.keys.keys() - {site}):
        raise InputError(f"shares came for {len(strange)} sites that are not part of the sum")
    if len(boxes) + 1 < threshold(len(before.keys)):
        raise InputError(f"shares came of {len(boxes)} other sites, which are too few")
    held = {name: _open(before.keyed, name, before.keys[name], box) for name, box in boxes.items()}
    return Opened(before, held | {site: before.own})


def masked(before: Opened, model: Group, sent: Group, examples: float) -> tuple[Masked, Bundle]:
    """The answer to ``masked``: what the site's work made of the model that was sent, masked.

    Raises:
        InputError: it cannot be added to others'; see :func:`~fedstill.engines.flower.sums.encoded`.
    """
    keyed, keys = before.shared.keyed, before.shared.keys
    vector = encoded(model, sent, examples, reach=before.shared.reach, sites=len(keys))
    vector += keystream(before.shared.seed, len(vector))
    for other in before.held:
        if other != keyed.site:
            vector += pair_mask(keyed.about, keyed.masking, keys[other][KEY:], (keyed.site, other), len(vector))
    after = Masked(keyed.site, before.held, threshold(len(keys)))
    return after, Bundle().put(**{MASKED_GROUP: {"sum": torch.from_numpy(vector.view("int64"))}})


def revealed(before: Masked, inbox: Bundle) -> tuple[tuple[str, ...], Bundle]:
    """The answer to ``unmask``: of every site one of two shares, of its seed where it is in the sum and of its key where it is
    not; and, first, who is in the sum.

    Raises:
        InputError: too few are, other sites are named, or this one is to be none of them.
    """
    flags = {name: flag[0] for name, flag in keys_of(inbox, 1).items()}
    if flags.keys() != before.held.keys() or not flags[before.site] or not set(flags.values()) <= {0, 1}:
        raise InputError("the sum is not the one that the site took part in")
    summed = tuple(sorted(name for name, flag in flags.items() if flag))
    if len(summed) < before.least:
        raise InputError(f"the sum is of {len(summed)} sites, and {before.least} are needed")
    shares = {
        name: before.held[name][:SHARE] if flag else before.held[name][SHARE:] for name, flag in sorted(flags.items())
    }
    return summed, Bundle().put(keys={name: to_tensor(share) for name, share in shares.items()})


def _seal(keyed: Keyed, receiver: str, public: bytes, content: bytes) -> bytes:
    nonce = secrets.token_bytes(_NONCE)
    cipher = ChaCha20Poly1305(_sealing_key(keyed, receiver, public))
    return nonce + cipher.encrypt(nonce, content, keyed.about.context(keyed.site, receiver))


def _open(keyed: Keyed, sender: str, public: bytes, box: bytes) -> bytes:
    cipher = ChaCha20Poly1305(_sealing_key(keyed, sender, public))
    try:
        return cipher.decrypt(box[:_NONCE], box[_NONCE:], keyed.about.context(sender, keyed.site))
    except InvalidTag as error:
        raise InputError(f"what '{sender}' sealed for the site cannot be opened") from error


def _sealing_key(keyed: Keyed, other: str, public: bytes) -> bytes:
    return keyed.about.agreed(keyed.sealing, public[:KEY], "seal", *sorted((keyed.site, other)))
