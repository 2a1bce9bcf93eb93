"""A certificate authority for tests: real certificates, made in a millisecond."""

from __future__ import annotations

import datetime
import ipaddress
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

_DAY = datetime.timedelta(days=1)


@dataclass(frozen=True)
class Pair:
    """Two PEM files."""

    certificate: str
    key: str

    @property
    def der(self) -> bytes:
        """The certificate as TLS sends it."""
        return x509.load_pem_x509_certificate(Path(self.certificate).read_bytes()).public_bytes(
            serialization.Encoding.DER
        )


class Authority:
    """Signs certificates into a folder."""

    def __init__(self, folder: Path, name: str = "test CA") -> None:
        self._folder, self._name = folder, x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        self._key = ec.generate_private_key(ec.SECP256R1())
        made = self._build(self._name, self._key, ca=True).sign(self._key, hashes.SHA256())
        self.file = str(folder / f"{name.replace(' ', '-')}.pem")
        Path(self.file).write_bytes(made.public_bytes(serialization.Encoding.PEM))

    def issue(self, file: str, *names: str, uri: str = "") -> Pair:
        """A certificate for DNS names and addresses, in `<file>.pem` and `<file>.key`; what was there is replaced."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, names[0] if names else file)])
        alternatives: list[x509.GeneralName] = [
            x509.IPAddress(ipaddress.ip_address(n)) if n[0].isdigit() else x509.DNSName(n) for n in names
        ]
        alternatives += [x509.UniformResourceIdentifier(uri)] if uri else []
        builder = self._build(subject, key, ca=False)
        if alternatives:
            builder = builder.add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
        pair = Pair(str(self._folder / f"{file}.pem"), str(self._folder / f"{file}.key"))
        made = builder.sign(self._key, hashes.SHA256())
        Path(pair.certificate).write_bytes(made.public_bytes(serialization.Encoding.PEM))
        Path(pair.key).write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )
        return pair

    def replace(self, other: Authority) -> None:
        """Our file names the other authority from now on."""
        Path(self.file).write_bytes(Path(other.file).read_bytes())

    def _build(self, subject: x509.Name, key: ec.EllipticCurvePrivateKey, *, ca: bool) -> x509.CertificateBuilder:
        now = datetime.datetime.now(datetime.UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - _DAY)
            .not_valid_after(now + _DAY)
            .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
        )
