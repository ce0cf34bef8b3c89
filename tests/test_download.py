"""Official pickles are fetched by https, whole and of the right hash, or not at all."""

from __future__ import annotations

import hashlib
import http.server
import os
import re
import signal
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import official
from fedstill.cli import invoke
from fedstill.deployment.certs import Places, make_certificates
from fedstill.errors import InputError, RunError
from fedstill.generators import download as downloads
from fedstill.generators.download import OFFICIAL, address_of, checked_hash, download
from fedstill.generators.files import load_prior, read_card
from fedstill.generators.stylegan_xl import StyleGANXL
from fedstill.generators.xl_options import plan
from fedstill.seeds import Seed

HELD = b"all of it" * 200_000


class Handler(http.server.BaseHTTPRequestHandler):
    pickle = b""

    def do_GET(self) -> None:
        where = self.path.strip("/")
        if where in ("plain", "file"):
            self.send_response(302)
            self.send_header("Location", "http://localhost/x" if where == "plain" else "file:///etc/passwd")
            self.end_headers()
            return
        if where == "onwards":
            self.send_response(301)
            self.send_header("Location", "/whole")
            self.end_headers()
            return
        if where not in ("whole", "short", "large", "unsaid", "slow", "pickle"):
            self.send_error(500 if where == "broken" else 404)
            return
        content = self.pickle if where == "pickle" else HELD
        self.send_response(200)
        if where != "unsaid":
            more = {"short": 10, "large": 2**40}.get(where, 0)
            self.send_header("Content-Length", str(len(content) + more))
        self.end_headers()
        if where == "slow":
            self.wfile.write(content[: len(content) // 2])
            self.wfile.flush()
            time.sleep(60)
        self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        pass


class Server(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hangs up, as some tests do, is no news."""


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Places:
    folder = tmp_path_factory.mktemp("made") / "certs"
    make_certificates(folder, hosts=["localhost"], sites=[])
    return Places(folder)


@pytest.fixture
def server(places: Places, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """An https server on this machine whose certificate is trusted."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(places.server, places.server_key)
    found = Server(("127.0.0.1", 0), Handler)
    found.socket = context.wrap_socket(found.socket, server_side=True)
    thread = threading.Thread(target=found.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    monkeypatch.setenv("SSL_CERT_FILE", str(places.ca))
    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    yield f"https://localhost:{found.server_address[1]}"
    found.shutdown()
    thread.join()
    found.server_close()


def hash_of(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def test_official_models_and_whole_addresses_are_known() -> None:
    assert len(set(OFFICIAL)) == 14
    assert address_of("cifar10") == "https://s3.eu-central-1.amazonaws.com/avg-projects/stylegan_xl/models/cifar10.pkl"
    assert address_of("https://x.org/a.pkl") == "https://x.org/a.pkl"


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("cifar", "did you mean 'cifar10'"),
        ("http://x.org/a.pkl", "only whole https"),
        ("file:///etc/passwd", "only whole https"),
        ("https:///a.pkl", "only whole https"),
        ("https://me:secret@x.org/a.pkl", "only whole https"),
        ("https://[x/a.pkl", "only whole https"),
    ],
)
def test_other_addresses_are_refused(name: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        address_of(name)


def test_a_hash_is_64_digits() -> None:
    assert checked_hash("A" * 64) == "a" * 64
    with pytest.raises(InputError, match="64 hexadecimal digits"):
        checked_hash("a" * 63)


@pytest.mark.parametrize("where", ["whole", "unsaid", "onwards"])
def test_a_file_is_fetched_whole(server: str, tmp_path: Path, where: str) -> None:
    out = tmp_path / "deep" / "file.pkl"
    reports = list(download(f"{server}/{where}", out, sha256=hash_of(HELD)))
    assert out.read_bytes() == HELD
    assert reports[-1].sha256 == hash_of(HELD)
    assert reports[0].total == (None if where == "unsaid" else len(HELD))
    assert [each.done for each in reports] == sorted(each.done for each in reports)


@pytest.mark.parametrize(
    ("where", "kind", "words"),
    [
        ("none", InputError, "is not there (the server says 404)"),
        ("broken", RunError, "the server says 500"),
        ("plain", InputError, "which is not https"),
        ("file", InputError, "sends on to what is not https"),
        ("short", RunError, f"it ended after {len(HELD)} of {len(HELD) + 10} bytes"),
        ("large", InputError, "more than the"),
    ],
)
def test_what_cannot_be_fetched_leaves_nothing(
    server: str, tmp_path: Path, where: str, kind: type[Exception], words: str
) -> None:
    with pytest.raises(kind, match=re.escape(words)) as error:
        list(download(f"{server}/{where}", tmp_path / "file.pkl"))
    assert "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_another_hash_is_not_kept(server: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"its SHA-256 is {hash_of(HELD)}"):
        list(download(f"{server}/whole", tmp_path / "file.pkl", sha256="0" * 64))
    assert list(tmp_path.iterdir()) == []


def test_more_bytes_than_are_read_are_not_fetched(server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(downloads, "_MOST_BYTES", 1000)
    for where in ("whole", "unsaid"):
        with pytest.raises(InputError, match="1000 that are read"):
            list(download(f"{server}/{where}", tmp_path / "file.pkl"))


def test_a_server_that_is_not_trusted_or_not_there_is_answered(
    server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SSL_CERT_FILE")
    with pytest.raises(RunError, match="its certificate is not trusted"):
        list(download(f"{server}/whole", tmp_path / "file.pkl"))
    with pytest.raises(RunError, match="cannot fetch https://localhost:1/x"):
        list(download("https://localhost:1/x", tmp_path / "file.pkl"))
    assert list(tmp_path.iterdir()) == []


def test_a_server_that_falls_silent_is_given_up(server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(downloads, "_PATIENCE", 0.3)
    with pytest.raises(RunError, match="timed out"):
        list(download(f"{server}/slow", tmp_path / "file.pkl"))
    assert list(tmp_path.iterdir()) == []


def test_what_is_there_is_not_written_over(server: str, tmp_path: Path) -> None:
    (tmp_path / "file.pkl").write_text("mine")
    with pytest.raises(InputError, match="is there already"):
        list(download(f"{server}/whole", tmp_path / "file.pkl"))
    assert (tmp_path / "file.pkl").read_text() == "mine"


def test_an_interrupted_download_leaves_nothing(server: str, tmp_path: Path) -> None:
    reports = download(f"{server}/whole", tmp_path / "file.pkl")
    next(reports)
    assert len(list(tmp_path.iterdir())) == 1
    reports.close()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_killed_download_is_started_anew(server: str, tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from fedstill.generators.download import download\n"
        "for each in download(sys.argv[1], Path(sys.argv[2])): print(each.done, flush=True)"
    )
    out = tmp_path / "file.pkl"
    with subprocess.Popen(
        [sys.executable, "-c", code, f"{server}/slow", str(out)], env=dict(os.environ), stdout=subprocess.PIPE
    ) as process:
        limit = time.monotonic() + 60
        while not list(tmp_path.glob(".file.pkl.*")) and time.monotonic() < limit:
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
    assert len(list(tmp_path.iterdir())) == 1
    list(download(f"{server}/whole", out))
    assert [each.name for each in tmp_path.iterdir()] == ["file.pkl"]


def test_a_model_is_fetched_and_imported(
    server: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with Seed.root(1).scope():
        generator = StyleGANXL(plan((16,), classes=3, layers=4, widest=6, budget=96, class_rows=5))
    monkeypatch.setattr(Handler, "pickle", official.dumped({"G_ema": official.as_official(generator)}))
    out = tmp_path / "prior.safetensors"
    command = ["prior", "import", "--from-url", f"{server}/pickle", "--out", str(out)]
    assert invoke([*command, "--sha256", "0" * 64]) == 2
    assert "is not kept" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
    assert invoke(command) == 0
    said = capsys.readouterr().err
    assert f"SHA-256 {hash_of(Handler.pickle)}" in said
    assert "no checksum of it is published" in said
    card = read_card(out)
    assert card["imported_from"] == f"{server}/pickle"
    assert card["imported_sha256"] == hash_of(Handler.pickle)
    assert torch.equal(load_prior(out).centres, generator.centres)
    assert invoke(["prior", "import", str(out.with_suffix(".pkl")), "--out", str(out), "--sha256", "1" * 64]) == 2
    assert "its SHA-256 is" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ([], "give a pickle, or where to fetch one"),
        (["x.pkl", "--from-url", "cifar10"], "give a pickle, or where to fetch one"),
        (["--from-url", "cifar"], "did you mean 'cifar10'"),
        (["--from-url", "cifar10", "--sha256", "x"], "64 hexadecimal digits"),
    ],
)
def test_an_import_is_asked_for_in_one_way(more: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert invoke(["prior", "import", *more, "--out", "x.safetensors"]) == 2
    assert words in capsys.readouterr().err
