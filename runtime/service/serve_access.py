# SPDX-License-Identifier: Apache-2.0
"""Who may talk to the service: the address it listens on, the token, the browser's origin, and one control lease.

Without a token only this machine is listened to, and a web page opened in its browser is kept out by `Host` and
`Origin` (a page of another site, and a foreign name that points here).
"""

from __future__ import annotations

import hmac
import ipaddress
import secrets
import ssl
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from vla_edge.errors import ServeError
from vla_edge.runtime.service.serve_tls import tls_context

TOKEN_CHARACTERS = 16
LEASE_S = 5.0
"""A holder that says nothing for so long has lost the lease."""


@dataclass(frozen=True, slots=True)
class Access:
    """host: as given with --host. token: None only on loopback. tls: None only on loopback."""

    host: str
    token: bytes | None
    tls: ssl.SSLContext | None

    def refusal(self, headers: Mapping[str, str]) -> tuple[int, str] | None:
        """(HTTP status, why) when a request with these headers is not let in."""
        if not self._own_name(headers.get("Host", "")):
            return 403, "the Host header names another machine; use the address the service was started with"
        origin = headers.get("Origin")
        if origin is not None and _place(origin) != headers.get("Host"):
            return 403, "a page of another site may not talk to this service"
        if self.token is not None and not self._token_is_right(headers.get("Authorization", "")):
            return 401, "the token is missing or wrong; send `Authorization: Bearer TOKEN`"
        return None

    def _own_name(self, host: str) -> bool:
        """With a token any name will do: a foreign page does not know it."""
        if self.token is not None:
            return True
        try:
            name = urlsplit(f"//{host}").hostname or ""
        except ValueError:  # half an IPv6 address
            return False
        return _is_loopback(name)

    def _token_is_right(self, given: str) -> bool:
        assert self.token is not None
        scheme, _, token = given.partition(" ")
        known = scheme.lower() in ("bearer", "api-key")  # openpi's client says Api-Key
        return hmac.compare_digest(token.strip().encode("utf-8", "surrogateescape"), self.token) and known


def access(host: str, token_file: Path | None, certificate: Path | None, key: Path | None) -> Access:
    """ServeError names what is missing: off loopback both a token and TLS are needed."""
    token = None if token_file is None else read_token(token_file)
    tls = None
    if certificate is not None or key is not None:
        if certificate is None or key is None:
            raise ServeError("--certificate and --key belong together; give both")
        tls = tls_context(certificate, key)
    if not _is_loopback(host) and (token is None or tls is None):
        lacks = (
            "neither a token nor TLS" if token is None and tls is None else "no token" if token is None else "no TLS"
        )
        raise ServeError(
            f"{host} can be reached from other machines and there is {lacks}; give --token-file, --certificate and "
            "--key, or stay on 127.0.0.1"
        )
    return Access(host, token, tls)


def read_token(path: Path) -> bytes:
    """The token in a file that only its owner can read. ServeError otherwise, or when it is too short to be a
    secret."""
    try:
        mode = path.stat().st_mode
        text = path.read_bytes().strip()
    except OSError as error:
        raise ServeError(
            f"token file {path}: {error.strerror}; write a random text of {TOKEN_CHARACTERS} characters or more into it"
        ) from None
    if stat.S_IMODE(mode) & 0o077:
        raise ServeError(f"token file {path} can be read by others (mode {stat.S_IMODE(mode):o}); chmod 600 it")
    if len(text) < TOKEN_CHARACTERS or any(byte <= 32 or byte > 126 for byte in text):
        raise ServeError(
            f"token file {path}: the token must be {TOKEN_CHARACTERS} or more visible ASCII characters; it has "
            f"{len(text)}"
        )
    return text


class ControlLease:
    """At most one client may give the arm words at a time. Time is an argument (ns of one clock)."""

    def __init__(self, seconds: float = LEASE_S) -> None:
        self._length_ns = int(seconds * 1e9)
        self._holder = ""
        self._secret = ""
        self._until_ns = 0
        self._armed = False
        """the holder asked to let chunks move the arm"""
        self._fell_silent = False
        """a holder who armed lost the lease, and nobody was told yet"""

    def take(self, holder: str, now_ns: int) -> str | None:
        """A secret that proves the lease; None while another holds it. holder: what others are shown."""
        if self.held(now_ns):
            return None
        self._note_silence()
        self._holder, self._secret = holder, secrets.token_urlsafe(24)
        self._until_ns = now_ns + self._length_ns
        return self._secret

    def renew(self, secret: str, now_ns: int) -> bool:
        """Whether `secret` proves the lease, which then lasts anew."""
        if not self.held(now_ns) or not hmac.compare_digest(
            secret.encode("utf-8", "surrogateescape"), self._secret.encode()
        ):
            return False
        self._until_ns = now_ns + self._length_ns
        return True

    def release(self, secret: str, now_ns: int) -> bool:
        """Give it back."""
        if not self.renew(secret, now_ns):
            return False
        self._until_ns = now_ns
        self._armed = False
        return True

    def armed(self) -> None:
        """The holder asks to arm the arm: when the lease lapses it must hold."""
        self._armed = True

    def lapsed(self, now_ns: int) -> bool:
        """True once, when the lease of a holder who armed the arm ran out without being given back; also when another
        has taken it since."""
        if not self.held(now_ns):
            self._note_silence()
        lapsed, self._fell_silent = self._fell_silent, False
        return lapsed

    def end(self) -> bool:
        """Nobody watches the lease from now on: whether the arm must hold because its holder armed it."""
        self._note_silence()
        self._until_ns = 0
        return self._fell_silent

    def _note_silence(self) -> None:
        self._fell_silent |= self._armed
        self._armed = False

    def held(self, now_ns: int) -> bool:
        return now_ns < self._until_ns

    def holder(self, now_ns: int) -> str:
        """Who holds it, empty when nobody does."""
        return self._holder if self.held(now_ns) else ""


def _place(url: str) -> str:
    """Host and port of a URL, empty when it is none."""
    try:
        return urlsplit(url).netloc
    except ValueError:
        return ""


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
