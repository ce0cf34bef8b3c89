"""A test CA, a server's certificate and sites' keys: what others read of them, and what is never written over."""

from __future__ import annotations

import os
import shutil
import ssl
import stat
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_ssh_private_key, load_ssh_public_key

from fedstill import files
from fedstill.cli import invoke
from fedstill.deployment.certs import Places, make_certificates
from fedstill.errors import InputError, RunError

NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with a CA, a server's certificate and sites a and b; to be looked at, not to be written to."""
    folder = tmp_path_factory.mktemp("made") / "certs"
    make_certificates(folder, hosts=["fed.example.org", "10.0.0.7", "::1", "localhost"], sites=["a", "b"])
    return Places(folder)


def certificate(path: Path) -> x509.Certificate:
    return x509.load_pem_x509_certificate(path.read_bytes())


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def handshake(server: ssl.SSLContext, client: ssl.SSLContext, name: str) -> None:
    """Both ends in memory: no network is touched."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = [
        client.wrap_bio(to_client, to_server, server_hostname=name),
        server.wrap_bio(to_server, to_client, server_side=True),
    ]
    for _ in range(4):
        for end in ends:
            try:
                end.do_handshake()
            except ssl.SSLWantReadError:
                continue
    assert all(end.version() for end in ends)


def client_of(ca: Path) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=ca)
    context.verify_flags |= ssl.VERIFY_X509_STRICT  # what Python asks for from 3.13 on
    return context


def server_of(place: Places) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(place.server, place.server_key)
    return context


@pytest.mark.parametrize("name", ["fed.example.org", "10.0.0.7", "::1", "localhost"])
def test_the_server_is_known_by_every_name_it_was_given(made, name):
    handshake(server_of(made), client_of(made.ca), name)


def test_another_name_and_another_ca_are_refused(made, tmp_path):
    with pytest.raises(ssl.SSLCertVerificationError, match="mismatch"):
        handshake(server_of(made), client_of(made.ca), "elsewhere.example.org")
    make_certificates(tmp_path / "other")
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(server_of(made), client_of(tmp_path / "other" / "ca.crt"), "localhost")


def test_a_site_s_key_is_p384_in_openssh_s_formats(made):
    private = load_ssh_private_key(made.site_key("a").read_bytes(), password=None)
    public = load_ssh_public_key(made.site_public("a").read_bytes())
    assert isinstance(private, ec.EllipticCurvePrivateKey)
    assert isinstance(private.curve, ec.SECP384R1)
    assert private.public_key() == public
    line = made.site_public("a").read_text()
    assert line.startswith("ecdsa-sha2-nistp384 ")
    assert line.endswith(" a\n")
    assert line.count("\n") == 1
    assert made.site_key("a").read_text().startswith("-----BEGIN OPENSSH PRIVATE KEY-----\n")
    assert made.site_public("b").read_bytes() != made.site_public("a").read_bytes()


@pytest.mark.skipif(shutil.which("ssh-keygen") is None, reason="there is no ssh-keygen")
def test_ssh_keygen_reads_it(made):
    told = subprocess.run(
        ["ssh-keygen", "-y", "-f", made.site_key("a")], capture_output=True, text=True, timeout=60, check=True
    )
    assert told.stdout.split()[:2] == made.site_public("a").read_text().split()[:2]


def test_private_files_are_their_owner_s_alone(made):
    for path in (made.ca_key, made.server_key, made.site_key("a"), made.site_key("b")):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    for folder in (made.folder, made.sites):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_a_private_file_is_private_before_anything_is_in_it(tmp_path, monkeypatch):
    seen: dict[str, int] = {}
    write = Path.write_bytes

    def watch(path: Path, content: bytes) -> int:
        seen[path.name.split(".")[1] + "." + path.name.split(".")[2]] = stat.S_IMODE(path.stat().st_mode)
        return write(path, content)

    monkeypatch.setattr(Path, "write_bytes", watch)
    before = os.umask(0)
    try:
        make_certificates(tmp_path / "certs", sites=["a"])
    finally:
        os.umask(before)
    assert {name: mode for name, mode in seen.items() if name.endswith("key")} == dict.fromkeys(
        ["ca.key", "server.key", "a.key"], 0o600
    )


def test_sites_are_added_under_the_same_ca(tmp_path):
    folder = tmp_path / "certs"
    make_certificates(folder, sites=["a"])
    before = contents(folder)
    made = make_certificates(folder, sites=["c", "d"])
    after = contents(folder)
    assert {name: after[name] for name in before} == before
    assert after.keys() - before.keys() == {"sites/c.key", "sites/c.pub", "sites/d.key", "sites/d.pub"}
    assert [each.path.name for each in made if not each.new] == ["ca.crt", "ca.key", "server.pem", "server.key"]


def test_a_site_is_added_where_the_server_s_files_were_carried_away(tmp_path):
    folder = tmp_path / "certs"
    make_certificates(folder)
    place = Places(folder)
    place.server.unlink()
    place.server_key.unlink()
    make_certificates(folder, sites=["c"])
    assert not place.server.exists()
    make_certificates(folder, hosts=["localhost"])
    handshake(server_of(place), client_of(place.ca), "localhost")


@pytest.mark.parametrize(
    ("again", "sentence"),
    [
        ({"sites": ["b", "a"]}, "a.key is there already: give --replace"),
        ({"hosts": ["fed.example.org"]}, "server.pem is there already: give --replace"),
    ],
)
def test_nothing_is_written_over_unless_asked(tmp_path, again, sentence):
    folder = tmp_path / "certs"
    make_certificates(folder, sites=["a"])
    before = contents(folder)
    with pytest.raises(InputError, match=sentence):
        make_certificates(folder, **again)
    assert contents(folder) == before
    make_certificates(folder, replace=True, **again)
    after = contents(folder)
    changed = {"sites/a.key", "sites/a.pub"} if "sites" in again else {"server.pem", "server.key"}
    assert {name for name in before if after[name] != before[name]} == changed
    handshake(
        server_of(Places(folder)), client_of(folder / "ca.crt"), "fed.example.org" if "hosts" in again else "localhost"
    )


def test_a_pair_is_never_of_two_kinds_when_it_is_killed(tmp_path, monkeypatch):
    folder = tmp_path / "certs"
    make_certificates(folder)

    def killed(path: Path, content: bytes, *, mode: int = 0o644) -> None:
        if path.name == "server.pem":
            raise RunError("killed")
        files.write_bytes(path, content, mode=mode)

    monkeypatch.setattr("fedstill.deployment.certs.write_bytes", killed)
    with pytest.raises(RunError):
        make_certificates(folder, hosts=["fed.example.org"], replace=True)
    with pytest.raises(InputError, match=r"server.key is there without server.pem"):
        make_certificates(folder, sites=["c"])
    assert not (folder / "sites" / "c.key").exists()


@pytest.mark.parametrize(
    "host",
    [
        "",
        "fed.example.org:9092",
        "https://fed",
        "a b",
        "*.example.org",
        "-a",
        "999.1.1.1",
        "fe80::1%eth0",
        "ü.de",
        "a" * 64,
    ],
)
def test_a_host_that_is_none_is_refused_before_anything_is_made(tmp_path, host):
    with pytest.raises(InputError, match="neither a name nor an IP address"):
        make_certificates(tmp_path / "certs", hosts=[host])
    assert not (tmp_path / "certs").exists()


@pytest.mark.parametrize("site", ["", "../a", "a/b", ".a", "a\n", "ä", "a" * 65])
def test_a_site_s_name_stays_in_its_folder(tmp_path, site):
    with pytest.raises(InputError, match="--site"):
        make_certificates(tmp_path / "certs", sites=[site])
    assert not (tmp_path / "certs").exists()


def test_names_that_some_systems_hold_for_one_are_refused(tmp_path):
    with pytest.raises(InputError, match="two sites have the same name"):
        make_certificates(tmp_path / "certs", sites=["a", "A"])


def test_a_site_called_like_a_file_takes_no_other_s(tmp_path):
    make_certificates(tmp_path / "certs", sites=["a", "a.key", "a.pub", "ca"])
    assert len(contents(tmp_path / "certs")) == 4 + 8


def test_days_and_a_certificate_that_ends_with_its_ca(tmp_path):
    folder = tmp_path / "certs"
    make_certificates(folder, days=30, now=NOW)
    later = NOW + timedelta(days=20)
    make_certificates(folder, hosts=["localhost"], days=30, replace=True, now=later)
    place = Places(folder)
    assert certificate(place.ca).not_valid_after_utc == NOW + timedelta(days=30)
    assert certificate(place.server).not_valid_after_utc == NOW + timedelta(days=30)
    with pytest.raises(InputError, match="was valid until 2026-12-22: make a new CA"):
        make_certificates(folder, sites=["c"], now=NOW + timedelta(days=31))


def test_a_folder_that_others_can_enter_is_refused(tmp_path):
    folder = tmp_path / "certs"
    folder.mkdir()
    folder.chmod(0o755)
    with pytest.raises(InputError, match=r"lets other users in \(mode 755\): close it with  chmod 700"):
        make_certificates(folder)
    assert not list(folder.iterdir())


def test_a_folder_that_is_a_file(tmp_path):
    (tmp_path / "certs").write_text("")
    with pytest.raises(InputError, match="is a file"):
        make_certificates(tmp_path / "certs")


@pytest.mark.parametrize("damage", ["garbage", "another's key", "a server's certificate", "encrypted"])
def test_a_ca_that_is_none_is_refused(made, tmp_path, damage):
    folder = tmp_path / "certs"
    make_certificates(folder)
    place = Places(folder)
    if damage == "garbage":
        place.ca.write_bytes(b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")
    elif damage == "another's key":
        place.ca_key.write_bytes(made.ca_key.read_bytes())
    elif damage == "a server's certificate":
        place.ca.write_bytes(place.server.read_bytes())
        place.ca_key.write_bytes(place.server_key.read_bytes())
    else:
        place.ca_key.write_bytes(b"-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n")
    with pytest.raises(InputError, match=r"ca\.crt"):
        make_certificates(folder, sites=["c"])
    assert not place.site_key("c").exists()


def test_the_command_says_what_goes_where_and_that_it_is_a_test_ca(tmp_path, capsys):
    folder = tmp_path / "certs"
    assert invoke(["certs", str(folder), "--host", "fed.example.org", "--site", "a"]) == 0
    out, err = capsys.readouterr()
    assert f"written: {folder / 'sites' / 'a.key'}  the key of site 'a': to that site alone" in out
    assert "This is a test CA" in err
    assert invoke(["certs", str(folder), "--site", "c", "--site", "d"]) == 0
    assert f"kept: {folder / 'ca.crt'}" in capsys.readouterr().out
    assert invoke(["certs", str(folder), "--site", "c"]) == 2
    assert "--replace" in capsys.readouterr().err


def test_without_the_package_the_answer_is_the_command_that_installs_it(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "cryptography", None)
    assert invoke(["certs", str(tmp_path / "certs")]) == 2
    assert "pip install 'fedstill[flower]'" in capsys.readouterr().err
    assert not (tmp_path / "certs").exists()
