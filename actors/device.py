"""Devices: which GPUs there are, and which replica has which.

The ledger is pure: it is told what there is, and decides. Finding GPUs asks the driver's files or its management
library, never CUDA: a process that has initialised CUDA holds memory on the device and must not be forked.
A worker gets its device by CUDA_VISIBLE_DEVICES (CUDA programming guide, environment variables), by UUID where that
is known, so it sees one GPU, as cuda:0, or none.
What must not live here: torch, processes, the environment of a worker as a whole (forkserver.py).
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import Any

from actorserve.actors.messages import ModelSpec, Placement
from actorserve.config_types import AUTO, CPU
from actorserve.errors import ConfigError

VISIBLE = "CUDA_VISIBLE_DEVICES"


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU. `id` is how CUDA_VISIBLE_DEVICES names it: its UUID, or its number where that is not known."""

    id: str


# --- the ledger ---------------------------------------------------------------------------------


class Ledger:
    """Who has which device. `gpus[n]` is cuda:n; `free` gives bytes of free memory by GPU id, or nothing.

    `cores`: those that CPU replicas share.
    """

    def __init__(
        self, gpus: Sequence[Gpu] = (), *, free: Callable[[], Mapping[str, int]] = dict, cores: int = 1
    ) -> None:
        self._cores = cores
        self._gpus = {f"cuda:{index}": gpu for index, gpu in enumerate(gpus)}
        self._free = free
        self._numbers = count(1)
        self._owners: dict[Placement, str] = {}

    @property
    def known(self) -> tuple[str, ...]:
        """Every device's name, as a configuration may say it."""
        return CPU, *self._gpus

    def resolve(self, wanted: Sequence[str]) -> tuple[str, ...]:
        """The devices that `wanted` leaves to choose from; ConfigError names the key where one does not exist."""
        if tuple(wanted) == (AUTO,):
            return tuple(self._gpus) or (CPU,)
        for name in wanted:
            if name not in self.known:
                raise ConfigError("device", f"there is no {name} here; known here: {', '.join(self.known)}")
        return tuple(wanted)

    def assign(self, model: str, wanted: Sequence[str], loading: Collection[Placement] = ()) -> Placement:
        """Give a replica of `model` a device; ConfigError if there is none such.

        A model's replicas are spread first. Among the devices that have fewest of them: the one with the fewest
        replicas still loading (these will take memory that is free yet), then the one with the most free memory.
        Where memory cannot be read: the one with the fewest replicas. Ties go to the lower number.
        """
        names = self.resolve(wanted)
        free = self._free() if len(names) > 1 else {}
        name = min(names, key=lambda name: (*self._burden(model, name, loading, free), names.index(name)))
        gpu = self._gpus.get(name)
        placement = Placement(name, "" if gpu is None else gpu.id, next(self._numbers))
        self._owners[placement] = model
        return placement

    def _burden(
        self, model: str, name: str, loading: Collection[Placement], free: Mapping[str, int]
    ) -> tuple[int, int, int]:
        here = [placement for placement in self._owners if placement.device == name]
        own = sum(self._owners[placement] == model for placement in here)
        gpu = self._gpus.get(name)
        if gpu is None or gpu.id not in free:
            return own, len(here), 0
        return own, sum(placement in loading for placement in here), -free[gpu.id]

    def release(self, placement: Placement) -> None:
        """A replica's process has gone. Idempotent."""
        self._owners.pop(placement, None)

    def owners(self) -> dict[str, list[str]]:
        """The models that have replicas on each device, one entry a replica."""
        held: dict[str, list[str]] = {name: [] for name in self.known}
        for placement, model in self._owners.items():
            held[placement.device].append(model)
        return held

    def settle_threads(self, spec: ModelSpec, others: Iterable[ModelSpec]) -> ModelSpec:
        """The spec with its own number of threads where it says 0: its share beside `others`, at least 1.

        Counted are the CPU workers that the models may have at most. ConfigError as `resolve`.
        """
        self.resolve(spec.devices)
        if spec.threads:
            return spec
        on_cpu = [one for one in (spec, *others) if CPU in self.resolve(one.devices)]
        workers = sum(max(1, one.workers_max) for one in on_cpu)
        return replace(spec, threads=max(1, self._cores // max(1, workers)))


# --- finding GPUs ---------------------------------------------------------------------------------


def find_gpus(environment: Mapping[str, str], *, proc: Path = Path("/proc"), dev: Path = Path("/dev")) -> list[Gpu]:
    """The GPUs that this process may use, in the order of nvidia-smi; cuda:0 is the first.

    By nvidia-ml-py where it is installed, else by the driver's files. CUDA_VISIBLE_DEVICES of the server narrows and
    orders them as it does for any CUDA program.
    """
    gpus = _ask_library() or _read_proc(proc) or _count_nodes(dev)
    return visible(gpus, environment.get(VISIBLE))


def visible(gpus: Sequence[Gpu], setting: str | None) -> list[Gpu]:
    """What CUDA_VISIBLE_DEVICES leaves: numbers or beginnings of UUIDs; the first that names no GPU ends the list.

    MIG devices are taken at their word: they are parts of GPUs, which are not listed here.
    """
    if setting is None:
        return list(gpus)
    left: list[Gpu] = []
    for name in (part.strip() for part in setting.split(",")):
        if name.startswith("MIG-"):
            left.append(Gpu(name))
            continue
        named = [gpu for gpu in gpus if name and gpu.id.startswith("GPU-") and gpu.id.startswith(name)]
        if name.isdecimal() and int(name) < len(gpus):
            named = [gpus[int(name)]]
        if len(named) != 1:
            break
        left += named
    return left


def _read_proc(proc: Path) -> list[Gpu]:
    """The driver's files, one folder a GPU, named by the PCI address."""
    gpus = []
    for index, path in enumerate(sorted(proc.glob("driver/nvidia/gpus/*/information"))):
        found = re.search(r"^GPU UUID:\s*(GPU-[0-9a-fA-F-]+)\s*$", _read(path), re.MULTILINE)
        gpus.append(Gpu(found[1] if found else str(index)))  # no UUID before the GPU was used once
    return gpus


def _read(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""


def _count_nodes(dev: Path) -> list[Gpu]:
    """Device nodes, where a container shows nothing else."""
    nodes = [path for path in dev.glob("nvidia[0-9]*") if path.name.removeprefix("nvidia").isdecimal()]
    return [Gpu(str(index)) for index in range(len(nodes))]


# --- nvidia-ml-py ---------------------------------------------------------------------------------


def _with_library(read: Callable[[Any, Any], Any]) -> dict[str, Any]:
    """`read(library, handle)` by UUID, in the order of nvidia-smi; nothing without the library or a driver.

    The library is opened and closed each time: it keeps descriptors of the driver open in between.
    """
    try:
        library = importlib.import_module("pynvml")
    except ImportError:
        return {}
    found = {}
    try:
        library.nvmlInit()
        try:
            for index in range(library.nvmlDeviceGetCount()):
                handle = library.nvmlDeviceGetHandleByIndex(index)
                found[str(library.nvmlDeviceGetUUID(handle))] = read(library, handle)
        finally:
            library.nvmlShutdown()
    except library.NVMLError:
        return {}
    return found


def _ask_library() -> list[Gpu]:
    return [Gpu(uuid) for uuid in _with_library(lambda *_: None)]


def free_memory() -> dict[str, int]:
    """Free bytes of each GPU by UUID; empty where nvidia-ml-py is not installed. Takes milliseconds, never waits."""
    return _with_library(lambda library, handle: int(library.nvmlDeviceGetMemoryInfo(handle).free))
