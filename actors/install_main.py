"""Builds the venv of one model: `python -m actorserve.actors.install_main PARENT_PID`, the order on stdin.

    {"root": folder, "requirements": [line, ...], "file": path or "", "base": folder}
    -> the last line of stdout: {"python": path} or {"failed": text}; what pip says goes to stderr

1. A venv is named by a hash of the interpreter and of the requirements; a local file or folder among them
   counts with its name, sizes and times. Two models, or servers, that want the same get the same venv.
2. One process at a time builds it (a file lock). It is whole once the file `complete` has been renamed into it;
   one without is removed and built anew. It is built where it stays: commands in its `bin` name their interpreter.
3. It sees what the server has: the base interpreter's packages (--system-site-packages) and those of the venv
   that the server itself runs in (a .pth file). What is installed into it goes before both.

What must not live here: trio; what to do about a failure.
"""

from __future__ import annotations

import ctypes
import fcntl
import hashlib
import importlib.util
import json
import os
import shutil
import site
import subprocess
import sys
import sysconfig
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from actorserve.actors.worker_main import die_with_parent

COMPLETE = "complete"
LAST_LINES = 6
REASON_LETTERS = 2000
PIP = ("-m", "pip", "install", "--no-input", "--no-color", "--progress-bar", "off", "--disable-pip-version-check")


class Failed(Exception):
    """The venv cannot be built, and why."""


def read_lines(order: dict[str, Any]) -> list[str]:
    """The requirements, one a line; Failed if their file cannot be read."""
    if not order["file"]:
        return list(order["requirements"])
    try:
        return Path(order["file"]).read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise Failed(f"{order['file']} cannot be read: {error}") from None


def stamps(line: str, base: Path) -> Iterator[str]:
    """What tells one state of a local requirement from another; nothing for one that is not local."""
    path = base / line.removeprefix("-e ").strip()
    if not line.strip() or not os.path.exists(path):  # noqa: PTH110  # Path.exists raises for what is too long
        return
    files = sorted(path.rglob("*")) if path.is_dir() else [path]
    for file in files:
        if file.is_file() and "__pycache__" not in file.parts:
            about = file.stat()
            yield f"{file} {about.st_size} {about.st_mtime_ns}"


def key_of(lines: Sequence[str], base: Path) -> str:
    """The venv's name: a hash of rule 1."""
    about = [sys.version, sys.executable, sys.prefix, *site.getsitepackages(), str(base)]
    local = [stamp for line in lines for stamp in stamps(line, base)]
    return hashlib.sha256(json.dumps([about, list(lines), local]).encode()).hexdigest()[:24]


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold a lock file; waits for whoever has it."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def run(command: Sequence[str], cwd: Path) -> None:
    """Run a command, its output on our stderr; Failed with its last lines. It dies with this process."""
    us, prctl = os.getpid(), ctypes.CDLL(None).prctl
    last: deque[str] = deque(maxlen=LAST_LINES)

    def die_with_us() -> None:
        prctl(1, 9)  # PR_SET_PDEATHSIG, SIGKILL
        if os.getppid() != us:
            os._exit(1)

    with subprocess.Popen(
        command,
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        preexec_fn=die_with_us,  # noqa: PLW1509  # this process has one thread
    ) as process:
        assert process.stdout is not None  # noqa: S101  # narrows the type: PIPE
        for line in process.stdout:
            sys.stderr.write(line)
            sys.stderr.flush()
            if line.strip():
                last.append(line.strip())
    if process.returncode:
        raise Failed("; ".join(last)[-REASON_LETTERS:] or f"{command[0]} ended with status {process.returncode}")


def build(venv: Path, order: dict[str, Any], base: Path) -> None:
    """Build a venv and install into it."""
    run([sys.executable, "-P", "-m", "venv", "--system-site-packages", "--without-pip", str(venv)], base)
    python = str(venv / "bin" / "python")
    packages = Path(sysconfig.get_path("purelib", "venv", {"base": str(venv), "platbase": str(venv)}))
    theirs = [folder for folder in site.getsitepackages() if Path(folder).is_dir()]
    lines = [f"import site; site.addsitedir({folder!r})\n" for folder in theirs]
    (packages / "actorserve_of_the_server.pth").write_text("".join(lines))
    if importlib.util.find_spec("pip") is None:
        run([python, "-P", "-m", "ensurepip"], base)
    listed = order["file"]
    if not listed:
        listed = str(venv / "requirements.txt")
        Path(listed).write_text("".join(f"{line}\n" for line in order["requirements"]))
    run([python, "-P", *PIP, "-r", listed], base)


def install(order: dict[str, Any]) -> Path:
    """The interpreter of the venv that was ordered; builds it where it is not there. Failed."""
    root, base = Path(order["root"]), Path(order["base"])
    root.mkdir(parents=True, exist_ok=True)
    key = key_of(read_lines(order), base)
    venv = root / key
    python = venv / "bin" / "python"
    with locked(root / f"{key}.lock"):
        if not ((venv / COMPLETE).exists() and os.access(python, os.X_OK)):
            shutil.rmtree(venv, ignore_errors=True)
            sys.stderr.write(f"building the venv {venv}\n")
            build(venv, order, base)
            (venv / f"{COMPLETE}.new").write_text("")
            (venv / f"{COMPLETE}.new").rename(venv / COMPLETE)
    return python


def main() -> None:
    """Entry: see the module's docstring."""
    die_with_parent(int(sys.argv[1]))
    try:
        result = {"python": str(install(json.load(sys.stdin)))}
    except (Failed, OSError) as error:
        result = {"failed": str(error)}
    sys.stdout.write(json.dumps(result) + "\n")


if __name__ == "__main__":
    main()
