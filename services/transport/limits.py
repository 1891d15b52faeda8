"""The bounds of a listener, each with its default; docs/security.md says what each is against.

What lives here: `Limits`. What must not: what enforces them.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

from actorserve.services.transport.patience import Patience
from actorserve.services.transport.state import Settings


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of a listener and of its connections. Sizes in bytes, times in seconds; 0 means no limit of time."""

    max_receive_bytes: int = 6_553_500
    max_send_bytes: int = 6_553_500
    max_concurrent_streams: int = 256
    request_timeout_s: float = 0.0
    handshake_timeout_s: float = (
        10.0  # for the preface and SETTINGS; and for each header block, from first to last octet
    )
    stream_window: int = 1_048_576
    connection_window: int = 4_194_304
    max_header_list: int = 16_384
    send_buffer: int = 65_536  # unsent octets of one stream above which send_message waits
    # the life of a connection
    keepalive_interval_s: float = 60.0  # a peer that is silent for so long is asked for a sign of life
    keepalive_timeout_s: float = 20.0  # and has so long to give it
    min_ping_interval_s: float = 5.0  # a peer that asks more often, with nothing sent to it in between, is sent away
    max_connection_age_s: float = 0.0  # give or take a tenth, so that clients do not all come back at once
    max_connection_age_grace_s: float = 30.0  # after which calls on an aged connection are cut
    max_idle_s: float = 600.0  # without a call
    max_handshakes: int = 128  # of TLS under way; one more, and the oldest is closed
    max_connections: int = 10_000  # of the listener; beyond it an idle one goes, or else the new one. 0: no limit
    connection_rate: float = 800.0  # connections taken in a second; half as many told to go for idleness or age
    # what a peer may hold, and do in ten seconds (patience.py)
    write_stall_timeout_s: float = 60.0  # an answer that the client takes less than 1 KiB of in so long is cut
    body_stall_timeout_s: float = 60.0  # and so is a unary request of which less than that comes
    max_buffered_bytes: int = 268_435_456  # of unsent answers and unfinished requests on one connection
    max_resets: int = 500
    max_stream_faults: int = 100
    max_settings: int = 50
    max_idle_frames: int = 1000

    @cache  # noqa: B019  # all connections of a listener share them
    def settings(self) -> Settings:
        """Give what the core needs of these."""
        return Settings(
            stream_window=self.stream_window,
            connection_window=self.connection_window,
            max_concurrent_streams=self.max_concurrent_streams,
            max_header_list=self.max_header_list,
            max_buffered=self.max_buffered_bytes,
            min_ping_interval_s=self.min_ping_interval_s,
            patience=Patience(self.max_resets, self.max_stream_faults, self.max_settings, self.max_idle_frames),
        )
