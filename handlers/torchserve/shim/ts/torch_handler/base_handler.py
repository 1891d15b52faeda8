"""The handler that most others are made from: it loads a model and computes preprocess, inference, postprocess.

What must not live here: how weights of each kind are read (model_loading.py).
"""

from __future__ import annotations

import json
import logging
import os
import time
from pathlib import Path
from typing import Any

import torch

from ..utils.util import load_label_mapping
from .model_loading import compiled, eager_model, pick_device, saved_model

logger = logging.getLogger(__name__)


class BaseHandler:
    """See the module's docstring. A subclass overrides what differs."""

    def __init__(self) -> None:
        self.model: Any = None
        self.mapping: dict[str, Any] | None = None
        self.device: Any = None
        self.initialized = False
        self.context: Any = None
        self.model_pt_path: str | None = None
        self.manifest: dict[str, Any] = {}
        self.map_location: str | None = None
        self.explain = False
        self.target = 0
        self.profiler_args: dict[str, Any] = {}
        self.model_yaml_config: dict[str, Any] = {}

    def initialize(self, context: Any) -> None:
        """Load the model that the manifest names, onto the worker's device."""
        self.context = context
        self.model_yaml_config = context.model_yaml_config or {}
        self.manifest = context.manifest
        properties = context.system_properties
        self.device = pick_device(properties.get("gpu_id"))
        self.map_location = self.device.type
        folder = Path(properties["model_dir"])
        named = self.manifest.get("model", {})
        serialized = named.get("serializedFile")
        self.model_pt_path = str(folder / serialized) if serialized else None
        if named.get("modelFile"):
            self.model = self._load_pickled_model(str(folder), named["modelFile"], self.model_pt_path)
        else:
            self.model = saved_model(self.model_pt_path, self.device, self.model_yaml_config)
        if isinstance(self.model, torch.nn.Module):
            self.model = compiled(self.model, self.model_yaml_config)
        self.mapping = load_label_mapping(folder / "index_to_name.json")
        self.initialized = True

    def _load_pickled_model(self, model_dir: str, model_file: str, model_pt_path: str | None) -> Any:
        """The class of `model_file` with the weights of `model_pt_path`, on the device."""
        return eager_model(Path(model_dir) / model_file, model_pt_path, self.device)

    def _load_torchscript_model(self, model_pt_path: str) -> Any:
        """The TorchScript file, on the device."""
        return torch.jit.load(model_pt_path, map_location=self.device)  # type: ignore[no-untyped-call,unused-ignore]

    def preprocess(self, data: Any) -> Any:
        """A batch as one tensor on the device."""
        return torch.as_tensor(data, device=self.device)

    def inference(self, data: Any, *args: Any, **kwargs: Any) -> Any:
        """The model's answer, without gradients."""
        with torch.inference_mode():
            return self.model(data.to(self.device), *args, **kwargs)

    def postprocess(self, data: Any) -> list[Any]:
        """One answer an item."""
        return data.tolist()  # type: ignore[no-any-return]  # a tensor, or what a subclass made

    def handle(self, data: Any, context: Any) -> list[Any]:
        """Answer a batch; its time is the metric HandlerTime, in milliseconds."""
        began = time.perf_counter()
        self.context = context
        if self._is_describe():
            output = [self.describe_handle()]
        elif os.environ.get("ENABLE_TORCH_PROFILER", "").lower() == "true":
            output = self._profiled(data)
        else:
            output = self._answered(data)
        context.metrics.add_time("HandlerTime", round((time.perf_counter() - began) * 1000, 2), None, "ms")
        return output

    def _answered(self, data: Any) -> list[Any]:
        inputs = self.preprocess(data)
        if self._is_explain():
            return self.explain_handle(inputs, data)
        return self.postprocess(self.inference(inputs))

    def _profiled(self, data: Any) -> list[Any]:
        with torch.profiler.profile(**self.profiler_args) as profile:
            output = self._answered(data)
        logger.info("%s", profile.key_averages().table(sort_by="cpu_time_total", row_limit=10))
        return output

    def explain_handle(self, data_preprocess: Any, raw_data: Any) -> list[Any]:
        """`get_insights` of a subclass, for the first item and the target that its row names (else 0)."""
        row = raw_data[0]
        content = row.get("data") or row.get("body")
        target = 0
        if isinstance(content, (bytes, bytearray)):
            try:
                content = json.loads(content)
            except ValueError:
                content = None
        if isinstance(content, dict):
            target = content.get("target", 0)
        insights = getattr(self, "get_insights", None)
        if insights is None:
            raise NotImplementedError(f"{type(self).__name__} explains nothing: it has no get_insights")
        return [insights(data_preprocess, content, target)]

    def describe_handle(self) -> Any:
        """What a subclass says about itself."""
        return {"description": None}

    def _is_explain(self) -> bool:
        return self._says("explain")

    def _is_describe(self) -> bool:
        return self._says("describe")

    def _says(self, header: str) -> bool:
        if self.context is None or not self.context.request_processor:
            return False
        return str(self.context.get_request_header(0, header)) == "True"
