"""Where unpacked models are kept: a folder of this server's own, below `server.cache_dir`.

    cache_dir/archives/<server>.lock     held while the server lives
    cache_dir/archives/<server>/<id>/    one registration; removed when its model is gone
    cache_dir/archives/<server>/.part-*  one that is being unpacked

What a killed server left is removed by the next one that starts. Unpacking runs in a thread, which a cancel
ends. What must not live here: what may be in an archive (archives.py), what it says of itself (manifest.py).
"""

from __future__ import annotations

import fcntl
import os
import shutil
import threading
import uuid
from collections.abc import Callable, Collection
from pathlib import Path
from typing import TypeVar

import structlog
import trio

from actorserve.actors import archives
from actorserve.errors import LoadFailed

AT_ONCE = 2
T = TypeVar("T")
log = structlog.get_logger("actorserve.unpacking")


class Unpacking:
    """Unpacks sources and removes them. `devices` and `installs_requirements` are for those who read them.

    `devices`: names of the machine's devices. `installs_requirements`: whether an archive's own are installed.
    """

    def __init__(
        self,
        cache_dir: Path,
        limits: archives.Limits,
        *,
        installs_requirements: bool = False,
        devices: Collection[str] = (),
    ) -> None:
        self.limits = limits
        self.installs_requirements = installs_requirements
        self.devices = devices
        self._home = cache_dir.absolute() / "archives"
        self.root = self._home / uuid.uuid4().hex
        self._lock: int | None = None
        self._opening = threading.Lock()
        self._turn = trio.CapacityLimiter(AT_ONCE)

    async def in_thread(self, work: Callable[[Callable[[], None]], T]) -> T:
        """Do work that blocks in a thread; what it is given is to be called often: it raises once this is cancelled."""
        return await trio.to_thread.run_sync(work, trio.from_thread.check_cancelled, limiter=self._turn)

    def unpack(self, source: Path, check: Callable[[], None] = lambda: None) -> Path:
        """The new folder with what an archive holds, or with a model's file. BadInput, LoadFailed. Blocks.

        What `check` raises ends it; nothing is left then.
        """
        with self._opening:
            self._open()
        folder = self.root / uuid.uuid4().hex
        if archives.kind_of(source.name) is archives.Kind.FILE:
            folder.mkdir(mode=0o700)
            (folder / source.name).symlink_to(source)
            return folder
        archives.unpack(source, folder, self.limits, check)
        return inner(folder)

    async def release(self, folder: Path) -> None:
        """Remove a folder that `unpack` gave. Any other is left alone."""
        if self.root in folder.parents:
            with trio.CancelScope(shield=True):
                await trio.to_thread.run_sync(self.remove, folder)

    def remove(self, folder: Path) -> None:
        """As `release`; blocks."""
        if self.root in folder.parents:
            shutil.rmtree(self.root / folder.relative_to(self.root).parts[0], ignore_errors=True)

    def close(self) -> None:
        """Remove everything. Idempotent; blocks."""
        if self._lock is not None:
            shutil.rmtree(self.root, ignore_errors=True)
            self.root.with_suffix(".lock").unlink(missing_ok=True)
            os.close(self._lock)
            self._lock = None

    def _open(self) -> None:
        """Have the folder, and its lock, and remove what servers left that are no more."""
        if self._lock is not None:
            return
        try:
            self._home.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._lock = locked(self.root.with_suffix(".lock"))
            self.root.mkdir(mode=0o700)
            sweep(self._home, self.root)
        except OSError as error:
            raise LoadFailed(f"{self._home} cannot be used: {error.strerror}", permanent=False) from None


def inner(folder: Path) -> Path:
    """A folder, or the one folder that is all that it holds: archives are packed both ways."""
    children = list(folder.iterdir())
    if len(children) == 1 and children[0].is_dir() and not children[0].is_symlink() and children[0].name != "MAR-INF":
        return children[0]
    return folder


def locked(path: Path) -> int:
    """A descriptor of a new file with its lock. The lock comes before the name, so that `sweep` never finds it free."""
    new = path.with_suffix(".new")
    lock = os.open(new, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        new.rename(path)
    except OSError:
        os.close(lock)
        raise
    return lock


def sweep(home: Path, own: Path) -> None:
    """Remove the folders of servers that hold their lock no more."""
    for path in home.glob("*.lock"):
        if path.stem == own.name:
            continue
        try:
            lock = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except OSError:
            continue  # gone, or another user's
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(path.with_suffix(""), ignore_errors=True)
            path.unlink(missing_ok=True)
            log.info("unpacked models of an ended server removed", folder=str(path.with_suffix("")))
        except BlockingIOError:
            pass  # it lives
        finally:
            os.close(lock)
