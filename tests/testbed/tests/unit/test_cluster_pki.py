# SPDX-License-Identifier: GPL-3.0-or-later
"""Certificates: kept while they fit, made anew when anything about them is wrong."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from testbed.cluster import pki

NOW = datetime(2026, 1, 1, tzinfo=UTC)
WHO = pki.Identity("n1", "system:node:n1", "system:nodes", ["n1", "10.0.0.1"])


@pytest.fixture(scope="module")
def authority() -> pki.Pair:
    return pki.make_authority("unit", NOW)


def test_a_certificate_says_who_it_is_for(authority: pki.Pair) -> None:
    certificate = x509.load_pem_x509_certificate(pki.issue(authority, WHO, NOW).certificate)
    assert certificate.subject.rfc4514_string() == "CN=system:node:n1,O=system:nodes"
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["n1"]
    assert [str(ip) for ip in names.get_values_for_type(x509.IPAddress)] == ["10.0.0.1"]


def test_a_fresh_certificate_fits(authority: pki.Pair) -> None:
    assert pki.fits(pki.issue(authority, WHO, NOW), authority, WHO, NOW)


@pytest.mark.parametrize(
    "other",
    [
        pki.Identity("n1", "system:node:n2", "system:nodes", ["n1", "10.0.0.1"]),
        pki.Identity("n1", "system:node:n1", "system:masters", ["n1", "10.0.0.1"]),
        pki.Identity("n1", "system:node:n1", "system:nodes", ["n1", "10.0.0.2"]),
        pki.Identity("n1", "system:node:n1", "system:nodes"),
    ],
)
def test_a_certificate_for_someone_else_does_not_fit(
    authority: pki.Pair, other: pki.Identity
) -> None:
    assert not pki.fits(pki.issue(authority, WHO, NOW), authority, other, NOW)


def test_another_authority_of_the_same_name_does_not_fit(authority: pki.Pair) -> None:
    stranger = pki.make_authority("unit", NOW)
    assert not pki.fits(pki.issue(stranger, WHO, NOW), authority, WHO, NOW)


def test_a_certificate_is_renewed_before_it_ends(authority: pki.Pair) -> None:
    pair = pki.issue(authority, WHO, NOW)
    last = NOW + pki.LIFE - pki.LEAST_LEFT
    assert pki.fits(pair, authority, WHO, last - timedelta(seconds=1))
    assert not pki.fits(pair, authority, WHO, last)


def test_the_store_keeps_what_fits_and_replaces_half_a_pair(tmp_path: Path) -> None:
    first = pki.Store(tmp_path, "unit").pair(WHO)
    assert pki.Store(tmp_path, "unit").pair(WHO) == first
    (tmp_path / "n1.crt").unlink()
    second = pki.Store(tmp_path, "unit").pair(WHO)
    assert second != first
    assert pki.fits(second, pki.Store(tmp_path, "unit").authority(), WHO, datetime.now(UTC))


def test_the_store_is_for_root_alone(tmp_path: Path) -> None:
    store = pki.Store(tmp_path / "pki", "unit")
    store.pair(WHO)
    store.service_account_key()
    modes = {path.name: oct(path.stat().st_mode & 0o777) for path in store.directory.iterdir()}
    assert set(modes.values()) == {"0o600"}
    assert store.directory.stat().st_mode & 0o777 == 0o700
