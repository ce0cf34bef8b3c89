"""Official pickles are read, and nothing of them is run."""

from __future__ import annotations

import contextlib
import os
import pickle
import struct
import tempfile
import types
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import dill
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import official
from fedstill.cli import invoke
from fedstill.errors import InputError
from fedstill.generators.files import load_prior, read_card
from fedstill.generators.official import convert, import_prior
from fedstill.generators.snapshot import Network, read_network
from fedstill.generators.stylegan_xl import StyleGANXL
from fedstill.generators.xl_options import plan
from fedstill.seeds import Seed


def taken(content: bytes, folder: Path, key: str = "G_ema") -> Network:
    (folder / "file.pkl").write_bytes(content)
    return read_network(folder / "file.pkl", key)


@pytest.mark.parametrize("protocol", [3, 4])
def test_what_a_network_holds_is_read(tmp_path: Path, protocol: int) -> None:
    content = official.dumped({"G": None, "G_ema": official.small_network(), "progress": {"cur_nimg": 3}}, protocol)
    network = taken(content, tmp_path)
    assert network.class_name == "Generator"
    assert network.state["layer_names"] == ["L0"]
    layer = network.state["_modules"]["L0"]
    weight = torch.arange(24.0).view(2, 3, 4).transpose(0, 1)
    assert np.array_equal(layer.state["_parameters"]["weight"], weight)
    assert not layer.state["_parameters"]["weight"].flags.writeable
    assert layer.state["_buffers"]["up_filter"] is None
    assert layer.state["_buffers"]["magnitude_ema"] == 0.5
    assert layer.state["_buffers"]["steps"].dtype == np.int64
    assert np.array_equal(layer.state["in_size"].value, [36, 36])
    assert layer.state["in_sampling_rate"] == 16.0
    assert layer.state["names"] == {"a"}
    assert network.state["_modules"]["embed"].value["_parameters"]["weight"].shape == (3, 2)


def test_what_stands_beside_it_is_passed_over_and_refused_in_it(tmp_path: Path) -> None:
    snapshot = {"D": torch.nn.ReLU(), "G_ema": official.small_network()}
    assert taken(official.dumped(snapshot), tmp_path).class_name == "Generator"
    inside = official.dumped({"G_ema": official.small_network(act=torch.nn.ReLU())})
    with pytest.raises(InputError, match=r"torch\.nn\.modules\.activation\.ReLU in the generator"):
        taken(inside, tmp_path)


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

    def __call__(self) -> None:
        """What is called may be made by a call itself."""


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
        taken(content, tmp_path)
    assert not bomb.exists()
    assert str(tmp_path / "file.pkl") in str(error.value)
    assert "\n" not in str(error.value)


def test_a_storage_that_is_read_over_and_over_is_refused(tmp_path: Path) -> None:
    _, (content,) = torch.zeros(1000)._typed_storage().__reduce__()
    storages = [Hidden(torch.storage._load_from_bytes, content) for _ in range(50)]
    with pytest.raises(InputError, match="more than once"):
        taken(inside(storages), tmp_path)


def test_a_missing_file_is_answered(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot read"):
        read_network(tmp_path / "none.pkl")


def small(sizes: tuple[int, ...], classes: int) -> StyleGANXL:
    options = plan(sizes, classes=classes, layers=4, head_layers=4, widest=6, budget=96, class_rows=5)
    with Seed.root(1).scope():
        generator = StyleGANXL(options)
    generator.track_magnitudes(Seed.root(2))
    generator.track_centres(Seed.root(3), samples=20)
    return generator


@pytest.mark.parametrize("protocol", [3, 4])
@pytest.mark.parametrize(("sizes", "classes"), [((16,), 3), ((16, 32), 3), ((16,), 0)])
def test_an_official_file_becomes_the_same_generator(
    tmp_path: Path, sizes: tuple[int, ...], classes: int, protocol: int
) -> None:
    generator = small(sizes, classes)
    snapshot = {"G": None, "D": torch.nn.ReLU(), "G_ema": official.as_official(generator)}
    (tmp_path / "file.pkl").write_bytes(official.dumped(snapshot, protocol))
    out = tmp_path / "prior.safetensors"
    assert invoke(["prior", "import", str(tmp_path / "file.pkl"), "--out", str(out)]) == 0
    read = load_prior(out)
    assert replace(read.options, class_rows=5) == generator.options  # without classes a file says nothing of them
    for name, tensor in generator.state_dict().items():
        assert torch.equal(read.state_dict()[name], tensor), name
    latent = generator.draw(torch.arange(3), Seed.root(4))
    assert torch.equal(read.render(read.draw(torch.arange(3), Seed.root(4)), 0), generator.render(latent, 0))
    assert read_card(out)["imported_from"] == "file.pkl"


def test_other_gains_are_taken_into_the_weights() -> None:
    generator = small((16,), 3)
    made = official.as_official(generator)
    projection = made.meta["state"]["_modules"]["mapping"].meta["state"]["_modules"]["embed_proj"].meta["state"]
    projection["weight_gain"] *= 3
    projection["bias_gain"] = 2.0
    with tempfile.TemporaryDirectory() as folder:
        read = convert(taken(official.dumped({"G_ema": made}), Path(folder)), "it", most=10**9)
    mine, theirs = generator.mapping.projection, read.mapping.projection
    torch.testing.assert_close(theirs.weight, 3 * mine.weight)
    torch.testing.assert_close(theirs.bias, 2 * mine.bias)


@pytest.mark.parametrize("protocol", [3, 4])
@pytest.mark.parametrize("classes", [0, 3])
def test_a_file_that_dill_wrote_becomes_the_same_generator(tmp_path: Path, classes: int, protocol: int) -> None:
    generator = small((16,), classes)
    critic = torch.nn.ReLU()
    critic.kind = types.MethodType  # dill has names of its own for types of the language
    snapshot = {"D": critic, "G_ema": official.as_official(generator)}
    read = convert(taken(official.dumped(snapshot, protocol, by=dill), tmp_path), "it", most=10**9)
    for name, tensor in generator.state_dict().items():
        assert torch.equal(read.state_dict()[name], tensor), name


def test_numpys_functions_as_older_dill_named_them_are_known(tmp_path: Path) -> None:
    module = Hidden(dill._dill._import_module, "numpy.core._multiarray_umath")
    scalar = Hidden(dill._dill._get_attr, module, "scalar")
    array = Hidden(dill._dill._get_attr, module, "_reconstruct")
    three = Hidden(scalar, np.dtype("f8"), np.float64(3).tobytes())
    state = (1, (2,), np.dtype("i8"), False, np.array([4, 4]).tobytes())
    sizes = Hidden(dill._dill._create_array, array, (np.ndarray, (0,), b"b"), state, None)
    network = taken(official.dumped({"G_ema": official.small_network(rate=three, size=sizes)}), tmp_path)
    assert network.state["rate"] == 3.0
    assert network.state["size"].value.tolist() == [4, 4]
    other = Hidden(dill._dill._get_attr, Hidden(dill._dill._import_module, "os"), "mkdir")
    with pytest.raises(InputError, match=r"os\.mkdir in the generator"):
        taken(official.dumped({"G_ema": official.small_network(x=other)}), tmp_path)


def deep(levels: int) -> tuple[Any, ...]:
    """A value of few objects that takes 2^levels steps to go through."""
    value: tuple[Any, ...] = ()
    for _ in range(levels):
        value = (value, value)
    return value


def change(part: Any, *path: str, **values: Any) -> None:
    for name in path:
        part = part.meta["state"]["_modules"][name]
    part.meta["state"].update(values)


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (lambda made: change(made, "synthesis", layer_names=["L0"]), "the last layer, and no other, makes the image"),
        (lambda made: change(made, "synthesis", layer_names=["L9"]), "KeyError at 'L9'"),
        (lambda made: change(made, "synthesis", layer_names=[deep(60)]), "a layer's name that is a tuple"),
        (lambda made: change(made, "synthesis", layer_names=["L1"] * 201), "layer_names"),
        (lambda made: change(made, "synthesis", "L1", in_size=deep(60)), "a tuple in place of a number"),
        (lambda made: change(made, "synthesis", "L1", in_sampling_rate=10**400), "OverflowError"),
        (lambda made: change(made, "synthesis", "L1", conv_clamp=float("nan")), "clamp"),
        (lambda made: change(made, "synthesis", "L1", out_size=10**9), "out_size"),
        (
            lambda made: change(
                made, "mapping", "fc0", _parameters=official.tensors(weight=torch.zeros(4, 0), bias=torch.zeros(4))
            ),
            "ZeroDivisionError",
        ),
        (
            lambda made: change(made, "mapping", "fc0", _parameters=official.tensors(weight="x", bias=torch.zeros(4))),
            "no attribute 'shape'",
        ),
        (lambda made: change(made, "synthesis", "L1", _buffers=official.tensors(magnitude_ema=3.0)), "is no tensor"),
        (lambda made: change(made, "mapping", "fc0", weight_gain=1e300), "not finite"),
        (lambda made: change(made, "synthesis", "L1", in_size=np.array([36, 35])), "no square"),
        (lambda made: change(made, "synthesis", "L1", out_sampling_rate=7.5), "no whole number"),
        (lambda made: change(made, "synthesis", "L1", out_sampling_rate=4096), "rates"),
        (lambda made: change(made, "synthesis", "L1", in_cutoff="x"), "a str in place of a number"),
        (lambda made: change(made, "synthesis", _modules=official.tensors()), "KeyError at 'input'"),
        (
            lambda made: change(made, "mapping", _buffers=official.tensors(w_avg=torch.full((3, 512), torch.nan))),
            "not finite",
        ),
        (lambda made: change(made, "mapping", _buffers=official.tensors(w_avg=torch.zeros(3, 5))), "does not fit"),
    ],
)
def test_files_that_hold_no_sound_generator_are_refused(tmp_path: Path, edit: Any, words: str) -> None:
    made = official.as_official(small((16,), 3))
    edit(made)
    (tmp_path / "file.pkl").write_bytes(official.dumped({"G_ema": made}))
    with pytest.raises(InputError, match=words):
        import_prior(tmp_path / "file.pkl", tmp_path / "prior.safetensors")
    assert [each.name for each in tmp_path.iterdir()] == ["file.pkl"]


def test_what_a_killed_import_left_is_removed(tmp_path: Path) -> None:
    (tmp_path / "file.pkl").write_bytes(official.dumped({"G_ema": official.as_official(small((16,), 3))}))
    (tmp_path / ".prior.safetensors.abc12_xy").write_bytes(b"half of it")
    import_prior(tmp_path / "file.pkl", tmp_path / "prior.safetensors")
    assert sorted(each.name for each in tmp_path.iterdir()) == ["file.pkl", "prior.safetensors"]
    with pytest.raises(InputError, match="is a folder"):
        import_prior(tmp_path / "file.pkl", tmp_path)


def test_a_link_is_not_written_through_and_other_endings_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file.pkl").write_bytes(CONTENT)
    (tmp_path / "link.safetensors").symlink_to(tmp_path / "elsewhere")
    for name, words in (("link.safetensors", "is a link"), ("prior.bin", "ends in .safetensors")):
        assert invoke(["prior", "import", str(tmp_path / "file.pkl"), "--out", str(tmp_path / name)]) == 2
        assert words in capsys.readouterr().err
    assert not (tmp_path / "elsewhere").exists()


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
        taken(bytes(content), Path(folder))
