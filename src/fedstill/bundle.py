"""The one type of all that moves and all that is kept: message, server state, client memory, checkpoint.

Group names come from one table, :data:`GROUPS`, because policies and audits ask what a message *means*. A group may
carry a name of its own after a colon (``model:resnet18``, ``synthetic:c03``), so that a state can hold several.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from fedstill.errors import InputError
from fedstill.files import write_bytes

__all__ = ["GROUPS", "Bundle"]

GROUPS: Mapping[str, str] = MappingProxyType(
    {
        "model": "parameters and buffers of a network",
        "optimiser": "an optimiser's state",
        "control": "control variates (SCAFFOLD)",
        "prototypes": "class means in feature space",
        "synthetic": "synthetic images and labels",
        "latents": "latents of synthetic images",
        "gradient": "gradients",
        "statistics": "counts and moments of data, never rows",
        "keys": "public keys and shares of keys, made for one secure sum",
    }
)

Group = Mapping[str, Tensor]
_KEY = "fedstill.bundle"


@dataclass(frozen=True)
class Bundle:
    """Named groups of tensors and named numbers, immutable by convention: ``put`` gives a new one.

    Attributes:
        groups: group name → tensor name → tensor.
        numbers: name → number; may hold infinities and NaN.
    """

    groups: Mapping[str, Group] = field(default_factory=dict)
    numbers: Mapping[str, float] = field(default_factory=dict)

    def put(self, numbers: Mapping[str, float] | None = None, /, **groups: Group) -> Bundle:
        """This Bundle with groups replaced or added, and numbers merged in.

        Names with a colon go in as ``put(**{"model:resnet18": tensors})``.

        Raises:
            ValueError: a group's name is not in :data:`GROUPS`.
        """
        for name in groups:
            if name.partition(":")[0] not in GROUPS:
                raise ValueError(f"no group of Bundles is called '{name}'; known: {', '.join(GROUPS)}")
        return Bundle({**self.groups, **groups}, {**self.numbers, **(numbers or {})})

    def drop(self, *names: str) -> Bundle:
        """This Bundle without these groups; absent ones are no error."""
        return Bundle({name: group for name, group in self.groups.items() if name not in names}, self.numbers)

    def members(self, kind: str) -> dict[str, Group]:
        """Groups ``kind:NAME`` by NAME, in order."""
        return {name.partition(":")[2]: group for name, group in self.groups.items() if name.startswith(f"{kind}:")}

    @property
    def nbytes(self) -> int:
        """Payload in bytes: the tensors as they are stored, and 8 for a number."""
        tensors = (tensor for group in self.groups.values() for tensor in group.values())
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors) + 8 * len(self.numbers)

    def detached(self) -> Bundle:
        """A copy that shares no memory with this one: detached, contiguous, on the CPU.

        What crosses an engine goes through here, also in process.
        """
        return Bundle(
            {
                group: {name: _plain(tensor) for name, tensor in tensors.items()}
                for group, tensors in self.groups.items()
            },
            dict(self.numbers),
        )

    def to_bytes(self) -> bytes:
        """Safetensors; numbers travel in its metadata, exactly (Python's shortest round-trip text)."""
        flat = {
            f"{group}/{name}": _plain(tensor)
            for group, tensors in sorted(self.groups.items())
            for name, tensor in sorted(tensors.items())
        }
        empty = sorted(group for group, tensors in self.groups.items() if not tensors)
        numbers = {name: float(number) for name, number in sorted(self.numbers.items())}
        # one key: safetensors writes several in no fixed order, and equal Bundles are to give equal bytes
        return save(flat, {_KEY: json.dumps({"numbers": numbers, "empty": empty})})

    @classmethod
    def from_bytes(cls, content: bytes, *, source: str = "the message") -> Bundle:
        """Read what :meth:`to_bytes` wrote.

        Raises:
            InputError: ``content`` is damaged or not a Bundle; ``source`` names it.
        """
        try:
            flat = load(content)
            size = int.from_bytes(content[:8], "little")
            rest = json.loads(json.loads(content[8 : 8 + size])["__metadata__"][_KEY])
            numbers = {str(name): float(number) for name, number in rest["numbers"].items()}
            groups: dict[str, dict[str, Tensor]] = {str(name): {} for name in rest["empty"]}
        except (
            SafetensorError,
            KeyError,
            ValueError,
            TypeError,
            AttributeError,
            RecursionError,
            OverflowError,
        ) as error:
            raise InputError(f"{source} is damaged or was not written by fedstill ({error})") from error
        for key, tensor in flat.items():
            group, _, name = key.partition("/")
            groups.setdefault(group, {})[name] = tensor
        return cls(cast(Mapping[str, Group], groups), numbers)

    def save(self, path: Path) -> None:
        """Write to ``path``, whole or not at all."""
        write_bytes(path, self.to_bytes())

    @classmethod
    def open(cls, path: Path) -> Bundle:
        """Read from ``path``.

        Raises:
            InputError: the file is missing, damaged or not a Bundle.
        """
        try:
            content = path.read_bytes()
        except OSError as error:
            raise InputError(f"cannot read {path}: {error.strerror or error}") from error
        return cls.from_bytes(content, source=str(path))

    def finite(self) -> bool:
        """Whether every number and every floating or complex tensor is finite; what is no number at all is not."""
        tensors = (tensor for group in self.groups.values() for tensor in group.values())
        return all(map(_finite, self.numbers.values())) and all(
            # torch does not ask this of numbers of 8 bits
            bool(torch.isfinite(tensor if tensor.element_size() > 1 else tensor.float()).all())
            for tensor in tensors
            if tensor.is_floating_point() or tensor.is_complex()
        )


def _finite(number: float) -> bool:
    try:
        return math.isfinite(number)
    except (TypeError, OverflowError):  # text, or an integer beyond all floats: an engine hands over what it was sent
        return False


def _plain(tensor: Tensor) -> Tensor:
    # clone, never .cpu() alone: on a CPU that is a view, and the message would change with the model
    return tensor.detach().to("cpu").clone(memory_format=torch.contiguous_format)
