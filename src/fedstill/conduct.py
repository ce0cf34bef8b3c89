"""How a run is conducted and what is made of it: the tables of an experiment that never change a result."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field

__all__ = ["EngineSettings", "EvaluateSettings", "OutputSettings", "PublishedSettings"]


@dataclass(frozen=True, kw_only=True)
class EngineSettings:
    """The ``[engine]`` table: where the work is done."""

    __pydantic_config__ = ConfigDict(extra="forbid", allow_inf_nan=False)

    kind: Annotated[
        Literal["local", "flower", "sites"],
        Field(
            description="local = clients in this machine's memory; flower = Flower's simulation, on Ray; sites = real sites, "
            "served by 'fedstill server'"
        ),
    ] = "local"
    workers: Annotated[int, Field(ge=1, le=1024, description="processes that share the work")] = 1
    device: Annotated[
        Literal["auto", "cpu", "cuda", "mps"],
        Field(description="auto | cpu | cuda | mps; auto takes the best there is"),
    ] = "auto"
    timeout: Annotated[
        float | None,
        Field(gt=0, description="flower, sites: seconds from a message to its answer; without it, as long as it takes"),
    ] = None
    secure: Annotated[
        bool,
        Field(
            description="sites: the server gets to know the sum of their models and none of them (secure aggregation)"
        ),
    ] = False
    secure_range: Annotated[
        float,
        Field(
            gt=0,
            le=1e6,
            description="sites, secure: how far a number of a model may move in a round; the mean is exact to a 2^31st of it",
        ),
    ] = 64.0
    cpus: Annotated[float, Field(gt=0, description="flower: cores that Ray counts for a client")] = 1.0
    gpus: Annotated[float, Field(ge=0, description="flower: GPUs, or a share of one, that Ray gives to a client")] = 0.0
    address: Annotated[
        str | None,
        Field(description="flower: HOST:PORT of a running Ray cluster; without it Ray is started on this machine"),
    ] = None

    def remarks(self) -> Iterator[str]:
        """What is set and does nothing; no mistake, as a run of one engine is gone on with by the other."""
        idle = {"local": ("timeout", "cpus", "gpus", "address"), "sites": ("cpus", "gpus", "address")}
        for name in idle.get(self.kind, ()):
            if (value := getattr(self, name)) != self._default(name):
                yield f"engine.{name} = {value!r} does nothing with engine.kind = '{self.kind}'"
        if not self.secure and self.secure_range != self._default("secure_range"):
            yield f"engine.secure_range = {self.secure_range!r} does nothing with engine.secure = false"

    def _default(self, name: str) -> Any:
        return EngineSettings.__dataclass_fields__[name].default


@dataclass(frozen=True, kw_only=True)
class EvaluateSettings:
    """The ``[evaluate]`` table: what is measured beside the scores of every round."""

    __pydantic_config__ = ConfigDict(extra="forbid", allow_inf_nan=False)

    gradients: Annotated[
        bool,
        Field(description="compare the gradient on the synthetic union with that on all clients' images, every round"),
    ] = False


@dataclass(frozen=True, kw_only=True)
class OutputSettings:
    """The ``[output]`` table: what a run keeps, and who else hears of it."""

    __pydantic_config__ = ConfigDict(extra="forbid", allow_inf_nan=False)

    keep_synthetic: Annotated[
        int,
        Field(
            ge=1, description="rounds whose distilled sets are kept: the newest, the first, and others spread evenly"
        ),
    ] = 8
    keep_messages: Annotated[
        bool, Field(description="keep every message to and from clients, in the folder messages: for 'fedstill audit'")
    ] = False
    trackers: Annotated[
        tuple[str, ...],
        Field(description="tensorboard | mlflow | wandb, or package.module:factory; none by default"),
    ] = ()


@dataclass(frozen=True, kw_only=True)
class PublishedSettings:
    """The ``[published]`` table: figures to set the run's beside; an experiment's file has it only where it says something.

    Attributes:
        accuracy: on the common test images, by name of the model; ``average``: the mean over networks.
        clients: on clients' own test images, by client; ``average``: their unweighted mean.
    """

    __pydantic_config__ = ConfigDict(extra="forbid", allow_inf_nan=False)

    source: Annotated[str, Field(description="where they stand, such as: FedDGM, Table 1")] = ""
    accuracy: Annotated[
        Mapping[str, Annotated[float, Field(ge=0, le=1)]],
        Field(description="by model, as fractions: {resnet18 = 0.737}; average = the mean over networks"),
    ] = field(default_factory=dict)
    clients: Annotated[
        Mapping[str, Annotated[float, Field(ge=0, le=1)]],
        Field(description="on clients' own test images, by client: {MNIST = 0.971}; average = their mean"),
    ] = field(default_factory=dict)
