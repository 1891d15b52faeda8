"""What the tests of users' own schemas share: the generated code of a proto, and servers as processes."""

import json
import os
import socket
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

HERE = Path(__file__).parent


def free_port():
    """A port of loopback that nobody has now."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


def generate(proto, into):
    """Have protoc write a proto's modules, for grpcio and for grpclib."""
    scripts = os.pathsep.join((sysconfig.get_path("scripts"), str(Path(sys.executable).parent), os.environ["PATH"]))
    outs = [f"--{kind}_out={into}" for kind in ("python", "grpc_python", "grpclib_python")]
    command = [sys.executable, "-m", "grpc_tools.protoc", f"-I{proto.parent}", *outs, str(proto)]
    subprocess.run(command, check=True, env={**os.environ, "PATH": plugin_path(scripts)})


def plugin_path(path):
    """A PATH on which protoc finds grpclib's plugin, wherever its package was installed."""
    import grpclib  # noqa: PLC0415  # for where it is

    return os.pathsep.join((path, str(Path(grpclib.__file__).parents[4] / "bin")))


def started(command, env):
    """A process, and the first line of its output."""
    process = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True)
    line = process.stdout.readline()
    if not line:
        raise RuntimeError(f"{command} ended with {process.wait()}")
    return process, line


@pytest.fixture(scope="session")
def generated(tmp_path_factory):
    """The folder with diff_pb2, diff_pb2_grpc and diff_grpc; on this process's sys.path too."""
    folder = tmp_path_factory.mktemp("generated")
    generate(HERE / "diff.proto", folder)
    sys.path.insert(0, str(folder))
    yield folder
    sys.path.remove(str(folder))


@pytest.fixture(scope="session")
def environment(generated):
    """The environment in which the classes of this folder can be imported."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join((str(generated), str(HERE)))}


@pytest.fixture(scope="session")
def reference(environment):
    """Addresses of the servers that the classes were written for, by kind."""
    process, line = started([sys.executable, str(HERE / "reference_servers.py")], environment)
    try:
        yield {name: f"127.0.0.1:{port}" for name, port in json.loads(line).items()}
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
