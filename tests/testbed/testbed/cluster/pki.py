# SPDX-License-Identifier: GPL-3.0-or-later
"""Keys and certificates of one cluster: one authority, kept with the testbed's state.

What exists and still fits is kept, so that a second ``up`` changes no file on any host.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

CA_LIFE = timedelta(days=3650)
LIFE = timedelta(days=365)
# A certificate with less left than this is made anew, well before it stops a running cluster.
LEAST_LEFT = timedelta(days=30)
# Hosts share the machine's clock, but a clock set back a little must not make a cluster invalid.
BACKDATED = timedelta(hours=1)


@dataclass(frozen=True)
class Identity:
    """Who a certificate speaks for. Kubernetes reads the user from *name*, groups from *group*."""

    file: str
    name: str
    group: str = ""
    addresses: Sequence[str] = ()


@dataclass(frozen=True)
class Pair:
    """A certificate and its key, PEM."""

    certificate: bytes
    key: bytes


def _subject(name: str, group: str = "") -> x509.Name:
    attributes = [x509.NameAttribute(NameOID.COMMON_NAME, name)]
    if group:
        attributes.insert(0, x509.NameAttribute(NameOID.ORGANIZATION_NAME, group))
    return x509.Name(attributes)


def _alternative_names(addresses: Sequence[str]) -> list[x509.GeneralName]:
    names: list[x509.GeneralName] = []
    for address in addresses:
        try:
            names.append(x509.IPAddress(ipaddress.ip_address(address)))
        except ValueError:
            names.append(x509.DNSName(address))
    return names


def _key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.TraditionalOpenSSL,
        serialization.NoEncryption(),
    )


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, now: datetime
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - BACKDATED)
    )


def make_authority(name: str, now: datetime) -> Pair:
    """A self-signed certificate authority."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = _subject(name)
    certificate = (
        _builder(subject, subject, key.public_key(), now)
        .not_valid_after(now + CA_LIFE)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    return Pair(certificate.public_bytes(serialization.Encoding.PEM), _key_pem(key))


def issue(authority: Pair, identity: Identity, now: datetime) -> Pair:
    """A certificate for *identity*, good for both ends of a connection."""
    issuer = x509.load_pem_x509_certificate(authority.certificate)
    signer = serialization.load_pem_private_key(authority.key, None)
    assert isinstance(signer, ec.EllipticCurvePrivateKey)
    key = ec.generate_private_key(ec.SECP256R1())
    usages = x509.ExtendedKeyUsage(
        [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
    )
    builder = (
        _builder(_subject(identity.name, identity.group), issuer.subject, key.public_key(), now)
        .not_valid_after(now + LIFE)
        .add_extension(usages, critical=False)
    )
    names = _alternative_names(identity.addresses)
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    certificate = builder.sign(signer, hashes.SHA256())
    return Pair(certificate.public_bytes(serialization.Encoding.PEM), _key_pem(key))


def fits(pair: Pair, authority: Pair, identity: Identity, now: datetime) -> bool:
    """Whether *pair* still is what :func:`issue` would make for *identity*."""
    certificate = x509.load_pem_x509_certificate(pair.certificate)
    try:
        certificate.verify_directly_issued_by(x509.load_pem_x509_certificate(authority.certificate))
    except Exception:  # InvalidSignature, or another authority's name: either way it is not ours
        return False
    return (
        certificate.subject == _subject(identity.name, identity.group)
        and _names_of(certificate) == _alternative_names(identity.addresses)
        and certificate.not_valid_after_utc - now > LEAST_LEFT
    )


def _names_of(certificate: x509.Certificate) -> list[x509.GeneralName]:
    try:
        found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    except x509.ExtensionNotFound:
        return []
    return list(found.value)


class Store:
    """The cluster's keys on disk, in one directory only root can read."""

    def __init__(self, directory: Path, cluster: str) -> None:
        self.directory = directory
        self.cluster = cluster
        directory.mkdir(parents=True, exist_ok=True)
        directory.chmod(0o700)

    def authority(self) -> Pair:
        """The cluster's certificate authority."""
        return self._load("ca") or self._save(
            "ca", make_authority(f"{self.cluster} testbed", datetime.now(UTC))
        )

    def pair(self, identity: Identity) -> Pair:
        """Certificate and key of *identity*."""
        now = datetime.now(UTC)
        kept = self._load(identity.file)
        if kept and fits(kept, self.authority(), identity, now):
            return kept
        return self._save(identity.file, issue(self.authority(), identity, now))

    def service_account_key(self) -> bytes:
        """The private key that signs service account tokens."""
        path = self.directory / "service-account.key"
        if not path.exists():
            self._write(path, _key_pem(ec.generate_private_key(ec.SECP256R1())))
        return path.read_bytes()

    def _load(self, name: str) -> Pair | None:
        certificate, key = self.directory / f"{name}.crt", self.directory / f"{name}.key"
        if not (certificate.exists() and key.exists()):
            return None
        return Pair(certificate.read_bytes(), key.read_bytes())

    def _save(self, name: str, pair: Pair) -> Pair:
        # Killed between these three, the pair counts as missing: never an old half with a new one.
        (self.directory / f"{name}.crt").unlink(missing_ok=True)
        self._write(self.directory / f"{name}.key", pair.key)
        self._write(self.directory / f"{name}.crt", pair.certificate)
        return pair

    def _write(self, path: Path, data: bytes) -> None:
        scratch = path.with_name(f".{path.name}.new")
        scratch.touch(mode=0o600)
        scratch.write_bytes(data)
        scratch.rename(path)
