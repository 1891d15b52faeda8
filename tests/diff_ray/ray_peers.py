"""Starts and stops the two servers: Ray Serve 2.60.0 from PyPI, and ours; each runs the same script and applications.

The script is written for Ray; ours is a copy of it in which only the lines that import from `ray` are changed.
What must not live here: calls (ray_calls.py), what is compared.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import venv
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import grpc
from grpc_tools import protoc
from ray_calls import Peer

VERSION = "2.60.0"
SITE = Path(__file__).parent / "site"
START_S = 120
STOP_S = 60
OPTIONS = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
FUNCTIONS = ("cases_pb2_grpc.add_MainServicer_to_server", "cases_pb2_grpc.add_SecondServicer_to_server")
IMPORT = re.compile(r"^from ray(?= import serve$|\.serve)", re.MULTILINE)
VERSIONS = """
import importlib.metadata, json, sys
names = ("ray", "grpcio", "protobuf")
print(json.dumps({n: importlib.metadata.version(n) for n in names} | {"python": sys.version.split()[0]}))
"""
LAUNCH = """
import logging, ray, runpy, sys
folder = sys.argv.pop(1)
ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR, _temp_dir=folder)
runpy.run_path(sys.argv.pop(1), run_name="__main__")
"""


def installed(cache: Path) -> Path:
    """The Python of an environment with Ray Serve, made once."""
    home = cache / f"ray-{VERSION}"
    if not (home / "complete").exists():
        venv.create(home, with_pip=True, clear=True)
        subprocess.run([home / "bin" / "pip", "install", "--quiet", f"ray[serve]=={VERSION}"], check=True)
        (home / "complete").touch()
    return home / "bin" / "python"


def versions(cache: Path) -> dict[str, str]:
    """What a recording was made with."""
    command = [installed(cache), "-c", VERSIONS]
    said = subprocess.run(command, capture_output=True, text=True, check=True)
    mine = {f"client's {name}": importlib.metadata.version(name) for name in ("grpcio", "protobuf", "grpcio-tools")}
    return (
        json.loads(said.stdout) | mine | {"protocol": "gRPC over HTTP/2 without TLS, tests/diff_ray/site/cases.proto"}
    )


def migrated(source: str) -> str:
    """A source that imports Ray Serve, as ours: only the lines that import are changed."""
    return IMPORT.sub("from actorserve", source)


def prepared(folder: Path, *, migrate: bool) -> Any:
    """Write the script's folder: the generated code, and the sources, with their imports changed for ours.

    Gives the module of the messages.
    """
    folder.mkdir()
    for source in SITE.glob("*.py"):
        text = source.read_text()
        (folder / source.name).write_text(migrated(text) if migrate else text)
    code = protoc.main(["protoc", f"-I{SITE}", f"--python_out={folder}", f"--grpc_python_out={folder}", "cases.proto"])
    if code:
        raise RuntimeError(f"protoc: {code}")
    if "cases_pb2" not in sys.modules:
        sys.path.insert(0, str(folder))
        try:
            importlib.import_module("cases_pb2")
        finally:
            sys.path.remove(str(folder))
    return sys.modules["cases_pb2"]


def free_ports(number: int) -> list[int]:
    """Ports of loopback that nobody listens on."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(number)]
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


@contextmanager
def ray(folder: Path, timeout_s: float, *, cache: Path) -> Iterator[Peer]:
    """The real one. `folder` exists and is empty."""
    messages = prepared(folder / "site", migrate=False)
    with _peer(folder, messages, timeout_s, cache=cache) as peer:
        yield peer


@contextmanager
def ours(folder: Path, timeout_s: float) -> Iterator[Peer]:
    """Ours; as `ray` otherwise."""
    messages = prepared(folder / "site", migrate=True)
    with _peer(folder, messages, timeout_s, cache=None) as peer:
        yield peer


@contextmanager
def _peer(folder: Path, messages: Any, timeout_s: float, *, cache: Path | None) -> Iterator[Peer]:
    """The script of the site, running."""
    port, http_port = free_ports(2)
    gates = folder / "gates"
    gates.mkdir()
    arguments = [str(port), str(http_port), str(timeout_s), *FUNCTIONS]
    with (
        running(folder, "script.py", arguments, cache=cache) as (_, tell),
        grpc.insecure_channel(f"127.0.0.1:{port}", options=OPTIONS) as channel,
    ):
        grpc.channel_ready_future(channel).result(timeout=START_S)
        yield Peer(channel, gates, messages, tell, {str(folder): "{home}", str(gates): "{folder}"})


@contextmanager
def running(
    folder: Path, script: str, arguments: Iterable[str], *, cache: Path | None
) -> Iterator[tuple[subprocess.Popen[str], Callable[[dict[str, Any]], dict[str, Any]]]]:
    """Run a script of `folder`/site, under Ray where `cache` says where it is installed; gives its process, once it
    listens, and what tells it something. It ends when its input does, and with it all that it started.
    """
    site = folder / "site"
    own = Path(f"/tmp/diff-ray-{os.getpid()}")  # noqa: S108  # the paths of Ray's sockets must be short
    if cache is None:
        found = importlib.util.find_spec("actorserve")
        assert found is not None
        assert found.origin is not None
        path, command = [site, Path(found.origin).parent.parent], [sys.executable]
    else:
        (folder / "launch.py").write_text(LAUNCH)
        path, command = [site], [str(installed(cache)), str(folder / "launch.py"), str(own)]
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("RAY_", "PYTHON"))}
    more = {"RAY_USAGE_STATS_ENABLED": "0", "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(map(str, path))}
    command += [str(site / script), *arguments]
    with (
        (folder / "log").open("w") as log,
        subprocess.Popen(
            command, cwd=site, env=kept | more, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log,
            text=True, start_new_session=True,
        ) as process,
    ):  # fmt: skip
        try:
            said = _said(process, folder, START_S)
            if said != {"started": True}:
                raise RuntimeError(f"did not start: {said}")

            def tell(order: dict[str, Any]) -> dict[str, Any]:
                assert process.stdin is not None
                process.stdin.write(json.dumps(order) + "\n")
                process.stdin.flush()
                return _said(process, folder, START_S)

            yield process, tell
        finally:
            _end(process)
            shutil.rmtree(own, ignore_errors=True)


def _said(process: subprocess.Popen[str], folder: Path, patience_s: float) -> dict[str, Any]:
    """The script's next answer."""
    assert process.stdout is not None
    timer = threading.Timer(patience_s, process.terminate)
    timer.start()
    try:
        for line in process.stdout:
            if line.startswith("ANSWER "):
                return json.loads(line.removeprefix("ANSWER "))
    finally:
        timer.cancel()
    raise RuntimeError(f"the script ended: {(folder / 'log').read_text()[-4000:]}")


def _end(process: subprocess.Popen[str]) -> None:
    """Close its input, and kill the session that was started here if it does not end by itself."""
    assert process.stdin is not None
    with suppress(BrokenPipeError):
        process.stdin.close()
    try:
        process.wait(STOP_S)
    except subprocess.TimeoutExpired:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(20)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
