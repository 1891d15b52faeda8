"""Archives for the tests: good ones, and every kind of bad one."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
import warnings
import zipfile
from pathlib import Path

MODEL_TOML = 'handler = "native_echo:NativeEcho"\n'
NATIVE_ECHO = """
class NativeEcho:
    def load(self, context):
        self.word = (context.model_dir / "word.txt").read_bytes()

    def infer(self, batch):
        return [self.word + request.inputs["data"] for request in batch]
"""


def manifest(**model: str) -> bytes:
    """A MANIFEST.json as torch-model-archiver writes it."""
    return json.dumps({"createdOn": "24/11/2026 12:00:00", "runtime": "python", "model": model,
                       "archiverVersion": "0.12.0"}).encode()  # fmt: skip


def make_zip(path: Path, members: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> Path:
    """A zip of files."""
    with zipfile.ZipFile(path, "w", method) as file:
        for name, data in members.items():
            file.writestr(name, data)
    return path


def zip_member(path: Path, name: str, data: bytes = b"x", *, mode: int = 0o100644) -> Path:
    """A zip with a good member and one of an odd name or kind."""
    member = zipfile.ZipInfo("odd")
    member.filename = name  # as it stands: ZipInfo() would mend it
    member.create_system = 3
    member.external_attr = mode << 16
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("good.txt", b"good")
        with warnings.catch_warnings(action="ignore"):  # of a name that is there already
            file.writestr(member, data)
    return path


def make_tar(path: Path, members: dict[str, bytes], *further: tarfile.TarInfo) -> Path:
    """A gzipped tar of files, then `further` headers without content."""
    with tarfile.open(path, "w:gz") as file:
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            file.addfile(member, io.BytesIO(data))
        for member in further:
            file.addfile(member)
    return path


def tar_member(name: str, kind: bytes, target: str = "") -> tarfile.TarInfo:
    """A header of a kind that has no content."""
    member = tarfile.TarInfo(name)
    member.type = kind
    member.linkname = target
    return member


def declared(path: Path, size: int, content: bytes) -> Path:
    """A gzipped tar whose one header says `size`, whatever follows."""
    member = tarfile.TarInfo("big")
    member.size = size
    path.write_bytes(gzip.compress(member.tobuf(tarfile.GNU_FORMAT) + content))
    return path
