"""The attacks, as data: what one connection sends, over and over, and how fast.

What lives here: octets. What must not: sockets, time, the good client, judgement.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

import hpack as python_hpack

from actorserve.proto.inference_pb2 import PredictionsRequest
from actorserve.services.transport import frames as f
from actorserve.services.transport import hpack

PATH = b"/org.pytorch.serve.grpc.inference.InferenceAPIsService/Predictions"
PAIRS = [
    (b":method", b"POST"),
    (b":scheme", b"http"),
    (b":path", PATH),
    (b":authority", b"localhost"),
    (b"te", b"trailers"),
    (b"content-type", b"application/grpc"),
]
BLOCK = hpack.encode_pairs(PAIRS)
OPEN, WHOLE = f.END_HEADERS, f.END_HEADERS | f.END_STREAM


def message(size: int) -> bytes:
    """Give a request's message with its prefix."""
    body = PredictionsRequest(model_name="echo", input={"data": bytes(size)}).SerializeToString()
    return b"\0" + len(body).to_bytes(4, "big") + body


SMALL, LARGE = message(16), message(12_000)


def headers(number: int, flags: int = OPEN, block: bytes = BLOCK) -> bytes:
    """Open the n-th stream of a connection, from 0."""
    return f.encode(f.HEADERS, flags, 2 * number + 1, block)


def call(number: int, body: bytes = SMALL) -> bytes:
    """Make a whole call."""
    return headers(number) + f.encode(f.DATA, f.END_STREAM, 2 * number + 1, body)


@dataclass(frozen=True, slots=True)
class Attack:
    """One kind. `send(n)` gives the n-th portion of a connection."""

    send: Callable[[int], bytes]
    connections: int = 1  # at a time
    pause_s: float = 0.0  # between portions
    portions: int | None = None  # how many; then nothing more is sent
    settings: tuple[tuple[int, int], ...] = ()
    preface: bytes | None = None  # instead of the usual beginning
    reads: bool = True
    closed_at_once: bool = True  # no waiting for a stall's timeout


def _bomb() -> bytes:
    return bytes(python_hpack.Encoder().encode([*PAIRS, (b"a", b"x" * 4000)]) + b"\xbe" * 12_000)


def _junk(number: int) -> bytes:
    return random.Random(number).randbytes(2000)  # noqa: S311  junk, not secrets


BOMB = _bomb()
STALLS = {"closed_at_once": False}
CLOSED_WINDOW = ((f.INITIAL_WINDOW_SIZE, 0),)
WIDE_OPEN = f.encode_window_update(0, 2**30)
NUL = hpack.encode_pairs([*PAIRS, (b"x-key", b"nul\0")])
WIDE = hpack.encode_pairs([*PAIRS, *((b"x-%d" % n, b"v" * 900) for n in range(20))])  # a little above the limit

ATTACKS: dict[str, Attack] = {
    "rapid_reset": Attack(
        lambda n: b"".join(call(m) + f.encode_rst_stream(2 * m + 1, 8) for m in range(n * 50, n * 50 + 50))
    ),
    "provoked_resets": Attack(
        lambda n: b"".join(call(m) + f.encode_window_update(2 * m + 1, 0) for m in range(n * 50, n * 50 + 50))
    ),
    "refused_streams": Attack(lambda n: b"".join(headers(m) for m in range(n * 50, n * 50 + 50))),
    "continuation": Attack(lambda n: headers(0, 0) if not n else f.encode(f.CONTINUATION, 0, 1, BLOCK) * 50),
    "hpack_bomb": Attack(lambda n: headers(n, WHOLE, BOMB)),
    "large_headers": Attack(
        lambda n: b"".join(f.encode_headers(2 * m + 1, WIDE, 16_384, end=True) for m in range(n * 4, n * 4 + 4))
    ),
    "nul_in_headers": Attack(lambda n: b"".join(headers(m, WHOLE, NUL) for m in range(n * 50, n * 50 + 50))),
    "settings": Attack(lambda _: f.encode_settings([(f.INITIAL_WINDOW_SIZE, n) for n in range(1000)]) * 5),
    "ping": Attack(lambda _: f.encode(f.PING, 0, 0, bytes(8)) * 1000),
    "empty_data": Attack(lambda n: headers(0) if not n else f.encode(f.DATA, 0, 1) * 1000),
    "padding": Attack(lambda n: headers(0) if not n else f.encode(f.DATA, f.PADDED, 1, b"\xff" + bytes(255)) * 50),
    "window_update": Attack(lambda _: f.encode_window_update(0, 1) * 1000),
    "priority": Attack(lambda _: f.encode(f.PRIORITY, 0, 1, bytes(5)) * 1000),
    "unknown_frames": Attack(lambda _: f.encode(0x99, 0, 0) * 1000),
    "one_octet_window": Attack(
        lambda n: call(0, LARGE) if not n else f.encode_window_update(1, 1) * 200, settings=CLOSED_WINDOW
    ),
    "junk": Attack(_junk),
    "http1": Attack(lambda _: b"", preface=b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n", portions=1),
    "slow_preface": Attack(lambda n: f.PREFACE[n : n + 1], 50, 0.4, len(f.PREFACE), preface=b"", **STALLS),
    "slow_headers": Attack(
        lambda n: headers(0, 0, BLOCK[:1]) if not n else f.encode(f.CONTINUATION, 0, 1), 50, 0.4, **STALLS
    ),
    "slow_frame": Attack(lambda n: f.HEADER.pack(0, 255, f.DATA, 0, 1) if not n else b"x", 50, 0.4, 250, **STALLS),
    "endless_body": Attack(
        lambda n: b"".join(headers(m) for m in range(100)) + f.encode(f.DATA, 0, 1, LARGE[:2000]) if not n else b"",
        4,
        portions=1,
        **STALLS,
    ),
    "zero_window": Attack(
        lambda n: b"".join(call(m, LARGE) for m in range(n * 10, n * 10 + 10)),
        4,
        portions=20,
        settings=CLOSED_WINDOW,
        **STALLS,
    ),
    "never_reads": Attack(
        lambda n: (
            b"".join(call(m, LARGE) for m in range(n * 10, n * 10 + 10)) if n else f.encode_window_update(0, 2**30)
        ),
        2,
        portions=25,
        settings=((f.INITIAL_WINDOW_SIZE, 2**30),),
        reads=False,
        **STALLS,
    ),
    "idle_connections": Attack(lambda _: b"", 1000, portions=1, **STALLS),
}
