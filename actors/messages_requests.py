"""What a caller asks of a model or of a schema, and what comes back, as data.

Frozen, slotted dataclasses and enums; no torch, no gRPC, no trio, no behaviour beyond a derived name.
What must not live here: what waits with it (envelope.py), through what the answer goes (reply.py, exchange.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum

Metadata = Mapping[str, str | bytes]
Pairs = tuple[tuple[str, str | bytes], ...]
"""Metadata in which a key may come twice, in order."""


@dataclass(frozen=True, slots=True)
class Infer:
    """Ask for one answer. Replied to once, with an `Answer`."""

    inputs: Mapping[str, bytes]
    metadata: Metadata = field(default_factory=dict)
    id: str = ""


@dataclass(frozen=True, slots=True)
class Generate:
    """Ask for many answers. The reply is a `ReplyStream`."""

    inputs: Mapping[str, bytes]
    metadata: Metadata = field(default_factory=dict)
    id: str = ""


@dataclass(frozen=True, slots=True)
class OpenSequence:
    """Open a stateful sequence on one replica. The reply is a `Duplex`: items go in, one reply each comes out."""

    inputs: Mapping[str, bytes] = field(default_factory=dict)  # of no item: `sequence_id` alone
    metadata: Metadata = field(default_factory=dict)
    id: str = ""


@dataclass(frozen=True, slots=True)
class Describe:
    """Ask a handler what it says of itself. Replied to once, with an `Answer`: JSON, or nothing."""

    inputs: Mapping[str, bytes] = field(default_factory=dict)  # always empty, and so is what a client sent
    metadata: Metadata = field(default_factory=dict)
    id: str = ""


class Cardinality(IntEnum):
    """Who streams in an rpc: nobody, the server, the client, both. Bit 0: the server; bit 1: the client."""

    UNARY_UNARY = 0
    UNARY_STREAM = 1
    STREAM_UNARY = 2
    STREAM_STREAM = 3

    @property
    def client_streams(self) -> bool:
        """Whether any number of messages come."""
        return self.value >= 2

    @property
    def server_streams(self) -> bool:
        """Whether any number of messages go back."""
        return bool(self.value & 1)


@dataclass(frozen=True, slots=True)
class Call:
    """Ask for one rpc of a schema that the server does not know: bytes cross, and nothing else. The reply is an
    `Exchange` (exchange.py).

    `data`: the request of one whose client does not stream; None: messages follow, and then the client's end.
    `metadata` may be a multi-dict: every pair travels, in order. `peer`: the client's address. `auth`: what is known
    of it, as JSON; empty: nothing.
    """

    method: str
    cardinality: Cardinality
    data: bytes | None = None
    metadata: Metadata = field(default_factory=dict)
    id: str = ""
    peer: str = ""
    auth: bytes = b""

    @property
    def inputs(self) -> Mapping[str, bytes]:
        """What a claim by weight counts: the request that came with the call."""
        return {"": self.data or b""}


@dataclass(frozen=True, slots=True)
class Initial:
    """The initial metadata of a call, before its first message. `encoding`: gRPC's name of it, "" for none."""

    metadata: Pairs
    encoding: str = ""


@dataclass(frozen=True, slots=True)
class Ending:
    """How a call ended, in gRPC's numbers and words. `data`: the answer of one whose server does not stream.

    `rich`: a google.rpc.Status in its bytes, or nothing. `reset`: cut off, as by RST_STREAM.
    """

    status: int = 0
    details: str = ""
    trailers: Pairs = ()
    rich: bytes = b""
    data: bytes | None = None
    reset: bool = False


@dataclass(frozen=True, slots=True)
class Answer:
    """One item's result: the encoded answer, and trailing metadata that the handler set."""

    data: bytes
    trailers: Metadata = field(default_factory=dict)
