"""Secure aggregation, what its two sides have in common: the numbers that are added, and the masks that hide them.

Bonawitz, Ivanov, Kreuter, Marcedone, McMahan, Patel, Ramage, Segal, Seth, "Practical Secure Aggregation for Privacy-Preserving
Machine Learning", CCS 2017, Figure 4, for a server that is honest and curious. Of n sites that gave keys, any t can undo what
a lost one leaves behind:

    keys:    u draws two key pairs, for sealing and for masks; their public halves go to all
    shares:  u draws a seed b_u; n shares of b_u and of its masking key s_u go to the sites, sealed, t of which give them back
    masked:  y_u = x_u + PRG(b_u) + Σ_{v > u} PRG(s_uv) − Σ_{v < u} PRG(s_uv)   mod 2^64,    s_uv = agree(s_u, S_v)
    unmask:  each gives its share of b_v for every v whose y_v came, and of s_v for every other; never both

What is added, x_u, are whole numbers: for each number of the model how far it moved from what the server sent, in steps of
R / 2^31 rounded towards zero, times the site's number of images; behind them that number itself. So the mean of n_u images each,

    w + Σ n_u trunc((w_u − w) 2^31 / R) / Σ n_u · R / 2^31,

is within R / 2^31 of FedAvg's, for every number, and lies between what was sent and what came back: no variance falls below
zero. A number that moved by more than R is refused, never clipped. Integers (BatchNorm's counters) have no mean; they stay as
they were sent.

All sites are each other's neighbours. The sparse graph of Bell et al. (CCS 2020) pays with hundreds of sites;
docs/secure-aggregation.md has the numbers. Shamir's shares are Flower's (PyCryptodome's, in GF(2^128)); keys, sealing and masks
are X25519, HKDF-SHA256, ChaCha20-Poly1305 and AES-256-CTR of ``cryptography``. Flower's own masks are not used: they come from
NumPy's Mersenne Twister, whose 32-bit seed can be tried out.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import CTR
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from numpy.typing import NDArray
from torch import Tensor

from fedstill.bundle import Bundle, Group
from fedstill.engines.client import LEAST
from fedstill.errors import InputError

__all__ = [
    "BOX",
    "KEY",
    "MASKED_GROUP",
    "MOST_IMAGES",
    "RANGE",
    "SHARE",
    "STEPS",
    "About",
    "Words",
    "decoded",
    "encoded",
    "keys_of",
    "keystream",
    "octets",
    "pair_mask",
    "size_of",
    "threshold",
    "to_tensor",
    "words_of",
]

Words = NDArray[np.uint64]
"""Numbers modulo 2^64, which NumPy's arrays add as such."""

STEPS = 2**31
"""Steps that a number may move, either way."""

MOST_IMAGES = 2**32
"""Of all sites together: more, and a sum of 64 bits could run over."""

KEY, SEED = 32, 32
"""Bytes of a key, and of a seed of a mask."""

SHARE = 4 + 48
"""Bytes of a share of 32: its number, and 32 and their padding."""

BOX = 12 + 2 * SHARE + 16
"""Bytes of two shares sealed: nonce, shares, tag."""

MASKED_GROUP, RANGE = "model:masked", "range"
"""The group of a masked vector, and the number that says how far one may move."""


def threshold(sites: int) -> int:
    """t, for so many sites that gave keys: more than half, so that no two such sets are apart, of which one could be made to open
    the seed of a site and the other its key; and never fewer than :data:`LEAST`."""
    return max(LEAST, sites // 2 + 1)


@dataclass(frozen=True)
class About:
    """Which sum: keys of one are nothing in another."""

    run: str
    round: int

    def context(self, *names: str) -> bytes:
        """What a key or a seal is bound to."""
        return json.dumps(["fedstill secure sum", self.run, self.round, *names]).encode()

    def agreed(self, own: X25519PrivateKey, other: bytes, *names: str) -> bytes:
        """What two sites know and nobody else does, of 32 bytes; other ``names``, other bytes.

        Raises:
            InputError: ``other`` is no key.
        """
        try:
            shared = own.exchange(X25519PublicKey.from_public_bytes(other))
        except ValueError as error:
            raise InputError("a key is none") from error
        return HKDF(algorithm=SHA256(), length=SEED, salt=None, info=self.context(*names)).derive(shared)


def keystream(seed: bytes, size: int) -> Words:
    """PRG: ``size`` numbers that nobody can tell from chance without ``seed``, which is used once."""
    cipher = Cipher(AES(seed), CTR(bytes(16))).encryptor()
    return np.frombuffer(cipher.update(bytes(8 * size)), dtype="<u8")


def pair_mask(about: About, own: X25519PrivateKey, other: bytes, names: tuple[str, str], size: int) -> Words:
    """What the first of ``names`` adds for the second: minus what the second adds for the first.

    ``own`` is the key of either, and ``other`` the public one of the other.
    """
    first, second = sorted(names)
    mask = keystream(about.agreed(own, other, "mask", first, second), size)
    return mask if names[0] == first else -mask


def encoded(model: Group, sent: Group, examples: float, *, reach: float, sites: int) -> Words:
    """x_u.

    Args:
        model: what the site made of ``sent``.
        sent: what it got.
        examples: n_u.
        reach: R.
        sites: that may be in the sum.

    Raises:
        InputError: the numbers cannot be added; the sentence is what the server is told.
    """
    if not float(examples).is_integer() or not 1 <= examples * sites < MOST_IMAGES:
        raise InputError("its number of images cannot be part of a secure sum")
    if not _alike(model, sent):
        raise InputError("its model is not of the names, shapes and types that were sent")
    parts = [np.empty(0, dtype=np.int64)]
    for name, start in _floating(sent):
        steps = torch.trunc((model[name].double() - start.double()) * (STEPS / reach))
        if not bool((steps.abs() <= STEPS).all()):  # nor is what is no number
            raise InputError(f"its model moved by more than engine.secure_range = {reach:g} in '{name}'")
        parts.append(steps.long().flatten().numpy())
    return np.append(np.concatenate(parts) * int(examples), np.int64(examples)).view(np.uint64)


def decoded(total: Words, sent: Group, *, reach: float, sites: int) -> tuple[Group, int]:
    """The mean model of a sum of ``sites``, and the number of their images; what :func:`encoded` put in.

    Raises:
        InputError: no such sites can have made this sum.
    """
    signed = total.view(np.int64)
    examples = int(signed[-1])
    moved = signed[:-1].astype(np.float64)
    if not sites <= examples < MOST_IMAGES or np.abs(moved).max(initial=0.0) > examples * float(STEPS):
        raise InputError("the sum is none of such models: a site's message was wrong")
    mean = torch.from_numpy(moved / examples * (reach / STEPS))
    model = dict(sent)
    at = 0
    for name, start in _floating(sent):
        step = mean[at : at + start.numel()].reshape(start.shape)
        model[name] = (start.double() + step).to(start.dtype)
        at += start.numel()
    return model, examples


def size_of(sent: Group) -> int:
    """Numbers of a vector for the model that was sent."""
    return 1 + sum(start.numel() for _, start in _floating(sent))


def to_tensor(content: bytes) -> Tensor:
    """As it travels."""
    return torch.frombuffer(bytearray(content), dtype=torch.uint8)


def octets(tensor: Tensor, size: int) -> bytes:
    """What :func:`to_tensor` was given.

    Raises:
        InputError: it is something else.
    """
    if tensor.dtype != torch.uint8 or tensor.shape != (size,):
        raise InputError("a key, or what is sealed, is not of its form")
    return tensor.numpy().tobytes()


def keys_of(message: Bundle, size: int) -> dict[str, bytes]:
    """The group ``keys`` of a message, by site.

    Raises:
        InputError: one is not of ``size`` bytes.
    """
    return {name: octets(tensor, size) for name, tensor in message.groups.get("keys", {}).items()}


def words_of(message: Bundle, size: int) -> Words:
    """A masked vector that arrived.

    Raises:
        InputError: it is none, or of another size.
    """
    vector = message.groups.get(MASKED_GROUP, {}).get("sum")
    if vector is None or vector.dtype != torch.int64 or vector.shape != (size,):
        raise InputError("its sum is not of the form that was asked for")
    return vector.numpy().view(np.uint64)


def _floating(group: Group) -> Iterator[tuple[str, Tensor]]:
    """In an order that all know."""
    return ((name, group[name]) for name in sorted(group) if group[name].is_floating_point())


def _alike(model: Mapping[str, Tensor], sent: Mapping[str, Tensor]) -> bool:
    return model.keys() == sent.keys() and all(
        model[name].shape == start.shape and model[name].dtype == start.dtype for name, start in sent.items()
    )
