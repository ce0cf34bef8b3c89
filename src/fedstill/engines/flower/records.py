"""Bundles as Flower's records, without loss: a group is an ArrayRecord of its own name, the numbers are a MetricRecord.

What NumPy has no type for (bfloat16, float8) travels as integers of its size; a ConfigRecord names such tensors and their type.
What arrives is read without trust: no pickle, no array whose size is not that of its bytes.
"""

from __future__ import annotations

from io import BytesIO
from types import MappingProxyType
from typing import Any, cast

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from torch import Tensor

from fedstill.bundle import Bundle
from fedstill.errors import InputError

__all__ = ["from_records", "to_records"]

NUMBERS, TYPES = "numbers", "types"

_CARRIERS = MappingProxyType(
    {
        torch.bfloat16: torch.int16,
        torch.float8_e4m3fn: torch.uint8,
        torch.float8_e4m3fnuz: torch.uint8,
        torch.float8_e5m2: torch.uint8,
        torch.float8_e5m2fnuz: torch.uint8,
    }
)
_NAMED = MappingProxyType({str(kind).removeprefix("torch."): kind for kind in _CARRIERS})


def to_records(bundle: Bundle) -> RecordDict:
    """``bundle`` as records: its tensors are copied."""
    records = RecordDict()
    types: dict[str, Any] = {}
    for group, tensors in bundle.groups.items():
        arrays = {}
        for name, tensor in tensors.items():
            carrier = _CARRIERS.get(tensor.dtype)
            if carrier is not None:
                types[f"{group}/{name}"] = str(tensor.dtype).removeprefix("torch.")
                tensor = tensor.contiguous().view(carrier)
            arrays[name] = Array(tensor.detach().cpu().numpy())
        records[group] = ArrayRecord(arrays)
    # Flower takes Python's own float alone
    records[NUMBERS] = MetricRecord({name: float(number) for name, number in bundle.numbers.items()})
    records[TYPES] = ConfigRecord(types)
    return records


def from_records(records: RecordDict) -> Bundle:
    """The Bundle that :func:`to_records` made ``records`` of; config records beside its own are passed over.

    Raises:
        InputError: the records are no Bundle's, or damaged.
    """
    try:
        types = dict(records.config_records[TYPES])
        groups = {
            group: {name: _tensor(array, types.get(f"{group}/{name}")) for name, array in arrays.items()}
            for group, arrays in records.array_records.items()
        }
        numbers = {name: float(cast(float, number)) for name, number in records.metric_records[NUMBERS].items()}
    except Exception as error:  # a head is text of a stranger's, and NumPy's reader of it raises as it comes
        raise InputError(
            f"the message is damaged or was not sent by fedstill ({type(error).__name__}: {error})"
        ) from error
    return Bundle(groups, numbers)


def _tensor(array: Array, kind: Any) -> Tensor:
    if array.stype != "numpy.ndarray":
        raise ValueError(f"an array is stored as '{array.stype}'")
    # not np.load: it sets room aside for the size that the head of the message claims
    content = BytesIO(array.data)
    version = np.lib.format.read_magic(content)
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f"an array has format {version}")
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, by_columns, dtype = read(content)
    if min(shape, default=0) < 0:
        raise ValueError(f"an array has shape {shape}")
    if dtype.hasobject:
        raise ValueError("an array holds Python objects")
    values = np.frombuffer(array.data, dtype, offset=content.tell()).reshape(shape, order="F" if by_columns else "C")
    tensor = torch.from_numpy(np.array(values, order="C"))  # a copy: a message's bytes cannot be written to
    return tensor if kind is None else tensor.view(_NAMED[kind])
