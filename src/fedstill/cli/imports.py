"""Where a user's own ``package.module:factory`` is looked for."""

from __future__ import annotations

import os
import sys

__all__ = ["look_here"]


def look_here() -> None:
    """Let the folder that fedstill is called in be searched too, after all others: no file there can hide a package.

    Only commands that read such a name call this: a console script has no business with what lies around it.
    """
    if "" not in sys.path and os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
