"""TLS settings: what is asked of the other end, and what is told to a user whose files are wrong."""

from __future__ import annotations

import ssl
from pathlib import Path

import pytest

from p2pfl.errors import ConfigError
from p2pfl.link.tls import TlsSettings
from tests.link import certificates


@pytest.fixture
def pem(tmp_path: Path) -> TlsSettings:
    for name in ("CA", "CERTIFICATE", "KEY"):
        (tmp_path / name).write_text(getattr(certificates, name))
    return TlsSettings(tmp_path / "CERTIFICATE", tmp_path / "KEY", tmp_path / "CA")


def test_both_ends_are_verified_with_a_ca(pem: TlsSettings) -> None:
    for context in (pem.server_context(), pem.client_context()):
        assert context.minimum_version is ssl.TLSVersion.TLSv1_3
        assert context.verify_mode is ssl.CERT_REQUIRED
    assert pem.client_context().check_hostname


def test_without_a_ca_only_the_listener_is_verified(pem: TlsSettings) -> None:
    settings = TlsSettings(pem.cert, pem.key)
    assert settings.server_context().verify_mode is ssl.CERT_NONE
    assert settings.client_context().verify_mode is ssl.CERT_REQUIRED
    assert TlsSettings().client_context().check_hostname


def test_listening_needs_a_certificate(pem: TlsSettings) -> None:
    with pytest.raises(ConfigError, match="tls_cert and tls_key"):
        TlsSettings(ca=pem.ca).server_context()


def test_files_that_cannot_be_loaded(pem: TlsSettings, tmp_path: Path) -> None:
    for settings in (
        TlsSettings(tmp_path / "none", pem.key),
        TlsSettings(pem.cert, pem.ca),
        TlsSettings(pem.cert, pem.key, pem.key),
    ):
        with pytest.raises(ConfigError, match="check tls_cert, tls_key, tls_ca"):
            settings.server_context()
