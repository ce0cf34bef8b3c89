"""What a message holds, without its values: what a policy judges by, and what a ledger keeps."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field

from fedstill.bundle import Bundle, Group

__all__ = ["Facts", "GroupFacts", "facts"]


@dataclass(frozen=True)
class GroupFacts:
    """Of one group of tensors.

    Attributes:
        tensors: how many there are.
        elements: how many values they have together.
        bytes: what these take.
        types: of the values, sorted: ``float32``.
    """

    tensors: int
    elements: int
    bytes: int
    types: tuple[str, ...]


@dataclass(frozen=True)
class Facts:
    """Of one message.

    Attributes:
        bytes: of the message as a safetensors file (:meth:`Bundle.to_bytes`), names and all. The same content may take more
            on the wire.
        sha256: of that file, in hexadecimal digits: who has kept a message can show which it was.
        groups: by name, such as ``model`` or ``synthetic:c03``.
        numbers: the named numbers themselves.
    """

    bytes: int
    sha256: str
    groups: Mapping[str, GroupFacts] = field(default_factory=dict)
    numbers: Mapping[str, float] = field(default_factory=dict)


def facts(message: Bundle) -> Facts:
    """Of ``message``, whoever sent it. Takes the room of the message twice while it works."""
    content = message.to_bytes()
    return Facts(
        # names of a stranger's may clash as a file has them, and its file be smaller than it is
        bytes=max(len(content), message.nbytes),
        sha256=hashlib.sha256(content).hexdigest(),
        groups={name: _of(group) for name, group in message.groups.items()},
        numbers=dict(message.numbers),
    )


def _of(group: Group) -> GroupFacts:
    tensors = group.values()
    return GroupFacts(
        tensors=len(group),
        elements=sum(tensor.numel() for tensor in tensors),
        bytes=sum(tensor.numel() * tensor.element_size() for tensor in tensors),
        types=tuple(sorted({str(tensor.dtype).removeprefix("torch.") for tensor in tensors})),
    )
