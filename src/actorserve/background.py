"""`--start` and `--stop`: one server in the background, known by its pid file.

The pid file is TorchServe's, `.model_server.pid` in the temporary folder. Its server holds a lock on it for as long
as it lives, so that a number of an ended server is never taken for another process. A server is started anew, not
forked. What must not live here: what it serves.
"""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from actorserve.errors import StartFailed

NAME = ".model_server.pid"
READY = b"ready"
KILLED = 130


def pid_path() -> Path:
    """Where the pid file is: TMPDIR says in which folder."""
    return Path(tempfile.gettempdir()) / NAME


class PidFile:
    """The pid file of this process. `take` it before the server starts, `leave` it when it has ended."""

    def __init__(self, path: Path | None = None) -> None:
        self.path = pid_path() if path is None else path
        self._taken = False

    def take(self) -> None:
        """Write this process's number; StartFailed where another server has the file."""
        while True:
            descriptor = self._open()
            if not _locked(descriptor):
                number = _number(descriptor)
                os.close(descriptor)
                raise StartFailed(f"a server runs already (pid {number}, by {self.path}): stop it with --stop first")
            if _is_at(descriptor, self.path):
                break
            os.close(descriptor)  # its last owner has just removed it
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        self._taken = True

    def leave(self) -> None:
        """Remove the file. Its lock is held for as long as the process lives: who waits for it waits for the end."""
        if self._taken:
            self.path.unlink(missing_ok=True)
            self._taken = False

    def _open(self) -> int:
        try:
            descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise StartFailed(f"the pid file {self.path} cannot be written: {error.strerror}") from None
        _check_owner(descriptor, self.path)
        return descriptor


def _is_at(descriptor: int, path: Path) -> bool:
    """Whether an open file is the one at a path."""
    try:
        there, here = path.stat(follow_symlinks=False), os.fstat(descriptor)
    except FileNotFoundError:
        return False
    return (there.st_dev, there.st_ino) == (here.st_dev, here.st_ino)


def _check_owner(descriptor: int, path: Path) -> None:
    """StartFailed, with the file closed, where another user has made it: what it says is not to be signalled."""
    if os.fstat(descriptor).st_uid != os.geteuid():
        os.close(descriptor)
        raise StartFailed(f"the pid file {path} is another user's: set TMPDIR to a folder of your own")


def _number(descriptor: int) -> int | None:
    """The process's number that a pid file holds."""
    text = os.pread(descriptor, 20, 0).decode(errors="replace").strip()
    return int(text) if text.isdecimal() else None


def stop() -> bool:
    """End the server of the pid file, and wait until it has drained; whether there was one. StartFailed: not ours."""
    path = pid_path()
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    except OSError as error:
        raise StartFailed(f"the pid file {path} cannot be read: {error.strerror}") from None
    _check_owner(descriptor, path)
    try:
        if _locked(descriptor):
            path.unlink(missing_ok=True)  # whoever wrote it was killed
            return False
        number = _number(descriptor)
        if number is None:
            raise StartFailed(f"the pid file {path} holds no number")
        with suppress(ProcessLookupError):
            os.kill(number, signal.SIGTERM)
        fcntl.flock(descriptor, fcntl.LOCK_EX)  # free once it has ended
        return True
    finally:
        os.close(descriptor)


def _locked(descriptor: int) -> bool:
    """Take the lock of a file, if nobody has it; whether it could be had."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def start(arguments: Sequence[str]) -> int:
    """Start a server in a session of its own; 0 once it is ready, or the exit code with which it has ended before.

    `arguments` are its command line, to which what it needs is added.
    """
    reading, writing = os.pipe()
    safe = [] if sys.path[:1] in ([""], [str(Path.cwd())]) else ["-P"]  # as this process was started itself
    command = [sys.executable, *safe, "-m", "actorserve", *arguments, "--foreground", f"--ready-fd={writing}"]
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True, pass_fds=(writing,))
    os.close(writing)
    try:
        with open(reading, "rb") as pipe:  # noqa: PTH123  # it is a descriptor
            if pipe.read() == READY:
                return 0
        return process.wait()
    except KeyboardInterrupt:
        process.terminate()
        process.wait()
        return KILLED


class Readiness:
    """The other end: tells the process that started this one. `descriptor` None: nobody has."""

    def __init__(self, descriptor: int | None) -> None:
        self._descriptor = descriptor
        if descriptor is not None:
            os.set_inheritable(descriptor, False)

    def tell(self) -> None:
        """The server is ready. Idempotent; whoever waited may have gone."""
        if self._descriptor is not None:
            with suppress(OSError):
                os.write(self._descriptor, READY)
            os.close(self._descriptor)
            self._descriptor = None
