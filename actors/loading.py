"""What a LOAD frame tells a worker of its model, decided purely.

What must not live here: sending it (starting.py, probe.py), obeying it (worker_main.py).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from actorserve.actors.environment import search_path
from actorserve.actors.messages import ChildSpec


def load_content(
    child: ChildSpec, folders: tuple[str, ...], cache_dir: Path, *, sees_all_devices: bool = False
) -> dict[str, Any]:
    """The content, as JSON has it. `folders`: those of `sys.path` that every worker has."""
    model, placement = child.model, child.placement
    return {
        "name": model.name,
        "version": model.version,
        "handler": model.handler,
        "device": placement.device if sees_all_devices else placement.in_worker,
        "model_dir": str(model.model_dir),
        "options": dict(model.options),
        "cache_dir": str(cache_dir),
        "max_batch_weight": model.max_batch_weight,
        "threads": model.threads,
        "batch_size": model.batch_size,
        "path": search_path(folders, model),
    }
