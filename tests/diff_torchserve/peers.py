"""Starts and stops the two servers: TorchServe 0.12.0 from PyPI, and ours; loopback, free ports, folders of their own.

What must not live here: calls (calls.py), what is compared.
"""

from __future__ import annotations

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
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from http.server import BaseHTTPRequestHandler, SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import grpc
from grpc_calls import Peer

VERSION = "0.12.0"
PACKAGES = (f"torchserve=={VERSION}", f"torch-model-archiver=={VERSION}", "pyyaml", "psutil")
START_S = 120
OPTIONS = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
ALLOWED = r"http://{web}/allowed/.*"  # the one pattern of allowed_urls, on both sides


def missing() -> str:
    """Why the real server cannot be started here; empty if it can."""
    return "" if shutil.which("java") else "java is not on the PATH (Debian: apt-get install openjdk-17-jre-headless)"


def installed(cache: Path) -> Path:
    """The folder of programs of an environment with TorchServe, made once; torch is the one that is here."""
    home = cache / f"torchserve-{VERSION}"
    programs = home / "bin"
    if not (home / "complete").exists():
        venv.create(home, with_pip=True, clear=True)
        there = home / "lib" / f"python3.{sys.version_info[1]}" / "site-packages"
        found = importlib.util.find_spec("torch")
        assert found is not None
        assert found.origin is not None
        (there / "torch_of_this_environment.pth").write_text(f"{Path(found.origin).parent.parent}\n")
        subprocess.run([programs / "pip", "install", "--no-deps", "--quiet", *PACKAGES], check=True)
        (home / "complete").touch()
    return programs


def versions() -> dict[str, str]:
    """What a recording was made with."""
    java = subprocess.run(["java", "-version"], capture_output=True, text=True, check=True).stderr.splitlines()[0]
    return {
        "torchserve": VERSION,
        "java": java,
        "python": sys.version.split()[0],
        "protocol": "gRPC over HTTP/2 without TLS, org.pytorch.serve.grpc of 0.12.0",
        **{name: importlib.metadata.version(name) for name in ("torch", "grpcio", "protobuf")},
    }


def free_ports(number: int) -> list[int]:
    """Ports of loopback that nobody listens on."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(number)]
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


class Files(SimpleHTTPRequestHandler):
    """A store over HTTP: /allowed/NAME and /other/NAME are its files, new-NAME too; /allowed/away/ leads to /other/."""

    def do_GET(self) -> None:
        if self.path.startswith("/allowed/away/"):
            self.send_response(302)
            self.send_header("Location", self.path.replace("/allowed/away/", "/other/"))
            self.end_headers()
            return
        self.path = re.sub(r"^/(allowed|other)/(?:new-)?", "/", self.path)
        super().do_GET()

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@contextmanager
def file_server(folder: Path) -> Iterator[str]:
    """Serve a folder's files; gives host and port."""
    handler: type[BaseHTTPRequestHandler] = partial(Files, directory=str(folder))  # type: ignore[assignment]
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


@contextmanager
def _peer(folder: Path, inference: str, management: str, names: dict[str, str]) -> Iterator[Peer]:
    """Channels to both addresses, which answer."""
    with (
        grpc.insecure_channel(inference, options=OPTIONS) as one,
        grpc.insecure_channel(management, options=OPTIONS) as two,
    ):
        for channel in (one, two):
            grpc.channel_ready_future(channel).result(timeout=START_S)
        yield Peer(one, two, folder, names)


@contextmanager
def _process(command: list[str], folder: Path, environment: dict[str, str], marker: str) -> Iterator[list[str]]:
    """A server in a process group of its own; gives its lines up to the marker. Ended with everything it started."""
    with (
        (folder / "log").open("w") as log,
        subprocess.Popen(
            command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=log, text=True, start_new_session=True
        ) as process,
    ):
        assert process.stdout is not None
        timer = threading.Timer(START_S, os.killpg, (process.pid, signal.SIGKILL))
        reader = threading.Thread(target=_drain, args=(process.stdout, folder / "out"))
        timer.start()
        try:
            lines: list[str] = []
            for line in process.stdout:
                lines.append(line)
                if marker in line:
                    break
            else:
                raise RuntimeError(f"did not start: {''.join(lines)[-2000:]} {(folder / 'log').read_text()}")
            timer.cancel()
            reader.start()
            yield lines
        finally:
            timer.cancel()
            _end(process)
            if reader.ident is not None:
                reader.join()


def _drain(stream: Iterator[str], path: Path) -> None:
    """Keep what a server prints, so that its pipe never fills."""
    with path.open("w") as file:
        file.writelines(stream)


def _end(process: subprocess.Popen[str]) -> None:
    """Ask, then kill the group that was started here."""
    process.terminate()
    with suppress(subprocess.TimeoutExpired):
        process.wait(20)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _environment(folder: Path, **more: str) -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("TS_", "PYTHON"))}
    (folder / "tmp").mkdir()
    return kept | {"TMPDIR": str(folder / "tmp"), "TEMP": str(folder / "tmp"), "OMP_NUM_THREADS": "1", **more}


def _configured(folder: Path, store: Path, configuration: str, web: str) -> tuple[list[str], dict[str, int]]:
    """Write the config.properties that both servers get; gives the flags and the two ports."""
    inference, management, *rest = free_ports(5)
    opened = configuration == "open"
    lines = [
        *(
            f"{name}_address=http://127.0.0.1:{port}"
            for name, port in zip(("inference", "management", "metrics"), rest, strict=True)
        ),
        f"grpc_inference_port={inference}",
        f"grpc_management_port={management}",
        "disable_system_metrics=true",
        "unregister_model_timeout=20",
        f"default_workers_per_model={0 if opened else 1}",
        f"allowed_urls=file://.*,{ALLOWED.format(web=web)}",
    ]
    (folder / "config.properties").write_text("\n".join(lines) + "\n")
    flags = ["--start", "--foreground", "--ncs", "--ts-config", "config.properties", "--model-store", str(store)]
    flags += ["--disable-token-auth", "--enable-model-api"] if opened else ["--models", "rows=rows.mar"]
    return flags, {"inference": inference, "management": management}


@contextmanager
def _started(
    command: list[str], folder: Path, names: dict[str, str], ports: dict[str, int], *, path: str
) -> Iterator[Peer]:
    """Run a server up to TorchServe's ready marker; its channels, and the keys that it wrote."""
    with _process(command, folder, _environment(folder, PATH=path), "Model server started."):
        if (folder / "key_file.json").exists():
            keys = json.loads((folder / "key_file.json").read_text())
            names |= {keys[kind]["key"]: "{" + kind + "}" for kind in ports}
        options = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
        with ExitStack() as stack:
            channels = {
                name: stack.enter_context(grpc.insecure_channel(f"127.0.0.1:{port}", options=options))
                for name, port in ports.items()
            }
            for channel in channels.values():
                grpc.channel_ready_future(channel).result(timeout=START_S)
            yield Peer(channels["inference"], channels["management"], folder, names)


@contextmanager
def torchserve(folder: Path, store: Path, configuration: str, web: str, *, cache: Path) -> Iterator[Peer]:
    """The real one. `folder` exists and is empty; `store` is its own."""
    programs = installed(cache)
    flags, ports = _configured(folder, store, configuration, web)
    path = f"{programs}{os.pathsep}{os.environ['PATH']}"
    with _started([str(programs / "torchserve"), *flags], folder, _names(folder, store, web), ports, path=path) as peer:
        yield peer


@contextmanager
def ours(folder: Path, store: Path, configuration: str, web: str, *, more: tuple[str, ...] = ()) -> Iterator[Peer]:
    """Our server, of the same file and the same flags, and what `more` adds; as `torchserve` otherwise."""
    flags, ports = _configured(folder, store, configuration, web)
    command = [sys.executable, "-m", "actorserve", *flags, *more]
    with _started(command, folder, _names(folder, store, web), ports, path=os.environ["PATH"]) as peer:
        yield peer


def _names(folder: Path, store: Path, web: str) -> dict[str, str]:
    return {str(store): "{store}", str(folder): "{folder}", web: "{web}"}
