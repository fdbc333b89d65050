"""Where a server may listen, and with which token."""

from __future__ import annotations

import ipaddress
import os
from pathlib import Path

from nlp_distill.errors import ListeningUnsafe, TokenUnfit

TOKEN_VARIABLE = "NLP_DISTILL_TOKEN"
SHORTEST = 16


def read_token(file: Path | None = None) -> str | None:
    """The token, from a file or the environment; never an argument, which other users can see.

    Raises `TokenUnfit`.
    """
    if file is None:
        token = os.environ.get(TOKEN_VARIABLE, "").strip()
        return _fit(token, TOKEN_VARIABLE) if token else None
    try:
        return _fit(file.read_text(encoding="ascii").strip(), str(file))
    except (OSError, UnicodeDecodeError) as error:
        raise TokenUnfit(source=file, reason="it cannot be read") from error


def _fit(token: str, source: str) -> str:
    if len(token) < SHORTEST or not token.isascii() or not token.isprintable() or " " in token:
        raise TokenUnfit(source=source, reason=f"it needs at least {SHORTEST} letters, without blanks")
    return token


def is_loopback(host: str) -> bool:
    """Whether an address is reached from this machine only."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def check_listening(host: str, token: str | None) -> None:
    """Raises `ListeningUnsafe` for an address that others reach, without a token."""
    if token is None and not is_loopback(host):
        raise ListeningUnsafe(host=host, variable=TOKEN_VARIABLE)
