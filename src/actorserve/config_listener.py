"""`[listeners.NAME]`: where to listen, what is served there, who may call, and every bound on a peer.

The bounds have the names and the defaults of `services/transport/limits.py`; a test compares them.
What must not live here: other tables (config_tables.py), what enforces a bound.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator, model_validator

from actorserve.config_types import UNIX, Folder, Table, Texts, is_loopback, split_address


class Tls(Table):
    """PEM files of a listener's TLS."""

    certificate: Folder = Field(description="The server's certificate, with the chain up to its CA.")
    key: Folder = Field(description="Its private key.")
    client_ca: Folder | None = Field(
        default=None, description="Clients must show a certificate that one of these signed (mTLS)."
    )


Service = Literal["inference", "management", "health", "reflection", "servicers", "predict", "ray", "applications"]


class Listener(Table):
    """One place to listen, and what is served there."""

    address: str | Texts = Field(
        description='Where: `"127.0.0.1:7070"`, `"[::1]:7070"`, `"unix:PATH"`, or a list. Port 0 takes a free one.'
    )
    services: tuple[Service, ...] = Field(
        strict=False,
        min_length=1,
        description='A list of `"inference"`, `"management"`, `"health"` (probes: docs/health.md), `"reflection"` '
        '(for grpcurl and its like), `"servicers"` (your own: docs/bring-your-own-schema.md), `"predict"` and `"ray"` '
        '(Ray Serve\'s own: docs/applications.md). `"applications"`, for scripts, is for Unix sockets in a folder that '
        "nobody else may enter.",
    )
    tls: Tls | None = Field(
        default=None,
        description='`{ certificate = "cert.pem", key = "key.pem" }`, and `client_ca = "ca.pem"` where clients must '
        "show a certificate that it signed. Renewed files are taken up without a restart.",
    )
    tokens_file: Folder | None = Field(
        default=None,
        description="A file of tokens (docs/security.md); every call must bring one as `authorization: Bearer TOKEN`.",
    )
    key_file: Folder | None = Field(
        default=None,
        description="A file of keys as TorchServe's key_file.json, written at the start and renewed before they expire "
        "(docs/security.md); every call must bring the key of its service as `authorization: Bearer KEY`.",
    )
    auth_exempt: tuple[Service, ...] = Field(
        default=(), strict=False, description='Services that need no token, for example `["health"]`.'
    )
    reuse_port: bool = Field(
        default=False, description="Let several servers listen on the same port (SO_REUSEPORT); the kernel spreads."
    )
    insecure: bool = Field(
        default=False, description="Allow an address that is not loopback without `tls` and `tokens_file`."
    )
    compatibility: Literal["none", "torchserve", "ray"] = Field(
        default="none",
        description="`torchserve` answers with TorchServe's own codes, texts and JSON bodies "
        "(docs/torchserve-compatibility.md), `ray` with Ray Serve's codes and texts "
        "(docs/migrating-from-ray-serve.md).",
    )
    request_timeout_s: float = Field(
        default=0.0, ge=0, description="Seconds after which a call ends. 0: only the client's own deadline counts."
    )
    max_receive_bytes: int = Field(
        default=6_553_500, ge=1, le=1 << 30, description="Largest message taken, in bytes (TorchServe's default)."
    )
    max_send_bytes: int = Field(default=6_553_500, ge=1, le=1 << 30, description="Largest message sent, in bytes.")
    max_concurrent_streams: int = Field(
        default=256, ge=1, le=100_000, description="Calls that one connection may have open at once."
    )
    handshake_timeout_s: float = Field(
        default=10.0, gt=0, description="Seconds that a new connection has to send HTTP/2's preface and settings."
    )
    max_handshakes: int = Field(
        default=128, ge=1, le=100_000, description="TLS handshakes under way; one more, and the oldest is closed."
    )
    stream_window: int = Field(
        default=1_048_576, ge=65_535, lt=1 << 31, description="Bytes that a client may send ahead on one call."
    )
    connection_window: int = Field(
        default=4_194_304, ge=65_535, lt=1 << 31, description="Bytes that a client may send ahead on one connection."
    )
    max_header_list: int = Field(
        default=16_384, ge=1024, le=1 << 20, description="Largest metadata of a call, in bytes as HTTP/2 counts them."
    )
    send_buffer: int = Field(
        default=65_536, ge=1024, le=1 << 30, description="Bytes of one answer that wait unsent before its model waits."
    )
    keepalive_interval_s: float = Field(
        default=60.0, ge=0, description="Seconds of silence after which a client is asked for a sign of life. 0: never."
    )
    keepalive_timeout_s: float = Field(default=20.0, gt=0, description="Seconds that it has to give one.")
    min_ping_interval_s: float = Field(
        default=5.0, ge=0, description="Seconds between pings of a client; one that pings more often is sent away."
    )
    max_connection_age_s: float = Field(
        default=0.0,
        ge=0,
        description="Seconds (give or take a tenth) after which a connection is asked to come again, so that load "
        "balancers can spread it. 0: never.",
    )
    max_connection_age_grace_s: float = Field(
        default=30.0, ge=0, description="Seconds after which calls on an aged connection are cut."
    )
    max_idle_s: float = Field(
        default=600.0, ge=0, description="Seconds without a call after which a connection is closed. 0: never."
    )
    max_connections: int = Field(
        default=10_000,
        ge=0,
        description="Connections at once; beyond it an idle one goes, or the new. 0: no limit.",
    )
    connection_rate: float = Field(
        default=800.0,
        ge=0,
        le=1_000_000,
        description="Connections taken in a second after the first 64 at once, half as many told to go for idleness "
        "or age; those to come wait in the kernel's queue. 0: no limit.",
    )
    write_stall_timeout_s: float = Field(
        default=60.0, ge=0, description="Seconds in which a client must take at least 1 KiB of an answer. 0: for ever."
    )
    body_stall_timeout_s: float = Field(
        default=60.0,
        ge=0,
        description="Seconds in which 1 KiB of an unfinished request must come. 0: for ever.",
    )
    max_buffered_bytes: int = Field(
        default=268_435_456, ge=1 << 16, description="Bytes of unsent answers and unfinished requests on a connection."
    )
    max_resets: int = Field(default=500, ge=1, description="Calls that a client may reset in ten seconds.")
    max_stream_faults: int = Field(
        default=100, ge=1, description="Calls that a client may have reset by faults of its own in ten seconds."
    )
    max_settings: int = Field(default=50, ge=1, description="SETTINGS frames that a client may send in ten seconds.")
    max_idle_frames: int = Field(
        default=1000, ge=1, description="Frames that carry nothing which a client may send in ten seconds."
    )

    @property
    def addresses(self) -> tuple[str, ...]:
        """Every address, one or many."""
        return (self.address,) if isinstance(self.address, str) else self.address

    @field_validator("address")
    @classmethod
    def _parses(cls, value: str | tuple[str, ...]) -> str | tuple[str, ...]:
        addresses = [value] if isinstance(value, str) else value
        if not addresses:
            raise ValueError("at least one address is needed")
        for address in addresses:
            split_address(address)
        return value

    @model_validator(mode="after")
    def _scripts_are_alone(self) -> Listener:
        if "applications" in self.services and not all(one.startswith(UNIX) for one in self.addresses):
            raise ValueError('services: "applications" runs what it is sent: it is for addresses of "unix:PATH" alone')
        return self

    @model_validator(mode="after")
    def _is_private(self) -> Listener:
        tokens = "key_file" if self.key_file is not None else "tokens_file"
        lacking = [name for name in ("tls", tokens) if getattr(self, name) is None]
        for address in self.addresses:
            host, _ = split_address(address)
            if lacking and not self.insecure and not is_loopback(host):
                raise ValueError(
                    f"address {address!r} is not loopback and has no {' and no '.join(lacking)}; "
                    "set both, or insecure = true to serve it all the same"
                )
        if self.auth_exempt and self.tokens_file is None and self.key_file is None:
            raise ValueError("auth_exempt means nothing without tokens_file or key_file")
        return self

    @model_validator(mode="after")
    def _has_its_keys(self) -> Listener:
        if self.key_file is not None and self.tokens_file is not None:
            raise ValueError("tokens_file and key_file contradict each other: choose one")
        if self.key_file is not None and not {"inference", "management"} & set(self.services):
            raise ValueError('key_file has keys for "inference" and "management" only; use tokens_file here')
        return self
