"""A servicer moved from grpcio's or grpclib's own server to ours, unmodified, answers the same, as a client sees it.

The same classes run under the server that they were written for, and in our workers; one grpcio client asks both.
"""

import os
import sys

import pytest
from conftest import HERE, free_port

KINDS = {
    "blocking": "blocking_servicer:Servicer",
    "async": "async_servicer:Servicer",
    "mixed": "async_servicer:Mixed",
    "grpclib": "grpclib_service:Service",
}


@pytest.fixture(scope="module")
def ours(tmp_path_factory, generated):
    """Addresses of our listeners, one a kind, of one server."""
    folder = tmp_path_factory.mktemp("server")
    addresses = {kind: f"127.0.0.1:{free_port()}" for kind in KINDS}
    text = "[log]\naccess = false\n"
    for kind, target in KINDS.items():
        text += f"""
[listeners.{kind}]
address = "{addresses[kind]}"
services = ["servicers", "health", "reflection"]
[[servicers]]
servicer = "{target}"
listeners = ["{kind}"]
path = ["{generated}", "{HERE}"]
max_ongoing_requests = 8
"""
    (folder / "config.toml").write_text(text)
    with (folder / "log").open("w") as log:
        import subprocess

        process = subprocess.Popen(
            [sys.executable, "-m", "actorserve", str(folder / "config.toml")], stdout=log, stderr=log, env=os.environ
        )
    try:
        yield addresses
    finally:
        process.terminate()
        process.wait(30)
        sys.stdout.write((folder / "log").read_text())
