"""Running applications from a script: `serve.run`, `start`, `delete`, `status`, `shutdown`, and handles of what runs.

    handle = serve.run(Market.bind(Orange.bind()))
    print(handle.check_price.remote("orange", 3).result())

What lives here: what these do in a script, and what in a worker, where a module that calls them at its top level is
imported as well (they do nothing there). What must not: the child (process.py).

Rules
1. One server a process: the first `run` or `start` starts it, `shutdown` ends it, and so does the end of the process.
2. When the main script has ended, applications go on until Ctrl-C or SIGTERM; not where it ended by an exception, in an
   interactive session, or under pytest: there the end of the process is the end.
"""

from __future__ import annotations

import atexit
import json
import multiprocessing
import os
import signal
import sys
import threading
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Any

from actorserve.serve.config import gRPCOptions
from actorserve.serve.context import PROCESS
from actorserve.serve.exceptions import DeployError, ServeError
from actorserve.serve.graph import build
from actorserve.serve.handle import DeploymentHandle

if TYPE_CHECKING:
    from actorserve.serve.process import Server

DEFAULT = "default"
OF_HTTP = (
    "route_prefix",
    "host",
    "port",
    "http_options",
    "proxy_location",
    "dedicated_cpu",
    "detached",
    "logging_config",
)
"""What Ray's functions take and nothing here has."""


@dataclass(frozen=True, slots=True)
class DeploymentStatus:
    """One deployment. `replica_states`: how many replicas are in each state."""

    name: str
    status: str
    replica_states: Mapping[str, int]
    message: str = ""


@dataclass(frozen=True, slots=True)
class ApplicationStatus:
    """One application: DEPLOYING, RUNNING or DEPLOY_FAILED."""

    status: str
    message: str = ""
    deployments: Mapping[str, DeploymentStatus] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ServeStatus:
    """All applications."""

    applications: Mapping[str, ApplicationStatus] = field(default_factory=dict)


class _Script:
    """This process's server, and how it ends."""

    def __init__(self) -> None:
        self.server: Server | None = None
        self.told = threading.Event()
        self._lock = threading.Lock()
        self._watched = False

    def start(self, options: gRPCOptions | None) -> Server:
        """The server, started if there is none."""
        from actorserve.serve.process import Server  # noqa: PLC0415  # in scripts alone

        with self._lock:
            if self.server is not None and (self.server.pid != os.getpid() or not self.server.is_alive()):
                self.server = None
            if self.server is None:
                self.server = Server(options)
                self.told.clear()
                self._watch()
            elif options is not None and options != self.server.options:
                warnings.warn("the server runs already: grpc_options are those that it was started with", stacklevel=4)
            return self.server

    def running(self) -> Server:
        """The server; ServeError: there is none."""
        server = self.server
        if server is None or server.pid != os.getpid():
            raise ServeError("no applications run here: `serve.run` starts them")
        return server

    def stop(self) -> None:
        """End it. Idempotent."""
        self.told.set()
        with self._lock:
            server, self.server = self.server, None
        if server is not None and server.pid == os.getpid():
            server.stop()

    def _watch(self) -> None:
        """Once: see to the end of the process (rule 2)."""
        if self._watched:
            return
        self._watched = True
        atexit.register(self.stop)
        interactive = hasattr(sys, "ps1") or bool(sys.flags.interactive) or "pytest" in sys.modules
        if interactive or threading.current_thread() is not threading.main_thread():
            return
        before = signal.getsignal(signal.SIGINT)

        def interrupted(number: int, frame: FrameType | None) -> None:
            self.told.set()
            if threading.main_thread().is_alive() and callable(before):
                before(number, frame)

        signal.signal(signal.SIGINT, interrupted)
        report = sys.excepthook

        def failed(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
            self.told.set()
            report(kind, error, trace)

        sys.excepthook = failed
        threading.Thread(target=self._keep, name="actorserve-keeper").start()

    def _keep(self) -> None:
        """A thread that is no daemon: Python waits for it at its end."""
        threading.main_thread().join()
        self.told.wait()


_SCRIPT = _Script()


def is_elsewhere() -> bool:
    """Whether this is no script's process: a worker, or a child of multiprocessing."""
    return PROCESS.in_worker or multiprocessing.parent_process() is not None


def start(*, grpc_options: gRPCOptions | Mapping[str, Any] | None = None, **others: Any) -> None:
    """Start the server of this script, with a gRPC listener where `grpc_options` say so. Without effect in a worker.

    ServeError: it cannot start, for example because the port is in use.
    """
    if is_elsewhere():
        return
    _warn_of(others)
    _SCRIPT.start(None if grpc_options is None else gRPCOptions.of(grpc_options))


def run(
    target: Any,
    *,
    name: str = DEFAULT,
    route_prefix: str | None = None,
    blocking: bool = False,
    _blocking: bool | None = None,
    **others: Any,
) -> DeploymentHandle:
    """Run an application, or change the one of this name; returns its handle once it is READY.

    `blocking`: wait for Ctrl-C or `shutdown` first. In a worker it does nothing, and the handle's calls raise while the
    module loads. DeployError, which is a RuntimeError: the application cannot run.
    """
    if is_elsewhere():
        return DeploymentHandle("", name)
    _warn_of({**others, "route_prefix": route_prefix})
    built = build(target)
    server = _SCRIPT.start(None)
    from actorserve.serve.process import search_path  # noqa: PLC0415  # in scripts alone

    data = json.dumps(built.data())
    try:
        server.ask("Deploy", name=name, data=data, blob=built.blob, path=search_path(), folder=str(Path.cwd()))
    except ServeError as error:
        raise DeployError(str(error)) from None
    if blocking:
        wait()
    return DeploymentHandle(built.ingress, name, link=server.link)


def wait() -> None:
    """Block until Ctrl-C or `shutdown`, then end everything."""
    try:
        _SCRIPT.told.wait()
    except KeyboardInterrupt:
        pass
    finally:
        _SCRIPT.stop()


def delete(name: str, *, _blocking: bool = True) -> None:
    """End an application; returns when it is gone. Without effect where none is called so, and in a worker."""
    if not is_elsewhere():
        _SCRIPT.running().ask("Delete", name=name)


def shutdown() -> None:
    """End all applications and the server. Idempotent; without effect in a worker."""
    if not is_elsewhere():
        _SCRIPT.stop()


def status() -> ServeStatus:
    """How the applications of this script are; none where nothing runs."""
    if is_elsewhere() or _SCRIPT.server is None:
        return ServeStatus()
    said = json.loads(_SCRIPT.running().ask("Status").json)
    return ServeStatus({name: _application(one) for name, one in said.items()})


def _application(said: Mapping[str, Any]) -> ApplicationStatus:
    deployments = {
        name: DeploymentStatus(name, HEALTH.get(one["state"], "UPDATING"), one["replicas"], one["message"])
        for name, one in said["deployments"].items()
    }
    states = {one["state"] for one in said["deployments"].values()}
    message = next((one["message"] for one in said["deployments"].values() if one["message"]), "")
    if said["failed"]:
        return ApplicationStatus("DEPLOY_FAILED", message, deployments)
    return ApplicationStatus("RUNNING" if states <= {"READY"} else "DEPLOYING", message, deployments)


HEALTH = {"READY": "HEALTHY", "FAILED": "UNHEALTHY", "RESTARTING": "UNHEALTHY", "NO_WORKERS": "HEALTHY"}


def get_app_handle(name: str) -> DeploymentHandle:
    """A handle of an application's ingress; in a worker and in the script that runs it."""
    return get_deployment_handle("", name)


def get_deployment_handle(deployment_name: str, app_name: str | None = None) -> DeploymentHandle:
    """A handle of one deployment; in a worker, of its own application by default."""
    if PROCESS.in_worker:
        own = "" if PROCESS.replica is None else PROCESS.replica.app_name
        return DeploymentHandle(deployment_name, app_name or own or DEFAULT)
    return DeploymentHandle(deployment_name, app_name or DEFAULT, link=_SCRIPT.running().link)


def _warn_of(others: Mapping[str, Any]) -> None:
    for option, value in others.items():
        if option not in OF_HTTP:
            raise TypeError(f"unexpected argument {option!r}")
        if value is not None:
            warnings.warn(f"{option} means nothing here: applications are called over gRPC alone", stacklevel=3)
