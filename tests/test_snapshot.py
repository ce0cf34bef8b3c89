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
from fedstill.errors import InputError, RunError
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


@pytest.mark.parametrize("by", [pickle, dill])
@pytest.mark.parametrize("protocol", [3, 4])
def test_a_full_snapshot_is_read(tmp_path: Path, protocol: int, by: Any) -> None:
    made = {"G": official.small_network(), "D": official.discriminator(), "G_ema": official.small_network()}
    assert taken(official.dumped(made, protocol, by=by), tmp_path).class_name == "Generator"
    with pytest.raises(InputError, match=r"it holds .* in the generator"):
        taken(official.dumped({"G_ema": official.small_network(critic=official.discriminator())}, protocol), tmp_path)


def with_beside(*instructions: bytes) -> bytes:
    """A file in which these stand beside the generator."""
    head, rest = CONTENT[:2], CONTENT[2:]
    return head + b"".join(instructions) + b"0" + rest


def named(module: str, name: str) -> bytes:
    return f"c{module}\n{name}\n".encode()


@pytest.mark.parametrize(
    "name",
    ["builtins.__dict__", "typing.TypeVar", "_operator.or_", "torch.Size", "timm.models.layers.padding.pad_same"],
)
def test_what_libraries_name_is_passed_over_beside_the_generator(tmp_path: Path, name: str) -> None:
    module, _, last = name.rpartition(".")
    assert taken(with_beside(named(module, last), b")R"), tmp_path).class_name == "Generator"


@pytest.mark.parametrize(
    "name",
    [
        *("os.system", "posix.system", "nt.system", "subprocess.Popen", "sys.exit", "socket.socket", "shutil.rmtree"),
        *("builtins.eval", "builtins.exec", "builtins.open", "builtins.__import__", "builtins.compile"),
        *("importlib.import_module", "ctypes.CDLL", "torch.os.system", "torch.nn.os.system", "legacy.load"),
    ],
)
def test_what_networks_are_not_built_of_is_refused_beside_the_generator(tmp_path: Path, name: str) -> None:
    module, _, last = name.rpartition(".")
    with pytest.raises(InputError, match=name.replace(".", r"\.") + ", which is not on the list"):
        taken(with_beside(named(module, last), b")R"), tmp_path)


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def large(size: int) -> bytes:
    return b"\x8b" + struct.pack("<i", size) + b"\x7f" * size


def sets(many: int) -> bytes:
    """A list of 20000 numbers, made into a set so many times."""
    numbers = b"K\x01" * 20_000
    return named("builtins", "set") + b"q\xf00](" + numbers + b"eq\xf10](" + b"h\xf0h\xf1\x85R" * many + b"e"


@pytest.mark.parametrize(
    ("instructions", "words"),
    [
        (large(9), "more than 64 bits"),
        (b"\x8a\x09" + b"\x7f" * 9, "more than 64 bits"),
        (large(10**6), "more than 64 bits"),
        (sets(51), "sets hold more than"),
        (text("timm.x") + text("a" * 10**6) + b"\x93", "more than 200 characters"),
        (named("timm", "a" * 900), "more than 200 characters"),
        (named("dill._dill", "_load_type") + text("a" * 10**6) + b"\x85R", "more than 200 characters"),
        (named("dill._dill", "_import_module") + text("a" * 10**6) + b"\x85R", "more than 200 characters"),
        (
            named("dill._dill", "_get_attr") + named("torch", "x") + text("a" * 10**6) + b"\x86R",
            "more than 200 characters",
        ),
    ],
)
def test_what_takes_memory_or_time_without_end_is_refused(tmp_path: Path, instructions: bytes, words: str) -> None:
    with pytest.raises(InputError, match=words):
        taken(with_beside(instructions), tmp_path)


def test_whole_numbers_of_64_bits_and_some_sets_are_read(tmp_path: Path) -> None:
    assert taken(with_beside(b"\x8a\x09" + b"\xff" * 8 + b"\0"), tmp_path).class_name == "Generator"
    assert taken(with_beside(sets(49)), tmp_path).class_name == "Generator"


class Bomb:
    """Makes a file when it is called."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


Hidden = official.Made


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
    snapshot = {"G": None, "D": official.discriminator(), "G_ema": official.as_official(generator)}
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
    assert read_card(out)["classes"] == [str(label) for label in range(classes)]


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
    with pytest.raises(InputError, match=r"os\.mkdir, which is not on the list"):
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


def parameters(made: Any, *path: str) -> Any:
    for name in path:
        made = made.meta["state"]["_modules"][name]
    return made.meta["state"]["_parameters"]


def retyped(made: Any, kind: str) -> None:
    held = parameters(made, "synthesis", "L1")
    held["weight"] = held["weight"].detach().to(getattr(torch, kind))


def normed(made: Any) -> None:
    made.meta["state"]["_modules"]["mapping"].meta["state"]["_modules"]["embed"].max_norm = 1.0


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (lambda made: change(made, "synthesis", layer_names=["L0"]), "the last layer, and no other, makes the image"),
        (lambda made: change(made, "synthesis", layer_names=["L9"]), "KeyError at 'L9'"),
        (lambda made: change(made, "synthesis", layer_names=[deep(60)]), "a layer's name that is a tuple"),
        (lambda made: change(made, "synthesis", layer_names=["L1"] * 201), "layer_names"),
        (lambda made: change(made, "synthesis", "L1", in_size=deep(60)), "a tuple in place of a number"),
        (lambda made: change(made, "synthesis", "L1", in_sampling_rate=10**400), "more than 64 bits"),
        (lambda made: change(made, "synthesis", "L1", in_sampling_rate=float("inf")), "OverflowError"),
        (lambda made: change(made, "synthesis", "L1", conv_clamp=float("nan")), "clamp"),
        (lambda made: change(made, "mapping", "fc0", activation="relu"), r"mapping\.fc0\.activation is not 'lrelu'"),
        (
            lambda made: change(made, "mapping", "embed_proj", activation="linear"),
            r"embed_proj\.activation is not 'lrelu'",
        ),
        (
            lambda made: change(made, "synthesis", "L1", "affine", activation=deep(60)),
            r"L1\.affine\.activation is not 'lin",
        ),
        (
            lambda made: change(made, "synthesis", "input", "affine", activation="tanh"),
            r"input\.affine\.activation is not",
        ),
        (lambda made: change(made, "mapping", num_layers=1), r"mapping\.num_layers is not 2"),
        (lambda made: change(made, "synthesis", "input", channels=3), r"synthesis\.input\.channels is not"),
        (lambda made: change(made, "synthesis", "L1", conv_kernel=5), r"synthesis\.L1\.conv_kernel is not"),
        (lambda made: change(made, "synthesis", "L1", up_factor=8), r"synthesis\.L1\.up_factor is not"),
        (lambda made: change(made, "synthesis", "L1", padding=[deep(60)] * 4), r"synthesis\.L1\.padding is not"),
        (lambda made: normed(made), r"mapping\.embed\.max_norm is not None"),
        *(
            (lambda made, kind=kind: retyped(made, kind), f"layers.1.weight, whose numbers are {kind}")
            for kind in ("int8", "uint8", "int64", "bool")
        ),
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


@pytest.mark.parametrize("kind", [torch.float16, torch.float64])
def test_other_floating_point_numbers_are_read(tmp_path: Path, kind: torch.dtype) -> None:
    generator = small((16,), 3)
    made = official.as_official(generator)
    held = parameters(made, "synthesis", "L1")
    held["weight"] = held["weight"].detach().to(kind)
    read = convert(taken(official.dumped({"G_ema": made}), tmp_path), "it", most=10**9)
    torch.testing.assert_close(read.layers[1].weight, generator.layers[1].weight, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("place", ["snapshot._network", "official.convert", "official.save_prior"])
@pytest.mark.parametrize(
    "error",
    [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory"), RuntimeError("CUDA out of memory")],
)
def test_want_of_memory_is_answered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str, error: Exception
) -> None:
    def fails(*_: Any, **__: Any) -> None:
        raise error

    (tmp_path / "file.pkl").write_bytes(official.dumped({"G_ema": official.as_official(small((16,), 3))}))
    monkeypatch.setattr(f"fedstill.generators.{place}", fails)
    with pytest.raises(RunError, match="memory does not suffice"):
        import_prior(tmp_path / "file.pkl", tmp_path / "prior.safetensors")
    assert [each.name for each in tmp_path.iterdir()] == ["file.pkl"]


def test_other_failures_keep_their_traceback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any, **__: Any) -> None:
        raise RuntimeError("a defect")

    (tmp_path / "file.pkl").write_bytes(official.dumped({"G_ema": official.as_official(small((16,), 3))}))
    monkeypatch.setattr("fedstill.generators.official.convert", fails)
    with pytest.raises(RuntimeError, match="a defect"):
        import_prior(tmp_path / "file.pkl", tmp_path / "prior.safetensors")


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
