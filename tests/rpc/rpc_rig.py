"""What the tests of users' own schemas share: generated code, configurations, processes."""

import os
import socket
import subprocess
import sys
import sysconfig
from pathlib import Path

import grpclib

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
    return os.pathsep.join((path, str(Path(grpclib.__file__).parents[4] / "bin")))


def started(command, env):
    """A process, and the first line of its output."""
    process = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True)
    line = process.stdout.readline()
    if not line:
        raise RuntimeError(f"{command} ended with {process.wait()}")
    return process, line


def config(generated, target, **keys):
    """The configuration of a server with one servicer."""
    servicer = {"servicer": target, "path": [str(generated), str(HERE)], "max_ongoing_requests": 4, **keys}
    return {
        "server": {"state_dir": "", "grace_s": 5.0},
        "log": {"access": False},
        "listeners": {"user": {"address": "127.0.0.1:0", "services": ["servicers", "health", "reflection"]}},
        "servicers": [servicer],
    }
