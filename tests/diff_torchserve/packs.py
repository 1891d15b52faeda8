"""The archives that the cases register, packed by torch-model-archiver from small handlers; and broken ones.

What must not live here: which call registers which (the cases).
"""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from handler_texts import (
    BASE,
    BATCHING,
    DEVICES,
    FUNCTION,
    IMPATIENT,
    NETWORK,
    QUEUE,
    ROWS,
    SCALED,
    SEQUENCES,
    SETTINGS,
    STREAMS,
    TICKET,
)


@dataclass(frozen=True)
class Pack:
    """One run of torch-model-archiver."""

    name: str
    source: str
    handler: str = "handler.py"
    version: str = "1.0"
    settings: str = ""
    kind: str = "default"
    network: str = ""


PACKS = (
    Pack("rows", ROWS, settings=""),
    Pack("rows2", ROWS, version="2.0"),
    Pack("rowstgz", ROWS, kind="tgz"),
    Pack("rowsdir", ROWS, kind="no-archive"),
    Pack("rowsstored", ROWS, kind="zip-store"),
    Pack("streams", STREAMS),
    Pack("line", BASE, network=NETWORK),
    Pack("builtin", "", handler="base_handler", network=NETWORK),
    Pack("function", FUNCTION),
    Pack("batching", BATCHING),
    Pack("settings", ROWS, settings=SETTINGS),
    Pack("scaled", ROWS, settings=SCALED),
    Pack("queue", ROWS, settings=QUEUE),
    Pack("devices", ROWS, settings=DEVICES),
    Pack("ticket", ROWS, settings=TICKET),
    Pack("impatient", ROWS, settings=IMPATIENT),
    Pack("sequences", ROWS, settings=SEQUENCES),
    Pack("brokenyaml", ROWS, settings="minWorkers: [1\n  batchSize: }"),
    Pack("wrongyaml", ROWS, settings="minWorkers: many\nbatchSize: {a: 1}\nmaxBatchDelay: -4\nresponseTimeout: 7\n"),
    Pack("textyaml", ROWS, settings="just a text\n"),
    Pack("brokenimport", "import there_is_no_such_module\n" + FUNCTION),
    Pack("brokensyntax", "def handle(data, context:\n"),
    Pack("twoclasses", "class A:\n    pass\n\n\nclass B:\n    pass\n"),
    Pack("noclass", "X = 1\n"),
)


def _pack(pack: Pack, store: Path, folder: Path) -> None:
    """Write the sources into a folder of their own, and pack them."""
    folder.mkdir()
    command = [sys.executable, "-W", "ignore", "-m", "model_archiver.model_packaging", "--model-name", pack.name,
               "--version", pack.version, "--handler", pack.handler, "--archive-format", pack.kind,
               "--export-path", str(store)]  # fmt: skip
    if pack.source:
        (folder / "handler.py").write_text(pack.source)
    if pack.settings:
        (folder / "model-config.yaml").write_text(pack.settings)
        command += ["--config-file", "model-config.yaml"]
    if pack.network:
        import torch  # noqa: PLC0415 - slow, and only these two need it

        (folder / "network.py").write_text(pack.network)
        torch.save({"weight": torch.tensor([1.0, 10.0])}, folder / "weights.pth")
        command += ["--model-file", "network.py", "--serialized-file", "weights.pth"]
    rooms = {"TMPDIR": str(folder)}  # it works in a folder of the temporary ones that has the model's name
    subprocess.run(command, cwd=folder, env=os.environ | rooms, check=True, capture_output=True)


def _without(store: Path, name: str, changed: dict[str, bytes | None], source: str = "rows.mar") -> None:
    """A copy of an archive with members changed, or left out."""
    with zipfile.ZipFile(store / source) as old, zipfile.ZipFile(store / name, "w") as new:
        for member in old.namelist():
            if changed.get(member, b"") is not None:
                new.writestr(member, changed.get(member) or old.read(member))
        for member, data in changed.items():
            if data is not None and member not in old.namelist():
                new.writestr(member, data)


def _break(store: Path) -> None:
    """The archives that no archiver makes."""
    manifest = "MAR-INF/MANIFEST.json"
    (store / "garbage.mar").write_bytes(b"this is no zip at all\n" * 40)
    (store / "empty.mar").write_bytes(b"")
    (store / "truncated.mar").write_bytes((store / "rows.mar").read_bytes()[:400])
    (store / "garbage.tar.gz").write_bytes(b"\x1f\x8b this is no gzip")
    (store / "readme.txt").write_text("a text\n")
    _without(store, "nomanifest.mar", {manifest: None})
    for name, content in {
        "badmanifest": b"{not json",
        "listmanifest": b"[1, 2]",
        "emptymanifest": b"{}",
        "wrongmanifest": b'{"model": "text", "runtime": 7}',
        "nohandler": b'{"runtime": "python", "model": {"modelName": "nohandler"}}',
        "noversion": b'{"runtime": "python", "model": {"modelName": "noversion", "handler": "handler.py"}}',
        "badruntime": b'{"runtime": "perl", "model": {"modelName": "badruntime", "handler": "handler.py"}}',
    }.items():
        _without(store, f"{name}.mar", {manifest: content})
    _without(store, "nofile.mar", {"handler.py": None})
    model = b'{"modelName": "entry", "handler": "handler.py:entry", "modelVersion": "1.0"}'
    _without(store, "entry.mar", {manifest: b'{"runtime": "python", "model": ' + model + b"}"}, "function.mar")
    _without(store, "lostyaml.mar", {"model-config.yaml": None}, "settings.mar")
    _without(store, "climbs.mar", {"../climbed.txt": b"out"})
    (store / "sub").mkdir()
    (store / "sub" / "deep.mar").write_bytes((store / "rows.mar").read_bytes())
    with tarfile.open(store / "climbs.tar.gz", "w:gz") as file:
        file.add(store / "readme.txt", "../climbed.txt")


def fill(store: Path, folder: Path) -> None:
    """Pack everything into `store`; `folder` is for the sources."""
    store.mkdir()
    folder.mkdir()
    for pack in PACKS:
        _pack(pack, store, folder / pack.name)
    _break(store)
    assert len(os.listdir(store)) > len(PACKS)
