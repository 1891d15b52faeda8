"""The examples of applications as a user runs them: their protoc command, their script, their client, Ctrl-C.

Each is copied first, so that what protoc writes stays away from the sources.
"""

import ast
import re
import shlex
import shutil
import signal
import subprocess
import sys

import grpc
import pytest
from test_serve_run import ROOT, begin, check_gone, family, free_port

EXAMPLES = ROOT / "examples"
SAID = {
    ("fruit", "server.py", "client.py"): ["18.00 in all", "4 orange: 10.00", "8 apple: 8.00"],
    ("sums", "app.py", "client.py"): ["8.00 in all", "success", "default"],
    ("ping", "driver.py", "ping_client.py"): ["Ping: answered", *["no answer: DEADLINE_EXCEEDED"] * 2],
    ("greeter", "app.py", "client.py"): [
        "Hello Ada from London: 4 seats, 4 in the trailers, first",
        "en: Row, row, row your boat",
        "fr: Frère Jacques",
        "de: Der Mond ist aufgegangen",
        "Ada, seat 1",
        "Ada, seat 2",
        "INVALID_ARGUMENT: name: a guest has one, second",
    ],
    ("classifier", "app.py", "client.py"): [
        "digit_3.png shows three (97 %)",
        "digit_7.png shows seven (96 %)",
        "no picture: INVALID_ARGUMENT",
    ],
}
"""Example, script and client: what the client says."""
SCRIPTS = [EXAMPLES / name / script for name, script, _ in SAID]


def copied(tmp_path, name, script):
    """A copy of an example, with what the protoc command of its script writes."""
    folder = tmp_path / name
    shutil.copytree(EXAMPLES / name, folder, ignore=shutil.ignore_patterns("*_pb2*", "__pycache__"))
    (tmp_path / "samples").symlink_to(EXAMPLES / "samples")
    commands = re.findall(r"^ +python (-m grpc_tools\.protoc .+)$", (folder / script).read_text(), re.MULTILINE)
    assert len(commands) == len(list(folder.glob("*.proto")))
    for command in commands:
        subprocess.run([sys.executable, *shlex.split(command)], cwd=folder, check=True)
    return folder


class Running:
    """A script with a port of its own; the block begins once it has said that it is ready, and ends with Ctrl-C."""

    def __init__(self, script, **env):
        self.address = f"127.0.0.1:{(port := free_port())}"
        self.process = begin(script, folder=script.parent, PORT=str(port), **env)

    def __enter__(self):
        line = self.process.stdout.readline()
        assert line, self.process.communicate()
        self.children = family(self.process)
        return self

    def __exit__(self, *_):
        try:
            self.process.send_signal(signal.SIGINT)
            out, err = self.process.communicate(timeout=60)
            assert (self.process.returncode, out, err) == (0, "", "")
            check_gone(self.children)
        finally:
            self.process.kill()
            self.process.communicate()

    def ask(self, client):
        """The lines that a client says."""
        process = begin(client, self.address, folder=client.parent)
        out, err = process.communicate(timeout=60)
        assert (process.returncode, err) == (0, "")
        return out.splitlines()


@pytest.mark.parametrize(("name", "script", "client"), SAID)
def test_an_example(tmp_path, name, script, client):
    """The client gets its answers, and Ctrl-C ends the script with status 0, silently, and all of its processes."""
    folder = copied(tmp_path, name, script)
    with Running(folder / script) as running:
        assert running.children
        assert running.ask(folder / client) == SAID[name, script, client]
        with grpc.insecure_channel(running.address) as channel:
            healthz = channel.unary_unary("/ray.serve.RayServeAPIService/Healthz")
            assert healthz(b"", timeout=20) == b"\n\x07success"


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.parent.name)
def test_the_shape(script):
    """`serve.run` stands at module level without a guard, and the port is 9000 where nobody says otherwise."""
    calls = [node.value for node in ast.parse(script.read_text()).body if isinstance(node, ast.Expr)]
    assert "serve.run" in [ast.unparse(call.func) for call in calls if isinstance(call, ast.Call)]
    assert "os.environ.get('PORT', '9000')" in ast.unparse(ast.parse(script.read_text()))


def test_a_driver_counts(tmp_path):
    """PingDriver's trailers arrive, and two pings have been counted by the deployment that it is bound with."""
    folder = copied(tmp_path, "ping", "driver.py")
    with Running(folder / "driver.py") as running, grpc.insecure_channel(running.address) as channel:
        ping = channel.unary_unary("/ping.TestService/Ping")
        for number in (1, 2):
            _, call = ping.with_call(b"", timeout=20)
            assert dict(call.trailing_metadata())["pings"] == str(number)
