"""What grpcio's contexts say of a call and of who made it; the same for blocking and for asyncio code.

A fact of grpcio 1.6x and later: metadata is a tuple of pairs with the user agent among them.
What must not live here: statuses, messages.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import grpc

from actorserve.actors.messages import Pairs
from actorserve.handlers.rpc.call import RpcCall
from actorserve.handlers.rpc.peers import auth_of, peer_of

UNKNOWN, INTERNAL, CANCELLED = 2, 13, 1
DETAILS_BIN = "grpc-status-details-bin"
ENCODINGS = {grpc.Compression.NoCompression: "", grpc.Compression.Deflate: "deflate", grpc.Compression.Gzip: "gzip"}


class Metadatum(NamedTuple):
    """One pair of metadata."""

    key: str
    value: str | bytes


class Asked:
    """The half of a servicer's context that only tells."""

    def __init__(self, call: RpcCall) -> None:
        self._call = call

    def invocation_metadata(self) -> tuple[Any, ...]:
        """The call's metadata: pairs that have names."""
        return tuple(Metadatum(key, value) for key, value in self._call.opened.metadata)

    def peer(self) -> str:
        """The client's address."""
        return peer_of(self._call.opened.peer)

    def auth_context(self) -> Mapping[str, Sequence[bytes]]:
        """What is known of the client's certificate, and of the transport."""
        return auth_of(self._call.opened.auth)

    def peer_identity_key(self) -> str | None:
        """The key of `auth_context` whose values identify the client; None without a certificate."""
        known = self.auth_context()
        return next((key for key in ("x509_subject_alternative_name", "x509_common_name") if known.get(key)), None)

    def peer_identities(self) -> Sequence[bytes] | None:
        """The values of that key."""
        key = self.peer_identity_key()
        return None if key is None else self.auth_context()[key]


def number_of(code: Any) -> int:
    """The number of a `grpc.StatusCode`; UNKNOWN for what is none."""
    if isinstance(code, grpc.StatusCode):
        return int(code.value[0])
    return UNKNOWN


def split_trailers(trailers: Any) -> tuple[Pairs, bytes]:
    """Pairs that may travel, and the rich status that grpcio keeps among them."""
    rich = b""
    pairs: list[tuple[str, str | bytes]] = []
    for key, value in trailers or ():
        if key == DETAILS_BIN:
            rich = value
        else:
            pairs.append((str(key), value))
    return tuple(pairs), rich


def pairs_of(metadata: Any) -> Pairs:
    """A user's metadata as pairs."""
    return tuple((str(key), value) for key, value in metadata or ())
