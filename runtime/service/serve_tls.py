# SPDX-License-Identifier: Apache-2.0
"""The service's certificate and key: read, checked for its end, made into a TLS context."""

from __future__ import annotations

import ssl
from datetime import datetime, timezone
from pathlib import Path

from vla_edge.errors import ServeError


def tls_context(certificate: Path, key: Path) -> ssl.SSLContext:
    """TLS 1.2 or newer. ServeError: not readable, not of each other, with a passphrase, or expired."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_cert_chain(
            certificate, key, password=""
        )  # without one OpenSSL asks at the terminal: a service never prompts
        ends = certificate_ends(certificate.read_text("latin-1"))
    except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
        why = getattr(error, "strerror", None) or error
        raise ServeError(
            f"{certificate}, {key}: no certificate with its key ({why}); give both as PEM, the key without a passphrase"
        ) from None
    if ends < datetime.now(timezone.utc):
        raise ServeError(f"{certificate}: expired on {ends:%Y-%m-%d %H:%M} UTC and no client would trust it; renew it")
    return context


def certificate_ends(text: str) -> datetime:
    """Until when the first certificate of a PEM text is valid. ValueError: there is none in it.

    DER (RFC 5280 §4.1): tbsCertificate is the first element of the certificate; in it stand an optional version,
    serial number, algorithm, issuer, and then the validity: two times, UTCTime or GeneralizedTime.
    """
    begin = text.index(ssl.PEM_HEADER)
    der = ssl.PEM_cert_to_DER_cert(text[begin : text.index(ssl.PEM_FOOTER, begin) + len(ssl.PEM_FOOTER)])
    (_, certificate), *_ = _elements(der)
    (_, signed), *_ = _elements(certificate)
    parts = [part for part in _elements(signed) if part[0] != 0xA0]  # the version
    (_, _), (tag, end) = _elements(parts[3][1])
    shown = end.decode("ascii")
    return datetime.strptime(shown, "%y%m%d%H%M%SZ" if tag == 0x17 else "%Y%m%d%H%M%SZ").replace(tzinfo=timezone.utc)


def _elements(der: bytes) -> list[tuple[int, bytes]]:
    """(tag, content) of each DER element. ValueError: cut off."""
    found = []
    while der:
        if len(der) < 2:
            raise ValueError("the certificate is cut off")
        tag, size, at = der[0], der[1], 2
        if size & 0x80:
            at += size & 0x7F
            size = int.from_bytes(der[2:at], "big")
        if len(der) < at + size:
            raise ValueError("the certificate is cut off")
        found.append((tag, der[at : at + size]))
        der = der[at + size :]
    return found
