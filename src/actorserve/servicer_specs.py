"""What runs a servicer: its table of the configuration as a ModelSpec. Pure.

What must not live here: starting it (servicing.py), routing to it (servicer_places.py).
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from actorserve.actors.messages import Environment, ModelSpec, Restart
from actorserve.config_servicer import MOST_QUEUED, Servicer

HOST = "actorserve.handlers.rpc.servicer:ServicerHost"
VERSION = "1"


def key_of(servicer: Servicer) -> str:
    """The key (`name/version`) of the model that runs it first."""
    return f"{servicer.label}/{VERSION}"


def expected(servicers: Iterable[Servicer]) -> list[str]:
    """The keys of those that have replicas from the start."""
    return [key_of(one) for one in servicers if one.servicer and one.replicas.min]


def spec_of(servicer: Servicer, *, folder: Path, version: str = VERSION) -> ModelSpec:
    """The ModelSpec that runs a servicer. `folder` is what relative paths mean."""
    listed = servicer.requirements
    environment = Environment(
        path=tuple(str((folder / one).resolve()) for one in servicer.path),
        env=servicer.env,
        pass_env=servicer.pass_env,
        requirements=() if isinstance(listed, str) else listed,
        requirements_file=str((folder / listed).resolve()) if listed and isinstance(listed, str) else "",
        base=str(folder.resolve()),
        install_timeout_s=servicer.install_timeout_s,
    )
    return ModelSpec(
        name=servicer.label,
        version=version,
        handler=HOST,
        model_dir=folder,
        url=servicer.servicer,
        options={
            "servicer": servicer.servicer,
            "functions": list(servicer.functions),
            "max_ongoing_requests": servicer.max_ongoing_requests,
        },
        workers_min=servicer.replicas.min,
        workers_max=servicer.replicas.max,
        target_ongoing_requests=servicer.target_ongoing_requests,
        upscale_delay_s=servicer.upscale_delay_s,
        downscale_delay_s=servicer.downscale_delay_s,
        devices=(servicer.device,) if isinstance(servicer.device, str) else servicer.device,
        threads=servicer.threads,
        batch_size=servicer.max_ongoing_requests,
        queue_size=MOST_QUEUED if servicer.max_queued_requests < 0 else servicer.max_queued_requests,
        startup_timeout_s=servicer.startup_timeout_s,
        response_timeout_s=servicer.response_timeout_s,
        max_restarts=servicer.max_restarts,
        restart=Restart(servicer.restart),
        max_worker_memory_mb=servicer.max_worker_memory_mb,
        max_requests_per_worker=servicer.max_requests_per_worker,
        loaded_at_startup=True,
        environment=environment,
    )
