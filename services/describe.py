"""JSON bodies of ListModels and DescribeModel: TorchServe's keys, in its order, 2-space pretty print.

Pure but for the memory of a worker, which is read from the system. Source: TorchServe's
ListModelsResponse and DescribeModelResponse as its own server prints them.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from actorserve.actors.messages import ModelView, ReplicaView, State, Tree
from actorserve.actors.tree_text import last_exit
from actorserve.config_types import CPU

PAGE = 100
FIRST_WORKER_ID = 9000


def listing(tree: Tree, *, limit: int, start: int) -> str:
    """A page of the default versions; what has a schema of its own is no model.

    `limit` 0 or out of range is 100; `start` is the last page's token.
    """
    models = [model for model in tree.models if model.is_default and not model.spec.has_own_schema]
    limit = limit if 0 < limit <= PAGE else PAGE
    start = max(start, 0)
    body: dict[str, Any] = {}
    if start + limit < len(models):
        body["nextPageToken"] = str(start + limit)
    body["models"] = [
        {"modelName": model.spec.name, "modelUrl": model.spec.url} for model in models[start : start + limit]
    ]
    return json.dumps(body, indent=2, ensure_ascii=False)


def description(models: Sequence[ModelView], customized: Mapping[str, Any] | None = None) -> str:
    """An array with an object for each version. `customized`: what the one version's handler says; None: nothing."""
    last = {} if customized is None else {"customizedMetadata": customized}
    return json.dumps([_model(model) | last for model in models], indent=2, ensure_ascii=False)


def _model(model: ModelView) -> dict[str, Any]:
    spec = model.spec
    return {
        "modelName": spec.name,
        "modelVersion": spec.version,
        "modelUrl": spec.url,
        "runtime": "python",
        "minWorkers": spec.workers_min,
        "maxWorkers": spec.workers_max,
        "batchSize": spec.batch_size,
        "maxBatchDelay": round(spec.max_batch_delay_s * 1000),
        "responseTimeout": round(spec.response_timeout_s),
        "startupTimeout": round(spec.startup_timeout_s),
        "deviceType": "gpu" if any(replica.device != CPU for replica in model.replicas) else CPU,
        "status": model.state.value,
        "loadedAtStartup": spec.loaded_at_startup,
        "workers": [_worker(replica) for replica in model.replicas],
        "jobQueueStatus": {
            "remainingCapacity": max(0, spec.queue_size - model.waiting),
            "pendingRequests": model.waiting,
        },
    }


def _worker(replica: ReplicaView) -> dict[str, Any]:
    started = datetime.fromtimestamp(replica.started_at)  # noqa: DTZ006  # TorchServe prints local time
    ready = replica.state is State.READY
    worker = {
        "id": str(FIRST_WORKER_ID + replica.index),
        "startTime": started.strftime("%Y-%m-%dT%H:%M:%S.") + f"{started.microsecond // 1000:03d}Z",
        "status": "READY" if ready else "UNLOADING" if replica.state is State.DRAINING else replica.state.value,
        "memoryUsage": _resident_bytes(replica.pid) if ready else 0,
        "pid": replica.pid or -1,
        "gpu": replica.device != CPU,
        "gpuUsage": "N/A",
        "device": replica.device,
    }
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
