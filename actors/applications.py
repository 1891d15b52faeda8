"""An application as data -> what runs: one ModelSpec per deployment. Pure.

What lives here: reading what a script or a probe says of an application (serve/graph.py writes it), and how Ray Serve's
names become ours. What must not: user code, processes, gRPC.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from actorserve.actors.messages import Environment, ModelSpec
from actorserve.errors import BadInput

HOST = "actorserve.handlers.rpc.deployment:DeploymentHost"
MOST_QUEUED = 10_000
"""What max_queued_requests = -1 means."""


@dataclass(frozen=True, slots=True)
class Source:
    """Where an application's code is: a module to import, or a blob that a script has sent. Paths are absolute.

    `overrides`: options of deployments by name, which win over the decorator's. `functions`: the schemas that its
    ingress answers, and `functions_path` where they are.
    """

    name: str
    folder: Path
    import_path: str = ""
    args: Mapping[str, Any] = field(default_factory=dict)
    blob: str = ""
    digest: str = ""
    path: tuple[str, ...] = ()
    overrides: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    functions: tuple[str, ...] = ()
    functions_path: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    pass_env: tuple[str, ...] = ()

    def options(self, *, answers: bool) -> dict[str, Any]:
        """What its workers are told, whichever deployment they run. `answers`: they have calls of schemas."""
        return {
            "application": self.name,
            "import_path": self.import_path,
            "args": dict(self.args),
            "blob": self.blob,
            "digest": self.digest,
            "functions": list(self.functions) if answers else [],
        }

    def path_of(self, *, answers: bool) -> tuple[str, ...]:
        """The folders that its workers have on `sys.path`."""
        return (*self.path, *self.functions_path) if answers else self.path


@dataclass(frozen=True, slots=True)
class Deployed:
    """One deployment. `code`: what makes it another version: code and arguments. `port`: a driver's, else None."""

    name: str
    options: Mapping[str, Any]
    code: str
    batch_limit: int
    port: int | None


@dataclass(frozen=True, slots=True)
class Application:
    """The whole, as it was said. `legacy`: its handles are a 2.1 driver's."""

    name: str
    ingress: str
    legacy: bool
    deployments: tuple[Deployed, ...]

    @classmethod
    def of(cls, name: str, said: Mapping[str, Any]) -> Application:
        """Read it; BadInput names what makes no sense."""
        try:
            deployments = tuple(
                Deployed(
                    name=str(one["name"]),
                    options=dict(one["options"]),
                    code=str(one.get("digest", "")),
                    batch_limit=int(one.get("batch_limit", 0)),
                    port=None if one.get("port") is None else int(one["port"]),
                )
                for one in said["deployments"]
            )
            found = cls(name, str(said["ingress"]), bool(said.get("legacy")), deployments)
        except (KeyError, TypeError, ValueError) as error:
            raise BadInput("data", f"no application can be read from it: {type(error).__name__}: {error}") from None
        if found.ingress not in [one.name for one in deployments]:
            raise BadInput("data", f"the application has no deployment {found.ingress!r}")
        return found

    def model(self, deployment: str) -> str:
        """The model's name of a deployment, in the directory and in the log."""
        return f"{self.name}:{deployment}"


def spec_of(source: Source, application: Application, deployed: Deployed, version: str) -> ModelSpec:
    """What the replicas of a deployment run."""
    options = deployed.options
    scaling = options.get("autoscaling_config")
    least, most = (scaling["min_replicas"], scaling["max_replicas"]) if scaling else (int(options["num_replicas"]),) * 2
    hand = max(int(options["max_ongoing_requests"]), deployed.batch_limit)
    device, threads = options["device"], options["threads"]
    queued = int(options["max_queued_requests"])
    answers = deployed.name == application.ingress
    return ModelSpec(
        name=application.model(deployed.name),
        version=version,
        handler=HOST,
        model_dir=source.folder,
        url=source.import_path,
        options=source.options(answers=answers)
        | {
            "deployment": deployed.name,
            "legacy": application.legacy,
            "user_config": options.get("user_config"),
            "max_ongoing_requests": hand,
        },
        workers_min=least,
        workers_max=most,
        devices=(device,) if isinstance(device, str) else tuple(device),
        threads=0 if threads == "auto" else int(threads),
        batch_size=hand,
        queue_size=MOST_QUEUED if queued < 0 else queued,
        max_restarts=int(options["max_constructor_retry_count"]),
        health_check_period_s=float(options["health_check_period_s"]),
        health_check_timeout_s=float(options["health_check_timeout_s"]),
        loaded_at_startup=True,
        **_scaling_of(scaling or {}),
        environment=Environment(
            path=source.path_of(answers=answers),
            env={**source.env, **options.get("env", {})},
            pass_env=source.pass_env,
            requirements=tuple(options.get("requirements") or ()),
            base=str(source.folder),
        ),
    )


SCALING = (
    *("target_ongoing_requests", "upscale_delay_s", "downscale_delay_s", "downscale_to_zero_delay_s"),
    *("upscaling_factor", "downscaling_factor", "look_back_period_s"),
)
"""Keys of autoscaling_config that a ModelSpec has under the same name."""


def _scaling_of(scaling: Mapping[str, Any]) -> dict[str, Any]:
    found = {name: scaling[name] for name in SCALING if name in scaling}
    return found | {"workers_initial": scaling.get("initial_replicas")}


IN_PLACE = ("user_config", "num_replicas", "autoscaling_config", "graceful_shutdown_timeout_s")
"""Options that change without another replica."""


def same_replicas(old: Deployed, new: Deployed) -> bool:
    """Whether replicas of the one can go on as those of the other: code, arguments and what they were begun with."""
    if not new.code or old.code != new.code or old.batch_limit != new.batch_limit:
        return False
    return {key: value for key, value in old.options.items() if key not in IN_PLACE} == {
        key: value for key, value in new.options.items() if key not in IN_PLACE
    }


FROM = ("folder", "import_path", "args", "path", "env", "pass_env")
"""What says where the code of all deployments comes from, and what it sees."""


def same_source(old: Source, new: Source, *, answers: bool) -> bool:
    """Whether replicas begun from the one can go on as those of the other. Schemas more than needed do no harm."""
    if any(getattr(old, key) != getattr(new, key) for key in FROM):
        return False
    if not answers:
        return True
    return set(new.functions) <= set(old.functions) and set(new.functions_path) <= set(old.functions_path)


def probe_spec(source: Source, deployments: tuple[str, ...] = ()) -> ModelSpec:
    """What a probe runs, to say what the application is. `deployments`: where a script has said it already."""
    return ModelSpec(
        name=source.name,
        version="probe",
        handler=HOST,
        model_dir=source.folder,
        url=source.import_path,
        options=source.options(answers=True) | {"deployments": list(deployments), "overrides": dict(source.overrides)},
        devices=("cpu",),
        environment=Environment(
            path=source.path_of(answers=True), env=source.env, pass_env=source.pass_env, base=str(source.folder)
        ),
    )
