"""Official pickles from where they are published: by https alone, and never read on the way."""

from __future__ import annotations

import hashlib
import http.client
import re
import ssl
import urllib.error
import urllib.request
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlsplit

from fedstill.errors import InputError, RunError, printable, unknown
from fedstill.files import aside, sweep

__all__ = ["OFFICIAL", "Arrived", "address_of", "checked_hash", "download"]

OFFICIAL = (
    "imagenet16",
    "imagenet32",
    "imagenet64",
    "imagenet128",
    "imagenet256",
    "imagenet512",
    "imagenet1024",
    "cifar10",
    "ffhq256",
    "ffhq512",
    "ffhq1024",
    "pokemon256",
    "pokemon512",
    "pokemon1024",
)
"""The models that StyleGAN-XL's authors publish. They publish no checksums."""

_PLACE = "https://s3.eu-central-1.amazonaws.com/avg-projects/stylegan_xl/models"
_MOST_BYTES = 4 * 2**30  # what an import reads
_PIECE = 2**20
_PATIENCE = 60.0  # seconds without a byte


@dataclass(frozen=True)
class Arrived:
    """So many ``done`` bytes are there, of ``total``, if the server says; ``sha256`` at the end."""

    done: int
    total: int | None
    sha256: str | None = None


def address_of(name: str) -> str:
    """The address of an official model, or an address as it is.

    Raises:
        InputError: the model is unknown, or the address is no https address.
    """
    if name in OFFICIAL:
        return f"{_PLACE}/{name}.pkl"
    if "://" not in name:
        raise unknown("--from-url", name, OFFICIAL)
    if not _is_secure(name):
        raise InputError(f"--from-url {printable(name, 100)}: only whole https addresses are fetched from")
    return name


def checked_hash(text: str) -> str:
    """A SHA-256 as a user wrote it, in small letters.

    Raises:
        InputError: it is none.
    """
    if not re.fullmatch(r"[0-9a-fA-F]{64}", text):
        raise InputError(f"--sha256 {printable(text, 70)}: a SHA-256 is 64 hexadecimal digits")
    return text.lower()


def download(address: str, out: Path, *, sha256: str | None = None) -> Generator[Arrived, None, None]:
    """Fetch ``address`` to ``out``, which is whole and of the right hash, or not there. What a killed download left is removed.

    Args:
        address: https; so is every address that it may send on to.
        out: a file that is not there yet.
        sha256: what the file's hash must be; None: any.

    Yields:
        How far it is, a report a megabyte; the last one has the hash.

    Raises:
        InputError: ``out`` is there, the server has no such file or sends on to what is not https, the file is too large, or it
            has another hash.
        RunError: the server cannot be reached or stops early, or ``out`` cannot be written.
    """
    if out.exists() or out.is_symlink():
        raise InputError(f"{out} is there already: import it with  fedstill prior import {out} , or remove it")
    sweep(out)
    with aside(out) as temporary, _opened(address) as answer, temporary.open("wb") as file:
        total = answer.length
        if total is not None and total > _MOST_BYTES:
            raise InputError(f"{address} has {total} bytes, more than the {_MOST_BYTES} that are read: give another")
        done, digest = 0, hashlib.sha256()
        while piece := _read(answer, address):
            done += len(piece)
            if done > _MOST_BYTES:
                raise InputError(f"{address} has more bytes than the {_MOST_BYTES} that are read: give another")
            digest.update(piece)
            file.write(piece)
            yield Arrived(done, total)
        if total is not None and done != total:
            raise _broken(address, f"it ended after {done} of {total} bytes")
        found = digest.hexdigest()
        if sha256 not in (None, found):
            raise InputError(f"{address} is not kept: its SHA-256 is {found}, not {sha256}")
    yield Arrived(done, total, found)


class _Onwards(urllib.request.HTTPRedirectHandler):
    """Follows to https alone."""

    def redirect_request(
        self,
        req: urllib.request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: http.client.HTTPMessage,
        newurl: str,
    ) -> urllib.request.Request | None:
        if not _is_secure(newurl):
            fp.close()
            raise InputError(f"{req.full_url} sends on to {printable(newurl, 100)}, which is not https: give another")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _opened(address: str) -> Any:
    request = urllib.request.Request(address, headers={"User-Agent": "fedstill"})
    try:
        return urllib.request.build_opener(_Onwards).open(request, timeout=_PATIENCE)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code in (403, 404, 410):
            raise InputError(f"{address} is not there (the server says {error.code}): give another") from error
        if 300 <= error.code < 400:  # urllib follows no other kinds of address
            raise InputError(f"{address} sends on to what is not https: give another") from error
        raise _broken(address, f"the server says {error.code}") from error
    except (OSError, http.client.HTTPException, ValueError) as error:
        reason = getattr(error, "reason", error)
        if isinstance(reason, ssl.SSLCertVerificationError):
            reason = f"its certificate is not trusted: {reason.verify_message}"
        raise _broken(address, str(reason) or type(error).__name__) from error


def _read(answer: Any, address: str) -> bytes:
    try:
        piece: bytes = answer.read(_PIECE)
    except (OSError, http.client.HTTPException) as error:
        raise _broken(address, str(error) or type(error).__name__) from error
    return piece


def _broken(address: str, reason: str) -> RunError:
    return RunError(
        f"cannot fetch {address}: {printable(reason, 100)}; try again, or fetch it otherwise and import the file"
    )


def _is_secure(address: str) -> bool:
    try:
        parts = urlsplit(address)
        return parts.scheme == "https" and bool(parts.hostname) and parts.username is None
    except ValueError:
        return False
