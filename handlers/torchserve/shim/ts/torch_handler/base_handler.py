"""The handler that most others are made from: it loads a model and computes preprocess, inference, postprocess.

What must not live here: how weights of each kind are read (model_loading.py).
"""

from __future__ import annotations

import json
import logging
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from ..handler_utils.timer import timed
from ..utils.util import load_label_mapping
from .model_loading import (
    compiled,
    eager_model,
    load_aot,
    ort_session,
    pick_device,
    run_session,
    saved_model,
    script_model,
    wants_aot,
)

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
        self.model_pt_path = self._path_of(folder, "serializedFile")
        self.model = self._load(folder, self.manifest.get("model", {}).get("modelFile"))
        if isinstance(self.model, torch.nn.Module):
            self.model = compiled(self.model, self.model_yaml_config)
        self.mapping = load_label_mapping(folder / "index_to_name.json")
        self.initialized = True

    def _path_of(self, folder: Path, key: str) -> str | None:
        name = self.manifest.get("model", {}).get(key)
        return str(folder / name) if name else None

    def _load(self, folder: Path, model_file: str | None) -> Any:
        """The model, by the method of its kind: a subclass may have its own."""
        path = self.model_pt_path
        if model_file:
            return self._load_pickled_model(str(folder), model_file, path).to(self.device).eval()
        if path is not None and Path(path).is_file():
            if path.endswith((".pt", ".pth")):
                return self._load_torchscript_model(path).eval()
            if path.endswith(".so") and self._use_torch_export_aot_compile():
                return self._load_torch_export_aot_compile(path)
        return saved_model(path, self.device, self.model_yaml_config)

    def _load_pickled_model(self, model_dir: str, model_file: str, model_pt_path: str | None) -> Any:
        """The class of `model_file` with the weights of `model_pt_path`, on the device."""
        return eager_model(Path(model_dir) / model_file, model_pt_path, self.device)

    def _load_torchscript_model(self, model_pt_path: str) -> Any:
        """The TorchScript file, on the device."""
        return script_model(model_pt_path, self.device)

    def _load_torch_export_aot_compile(self, model_so_path: str) -> Any:
        """The library that torch._export.aot_compile made, for the device."""
        return load_aot(model_so_path, self.device)

    def _use_torch_export_aot_compile(self) -> bool:
        """Whether model-config.yaml says so: pt2.export.aot_compile."""
        return wants_aot(self.model_yaml_config)

    def get_device(self) -> Any:
        """The torch.device that the model is on."""
        return self.device

    @timed
    def preprocess(self, data: Any) -> Any:
        """A batch as one tensor on the device."""
        return torch.as_tensor(data, device=self.device)

    @timed
    def inference(self, data: Any, *args: Any, **kwargs: Any) -> Any:
        """The model's answer, without gradients. A model of ONNX answers with a tensor, or a list where it has several.

        Its inputs are `data` and then `args`, in the model's order.
        """
        if ort_session(self.model):
            return run_session(self.model, (data, *args))
        with torch.inference_mode():
            return self.model(data.to(self.device), *args, **kwargs)

    @timed
    def postprocess(self, data: Any) -> list[Any]:
        """One answer an item."""
        return data.tolist()  # type: ignore[no-any-return]  # a tensor, or what a subclass made

    def handle(self, data: Any, context: Any) -> list[Any]:
        """Answer a batch; its time is the metric HandlerTime, in milliseconds."""
        began = time.perf_counter()
        self.context = context
        if self._is_describe():
            output = [self.describe_handle()]
        elif os.environ.get("ENABLE_TORCH_PROFILER", "").lower() not in ("", "0", "false"):
            output, _ = self._infer_with_profiler(data)
        else:
            output = self._answered(data)
        context.metrics.add_time("HandlerTime", round((time.perf_counter() - began) * 1000, 2), None, "ms")
        return output

    def _answered(self, data: Any) -> Any:
        inputs = self.preprocess(data)
        if self._is_explain():
            return self.explain_handle(inputs, data)
        return self.postprocess(self.inference(inputs))

    def _infer_with_profiler(self, data: Any) -> tuple[Any, Any]:
        """The answers and torch's profile, whose trace goes to pytorch_profiler/<model> of the temporary folder.

        `profiler_args` of a subclass go before.
        """
        name = self.manifest.get("model", {}).get("modelName", "")
        folder = str(Path(tempfile.gettempdir(), "pytorch_profiler", name))
        trace = torch.profiler.tensorboard_trace_handler(folder)  # type: ignore[no-untyped-call,unused-ignore]
        with torch.profiler.profile(**{"record_shapes": True, "on_trace_ready": trace} | self.profiler_args) as profile:
            output = self._answered(data)
        logger.info("%s", profile.key_averages().table(sort_by="cpu_time_total", row_limit=10))
        return output, profile

    def explain_handle(self, data_preprocess: Any, raw_data: Any) -> Any:
        """What `get_insights` of a subclass answers for the batch and the target that its first row names (else 0).

        The row has it as an input `target`, or in the JSON object under `data` or `body`.
        """
        row = raw_data[0] if isinstance(raw_data[0], dict) else {}
        content = row.get("data") or row.get("body")
        insights = getattr(self, "get_insights", None)
        if insights is None:
            raise NotImplementedError(f"{type(self).__name__} explains nothing: it has no get_insights")
        return insights(data_preprocess, content, _target(row.get("target"), content))

    def describe_handle(self) -> Any:
        """What a subclass says about itself."""
        return None

    def _is_explain(self) -> bool:
        return self._says("explain")

    def _is_describe(self) -> bool:
        return self._says("describe")

    def _says(self, header: str) -> bool:
        if self.context is None or not self.context.request_processor:
            return False
        return str(self.context.get_request_header(0, header)) == "True"


def _target(given: Any, content: Any) -> int:
    """The class that is to be explained; ValueError where it is no number."""
    if given is None and isinstance(content, (bytes, bytearray)):
        try:
            content = json.loads(content)
        except ValueError:
            content = None
    if given is None and isinstance(content, dict):
        given = content.get("target")
    if isinstance(given, (bytes, bytearray)):
        given = given.decode()
    try:
        return int(given or 0)
    except (TypeError, ValueError) as error:
        raise ValueError(f"target is {given!r}; it must be the number of a class") from error
