"""Weights of each kind: a state dict with its class, TorchScript, an exported program, a compiled one, ONNX.

What must not live here: what is done with a loaded model.
"""

from __future__ import annotations

import importlib.util
import inspect
import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from ..utils.util import check_valid_pt2_backend

logger = logging.getLogger(__name__)


def pick_device(gpu_id: int | None) -> torch.device:
    """The worker's GPU, or the CPU."""
    if gpu_id is not None and torch.cuda.is_available():
        return torch.device(f"cuda:{gpu_id}")
    return torch.device("cpu")


def eager_model(model_file: Path, weights: str | None, device: torch.device) -> torch.nn.Module:
    """The one class that `model_file` defines, with a state dict where there is one.

    Weights are read with `weights_only`: a pickle that would run code is refused.
    """
    spec = importlib.util.spec_from_file_location(model_file.stem, model_file)
    if spec is None or spec.loader is None or not model_file.is_file():
        raise FileNotFoundError(f"Missing the {model_file.name} file")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    classes = [one for _, one in inspect.getmembers(module, inspect.isclass) if one.__module__ == module.__name__]
    if len(classes) != 1:
        names = ", ".join(one.__name__ for one in classes) or "none"
        raise ValueError(f"Expected only one class as model definition in {model_file.name}; it has {names}")
    made: Any = classes[0]
    model: torch.nn.Module = made()
    if weights:
        model.load_state_dict(_state_dict(weights, device))
    return model.to(device).eval()


def _state_dict(path: str, device: torch.device) -> Any:
    if path.endswith(".safetensors"):
        from safetensors.torch import load_file  # noqa: PLC0415  # only where such weights are

        return load_file(path, device=str(device))
    return torch.load(path, map_location=device, weights_only=True)


def saved_model(path: str | None, device: torch.device, config: dict[str, Any]) -> Any:
    """A file that brings its own code: .pt (TorchScript), .pt2 (torch.export or AOT Inductor), .onnx.

    RuntimeError says that nothing could be loaded, and why.
    """
    if path is None or not Path(path).is_file():
        missing = FileNotFoundError(2, "the model has no such file", path or "(no serializedFile)")
        raise RuntimeError(f"No model weights could be loaded: {path or 'no serializedFile'}") from missing
    match Path(path).suffix:
        case ".pt" | ".pth":
            return script_model(path, device)
        case ".pt2":
            return _exported(path, device, config)
        case ".onnx":
            return _onnx(path, device)
        case suffix:
            wrong = ValueError(f"{suffix} is not known, or needs a modelFile or pt2.export.aot_compile")
            raise RuntimeError(f"No model weights could be loaded: {wrong}") from wrong


def script_model(path: str, device: torch.device) -> Any:
    """TorchScript."""
    return torch.jit.load(path, map_location=device)  # type: ignore[no-untyped-call,unused-ignore]


def load_aot(path: str, device: torch.device) -> Any:
    """A library of torch._export.aot_compile."""
    return torch._export.aot_load(path, str(device))  # noqa: SLF001  # torch has no other name for it


def wants_aot(config: dict[str, Any]) -> bool:
    """Whether `pt2.export.aot_compile` is true."""
    pt2 = config.get("pt2")
    export = pt2.get("export") if isinstance(pt2, dict) else None
    return isinstance(export, dict) and export.get("aot_compile") is True


def _exported(path: str, device: torch.device, config: dict[str, Any]) -> Any:
    if wants_aot(config):
        from torch._inductor import aoti_load_package  # noqa: PLC0415  # slow to import

        return aoti_load_package(path)
    with _weights_only():
        return torch.export.load(path).module().to(device)


@contextmanager
def _weights_only() -> Iterator[None]:
    """Without this torch.export.load reads pickles that run code: it asks for `weights_only=False` where True fails."""
    key = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
    before = os.environ.get(key)
    os.environ[key] = "1"
    try:
        yield
    finally:
        del os.environ[key]
        if before is not None:
            os.environ[key] = before


def _onnx(path: str, device: torch.device) -> Any:
    try:
        import onnxruntime  # noqa: PLC0415  # an extra
    except ImportError as error:
        raise ImportError(f"a .onnx model needs onnxruntime, which cannot be imported: {error}") from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    providers = ["CPUExecutionProvider"]
    if device.type == "cuda":
        providers.insert(0, "CUDAExecutionProvider")
    return onnxruntime.InferenceSession(path, sess_options=options, providers=providers)


def ort_session(model: Any) -> bool:
    """Whether a model is a session of onnxruntime, which is not called but run."""
    return not callable(model) and hasattr(model, "get_inputs")


def run_session(session: Any, inputs: Sequence[Any]) -> Any:
    """A tensor, or a list of them where the model has several outputs. ValueError for another number of inputs."""
    names = [one.name for one in session.get_inputs()]
    if len(names) != len(inputs):
        raise ValueError(f"the model has the inputs {', '.join(names)}; inference was given {len(inputs)}")
    feeds = {name: torch.as_tensor(one).cpu().numpy() for name, one in zip(names, inputs, strict=True)}
    outputs = [torch.from_numpy(one) for one in session.run(None, feeds)]
    return outputs[0] if len(outputs) == 1 else outputs


def compiled(model: torch.nn.Module, config: dict[str, Any]) -> Any:
    """The model under torch.compile where `pt2` asks for it; what cannot be compiled runs as it is, with a warning.

    Most of that shows only when the model is first called (no C++ compiler, say), so torch is told to go on then.
    """
    options = _compile_options(config.get("pt2"))
    if options is None:
        return model
    backend = options.get("backend", "inductor")
    if not check_valid_pt2_backend(backend):
        logger.warning("pt2: backend %r is not known; the model runs as it is", backend)
        return model
    os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")
    try:
        torch._dynamo.config.suppress_errors = True  # noqa: SLF001  # the place that torch's own texts name
        return torch.compile(model, **options)
    except Exception as error:  # noqa: BLE001  # compiling is an optimisation
        logger.warning("pt2: torch.compile failed, the model runs as it is: %s", error)
        return model


def _compile_options(pt2: Any) -> dict[str, Any] | None:
    """What `pt2` says, in its three forms: a backend, a table, a table with `compile`."""
    if isinstance(pt2, str):
        return {"backend": pt2}
    if not isinstance(pt2, dict) or not pt2:
        return None
    table = pt2.get("compile")
    if isinstance(table, dict):
        if table.get("enable") is not True:
            return None
        return {key: value for key, value in table.items() if key != "enable"}
    return None if "export" in pt2 else dict(pt2)
