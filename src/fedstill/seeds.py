"""Named places in a tree of random streams.

Every random number of a run comes from a :class:`Seed`: the stream at a place depends on the names that lead there and
on nothing else, neither on the order of calls nor on the process. So one more draw in one place moves no draw elsewhere,
work may be spread over processes, and a resumed run draws what the straight run would have drawn.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from torch import Generator
    from torch import device as Device

__all__ = ["Seed"]


@dataclass(frozen=True)
class Seed:
    """A named place in the tree of random streams: ``Seed.root(3).at("round", 5).at("client", "c07")``."""

    path: tuple[str, ...]

    @classmethod
    def root(cls, number: int) -> Seed:
        """The tree's root for an experiment's ``seed = number``."""
        return cls((str(number),))

    def at(self, *names: object) -> Seed:
        """The place below this one; names are compared as text, so ``at(1)`` is ``at("1")``."""
        return Seed((*self.path, *(str(name) for name in names)))

    @property
    def number(self) -> int:
        """63 bits from SHA-256 of the path; names are length-prefixed, so no two paths run together."""
        text = "".join(f"{len(name)}:{name}" for name in self.path)
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1

    def torch(self, device: str | Device = "cpu") -> Generator:
        """A fresh generator at its start; two calls give two generators of the same stream."""
        import torch

        return torch.Generator(device=device).manual_seed(self.number)

    def numpy(self) -> np.random.Generator:
        """A fresh NumPy generator at its start."""
        import numpy as np

        return np.random.default_rng(self.number)

    @contextmanager
    def scope(self, device: str | Device = "cpu") -> Iterator[None]:
        """Within it torch's global generators, of the CPU and of ``device``, draw from this place; then they are put back.

        The only place that touches a global generator: layer constructors and dropout know no other.
        """
        import torch

        place = torch.device(device)
        held = torch.get_rng_state()
        backend = {"cuda": torch.cuda, "mps": torch.mps}.get(place.type)
        held_there = None if backend is None else backend.get_rng_state()
        try:
            # not torch.manual_seed: it wakes every device of the machine
            torch.default_generator.manual_seed(self.number)
            if backend is not None:
                backend.manual_seed(self.number)
            yield
        finally:
            torch.set_rng_state(held)
            if backend is not None and held_there is not None:
                backend.set_rng_state(held_there)
