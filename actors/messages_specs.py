"""What runs, as data: a model version, its environment, one replica of it and where that is placed.

Frozen, slotted dataclasses and enums; no torch, no gRPC, no trio, no behaviour beyond a derived name.
What must not live here: where specs come from (model_store.py and its like), how they run.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

RPC_HOSTS = "actorserve.handlers.rpc."
"""How the handlers of rpc workers are called."""


class Restart(Enum):
    """When a child is started again: always; only after a crash; never."""

    PERMANENT = "permanent"
    TRANSIENT = "transient"
    TEMPORARY = "temporary"


@dataclass(frozen=True, slots=True)
class Environment:
    """Where a model's code runs and what it finds there. `path`: absolute folders; `requirements`: lines for pip.

    `requirements_file`: an absolute path, instead of lines. `base`: the folder that relative requirements mean.
    """

    path: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    pass_env: tuple[str, ...] = ()
    requirements: tuple[str, ...] = ()
    requirements_file: str = ""
    base: str = ""
    install_timeout_s: float = 600.0
    in_thread: bool = False

    @property
    def installs(self) -> bool:
        """Whether it needs a venv of its own."""
        return bool(self.requirements or self.requirements_file)


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """One model version: what its replicas run and how they are fed. Durations in seconds.

    `devices`: those that its replicas share, or "auto" alone. `threads`: 0 is the replica's share of the cores.
    """

    name: str
    version: str
    handler: str
    model_dir: Path
    url: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    workers_min: int = 1
    workers_max: int = 1
    workers_initial: int | None = None  # how many begin; None: as workers_min
    target_ongoing_requests: float = 2.0
    upscale_delay_s: float = 30.0
    downscale_delay_s: float = 600.0
    downscale_to_zero_delay_s: float | None = None
    upscaling_factor: float = 1.0
    downscaling_factor: float = 1.0
    look_back_period_s: float = 0.0
    devices: tuple[str, ...] = ("auto",)
    threads: int = 1
    batch_size: int = 32
    max_batch_delay_s: float = 0.0
    weight: str = "count"
    max_batch_weight: int = 0
    tenant_key: str = ""
    queue_size: int = 100
    job_tickets: bool = False
    startup_timeout_s: float = 120.0
    response_timeout_s: float = 120.0
    max_restarts: int = 5
    restart: Restart = Restart.TRANSIENT
    max_worker_memory_mb: int = 0
    max_requests_per_worker: int = 0
    health_check_period_s: float = 0.0  # 0: never asked
    health_check_timeout_s: float = 30.0
    max_sequences: int = 100
    sequence_idle_timeout_s: float = 60.0
    loaded_at_startup: bool = False
    environment: Environment = field(default_factory=Environment)

    @property
    def workers_begun(self) -> int:
        """How many replicas it begins with."""
        wanted = self.workers_min if self.workers_initial is None else self.workers_initial
        return min(max(wanted, self.workers_min), self.workers_max)

    @property
    def has_own_schema(self) -> bool:
        """Whether it answers calls of a schema of its own, and is no model to ask by its name."""
        return self.handler.startswith(RPC_HOSTS)

    @property
    def key(self) -> str:
        """`name/version`: the model version's name in logs."""
        return f"{self.name}/{self.version}"


@dataclass(frozen=True, slots=True)
class Placement:
    """The device that one replica has. `visible`: its GPU as CUDA_VISIBLE_DEVICES names it; empty: none.

    `number` tells two placements on one device apart.
    """

    device: str = "cpu"
    visible: str = ""
    number: int = 0

    @property
    def in_worker(self) -> str:
        """The device as its worker sees it, which sees one GPU at most."""
        return "cuda:0" if self.visible else self.device

    @property
    def environment(self) -> dict[str, str]:
        """What its worker's environment says of devices; numbers count as nvidia-smi does."""
        return {"CUDA_VISIBLE_DEVICES": self.visible, "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}


@dataclass(frozen=True, slots=True)
class ChildSpec:
    """One replica: what to run, on which device, and what happens when it ends."""

    model: ModelSpec
    index: int
    placement: Placement = Placement()
    restart: Restart = Restart.TRANSIENT
    grace_s: float = 30.0

    @property
    def name(self) -> str:
        """`name/version#index`: the replica's name in logs and in the tree."""
        return f"{self.model.key}#{self.index}"

    @property
    def device(self) -> str:
        """Its device's name, as the configuration has it."""
        return self.placement.device


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What a worker's handler can do, as its READY says."""

    infer: bool
    generate: bool
    continuous: bool = False
    sequences: bool = False
    calls: bool = False

    @property
    def streams(self) -> bool:
        """Whether it answers in pieces by itself."""
        return self.generate or self.continuous
