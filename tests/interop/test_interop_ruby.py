"""gRPC's own interoperability client, as Debian's ruby-grpc ships it, calls our transport."""

import shutil
import subprocess
from pathlib import Path

import pytest
import trio

CLIENTS = sorted(Path("/usr/lib").glob("*/rubygems-integration/*/gems/grpc-*/src/ruby/pb/test/client.rb"))
CASES = [
    "empty_unary",
    "large_unary",
    "client_streaming",
    "server_streaming",
    "ping_pong",
    "empty_stream",
    "timeout_on_sleeping_server",
    "cancel_after_begin",
    "cancel_after_first_response",
    "custom_metadata",
    "status_code_and_message",
    "unimplemented_method",
    "unimplemented_service",
    "client_compressed_unary",
    "client_compressed_streaming",
]
"""What it has of the eighteen; test_interop_grpcio.py has them all."""


@pytest.mark.debian
@pytest.mark.skipif(shutil.which("ruby") is None or not CLIENTS, reason="needs Debian's ruby-grpc")
@pytest.mark.parametrize("case", CASES)
async def test_official_client(interop_server, case):
    """The case ends with OK, by the client's own judgement."""
    async with interop_server() as port:
        options = ["--server_host=127.0.0.1", f"--server_port={port}", f"--test_case={case}"]
        done = await trio.run_process(
            ["ruby", CLIENTS[-1], *options], capture_stdout=True, stderr=subprocess.STDOUT, check=False
        )

    assert (done.returncode, f"OK: {case}" in done.stdout.decode()) == (0, True), done.stdout.decode()
