"""The cryptography behind :mod:`fedstill.deployment.certs`: a CA, certificates of its own, key pairs in OpenSSH's formats.

It imports ``cryptography``, an extra; whoever imports this module has looked for that.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from ipaddress import ip_address
from typing import NamedTuple

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from fedstill.errors import InputError

__all__ = ["Authority", "Pair", "site_pair"]

_CLOCKS = timedelta(hours=1)
"""How long before it is made a certificate is valid: clocks differ."""


class Pair(NamedTuple):
    """Two files' contents: what is shown, and the private key to it."""

    public: bytes
    private: bytes


@dataclass(frozen=True)
class Authority:
    """A CA that signs servers' certificates, and nothing below it."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    @classmethod
    def new(cls, now: datetime, days: int) -> Authority:
        """Valid for ``days`` from ``now``."""
        key = ec.generate_private_key(ec.SECP384R1())
        name = _name("fedstill test CA")
        built = (
            _begun(name, name, key, now, now + timedelta(days=days))
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_usage(signs_certificates=True), critical=True)
        )
        return cls(built.sign(key, hashes.SHA384()), key)

    @classmethod
    def read(cls, pair: Pair, *, where: str, now: datetime) -> Authority:
        """As it was written.

        Raises:
            InputError: it is none, its parts are not of each other, or its time is over; ``where`` says which.
        """
        try:
            certificate = x509.load_pem_x509_certificate(pair.public)
            key = load_pem_private_key(pair.private, password=None)
            own = certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
            certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier)  # what it signs will point to it
        except (
            ValueError,
            TypeError,
            UnsupportedAlgorithm,
            x509.ExtensionNotFound,
            x509.DuplicateExtension,
            x509.InvalidVersion,
        ) as error:
            raise InputError(f"{where} and its key cannot be read as a CA ({error}): name another folder") from error
        if not own or not isinstance(key, ec.EllipticCurvePrivateKey):
            raise InputError(f"{where} is no CA that fedstill made: name another folder")
        if key.public_key() != certificate.public_key():
            raise InputError(
                f"{where} and its key are not of each other: put back those that are, or name another folder"
            )
        if certificate.not_valid_after_utc <= now:
            raise InputError(
                f"{where} was valid until {certificate.not_valid_after_utc:%Y-%m-%d}: make a new CA in another folder, and "
                "give its ca.crt to every site"
            )
        return cls(certificate, key)

    def pair(self) -> Pair:
        """The CA's own files."""
        return Pair(self.certificate.public_bytes(Encoding.PEM), _pem(self.key))

    def server(self, hosts: Sequence[str], now: datetime, days: int) -> Pair:
        """A certificate for a server that is reached as ``hosts``, names or IP addresses; it ends no later than the CA's."""
        key = ec.generate_private_key(ec.SECP384R1())
        until = min(now + timedelta(days=days), self.certificate.not_valid_after_utc)
        issuer = self.certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
        built = (
            _begun(_name("fedstill server"), self.certificate.subject, key, now, until)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(signs_certificates=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
            .add_extension(x509.SubjectAlternativeName([_general(host) for host in hosts]), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(issuer), critical=False)
        )
        return Pair(built.sign(self.key, hashes.SHA384()).public_bytes(Encoding.PEM), _pem(key))


def site_pair(name: str) -> Pair:
    """A key pair for a site: NIST P-384, both halves as ``ssh-keygen`` writes them, the name as comment."""
    key = ec.generate_private_key(ec.SECP384R1())
    public = key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)
    return Pair(public + f" {name}\n".encode(), key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()))


def _begun(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey, now: datetime, until: datetime
) -> x509.CertificateBuilder:
    """What all certificates have."""
    public = key.public_key()
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _CLOCKS)
        .not_valid_after(until)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
    )


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _general(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
