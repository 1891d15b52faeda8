"""Unmodified clients against TestService on our transport: grpcio.aio, grpclib on asyncio, grpc-js, h2load."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import trio

HERE = Path(__file__).resolve().parent


async def run(*command, cwd=None, env=None, check=True):
    """What a command prints; it must end well."""
    done = await trio.run_process(
        list(command), capture_stdout=True, stderr=subprocess.STDOUT, check=False, cwd=cwd, env=env
    )
    text = done.stdout.decode()
    assert done.returncode == 0 or not check, text
    return text


@pytest.mark.parametrize("client", ["aio", "grpclib"])
async def test_asyncio_clients(interop_server, stubs, client):
    """All four kinds of call, metadata, a status and a deadline, in a process with an asyncio loop of its own."""
    environment = {**os.environ, "PYTHONPATH": str(stubs)}
    async with interop_server() as port:
        printed = await run(sys.executable, str(HERE / "asyncio_clients.py"), client, str(port), env=environment)
    assert printed.split() == ["unary", "status", "server", "client", "bidirectional", "deadline"]


@pytest.mark.debian
@pytest.mark.skipif(shutil.which("npm") is None, reason="needs nodejs and npm")
async def test_grpc_js(interop_server, tmp_path):
    """GRPC's Node client: every check of js/client.js."""
    shutil.copytree(HERE / "js", tmp_path / "js")
    await run("npm", "install", "--no-audit", "--no-fund", "--ignore-scripts", "--silent", cwd=tmp_path / "js")
    async with interop_server() as port:
        printed = await run("node", "client.js", str(port), str(HERE / "interop.proto"), cwd=tmp_path / "js")
    checks = re.findall(r"^  async (\w+)\(\)", (HERE / "js" / "client.js").read_text(), re.MULTILINE)
    assert printed.split() == checks


@pytest.mark.debian
@pytest.mark.skipif(shutil.which("h2load") is None, reason="needs Debian's nghttp2-client")
async def test_h2load(interop_server, tmp_path):
    """nghttp2's load generator: every one of 2,000 calls over 4 connections succeeds, and answers what was asked."""
    (tmp_path / "body").write_bytes(b"\0\0\0\0\2\x10\x05")  # SimpleRequest(response_size=5), with its prefix
    headers = ["-H", "content-type: application/grpc", "-H", "te: trailers"]
    async with interop_server() as port:
        url = f"http://127.0.0.1:{port}/grpc.testing.TestService/UnaryCall"
        printed = await run("h2load", "-n2000", "-c4", "-m16", "-t1", "-d", str(tmp_path / "body"), *headers, url)
    assert "2000 total, 2000 started, 2000 done, 2000 succeeded, 0 failed, 0 errored, 0 timeout" in printed
    assert "status codes: 2000 2xx" in printed
    # it does not look at grpc-status: the size does. The prefix (5), Payload's field (2), its body's (2), five zeros
    assert re.search(r"traffic: .*\((\d+)\) data", printed).group(1) == str(2000 * 14)
