"""The authority whose certificates a sandbox's proxy shows to the code in it.

The proxy ends TLS inside the sandbox, where nothing needs protection from the code: its requests
reach the host as calls. The authority of a sandbox is trusted in that sandbox alone, and signs
nothing after it is gone.

Rule: keys and signatures are Ed25519, so that a handshake has the same number of bytes each time:
a replayed event loop counts them.
"""

from __future__ import annotations

import ipaddress
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from ..config.web_rules import is_ip_address, parse_host

MAX_HOSTS = 1_000  # that one sandbox gets certificates for
VALID_FROM = timedelta(days=-1)  # clocks differ
VALID_UNTIL = timedelta(days=3650)
NAME = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "sandbox web proxy")])


class CertificateAuthority:
    """Issues certificates for one sandbox, all with one key, which its proxy has."""

    def __init__(self) -> None:
        self._key = Ed25519PrivateKey.generate()
        self._leaf_key = Ed25519PrivateKey.generate()
        self._issued: dict[str, str] = {}
        self._serial_number = 1 << 64  # of a fixed length
        self._certificate = self._sign(
            self._key,
            NAME,
            (x509.BasicConstraints(ca=True, path_length=0), True),
            (x509.SubjectKeyIdentifier.from_public_key(self._key.public_key()), False),
            (_key_usage(is_authority=True), True),
        )

    def describe(self) -> dict[str, str]:
        """Return what the sandbox gets: the authority's certificate, and the key of all others."""
        key = self._leaf_key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        return {"authority": self._certificate, "key": key.decode()}

    def issue_certificate(self, name: str) -> str:
        """Return a certificate in PEM, or "" if there can be none for `name`."""
        try:
            host = parse_host(f"[{name}]" if ":" in name else name)
        except ValueError:
            return ""
        if host not in self._issued:
            if len(self._issued) >= MAX_HOSTS:
                return ""
            self._issued[host] = self._sign_leaf(host)
        return self._issued[host]

    def _sign_leaf(self, host: str) -> str:
        name: x509.GeneralName = x509.DNSName(host)
        if is_ip_address(host):
            name = x509.IPAddress(ipaddress.ip_address(host))
        own_key = x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key())
        return self._sign(
            self._leaf_key,
            x509.Name([]),
            (x509.SubjectAlternativeName([name]), True),
            (x509.BasicConstraints(ca=False, path_length=None), True),
            (x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), False),
            (own_key, False),
            (_key_usage(is_authority=False), True),
        )

    def _sign(
        self,
        key: Ed25519PrivateKey,
        subject: x509.Name,
        *extensions: tuple[x509.ExtensionType, bool],
    ) -> str:
        self._serial_number += 1
        now = datetime.now(UTC)
        builder = (
            x509.CertificateBuilder()
            .issuer_name(NAME)
            .subject_name(subject)
            .public_key(key.public_key())
            .serial_number(self._serial_number)
            .not_valid_before(now + VALID_FROM)
            .not_valid_after(now + VALID_UNTIL)
        )
        for extension, is_critical in extensions:
            builder = builder.add_extension(extension, is_critical)
        return builder.sign(self._key, None).public_bytes(Encoding.PEM).decode()


def _key_usage(*, is_authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not is_authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=is_authority,
        crl_sign=is_authority,
        encipher_only=False,
        decipher_only=False,
    )
