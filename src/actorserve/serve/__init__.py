"""Applications in Python: deployments, and how they are bound, batched and multiplexed; docs/applications.md.

Importing it loads errors and plain data alone: neither trio nor gRPC, also in a worker.
"""

from actorserve.serve.batching import batch
from actorserve.serve.context import get_multiplexed_model_id, get_replica_context
from actorserve.serve.definition import Application, Deployment, deployment
from actorserve.serve.multiplexing import multiplexed
from actorserve.serve.running import (
    delete,
    get_app_handle,
    get_deployment_handle,
    run,
    shutdown,
    start,
    status,
)

__all__ = [
    "Application",
    "Deployment",
    "batch",
    "delete",
    "deployment",
    "get_app_handle",
    "get_deployment_handle",
    "get_multiplexed_model_id",
    "get_replica_context",
    "multiplexed",
    "run",
    "shutdown",
    "start",
    "status",
]
