"""A worker in a thread of the server's process: the other end of thread_worker.py.

It runs the same loop as a worker process, on a socket of its own. What a process has for itself, it shares:
`sys.path`, the modules, the environment, stdout, the number of compute threads. So its folders go to the end of
`sys.path`, and what its handler logs is told from the server's by the thread that logs it.
Only thread_worker.py imports this, when a model asks for it: it brings in what handlers need.
What must not live here: trio.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import sys
import threading
from collections.abc import Sequence
from queue import SimpleQueue
from typing import NoReturn

from actorserve.actors import worker_main
from actorserve.actors.worker_items import Arrival, Flags
from actorserve.actors.worker_main import FrameLog, Wire

CLOSED: list[Arrival] = []


class Inbox(SimpleQueue[list[Arrival]]):
    """What the reader thread hands over; once it is closed, whoever takes from it leaves its thread."""

    def close(self) -> None:
        """Nothing more comes."""
        self.put(CLOSED)

    def get(self, block: bool = True, timeout: float | None = None) -> list[Arrival]:  # noqa: FBT002  # queue's own
        """As a queue's; SystemExit once it is closed."""
        arrivals = super().get(block, timeout)
        if arrivals is CLOSED:
            self.put(CLOSED)
            raise SystemExit(0)
        return arrivals


class ThreadWire(Wire):
    """The worker's end of the socket, whose reader ends alone where a process would end as a whole."""

    is_process = False

    def read_into(self, inbox: SimpleQueue[list[Arrival]], flags: Flags) -> None:
        """The reader thread's whole life; SystemExit would be reported by whoever watches threads."""
        with contextlib.suppress(SystemExit):
            super().read_into(inbox, flags)


class ByThread(logging.Handler):
    """Hands each record to the worker whose thread logged it, and the others to Python's handler of last resort."""

    def __init__(self) -> None:
        super().__init__()
        self.workers: dict[int, FrameLog] = {}

    def emit(self, record: logging.LogRecord) -> None:
        """Hand one record on."""
        target = self.workers.get(record.thread or 0, logging.lastResort)
        if target is not None and record.levelno >= target.level:
            target.handle(record)


_by_thread = ByThread()


def run(sock: socket.socket) -> int:
    """Serve one socket with this thread; returns the worker's exit status. The server gone: SystemExit."""
    inbox = Inbox()

    def leave(status: int) -> NoReturn:
        inbox.close()
        raise SystemExit(status)

    end = ThreadWire(sock, leave)
    us = threading.get_ident()
    _by_thread.workers[us] = FrameLog(end)
    root = logging.getLogger()
    if _by_thread not in root.handlers:
        root.addHandler(_by_thread)
        root.setLevel(min(root.level or logging.INFO, logging.INFO))
    try:
        return worker_main.serve(end, inbox, find_last)
    finally:
        del _by_thread.workers[us]


def find_last(folders: Sequence[str]) -> None:
    """Put folders at the end of `sys.path`: what the server imports is not theirs to change."""
    sys.path += [folder for folder in folders if folder not in sys.path]
