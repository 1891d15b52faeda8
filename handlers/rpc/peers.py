"""Who made a call, in the words of grpcio's contexts; for workers that have grpc, and for those that have not.

Facts of grpcio 1.6x and later: peers are URIs, and a connection without TLS has an auth context, too.
What must not live here: grpc, asyncio.
"""

from __future__ import annotations

import json

INSECURE = {"transport_security_type": ["insecure"], "security_level": ["TSI_SECURITY_NONE"]}


def peer_of(address: str) -> str:
    """A client's address as grpcio writes it."""
    if not address or address.startswith("unix:"):
        return address
    return f"ipv6:{address.replace('[', '%5B').replace(']', '%5D')}" if address[0] == "[" else f"ipv4:{address}"


def auth_of(auth: bytes) -> dict[str, list[bytes]]:
    """The auth context from what the server says of a client (a call's `auth`); nothing: it came without TLS."""
    known = json.loads(auth) if auth else INSECURE
    return {key: [value.encode() for value in values] for key, values in known.items()}
