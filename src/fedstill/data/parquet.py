"""Sources in the image convention of Hugging Face: Parquet files, and any data set of its hub."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from fedstill.data.images import Picture
from fedstill.data.sources import DataSettings, Raw, Rows, checked_labels, class_names, existing, place
from fedstill.errors import InputError, MissingExtra, unknown

__all__ = ["hub", "parquet"]


def parquet(settings: DataSettings) -> Raw:
    """Parquet with a column of pictures (a struct of ``bytes`` and ``path``, or binary) and one of integer labels.

    ``path`` is a file, or a folder whose ``train*.parquet`` and ``test*.parquet`` are the splits. Class names come
    from the schema's ``huggingface`` metadata where it has them.
    """
    wanted = "a Parquet file, or a folder with train*.parquet and perhaps test*.parquet"
    path = place(settings, wanted)
    train = _files(path, "train")
    if not train:
        raise InputError(f"data.path = '{path}' holds no train*.parquet; it should be {wanted}")
    test = _files(path, "test") if path.is_dir() else []
    if settings.test is not None:
        test_path = existing(settings.test, "data.test", "a Parquet file, or a folder with test*.parquet")
        test = _files(test_path, "test")
        if not test:
            raise InputError(f"data.test = '{test_path}' holds no test*.parquet")
    splits = {_title(files): _read(files, settings) for files in (train, test) if files}
    return _raw(splits, settings, train[0].parent)


def hub(settings: DataSettings) -> Raw:
    """Any image classification data set of the Hugging Face hub, or its local copy, through ``datasets``.

    The split ``train`` is read, and as test the split ``data.test``, by default ``test`` where there is one. Code
    that a data set brings is never run, and no usage is reported.

    Raises:
        MissingExtra: ``datasets`` is not installed.
        InputError: the data set or the split is unknown or cannot be fetched.
    """
    if settings.path is None:
        raise InputError("data.path is missing: data.source = 'hub' needs the data set's name, such as owner/name")
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    os.environ["HF_DATASETS_TRUST_REMOTE_CODE"] = "0"
    try:
        import datasets
    except ImportError as error:
        raise MissingExtra("datasets", extra="hub", wanted_for="data.source = 'hub'") from error
    where = f"data.path = '{settings.path}'"
    datasets.disable_progress_bars()  # nothing below the command line prints
    try:
        found = datasets.load_dataset(settings.path, settings.subset, revision=settings.revision)
    except Exception as error:  # names, configurations and the network fail there with types of many packages
        raise InputError(f"{where}: the hub's data set cannot be loaded ({' '.join(str(error).split())})") from error
    if "train" not in found:
        raise InputError(f"{where} has no split 'train', but {', '.join(found)}")
    if settings.test is not None and settings.test not in found:
        raise unknown("data.test", settings.test, found)
    test = settings.test or ("test" if "test" in found else None)
    splits = {}
    for name in ("train", test):
        if name is not None:
            table = found[name].with_format("arrow")[:]
            splits[f"{settings.path}, split '{name}'"] = table.replace_schema_metadata(
                found[name].features.arrow_schema.metadata
            )
            _check_columns(table.schema, settings, f"{settings.path}, split '{name}'")
    return _raw(splits, settings, None)


def _files(path: Path, split: str) -> list[Path]:
    return sorted(path.glob(f"{split}*.parquet")) if path.is_dir() else [path]


def _title(files: Sequence[Path]) -> str:
    return str(files[0]) if len(files) == 1 else f"{files[0]} and {len(files) - 1} more"


def _read(files: Sequence[Path], settings: DataSettings) -> pa.Table:
    tables = []
    for file in files:
        try:
            _check_columns(pq.read_schema(file), settings, str(file))
            tables.append(pq.read_table(file, columns=list(_wanted(settings).values()), partitioning=None))
        except (pa.ArrowException, OSError) as error:
            raise InputError(f"{file} cannot be read as Parquet ({str(error).splitlines()[0]})") from error
    try:
        return pa.concat_tables(tables)
    except pa.ArrowException as error:
        raise InputError(f"{_title(files)}: the files' columns differ ({str(error).splitlines()[0]})") from error


def _wanted(settings: DataSettings) -> dict[str, str]:
    """Option → column."""
    columns = {"image_column": settings.image_column, "label_column": settings.label_column}
    return columns if settings.group_column is None else {**columns, "group_column": settings.group_column}


def _check_columns(schema: pa.Schema, settings: DataSettings, where: str) -> None:
    for option, column in _wanted(settings).items():
        if column not in schema.names:
            raise unknown(f"{where}: data.{option}", column, schema.names)
    kind = schema.field(settings.image_column).type
    encoded = kind.field("bytes").type if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0 else kind
    if not (pa.types.is_binary(encoded) or pa.types.is_large_binary(encoded)):
        raise InputError(
            f"{where}: column '{settings.image_column}' holds {kind}, not pictures (struct of bytes and path)"
        )


def _raw(splits: Mapping[str, pa.Table], settings: DataSettings, base: Path | None) -> Raw:
    train_name, *rest = splits
    named = {where: _class_label(table, settings.label_column) for where, table in splits.items()}
    for where in rest:
        if named[where] != named[train_name]:
            raise InputError(
                f"{where} names the classes {_brief(named[where])}, but {train_name} {_brief(named[train_name])}"
            )
    rows = [_rows(table, settings, where, base) for where, table in splits.items()]
    labels = {where: split.labels for where, split in zip(splits, rows, strict=True)}
    return Raw(rows[0], rows[1] if rest else None, class_names(settings, named[train_name], labels))


def _brief(names: tuple[str, ...] | None) -> str:
    return "not at all" if names is None else ", ".join(names)


def _rows(table: pa.Table, settings: DataSettings, where: str, base: Path | None) -> Rows:
    """``base`` is the folder that paths are relative to and stay below; None where ``datasets`` made them."""
    pictures = table.column(settings.image_column)

    def picture(row: int) -> Picture:
        value = pictures[row].as_py()
        content = value.get("bytes") if isinstance(value, dict) else value
        if isinstance(content, bytes):
            return content
        if isinstance(value, dict) and value.get("path"):
            path = Path(str(value["path"]))
            if base is not None and (path.is_absolute() or ".." in path.parts):
                raise ValueError(f"its path '{path}' leads out of the folder that the file lies in")
            return path if base is None else base / path
        raise ValueError("the row holds no picture")

    column = table.column(settings.label_column)
    if column.null_count:
        raise InputError(f"{where}: column '{settings.label_column}' lacks {column.null_count} labels")
    labels = checked_labels(column.to_numpy(), f"{where}, column '{settings.label_column}'")
    return Rows(labels, picture, lambda row: f"{where}, row {row}", _groups(table, settings.group_column, where))


def _groups(table: pa.Table, column: str | None, where: str) -> tuple[str, ...] | None:
    if column is None:
        return None
    values = table.column(column)
    if values.null_count:
        raise InputError(f"{where}: column '{column}' lacks {values.null_count} of its values")
    names = _class_label(table, column)
    if names is None or not pa.types.is_integer(values.type):
        return tuple(str(value) for value in values.to_pylist())
    numbers = checked_labels(values.to_numpy(), f"{where}, column '{column}'")
    if len(numbers) and int(numbers.max()) >= len(names):
        raise InputError(f"{where}: column '{column}' holds {int(numbers.max())}, but names {len(names)} values")
    return tuple(np.asarray(names, dtype=object)[numbers].tolist())


def _class_label(table: pa.Table, column: str) -> tuple[str, ...] | None:
    """Names of the column's values, if the schema's metadata gives any."""
    try:
        feature: Any = json.loads((table.schema.metadata or {})[b"huggingface"])["info"]["features"][column]
        names = feature["names"]
    except (KeyError, TypeError, ValueError):
        return None
    return tuple(str(name) for name in names) if isinstance(names, list) else None
