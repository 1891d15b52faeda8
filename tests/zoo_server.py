"""A server as a user starts it, for tests that call it from outside: a subprocess, found by what it prints.

What must not live here: anything that knows the server's insides.
"""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parents[1]
FREE_PORTS = (
    "--set=listeners.inference={address='127.0.0.1:0', services=['inference']}",
    "--set=listeners.management={address='127.0.0.1:0', services=['management']}",
)


class Served:
    """A running server: its addresses and its process."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.screen = ""
        first = self._line()
        self.inference, self.management = re.findall(r"127\.0\.0\.1:\d+", first)

    def _line(self) -> str:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, f"the server ended with {self.process.wait()}"
        self.screen += line
        return line

    def wait_ready(self) -> None:
        """Read the screen up to its last line; the process's end fails."""
        while "Ctrl-C drains" not in self._line():
            pass


@contextmanager
def served(*arguments: str, folder: Path = ROOT, log: Path) -> Iterator[Served]:
    """`python -m actorserve ARGUMENTS` on free ports, READY; drained at the end, where 0 is its exit code."""
    command = [sys.executable, "-m", "actorserve", *arguments, *FREE_PORTS]
    with (
        log.open("w") as errors,
        subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=errors, text=True) as process,
    ):
        try:
            server = Served(process)
            server.wait_ready()
            yield server
            process.send_signal(signal.SIGINT)
            assert process.wait(60) == 0
        finally:
            process.kill()
