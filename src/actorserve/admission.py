"""Who may come in on a listener, by the files that it names: tokens, keys, certificates.

    tokens_file   read now, and again when the configuration is reloaded
    key_file      one for all listeners that name it: written once the ports are ours, renewed, removed at the end
    tls           read now, and again when the files have changed

What must not live here: what a token or a key allows (services/access.py, tokens.py, key_file.py), handshakes.
"""

from __future__ import annotations

from pathlib import Path

import trio

from actorserve import config
from actorserve.config_listener import Listener, Tls
from actorserve.errors import StartFailed
from actorserve.services import compat
from actorserve.services.access import Access, Finds
from actorserve.services.key_file import Door, KeyFile
from actorserve.services.tokens import read_tokens
from actorserve.services.transport.interceptors import Interceptor
from actorserve.services.transport.tls import Certificates, Files


class Admission:
    """See the module's docstring. `folder` is what relative paths mean."""

    def __init__(self, folder: Path, server: config.Server) -> None:
        self._folder = folder
        self._server = server
        self._keys: dict[Path, KeyFile] = {}

    def interceptors(self, listener: Listener) -> list[Interceptor]:
        """What is asked before a method of a listener. ConfigError: its file of tokens is wrong."""
        found = self._finds(listener)
        return [] if found is None else [Access(found, exempt=listener.auth_exempt)]

    def _finds(self, listener: Listener) -> Finds | None:
        if listener.key_file is not None:
            return Door(self._key_file(self._folder / listener.key_file), listener.services)
        return None if listener.tokens_file is None else self.tokens(listener)

    def tokens(self, listener: Listener) -> Finds:
        """What a listener's file of tokens says now; ConfigError."""
        assert listener.tokens_file is not None  # noqa: S101  # narrows the type: the caller has looked
        tokens = read_tokens(self._folder / listener.tokens_file)
        return compat.CaseSensitive(tokens) if listener.compatibility == "torchserve" else tokens

    def _key_file(self, path: Path) -> KeyFile:
        """One for all listeners that name it."""
        expiration_s, overlap_s = self._server.token_expiration_min * 60, self._server.token_overlap_min * 60
        made = KeyFile(path, expiration_s=expiration_s, overlap_s=overlap_s)
        return self._keys.setdefault(path.resolve(), made)

    def certificates(self, name: str, tls: Tls | None) -> Certificates | None:
        """Those of the listener `name`; None: it speaks no TLS. StartFailed names the key that is wrong."""
        if tls is None:
            return None
        try:
            return Certificates(files_of(tls, self._folder))
        except StartFailed as error:
            raise StartFailed(f"listeners.{name}.{error}") from None

    # --- the life of the files of keys ---------------------------------------------------------------

    def begin(self) -> None:
        """Write the keys of every `key_file`. StartFailed. Idempotent."""
        for keys in self._keys.values():
            keys.begin()

    async def run(self) -> None:
        """Renew the keys before they expire, until cancelled; returns where there are none."""
        async with trio.open_nursery() as nursery:
            for keys in self._keys.values():
                nursery.start_soon(keys.run)

    def end(self) -> None:
        """Remove what was written. Idempotent."""
        for keys in self._keys.values():
            keys.remove()


def files_of(tls: Tls, folder: Path) -> Files:
    """Where a listener's certificate and key are. `folder` is what relative paths mean."""
    client_ca = None if tls.client_ca is None else folder / tls.client_ca
    return Files(folder / tls.certificate, folder / tls.key, client_ca)
