"""What actors say to each other, as data.

Frozen, slotted dataclasses and enums; no torch, no gRPC, no trio, no behaviour beyond a derived name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum, IntEnum
from pathlib import Path
from typing import Any

Metadata = Mapping[str, str | bytes]
Pairs = tuple[tuple[str, str | bytes], ...]
"""Metadata in which a key may come twice, in order."""


# --- what a caller asks of a model ------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Infer:
    """Ask for one answer. Replied to once, with an `Answer`."""

    inputs: Mapping[str, bytes]
    metadata: Metadata = field(default_factory=dict)
    id: str = ""


@dataclass(frozen=True, slots=True)
class Generate:
    """Ask for many answers. The reply is a `ReplyStream`."""

    inputs: Mapping[str, bytes]
    metadata: Metadata = field(default_factory=dict)
    id: str = ""


@dataclass(frozen=True, slots=True)
class OpenSequence:
    """Open a stateful sequence on one replica. The reply is a `Duplex`: items go in, one reply each comes out."""

    inputs: Mapping[str, bytes] = field(default_factory=dict)  # of no item: `sequence_id` alone
    metadata: Metadata = field(default_factory=dict)
    id: str = ""


@dataclass(frozen=True, slots=True)
class Describe:
    """Ask a handler what it says of itself. Replied to once, with an `Answer`: JSON, or nothing."""

    inputs: Mapping[str, bytes] = field(default_factory=dict)  # always empty, and so is what a client sent
    metadata: Metadata = field(default_factory=dict)
    id: str = ""


class Cardinality(IntEnum):
    """Who streams in an rpc: nobody, the server, the client, both. Bit 0: the server; bit 1: the client."""

    UNARY_UNARY = 0
    UNARY_STREAM = 1
    STREAM_UNARY = 2
    STREAM_STREAM = 3

    @property
    def client_streams(self) -> bool:
        """Whether any number of messages come."""
        return self.value >= 2

    @property
    def server_streams(self) -> bool:
        """Whether any number of messages go back."""
        return bool(self.value & 1)


@dataclass(frozen=True, slots=True)
class Call:
    """Ask for one rpc of a schema that the server does not know: bytes cross, and nothing else. The reply is an
    `Exchange` (exchange.py).

    `data`: the request of one whose client does not stream; None: messages follow, and then the client's end.
    `metadata` may be a multi-dict: every pair travels, in order. `peer`: the client's address. `auth`: what is known
    of it, as JSON; empty: nothing.
    """

    method: str
    cardinality: Cardinality
    data: bytes | None = None
    metadata: Metadata = field(default_factory=dict)
    id: str = ""
    peer: str = ""
    auth: bytes = b""

    @property
    def inputs(self) -> Mapping[str, bytes]:
        """What a claim by weight counts: the request that came with the call."""
        return {"": self.data or b""}


@dataclass(frozen=True, slots=True)
class Initial:
    """The initial metadata of a call, before its first message. `encoding`: gRPC's name of it, "" for none."""

    metadata: Pairs
    encoding: str = ""


@dataclass(frozen=True, slots=True)
class Ending:
    """How a call ended, in gRPC's numbers and words. `data`: the answer of one whose server does not stream.

    `rich`: a google.rpc.Status in its bytes, or nothing. `reset`: cut off, as by RST_STREAM.
    """

    status: int = 0
    details: str = ""
    trailers: Pairs = ()
    rich: bytes = b""
    data: bytes | None = None
    reset: bool = False


@dataclass(frozen=True, slots=True)
class Answer:
    """One item's result: the encoded answer, and trailing metadata that the handler set."""

    data: bytes
    trailers: Metadata = field(default_factory=dict)


RPC_HOSTS = "actorserve.handlers.rpc."
"""How the handlers of rpc workers are called."""


# --- what runs, as data -----------------------------------------------------------------


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


class State(Enum):
    """State of an actor. READY: loaded and warm. NO_WORKERS: of a model alone, one without replicas."""

    LOADING = "LOADING"
    READY = "READY"
    RESTARTING = "RESTARTING"
    DRAINING = "DRAINING"
    FAILED = "FAILED"
    NO_WORKERS = "NO_WORKERS"


# --- how one incarnation ended ------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Finished:
    """The worker ended by itself: it was READY, had nothing in hand, and its exit status was 0."""


@dataclass(frozen=True, slots=True)
class Drained:
    """The child was told to drain, by a stop or because another took its place, and did."""


@dataclass(frozen=True, slots=True)
class Killed:
    """The child was cancelled before it had drained."""


@dataclass(frozen=True, slots=True)
class Crashed:
    """The child died by itself. `permanent`: no restart can mend it. `timed_out`: it was not READY in time."""

    cause: str
    permanent: bool = False
    timed_out: bool = False


Exit = Finished | Drained | Killed | Crashed


# --- what is asked of the supervisor --------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Spawn:
    """Register a model version and start its workers. The reply is given when every one is READY.

    `workers`: how many begin, within the bounds; None: as the spec says.
    """

    model: ModelSpec
    unregister_on_failure: bool = False
    workers: int | None = None


@dataclass(frozen=True, slots=True)
class Replace:
    """Roll a model version out anew. The reply is given when its new workers have taken over; failed, the old stay."""

    model: ModelSpec


@dataclass(frozen=True, slots=True)
class Scale:
    """Set how many workers a model version has. The reply is given when they are READY.

    `grace_s`: seconds that those which leave get for what they have in hand; None: the server's.
    """

    name: str
    version: str
    workers_min: int
    workers_max: int
    grace_s: float | None = None


@dataclass(frozen=True, slots=True)
class Stop:
    """Drain a model version, then kill what is left after `grace_s`. The reply is given when it is gone.

    `forced`: also a default version beside others. The first of those follows.
    """

    name: str
    version: str
    grace_s: float
    forced: bool = False


@dataclass(frozen=True, slots=True)
class Update:
    """Give a model version another spec of the same name and version, in place: how many workers, and `user_config`.

    Workers are told a changed `user_config` (an option) without a restart; where one's code refuses it, all keep the
    old. Nothing else of the spec may differ. The reply is given when that is done.
    """

    model: ModelSpec


@dataclass(frozen=True, slots=True)
class SetDefault:
    """Make a version the one that calls without a version mean."""

    name: str
    version: str


Change = Spawn | Replace | Scale | Stop | SetDefault
"""What the registrar commits before the supervisor does it."""


@dataclass(frozen=True, slots=True)
class Observe:
    """Ask for a frozen snapshot of the tree."""


# --- what Observe answers --------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ReplicaView:
    """One replica as it is now. `restarts`: after an end; `replaced`: in good health, because of a limit.

    `started_at`: seconds of the system's clock. `in_hand`: requests that its workers have.
    """

    name: str
    index: int
    device: str
    state: State
    incarnation: int
    pid: int | None
    restarts: int
    replaced: int
    failures_in_a_row: int
    last_exit: Exit | None
    reason: str
    started_at: float
    in_hand: int


@dataclass(frozen=True, slots=True)
class ModelView:
    """One model version as it is now. `stateful`: its handler has sequences, as far as a READY replica has told.

    `rollout`: how its rollout fares: under way, or why the last one failed.
    """

    spec: ModelSpec
    is_default: bool
    state: State
    waiting: int
    replicas: tuple[ReplicaView, ...]
    stateful: bool = False
    rollout: str = ""


@dataclass(frozen=True, slots=True)
class Tree:
    """The supervisor's tree, frozen. `leaving`: models that were unregistered and still drain."""

    models: tuple[ModelView, ...]
    leaving: tuple[ModelView, ...] = ()
