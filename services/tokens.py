"""Tokens: who may call what. Kept as SHA-256, compared in constant time, checked before any message is read.

The file (contracts §4):

    [tokens.ci]                       # a name for the log
    sha256 = "9f86d081..."            # of the token; `printf %s TOKEN | sha256sum`
    services = ["inference"]          # default: every service of the listener
    models = ["minilm", "digits"]     # default: every model
    max_priority = 0                  # the highest priority that counts; default: 9

Pure: it reads text, not files, and knows nothing of gRPC.
"""

from __future__ import annotations

import hashlib
import hmac
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from actorserve.actors.claims import HIGHEST, LOWEST
from actorserve.errors import ConfigError

KEYS = frozenset(("sha256", "services", "models", "max_priority"))
SCHEME = "bearer "


@dataclass(frozen=True, slots=True)
class Token:
    """One token. None: everything but `refuses` is allowed. `max_priority`: what a call asks for above it counts so."""

    name: str
    digest: bytes
    services: frozenset[str] | None = None
    models: frozenset[str] | None = None
    max_priority: int = HIGHEST
    refuses: frozenset[str] = frozenset()

    def allows_service(self, service: str) -> bool:
        """Whether calls to a service (its config name) are allowed."""
        return service not in self.refuses and (self.services is None or service in self.services)

    def allows_model(self, model: str) -> bool:
        """Whether calls about a model are allowed."""
        return self.models is None or model in self.models


class Tokens:
    """All tokens of a listener."""

    def __init__(self, tokens: Iterable[Token]) -> None:
        self._tokens = tuple(tokens)

    def find(self, authorization: str) -> Token | None:
        """The token that an `authorization` header brings; None if it is none of ours.

        Every token is compared, each in constant time: how long it takes tells nothing.
        """
        if authorization[: len(SCHEME)].lower() != SCHEME:
            return None
        digest = hashlib.sha256(authorization[len(SCHEME) :].strip().encode()).digest()
        found = None
        for token in self._tokens:
            if hmac.compare_digest(token.digest, digest):
                found = token
        return found


def read_tokens(path: Path) -> Tokens:
    """Read a file of tokens; ConfigError says what is wrong with it."""
    try:
        content = tomllib.loads(path.read_text())
    except OSError as error:
        raise ConfigError("tokens_file", f"{path} cannot be read: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError("tokens_file", f"{path} is not TOML: {error}") from None
    tables = content.get("tokens")
    if not isinstance(tables, dict) or not tables or set(content) != {"tokens"}:
        raise ConfigError("tokens_file", f"{path} must hold [tokens.NAME] tables and nothing else")
    return Tokens(_token(path, name, table) for name, table in tables.items())


def _token(path: Path, name: str, table: Any) -> Token:
    where = f"{path}: tokens.{name}"
    if not isinstance(table, dict) or set(table) - KEYS:
        raise ConfigError("tokens_file", f"{where} may hold {', '.join(sorted(KEYS))} only")
    try:
        digest = bytes.fromhex(table.get("sha256", ""))
    except (ValueError, TypeError):
        digest = b""
    if len(digest) != hashlib.sha256().digest_size:
        raise ConfigError("tokens_file", f"{where}.sha256 is not 64 hexadecimal digits")
    highest = table.get("max_priority", HIGHEST)
    if type(highest) is not int or not LOWEST <= highest <= HIGHEST:  # a bool is an int too
        raise ConfigError("tokens_file", f"{where}.max_priority is not a whole number from {LOWEST} to {HIGHEST}")
    return Token(name, digest, _names(where, table, "services"), _names(where, table, "models"), highest)


def _names(where: str, table: dict[str, Any], key: str) -> frozenset[str] | None:
    names = table.get(key)
    if names is None:
        return None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ConfigError("tokens_file", f"{where}.{key} is not a list of names")
    return frozenset(names)
