"""Weights converted once, kept as safetensors, and mapped from then on: replicas on CPU then share their pages.

The rules: a converted file is named after what it was made of (source and converter), so it is never stale and never
rewritten; one process converts while the others wait for its lock; the file appears whole or not at all.
What must not live here: any format but safetensors. The source of the rules is docs/zoo.md, "The weights cache".
"""

from __future__ import annotations

import fcntl
import hashlib
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from actorserve.errors import LoadFailed

__all__ = ["Converted", "converted", "read_mapped"]

Converted = tuple[Mapping[str, Tensor], Mapping[str, str]]
"""Tensors by name, and whatever else the model needs as text (safetensors' metadata)."""

_SAMPLE_BYTES = 1 << 20


def converted(source: Path, cache_dir: Path, converter: str, convert: Callable[[Path], Converted]) -> Path:
    """The safetensors file that `convert` makes of `source`; made now unless it is there.

    `converter` names the conversion and its version: change it when `convert` gives something else.
    """
    target = cache_dir / "weights" / f"{source.stem}-{_fingerprint(source, converter)}.safetensors"
    if target.exists():
        return target
    try:
        target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with _locked(target.with_suffix(".lock")):
            if not target.exists():  # another process may have made it while this one waited
                _make(target, convert(source))
    except OSError as error:
        raise LoadFailed(f"cannot keep converted weights in {cache_dir} (cache_dir): {error}") from error
    return target


def read_mapped(path: Path) -> Converted:
    """Tensors that lie on the mapped file (nothing is copied), and its metadata."""
    with safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118 - no mapping


def _fingerprint(source: Path, converter: str) -> str:
    """Size, time and both ends of the file: hashing all of it would cost more than mapping what it was made into."""
    status = source.stat()
    digest = hashlib.sha256(f"{converter} {status.st_size} {status.st_mtime_ns}".encode())
    with source.open("rb") as file:
        digest.update(file.read(_SAMPLE_BYTES))
        file.seek(max(0, status.st_size - _SAMPLE_BYTES))
        digest.update(file.read(_SAMPLE_BYTES))
    return digest.hexdigest()[:24]


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # freed by the kernel even if this process is killed
        yield


def _make(target: Path, made: Converted) -> None:
    tensors, metadata = made
    partial = target.with_suffix(".partial")  # one writer at a time: what an earlier, killed one left is overwritten
    save_file(dict(tensors), partial, dict(metadata))
    with partial.open("rb") as file:
        os.fsync(file.fileno())
    partial.replace(target)
