"""A worker process: sets itself up, loads one handler, and runs it until its server says STOP or goes.

`run(sock)` is entered in a child of the forkserver, or by `python -m actorserve.actors.worker_main FD`
where the forkserver may not fork. The reader thread answers PING itself, so that a PONG comes even while
the handler computes. The end of the socket, or of the parent, ends the process at once.

What must not live here: trio, gRPC. What runs a loaded handler is worker_engine.py.
"""

from __future__ import annotations

import ctypes
import importlib
import logging
import os
import random
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path
from queue import SimpleQueue
from typing import Any, NoReturn

from actorserve.actors import wire
from actorserve.actors.load_errors import is_permanent
from actorserve.actors.wire import Data, Frame, FrameReader, Kind
from actorserve.actors.worker_engine import Engine
from actorserve.actors.worker_items import Arrival, Flags, text_of
from actorserve.errors import ActorserveError, LoadFailed
from actorserve.handlers.base import Context, Request, missing_methods

PR_SET_PDEATHSIG = 1
WARMUP_STEPS = 8
READ_BYTES = 1 << 16


def die_with_parent(expected_parent: int) -> None:
    """Ask the kernel to kill this process when the thread that started it ends; exit if it has gone."""
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != expected_parent:
        os._exit(1)


def exit_now(status: int) -> None:
    """End the process without waiting for threads; what was printed is still said. Never returns."""
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(status)


class Wire:
    """The worker's end of the socket: whole frames out, one thread at a time."""

    is_process = True
    """Whether the worker is a process of its own, which code of the user's may have to itself."""

    def __init__(self, sock: socket.socket, leave: Callable[[int], NoReturn] = os._exit) -> None:
        """`leave` ends the worker with a status, from whichever of its threads."""
        self._sock = sock
        self._leave = leave
        self._lock = threading.Lock()
        self.heir: Callable[[socket.socket, FrameReader, list[Frame]], None] | None = None
        """Who reads from the next frames on, instead of the reader thread: an rpc worker's loop."""

    def send(self, data: Data) -> None:
        """Write; the server always reads, so this does not wait for long. The server gone: leave."""
        try:
            with self._lock:
                if isinstance(data, bytes):
                    self._sock.sendall(data)
                    return
                while data:
                    data = wire.unsent(data, self._sock.sendmsg(data[: wire.MAX_PARTS]))
        except OSError:
            self._leave(1)

    def read_into(self, inbox: SimpleQueue[list[Arrival]], flags: Flags) -> None:
        """The reader thread's whole life."""
        reader = FrameReader()
        while True:
            try:
                if reader.room is None:
                    data = self._sock.recv(READ_BYTES)
                    size, frames = len(data), reader.feed(data)
                else:
                    size = self._sock.recv_into(reader.room, 0, socket.MSG_WAITALL)
                    frames = reader.filled(size)
                if self.heir is not None and size:
                    self.heir(self._sock, reader, frames)
                    return
                arrivals = [arrival for frame in frames if (arrival := self._arrival(frame, flags)) is not None]
            except (OSError, wire.WireError):
                self._leave(1)
            if not size:
                self._leave(0)
            if arrivals:
                inbox.put(arrivals)

    def _arrival(self, frame: Frame, flags: Flags) -> Arrival | None:
        """Do what cannot wait for the main thread; None if nothing is left for it."""
        kind, id, payload = frame
        match kind:
            case Kind.BATCH:
                items = wire.read_batch(payload)
                flags.add([item.id for item in items])
                return Arrival(kind, id, items)
            case Kind.OPEN | Kind.OPEN_SEQUENCE | Kind.DESCRIBE:
                flags.add([id])
                return Arrival(kind, id, wire.read_open(payload))
            case Kind.PING:
                self.send(wire.pong(flags.seconds_in_call()))
                return None
            case Kind.CANCEL:
                flags.cancel(id)
        return Arrival(kind, id, payload)


class FrameLog(logging.Handler):
    """`logging` of the handler and of its libraries goes to the server's log with its level."""

    def __init__(self, wire_end: Wire) -> None:
        super().__init__()
        self._wire = wire_end

    def emit(self, record: logging.LogRecord) -> None:
        """Send one record; text is cut at 8 KB. One that cannot be formatted is logging's to report."""
        try:
            text = self.format(record)[:8192]
            said = {"level": record.levelname.lower(), "logger": record.name, "text": text}
            self._wire.send(wire.note(Kind.LOG, said))
        except Exception:  # noqa: BLE001  # as every logging.Handler
            self.handleError(record)


def seed(threads: int) -> None:
    """Give this fork its own random numbers and its own number of compute threads."""
    random.seed()
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed()
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.set_num_threads(threads)
        torch.seed()


def resolve(target: str) -> Any:
    """The class or factory that `module:name` names; LoadFailed says which half is wrong."""
    module_name, _, name = target.partition(":")
    if not module_name or not name:
        raise LoadFailed(f"handler {target!r}: expected module:Class, for example my_package.my_module:MyHandler")
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise LoadFailed(f"handler {target!r} cannot be imported: {error}") from error
    try:
        return getattr(module, name)
    except AttributeError:
        raise LoadFailed(f"handler {target!r}: module {module_name} has no {name}") from None


def context_of(content: dict[str, Any]) -> Context:
    """What a LOAD frame tells the handler."""
    return Context(
        device=content["device"],
        model_dir=Path(content["model_dir"]),
        options=content["options"],
        log=logging.getLogger(f"actorserve.models.{content['name']}"),
        cache_dir=Path(content["cache_dir"]),
        name=content["name"],
        version=content["version"],
    )


def load(content: dict[str, Any], *, is_process: bool = True) -> Any:
    """Import, construct, load and warm up the handler that a LOAD frame describes."""
    seed(int(content["threads"]))
    handler = resolve(content["handler"])()
    if callable(getattr(handler, "serve_calls", None)):
        lacking = None if is_process else 'needs a process: isolation = "thread" has none'
    else:
        lacking = missing_methods(handler)
    if lacking is not None:
        raise LoadFailed(f"handler {content['handler']!r} {lacking}")
    context = context_of(content)
    if callable(getattr(handler, "load", None)):
        handler.load(context)
    seed(int(content["threads"]))  # a handler's imports may have brought torch in, or changed the threads
    if callable(getattr(handler, "warmup", None)):
        warm_up(handler, handler.warmup() or ())
    return handler


def warm_up(handler: Any, inputs: Sequence[dict[str, bytes]]) -> None:
    """Run the handler's own samples once; an error there fails the load."""
    requests = [Request(one, id="warmup") for one in inputs]
    if requests and callable(getattr(handler, "infer", None)):
        for answer in handler.infer(requests):
            if isinstance(answer, Exception):
                raise answer
    for request in requests:
        if callable(getattr(handler, "feed", None)):
            warm_up_sequence(handler, request)
        if callable(getattr(handler, "prefill", None)):
            warm_up_steps(handler, request)
        elif callable(getattr(handler, "generate", None)):
            for _ in islice(handler.generate(request), WARMUP_STEPS):
                pass


def warm_up_steps(handler: Any, request: Request) -> None:
    """Run a few steps of one generation."""
    state, step = handler.prefill(request)
    try:
        for _ in range(WARMUP_STEPS):
            if step.done:
                break
            (step,) = handler.step([state])
            if isinstance(step, Exception):
                raise step
    finally:
        handler.release(state)


def warm_up_sequence(handler: Any, request: Request) -> None:
    """Feed one item to a sequence of its own."""
    state = handler.open(request)
    try:
        (answer,) = handler.feed([state], [request])
        if isinstance(answer, Exception):
            raise answer
    finally:
        handler.release(state)


def why(error: BaseException) -> dict[str, Any]:
    """What a FAILED frame says about an exception of `load`."""
    text = str(error) if isinstance(error, ActorserveError) else f"{type(error).__name__}: {text_of(error)}"
    return {"reason": text[:4000], "permanent": is_permanent(error)}


def abilities(handler: Any, load_s: float) -> dict[str, Any]:
    """What a READY frame says."""

    def has(name: str) -> bool:
        return callable(getattr(handler, name, None))

    if has("serve_calls"):
        return {**handler.abilities, "load_s": load_s}
    return {
        "infer": has("infer"),
        "generate": has("generate"),
        "continuous": has("prefill"),
        "sequences": has("feed"),
        "load_s": load_s,
    }


def run(sock: socket.socket) -> int:
    """Serve one socket with the whole process; returns its exit status."""
    sys.dont_write_bytecode = True  # code that is replaced within a second would be taken for the old one
    end = Wire(sock)
    logging.basicConfig(level=logging.INFO, handlers=[FrameLog(end)], force=True, format="%(message)s")
    return serve(end, SimpleQueue(), find_first)


def find_first(folders: Sequence[str]) -> None:
    """Put folders at the head of `sys.path`, in their order."""
    sys.path[:0] = folders


def serve(end: Wire, inbox: SimpleQueue[list[Arrival]], find: Callable[[Sequence[str]], None]) -> int:
    """Load and run the handler that the first frame names, until STOP; returns the worker's exit status.

    `find` makes its folders importable.
    """
    flags = Flags()
    threading.Thread(target=end.read_into, args=(inbox, flags), name="reader", daemon=True).start()
    first, *rest = inbox.get()
    if first.kind != Kind.LOAD:
        return 1
    content = wire.read_note(first.content)
    find(content["path"])
    began = time.monotonic()
    try:
        if content.get("probe"):
            end.send(wire.note(Kind.SCHEMA, resolve(content["handler"])().schema(context_of(content))))
            return 0
        handler = load(content, is_process=end.is_process)
    except Exception as error:  # the handler's: whatever it raises is why the load failed
        logging.getLogger("actorserve.worker").debug("load failed", exc_info=True)
        end.send(wire.note(Kind.FAILED, why(error)))
        return 1
    calls = getattr(handler, "serve_calls", None)
    if calls is not None:
        end.heir = handler.take_over  # before READY: what is answered to it is for the loop
    end.send(wire.note(Kind.READY, abilities(handler, time.monotonic() - began)))
    if calls is not None:
        calls(end.send)
        return 0
    if rest:
        inbox.put(rest)
    Engine(
        handler,
        inbox=inbox,
        flags=flags,
        send=end.send,
        batch_size=int(content.get("batch_size", 32)),
        max_batch_weight=int(content.get("max_batch_weight", 0)),
    ).run()
    if callable(getattr(handler, "close", None)):
        handler.close()
    return 0


def main() -> None:
    """Entry of a worker that was exec'd rather than forked: `python -m actorserve.actors.worker_main FD PPID`."""
    die_with_parent(int(sys.argv[2]))
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]  # a TextIOWrapper outside of tests
    status = 1
    try:
        status = run(socket.socket(fileno=int(sys.argv[1])))
    except BaseException:  # noqa: BLE001  # as a fork's: threads of the handler must not keep the process
        sys.excepthook(*sys.exc_info())
    finally:
        exit_now(status)


if __name__ == "__main__":
    main()
