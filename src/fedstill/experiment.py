"""An experiment: TOML in, frozen and validated settings, and from them the parts of a run."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

from pydantic import ConfigDict, Field, PlainValidator

from fedstill.algorithms import ALGORITHMS
from fedstill.algorithms.protection import check_deltas
from fedstill.algorithms.updates import UpdateSettings
from fedstill.algorithms.virtual import VIRTUAL, VirtualSettings
from fedstill.bundle import Bundle
from fedstill.conduct import EngineSettings, EvaluateSettings, OutputSettings, PublishedSettings
from fedstill.data.partition import Partition, PartitionSettings, partition
from fedstill.data.poison import Poisoned, PoisonSettings, plan_attack, poison
from fedstill.data.settings import DataSettings, absolute, anchored
from fedstill.data.shard import Normalisation
from fedstill.data.sources import Loaded, digest, load
from fedstill.errors import InputError
from fedstill.generators import PRIORS
from fedstill.generators.files import prior_hash
from fedstill.method import UPDATE, Method
from fedstill.models.architecture import Architecture
from fedstill.models.choice import Choice, NetworkChoice
from fedstill.rounds import CLIENT_NAME, FARTHEST, Algorithm, Desk, Site, World, check_replies, cohort_size
from fedstill.seeds import Seed
from fedstill.settings import options, override, read_toml, told, toml_table, validated
from fedstill.sites import Uses, build_sites, plan_uses
from fedstill.warm import file_hash, started_from

__all__ = ["Experiment", "Parts", "by_content", "starter"]

_DEFAULT_NAMES: Mapping[str, str] = {"model": "convnet", "algorithm": "feddgm"}
PROVENANCE = "provenance"
SWEEP = "sweep"


@dataclass(frozen=True)
class Parts:
    """What a run is made of.

    Attributes:
        algorithm: the method, ready.
        sites: data by client; one pooled site for a ceiling.
        world: network, classes, normalisation.
        data: all images as clients hold them, clean test images among them.
        partition: who holds what.
        uses: which of its rows a client trains on, chooses by and is tested on.
        cohort: clients a round, as :func:`fedstill.rounds.rounds` takes it.
        start: the server's state before the first round.
        identity: all that decides the run's results, by name: equal identities, equal results.
        seed: of all that the run draws after it began. Where images are to be private it hangs on the identity: two runs with one
            stream of noise, such as two budgets of one seed, would take it off each other.
        notes: what a user should know of the experiment, whatever its method says.
        poisoned: what became of hostile clients' images, and how their attack is measured; None where nobody was asked to be.
    """

    algorithm: Algorithm
    sites: Mapping[str, Site]
    world: World
    data: Loaded
    partition: Partition
    uses: Uses
    cohort: float | int
    start: Bundle
    identity: Mapping[str, Any]
    seed: Seed
    notes: tuple[str, ...] = ()
    poisoned: Poisoned | None = None

    def remarks(self, rounds: int) -> Sequence[str]:
        """What there is to say before a run of so many rounds; mostly nothing."""
        found: list[str] = list(self.notes)
        each: Any = self.algorithm
        while each is not None:  # what a method is wrapped in may have something to say, too
            found += getattr(each, "remarks", lambda _: ())(rounds)
            each = getattr(each, "inner", None)
        return tuple(found)


def _cohort_range(value: Any) -> Any:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InputError(f"cohort = {value!r}: must be a fraction such as 0.5, or a number of clients")
    if (isinstance(value, float) and not 0 < value <= 1) or value <= 0:
        raise InputError(f"cohort = {value}: must be above 0; a fraction such as 0.5 is at most 1.0")
    return value


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """All settings of a run."""

    __pydantic_config__ = ConfigDict(extra="forbid", allow_inf_nan=False)

    name: Annotated[
        str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9._-]{0,63}$", description="of the run; its folder is runs/<name>")
    ] = "experiment"
    seed: Annotated[int, Field(ge=0, description="of every random number")] = 0
    rounds: Annotated[int, Field(ge=1, description="number of the last round")] = 5
    cohort: Annotated[
        float | int,
        PlainValidator(_cohort_range),
        Field(description="clients asked in a round: a fraction (1.0 = all), or a number"),
    ] = 1.0
    quorum: Annotated[int, Field(ge=1, description="fewer usable replies than this leave the model as it was")] = 1
    farthest: Annotated[
        float,
        Field(
            gt=0, description="replies farther than this from what was sent, in norms of that, are refused as broken"
        ),
    ] = FARTHEST
    threads: Annotated[
        int, Field(ge=1, le=1024, description="compute threads of a piece of work; they change the last bits of a sum")
    ] = 1
    start: Annotated[
        str | None, Field(description="model file with the network to begin with; without it, one with random weights")
    ] = None
    data: DataSettings = field(default_factory=DataSettings)
    partition: PartitionSettings = field(default_factory=PartitionSettings)
    model: NetworkChoice = field(default_factory=lambda: Choice(_DEFAULT_NAMES["model"]))
    algorithm: Annotated[Method, PlainValidator(Method.parse)] = field(
        default_factory=lambda: Method.parse({"name": _DEFAULT_NAMES["algorithm"]})
    )
    virtual: VirtualSettings | None = None
    update: UpdateSettings | None = None
    poison: PoisonSettings | None = None
    engine: EngineSettings = field(default_factory=EngineSettings)
    evaluate: EvaluateSettings = field(default_factory=EvaluateSettings)
    output: OutputSettings = field(default_factory=OutputSettings)
    published: PublishedSettings = field(default_factory=PublishedSettings)

    @classmethod
    def read(cls, path: str | Path, overrides: Sequence[str] = ()) -> Experiment:
        """From a TOML file, with ``a.b=VALUE`` settings put in.

        Raises:
            InputError: the file cannot be read, is not TOML, or says something that no experiment can.
        """
        path = Path(path)
        table = read_toml(path)
        try:
            return cls.from_table(override(table, overrides))
        except InputError as error:
            raise InputError(f"{path}: {error}") from error

    @classmethod
    def from_table(cls, table: Mapping[str, Any]) -> Experiment:
        """From a table as TOML would give it. ``[provenance]``, which a run adds to its own copy, is passed over.

        Raises:
            InputError: an unknown key or name, a wrong type, a value out of range; or a ``[sweep]``, which makes several
                experiments.
        """
        if SWEEP in table:
            raise InputError("[sweep] makes several experiments of this file: they are run with  fedstill sweep")
        given = {key: value for key, value in table.items() if key != PROVENANCE}
        for key, name in _DEFAULT_NAMES.items():  # so that model.width = 32 alone is enough
            if isinstance(given.get(key), Mapping):
                given[key] = {"name": name, **given[key]}
        found = validated(cls, given)
        # the data will decide what stands here; names and options of the network can be judged without them
        options = found._architecture(channels=1, size=(32, 32), classes=2).resolved().options
        virtual = found.virtual or (VirtualSettings() if found.algorithm.makes_virtual else None)
        return replace(found, model=replace(found.model, options=options), virtual=virtual)

    def settings(self) -> dict[str, Any]:
        """All that decides the run's results, by dotted key, as plain JSON values.

        Left out are ``name``, ``rounds``, ``engine``, ``evaluate``, ``output`` and ``published``.
        """
        plain: dict[str, Any] = json.loads(
            json.dumps(
                {
                    "seed": self.seed,
                    "cohort": self.cohort,
                    "quorum": self.quorum,
                    "farthest": self.farthest,
                    "threads": self.threads,
                    **({} if self.start is None else {"start": self.start}),  # older checkpoints know no such key
                    **{f"data.{key}": value for key, value in asdict(self.data).items()},
                    **{f"partition.{key}": value for key, value in asdict(self.partition).items()},
                    **{f"model.{key}": value for key, value in self.model.flat().items()},
                    **{f"algorithm.{key}": value for key, value in self.algorithm.table().items()},
                    **{f"virtual.{key}": value for key, value in self._virtual().items()},
                    **{f"update.{key}": value for key, value in (self.update.plain() if self.update else {}).items()},
                    **{f"poison.{key}": value for key, value in (asdict(self.poison) if self.poison else {}).items()},
                }
            )
        )
        return plain

    def _virtual(self) -> dict[str, Any]:
        if self.virtual is None or not (self.virtual.use or self.algorithm.makes_virtual):
            return {}
        return asdict(self.virtual)

    def to_toml(self, provenance: Mapping[str, str] | None = None) -> str:
        """The file that :meth:`read` reads, every default written out, descriptions as comments."""
        return "\n".join(self._lines(provenance)) + "\n"

    def _lines(self, provenance: Mapping[str, str] | None) -> Iterator[str]:
        plain = {key: value for key in _SCALARS if (value := getattr(self, key)) is not None}
        yield from toml_table(plain, options(Experiment))
        yield from self._tables("data", "partition")
        yield from ("", "[model]")
        yield from toml_table(self.model.flat(), [])
        yield from ("", "[algorithm]")
        yield from toml_table(self.algorithm.table(), options(type(self.algorithm.options)))
        if self.virtual is not None:
            yield from self._tables(VIRTUAL)
        if self.update is not None:
            yield from self._tables(UPDATE)
        if self.poison is not None:
            yield from self._tables("poison")
        yield from self._tables("engine", "evaluate", "output")
        if self.published != PublishedSettings():
            yield from self._tables("published")
        if provenance is not None:
            yield from ("", f"[{PROVENANCE}]")
            yield from toml_table(provenance, [])

    def _tables(self, *names: str) -> Iterator[str]:
        for name in names:
            yield from ("", f"[{name}]")
            settings = getattr(self, name)
            yield from toml_table(asdict(settings), options(type(settings)))

    def anchored(self) -> Experiment:
        """The same with absolute paths, so that a run's own copy can be read from any folder."""
        options = self.algorithm.options
        files = {key: absolute(value) for key, value in options if _is_prior_file(value)}
        algorithm = replace(self.algorithm, options=options.model_copy(update=files))
        return replace(self, start=absolute(self.start), data=anchored(self.data), algorithm=algorithm)

    def build(self) -> Parts:
        """Load the data, deal it, build the network and the algorithm; all that can be refused is refused here.

        Raises:
            InputError: whatever of data, partition, network and algorithm does not fit together; one sentence.
        """
        if self.evaluate.gradients and not self.algorithm.may_distil:
            raise InputError(
                f"evaluate.gradients = true: '{self.algorithm.name}' makes no synthetic set whose gradient could be "
                "compared; set it to false"
            )
        self._check_private()
        root = Seed.root(self.seed)
        loaded = load(self.data, root.at("data"))
        train = loaded.train
        dealt = partition(self.partition, train, loaded.train_groups, root.at("partition"))
        world = self.world(train.classes, train.normalisation, channels=train.channels, size=train.size)
        algorithm = self.algorithm.build(world, self.virtual, self.update)
        uses = plan_uses(self.partition, loaded, dealt, root.at("validation"))
        poisoned = self._poisoned(loaded, uses, root.at("poison"))
        held = loaded if poisoned is None else replace(loaded, train=poisoned.train)
        sites = build_sites(uses, held, pooled=self.algorithm.pooled)
        check_deltas(algorithm, sites)
        cohort = 1.0 if self.algorithm.pooled else self.cohort
        start = self.beginning(algorithm, world, tuple(sites), cohort)
        setting = getattr(algorithm, "needs_validation", None)
        if setting is not None and not any(len(site.validation) for site in sites.values()):
            raise InputError(
                f"{setting}: no client keeps validation images to choose by; set partition.validation above 0"
            )
        identity = self._identity(loaded, dealt)
        return Parts(
            algorithm=algorithm,
            sites=sites,
            world=world,
            data=held,
            partition=dealt,
            uses=uses,
            cohort=cohort,
            start=start,
            identity=identity,
            seed=root.at("run")
            if self.private is None
            else root.at("run", self.private, json.dumps(identity, sort_keys=True)),
            notes=self._notes(),
            poisoned=poisoned,
        )

    @property
    def private(self) -> str | None:
        """The setting by which noise makes what clients send private; None where nothing does."""
        options = self.algorithm.options
        for key in ("privacy_epsilon", "privacy_noise"):
            if getattr(options, key, None):
                return f"algorithm.{key}"
        if self.virtual is not None and self.virtual.privacy_epsilon is not None:
            return "virtual.privacy_epsilon"
        if self.update is None or not self.update.private:
            return None
        return "update.epsilon" if self.update.noise is None else "update.noise"

    def _check_private(self) -> None:
        """Refuse what would be taken from real images beside the noise."""
        if self.private is None:
            return
        if self.evaluate.gradients:
            raise InputError(
                f"evaluate.gradients = true: it compares with gradients of real images, to which {self.private} adds no noise; "
                "set it to false"
            )
        if self.data.zca:
            raise InputError(
                f"data.zca = true: whitening is made of all training images, and {self.private} adds no noise to it; set it to "
                "false"
            )

    def _notes(self) -> tuple[str, ...]:
        if self.private is None or None not in (self.data.mean, self.data.std):
            return ()
        return (
            f"data.mean and data.std are of the training images, and {self.private} does not cover them: give public numbers",
        )

    def _poisoned(self, loaded: Loaded, uses: Uses, seed: Seed) -> Poisoned | None:
        """What hostile clients make of their images; None without ``[poison]``."""
        if self.poison is None:
            return None
        held = {client: its.train for client, its in uses.held.items()}
        return poison(plan_attack(self.poison, loaded.train, tuple(held)), loaded.train, held, loaded.test, seed)

    def world(
        self, classes: tuple[str, ...], normalisation: Normalisation, *, channels: int, size: tuple[int, int]
    ) -> World:
        """Network, classes and normalisation, for images of that form.

        Raises:
            InputError: the network is none for such images.
        """
        architecture = self._architecture(channels=channels, size=size, classes=len(classes))
        architecture.check()
        return World(architecture.resolved(), classes, normalisation)

    def beginning(self, algorithm: Algorithm, world: World, clients: tuple[str, ...], cohort: float | int) -> Bundle:
        """The server's state before the first round.

        Raises:
            InputError: the cohort, or the network to begin with, cannot be used.
        """
        check_replies(algorithm, cohort_size(cohort, clients, self.quorum))
        state = algorithm.init(clients, Desk(Seed.root(self.seed).at("run", "init"))).detached()
        if self.start is not None:
            state = started_from(state, self.start, world, from_scratch=getattr(algorithm, "from_scratch", False))
        for name in algorithm.models(state):
            if not CLIENT_NAME.fullmatch(name):
                raise InputError(f"the network '{name}' names a file: use 1 to 64 letters, digits, '.', '_' or '-'")
        return state

    def _architecture(self, *, channels: int, size: tuple[int, int], classes: int) -> Architecture:
        return Architecture(
            name=self.model.name,
            channels=channels,
            size=size,
            classes=classes,
            options=self.model.options,
            key="model",
        )

    def _identity(self, loaded: Loaded, dealt: Partition) -> dict[str, Any]:
        settings = {
            **{key: value for key, value in self.settings().items() if not key.startswith("data.")},
            "images and labels": digest(loaded),
            "who holds what": dealt.hash,
        }
        return by_content({key: value for key, value in told(settings).items() if (key, value) not in _UNTOLD})


def by_content(settings: Mapping[str, Any]) -> dict[str, Any]:
    """``settings`` by dotted key with each prior, and the network to begin with, as the hash of its file: where it lies and what
    it is called is no part of an experiment.
    """
    return {key: _by_content(key, value) for key, value in settings.items()}


def _by_content(key: str, value: Any) -> Any:
    if key == "start" and Path(value).is_file():
        return file_hash(value)
    return (
        prior_hash(value) if key.startswith("algorithm.") and (_is_prior_file(value) or _is_shipped(value)) else value
    )


_SCALARS = ("name", "seed", "rounds", "cohort", "quorum", "farthest", "threads", "start")

_UNTOLD = (("partition.test", 0.0), ("partition.parts", 1))
"""What a checkpoint does not tell: it may be older than these settings, too."""


def starter(method: str) -> Experiment:
    """Where a user begins: ``method`` on the digits that scikit-learn brings.

    Raises:
        InputError: the method is unknown.
    """
    name = method.rpartition(":")[2].lower()
    table: dict[str, Any] = {"name": f"{name}-digits", "data": {"size": 16}, "algorithm": {"name": method}}
    for key, value in (ALGORITHMS[method].starter if method in ALGORITHMS else {}).items():
        head, _, rest = key.partition(".")
        table = {**table, head: {**table.get(head, {}), rest: value} if rest else value}
    return Experiment.from_table(table)


def _is_prior_file(value: Any) -> bool:
    return isinstance(value, str) and value.endswith(".safetensors") and Path(value).is_file()


def _is_shipped(value: Any) -> bool:
    return isinstance(value, str) and value in PRIORS
