"""Files that come from URLs into the model store: limits, the part file, its name, and when it is removed.

    fetch    .part-<id> is written, locked by this process, then linked to the file's own name, which must be free
    keep     the registration is durable: the part's name goes
    discard  it was not registered, or is unregistered: both go
    sweep    at a start: what a killed server left. A part that nobody locks goes, and its file with it unless a
             model of the registry has it

So a file without a registration is found by its second name, whenever the server was killed. What must not live
here: URLs and addresses (urls.py), HTTP (downloading.py), unpacking.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Collection, Iterator
from contextlib import aclosing, asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO
from urllib.parse import unquote

import structlog
import trio

from actorserve.actors import downloading, urls
from actorserve.actors.downloading import Body
from actorserve.actors.progress import Phase, UnderWay
from actorserve.errors import BadInput, DownloadFailed, LoadFailed, ModelFileExists, UrlNotAllowed

CHUNK = 1 << 20
PART = ".part-"
log = structlog.get_logger("actorserve.fetching")


@dataclass(frozen=True, slots=True)
class Limits:
    """`bytes_`: of one file. `timeout_s`: of one download in all; `stall_s`: without a byte. `at_once`: downloads."""

    bytes_: int = 16 << 30
    timeout_s: float = 3600.0
    stall_s: float = 30.0
    at_once: int = 4


class Fetching:
    """Fetches files into the store and removes them again. One for a server; any number of tasks."""

    def __init__(self, store: Path, allow: urls.AllowList, limits: Limits) -> None:
        self._store = store.absolute()
        self._allow = allow
        self._limits = limits
        self._turn = trio.CapacityLimiter(limits.at_once)
        self._held: dict[str, Part | None] = {}  # by the file's name; None: there is no part yet

    async def fetch(self, text: str, progress: UnderWay) -> Path:
        """The store's file with what a URL names; the caller sees to `keep` or `discard`. Cancelled, nothing is left.

        BadInput, Unsupported, UrlNotAllowed: the URL; ModelFileExists: its name is taken; DownloadFailed: what came;
        LoadFailed: the store cannot hold it.
        """
        url = self._allow.check(text)
        name = urls.file_name(text)
        target = self._store / name
        if name in self._held or target.is_symlink() or target.exists():
            raise ModelFileExists(name)
        self._held[name] = None
        progress.phase = Phase.DOWNLOADING
        try:
            async with self._turn:
                self._held[name] = part = await trio.to_thread.run_sync(Part, self._store)
                await self._fill(url, part, progress)
                await trio.to_thread.run_sync(part.publish, target)
        except BaseException:
            await self._drop(name)
            raise
        log.info("model file fetched", url=urls.shown(text), file=name, bytes=progress.done)
        return target

    async def _fill(self, url: urls.Url, part: Part, progress: UnderWay) -> None:
        """Write what comes into the part. DownloadFailed above the limits."""
        text, limits = urls.shown(url.text), self._limits
        with trio.move_on_after(limits.timeout_s) as scope:
            async with self._opened(url) as body:
                progress.total = body.total
                if body.total is not None and body.total > limits.bytes_:
                    raise _too_large(text, f"{body.total} bytes", limits.bytes_)
                gathered = bytearray()
                async for chunk in body.chunks:
                    progress.done += len(chunk)
                    if progress.done > limits.bytes_:
                        raise _too_large(text, "its content", limits.bytes_)
                    gathered += chunk
                    if len(gathered) >= CHUNK:
                        await part.write(gathered)
                        gathered = bytearray()
                await part.write(gathered)
                await part.sync()
        if scope.cancelled_caught:
            raise DownloadFailed(text, f"it was not there after {limits.timeout_s:g} s (download_timeout_s)")

    @asynccontextmanager
    async def _opened(self, url: urls.Url) -> AsyncIterator[Body]:
        if url.scheme == "file":
            with opened_file(url, self._allow) as file:
                async with aclosing(_chunks(file)) as chunks:
                    yield Body(os.fstat(file.fileno()).st_size, chunks)
        else:
            async with downloading.opened(url, self._allow, self._limits.stall_s) as body:
                yield body

    def keep(self, text: str) -> None:
        """The model that came from a URL is registered for good. Any other is left alone. Idempotent."""
        part = self._held.pop(_name(text), None)
        if part is not None:
            part.keep()

    async def discard(self, text: str, used: Collection[str] = ()) -> None:
        """Remove the file that came from a URL. `used`: urls of other models; what one of them means stays.

        Its name is free at once; any other `text` is left alone. Shielded. Idempotent.
        """
        name = _name(text)
        if not name:
            return
        if any(_name(other) == name or (self._store / other) == self._store / name for other in used):
            self.keep(text)
            return
        gone = self._store / f"{PART}{uuid.uuid4().hex}"
        try:
            (self._store / name).rename(gone)
        except OSError:
            log.debug("no model file to remove", file=name)
        else:
            log.info("model file removed", url=urls.shown(text), file=name)
        await self._drop(name)
        await _in_thread_anyway(lambda: gone.unlink(missing_ok=True))

    async def _drop(self, name: str) -> None:
        part = self._held.pop(name, None)
        if part is not None:
            await _in_thread_anyway(part.keep)

    def sweep(self, kept: Collection[str]) -> None:
        """Remove what a killed server left. `kept`: urls of the models that are registered. Blocks."""
        names = {_name(text) or Path(text).name for text in kept}
        for path in self._store.glob(f"{PART}*"):
            try:
                descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
            except OSError:
                continue  # gone, or another user's
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                self._remove_twins(os.fstat(descriptor), names)
                path.unlink(missing_ok=True)
                log.info("what a killed server had begun to fetch was removed", file=path.name)
            except OSError:
                continue  # it is being written by a server that lives
            finally:
                os.close(descriptor)

    def _remove_twins(self, part: os.stat_result, names: Collection[str]) -> None:
        if part.st_nlink < 2:
            return
        for path in self._store.iterdir():
            if not path.name.startswith(PART) and path.name not in names and os.path.samestat(part, path.lstat()):
                path.unlink(missing_ok=True)

    def close(self) -> None:
        """Give up the locks; what is not kept stays for the next start's sweep, which knows what was registered."""
        for part in self._held.values():
            if part is not None:
                part.unlock()
        self._held.clear()


class Part:
    """A file of the store that is being written, under a name that no model can have."""

    def __init__(self, store: Path) -> None:
        """Blocks. LoadFailed: the store takes no files."""
        with _told(store):
            store.mkdir(parents=True, exist_ok=True)
            while True:
                self.path = store / f"{PART}{uuid.uuid4().hex}"
                self._descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
                fcntl.flock(self._descriptor, fcntl.LOCK_EX)
                if os.fstat(self._descriptor).st_nlink:
                    return
                os.close(self._descriptor)  # another server's sweep came between the two

    async def write(self, data: bytes | bytearray) -> None:
        """Append. LoadFailed: the disk is full, for example."""
        await trio.to_thread.run_sync(self._write, data)

    def _write(self, data: bytes | bytearray) -> None:
        with _told(self.path.parent), memoryview(data) as view:
            written = 0
            while written < len(view):
                written += os.write(self._descriptor, view[written:])

    async def sync(self) -> None:
        """Have it on the disk. LoadFailed."""
        await trio.to_thread.run_sync(self._sync)

    def _sync(self) -> None:
        with _told(self.path.parent):
            os.fsync(self._descriptor)

    def publish(self, target: Path) -> None:
        """Give it its own name as well, unless something has it. Where there are no hard links, instead. Blocks."""
        with _told(target.parent):
            try:
                os.link(self.path, target)
            except FileExistsError:
                raise ModelFileExists(target.name) from None
            except OSError as error:
                if error.errno not in (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS):
                    raise
                self.path.rename(target)

    def keep(self) -> None:
        """Take the part's name away, and the lock."""
        self.path.unlink(missing_ok=True)
        self.unlock()

    def unlock(self) -> None:
        """Give the lock back."""
        os.close(self._descriptor)


@contextmanager
def opened_file(url: urls.Url, allow: urls.AllowList) -> Iterator[IO[bytes]]:
    """The plain file that a file:// URL names. A symbolic link counts as a redirect. UrlNotAllowed, BadInput."""
    path = Path(os.path.realpath(unquote(url.path)))
    text = urls.shown(url.text)
    if str(path) != os.path.normpath(unquote(url.path)):
        try:
            allow.check(path.as_uri())
        except (UrlNotAllowed, BadInput):
            raise UrlNotAllowed(text, "it is a link that leads elsewhere") from None
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
    except (OSError, ValueError) as error:
        raise DownloadFailed(text, f"it cannot be read: {getattr(error, 'strerror', error)}") from None
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise DownloadFailed(text, "it is no plain file")
    with os.fdopen(descriptor, "rb") as file:
        yield file


async def _chunks(file: IO[bytes]) -> AsyncGenerator[bytes, None]:
    while chunk := await trio.to_thread.run_sync(file.read, CHUNK):
        yield chunk


async def _in_thread_anyway(work: Callable[[], None]) -> None:
    with trio.CancelScope(shield=True):
        await trio.to_thread.run_sync(work)


def _name(text: str) -> str:
    """The name in the store of what came from a URL; "": it did not."""
    if not urls.is_url(text):
        return ""
    try:
        return urls.file_name(text)
    except BadInput:
        return ""


def _too_large(text: str, what: str, most: int) -> DownloadFailed:
    return DownloadFailed(text, f"{what} is more than {most} bytes (max_archive_bytes)")


@contextmanager
def _told(store: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        what = "is full" if error.errno in (errno.ENOSPC, errno.EDQUOT) else f"cannot be written to: {error.strerror}"
        raise LoadFailed(f"the model store {store} {what}", permanent=False) from None
