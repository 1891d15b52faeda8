"""serve.run in scripts of their own: what it answers, how a change rolls over, how it ends, what is left (nothing)."""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from actorserve import serve

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = Path(__file__).parent / "apps" / "script.py"
SAID = [
    "12 1770 14",
    "Price -1",
    "4950",
    "TypeError True",
    "{'first': ('RUNNING', ['Market', 'Orange']), 'second': ('RUNNING', ['Orange'])}",
    "RuntimeError True True",
    "{'first': 'RUNNING', 'third': 'DEPLOY_FAILED'}",
    "DeploymentUnavailableError",
]


def begin(*command, folder=ROOT, **env):
    return subprocess.Popen(
        [sys.executable, *map(str, command)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=folder,
        env={**os.environ, "PYTHONUNBUFFERED": "1", **env},
    )


def family(process):
    """The processes below one that live."""
    return psutil.Process(process.pid).children(recursive=True)


def check_gone(processes):
    _, alive = psutil.wait_procs(processes, timeout=20)
    assert alive == []


@pytest.mark.parametrize(("how", "code", "more"), [("shutdown", 0, []), ("again", 0, ["20"]), ("raise", 1, [])])
def test_a_script(how, code, more):
    """Handles answer, exceptions of the script's own classes arrive, a change takes over, `shutdown` ends it all."""
    process = begin(SCRIPT, how)
    out, err = process.communicate(timeout=100)
    assert (out.splitlines(), process.returncode) == ([*SAID, *more], code), err


def test_until_ctrl_c():
    """When the script has ended its applications go on; Ctrl-C ends them, without a traceback, and nothing is left."""
    process = begin(SCRIPT, "wait")
    assert process.stdout is not None
    lines = []
    while "waiting" not in lines:
        line = process.stdout.readline()
        assert line, process.communicate()
        lines.append(line.strip())
    children = family(process)
    assert children
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 0
    assert "Traceback" not in err
    check_gone(children)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_script_that_dies(number):
    """However a script dies, its server sees it and ends with all of its workers."""
    process = begin(SCRIPT, "wait")
    assert process.stdout is not None
    while "waiting" not in process.stdout.readline():
        assert process.poll() is None
    children = family(process)
    process.send_signal(number)
    process.communicate(timeout=60)
    check_gone(children)


def free_port():
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


def test_a_port_that_is_taken():
    """A driver's port that somebody has is an error that names it, and the application does not run."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        sock.listen()
        port = sock.getsockname()[1]
        process = begin(
            "-c",
            f"""
from actorserve import serve
from actorserve.serve.drivers import DefaultgRPCDriver
@serve.deployment
def echo(x): return b""
try:
    serve.run(DefaultgRPCDriver.bind(echo.bind(), port={port}))
except serve.exceptions.ServeError as error:
    print(error)
print(serve.status().applications)
serve.shutdown()
""",
        )
        out, err = process.communicate(timeout=60)
        assert out.splitlines() == [
            f"application default: driver DefaultgRPCDriver: cannot listen on 127.0.0.1:{port}: port {port} is in use",
            "{}",
        ], err


def test_nothing_runs_here():
    """Without a server, `status` is empty, `shutdown` does nothing, and a handle says what is missing."""
    assert serve.status().applications == {}
    serve.shutdown()
    with pytest.raises(serve.exceptions.ServeError, match=r"no applications run here: `serve\.run` starts them"):
        serve.get_app_handle("x")
    with pytest.raises(serve.exceptions.ServeError, match="not while the module loads"):
        serve.handle.DeploymentHandle("a", "b").remote()


def test_updates():
    """A user_config changes in place and is refused by all or none; other code rolls over with no failed request: 64 in
    flight, in hand and waiting, are answered by the code that they came to, each begun once, while new ones get the
    new.

    More replicas start, fewer end, and one whose check_health fails is replaced. Other code of an autoscaled deployment
    begins with as many replicas as the old has.
    """
    process = begin(ROOT / "tests" / "serve" / "apps" / "updates.py")
    out, err = process.communicate(timeout=100)
    assert out.splitlines() == [
        "first {'one!'}",
        "in place {'two!'} True",
        "default:Word: reconfigure raised ValueError: no such word",
        "kept {'two!'}",
        "more 3",
        "in flight 15 True",
        "rolled {'three?'} False []",
        "TypeError",
        "scaled 3 3",
        "replaced",
    ], err
