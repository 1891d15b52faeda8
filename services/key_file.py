"""TorchServe's key_file.json: the keys of one server, made at its start, renewed before they expire.

    {"management": {"key", "expiration time"}, "inference": {"key", "expiration time"}, "API": {"key"}}

A listener takes the keys of what it serves, compared as SHA-256 in constant time, before any message is read; where
it serves both, each opens its own service and what is neither. The file is 0600 and replaced whole. Keys that were
replaced stay valid for a while, so that no client is cut off. The API key is there for the file's readers alone:
TorchServe renews over REST with it, here nobody has to ask.
What must not live here: tokens.toml (tokens.py), what a refusal says (access.py).
"""

from __future__ import annotations

import datetime as dt
import hashlib
import hmac
import json
import os
import re
import secrets
import time
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import structlog
import trio

from actorserve.errors import StartFailed
from actorserve.services.tokens import Token

KINDS = ("management", "inference")
LEAD_S = 300.0
"""Seconds before the keys expire at which new ones take their place; half their life, where that is shorter."""
RETRY_S = 60.0
KEY_BYTES = 24
AUTHORIZATION = re.compile(r"Bearer\s+(\S+)")  # its case counts: facts of TorchServe 0.12.0

log = structlog.get_logger("actorserve.keys")


@dataclass(frozen=True, slots=True)
class Keys:
    """One set of keys. `expires`: seconds since 1970, None for never."""

    management: str
    inference: str
    api: str
    expires: float | None

    def text(self) -> str:
        """The file's content."""
        until = None if self.expires is None else _instant(self.expires)
        timed = {kind: {"key": getattr(self, kind), "expiration time": until} for kind in KINDS}
        return json.dumps({**timed, "API": {"key": self.api}}, indent=2) + "\n"


def _instant(seconds: float) -> str:
    return dt.datetime.fromtimestamp(seconds, dt.UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


@dataclass(frozen=True, slots=True)
class Known:
    """What is left of a key: its digest, and until when it counts; None: as long as the file holds it."""

    kind: str
    digest: bytes
    until: float | None = None


def lead_s(expiration_s: float) -> float:
    """Seconds before their expiry at which keys are renewed."""
    return min(LEAD_S, expiration_s / 2)


class KeyFile:
    """See the module's docstring. `expiration_s` 0: never. Times of validity are trio's clock, the file's are `now`."""

    def __init__(
        self,
        path: Path,
        *,
        expiration_s: float,
        overlap_s: float,
        now: Callable[[], float] = time.time,
        make: Callable[[], str] = lambda: secrets.token_urlsafe(KEY_BYTES),
    ) -> None:
        self.path = path
        self._expiration_s = expiration_s
        self._overlap_s = overlap_s
        self._now = now
        self._make = make
        self._known: tuple[Known, ...] = ()
        self._written = b""

    def begin(self) -> None:
        """Write the first keys; whatever the file held counts no more. StartFailed. Idempotent."""
        if self._written:
            return
        try:
            self._renew(())
        except OSError as error:
            raise StartFailed(f"key_file: {self.path} cannot be written: {error.strerror}") from None
        log.info("keys written", file=str(self.path), minutes=self._expiration_s / 60 or "for ever")

    async def run(self) -> None:
        """Renew the keys in time, until cancelled. A file that cannot be written keeps its keys valid, and is tried
        again every minute.
        """
        if not self._expiration_s:
            await trio.sleep_forever()
        wait_s = self._expiration_s - lead_s(self._expiration_s)
        due = trio.current_time() + wait_s
        while True:
            await trio.sleep_until(due)
            try:
                self._renew(self._outgoing(trio.current_time()))
            except OSError as error:
                log.error("keys not renewed", file=str(self.path), why=error.strerror)  # noqa: TRY400  # no bug here
                due = trio.current_time() + RETRY_S
                continue
            log.info("keys renewed", file=str(self.path), old_ones_valid_s=self._old_s())
            due = trio.current_time() + wait_s

    def find(self, kinds: Collection[str], authorization: str) -> Token | None:
        """The key of one of these kinds that an `authorization` header brings; None if it brings none.

        Every key is compared, each in constant time: how long it takes tells nothing.
        """
        matched = AUTHORIZATION.fullmatch(authorization)
        if matched is None:
            return None
        digest, now = _digest(matched[1]), trio.current_time()
        found = None
        for known in self._known:
            same = hmac.compare_digest(known.digest, digest)
            if same and known.kind in kinds and (known.until is None or now < known.until):
                found = Token(known.kind, known.digest, refuses=frozenset(KINDS) - {known.kind})
        return found

    def remove(self) -> None:
        """Remove the file, if it is still the one that was written here."""
        with suppress(OSError):
            if self._written and self.path.read_bytes() == self._written:
                self.path.unlink()

    def _old_s(self) -> float:
        """Seconds that replaced keys stay valid: never less than their file has promised."""
        return max(self._overlap_s, lead_s(self._expiration_s))

    def _outgoing(self, now: float) -> tuple[Known, ...]:
        """The keys known now that go on for a while."""
        ends = now + self._old_s()
        aged = (Known(one.kind, one.digest, ends if one.until is None else one.until) for one in self._known)
        return tuple(one for one in aged if one.until is not None and one.until > now)

    def _renew(self, outgoing: tuple[Known, ...]) -> None:
        """Make keys, write them, and only then let them count. OSError."""
        expires = self._now() + self._expiration_s if self._expiration_s else None
        keys = Keys(self._make(), self._make(), self._make(), expires)
        data = keys.text().encode()
        replace_privately(self.path, data)
        self._written = data
        self._known = (*(Known(kind, _digest(getattr(keys, kind))) for kind in KINDS), *outgoing)


class Door:
    """One listener's use of a KeyFile: the kinds of what it serves."""

    def __init__(self, keys: KeyFile, services: Collection[str]) -> None:
        self._keys = keys
        self._kinds = frozenset(KINDS) & frozenset(services)

    def find(self, authorization: str) -> Token | None:
        """See `KeyFile.find`."""
        return self._keys.find(self._kinds, authorization)


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode(errors="replace")).digest()


def replace_privately(path: Path, data: bytes) -> None:
    """Replace a file by one that only its owner may read; a reader finds the old or the new, whole. OSError."""
    part = path.with_name(f".{path.name}.{os.getpid()}")
    part.unlink(missing_ok=True)
    descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    try:
        with open(descriptor, "wb") as file:  # noqa: PTH123  # it is a descriptor
            file.write(data)
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
