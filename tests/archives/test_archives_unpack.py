"""What may be in an archive, and that a refused one leaves nothing behind."""

# ruff: noqa: S311  # seeded on purpose

import io
import os
import random
import struct
import tarfile
import zipfile
import zlib

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from packing import declared, make_tar, make_zip, tar_member, zip_member

from actorserve.actors import archives
from actorserve.actors.archives import Limits, Refused
from actorserve.errors import BadInput, LoadFailed


def unpacked(archive, limits=None, **given):
    """What is in the folder afterwards."""
    folder = archive.parent / "out" / "one"
    archives.unpack(archive, folder, limits or Limits(), **given)
    assert os.listdir(folder.parent) == ["one"]
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def refused(archive, text, limits=None, error=BadInput):
    """It is refused with this text, and nothing is left."""
    with pytest.raises(error, match=text) as caught:
        unpacked(archive, limits)
    left = archive.parent / "out"
    assert not left.exists() or os.listdir(left) == []
    return caught.value


GOOD = {"a.py": b"x = 1\n", "MAR-INF/MANIFEST.json": b"{}", "deep/er/w.bin": bytes(range(256)) * 9000, "empty": b""}


@pytest.mark.parametrize("name", ["m.mar", "m.zip", "M.MAR", "m.tar.gz", "m.tgz"])
@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_STORED])
def test_good(tmp_path, name, method):
    """Every member is there, byte by byte, from deflated and stored zips and from gzipped tars."""
    is_tar = archives.kind_of(name) is archives.Kind.TAR
    archive = make_tar(tmp_path / name, GOOD) if is_tar else make_zip(tmp_path / name, GOOD, method)
    assert unpacked(archive) == GOOD


def test_modes_are_not_taken_over(tmp_path):
    """No set-user-id bit and no executable comes out of an archive."""
    unpacked(zip_member(tmp_path / "m.mar", "tool", mode=0o104777))
    assert (tmp_path / "out" / "one" / "tool").stat().st_mode & 0o7111 == 0


NAMES = {
    "../out.txt": "leads out of the archive",
    "a/../../out.txt": "leads out of the archive",
    "/etc/passwd": "absolute path",
    "a\\..\\b": "backslash",
    "a\0b": "cannot be printed",
    "a\nb": "cannot be printed",
    "good.txt": "is there twice",
    "./good.txt": "is there twice",
    "good.txt/below": "is below a file",
    "x" * 256: "too long",
    "d/" * 40 + "x": "too deep",
    "y/" * 30 + "z" * 200 + "/" + "w" * 250 + "/" + "v" * 250 + "/" + "u" * 250 + "/" + "t" * 250: "too long",
}


@pytest.mark.parametrize("name", NAMES)
def test_zip_names(tmp_path, name):
    """A zip's member whose name leads out, is odd, or is there already is refused by name, with nothing left."""
    error = refused(zip_member(tmp_path / "m.mar", name), NAMES[name])
    assert error.field == "url"
    assert "member" in error.text


@pytest.mark.parametrize("name", [name for name in NAMES if "\0" not in name])
def test_tar_names(tmp_path, name):
    """The same in a tar; a zero byte ends a name there."""
    refused(make_tar(tmp_path / "m.tar.gz", {"good.txt": b"good"}, tarfile.TarInfo(name)), NAMES[name])


@pytest.mark.parametrize(
    ("mode", "text"),
    [(0o120777, "a symbolic link"), (0o020666, "a device"), (0o060666, "a device"), (0o010666, "a pipe"),
     (0o140666, "a socket")],
)  # fmt: skip
def test_zip_kinds(tmp_path, mode, text):
    """Only plain files and folders come out of a zip."""
    refused(zip_member(tmp_path / "m.mar", "odd", b"/etc/passwd", mode=mode), f"'odd' is {text}")


@pytest.mark.parametrize(
    ("kind", "text"),
    [(tarfile.SYMTYPE, "symbolic link"), (tarfile.LNKTYPE, "hard link"), (tarfile.CHRTYPE, "a device"),
     (tarfile.BLKTYPE, "a device"), (tarfile.FIFOTYPE, "a pipe"), (tarfile.GNUTYPE_SPARSE, "neither")],
)  # fmt: skip
def test_tar_kinds(tmp_path, kind, text):
    """Only plain files and folders come out of a tar: no link that a later member could be written through."""
    refused(make_tar(tmp_path / "m.tar.gz", {"good.txt": b"x"}, tar_member("odd", kind, "/etc")), text)


def test_encrypted(tmp_path):
    """An encrypted zip is refused as such."""
    archive = make_zip(tmp_path / "m.mar", {"a": b"x"})
    data = bytearray(archive.read_bytes())
    for signature, offset in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
        data[data.index(signature) + offset] |= 1
    archive.write_bytes(data)
    refused(archive, "'a' is encrypted")


def test_methods(tmp_path):
    """Packing methods other than stored and deflate are refused: their memory has no bound here."""
    refused(make_zip(tmp_path / "m.mar", {"a": b"x" * 100}, zipfile.ZIP_LZMA), "packed by method 14")


# --- sizes -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["m.mar", "m.tar.gz"])
@pytest.mark.parametrize(
    ("limits", "text"),
    [
        (Limits(archive_bytes=100), "max_archive_bytes"),
        (Limits(unpacked_bytes=1 << 20), "max_unpacked_bytes"),
        (Limits(files=3), "max_archive_files"),
    ],
)
def test_limits(tmp_path, name, limits, text):
    """An archive that is too large, packed or unpacked, or has too many members is refused, naming the key."""
    make = make_tar if name.endswith("gz") else make_zip
    refused(make(tmp_path / name, GOOD), text, limits)


@pytest.mark.parametrize("name", ["m.mar", "m.tar.gz"])
def test_ratio(tmp_path, monkeypatch, name):
    """A bomb is refused by its ratio, however large it might be; small archives may have any ratio."""
    make = make_tar if name.endswith("gz") else make_zip
    archive = make(tmp_path / name, {"zeros": bytes(1 << 20)})
    monkeypatch.setattr(archives, "SMALL", 1 << 16)
    refused(archive, "max_archive_ratio")
    monkeypatch.undo()
    assert unpacked(archive) == {"zeros": bytes(1 << 20)}


def test_declared_sizes_are_not_believed(tmp_path):
    """A zip that declares less than it holds is refused, and so is a tar that declares more."""
    archive = make_zip(tmp_path / "m.mar", {"a": b"x" * 5000})
    data = archive.read_bytes().replace(struct.pack("<L", 5000), struct.pack("<L", 10))
    archive.write_bytes(data)
    refused(archive, "is broken|has")
    refused(declared(tmp_path / "m.tar.gz", 5000, b"short"), "is broken")
    refused(declared(tmp_path / "n.tar.gz", 1 << 60, b"short"), "max_unpacked_bytes")


def test_overlapping_members(tmp_path):
    """Members that share their bytes count each: a zip of such is a bomb without any high ratio of its own."""
    archive = make_zip(tmp_path / "m.mar", {"a": random.Random(1).randbytes(1 << 20)}, zipfile.ZIP_STORED)
    with zipfile.ZipFile(archive, "a") as file:
        first = file.infolist()[0]
        for number in range(200):
            copy = zipfile.ZipInfo(f"b{number}")
            copy.file_size, copy.compress_size, copy.CRC = first.file_size, first.compress_size, first.CRC
            copy.header_offset, copy.compress_type = first.header_offset, first.compress_type
            file.filelist.append(copy)
        file.NameToInfo.update({member.filename: member for member in file.filelist})
        file._didModify = True  # so that its directory is written anew
    refused(archive, "is broken|max_archive_ratio|max_unpacked_bytes", Limits(unpacked_bytes=64 << 20))


def test_directory_of_a_zip(tmp_path):
    """A zip's directory is not read where it is larger than the allowed members need."""
    archive = make_zip(tmp_path / "m.mar", {f"{'n' * 200}{number}": b"" for number in range(100)})
    refused(archive, "its directory is too large", Limits(files=10))


def test_long_headers_of_a_tar(tmp_path):
    """A header whose text would fill the memory is refused before it is read."""
    member = tarfile.TarInfo("././@LongLink")
    member.type, member.size = tarfile.GNUTYPE_LONGNAME, 1 << 30
    archive = tmp_path / "m.tar.gz"
    archive.write_bytes(_gzip(member.tobuf(tarfile.GNU_FORMAT)))
    refused(archive, "has a header of 1073741824 bytes")


def _gzip(data):
    packer = zlib.compressobj(wbits=31)
    return packer.compress(data) + packer.flush()


# --- broken ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["m.mar", "m.tar.gz"])
def test_garbage(tmp_path, name):
    """Garbage, an empty file and a truncated archive are refused as broken, with nothing left."""
    make = make_tar if name.endswith("gz") else make_zip
    whole = make(tmp_path / name, GOOD).read_bytes()
    for data in (b"", b"garbage", random.Random(2).randbytes(5000), whole[: len(whole) // 2], whole[:-9]):
        (tmp_path / name).write_bytes(data)
        refused(tmp_path / name, "it is broken")


def test_damaged_headers_of_a_tar(tmp_path):
    """A damaged header in the middle is an error, not the end of the archive."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as file:
        for name in ("a", "b"):
            file.addfile(tarfile.TarInfo(name))
    data = bytearray(buffer.getvalue())
    data[512 + 150] ^= 0xFF
    (tmp_path / "m.tar.gz").write_bytes(_gzip(bytes(data)))
    refused(tmp_path / "m.tar.gz", "it is broken")


@pytest.mark.parametrize("name", ["m.mar", "m.tar.gz"])
def test_mutations(tmp_path, name):
    """Whatever bytes change, an archive is unpacked or refused: no other error, nothing left, nothing outside."""
    make = make_tar if name.endswith("gz") else make_zip
    whole = make(tmp_path / name, {"a/b.txt": b"hello" * 50, "c": b"\0" * 3000}).read_bytes()
    choice = random.Random(3)
    for number in range(600):
        data = bytearray(whole)
        for _ in range(choice.choice((1, 1, 2, 8))):
            data[choice.randrange(len(data))] = choice.randrange(256)
        (tmp_path / name).write_bytes(data[: choice.choice((len(data), choice.randrange(1, len(data))))])
        folder = tmp_path / "out" / str(number)
        try:
            archives.unpack(tmp_path / name, folder, Limits(unpacked_bytes=1 << 20))
        except BadInput:
            assert not folder.exists()
    assert not [left for left in os.listdir(tmp_path / "out") if left.startswith(".")]
    assert sorted(os.listdir(tmp_path)) == sorted([name, "out"])


def test_cancelled(tmp_path):
    """What the check raises ends the unpacking, and nothing is left."""

    class Enough(BaseException):
        pass

    calls = iter(range(3))

    def check():
        if next(calls, None) is None:
            raise Enough

    with pytest.raises(Enough):
        unpacked(make_zip(tmp_path / "m.mar", GOOD), check=check)
    assert os.listdir(tmp_path / "out") == []


def test_a_full_disk_is_not_the_archives_fault(tmp_path, monkeypatch):
    """An error of this machine is told as such."""

    def full(*_):
        raise OSError(28, "No space left on device")

    archive = make_zip(tmp_path / "m.mar", GOOD)
    monkeypatch.setattr(archives.Writer, "file", full)
    refused(archive, "'m.mar' cannot be unpacked: No space left on device", error=LoadFailed)


@settings(max_examples=500)
@given(st.text(st.sampled_from("ab./\\\0é:~ -"), max_size=12))
@example("a/./b//c/")
def test_names_stay_inside(name):
    """What a name leads to is below the folder, and is what the name says."""
    try:
        parts = archives.check_name(name)
    except Refused:
        return
    assert os.path.normpath(name or ".") == os.path.normpath("/".join(parts) or ".")
    assert not {"..", ".", ""} & set(parts)
    assert not name.startswith("/")
