"""Settings as users write them: TOML in, validated values out, and every mistake answered in one sentence."""

from __future__ import annotations

import dataclasses
import json
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple, TypeVar, cast, get_args, get_type_hints

from pydantic import BaseModel, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

from fedstill.errors import InputError, suggestion

__all__ = [
    "Option",
    "differences",
    "earlier",
    "options",
    "override",
    "parse",
    "read_toml",
    "told",
    "toml_table",
    "validated",
]

T = TypeVar("T")

_LATER: Mapping[str, Any] = MappingProxyType(
    {
        "farthest": 1e6,
        "algorithm.rule": "mean",
        "algorithm.hostile": None,
        "algorithm.prior_classes": None,
        "algorithm.precision": "float32",
        "algorithm.disagreeing": "keep",
        "virtual.privacy_epsilon": None,
        "virtual.privacy_clip": None,
        "virtual.privacy_delta": 1e-5,
        "virtual.privacy_rounds": None,
    }
)
"""Settings that files may be older than, by dotted key, and what they then were."""

_BUDGET: Mapping[str, Any] = MappingProxyType(
    {
        "algorithm.privacy_epsilon": None,
        "algorithm.privacy_delta": 1e-5,
        "algorithm.privacy_clip": 1.0,
        "algorithm.privacy_rounds": None,
    }
)
"""The same of methods that had no privacy budget then, which OneShot always had."""


class Option(NamedTuple):
    """One key of a table: its name, and what it means."""

    name: str
    description: str


def options(kind: type) -> list[Option]:
    """The keys that a dataclass or a pydantic model reads, in order."""
    if issubclass(kind, BaseModel):
        return [Option(name, info.description or "") for name, info in kind.model_fields.items()]
    hints = get_type_hints(kind, include_extras=True)
    return [
        Option(
            field.name,
            next(
                (
                    note.description
                    for note in getattr(hints[field.name], "__metadata__", ())
                    if isinstance(note, FieldInfo) and note.description
                ),
                "",
            ),
        )
        for field in dataclasses.fields(cast(Any, kind))
    ]


def read_toml(path: Path) -> dict[str, Any]:
    """The table in a TOML file.

    Raises:
        InputError: the file is missing or is not TOML; with line and column.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not TOML: it is not UTF-8 text ({error.reason} at byte {error.start})") from error
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"{path} is not TOML: {error}") from error


def parse(text: str) -> Any:
    """A TOML value; text needs no quotes, so that a shell need not protect them."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def override(table: Mapping[str, Any], settings: Sequence[str]) -> dict[str, Any]:
    """``table`` with each ``a.b=VALUE`` put in; inner tables are made where they are missing.

    Raises:
        InputError: a setting is not of that form, or leads through a value that is no table.
    """
    result = json_copy(table)
    for setting in settings:
        path, equals, text = setting.partition("=")
        *outer, last = path.strip().split(".")
        if not equals or not all((*outer, last)):
            raise InputError(f"--set {setting}: write it as --set table.key=value")
        place = result
        for step in outer:
            place = place.setdefault(step, {})
            if not isinstance(place, dict):
                raise InputError(f"--set {setting}: '{step}' is no table")
        place[last] = parse(text.strip())
    return result


def json_copy(table: Mapping[str, Any]) -> dict[str, Any]:
    """A deep copy of plain values; what JSON does not know (dates, paths) becomes text."""
    copy: dict[str, Any] = json.loads(json.dumps(table, default=str))
    return copy


def validated(kind: type[T], table: Mapping[str, Any], *, where: str = "") -> T:
    """``table`` as a ``kind``: types are strict, but an integer will do for a number.

    Args:
        kind: a dataclass or a pydantic model.
        table: as TOML gives it.
        where: name of the table, for errors.

    Raises:
        InputError: an unknown key, a wrong type, a value out of range; the first of them, as ``table.key = value: reason``.
    """
    try:
        # by way of JSON: its strict mode knows that a list is the only way to write a tuple, and a table a dataclass
        found: T = _adapter(cast(Any, kind)).validate_json(json.dumps(table, default=str), strict=True)
        return found
    except ValidationError as error:
        raise InputError(_sentence(error, kind, json_copy(table), where)) from error


@lru_cache(maxsize=64)
def _adapter(kind: type[Any]) -> TypeAdapter[Any]:
    return TypeAdapter(kind)  # takes tens of milliseconds, and a sweep validates hundreds of tables


def toml_table(values: Mapping[str, Any], known: Sequence[Option]) -> Iterator[str]:
    """Lines ``key = value  # description``; a key without a value (None) is written as a comment."""
    import tomlkit

    descriptions = dict(known)
    for key, value in values.items():
        comment = f"  # {descriptions[key]}" if descriptions.get(key) else ""
        if value is None:
            yield f"# {key} ={comment}"
        else:
            yield f"{key} = {tomlkit.item(_inline(value)).as_string()}{comment}"


def _inline(value: Any) -> Any:
    import tomlkit

    if isinstance(value, Mapping):
        table = tomlkit.inline_table()
        table.update({key: _inline(inner) for key, inner in value.items() if inner is not None})
        return table
    if isinstance(value, list | tuple):
        array = tomlkit.array()
        for inner in value:
            array.append(_inline(inner))
        return array
    return value


# --- errors ------------------------------------------------------------------------------------------------------------

_PLAIN = {
    "int_type": "an integer",
    "int_from_float": "an integer",
    "float_type": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "string_type": "text in quotes",
    "tuple_type": "a list",
    "list_type": "a list",
    "set_type": "a list",
    "dict_type": "a table",
    "model_type": "a table",
    "dataclass_type": "a table",
    "dataclass_exact_type": "a table",
    "model_attributes_type": "a table",
}
_BOUNDS = {
    "greater_than_equal": ("at least", "ge"),
    "greater_than": ("above", "gt"),
    "less_than_equal": ("at most", "le"),
    "less_than": ("below", "lt"),
}
_UNKNOWN_KEY = ("extra_forbidden", "unexpected_keyword_argument")


def _sentence(error: ValidationError, kind: type, table: dict[str, Any], where: str) -> str:
    first, *others = error.errors()
    if first["type"] in _UNKNOWN_KEY:
        *outer, key = first["loc"]
        known = [option.name for option in options(_table_type(kind, outer))]
        return f"{_joined(where, (*_known_part(outer, table), key))}: no such key: {suggestion(str(key), known)}"
    if first["type"] in ("missing", "missing_argument"):
        return f"{_joined(where, first['loc'])} is missing"
    # a union reports every branch, with the branch's name in the location: the one that read furthest was meant
    place = _known_part(first["loc"], table)
    places = [(_known_part(each["loc"], table), each) for each in (first, *others)]
    place = max((found for found, _ in places if found[: len(place)] == place), key=len)
    reasons = [_reason(each) for found, each in places if found == place]
    value: Any = table
    for step in place:
        value = value[step]
    return f"{_joined(where, place)} = {_shown(value)}: must be {' or '.join(dict.fromkeys(reasons))}"


def _reason(error: Any) -> str:
    kind, context = error["type"], error.get("ctx", {})
    if kind in _PLAIN:
        return _PLAIN[kind]
    if kind in _BOUNDS:
        word, name = _BOUNDS[kind]
        return f"{word} {context[name]:g}"
    if kind == "literal_error":
        expected = str(context["expected"])
        names = re.findall(r"'([^']*)'", expected)
        if isinstance(error["input"], str) and names and "did you mean" in (hint := suggestion(error["input"], names)):
            return f"{expected}: {hint}"
        return expected
    if kind in ("too_short", "too_long"):
        bound = f"at least {context['min_length']}" if kind == "too_short" else f"at most {context['max_length']}"
        return f"a list of {bound}"
    if kind == "string_pattern_mismatch":
        return f"text that matches {context['pattern']}"
    message = str(error["msg"]).removeprefix("Value error, ")
    return re.sub(r"^Input should be ", "", message)


def _known_part(location: Sequence[int | str], table: Any) -> tuple[int | str, ...]:
    """``location`` less what is not in ``table``: names of a union's branches, and a missing key."""
    place: list[int | str] = []
    for step in location:
        inside = (isinstance(table, dict) and step in table) or (
            isinstance(table, list) and isinstance(step, int) and step < len(table)
        )
        if inside:
            place.append(step)
            table = table[step]
    return tuple(place)


def _table_type(kind: type, location: Sequence[int | str]) -> type:
    """The type that reads the table at ``location``; the nearest one above it that is a table."""
    for step in location:
        hints = get_type_hints(kind)
        if isinstance(step, int):
            continue  # a place in a list: its table's type is found already
        inner = _of_list(hints.get(str(step)))
        if not (isinstance(inner, type) and (dataclasses.is_dataclass(inner) or issubclass(inner, BaseModel))):
            break
        kind = inner
    return kind


def _of_list(hint: Any) -> Any:
    """The dataclass in ``tuple[Kind, ...] | None``, or the hint itself."""
    for each in get_args(hint):
        found = _of_list(each)
        if isinstance(found, type) and dataclasses.is_dataclass(found):
            return found
    return hint


def _joined(where: str, place: Sequence[int | str]) -> str:
    text = where
    for step in place:
        text += f"[{step}]" if isinstance(step, int) else f".{step}" if text else str(step)
    return text


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}…"


def differences(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    """``algorithm.lr (there 0.1, here 0.2)``: keys whose values differ, three of them at most; empty where none does."""
    different = [key for key in sorted(found.keys() | wanted.keys()) if found.get(key) != wanted.get(key)]
    named = ", ".join(
        f"{key} (there {_brief(found.get(key))}, here {_brief(wanted.get(key))})" for key in different[:3]
    )
    return named + (f" and {len(different) - 3} more" if len(different) > 3 else "")


def _brief(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:56]}…"


def earlier(method: Any) -> Mapping[str, Any]:
    """What settings were, by dotted key, that files of the algorithm ``method`` may be older than."""
    return _LATER if method == "oneshot" else {**_LATER, **_BUDGET}


def told(settings: Mapping[str, Any]) -> dict[str, Any]:
    """``settings`` by dotted key, less those that files may be older than and that are what they then were: a file that has one
    so and a file without it say the same."""
    later = earlier(settings.get("algorithm.name"))
    return {key: value for key, value in settings.items() if not (key in later and later[key] == value)}
