"""The forkserver: a process that has imported torch, runs nothing, and forks workers.

It is exec'd by the server (forkserver.py) and speaks with it over one SOCK_SEQPACKET pair, a JSON object a
message. To it: {"fork": n, "env": {...}} with three descriptors (the worker's socket, its stdout, its
stderr). From it: {"warm": true}, {"forked": n, "pid": p} with a pidfd, {"refused": n, "threads": t},
{"failed": n, "why": text}, {"ended": pid, "status": s}.

The rules, and what happened without them (design §3):
1. It dies with the server's thread that started it, and ignores the signals of a terminal's Ctrl-C.
2. It has one thread and runs no torch operation: a parent that had run operations on two threads
   deadlocked its forks. With more than one thread it refuses, and the server execs the worker instead.
3. It never loads a handler. A worker is reaped only after its process group was killed: until then its
   pid cannot be used anew.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import select
import signal
import socket
import sys
from typing import Any

from actorserve.actors import worker_main

MESSAGE_BYTES = 1 << 18


def import_heavy() -> None:
    """Import what workers would wait seconds for. Where torch is absent, workers that need it will say so."""
    for name in ("numpy", "torch"):
        with contextlib.suppress(ImportError):
            __import__(name)


def thread_count() -> int:
    """How many threads this process has."""
    return len(os.listdir("/proc/self/task"))


class Forkserver:
    """The loop, and what it holds."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._wakeup_read, self._wakeup_write = os.pipe()
        os.set_blocking(self._wakeup_read, False)
        os.set_blocking(self._wakeup_write, False)

    def prepare(self) -> None:
        """Signals, then the imports, then tell the server."""
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
            signal.signal(number, signal.SIG_IGN)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(self._wakeup_write, warn_on_full_buffer=False)
        import_heavy()
        gc.collect()
        gc.freeze()  # the forks then leave the pages of these objects shared
        self._say({"warm": True})

    def serve(self) -> None:
        """Until the server's end is closed."""
        poll = select.poll()
        poll.register(self._sock, select.POLLIN)
        poll.register(self._wakeup_read, select.POLLIN)
        while True:
            ready = dict(poll.poll())
            if self._wakeup_read in ready:
                with contextlib.suppress(BlockingIOError):
                    os.read(self._wakeup_read, 4096)
                self._reap()
            if self._sock.fileno() in ready:
                data, descriptors, _flags, _address = socket.recv_fds(self._sock, MESSAGE_BYTES, 3)
                if not data:
                    return
                self._fork(json.loads(data), descriptors)

    def _say(self, content: dict[str, Any], descriptors: tuple[int, ...] = ()) -> None:
        try:
            socket.send_fds(self._sock, [json.dumps(content).encode()], descriptors)
        except OSError:
            os._exit(1)  # the server has gone

    def _fork(self, order: dict[str, Any], descriptors: list[int]) -> None:
        number = order["fork"]
        try:
            threads = thread_count()
            if threads != 1:
                self._say({"refused": number, "threads": threads})
                return
            parent = os.getpid()
            pid = os.fork()
            if pid == 0:
                become_worker(parent, order["env"], descriptors)
            with contextlib.suppress(OSError):
                os.setpgid(pid, pid)  # the child does the same: whoever is first
            pidfd = os.pidfd_open(pid)
            self._say({"forked": number, "pid": pid}, (pidfd,))
            os.close(pidfd)
        except OSError as error:
            self._say({"failed": number, "why": str(error)})
        finally:
            for descriptor in descriptors:
                os.close(descriptor)

    def _reap(self) -> None:
        while True:
            try:
                ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:
                return
            if ended is None:
                return
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(ended.si_pid, signal.SIGKILL)
            _, status = os.waitpid(ended.si_pid, 0)
            self._say({"ended": ended.si_pid, "status": os.waitstatus_to_exitcode(status)})


def become_worker(parent: int, environment: dict[str, str], descriptors: list[int]) -> None:
    """In the child: forget the forkserver, run one worker, end. Never returns."""
    status = 1
    try:
        os.setpgid(0, 0)
        worker_main.die_with_parent(parent)
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGCHLD):
            signal.signal(number, signal.SIG_DFL)
        sock, out, err = descriptors
        sock = keep_only(sock, out, err)
        os.environ.clear()
        os.environ.update(environment)
        gc.unfreeze()
        sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]  # a TextIOWrapper here
        status = worker_main.run(socket.socket(fileno=sock))
    except BaseException:  # noqa: BLE001  # the last frame of this process: nothing may return into the loop
        sys.excepthook(*sys.exc_info())
    finally:
        worker_main.exit_now(status)


def keep_only(sock: int, out: int, err: int) -> int:
    """Descriptors 0 to 2 become /dev/null and the two pipes, 3 the socket; all others are closed."""
    null = os.open(os.devnull, os.O_RDONLY)
    high = max(sock, out, err, null, 8) + 1
    moved = [os.dup2(source, high + n) for n, source in enumerate((null, out, err, sock))]
    for target, source in enumerate(moved):
        os.dup2(source, target, inheritable=target < 3)
    os.closerange(4, os.sysconf("SC_OPEN_MAX") if os.sysconf("SC_OPEN_MAX") > 0 else 65536)
    return 3


def main() -> None:
    """Entry: `python -m actorserve.actors.forkserver_main FD PARENT_PID`."""
    worker_main.die_with_parent(int(sys.argv[2]))
    forkserver = Forkserver(socket.socket(fileno=int(sys.argv[1])))
    forkserver.prepare()
    forkserver.serve()


if __name__ == "__main__":
    main()
