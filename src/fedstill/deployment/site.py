"""A site's description, ``site.toml``, which never leaves it; and its images as the federation numbers and sizes them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Literal

from pydantic import ConfigDict, Field

from fedstill.data.classes import relabelled
from fedstill.data.partition import hold_out
from fedstill.data.settings import DataSettings, Side
from fedstill.data.shard import Normalisation, Shard
from fedstill.data.sources import Loaded, load
from fedstill.deployment.federation import Federation
from fedstill.deployment.ledger import LEDGER
from fedstill.deployment.policy import Policy
from fedstill.deployment.privacy import PrivacySettings
from fedstill.deployment.sizes import Size, size_text
from fedstill.errors import InputError
from fedstill.rounds import CLIENT_NAME, Site
from fedstill.seeds import Seed
from fedstill.settings import options, read_toml, toml_table, validated

__all__ = ["ServerSettings", "SiteData", "SiteSettings", "as_site", "load_images", "starter"]

_ELSEWHERE = ("hub", "imagenet", "domains")
"""Sources of experiments that no site has."""

_FILES = ("folder", "parquet", "arrays")

_HEADER = """\
# What this site has, and what may leave it. The file stays here; of what it says the server gets to know the name alone.
# fedstill site check FILE  says whether the site is ready. Paths are relative to the file.
"""


@dataclass(frozen=True, kw_only=True)
class SiteData:
    """The ``[data]`` table of a site: what of an experiment's it decides by itself.

    Raises:
        InputError: the source is none that a site has, or nothing is left to train on.
    """

    __pydantic_config__ = ConfigDict(extra="forbid", allow_inf_nan=False)

    source: Annotated[
        str, Field(description="folder | parquet | arrays | digits (to try it), or package.module:factory")
    ] = "folder"
    path: Annotated[str | None, Field(description="file or folder with the images; folder: one folder a class")] = None
    test: Annotated[str | None, Field(description="file or folder with test images of the site's own")] = None
    validation_fraction: Annotated[
        float, Field(description="share of the images kept out of training, to choose by", ge=0, lt=1)
    ] = 0.1
    test_fraction: Annotated[
        float, Field(description="share of the images kept out of training, to be tested on", ge=0, lt=1)
    ] = 0.0
    classes: Annotated[
        tuple[str, ...] | None,
        Field(
            description="names of the classes, in the order of their numbers, where the data name none", min_length=1
        ),
    ] = None
    image_column: Annotated[str, Field(description="parquet: column of the pictures")] = "image"
    label_column: Annotated[str, Field(description="parquet: column of the integer labels")] = "label"
    size: Annotated[
        Side | tuple[Side, Side] | None,
        Field(
            description="pixels to bring images to, where the federation does not say; one number, or [height, width]"
        ),
    ] = None
    channels: Annotated[
        Literal[1, 3] | None, Field(description="1 = grey, 3 = colour, where the federation does not say")
    ] = None
    limit: Annotated[int | None, Field(description="use so many images, chosen by class shares", ge=1)] = None
    skip_bad: Annotated[bool, Field(description="leave unreadable images out and count them, instead of stopping")] = (
        False
    )

    def __post_init__(self) -> None:
        if self.source in _ELSEWHERE:
            raise InputError(
                f"data.source = '{self.source}': a site's images lie at the site; use one of {', '.join(_FILES)}"
            )
        if self.validation_fraction + self.test_fraction >= 1:
            raise InputError(
                f"data.validation_fraction = {self.validation_fraction} and data.test_fraction = {self.test_fraction} leave "
                "nothing to train on: their sum must be below 1"
            )

    def settings(self, federation: Federation | None = None) -> DataSettings:
        """As :func:`fedstill.data.sources.load` reads it; what the site leaves open is the federation's."""
        return DataSettings(
            source=self.source,
            path=self.path,
            test=self.test,
            size=self.size or (federation.size if federation else None),
            channels=self.channels or (federation.channels if federation else None),
            fit=federation.fit if federation else "stretch",
            image_column=self.image_column,
            label_column=self.label_column,
            classes=self.classes,
            limit=self.limit,
            skip_bad=self.skip_bad,
        )

    def anchored(self, base: Path) -> SiteData:
        """The same with paths from ``base``."""
        if self.source not in _FILES:
            return self
        return replace(
            self,
            path=None if self.path is None else str(_from(base, self.path)),
            test=None if self.test is None else str(_from(base, self.test)),
        )


@dataclass(frozen=True, kw_only=True)
class ServerSettings:
    """The ``[server]`` table of a site: whom it works for."""

    __pydantic_config__ = ConfigDict(extra="forbid", allow_inf_nan=False)

    address: Annotated[str | None, Field(description="of the server, HOST:PORT", pattern=r"^.+:[0-9]{1,5}$")] = None
    authority: Annotated[
        str | None,
        Field(
            description="PEM file of the CA that signed the server's certificate; without it, those that the system trusts"
        ),
    ] = None
    key: Annotated[str | None, Field(description="the site's private key, whose public half the server has")] = None


@dataclass(frozen=True, kw_only=True)
class SiteSettings:
    """All of a site's description."""

    __pydantic_config__ = ConfigDict(extra="forbid", allow_inf_nan=False)

    name: Annotated[
        str, Field(pattern=f"^{CLIENT_NAME.pattern}$", description="of the site, as the federation knows it")
    ]
    folder: Annotated[
        str, Field(description="what the site keeps: memory between rounds, scratch, the ledger", min_length=1)
    ] = "kept"
    free: Annotated[Size, Field(description="least free space that the folder is to have")] = 1_000_000_000
    lacks: Annotated[
        tuple[str, ...], Field(description="classes of the federation of which the site knows that it has no image")
    ] = ()
    device: Annotated[
        Literal["auto", "cpu", "cuda", "mps"],
        Field(description="where the site computes; auto takes the best there is"),
    ] = "auto"
    priors: Annotated[
        tuple[str, ...],
        Field(
            description="files of generators, for experiments that want one which fedstill does not bring; found by content"
        ),
    ] = ()
    server: ServerSettings = field(default_factory=ServerSettings)
    data: SiteData = field(default_factory=SiteData)
    policy: Policy = field(default_factory=Policy)
    privacy: PrivacySettings = field(default_factory=PrivacySettings)

    @classmethod
    def read(cls, path: str | Path) -> SiteSettings:
        """From a TOML file; paths in it become absolute.

        Raises:
            InputError: the file cannot be read, is not TOML, or says something that no site can.
        """
        path = Path(path)
        table = read_toml(path)
        try:
            found = validated(cls, table)
        except InputError as error:
            raise InputError(f"{path}: {error}") from error
        base = path.absolute().parent
        server = replace(
            found.server,
            **{
                key: str(_from(base, value))
                for key in ("authority", "key")
                if (value := getattr(found.server, key)) is not None
            },
        )
        return replace(
            found,
            folder=str(_from(base, found.folder)),
            priors=tuple(str(_from(base, each)) for each in found.priors),
            server=server,
            data=found.data.anchored(base),
        )

    @property
    def ledger(self) -> Path:
        return Path(self.folder) / LEDGER

    def to_toml(self) -> str:
        """The file that :meth:`read` reads, every key with its meaning."""
        return _HEADER + "\n" + "\n".join(self._lines()) + "\n"

    def _lines(self) -> Iterator[str]:
        plain = {
            "name": self.name,
            "folder": self.folder,
            "free": size_text(self.free),
            "lacks": self.lacks,
            "device": self.device,
            "priors": self.priors,
        }
        yield from toml_table(plain, options(SiteSettings))
        yield from ("", "[server]")
        yield from toml_table(asdict(self.server), options(ServerSettings))
        yield from ("", "[data]")
        yield from toml_table(asdict(self.data), options(SiteData))
        yield from ("", "[policy]")
        policy = asdict(self.policy) | {"largest": size_text(self.policy.largest)}
        yield from toml_table(policy, options(Policy))
        yield from ("", "[privacy]")
        yield from toml_table(asdict(self.privacy), options(PrivacySettings))


def starter(name: str = "site") -> SiteSettings:
    """Where an administrator begins: a folder of images, model weights and numbers alone may leave."""
    return validated(SiteSettings, {"name": name, "data": {"path": "images"}})


def load_images(settings: SiteSettings, federation: Federation | None, seed: Seed) -> Loaded:
    """The site's images in the federation's form, under the site's own class names; ``test`` are those that it gives as such.

    Raises:
        InputError: as :func:`fedstill.data.sources.load`.
        MissingExtra: likewise.
    """
    return load(settings.data.settings(federation), seed, split=False)


def as_site(
    settings: SiteSettings, loaded: Loaded, *, classes: tuple[str, ...], normalisation: Normalisation, seed: Seed
) -> Site:
    """What the site works with: classes numbered as the federation's, shares set aside.

    The same images in the same order give the Site that a client of a simulation has, whose shares were drawn from ``seed``.

    Args:
        settings: the site's.
        loaded: by :func:`load_images`.
        classes: the federation's names, in order.
        normalisation: the federation's; the site's own would make its images another world's.
        seed: of the rows that are set aside.

    Raises:
        InputError: a class is not the federation's, or no image is left to train on.
    """
    train, given = (
        replace(relabelled(shard, classes), normalisation=normalisation) for shard in (loaded.train, loaded.test)
    )
    rows = hold_out(
        train,
        range(len(train)),
        validation=settings.data.validation_fraction,
        test=settings.data.test_fraction,
        seed=seed,
    )
    if not rows.train:
        raise InputError(f"site '{settings.name}' has no image to train on: give more images, or set fewer aside")
    return Site(
        train=train.take(rows.train),
        validation=train.take(rows.validation),
        test=Shard.join([train.take(rows.test), given]),
    )


def _from(base: Path, text: str) -> Path:
    return base / Path(text).expanduser()
