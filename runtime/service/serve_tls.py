# SPDX-License-Identifier: Apache-2.0
"""The service's certificate and key: read, checked for its end, made into a TLS context."""

from __future__ import annotations

import re
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

    DER (RFC 5280 §4.1.2.5): the validity is two times, UTCTime or GeneralizedTime, before any other in it.
    """
    begin = text.index(ssl.PEM_HEADER)
    der = ssl.PEM_cert_to_DER_cert(text[begin : text.index(ssl.PEM_FOOTER, begin) + len(ssl.PEM_FOOTER)])
    time = rb"(?:\x17\x0d(\d{12})|\x18\x0f(\d{14}))Z"
    validity = re.search(rb"\x30." + time + time, der, re.DOTALL)
    if validity is None:
        raise ValueError("the certificate is cut off")
    short, long = validity[3], validity[4]
    end = datetime.strptime((short or long).decode(), "%y%m%d%H%M%S" if short else "%Y%m%d%H%M%S")
    return end.replace(tzinfo=timezone.utc)
