"""How the command line makes itself known to a router, and knows the router.

SHOAL_API_KEY           an API key or a token
SHOAL_CA                CAs that the router's certificate is checked by; where the router's own files are set: those
SHOAL_CERTIFICATE, SHOAL_KEY   a client certificate, where the router demands one
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

import grpc
import grpc.aio

from shoal.cluster.config import Settings
from shoal.cluster.errors import ConfigError
from shoal.wire.credentials import is_loopback, open_channel, open_sync_channel
from shoal.wire.tls import TlsConfig, calling_credentials


@dataclass(frozen=True, slots=True)
class OwnAccess:
    """Opens channels to routers and to workers."""

    key: str = ""
    ca: str = ""
    """Empty: routers are called in the clear."""
    certificate: str = ""
    certificate_key: str = ""
    name: str = ""
    """Who a router on this machine says it is, where it is called by address."""
    tls: TlsConfig | None = None
    """How workers are called."""

    @classmethod
    def of(cls, settings: Settings, environment: Mapping[str, str] | None = None) -> OwnAccess:
        """What was set. Raises ConfigError."""
        environment = os.environ if environment is None else environment
        tls: TlsConfig = settings.part("tls")
        ca = environment.get("SHOAL_CA") or tls.certificate
        name = _name_in(tls.certificate) if tls.serves else ""
        certificate, key = environment.get("SHOAL_CERTIFICATE", ""), environment.get("SHOAL_KEY", "")
        return cls(environment.get("SHOAL_API_KEY", ""), ca, certificate, key, name, tls)

    def router(self, address: str) -> grpc.Channel:
        """A channel to a router. Raises ConfigError for a file that cannot be read."""
        return open_sync_channel(address, *self._known(address))

    def aio_router(self, address: str) -> grpc.aio.Channel:
        """The same for code in an event loop."""
        credentials, name = self._known(address)
        return open_channel(address, None, credentials, name)

    def _known(self, address: str) -> tuple[grpc.ChannelCredentials | None, str]:
        """How to call it, and who it must say that it is."""
        if not self.ca:
            return None, ""
        try:
            credentials = calling_credentials(self.ca, self.certificate, self.certificate_key)
        except OSError as error:
            raise ConfigError(f"SHOAL_CA or tls.certificate: {error}") from error
        return credentials, self.name if is_loopback(address.rpartition(":")[0]) else ""

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        """Sent with every call."""
        return (("authorization", f"Bearer {self.key}"),) if self.key else ()


def _name_in(certificate: str) -> str:
    """The first DNS name in a certificate file, empty when it has none."""
    from cryptography import x509

    try:
        with open(certificate, "rb") as file:
            made = x509.load_pem_x509_certificate(file.read())
        names = made.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (OSError, ValueError, x509.ExtensionNotFound):
        return ""
    return next(iter(names.get_values_for_type(x509.DNSName)), "")
