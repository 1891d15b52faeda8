"""One application that runs, as data; what can stay as it is when it changes, and how it shows. Pure but for a wait.

    a table of the file -> Source (`source_of`) -> probed -> Running
    deployed again: deployments whose replicas can go on (`may_stay`), as they are or updated in place (`updated`)

What must not live here: starting and ending replicas (app_replicas.py), which applications run (apps.py).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from actorserve import config_application
from actorserve.actors.applications import Application, Deployed, Source, same_replicas, same_source, spec_of
from actorserve.actors.messages import ModelSpec, ModelView, State
from actorserve.actors.reply import Reply
from actorserve.app_ports import Port
from actorserve.config_servicer import Servicer
from actorserve.services.servicers import ServicerSchema


@dataclass(frozen=True, slots=True)
class Probed:
    """What a probe says of an application: its graph, the schemas of its drivers, and the services of which each
    deployment has a method.
    """

    application: Application
    drivers: Mapping[str, ServicerSchema]
    answers: Mapping[str, tuple[str, ...]]


@dataclass(slots=True)
class Running:
    """One application that runs. `said`: what a script says of it, for one whose code it has sent."""

    source: Source
    said: Mapping[str, Any] | None
    application: Application
    answers: Mapping[str, tuple[str, ...]]
    specs: dict[str, ModelSpec] = field(default_factory=dict)
    ready: dict[str, Reply[None]] = field(default_factory=dict)
    ports: dict[str, Port] = field(default_factory=dict)

    @property
    def ingress(self) -> str:
        """The deployment that answers its callers."""
        return self.application.ingress

    def deployed(self, name: str) -> Deployed | None:
        """A deployment as it was said; None: there is none of this name."""
        return next((one for one in self.application.deployments if one.name == name), None)

    def grace_of(self, name: str) -> float:
        """How long the calls in hand of a deployment have at its end."""
        found = self.deployed(name)
        return 0.0 if found is None else float(found.options["graceful_shutdown_timeout_s"])

    async def wait_ready(self) -> None:
        """Wait until every deployment is READY; raise why one is not. The application stays, and shows as FAILED."""
        for reply in self.ready.values():
            await reply.wait()


def source_of(name: str, application: config_application.Application, folder: Path) -> Source:
    """An application of the file. `folder` is what relative paths mean."""
    return Source(
        name=name,
        folder=folder.resolve(),
        import_path=application.import_path,
        args=application.args,
        path=tuple(str((folder / one).resolve()) for one in application.path),
        overrides=application.deployments,
        env=application.env,
        pass_env=application.pass_env,
    )


def with_schemas(source: Source, servicers: Iterable[Servicer], folder: Path) -> Source:
    """An application whose ingress answers the schemas of these, too. `folder` is what relative paths mean."""
    known = list(servicers)
    functions = dict.fromkeys(one for servicer in known for one in servicer.functions)
    folders = dict.fromkeys(str((folder / one).resolve()) for servicer in known for one in servicer.path)
    return replace(source, functions=tuple(functions), functions_path=tuple(folders))


def may_stay(running: Running, changed: Running, new: Deployed) -> bool:
    """Whether a deployment has replicas that can go on: their code, and where it comes from, are as they were."""
    old = running.deployed(new.name)
    answers = new.name == changed.ingress
    if old is None or (answers and old.name != running.ingress):
        return False
    if not same_source(running.source, changed.source, answers=answers):
        return False
    return running.application.legacy == changed.application.legacy and same_replicas(old, new)


def updated(before: ModelSpec, changed: Running, deployed: Deployed) -> ModelSpec:
    """What replicas that go on are to be: what needs no other replicas is how many there are, and their user_config."""
    return replace(
        spec_of(changed.source, changed.application, deployed, before.version),
        url=before.url,
        environment=before.environment,
        options={**before.options, "user_config": deployed.options.get("user_config")},
    )


def is_update(before: ModelSpec | None, now: ModelSpec) -> bool:
    """Whether a deployment was changed without other replicas."""
    return before is not None and before.version == now.version and before != now


def status_of(running: Running, models: Mapping[tuple[str, str], ModelView]) -> dict[str, Any]:
    """How an application is, for `serve.status()`. `models`: all of the tree, by name and version."""
    deployments = {name: _shown(models.get((spec.name, spec.version))) for name, spec in running.specs.items()}
    return {
        "ingress": running.ingress,
        "deployments": deployments,
        "ports": {name: port.number for name, port in running.ports.items()},
        "failed": any(one["state"] == State.FAILED.value for one in deployments.values()),
    }


def _shown(model: ModelView | None) -> dict[str, Any]:
    if model is None:
        return {"state": "FAILED", "replicas": {}, "message": ""}
    states = [replica.state.value for replica in model.replicas]
    return {
        "state": model.state.value,
        "replicas": {state: states.count(state) for state in states},
        "message": next((one.reason for one in model.replicas if one.reason), ""),
    }
