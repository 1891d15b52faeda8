"""What an open call costs in memory: 10,000 bidirectional calls over 100 connections, each past its first message.

The client is our sans-IO core on plain sockets, in this process. A call is starved if its second message, sent when all
are open, is not answered. What must not live here: starting servers (processes.py).
"""

from __future__ import annotations

import selectors
import socket
import time
from collections.abc import Sequence

import calls
from echo import PAYLOAD
from processes import Server, peer
from table import count, show

from actorserve.proto.inference_pb2 import PredictionsRequest
from actorserve.services.transport import grpc
from actorserve.services.transport.connection import Connection
from actorserve.services.transport.messages import MessageReader, frame_message
from actorserve.services.transport.streams import DataReceived, Stream, StreamEvent

CALLS, CONNECTIONS = 10_000, 100
TIMEOUT_S = 120.0
MAX_MESSAGE = 1 << 20
READ_SIZE = 262_144
REQUEST = frame_message(PredictionsRequest(input={"data": PAYLOAD}).SerializeToString(), MAX_MESSAGE)


class Client:
    """One connection and its calls."""

    def __init__(self, server: Server) -> None:
        self.core = Connection(client=True)
        self.socket = socket.create_connection(("127.0.0.1", server.port), TIMEOUT_S)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.streams: list[Stream] = []
        self.answers: dict[int, int] = {}  # by stream id
        self.ended: set[int] = set()  # by the server
        self.flush()

    def open(self, number: int) -> None:
        """Begin calls."""
        block = grpc.request_block(f"{calls.INFERENCE}/StreamPredictions2", b"localhost", b"benchmark", None)
        self.streams = [self.core.open_stream(block, MessageReader(MAX_MESSAGE)) for _ in range(number)]

    def say(self) -> None:
        """One message more on each call."""
        for stream in self.streams:
            self.core.send_data(stream, *REQUEST)
        self.flush()

    def flush(self) -> None:
        """Write what is queued."""
        while data := self.core.take():
            self.socket.sendall(data)

    def read(self) -> None:
        """Take what has come; count whole answers."""
        data = self.socket.recv(READ_SIZE)
        if not data:
            raise SystemExit("the server closed a connection")
        for event in self.core.receive(data):
            if isinstance(event, DataReceived):
                stream, reader = event.stream, event.stream.owner
                while reader.next_message(stream.inbox) is not None:
                    self.answers[stream.id] = self.answers.get(stream.id, 0) + 1
                self.core.consumed(stream, reader.taken)
                reader.taken = 0
            elif isinstance(event, StreamEvent) and event.stream.ended:
                self.ended.add(event.stream.id)
        self.flush()

    def answered(self, times: int) -> int:
        """How many calls have had so many answers."""
        return sum(number >= times for number in self.answers.values())

    def waiting(self, times: int) -> int:
        """How many calls may still get there."""
        return len(self.streams) - len(self.ended | {one for one, number in self.answers.items() if number >= times})


def until_answered(clients: Sequence[Client], times: int) -> tuple[int, float]:
    """Read until every call has so many answers, or time is up; how many have, and the seconds it took."""
    began = time.monotonic()
    with selectors.DefaultSelector() as selector:
        for client in clients:
            selector.register(client.socket, selectors.EVENT_READ, client)
        while any(client.waiting(times) for client in clients) and time.monotonic() < began + TIMEOUT_S:
            for key, _ in selector.select(1.0):
                key.data.read()
    return sum(client.answered(times) for client in clients), time.monotonic() - began


def measure(server: Server, number: int = CALLS, connections: int = CONNECTIONS) -> tuple[str, ...]:
    """One row."""
    warm = Client(server)
    warm.open(1)
    warm.say()
    until_answered([warm], 1)
    warm.socket.close()
    time.sleep(0.5)
    before = server.rss_mib()
    clients = [Client(server) for _ in range(connections)]
    for client in clients:
        client.open(number // connections)
        client.say()
    first, took = until_answered(clients, 1)
    after = server.rss_mib()
    for client in clients:
        client.say()
    second, again = until_answered(clients, 2)
    each = (after - before) * 1024 / max(first, 1)
    for client in clients:
        client.socket.close()
    return (
        server.name,
        f"{before:.1f}",
        f"{after:.1f}",
        f"{each:.1f}",
        count(first),
        f"{took:.1f}",
        count(number - second),
        f"{again:.1f}",
    )


def run() -> None:
    """Measure each server."""
    rows = []
    for which in ("bare", "grpclib", "grpcio"):
        with peer(which) as server:
            server.wait_listening()
            rows.append(measure(server))
    head = (
        "server",
        "RSS before, MiB",
        "RSS, MiB",
        "KiB an answered call",
        "answered",
        "in s",
        "not answered twice",
        "in s",
    )
    show(f"{CALLS:,} open bidirectional calls over {CONNECTIONS} connections", head, rows)
