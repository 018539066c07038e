"""TLS under the handshake, never instead of it: for proxies and firewalls that want to see it."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from pathlib import Path

from p2pfl.errors import ConfigError

__all__ = ["TlsSettings"]


@dataclass(frozen=True, slots=True)
class TlsSettings:
    """PEM files. A listener needs `cert` and `key`; with a `ca`, both ends must show a certificate that it signed."""

    cert: Path | None = None
    key: Path | None = None
    ca: Path | None = None

    def server_context(self) -> ssl.SSLContext:
        """For listening. Raises ConfigError."""
        if self.cert is None or self.key is None:
            raise ConfigError("tls: listening with TLS needs a certificate and its key: set tls_cert and tls_key")
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        if self.ca is not None:
            context.verify_mode = ssl.CERT_REQUIRED
        return self._load(context)

    def client_context(self) -> ssl.SSLContext:
        """For dialling: the server's name is always checked, against `ca` or else the system's. Raises ConfigError."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        if self.ca is None:
            context.load_default_certs()
        return self._load(context)

    def _load(self, context: ssl.SSLContext) -> ssl.SSLContext:
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        try:
            if self.ca is not None:
                context.load_verify_locations(self.ca)
            if self.cert is not None:
                context.load_cert_chain(self.cert, self.key)
        except (OSError, ssl.SSLError) as error:
            raise ConfigError(
                f"tls: the PEM files cannot be loaded ({error}): check tls_cert, tls_key, tls_ca"
            ) from error
        return context
