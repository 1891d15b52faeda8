"""What handlers take from `ts.utils.util`: the error with a code, label files, and the classes of a module."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

CLEANUP_REGEX = re.compile("<.*?>")

PT2_BACKENDS = frozenset(
    (
        *("eager", "aot_eager", "inductor", "nvfuser", "aot_nvfuser", "aot_cudagraphs", "ofi", "fx2trt", "onnxrt"),
        *("ipex", "torchxla_trace_once", "openvino", "tensorrt", "hpu_backend"),
    )
)
"""What `pt2` in model-config.yaml may name as a backend of torch.compile."""


class PredictionException(Exception):
    """Ends a whole batch with a code in HTTP's numbers; in the returned list, its own item alone."""

    def __init__(self, message: str, error_code: int = 500) -> None:
        super().__init__(message)
        self.message = message
        self.error_code = error_code

    def __str__(self) -> str:
        return f"message : {self.message} error_code : {self.error_code}"


def list_classes_from_module(module: ModuleType, parent_class: type | None = None) -> list[type]:
    """The classes that a module defines itself; of them the subclasses of `parent_class` where one is given."""
    found = [one for _, one in inspect.getmembers(module, inspect.isclass) if one.__module__ == module.__name__]
    return found if parent_class is None else [one for one in found if issubclass(one, parent_class)]


def load_label_mapping(mapping_file_path: str | Path) -> dict[str, Any] | None:
    """The content of index_to_name.json, or None where there is no such file.

    A list under `object_type_names` becomes a mapping from "0", "1", ...
    """
    path = Path(mapping_file_path)
    if not path.is_file():
        return None
    mapping = json.loads(path.read_text())
    if not isinstance(mapping, dict):
        raise TypeError('index to name mapping should be in "class":"label" json format')
    names = mapping.get("object_type_names")
    if isinstance(names, list):
        return {str(index): name for index, name in enumerate(names)}
    return mapping


def map_class_to_label(
    probs: list[Any], mapping: dict[str, Any] | None = None, lbl_classes: list[list[int]] | None = None
) -> list[dict[str, Any]]:
    """Each row's probabilities by label. `lbl_classes`: the class of each probability, else its position."""
    if not isinstance(probs, list):
        raise TypeError("Convert classes to list before doing mapping")
    if mapping is not None and not isinstance(mapping, dict):
        raise TypeError("Mapping must be a dictionary")
    classes = lbl_classes or [list(range(len(row))) for row in probs]
    return [
        {_label(mapping, index): value for index, value in zip(indices, row, strict=False)}
        for indices, row in zip(classes, probs, strict=True)
    ]


def _label(mapping: dict[str, Any] | None, index: int) -> str:
    if mapping is None:
        return str(index)
    label = mapping[str(index)]
    return str(label[-1]) if isinstance(label, list) else str(label)


def get_yaml_config(yaml_file_path: str | Path) -> Any:
    """The content of a YAML file; None where it is absent. Needs PyYAML."""
    import yaml  # type: ignore[import-untyped,unused-ignore]  # noqa: PLC0415  # an extra of the user's

    path = Path(yaml_file_path)
    return yaml.safe_load(path.read_text()) if path.is_file() else None


def check_valid_pt2_backend(backend: str) -> bool:
    """Whether torch.compile may be asked for a backend of this name."""
    return backend in PT2_BACKENDS


def deprecated(version: str, replacement: str = "") -> Callable[[Any], Any]:
    """Mark a function as old; it works as before."""

    def mark(function: Any) -> Any:
        function.__doc__ = f"Since {version}: {replacement or 'no replacement'}.\n\n{function.__doc__ or ''}"
        return function

    return mark
