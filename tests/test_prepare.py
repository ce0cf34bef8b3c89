"""Originals to Parquet: every format there and back, interrupted work, and files that are not what they should be."""

from __future__ import annotations

import bz2
import gzip
import hashlib
import io
import json
import pickle
import struct
import tarfile
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from pydantic import TypeAdapter
from scipy.io import savemat

from fedstill.cli import invoke
from fedstill.data import originals
from fedstill.data import prepare as module
from fedstill.data.corruptions import CORRUPTIONS
from fedstill.data.prepare import MANIFEST, RECIPES, Recipe, Written, prepare, recipe
from fedstill.data.sources import DataSettings, Loaded, load
from fedstill.errors import InputError
from fedstill.seeds import Seed

DRAW = np.random.default_rng(0)


def known(name: str) -> Recipe:
    """The recipe for small sets: without the published numbers of images and hashes."""
    return replace(RECIPES[name], counts={}, md5={})


def run(name: str, source: Path, out: Path, **options: object) -> list[Written]:
    return list(prepare(known(name), source, out, **options))


def back(out: Path, **options: object) -> Loaded:
    return load(
        TypeAdapter(DataSettings).validate_python({"source": "parquet", "path": str(out), **options}), Seed.root(0)
    )


def fails(match: str, name: str, source: Path, out: Path, **options: object) -> None:
    with pytest.raises(InputError, match=match) as caught:
        run(name, source, out, **options)
    assert "\n" not in str(caught.value)
    assert not list(out.glob("*.parquet"))


def pixels_of(loaded: Loaded, which: str) -> np.ndarray:
    return getattr(loaded, which).images.permute(0, 2, 3, 1).numpy()


# CIFAR-10


def cifar_batches() -> dict[str, np.ndarray]:
    names = [*(f"data_batch_{number}.bin" for number in range(1, 6)), "test_batch.bin"]
    return {name: np.c_[np.arange(6) % 10, DRAW.integers(0, 256, (6, 3072))].astype(np.uint8) for name in names}


def tarball(path: Path, members: Iterable[tuple[str, bytes]]) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def test_cifar10_from_its_tar_and_from_its_folder(tmp_path: Path) -> None:
    batches = cifar_batches()
    source = tarball(
        tmp_path / "c.tar.gz", ((f"cifar-10-batches-bin/{name}", batch.tobytes()) for name, batch in batches.items())
    )
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, batch in batches.items():
        (folder / name).write_bytes(batch.tobytes())
    for number, origin in enumerate((source, folder)):
        out = tmp_path / f"out{number}"
        assert [each.rows for each in run("cifar10", origin, out)] == [30, 6]
        loaded = back(out)
        expected = batches["test_batch.bin"][:, 1:].reshape(-1, 3, 32, 32)
        assert np.array_equal(loaded.test.images.numpy(), expected)
        assert loaded.train.classes[0] == "airplane"
        assert loaded.train.labels.tolist() == list(range(6)) * 5


def test_a_pickle_is_refused_unread(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return Path.touch, (tmp_path / "sprung",)

    trap = pickle.dumps(Trap())
    source = tarball(tmp_path / "cifar-10-python.tar.gz", [("cifar-10-batches-py/data_batch_1", trap)])
    fails("is pickled, and unpickling runs whatever code.*binary version", "cifar10", source, tmp_path / "out")
    folder = tmp_path / "py"
    folder.mkdir()
    (folder / "data_batch_1").write_bytes(trap)
    fails("take the binary version", "cifar10", folder, tmp_path / "out")
    assert not (tmp_path / "sprung").exists()


def test_cifar10_mistakes(tmp_path: Path) -> None:
    out = tmp_path / "out"
    fails("no such file or folder; it should be cifar-10-binary", "cifar10", tmp_path / "none", out)
    (tmp_path / "text.tar.gz").write_bytes(b"text")
    fails("cannot be read as a tar archive", "cifar10", tmp_path / "text.tar.gz", out)
    batches = {name: batch.tobytes() for name, batch in cifar_batches().items()}
    short = tarball(tmp_path / "s.tar.gz", ({**batches, "test_batch.bin": b"12"}).items())
    fails("a batch has 2 bytes", "cifar10", short, out)
    wrong = tarball(tmp_path / "w.tar.gz", ({**batches, "test_batch.bin": b"\xff" * 3073}).items())
    fails("labels must be whole numbers from 0 to 9", "cifar10", wrong, out)
    del batches["data_batch_3.bin"]
    fails("lacks data_batch_3.bin", "cifar10", tarball(tmp_path / "l.tar.gz", batches.items()), out)
    truncated = tmp_path / "t.tar.gz"
    truncated.write_bytes(short.read_bytes()[:2000])
    fails("cannot be read as a tar archive", "cifar10", truncated, out)


def test_a_batch_of_no_batch_s_size_is_not_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(originals, "_MOST_BATCH", 3073)
    source = tarball(tmp_path / "big.tar.gz", [("test_batch.bin", bytes(6146))])
    fails("test_batch.bin has 6146 bytes, far more than a batch", "cifar10", source, tmp_path / "out")


def test_links_and_far_places_in_an_archive_are_nothing(tmp_path: Path) -> None:
    """No member is written anywhere, and a link is no batch."""
    secret = tmp_path / "secret"
    secret.write_bytes(bytes(3073))
    source = tmp_path / "links.tar.gz"
    with tarfile.open(source, "w:gz") as archive:
        for kind, name in ((tarfile.SYMTYPE, "data_batch_1.bin"), (tarfile.LNKTYPE, "b/data_batch_2.bin")):
            link = tarfile.TarInfo(name)
            link.type, link.linkname = kind, str(secret)
            archive.addfile(link)
        far = tarfile.TarInfo("../../escaped/test_batch.bin")
        far.size = 3073
        archive.addfile(far, io.BytesIO(bytes(3073)))
    fails("lacks data_batch_1.bin", "cifar10", source, tmp_path / "out")
    assert not list(tmp_path.parent.rglob("escaped"))


@pytest.mark.parametrize("packing", ["w", "w:gz", "w:bz2", "w:xz"])
def test_an_archive_that_unpacks_to_too_much_is_left(
    packing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(originals, "_MOST_TAR", 2**16)
    source = tmp_path / "bomb.tar"
    with tarfile.open(source, packing) as archive:
        stuffing = tarfile.TarInfo("stuffing")
        stuffing.size = 2**22
        archive.addfile(stuffing, io.BytesIO(bytes(stuffing.size)))
    fails("unpacks to more than 65536 bytes", "cifar10", source, tmp_path / "out")
    # what tarfile reads for itself is no way around it
    endless = tarfile.TarInfo("x")
    endless.type, endless.size = tarfile.GNUTYPE_LONGNAME, 2**33
    source.write_bytes(gzip.compress(endless.tobuf(tarfile.GNU_FORMAT) + bytes(2**22)))
    fails("unpacks to more than 65536 bytes", "cifar10", source, tmp_path / "out")


# idx


def idx_file(values: np.ndarray) -> bytes:
    return struct.pack(f">{1 + values.ndim}i", 0x800 + values.ndim, *values.shape) + values.astype(np.uint8).tobytes()


def idx_folder(path: Path, *, packed: bool = True, train: int = 20, test: int = 5) -> Path:
    path.mkdir()
    for prefix, count in (("train", train), ("t10k", test)):
        images = DRAW.integers(0, 256, (count, 28, 28))
        for name, values in (("images-idx3-ubyte", images), ("labels-idx1-ubyte", np.arange(count) % 10)):
            content = idx_file(values)
            file = path / f"{prefix}-{name}{'.gz' if packed else ''}"
            file.write_bytes(gzip.compress(content) if packed else content)
    return path


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("name", ["mnist", "fashion_mnist"])
def test_idx(name: str, packed: bool, tmp_path: Path) -> None:
    source = idx_folder(tmp_path / "idx", packed=packed)
    run(name, source, tmp_path / "out")
    loaded = back(tmp_path / "out")
    file = source / f"t10k-images-idx3-ubyte{'.gz' if packed else ''}"
    content = gzip.decompress(file.read_bytes()) if packed else file.read_bytes()
    assert pixels_of(loaded, "test").tobytes() == content[16:]
    assert (len(loaded.train), loaded.train.channels) == (20, 1)
    assert loaded.train.classes[0] == ("0" if name == "mnist" else "T-shirt/top")


def test_idx_mistakes(tmp_path: Path) -> None:
    source, out = idx_folder(tmp_path / "idx", packed=False), tmp_path / "out"
    images = source / "train-images-idx3-ubyte"
    whole = images.read_bytes()
    for content, match in (
        (whole[:-1], "shorter than its header says"),
        (whole + b"1", "longer than its header says"),
        (whole[:7], "cannot be read"),
        (b"\x00" + whole, "is no idx file"),
        (struct.pack(">4i", 0x803, 2**30, 2**30, 2**30), "is no idx file"),
        (struct.pack(">4i", 0x803, -1, 28, 28), "is no idx file"),
        (idx_file(np.zeros((3, 28, 28))), "has 3 images and 20 labels"),
    ):
        images.write_bytes(content)
        fails(match, "mnist", source, out)
    images.unlink()
    fails("lacks train-images-idx3-ubyte.gz", "mnist", source, out)
    (source / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(whole)[:50])
    fails("cannot be read", "mnist", source, out)
    fails("is no folder", "mnist", source / "t10k-images-idx3-ubyte", out)


# SVHN, USPS


def test_svhn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = DRAW.integers(0, 256, (32, 32, 3, 12), np.uint8)
    for split in ("train", "test"):
        savemat(tmp_path / f"{split}_32x32.mat", {"X": images, "y": np.array([10, 1, 9] * 4)[:, None]})
    run("svhn", tmp_path, tmp_path / "out")
    loaded = back(tmp_path / "out")
    assert np.array_equal(pixels_of(loaded, "test"), images.transpose(3, 0, 1, 2))
    assert loaded.test.labels.tolist() == [0, 1, 9] * 4
    for members, match in (
        ({"X": images.astype(float), "y": np.ones(12)}, "not SVHN's 32 x 32 digits"),
        ({"X": images, "y": np.ones(11)}, "not SVHN's 32 x 32 digits"),
        ({"X": images, "y": np.full(12, 11)}, "labels must be 1 to 10"),
        ({"X": images}, "cannot be read as SVHN's X and y"),
    ):
        savemat(tmp_path / "test_32x32.mat", members)
        fails(match, "svhn", tmp_path, tmp_path / "other")
    whole = (tmp_path / "train_32x32.mat").read_bytes()
    (tmp_path / "test_32x32.mat").write_bytes(whole[: len(whole) // 2])
    fails("cannot be read as SVHN's X and y", "svhn", tmp_path, tmp_path / "other")
    savemat(tmp_path / "test_32x32.mat", {"X": images, "y": np.ones(12)}, do_compression=True)
    with monkeypatch.context() as smaller:
        smaller.setattr(originals, "_MOST_DIGITS", 11)
        match = r"train_32x32.mat .*X \(32, 32, 3, 12\) and y \(12, 1\) are more than 11 images"
        fails(match, "svhn", tmp_path, tmp_path / "other")
    (tmp_path / "test_32x32.mat").write_bytes(b"MATLAB 5.0 MAT-file" + b"\x07" * 200)
    fails("cannot be read as SVHN's X and y", "svhn", tmp_path, tmp_path / "other")
    (tmp_path / "test_32x32.mat").unlink()
    fails("test_32x32.mat is missing", "svhn", tmp_path, tmp_path / "other")


def test_usps(tmp_path: Path) -> None:
    lines = "10 1:-1 2:1 256:0\n1 3:0.5\n"
    for name in ("usps.bz2", "usps.t.bz2"):
        (tmp_path / name).write_bytes(bz2.compress(lines.encode()))
    run("usps", tmp_path, tmp_path / "out")
    loaded = back(tmp_path / "out")
    assert loaded.train.labels.tolist() == [9, 0]
    first = pixels_of(loaded, "train")[0].ravel().tolist()
    assert (first[0], first[1], first[2], first[255]) == (0, 255, 0, 128)
    for text in (
        "1 257:0\n",
        "1 0:0\n",
        "1 1:2\n",
        "1 1:nan\n",
        "11 1:0\n",
        "x 1:0\n",
        "1 1\n",
        "1 " + "1:0 " * 9000 + "\n",
    ):
        (tmp_path / "usps.bz2").write_bytes(bz2.compress(text.encode()))
        fails("usps.bz2, row 0: not USPS", "usps", tmp_path, tmp_path / "other")
    (tmp_path / "usps.bz2").write_bytes(bz2.compress(b""))
    fails("holds no row", "usps", tmp_path, tmp_path / "other")
    (tmp_path / "usps.bz2").write_bytes(b"text")
    fails("not USPS", "usps", tmp_path, tmp_path / "other")


# CIFAR-10-C


def test_cifar10c_takes_one_severity_and_keeps_a_picture_on_one_side(tmp_path: Path) -> None:
    source = tmp_path / "c"
    source.mkdir()
    np.save(source / "labels.npy", np.tile(np.arange(10), 5))
    for number, name in enumerate(CORRUPTIONS):
        levels = np.arange(50, dtype=np.uint8) + number
        np.save(source / f"{name}.npy", np.broadcast_to(levels[:, None, None, None], (50, 32, 32, 3)))
    run("cifar10c", source, tmp_path / "out", severity=2)
    loaded = back(tmp_path / "out", group_column="corruption")
    assert (len(loaded.train), len(loaded.test)) == (19 * 8, 19 * 2)
    assert loaded.train_groups is not None
    assert loaded.train_groups[8:16] == (CORRUPTIONS[1],) * 8
    assert loaded.train.images[8:16, 0, 0, 0].tolist() == list(range(11, 19))
    assert loaded.test.images[:2, 0, 0, 0].tolist() == [18, 19]
    assert loaded.test.labels[:2].tolist() == [8, 9]
    np.save(source / "fog.npy", np.array([{}], dtype=object))
    fails("fog.npy cannot be read as plain numbers", "cifar10c", source, tmp_path / "other")
    endless = io.BytesIO()
    np.lib.format.write_array_header_1_0(endless, {"descr": "|u1", "fortran_order": False, "shape": (10**30,)})
    for damaged in (b"PK\x03\x04 no archive", endless.getvalue(), b"\x93NUMPY\x01\x00\x04\x00{(((", b""):
        (source / "fog.npy").write_bytes(damaged)
        fails("fog.npy cannot be read as plain numbers", "cifar10c", source, tmp_path / "other")
    np.save(source / "fog.npy", np.zeros((50, 32, 32), np.uint8))
    fails(r"holds uint8 \(50, 32, 32\)", "cifar10c", source, tmp_path / "other")
    (source / "fog.npy").unlink()
    fails("fog.npy is missing", "cifar10c", source, tmp_path / "other")


# folders


def picture(path: Path, level: int, side: int = 10) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((side, side + 4, 3), level, np.uint8)).save(path)


def test_folders_keep_their_files_or_are_brought_to_a_size(tmp_path: Path) -> None:
    for site in ("north", "south"):
        for label in ("ill", "well"):
            for row in range(3):
                picture(tmp_path / "in" / site / label / f"{row}.jpg", 40 * row)
    run("sites", tmp_path / "in", tmp_path / "out")
    table = pq.read_table(next((tmp_path / "out").glob("train*")))
    original = (tmp_path / "in" / "north" / "ill" / "0.jpg").read_bytes()
    assert table["image"][0].as_py() == {"bytes": original, "path": None}
    loaded = back(tmp_path / "out", group_column="site")
    assert set(loaded.train_groups or ()) == {"north", "south"}
    assert loaded.train.classes == ("ill", "well")
    run("sites", tmp_path / "in", tmp_path / "small", size=8)
    assert back(tmp_path / "small").train.size == (8, 8)
    run("folder", tmp_path / "in" / "north", tmp_path / "flat")
    assert len(list((tmp_path / "flat").glob("test*"))) == 0
    (tmp_path / "in" / "north" / "ill" / "0.jpg").write_bytes(b"no picture")
    fails("0.jpg: is not an image", "sites", tmp_path / "in", tmp_path / "bad")


# resuming and verifying


def test_interrupted_work_is_gone_on_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ROWS", 6)
    source = idx_folder(tmp_path / "idx")
    whole = run("mnist", source, tmp_path / "whole")
    assert [each.rows for each in whole] == [6, 6, 6, 2, 5]
    out = tmp_path / "out"
    begun = prepare(known("mnist"), source, out)
    next(begun)
    next(begun)
    begun.close()
    # a file that was half written under its own name, as a copy from elsewhere may be
    second = out / whole[1].file
    second.write_bytes(second.read_bytes()[:100])
    assert [each.kept for each in run("mnist", source, out)] == [True, False, False, False, False]
    assert [each.kept for each in run("mnist", source, out)] == [True] * 5
    for each in whole:
        assert (out / each.file).read_bytes() == (tmp_path / "whole" / each.file).read_bytes()
    assert len(back(out).train) == 20


def test_originals_that_have_changed_are_noticed(tmp_path: Path) -> None:
    for label in ("ill", "well"):
        for row in range(3):
            picture(tmp_path / "in" / label / f"{row}.png", 40 * row)
    out = tmp_path / "out"
    run("folder", tmp_path / "in", out)
    (tmp_path / "in" / ".cache").touch()
    assert [each.kept for each in run("folder", tmp_path / "in", out)] == [True]
    picture(tmp_path / "in" / "ill" / "0.png", 77)  # as many as before, and of another content
    with pytest.raises(InputError, match=r"originals have changed since --out .* was begun: give another folder"):
        run("folder", tmp_path / "in", out)
    source = idx_folder(tmp_path / "idx", packed=False)
    run("mnist", source, source)  # where originals and outcome share a folder
    assert all(each.kept for each in run("mnist", source, source))
    images = source / "t10k-images-idx3-ubyte"
    images.write_bytes(images.read_bytes()[:-1] + b"7")
    with pytest.raises(InputError, match="originals have changed"):
        run("mnist", source, source)


def test_the_manifest_says_what_there_is(tmp_path: Path) -> None:
    source = idx_folder(tmp_path / "idx")
    run("mnist", source, tmp_path / "out")
    held = json.loads((tmp_path / "out" / MANIFEST).read_text())
    assert held["images"] == {"train": [2] * 10, "test": [1] * 5 + [0] * 5}
    for file, value in held["files"].items():
        assert hashlib.sha256((tmp_path / "out" / file).read_bytes()).hexdigest() == value


def test_another_set_is_not_mixed_in(tmp_path: Path) -> None:
    source, out = idx_folder(tmp_path / "idx"), tmp_path / "out"
    run("mnist", source, out)
    with pytest.raises(InputError, match="holds another set, or one with other options"):
        run("mnist", source, out, size=8)
    (out / MANIFEST).write_text("[]")
    with pytest.raises(InputError, match="cannot be read"):
        run("mnist", source, out)
    (out / MANIFEST).unlink()
    with pytest.raises(InputError, match="not prepared here"):
        run("mnist", source, out)


def test_originals_are_verified_by_hash_and_count(tmp_path: Path) -> None:
    source = idx_folder(tmp_path / "idx")
    with pytest.raises(InputError, match=r"train-images-idx3-ubyte.gz has the MD5 .*--unverified"):
        list(prepare(RECIPES["mnist"], source, tmp_path / "out"))
    counted = replace(RECIPES["mnist"], md5={})
    with pytest.raises(InputError, match="has 20 images in its split 'train', the published set has 60000"):
        list(prepare(counted, source, tmp_path / "out"))
    assert list(prepare(RECIPES["mnist"], source, tmp_path / "out", unverified=True))


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, out = str(idx_folder(tmp_path / "idx")), str(tmp_path / "out")
    assert invoke(["data", "prepare", "mnist", "--from", source, "--out", out]) == 2
    assert "has the MD5" in capsys.readouterr().err
    assert invoke(["data", "prepare", "mnist", "--from", source, "--out", out, "--unverified"]) == 0
    said = capsys.readouterr()
    assert said.err.count("written: ") == 2
    assert "data.source = 'parquet'" in said.out
    assert invoke(["data", "prepare", "mnits", "--from", source, "--out", out]) == 2
    assert "did you mean 'mnist'" in capsys.readouterr().err


def test_every_recipe_says_what_it_wants() -> None:
    for name in RECIPES:
        assert recipe(name).wants
