"""The log: structlog for everything, and a cheaper path for the line that every call writes.

What must not live here: what is worth logging (each floor knows), the screen that people see (screen.py).
"""

from __future__ import annotations

import json
import logging
import sys
import time
from contextlib import suppress
from typing import IO, Any, TextIO, cast

import structlog
import trio

from actorserve import config
from actorserve.services.transport.server import CallRecord

FLUSH_EVERY_S = 0.2
LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}


def wants_json(settings: config.Log, stream: IO[str]) -> bool:
    """Whether the log is for machines."""
    return settings.format == "json" or (settings.format == "auto" and not stream.isatty())


class Lenient:
    """A stream to write to; a reader who has gone, or a full disk, costs lines and never the server."""

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write what can be written."""
        with suppress(OSError, ValueError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Flush if it can be done."""
        with suppress(OSError, ValueError):
            self._stream.flush()


def configure(settings: config.Log, stream: TextIO | None = None) -> None:
    """Set structlog up for the process; the log goes to stderr."""
    stream = sys.stderr if stream is None else stream
    as_json = wants_json(settings, stream)
    renderer: Any = (
        structlog.processors.JSONRenderer() if as_json else structlog.dev.ConsoleRenderer(colors=stream.isatty())
    )
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso" if as_json else "%H:%M:%S", utc=as_json),
            structlog.processors.format_exc_info if as_json else _keep,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(LEVELS[settings.level]),
        logger_factory=structlog.WriteLoggerFactory(cast("TextIO", Lenient(stream))),
        cache_logger_on_first_use=False,
    )


def _keep(_logger: Any, _method: str, event: Any) -> Any:
    return event


class AccessLog:
    """One line a call, gathered and written a few times a second: a write a call would cost more than the call."""

    def __init__(self, stream: IO[str], *, as_json: bool) -> None:
        self._stream = Lenient(stream)
        self._as_json = as_json
        self._lines: list[str] = []
        self._wake = trio.Event()
        self._second = 0
        self._stamp = ""

    def add(self, call: CallRecord) -> None:
        """Note one call that has ended."""
        now = time.time()
        if int(now) != self._second:
            self._second = int(now)
            self._stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now))
        stamp = f"{self._stamp}.{int(now * 1000) % 1000:03d}Z"
        self._lines.append(self._json(call, stamp) if self._as_json else self._text(call, stamp))
        if len(self._lines) == 1:
            self._wake.set()

    @staticmethod
    def _text(call: CallRecord, stamp: str) -> str:
        text = f"{stamp} call {call.peer} {call.method} {call.status} {call.seconds * 1e3:.2f}ms {call.request_id}"
        return f"{text} {call.message!r}\n" if call.message else f"{text}\n"

    @staticmethod
    def _json(call: CallRecord, stamp: str) -> str:
        message = f', "message": {json.dumps(call.message)}' if call.message else ""
        request_id = f', "request_id": {json.dumps(call.request_id)}' if call.request_id else ""
        return (
            f'{{"event": "call", "level": "info", "timestamp": "{stamp}", "peer": "{call.peer}", '
            f'"method": {json.dumps(call.method)}, "status": {call.status}, "ms": {call.seconds * 1e3:.3f}'
            f"{message}{request_id}}}\n"
        )

    async def run(self) -> None:
        """Write what has gathered, until cancelled; then once more."""
        try:
            while True:
                await self._wake.wait()
                self._wake = trio.Event()
                await trio.sleep(FLUSH_EVERY_S)
                self.flush()
        finally:
            self.flush()

    def flush(self) -> None:
        """Write what has gathered."""
        lines, self._lines = self._lines, []
        if lines:
            self._stream.write("".join(lines))
            self._stream.flush()
