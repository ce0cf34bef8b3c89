"""Tables of choices: a name stands for an import string, so that reading a table imports nothing.

A name that holds a colon is a user's own ``package.module:factory``.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

from fedstill.errors import InputError, unknown

__all__ = ["resolve"]


def resolve(table: Mapping[str, str], name: str, key: str) -> Any:
    """The object that ``name`` stands for in ``table``, or the user's own ``package.module:factory``.

    ``key`` is where the user wrote the name (``model.name``); errors quote it.

    Raises:
        InputError: the name is unknown, or the module or its attribute cannot be imported.
    """
    if name in table:
        module, _, attribute = table[name].partition(":")
        return getattr(importlib.import_module(module), attribute)
    if ":" not in name:
        raise unknown(key, name, table)
    module, _, attribute = name.partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise InputError(
            f"{key} = '{name}': cannot import it ({error}); it reads package.module:factory, "
            "and the module must be importable from where fedstill runs"
        ) from error
