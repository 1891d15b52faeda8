"""The applications that scripts send: what their private service asks of a server (services/applications.py).

Code comes as a blob, which is kept in a folder of this user's alone while the server runs; the same code is kept once.
What must not live here: starting and ending an application (apps.py), loading a blob: workers do (handlers/rpc).
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import trio

from actorserve.actors.applications import Source
from actorserve.actors.mailbox import Mailbox
from actorserve.actors.supervisor import Supervisor
from actorserve.app_running import status_of
from actorserve.apps import Apps
from actorserve.errors import BadInput, StartFailed, WrongState


class SentApps:
    """See the module's docstring. `close` it when nothing runs any more."""

    def __init__(self, apps: Apps, supervisor: Supervisor) -> None:
        self._apps = apps
        self._supervisor = supervisor
        self._blobs: Path | None = None

    async def deploy_sent(self, request: Any) -> str:
        """Start what a script has sent; the name of its ingress, once it is READY."""
        try:
            said = json.loads(request.data)
        except ValueError as error:
            raise BadInput("data", f"no JSON: {error}") from None
        digest = hashlib.sha256(request.blob).hexdigest()
        source = Source(
            name=request.name,
            folder=Path(request.folder or "."),
            blob=str(await self._keep(digest, request.blob)),
            digest=digest,
            path=tuple(request.path),
        )
        try:
            running = await self._apps.deploy(source, said)
        except StartFailed as error:
            raise WrongState(str(error)) from None
        await running.wait_ready()
        return running.ingress

    async def _keep(self, digest: str, blob: bytes) -> Path:
        if self._blobs is None:
            self._blobs = Path(tempfile.mkdtemp(prefix="actorserve-applications-"))  # 0700
        path = self._blobs / digest
        await trio.Path(path).write_bytes(blob)
        return path

    async def delete(self, name: str) -> None:
        """End an application; returns when it is gone. NoSuchApplication."""
        await self._apps.delete(name)

    def mailbox_of(self, application: str, deployment: str) -> Mailbox:
        """The mailbox of a deployment; empty: of the ingress. NoSuchApplication, NoSuchModel."""
        return self._apps.mailbox_of(application, deployment)

    def status_json(self) -> str:
        """How all applications are, for `serve.status()`."""
        models = {(model.spec.name, model.spec.version): model for model in self._supervisor.observe().models}
        return json.dumps({name: status_of(running, models) for name, running in self._apps.running.items()})

    def close(self) -> None:
        """Remove what was kept. Idempotent."""
        if self._blobs is not None:
            shutil.rmtree(self._blobs, ignore_errors=True)
