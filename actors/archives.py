"""Archives of models: which files are archives, what may be in one, and how it is unpacked.

Nothing that an archive says is trusted: names, kinds, sizes and counts are checked, real sizes are counted, and
only plain files and folders are written, below a folder that is new. A refusal is BadInput of `url`, names the
member, and leaves nothing behind. What must not live here: trio, where folders are kept (unpacking.py), manifests.
"""

from __future__ import annotations

import errno
import gzip
import shutil
import stat
import struct
import tarfile
import uuid
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from functools import partial
from pathlib import Path
from typing import IO, Any, Self

from actorserve.config_types import MODEL_FILES, PACKED, TARS, ZIPS
from actorserve.errors import BadInput, LoadFailed

CHUNK = 1 << 20
SMALL = 64 << 20
"""Bytes below which the ratio of an archive does not matter."""
MOST_PATH_BYTES = 1024
MOST_PART_BYTES = 255
MOST_DEPTH = 32
MOST_HEADER_BYTES = 64 << 10
MOST_DIRECTORY_BYTES_A_FILE = 512
ENCRYPTED = 0x1 | 0x40


class Kind(Enum):
    """What a source is by its name."""

    ZIP = "zip"
    TAR = "tar"
    FILE = "file"
    FOLDER = "folder"


def kind_of(name: str) -> Kind:
    """The kind that a name says: what is neither an archive nor a model's file is a folder."""
    lower = name.lower()
    for kind, suffixes in ((Kind.ZIP, ZIPS), (Kind.TAR, TARS), (Kind.FILE, MODEL_FILES)):
        if lower.endswith(suffixes):
            return kind
    return Kind.FOLDER


def stem_of(name: str) -> str:
    """A file's name without what says its kind."""
    lower = name.lower()
    suffix = next((one for one in PACKED if lower.endswith(one)), "")
    return name[: len(name) - len(suffix)]


@dataclass(frozen=True, slots=True)
class Limits:
    """How large an archive may be. `ratio`: unpacked bytes to packed ones, above SMALL."""

    archive_bytes: int = 16 << 30
    unpacked_bytes: int = 64 << 30
    files: int = 10_000
    ratio: int = 200


# --- what may be in an archive: decisions ----------------------------------------------------------


class Refused(Exception):
    """Why an archive is not unpacked."""


class Members:
    """The members of one archive as they are met: each is checked against the limits and those before it."""

    def __init__(self, limits: Limits, packed_bytes: int) -> None:
        self._limits = limits
        self._most = limits.unpacked_bytes
        if packed_bytes * limits.ratio < self._most:
            self._most = max(SMALL, packed_bytes * limits.ratio)
        self._kinds: dict[tuple[str, ...], bool] = {}
        self._count = 0
        self._declared = 0
        self._written = 0

    def add(self, name: str, *, is_folder: bool, size: int) -> tuple[str, ...]:
        """The parts of a member's path; Refused."""
        self._count += 1
        if self._count > self._limits.files:
            raise Refused(f"it has more than {self._limits.files} members (max_archive_files)")
        parts = check_name(name)
        for end in range(1, len(parts)):
            if not self._kinds.setdefault(parts[:end], True):
                raise Refused(f"member {name!r} is below a file")
        known = self._kinds.get(parts)
        if known is not None and not (known and is_folder):
            raise Refused(f"member {name!r} is there twice")
        if parts:
            self._kinds[parts] = is_folder
        elif not is_folder:
            raise Refused(f"member {name!r} has no name")
        if size < 0:
            raise Refused(f"member {name!r} has a size of {size}")
        self._declared += size
        self._check(self._declared, name)
        return parts

    def count(self, size: int, name: str) -> None:
        """So many bytes more have been unpacked; Refused."""
        self._written += size
        self._check(self._written, name)

    def _check(self, total: int, name: str) -> None:
        if total > self._limits.unpacked_bytes:
            most = self._limits.unpacked_bytes
            raise Refused(f"unpacked it is larger than {most} bytes (max_unpacked_bytes), at member {name!r}")
        if total > self._most:
            raise Refused(
                f"unpacked it is more than {self._limits.ratio} times its size (max_archive_ratio), at member {name!r}"
            )


def check_name(name: str) -> tuple[str, ...]:
    """The parts of a member's path, none for the archive's own root; Refused where it could be anything else."""
    told = f"member {name[:200]!r}"
    if name.startswith("/"):
        raise Refused(f"{told} has an absolute path")
    if "\\" in name:
        raise Refused(f"{told} has a backslash in its path")
    if not name.isprintable():
        raise Refused(f"{told} has a character in its path that cannot be printed")
    parts = tuple(part for part in name.split("/") if part not in ("", "."))
    if ".." in parts:
        raise Refused(f"{told} leads out of the archive")
    too_long = len(name.encode()) > MOST_PATH_BYTES or any(len(part.encode()) > MOST_PART_BYTES for part in parts)
    if too_long or len(parts) > MOST_DEPTH:
        raise Refused(f"{told} has a path that is too long or too deep")
    return parts


def check_zip_member(member: zipfile.ZipInfo) -> None:
    """Refused unless a member is a plain file or a folder, neither encrypted nor packed in an odd way."""
    mode = stat.S_IFMT(member.external_attr >> 16)
    if mode not in (0, stat.S_IFREG, stat.S_IFDIR):
        raise Refused(f"member {member.orig_filename!r} is {_odd(mode)}")
    if member.flag_bits & ENCRYPTED:
        raise Refused(f"member {member.orig_filename!r} is encrypted")
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise Refused(f"member {member.orig_filename!r} is packed by method {member.compress_type}, not by deflate")


def _odd(mode: int) -> str:
    kinds = {stat.S_IFLNK: "a symbolic link", stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket"}
    return kinds.get(mode, "a device" if mode in (stat.S_IFCHR, stat.S_IFBLK) else "neither a file nor a folder")


def check_tar_member(member: tarfile.TarInfo) -> None:
    """Refused unless a member is a plain file or a folder."""
    if member.issym() or member.islnk():
        raise Refused(f"member {member.name!r} is a {'symbolic' if member.issym() else 'hard'} link")
    if member.isdev():
        raise Refused(f"member {member.name!r} is {'a pipe' if member.isfifo() else 'a device'}")
    if member.sparse is not None or not (member.isreg() or member.isdir()):
        raise Refused(f"member {member.name!r} is neither a plain file nor a folder")


# --- unpacking: acts ----------------------------------------------------------------------------


def unpack(archive: Path, folder: Path, limits: Limits, check: Callable[[], None] = lambda: None) -> None:
    """Unpack an archive into `folder`, which must not exist; it is whole or not there.

    Blocks; `check` is called often and may raise to end it. BadInput (`url`) names the member that is refused;
    LoadFailed where this machine is at fault, as with a full disk.
    """
    part = folder.with_name(f".part-{uuid.uuid4().hex}")
    part.mkdir(mode=0o700, parents=True)
    try:
        with told(archive):
            size = archive.stat().st_size
            if size > limits.archive_bytes:
                raise Refused(f"it has {size} bytes, more than {limits.archive_bytes} (max_archive_bytes)")
            writer = Writer(part, Members(limits, size), check)
            with archive.open("rb") as file:
                (_unpack_tar if kind_of(archive.name) is Kind.TAR else _unpack_zip)(file, writer, limits)
            part.rename(folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)


@contextmanager
def told(archive: Path) -> Iterator[None]:
    """Errors of an archive, as errors that say who is to blame."""
    broken = (zipfile.BadZipFile, tarfile.TarError, zlib.error, EOFError, struct.error, gzip.BadGzipFile,
              NotImplementedError, RuntimeError, ValueError, OverflowError)  # fmt: skip
    try:
        yield
    except Refused as error:
        raise BadInput("url", str(error)) from None
    except broken as error:
        raise BadInput("url", f"it is broken: {error or type(error).__name__}") from None
    except OSError as error:
        if error.errno == errno.EINVAL:  # a seek to where its directory says, before its beginning
            raise BadInput("url", f"it is broken: {error}") from None
        raise LoadFailed(f"{archive.name!r} cannot be unpacked: {error.strerror or error}", permanent=False) from None


class Writer:
    """Writes members below a folder that is new and the server's alone."""

    def __init__(self, folder: Path, members: Members, check: Callable[[], None]) -> None:
        self._folder = folder
        self.members = members
        self.check = check

    def folder(self, name: str) -> None:
        """Make a folder."""
        self._folder.joinpath(*self.members.add(name, is_folder=True, size=0)).mkdir(parents=True, exist_ok=True)

    def file(self, name: str, size: int, source: Callable[[], IO[bytes] | None]) -> None:
        """Write a file; bytes count as they come, whatever the archive has declared."""
        target = self._folder.joinpath(*self.members.add(name, is_folder=False, size=size))
        target.parent.mkdir(parents=True, exist_ok=True)
        opened = source()
        if opened is None:
            raise Refused(f"member {name!r} has no content")
        with opened, target.open("xb") as file:
            while chunk := opened.read(CHUNK):
                self.check()
                self.members.count(len(chunk), name)
                file.write(chunk)
        if target.stat().st_size != size:
            raise Refused(f"member {name!r} has {target.stat().st_size} bytes, and not the {size} that it says")


def opened_zip(file: IO[bytes], limits: Limits) -> zipfile.ZipFile:
    """A zip whose directory is no larger than its members may need; Refused."""
    end = zipfile._EndRecData(file)  # type: ignore[attr-defined]  # noqa: SLF001  # zipfile reads the whole directory
    if end and end[zipfile._ECD_SIZE] > limits.files * MOST_DIRECTORY_BYTES_A_FILE:  # type: ignore[attr-defined]  # noqa: SLF001
        raise Refused(f"its directory is too large for {limits.files} members (max_archive_files)")
    return zipfile.ZipFile(file)


def _unpack_zip(file: IO[bytes], writer: Writer, limits: Limits) -> None:
    with opened_zip(file, limits) as opened:
        for member in opened.infolist():
            writer.check()
            name = member.orig_filename  # `filename` ends at a zero byte
            check_zip_member(member)
            if member.is_dir() or stat.S_ISDIR(member.external_attr >> 16):
                writer.folder(name)
            else:
                writer.file(name, member.file_size, partial(opened.open, member))


class Header(tarfile.TarInfo):
    """A tar header that is refused where it is damaged, or asks for a long text to be read."""

    @classmethod
    def frombuf(cls, buf: Any, encoding: str, errors: str) -> Self:
        """As TarInfo's; tarfile would take a damaged header for the end of the archive."""
        if not buf or buf.count(b"\0") == tarfile.BLOCKSIZE:
            return super().frombuf(buf, encoding, errors)
        try:
            header = super().frombuf(buf, encoding, errors)
        except tarfile.HeaderError as error:
            raise Refused(f"it is broken: {error}") from None
        long = (tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE)
        if header.type in (*long, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK) and (
            not 0 <= header.size <= MOST_HEADER_BYTES
        ):
            raise Refused(f"it has a header of {header.size} bytes")
        return header


class Counted:
    """What comes out of gzip: every byte counts, also those of headers and after the end."""

    def __init__(
        self, source: gzip.GzipFile, limits: Limits, packed_bytes: int, check: Callable[[], None] = lambda: None
    ) -> None:
        self._source = source
        self._check = check
        self._members = Members(limits, packed_bytes)

    def read(self, size: int) -> bytes:
        """At most `size` bytes; Refused above the limits."""
        self._check()
        data = self._source.read(size)
        self._members.count(len(data), "(all)")
        return data


def _unpack_tar(file: IO[bytes], writer: Writer, limits: Limits) -> None:
    packed = file.seek(0, 2)
    file.seek(0)
    with gzip.GzipFile(fileobj=file) as unzipped:
        roomy = Limits(
            unpacked_bytes=limits.unpacked_bytes + limits.files * 4 * tarfile.BLOCKSIZE,
            ratio=limits.ratio,
        )
        counted = Counted(unzipped, roomy, packed, writer.check)
        with tarfile.open(fileobj=counted, mode="r|", tarinfo=Header) as opened:  # type: ignore[call-overload]  # it reads only
            for member in opened:
                check_tar_member(member)
                if member.isdir():
                    writer.folder(member.name)
                else:
                    writer.file(member.name, member.size, partial(opened.extractfile, member))
        while counted.read(CHUNK):  # to the end, where the checksum is
            pass
