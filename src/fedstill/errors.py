"""What can go wrong, as a tree.

    FedstillError            one clear sentence: what, where, how to mend it
    ├── InputError           the user's input is wrong; nothing was lost          exit code 2
    │   └── MissingExtra     an optional package is not installed                 exit code 2
    └── RunError             the run failed; what is kept is named in the text    exit code 1
        └── Diverged         a training's numbers are no longer finite             exit code 1

The command line prints the text of these and no traceback. Everything else is a defect of fedstill and
keeps its traceback.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from difflib import get_close_matches

__all__ = [
    "Diverged",
    "FedstillError",
    "InputError",
    "MissingExtra",
    "RunError",
    "printable",
    "suggestion",
    "unknown",
]


class FedstillError(Exception):
    """Base of every error that fedstill raises on purpose."""

    exit_code = 1


class InputError(FedstillError):
    """The user's input is wrong: a file, a key, a value. Nothing was lost."""

    exit_code = 2


class MissingExtra(InputError):
    """An optional package is needed and absent.

    ``MissingExtra("datasets", extra="hub", wanted_for="data.source = 'hub'")``
    """

    def __init__(self, package: str, *, extra: str, wanted_for: str) -> None:
        super().__init__(
            f"{wanted_for} needs the package '{package}': install it with  pip install 'fedstill[{extra}]'"
        )


class RunError(FedstillError):
    """The run failed for a reason outside the user's input, such as a full disk."""


class Diverged(RunError):
    """A training's numbers are no longer finite: its step size is too large, or what it is trained on is no such thing."""


def unknown(key: str, name: str, known: Iterable[str]) -> InputError:
    """The answer to a name that nobody knows: ``model.name = 'convnt': did you mean 'convnet'?``"""
    return InputError(f"{key} = '{name}': {suggestion(name, known)}")


def suggestion(name: str, known: Iterable[str]) -> str:
    """What to write instead of ``name``: the nearest of the known, or all of them."""
    choices = sorted(known)
    close = get_close_matches(name, choices, n=1, cutoff=0.6)
    return f"did you mean '{close[0]}'?" if close else f"known: {', '.join(choices)}"


def printable(text: str, most: int = 40) -> str:
    """A stranger's text as it may stand in a sentence, a file or on a terminal: no control characters, and not too long."""
    plain = "".join(each if each.isprintable() else "?" for each in text[: most + 1])
    return plain if len(plain) <= most else f"{plain[: most - 1]}…"


def listed(names: Sequence[str], most: int = 5) -> str:
    """``'a', 'b' and 3 others``: the first of ``names``, and how many there are beside."""
    shown = ", ".join(f"'{name}'" for name in names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} others"
