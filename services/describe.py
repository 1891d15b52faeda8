"""JSON bodies of ListModels and DescribeModel: TorchServe's keys, in its order, 2-space pretty print.

Pure but for the memory of a worker, which is read from the system. Source: TorchServe 0.12.0's ListModelsResponse and
DescribeModelResponse as its own server prints them. On a listener with `compatibility = "torchserve"` these are all;
elsewhere keys of ours stand among them (`status`, and a worker's `device`, `reason`, ...), and what a sequence may be
is said as it is here. What has no effect here (`parallelType` and its like) echoes the model's model-config.yaml.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from actorserve.actors import urls
from actorserve.actors.messages import ModelSpec, ModelView, ReplicaView, State, Tree
from actorserve.actors.progress import UnderWay
from actorserve.actors.tree_text import last_exit
from actorserve.actors.wire import CREDIT_CHUNKS
from actorserve.config_types import CPU

PAGE = 100
FIRST_WORKER_ID = 9000
PARALLEL = ("pp", "tp", "pptp", "custom")
METADATA = "customizedMetadata"


def listing(
    tree: Tree, under_way: Sequence[UnderWay] = (), *, limit: int, start: int, as_torchserve: bool = False
) -> str:
    """A page of the default versions; what has a schema of its own is no model.

    `limit` 0 or out of range is 100; `start` is the last page's token.

    TorchServe gives the token of the next page also where this one ends with the last model.
    `under_way`: registrations that have no model yet; a key of their own where there are any.
    """
    models = [model for model in tree.models if model.is_default and not model.spec.has_own_schema]
    limit = limit if 0 < limit <= PAGE else PAGE
    start = max(start, 0)
    body: dict[str, Any] = {}
    if start + limit < len(models) + as_torchserve:
        body["nextPageToken"] = str(start + limit)
    body["models"] = [
        {"modelName": model.spec.name, "modelUrl": model.spec.url} for model in models[start : start + limit]
    ]
    if under_way:
        body["registrations"] = [_beginning(one) for one in under_way]
    return _print(body)


def _print(body: Any) -> str:
    return json.dumps(body, indent=2, ensure_ascii=False)


def description(
    models: Sequence[ModelView], customized: Mapping[str, Any] | None = None, *, as_torchserve: bool = False
) -> str:
    """An array with an object for each version. `customized`: what the one version's handler says; None: nothing."""
    last = {} if customized is None else {METADATA: _without_nulls(customized)}
    return _print([_model(model, as_torchserve=as_torchserve) | last for model in models])


def _without_nulls(value: Any) -> Any:
    """A value as TorchServe prints it, which leaves nulls out of objects."""
    if isinstance(value, dict):
        return {key: _without_nulls(one) for key, one in value.items() if one is not None}
    return [_without_nulls(one) for one in value] if isinstance(value, list) else value


def beginnings(under_way: Sequence[UnderWay]) -> str:
    """What DescribeModel says of a model whose registrations are all under way."""
    return _print([_beginning(one) for one in under_way])


def _beginning(one: UnderWay) -> dict[str, Any]:
    body: dict[str, Any] = {"modelName": one.name, "modelUrl": one.url, "status": one.phase.value}
    if urls.is_url(one.url):
        body["downloadedBytes"] = one.done
        if one.total is not None:
            body["totalBytes"] = one.total
    return {**body, "workers": []}


def _model(model: ModelView, *, as_torchserve: bool) -> dict[str, Any]:
    spec = model.spec
    yaml, runtime = _said(spec)
    body = {
        "modelName": spec.name,
        "modelVersion": spec.version,
        "modelUrl": spec.url,
        "runtime": runtime,
        "minWorkers": spec.workers_min,
        "maxWorkers": spec.workers_max,
        "batchSize": spec.batch_size,
        "maxBatchDelay": round(spec.max_batch_delay_s * 1000),
        "responseTimeout": round(spec.response_timeout_s),
        "startupTimeout": round(spec.startup_timeout_s),
        "maxRetryTimeoutInSec": _number(yaml, "maxRetryTimeoutInSec", 300),
        "clientTimeoutInMills": _number(yaml, "clientTimeoutInMills", 0),
        **_parallel(yaml),
        "deviceType": "gpu" if any(replica.device != CPU for replica in model.replicas) else CPU,
        **_device_ids(spec),
        "continuousBatching": yaml.get("continuousBatching") is True,
        "useJobTicket": yaml.get("useJobTicket") is True,
        "useVenv": yaml.get("useVenv") is True and runtime == "python",
        **(_echoed_sequences(yaml) if as_torchserve else _sequences(model, yaml)),
        "status": model.state.value,
        "loadedAtStartup": spec.loaded_at_startup,
        "workers": [_worker(replica, as_torchserve=as_torchserve) for replica in model.replicas],
        "jobQueueStatus": {
            "remainingCapacity": max(0, spec.queue_size - model.waiting),
            "pendingRequests": model.waiting,
        },
    }
    if as_torchserve:
        del body["status"]
    elif model.rollout:
        body["rollout"] = model.rollout
    return body


# --- what a model's own files say -----------------------------------------------------------------


def _said(spec: ModelSpec) -> tuple[Mapping[str, Any], str]:
    """Its model-config.yaml, empty where there is none, and its runtime."""
    options = spec.options.get("torchserve")
    if not isinstance(options, Mapping):
        return {}, "python"
    yaml, manifest = options.get("model_yaml_config"), options.get("manifest")
    runtime = manifest.get("runtime") if isinstance(manifest, Mapping) else None
    return yaml if isinstance(yaml, Mapping) else {}, runtime if isinstance(runtime, str) and runtime else "python"


def _number(yaml: Mapping[str, Any], key: str, default: int) -> int:
    """A whole number above 0, else the default, as TorchServe reads it."""
    value = yaml.get(key)
    return value if type(value) is int and value > 0 else default


def _parallel(yaml: Mapping[str, Any]) -> dict[str, Any]:
    kind = yaml.get("parallelType")
    if not isinstance(kind, str) or kind.lower() not in PARALLEL:
        return {"parallelType": "", "parallelLevel": 0}
    torchrun = yaml.get("torchrun")
    level = _number(torchrun, "nproc-per-node", 1) if isinstance(torchrun, Mapping) else 1
    return {"parallelType": kind.lower(), "parallelLevel": _number(yaml, "parallelLevel", level)}


def _device_ids(spec: ModelSpec) -> dict[str, list[int]]:
    """The GPUs that were named; the key is left out where none was."""
    ids = [int(number) for kind, _, number in (device.partition(":") for device in spec.devices) if kind == "cuda"]
    return {"deviceIds": ids} if ids else {}


def _echoed_sequences(yaml: Mapping[str, Any]) -> dict[str, Any]:
    idle = _number(yaml, "sequenceMaxIdleMSec", 0)
    return {
        "stateful": yaml.get("sequenceBatching") is True,
        "sequenceMaxIdleMSec": idle,
        "sequenceTimeoutMSec": _number(yaml, "sequenceTimeoutMSec", 0) if idle else 0,
        "maxNumSequence": _number(yaml, "maxNumSequence", 1) if idle else 0,
        "maxSequenceJobQueueSize": _number(yaml, "maxSequenceJobQueueSize", 1) if idle else 0,
    }


def _sequences(model: ModelView, yaml: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "stateful": model.stateful or yaml.get("sequenceBatching") is True,
        "sequenceMaxIdleMSec": round(model.spec.sequence_idle_timeout_s * 1000),
        "sequenceTimeoutMSec": 0,
        "maxNumSequence": model.spec.max_sequences,
        "maxSequenceJobQueueSize": CREDIT_CHUNKS,
    }


# --- workers --------------------------------------------------------------------------------------


def _worker(replica: ReplicaView, *, as_torchserve: bool) -> dict[str, Any]:
    started = datetime.fromtimestamp(replica.started_at)  # noqa: DTZ006  # TorchServe prints local time
    ready = replica.state is State.READY
    unloading = as_torchserve or replica.state is State.DRAINING  # TorchServe has these two words
    worker = {
        "id": str(FIRST_WORKER_ID + replica.index),
        "startTime": started.strftime("%Y-%m-%dT%H:%M:%S.") + f"{started.microsecond // 1000:03d}Z",
        "status": "READY" if ready else "UNLOADING" if unloading else replica.state.value,
        "memoryUsage": _resident_bytes(replica.pid) if ready else 0,
        "pid": replica.pid or -1,
        "gpu": replica.device != CPU,
        "gpuUsage": "N/A",
    }
    if as_torchserve:
        return worker
    worker["device"] = replica.device
    if replica.reason:
        worker["reason"] = replica.reason
    if replica.restarts or replica.replaced:
        worker["restarts"] = replica.restarts
        worker["replaced"] = replica.replaced
    if exit := last_exit(replica):
        worker["lastExit"] = exit
    return worker


def _resident_bytes(pid: int | None) -> int:
    """Resident memory of a process, 0 where it has gone."""
    try:
        fields = Path(f"/proc/{pid}/statm").read_text().split()
    except OSError:
        return 0
    return int(fields[1]) * os.sysconf("SC_PAGE_SIZE")
