"""What a trial of a federation needs to speak in private: a test CA, a certificate for the server, a key pair a site.

    ca.crt                       every site and the server: by it they know the server
    ca.key                       stays: whoever has it can pose as the server
    server.pem, server.key       the server's certificate and its key
    sites/NAME.key, NAME.pub     the site's key, and what the server is told of it

Sites authenticate themselves with elliptic-curve keys (NIST P-384) in OpenSSH's formats, as Flower's SuperNodes have them:
``ssh-keygen -t ecdsa -b 384`` makes the like. Certificates are X.509; their keys are PKCS #8. No key is encrypted: a service
that starts by itself has nobody to ask.

A CA is made once and never replaced. Keys exist with mode 0600, in folders of mode 0700, from their first moment on.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from fedstill.errors import InputError, MissingExtra, RunError
from fedstill.files import PRIVATE, private_folder, write_bytes
from fedstill.rounds import CLIENT_NAME

__all__ = ["HOSTS", "Made", "Places", "make_certificates"]

HOSTS = ("localhost", "127.0.0.1")
"""What a server's certificate is for where nobody says."""

_LABEL = r"[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"
_HOST = re.compile(rf"(?=.{{1,253}}$)(?:{_LABEL}\.)*(?![0-9]+$){_LABEL}")  # 999.1.1.1 is no name but a slip


@dataclass(frozen=True)
class Places:
    """Where things lie in a folder of certificates."""

    folder: Path

    @property
    def ca(self) -> Path:
        return self.folder / "ca.crt"

    @property
    def ca_key(self) -> Path:
        return self.folder / "ca.key"

    @property
    def server(self) -> Path:
        return self.folder / "server.pem"

    @property
    def server_key(self) -> Path:
        return self.folder / "server.key"

    @property
    def sites(self) -> Path:
        return self.folder / "sites"

    def site_key(self, name: str) -> Path:
        """The site's private key."""
        return self.sites / f"{name}.key"

    def site_public(self, name: str) -> Path:
        """What the server registers."""
        return self.sites / f"{name}.pub"


@dataclass(frozen=True)
class Made:
    """A file that was written or found, and what it is for."""

    path: Path
    purpose: str
    new: bool


def make_certificates(
    folder: Path,
    *,
    hosts: Sequence[str] | None = None,
    sites: Sequence[str] = (),
    days: int = 365,
    replace: bool = False,
    now: datetime | None = None,
) -> list[Made]:
    """Make what is missing in ``folder``; nothing that is there is written over unless ``replace`` asks for it.

    Args:
        folder: new, empty, or one that this function made: then its CA goes on.
        hosts: names and IP addresses under which the server is reached. None: :data:`HOSTS` for a first certificate; later, as
            when sites are added, what is there is kept, and what was carried to the server is not made again.
        sites: names; a key pair is made for each.
        days: how long certificates are valid; a server's never longer than its CA's. Sites' keys have no end.
        replace: make the named sites' keys, and with ``hosts`` the server's certificate, anew.
        now: the time; None asks the clock.

    Raises:
        MissingExtra: the package ``cryptography`` is not installed.
        InputError: a name is none, something is there already, the folder lets others in, or its CA cannot be used.
        RunError: the system refuses.
    """
    try:
        import cryptography  # noqa: F401
    except ImportError as error:
        raise MissingExtra("cryptography", extra="flower", wanted_for="fedstill certs") from error
    from fedstill.deployment import authority

    place, now = Places(folder), now or datetime.now(UTC)
    names = None if hosts is None else tuple(dict.fromkeys(hosts))
    _check_names(names or (), sites)
    for path in (folder, place.sites):
        private_folder(path)
    known, kept = _pair(place.ca, place.ca_key), _pair(place.server, place.server_key)
    if kept and names is not None and not replace:
        raise InputError(
            f"{place.server} is there already: give --replace to make it anew for these hosts, or no --host"
        )
    for name in sites:
        for path in () if replace else (place.site_key(name), place.site_public(name)):
            if path.exists():
                raise InputError(f"{path} is there already: give --replace to make new keys for '{name}'")
    issues = names is not None or not (kept or (known and sites))

    if known:
        found = authority.Pair(_content(place.ca), _content(place.ca_key))
        ca = authority.Authority.read(found, where=str(place.ca), now=now)
    else:
        ca = authority.Authority.new(now, days)
        _write(place.ca, place.ca_key, *ca.pair())
    made = [
        Made(place.ca, "the test CA's certificate: to the server and to every site", not known),
        Made(place.ca_key, "its key: it stays here", not known),
    ]
    if issues:
        _write(place.server, place.server_key, *ca.server(names or HOSTS, now, days))
    if issues or kept:
        made += [
            Made(place.server, "the server's certificate: to the server", issues),
            Made(place.server_key, "its key: to the server alone", issues),
        ]
    for name in sites:
        _write(place.site_public(name), place.site_key(name), *authority.site_pair(name))
        made += [
            Made(place.site_key(name), f"the key of site '{name}': to that site alone", True),
            Made(place.site_public(name), "its public half: to the server", True),
        ]
    return made


def _write(public: Path, private: Path, shown: bytes, secret: bytes) -> None:
    """Both files of a pair; killed in between, it leaves a key by itself, never a pair whose parts are not of each other."""
    try:
        public.unlink(missing_ok=True)
    except OSError as error:
        raise RunError(f"cannot replace {public}: {error.strerror or error}") from error
    write_bytes(private, secret, mode=PRIVATE)
    write_bytes(public, shown)


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error


def _check_names(hosts: Sequence[str], sites: Sequence[str]) -> None:
    for host in hosts:
        if not _HOST.fullmatch(host) and not _is_address(host):
            raise InputError(
                f"--host {host!r} is neither a name nor an IP address: write fed.example.org or 192.0.2.7, without port; "
                "a name with accents in its form that begins with xn--"
            )
    for name in sites:
        if not CLIENT_NAME.fullmatch(name):
            raise InputError(f"--site {name!r}: use 1 to 64 letters, digits, '.', '_' or '-', and no dot in front")
    if len({name.lower() for name in sites}) != len(sites):
        raise InputError("--site: two sites have the same name")


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return "%" not in host  # a scope is the machine's own


def _pair(certificate: Path, key: Path) -> bool:
    """Whether both are there.

    Raises:
        InputError: one of them is, without the other.
    """
    there = [each for each in (certificate, key) if each.exists()]
    if len(there) == 1:
        missing = key if there[0] == certificate else certificate
        raise InputError(f"{there[0]} is there without {missing.name}: put that back, or move {there[0].name} away")
    return bool(there)
