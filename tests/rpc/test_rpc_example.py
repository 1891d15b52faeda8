"""examples/ping as docs/bring-your-own-schema.md has it: its protoc command, its server, its client."""

import re
import shlex
import shutil
import subprocess
import sys

import pytest
from rpc_rig import HERE, free_port

ROOT = HERE.parents[1]
PAGE = (ROOT / "docs" / "bring-your-own-schema.md").read_text()


@pytest.fixture
def folder(tmp_path):
    """A copy of the example, with what its protoc command writes."""
    shutil.copytree(
        ROOT / "examples" / "ping", tmp_path / "ping", ignore=shutil.ignore_patterns("*_pb2*", "__pycache__")
    )
    command = re.search(r"^python (-m grpc_tools.protoc .*)$", PAGE, re.MULTILINE)[1]
    subprocess.run([sys.executable, *shlex.split(command)], cwd=tmp_path / "ping", check=True)
    return tmp_path / "ping"


def test_ping(folder):
    """The client gets its answer, and its deadlines hold; the server drains with status 0 while nobody waits."""
    address = f"127.0.0.1:{free_port()}"
    serve = [sys.executable, "-m", "actorserve", "config.toml", "--set", f"listeners.ping.address={address}"]
    with (folder / "log").open("w") as log:
        server = subprocess.Popen(serve, cwd=folder, stdout=log, stderr=log)
    try:
        ask = [sys.executable, "ping_client.py", address]
        said = subprocess.run(ask, cwd=folder, check=True, capture_output=True, text=True, timeout=60).stdout
    finally:
        server.terminate()
        status = server.wait(30)
    expected = "Ping: answered\nno answer: DEADLINE_EXCEEDED\nno answer: DEADLINE_EXCEEDED\n"
    assert (said, status) == (expected, 0), (folder / "log").read_text()
