"""What a federation's experiment asks of a site, and the identity by which a site can name it.

A site brings images of its own, so of an experiment's ``[data]`` only their form and the names of the classes concern it, and of
its ``[partition]`` nothing.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from fedstill.algorithms import ALGORITHMS
from fedstill.algorithms.updates import UpdateSettings
from fedstill.data.shard import Normalisation
from fedstill.deployment.policy import NUMBERS, word_of
from fedstill.engines.client import LEAST
from fedstill.errors import InputError
from fedstill.experiment import Experiment, by_content
from fedstill.method import Method

__all__ = ["Federation", "agreed", "check_summable", "code_named", "form", "identity", "restored"]

_CONTENT = re.compile(r"[0-9a-f]{64}")

_SHARED = ("size", "channels", "fit", "classes", "mean", "std")
"""What of ``[data]`` is the same for all sites."""


@dataclass(frozen=True, kw_only=True)
class Federation:
    """What a site has to fit. What is None is not known, and not checked.

    Attributes:
        classes: names, in the order in which all count them; they differ.
        size: of every image, height and width in pixels.
        channels: 1 or 3.
        fit: how images are brought to that size.
        method: the algorithm's name.
        sends: words of a policy for what a client's answer holds, with the method's own defaults.
        may_send: words for what it also holds with some options.
        identity: of the experiment.
    """

    classes: tuple[str, ...]
    size: tuple[int, int] | None = None
    channels: Literal[1, 3] | None = None
    fit: Literal["stretch", "crop"] = "stretch"
    method: str | None = None
    sends: tuple[str, ...] = ()
    may_send: tuple[str, ...] = ()
    identity: str | None = None

    @classmethod
    def of(cls, experiment: Experiment) -> Federation:
        """Of an experiment file.

        Raises:
            InputError: it names no classes, or cannot be that of a federation.
        """
        data, method = experiment.data, experiment.algorithm
        if method.pooled:
            raise InputError(
                f"algorithm.name = '{method.name}': it pools all images on one site, which a federation is there to avoid"
            )
        if data.classes is None:
            raise InputError(
                "data.classes is missing: sites find their classes by name, so a federation's experiment lists all of them"
            )
        if experiment.private is not None:
            raise InputError(
                f"{experiment.private}: its noise comes from the run's seed, which a federation's server knows and could take it "
                "off with; leave it out, and let sites set [privacy]"
            )
        if experiment.poison is not None:
            raise InputError(
                "poison: hostile clients are for studies, on data that lie here; a federation's sites bring their own images. "
                "Leave the table out"
            )
        entry = ALGORITHMS.get(method.name)
        return cls(
            classes=data.classes,
            size=(data.size, data.size) if isinstance(data.size, int) else data.size,
            channels=data.channels,
            fit=data.fit,
            method=method.name,
            sends=() if entry is None else (*_words(entry.sends), NUMBERS),
            may_send=() if entry is None else _words(entry.may_send),
            identity=identity(agreed(experiment)),
        )


_HEADS = frozenset(
    ("seed", "cohort", "quorum", "threads", "farthest", "start", "data", "model", "algorithm", "virtual", "update")
)
"""What :func:`agreed` tells of."""


def agreed(experiment: Experiment) -> dict[str, Any]:
    """All settings that decide what is done at a site, by dotted key, as plain JSON values: what a server sends, and what
    :func:`identity` is taken of. Files (a network to begin with, a prior) are told by their content.
    """
    shared = {f"data.{key}" for key in _SHARED}
    return by_content(
        {
            key: value
            for key, value in experiment.settings().items()
            if key in shared or not key.startswith(("data.", "partition."))
        }
    )


def identity(settings: Mapping[str, Any]) -> str:
    """64 hexadecimal digits: equal for equal settings, whatever the order and the file that they were read from.

    A site takes it of the settings that arrived. The number of rounds is no part of it, as a run may be gone on with.
    """
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


def restored(settings: Mapping[str, Any], priors: Mapping[str, str]) -> Experiment:
    """The experiment that :func:`agreed` told of, as far as it concerns a site: its data and partition are not there, and the
    network that the server begins with is none of the site's.

    Args:
        settings: as they arrived.
        priors: by the SHA-256 of its content, the name or path by which a prior is had here.

    Raises:
        InputError: they are no experiment's, or name a prior that is not here.
    """
    table: dict[str, Any] = {}
    for key, value in settings.items():
        head, _, rest = key.partition(".")
        if head not in _HEADS or (head == "data" and rest not in _SHARED):
            raise InputError(f"'{key}' is no setting that concerns a site")
        if value is None or head == "start":
            continue
        if head == "algorithm" and isinstance(value, str) and _CONTENT.fullmatch(value):
            value = _prior(rest, value, priors)
        if not rest:
            table[head] = value
        elif isinstance(inner := table.setdefault(head, {}), dict):
            inner[rest] = value
    return Experiment.from_table(table)


def code_named(settings: Any) -> str | None:
    """The first text among ``settings`` by which code could be meant that is not fedstill's: any with a colon, wherever it
    stands, but for names of classes. None where there is none.
    """
    if isinstance(settings, Mapping):
        kept = {key: value for key, value in settings.items() if key != "data.classes"}
        settings = [*kept.keys(), *kept.values()]
    if isinstance(settings, list | tuple):
        return next((found for each in settings if (found := code_named(each)) is not None), None)
    return settings if isinstance(settings, str) and ":" in settings else None


def form(experiment: Experiment) -> tuple[int, tuple[int, int], Normalisation]:
    """Channels, height and width, and normalisation of all images, as a federation's experiment has to state them: nobody sees
    all images, so nobody can find them out.

    Raises:
        InputError: it does not.
    """
    data = experiment.data
    if data.zca:
        raise InputError(
            "data.zca = true: whitening is learnt from all images together, which nobody has here; set it to false"
        )
    missing = [key for key in ("size", "channels", "mean", "std") if getattr(data, key) is None]
    if data.size is None or data.channels is None or data.mean is None or data.std is None:
        raise InputError(
            f"data.{missing[0]} is missing: no party sees all images, so a federation's experiment states size, channels, mean "
            "and std (mean = [0.5], std = [0.5] will do for a start)"
        )
    if not len(data.mean) == len(data.std) == data.channels:
        raise InputError(f"data.mean and data.std: give {data.channels} numbers each, one a channel")
    size = (data.size, data.size) if isinstance(data.size, int) else data.size
    return data.channels, size, Normalisation(data.mean, data.std)


def check_summable(method: Method, asked: int, update: UpdateSettings | None = None) -> None:
    """That a sum of models is all that the server needs, and that it would hide each of them.

    Raises:
        InputError: it needs more, or too few sites are asked.
    """
    entry = ALGORITHMS.get(method.name)
    why = "fedstill does not know whether its server can do with a sum" if entry is None else entry.alone
    if why:
        raise InputError(f"engine.secure = true: '{method.name}' does not go with secure aggregation, for {why}")
    rule = getattr(method.options, "rule", "mean")
    if rule != "mean":
        raise InputError(
            f"algorithm.rule = '{rule}': it compares clients' models one by one, which engine.secure = true hides; "
            "use rule = 'mean', or set engine.secure to false"
        )
    if update is not None and update.bits is not None:
        raise InputError(
            f"update.bits = {update.bits}: sites that mask their models send whole ones, of which no code of fewer bits "
            "is left; leave it out, or set engine.secure to false"
        )
    if asked < LEAST:
        raise InputError(
            f"engine.secure = true: {asked} sites are asked in a round, and a sum hides nothing of fewer than {LEAST}; "
            "raise cohort, or set engine.secure to false"
        )


def _prior(key: str, content: str, priors: Mapping[str, str]) -> str:
    if content not in priors:
        raise InputError(
            f"algorithm.{key}: the experiment's prior (SHA-256 {content[:12]}…) is not here: put its file into priors"
        )
    return priors[content]


def _words(groups: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(word for group in groups if (word := word_of(group)) is not None)
