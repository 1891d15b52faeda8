"""A context for a handler's own tests, without a server."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from ....context import Context, RequestProcessor
from ....metrics.metrics_store import MetricsStore
from ....utils.util import get_yaml_config


class MockContext(Context):
    """A context as a worker's, of the files that are named, with one request; `explain`: it asks for an explanation.

    `sent` has what the handler sent on the way: (answers, ids, message, code) of each call.
    """

    def __init__(
        self,
        model_pt_file: str | None = "model.pt",
        model_dir: str = ".",
        model_file: str | None = "model.py",
        gpu_id: int | str | None = None,
        model_name: str = "mnist",
        model_yaml_config_file: str | None = None,
    ) -> None:
        named = {"modelName": model_name, "serializedFile": model_pt_file, "modelFile": model_file}
        yaml: Any = get_yaml_config(Path(model_dir) / model_yaml_config_file) if model_yaml_config_file else {}
        super().__init__(
            model_name,
            str(model_dir),
            {"model": {key: value for key, value in named.items() if value}},
            1,
            int(gpu_id) if gpu_id is not None and torch.cuda.is_available() else None,
            "0",
            metrics=MetricsStore({0: "0"}, model_name),
            model_yaml_config=yaml,
        )
        self.explain = False
        self.request_ids = {0: "0"}
        self.request_processor = [RequestProcessor({})]
        self.sent: list[tuple[Any, ...]] = []
        self.sink = lambda *what: self.sent.append(what)

    def get_request_header(self, idx: int, key: str) -> Any:
        """One header of the request."""
        return "True" if key == "explain" and self.explain else super().get_request_header(idx, key)
