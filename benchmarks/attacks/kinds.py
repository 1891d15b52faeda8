"""The attacks, as data: what one connection sends, over and over, how fast, and how it should end.

What lives here: octets, and the ending that docs/security.md promises for each attack.
What must not: sockets, time, the good client, measuring.
"""

from __future__ import annotations

import contextlib
import gzip
import random
import ssl
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


CALM = "GOAWAY ENHANCE_YOUR_CALM"
BROKEN = "GOAWAY PROTOCOL_ERROR"
SILENT = "GOAWAY SETTINGS_TIMEOUT"
SHUT = "closed without GOAWAY"
PLAIN, TLS, HALF_TLS = "tcp", "tls", "half-open tls"  # HALF_TLS: to the TLS listener, but what is sent is sent as it is


def message(size: int) -> bytes:
    """Give a request's message with its prefix."""
    body = PredictionsRequest(model_name="echo", input={"data": bytes(size)}).SerializeToString()
    return b"\0" + len(body).to_bytes(4, "big") + body


SMALL, LARGE, HUGE = message(16), message(12_000), message(100_000)
FRAME = 16_000


def headers(number: int, flags: int = OPEN, block: bytes = BLOCK) -> bytes:
    """Open the n-th stream of a connection, from 0."""
    return f.encode(f.HEADERS, flags, 2 * number + 1, block)


def call(number: int, body: bytes = SMALL) -> bytes:
    """Make a whole call."""
    pieces = [body[at : at + FRAME] for at in range(0, len(body), FRAME)]
    data = [f.encode(f.DATA, f.END_STREAM * (n == len(pieces)), 2 * number + 1, one) for n, one in enumerate(pieces, 1)]
    return headers(number) + b"".join(data)


def calls(first: int, end: int, body: bytes) -> bytes:
    """Make calls, the last left out."""
    return b"".join(call(number, body) for number in range(first, end))


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
    over: str = PLAIN
    ends: tuple[str, ...] = (CALM,)  # what a connection's ending may begin with


def _bomb() -> bytes:
    return bytes(python_hpack.Encoder().encode([*PAIRS, (b"a", b"x" * 4000)]) + b"\xbe" * 12_000)


def _hello() -> bytes:
    """Give what a TLS client says first."""
    context, sent = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), ssl.MemoryBIO()
    context.set_alpn_protocols(["h2"])
    client = context.wrap_bio(ssl.MemoryBIO(), sent, server_hostname="localhost")
    with contextlib.suppress(ssl.SSLWantReadError):
        client.do_handshake()
    return sent.read()


def _gzip_bomb(size: int) -> bytes:
    """Give a message that unfolds to so many octets."""
    body = gzip.compress(bytes(size))
    return b"\1" + len(body).to_bytes(4, "big") + body


def provoke(number: int) -> bytes:
    """Make a call, then a mistake on its stream that makes the server reset it (CVE-2025-8671)."""
    step = 0 if number % 2 else f.MAX_WINDOW
    return call(number) + f.encode_window_update(2 * number + 1, step)


DICE = random.Random(9)  # noqa: S311  junk, not secrets
BOMB = _bomb()
HELLO = _hello()
CLOSED_WINDOW = ((f.INITIAL_WINDOW_SIZE, 0),)
NUL = hpack.encode_pairs([*PAIRS, (b"x-key", b"nul\0")])
WIDE = hpack.encode_pairs([*PAIRS, *((b"x-%d" % n, b"v" * 900) for n in range(20))])  # a little above the limit
ZIPPED, GZIP_BOMB = hpack.encode_pairs([*PAIRS, (b"grpc-encoding", b"gzip")]), _gzip_bomb(10_000_000)
FAULTS = 110  # stalled streams: more than max_stream_faults, so that GOAWAY follows the resets

ATTACKS: dict[str, Attack] = {
    "rapid_reset": Attack(
        lambda n: b"".join(call(m) + f.encode_rst_stream(2 * m + 1, 8) for m in range(n * 50, n * 50 + 50))
    ),
    "provoked_resets": Attack(lambda n: b"".join(map(provoke, range(n * 50, n * 50 + 50)))),
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
    "slow_window": Attack(
        lambda n: (
            calls(0, FAULTS, LARGE)
            if not n
            else b"".join(f.encode_window_update(2 * (m % FAULTS) + 1, 1) for m in range(n * 3, n * 3 + 3))
        ),
        4,
        0.05,
        settings=CLOSED_WINDOW,
    ),
    "compressed_bomb": Attack(
        lambda n: b"".join(
            headers(m, OPEN, ZIPPED) + f.encode(f.DATA, f.END_STREAM, 2 * m + 1, GZIP_BOMB)
            for m in range(n * 10, n * 10 + 10)
        ),
        pause_s=0.1,
        ends=(CALM, "GOAWAY FLOW_CONTROL_ERROR"),  # for bombs, or where they wait so long that the window is overrun
    ),
    "junk": Attack(lambda _: DICE.randbytes(2000), ends=("GOAWAY",)),
    "http1": Attack(lambda _: b"", preface=b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n", portions=1, ends=(BROKEN,)),
    "slow_preface": Attack(lambda n: f.PREFACE[n : n + 1], 50, 0.4, len(f.PREFACE), preface=b"", ends=(SILENT,)),
    "slow_headers": Attack(lambda n: headers(0, 0, BLOCK[:1]) if not n else f.encode(f.CONTINUATION, 0, 1), 50, 0.4),
    "slow_frame": Attack(lambda n: f.HEADER.pack(0, 255, f.DATA, 0, 1) if not n else b"x", 50, 0.4, 250),
    "endless_body": Attack(
        lambda _: b"".join(map(headers, range(FAULTS))) + f.encode(f.DATA, 0, 1, LARGE[:2000]), 4, portions=1
    ),
    "zero_window": Attack(
        lambda n: calls(n * 10, n * 10 + 10, LARGE), 4, portions=FAULTS // 10, settings=CLOSED_WINDOW
    ),
    "never_reads": Attack(
        lambda n: calls(n * 10, n * 10 + 10, HUGE) if n else f.encode_window_update(0, 2**30),
        2,
        0.1,
        portions=15,  # 14 MB of answers: more than the kernels take
        settings=((f.INITIAL_WINDOW_SIZE, 2**30),),
        reads=False,
        ends=(SHUT,),
    ),
    "idle_connections": Attack(lambda _: b"", 2000, portions=1, ends=("GOAWAY NO_ERROR",)),
    "tls_silent": Attack(lambda _: b"", 300, portions=1, preface=b"", over=HALF_TLS, ends=(SHUT,)),
    "tls_half_hello": Attack(
        lambda n: HELLO[n : n + 1], 300, 0.4, len(HELLO) // 2, preface=b"", over=HALF_TLS, ends=(SHUT,)
    ),
    "tls_no_preface": Attack(lambda _: b"", 100, portions=1, preface=b"", over=TLS, ends=(SILENT,)),
    "tls_ping": Attack(lambda _: f.encode(f.PING, 0, 0, bytes(8)) * 1000, over=TLS),
}
