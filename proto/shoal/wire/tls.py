"""TLS: which files, and credentials made of them. Files are read again when they change, so nothing is restarted when
a certificate is renewed; connections that exist go on with the old one.

Three hops. Client to router: `certificate`, `key`, and `client_ca` when clients may show certificates. Router to
worker, and worker to worker's wake-up: the `internal_` files, both ends show one and check the other's. (Router to
Redis: the URL says so, `rediss://`.)
"""

from __future__ import annotations

import ssl
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import grpc

from shoal.wire.settings import SettingError, requirer

INTERNAL_NAME = "shoal-internal"
"""The DNS name that certificates of workers must have: their addresses change, their name does not."""

_MINIMUM = ssl.TLSVersion.TLSv1_2


@dataclass(frozen=True, slots=True)
class TlsConfig:
    """PEM files. Empty: that hop is in the clear. A wrong set raises SettingError naming its key."""

    certificate: str = ""
    """The router's certificate and those between it and its CA; both APIs show it."""
    key: str = ""
    """Its private key."""
    client_ca: str = ""
    """CAs of clients' certificates; who shows one is known by it. gRPC then demands one, HTTP accepts one."""
    internal_ca: str = ""
    """CAs that routers and workers believe each other by."""
    internal_certificate: str = ""
    """What routers and workers show each other; its name must be shoal-internal."""
    internal_key: str = ""
    """Its private key."""

    def __post_init__(self) -> None:
        require = requirer("tls", self)
        require("key", bool(self.certificate) == bool(self.key), "given together with tls.certificate")
        require("client_ca", not self.client_ca or self.serves, "empty without tls.certificate")
        internal = (self.internal_ca, self.internal_certificate, self.internal_key)
        require("internal_ca", all(internal) or not any(internal), "given with internal_certificate and internal_key")

    @property
    def serves(self) -> bool:
        """Whether clients are served over TLS."""
        return bool(self.certificate)

    @property
    def internal(self) -> bool:
        """Whether routers and workers talk over TLS."""
        return bool(self.internal_ca)

    def check_files(self) -> None:
        """Raise SettingError naming the setting whose file cannot be read or does not fit its key."""
        for key in self.__slots__:
            if path := getattr(self, key):
                try:
                    Path(path).read_bytes()
                except OSError as error:
                    raise SettingError(f"tls.{key}: {path} cannot be read: {error.strerror}") from None
        for prefix in ("", "internal_"):
            chain, key = getattr(self, f"{prefix}certificate"), getattr(self, f"{prefix}key")
            if chain:
                try:
                    ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(chain, key)
                except ssl.SSLError as error:
                    raise SettingError(f"tls.{prefix}certificate and tls.{prefix}key do not fit: {error}") from None


_Made = TypeVar("_Made")


class Changing(Generic[_Made]):
    """Something made of files, made again when one of them changed. Any thread may ask."""

    def __init__(self, paths: tuple[str, ...], make: Callable[[], _Made]) -> None:
        self._paths, self._make = tuple(path for path in paths if path), make
        self._lock = threading.Lock()
        self._seen: tuple[tuple[int, int, int], ...] = ()

    def changed(self) -> _Made | None:
        """What the files make now, None when it is the same as before. Half-written files are not believed: what was
        made before stays until they make sense."""
        with self._lock:
            try:
                seen = tuple(self._stamp(path) for path in self._paths)
                if seen == self._seen:
                    return None
                made = self._make()
            except (OSError, ValueError):
                return None
            self._seen = seen
            return made

    @staticmethod
    def _stamp(path: str) -> tuple[int, int, int]:
        stat = Path(path).stat()  # follows links: a mounted secret changes by one
        return stat.st_ino, stat.st_mtime_ns, stat.st_size


def serving_credentials(certificate: str, key: str, client_ca: str, *, required: bool) -> grpc.ServerCredentials:
    """For a gRPC server; `required`: refuse clients without a certificate of `client_ca`. Reads the files anew at
    every handshake that finds them changed. Raises OSError, and ValueError for a certificate that does not fit."""

    def made() -> grpc.ServerCertificateConfiguration:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key)  # half-written files fail here
        pair = (Path(key).read_bytes(), Path(certificate).read_bytes())
        roots = Path(client_ca).read_bytes() if client_ca else None
        return grpc.ssl_server_certificate_configuration([pair], root_certificates=roots)

    first = made()
    files = Changing((certificate, key, client_ca), made)
    files.changed()
    # gRPC's Python does not ask for a certificate unless it requires one.
    changed: Any = files.changed  # None says "as before", which the stub does not know
    return grpc.dynamic_ssl_server_credentials(first, changed, require_client_authentication=required)


def calling_credentials(ca: str, certificate: str = "", key: str = "") -> grpc.ChannelCredentials:
    """For one channel, as the files are now. Raises OSError. Empty `ca`: those of the machine."""
    return grpc.ssl_channel_credentials(
        Path(ca).read_bytes() if ca else None,
        Path(key).read_bytes() if key else None,
        Path(certificate).read_bytes() if certificate else None,
    )


def internal_server(config: TlsConfig) -> grpc.ServerCredentials | None:
    """For a worker's server, None for one in the clear. Routers and other workers must show a certificate."""
    if not config.internal:
        return None
    pair = (config.internal_certificate, config.internal_key)
    return serving_credentials(*pair, config.internal_ca, required=True)


def internal_client(config: TlsConfig) -> grpc.ChannelCredentials | None:
    """For a channel to a worker, None for one in the clear. Made anew for each channel, it follows changed files."""
    if not config.internal:
        return None
    return calling_credentials(config.internal_ca, config.internal_certificate, config.internal_key)


def http_context(config: TlsConfig) -> ssl.SSLContext:
    """For an HTTP server: follows changed files from one connection to the next. Raises OSError, ssl.SSLError."""

    def made() -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = _MINIMUM
        context.load_cert_chain(config.certificate, config.key)
        context.set_alpn_protocols(["http/1.1"])
        if config.client_ca:
            context.load_verify_locations(config.client_ca)
            context.verify_mode = ssl.CERT_OPTIONAL
        return context

    outer = made()
    files = Changing((config.certificate, config.key, config.client_ca), made)
    files.changed()

    def each_connection(connection: ssl.SSLObject, name: str | None, context: ssl.SSLContext) -> None:
        if (fresh := files.changed()) is not None:
            latest[0] = fresh
        connection.context = latest[0]

    latest = [outer]
    outer.sni_callback = each_connection  # called without a name, too
    return outer
