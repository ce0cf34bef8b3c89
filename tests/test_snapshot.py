"""Official pickles are read, and nothing of them is run."""

from __future__ import annotations

import contextlib
import os
import pickle
import struct
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import official
from fedstill.errors import InputError
from fedstill.generators.snapshot import Network, read_network


def read(content: bytes, folder: Path, key: str = "G_ema") -> Network:
    (folder / "file.pkl").write_bytes(content)
    return read_network(folder / "file.pkl", key)


@pytest.mark.parametrize("protocol", [3, 4])
def test_what_a_network_holds_is_read(tmp_path: Path, protocol: int) -> None:
    content = official.dumped({"G": None, "G_ema": official.small_network(), "progress": {"cur_nimg": 3}}, protocol)
    network = read(content, tmp_path)
    assert network.class_name == "Generator"
    assert network.state["layer_names"] == ["L0"]
    layer = network.state["_modules"]["L0"]
    weight = torch.arange(24.0).view(2, 3, 4).transpose(0, 1)
    assert torch.equal(layer.state["_parameters"]["weight"], weight)
    assert layer.state["_buffers"]["up_filter"] is None
    assert layer.state["_buffers"]["magnitude_ema"] == 0.5
    assert layer.state["_buffers"]["steps"].dtype == torch.int64
    assert np.array_equal(layer.state["in_size"].value, [36, 36])
    assert layer.state["in_sampling_rate"] == 16.0
    assert layer.state["names"] == {"a"}
    assert network.state["_modules"]["embed"].value["_parameters"]["weight"].shape == (3, 2)


def test_what_stands_beside_it_is_passed_over_and_refused_in_it(tmp_path: Path) -> None:
    snapshot = {"D": torch.nn.ReLU(), "G_ema": official.small_network()}
    assert read(official.dumped(snapshot), tmp_path).class_name == "Generator"
    inside = official.dumped({"G_ema": official.small_network(act=torch.nn.ReLU())})
    with pytest.raises(InputError, match=r"torch\.nn\.modules\.activation\.ReLU in the generator"):
        read(inside, tmp_path)


class Bomb:
    """Makes a file when it is called."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


class Hidden:
    """Says of itself what it is told."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.made = function, arguments

    def __reduce__(self) -> Any:
        return self.made


def rebuilt(size: tuple[int, ...], stride: tuple[int, ...], offset: int = 0) -> Hidden:
    storage = torch.zeros(4)._typed_storage()
    return Hidden(torch._utils._rebuild_tensor_v2, storage, offset, size, stride, False, official.tensors())


def nested(change: Callable[[bytes], bytes]) -> Hidden:
    _, (content,) = torch.zeros(4)._typed_storage().__reduce__()
    storage = Hidden(torch.storage._load_from_bytes, change(content))
    return Hidden(torch._utils._rebuild_tensor_v2, storage, 0, (4,), (1,), False, official.tensors())


def inside(value: Any) -> bytes:
    return official.dumped({"G_ema": official.small_network(x=value)})


HOSTILE: dict[str, tuple[Callable[[Path], bytes], str]] = {
    "a call": (lambda bomb: inside(Bomb(bomb)), r"posix\.mkdir|nt\.mkdir"),
    "a call beside the generator": (
        lambda bomb: official.dumped({"x": Bomb(bomb), "G_ema": official.small_network()}),
        r"posix\.mkdir|nt\.mkdir",
    ),
    "eval": (lambda bomb: inside(Hidden(eval, f"__import__('os').mkdir({str(bomb)!r})")), r"builtins\.eval"),
    "getattr in the generator": (lambda bomb: inside(Hidden(getattr, "x", "y")), r"builtins\.getattr in the generator"),
    "a call in a storage": (
        lambda bomb: inside(nested(lambda _: pickle.dumps(Bomb(bomb), protocol=2))),
        r"posix\.mkdir|nt\.mkdir",
    ),
    "a zip as a storage": (lambda _: inside(nested(lambda _: b"PK\x03\x04" + bytes(60))), "damaged"),
    "a storage of another length": (lambda _: inside(nested(lambda content: content[:-4])), "not the size"),
    "a storage with more behind it": (lambda _: inside(nested(lambda content: content + b"more")), "not the size"),
    "a storage of another number": (
        lambda _: inside(nested(lambda content: content[:-24] + struct.pack("<q", 2**60) + content[-16:])),
        "not the size",
    ),
    "a storage of another type": (
        lambda _: inside(nested(lambda content: content.replace(b"FloatStorage", b"FlotsStorage"))),
        r"torch\.FlotsStorage",
    ),
    "a storage elsewhere": (
        lambda _: inside(nested(lambda content: content.replace(b"storageq", b"elsewerq"))),
        "no storage",
    ),
    "too large a shape": (lambda _: inside(rebuilt((10**6, 10**6), (10**6, 1))), "more numbers"),
    "a shape from nothing": (lambda _: inside(rebuilt((10**6,), (0,))), "more numbers"),
    "an offset beyond": (lambda _: inside(rebuilt((4,), (1,), 3)), "more numbers"),
    "an offset before": (lambda _: inside(rebuilt((4,), (1,), -1)), "shape is none"),
    "a persistent id": (lambda _: b"\x80\x04\x8c\x01xQ.", "outside itself"),
    "a textual persistent id": (lambda _: b"\x80\x03Px\n.", "PERSID"),
    "an extension code": (lambda _: b"\x80\x04\x82\x01.", "EXT1"),
    "an old instance": (lambda _: b"\x80\x03(ios\nsystem\n.", "INST"),
    "another protocol": (lambda _: pickle.dumps({"G_ema": 1}, protocol=5), "protocol 5"),
    "no generator": (lambda _: official.dumped({"G": official.small_network()}), "no 'G_ema'"),
    "a generator that is none": (lambda _: official.dumped({"G_ema": 3}), "is no network"),
    "no dictionary": (lambda _: pickle.dumps([1], protocol=4), "no 'G_ema'"),
    "more behind its end": (lambda _: inside(1) + b"x", "follow its end"),
    "objects as keys": (lambda _: inside({(1, 2): 3}), "neither text nor number"),
    "objects in an array": (lambda _: inside(np.array([{}], dtype=object)), "plain numbers"),
    "no pickle": (lambda _: b"hello", "damaged"),
    "nothing": (lambda _: b"", "damaged"),
    "half a file": (lambda _: inside(1)[:-200], "damaged"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files_are_refused_in_a_sentence_and_run_nothing(tmp_path: Path, name: str) -> None:
    make, words = HOSTILE[name]
    bomb = tmp_path / "bomb"
    content = make(bomb)
    with pytest.raises(InputError, match=words) as error:
        read(content, tmp_path)
    assert not bomb.exists()
    assert str(tmp_path / "file.pkl") in str(error.value)
    assert "\n" not in str(error.value)


def test_a_storage_that_is_read_over_and_over_is_refused(tmp_path: Path) -> None:
    _, (content,) = torch.zeros(1000)._typed_storage().__reduce__()
    storages = [Hidden(torch.storage._load_from_bytes, content) for _ in range(50)]
    with pytest.raises(InputError, match="more than once"):
        read(inside(storages), tmp_path)


def test_a_missing_file_is_answered(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot read"):
        read_network(tmp_path / "none.pkl")


CONTENT = official.dumped({"G_ema": official.small_network()}, 3)


@given(data=st.data())
@settings(max_examples=300, deadline=None)
def test_mutated_files_are_read_or_refused(data: st.DataObject) -> None:
    content = bytearray(CONTENT)
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(content) - 1))
        content[place] = data.draw(st.integers(0, 255))
    with (
        tempfile.TemporaryDirectory() as folder,
        contextlib.suppress(InputError),
    ):  # a changed number may leave a sound file
        read(bytes(content), Path(folder))
