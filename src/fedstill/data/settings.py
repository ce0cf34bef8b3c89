"""The ``[data]`` table of an experiment, and the paths in it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

from pydantic import ConfigDict, Field

from fedstill.errors import InputError

__all__ = ["DataSettings", "Domain", "absolute", "anchored", "existing", "place"]

Side = Annotated[int, Field(ge=1, le=4096)]
Row = Annotated[int, Field(ge=0)]


@dataclass(frozen=True, kw_only=True)
class Domain:
    """One ``[[data.domains]]`` table: a data set that becomes one domain. What is not here is read from ``[data]``."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    name: Annotated[
        str, Field(description="of the domain; partition.kind = 'domain' makes it the client's", min_length=1)
    ]
    source: Annotated[str, Field(description="parquet | folder | arrays | digits, or package.module:factory")] = (
        "parquet"
    )
    path: Annotated[str | None, Field(description="file or folder with the domain's training images")] = None
    test: Annotated[
        str | None,
        Field(description="file or folder with its test images; without it, data.test_fraction is set aside"),
    ] = None
    rows: Annotated[
        tuple[Row, Row] | None,
        Field(description="first and last training row to use, 0 for the first; without it, all"),
    ] = None
    test_rows: Annotated[
        tuple[Row, Row] | None, Field(description="first and last test row to use; without it, all")
    ] = None


@dataclass(frozen=True, kw_only=True)
class DataSettings:
    """The ``[data]`` table of an experiment file."""

    __pydantic_config__ = ConfigDict(extra="forbid", allow_inf_nan=False)

    source: Annotated[
        str,
        Field(description="digits | parquet | folder | arrays | imagenet | domains | hub, or package.module:factory"),
    ] = "digits"
    path: Annotated[
        str | None, Field(description="file or folder with the training images; for hub: the data set's name")
    ] = None
    test: Annotated[
        str | None, Field(description="file or folder with the test images; for hub: the test split's name")
    ] = None
    size: Annotated[
        Side | tuple[Side, Side] | None,
        Field(description="pixels to resize to: one number, or [height, width]; without it, images must agree in size"),
    ] = None
    channels: Annotated[
        Literal[1, 3] | None, Field(description="1 = grey, 3 = colour; without it, as the images are")
    ] = None
    fit: Annotated[
        Literal["stretch", "crop"],
        Field(description="stretch = resize without regard to the aspect ratio, crop = keep it and cut to the centre"),
    ] = "stretch"
    image_column: Annotated[str, Field(description="column of the pictures (parquet, hub)")] = "image"
    label_column: Annotated[str, Field(description="column of the integer labels (parquet, hub)")] = "label"
    group_column: Annotated[
        str | None, Field(description="column or array that names each row's domain or client (parquet, hub, arrays)")
    ] = None
    clients: Annotated[
        bool, Field(description="folder: the first level of folders are clients, the second classes")
    ] = False
    classes: Annotated[
        tuple[str, ...] | None,
        Field(
            description="names of all classes in order, where a site may lack some or the file names none", min_length=1
        ),
    ] = None
    domains: Annotated[
        tuple[Domain, ...] | None,
        Field(description="domains: the data sets that are joined, a table [[data.domains]] each", min_length=1),
    ] = None
    subset: Annotated[
        str | None,
        Field(
            description="hub: the data set's configuration; imagenet: immeow | imwoof | imfruit | imfood | immisc | imagenette"
        ),
    ] = None
    revision: Annotated[str | None, Field(description="hub: commit or tag, so that the data cannot change")] = None
    test_fraction: Annotated[
        float, Field(description="share of the images set aside as test where none are given", gt=0, lt=1)
    ] = 0.2
    limit: Annotated[int | None, Field(description="use so many training images, chosen by class shares", ge=1)] = None
    test_limit: Annotated[int | None, Field(description="use so many test images, chosen by class shares", ge=1)] = None
    corruptions: Annotated[
        tuple[str, ...] | None,
        Field(
            description='corrupt all images, brought to 32 x 32 in colour, as CIFAR-10-C does: fog, frost, …, or ["all"]; '
            "several become domains",
            min_length=1,
        ),
    ] = None
    severity: Annotated[int, Field(description="strength of the corruptions, 1 to 5", ge=1, le=5)] = 3
    spread: Annotated[
        Literal["copies", "shares"],
        Field(
            description="several corruptions: copies = each image under every one, shares = each image under one of them"
        ),
    ] = "copies"
    frost: Annotated[str | None, Field(description="file or folder with the textures of the corruption frost")] = None
    skip_bad: Annotated[bool, Field(description="leave unreadable images out and list them, instead of stopping")] = (
        False
    )
    mean: Annotated[
        tuple[float, ...] | None,
        Field(description="normalisation: mean a channel in 0…1; without it, that of the training images"),
    ] = None
    std: Annotated[
        tuple[Annotated[float, Field(gt=0)], ...] | None,
        Field(description="normalisation: standard deviation a channel; goes with mean"),
    ] = None
    zca: Annotated[
        bool,
        Field(
            description="whiten images by the mean and covariance of all clients' training images (MTT), instead of mean and std"
        ),
    ] = False
    zca_epsilon: Annotated[
        float, Field(description="zca: added to the covariance's eigenvalues; 0.1 as in MTT's code", ge=1e-6)
    ] = 0.1


def place(settings: DataSettings, wanted: str) -> Path:
    """``data.path``, which must exist; ``wanted`` says what it should be.

    Raises:
        InputError: it is not given, or not there.
    """
    if settings.path is None:
        raise InputError(f"data.path is missing: data.source = '{settings.source}' needs {wanted}")
    return existing(settings.path, "data.path", wanted)


def existing(text: str, key: str, wanted: str) -> Path:
    """The path ``text``, which must exist.

    Raises:
        InputError: it does not.
    """
    path = Path(text).expanduser()
    if not path.exists():
        raise InputError(f"{key} = '{text}': there is no such file or folder; it should be {wanted}")
    return path


def anchored(settings: DataSettings) -> DataSettings:
    """The same with absolute paths, so that it can be read from any folder."""
    if settings.source == "hub":
        return settings
    inner = settings.domains and tuple(
        replace(each, path=absolute(each.path), test=absolute(each.test)) for each in settings.domains
    )
    return replace(
        settings,
        path=absolute(settings.path),
        test=absolute(settings.test),
        frost=absolute(settings.frost),
        domains=inner,
    )


def absolute(path: str | None) -> str | None:
    """An absolute path where there is such a file or folder from here, else ``path`` as it is."""
    return str(Path(path).absolute()) if path is not None and Path(path).exists() else path
