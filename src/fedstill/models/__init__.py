"""Networks: a table of names, and model files that say what they are. Reading the table imports no torch.

A factory takes ``channels``, ``size`` and ``classes``, which the data decide, and options of its own, all by keyword;
it gives a :class:`~fedstill.models.architecture.Network`. What it cannot take it answers with a ``ValueError``, whose
text begins with the option's name where one is at fault.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

__all__ = ["MODELS"]

MODELS: Mapping[str, str] = MappingProxyType(
    {
        "convnet": "fedstill.models.conv:convnet",
        "resnet18": "fedstill.models.resnet:resnet18",
        "resnet34": "fedstill.models.resnet:resnet34",
        "vgg11": "fedstill.models.vgg:vgg11",
        "vit": "fedstill.models.vit:vit",
    }
)
