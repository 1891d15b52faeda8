"""Large payloads between server and worker: through the socket, as it is, or through shared memory, as it could be.

`python benchmarks/payloads.py [BYTES] [ROUNDS]` prints, for one echo of a payload, the time and the CPU time of both
processes; each the median of alternating rounds. The ways:

    socket   the frames that server and worker speak (wire.py), over a socketpair
    lean     the same socket and as many bytes, without a copy that could be avoided: the payload is sent from where it
             is, and read into a buffer of its size
    arena    one memfd that both have mapped; a frame names the slot; the payload is copied in, and out as bytes
    served   a call of the echo model by a grpcio client, so that both can be seen in what a caller waits for

The worker answers with what it was given: each payload crosses twice. Behind ADR 7. What must not live here: what
the server does (large.py measures that).
"""

from __future__ import annotations

import mmap
import os
import socket
import struct
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

import grpc  # type: ignore[import-untyped]
from processes import ours
from table import median, show

from actorserve.__main__ import keep_free_memory
from actorserve.actors import wire
from actorserve.actors.wire import Data, Frame, FrameReader, Item, Outcome, Result
from actorserve.proto.inference_pb2 import PredictionResponse, PredictionsRequest

SIZE, ROUNDS, ECHOES = 1_000_000, 7, 100
READ_BYTES = 1 << 16
SLOT = struct.Struct("<QQ")
LENGTH = struct.Struct("<Q")
METHOD = "/org.pytorch.serve.grpc.inference.InferenceAPIsService/Predictions"


@dataclass(frozen=True, slots=True)
class Sample:
    """One round's means, in milliseconds an echo."""

    wall: float
    cpu: float


def receive(sock: socket.socket, reader: FrameReader) -> Frame | None:
    """The next frame; None at the end."""
    while True:
        if reader.room is None:
            data = sock.recv(READ_BYTES)
            size, frames = len(data), reader.feed(data)
        else:
            size = sock.recv_into(reader.room, 0, socket.MSG_WAITALL)
            frames = reader.filled(size)
        if not size:
            return None
        if frames:
            return frames[0]


def send(sock: socket.socket, data: Data) -> None:
    """Write frames, as server and worker do."""
    parts = data if isinstance(data, list) else [data]
    while parts:
        parts = wire.unsent(parts, sock.sendmsg(parts))


def socket_worker(sock: socket.socket, _arena: mmap.mmap) -> None:
    """Echo what comes in BATCH frames."""
    reader = FrameReader()
    while frame := receive(sock, reader):
        (item,) = wire.read_batch(frame.payload)
        send(sock, wire.result(1, [Result(1, Outcome.OK, item.inputs["data"], {})]))


def socket_echo(sock: socket.socket, _arena: mmap.mmap, data: bytes, reader: FrameReader) -> bytes:
    """One echo as the server does it."""
    send(sock, wire.batch(1, [Item(1, 0, "", {"data": data}, {})]))
    frame = receive(sock, reader)
    assert frame is not None  # narrows the type: the worker lives
    return wire.read_result(frame.payload)[0].data


def arena_worker(sock: socket.socket, arena: mmap.mmap) -> None:
    """Echo what lies in the arena's first half into its second."""
    reader, half = FrameReader(), len(arena) // 2
    while frame := receive(sock, reader):
        (item,) = wire.read_batch(frame.payload)
        start, size = SLOT.unpack(item.inputs["data"])
        data = arena[start : start + size]  # bytes, as a handler gets them
        arena[half : half + size] = data
        send(sock, wire.result(1, [Result(1, Outcome.OK, SLOT.pack(half, size), {})]))


def arena_echo(sock: socket.socket, arena: mmap.mmap, data: bytes, reader: FrameReader) -> bytes:
    """One echo through the arena; the frames that name the slots are the same frames."""
    arena[: len(data)] = data
    answer = socket_echo(sock, arena, SLOT.pack(0, len(data)), reader)
    start, size = SLOT.unpack(answer)
    return arena[start : start + size]


def lean_send(sock: socket.socket, data: bytes) -> None:
    """A header, and the payload from where it is."""
    sent = sock.sendmsg([LENGTH.pack(len(data)), data])
    if sent < LENGTH.size + len(data):
        sock.sendall(memoryview(data)[sent - LENGTH.size :])


def lean_receive(sock: socket.socket) -> bytes:
    """A payload, read into a buffer of its size; empty at the end."""
    header = sock.recv(LENGTH.size)
    if not header:
        return b""
    buffer = bytearray(LENGTH.unpack(header)[0])
    sock.recv_into(buffer, len(buffer), socket.MSG_WAITALL)
    return bytes(buffer)  # what a handler gets cannot change


def lean_worker(sock: socket.socket, _arena: mmap.mmap) -> None:
    """Echo payloads."""
    while data := lean_receive(sock):
        lean_send(sock, data)


def lean_echo(sock: socket.socket, _arena: mmap.mmap, data: bytes, _reader: FrameReader) -> bytes:
    """One echo."""
    lean_send(sock, data)
    return lean_receive(sock)


Worker = Callable[[socket.socket, mmap.mmap], None]
Echo = Callable[[socket.socket, mmap.mmap, bytes, FrameReader], bytes]


def measure(worker: Worker, echo: Echo, data: bytes) -> Sample:
    """A worker of its own, and so many echoes."""
    ours, theirs = socket.socketpair()
    memfd = os.memfd_create("arena")
    os.ftruncate(memfd, 2 * len(data))
    arena = mmap.mmap(memfd, 2 * len(data))
    os.close(memfd)
    pid = os.fork()
    if pid == 0:
        ours.close()
        worker(theirs, arena)
        os._exit(0)
    theirs.close()
    reader = FrameReader()
    assert echo(ours, arena, data, reader) == data  # warm, and right
    began, cpu = time.perf_counter(), time.process_time()
    for _ in range(ECHOES):
        echo(ours, arena, data, reader)
    wall, cpu = time.perf_counter() - began, time.process_time() - cpu
    ours.close()
    usage = os.wait4(pid, 0)[2]
    return Sample(1e3 * wall / ECHOES, 1e3 * (cpu + usage.ru_utime + usage.ru_stime) / ECHOES)


def served(data: bytes, rounds: int) -> list[Sample]:
    """Calls of the echo model through the whole server, one at a time, after the last fork: gRPC has threads."""
    samples = []
    limits = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
    with ours("echo.toml") as server, grpc.insecure_channel(server.address, limits) as channel:
        server.wait_listening()
        predict = channel.unary_unary(METHOD, PredictionsRequest.SerializeToString, PredictionResponse.FromString)
        request = PredictionsRequest(model_name="echo", input={"data": data})
        for number in range(rounds + 1):
            began, cpu = time.perf_counter(), server.cpu()
            for _ in range(ECHOES):
                predict(request, timeout=60, wait_for_ready=True)
            wall, spent = time.perf_counter() - began, server.cpu() - cpu
            if number:  # the first round is warm-up
                samples.append(Sample(1e3 * wall / ECHOES, 1e3 * spent.total / ECHOES))
    return samples


def run(*, size: int = SIZE, rounds: int = ROUNDS) -> None:
    """Measure and print."""
    keep_free_memory()  # as the server does, so that the ways are measured with its allocator
    data = os.urandom(size)
    ways = {
        "socket": (socket_worker, socket_echo),
        "lean": (lean_worker, lean_echo),
        "arena": (arena_worker, arena_echo),
    }
    found: dict[str, list[Sample]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, (worker, echo) in ways.items():
            found[name].append(measure(worker, echo, data))
    found["served"] = served(data, rounds)
    wall = {name: median([sample.wall for sample in samples]) for name, samples in found.items()}
    cpu = {name: median([sample.cpu for sample in samples]) for name, samples in found.items()}
    show(
        f"an echo of {size:,} bytes, one at a time",
        ["way", "ms", "CPU ms, all processes"],
        [[name, f"{wall[name]:.3f}", f"{cpu[name]:.3f}"] for name in found],
    )
    for name, than in (("arena", "socket"), ("lean", "socket"), ("arena", "lean")):
        show_gain(name, than, wall, "time")
        show_gain(name, than, cpu, "CPU")


def show_gain(name: str, than: str, of: dict[str, float], what: str) -> None:
    """How much less one way takes than another, by itself and as part of a served call."""
    rest = of["served"] - of["socket"]
    print(
        f"{name} against {than}, by {what}: the crossing {of[than] / of[name]:.2f} times, "
        f"a served call {(rest + of[than]) / (rest + of[name]):.2f} times faster"
    )


if __name__ == "__main__":
    run(size=int(sys.argv[1]) if len(sys.argv) > 1 else SIZE, rounds=int(sys.argv[2]) if len(sys.argv) > 2 else ROUNDS)
