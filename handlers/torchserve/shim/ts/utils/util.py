"""What handlers take from `ts.utils.util`: the error with a code, label files, and the classes of a module."""

from __future__ import annotations

import enum
import inspect
import json
import re
import warnings
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from types import ModuleType
from typing import Any

import yaml

CLEANUP_REGEX = re.compile("<.*?>|&(?:#[0-9]{1,6}|#x[0-9a-f]{1,6}|[a-z0-9]+);")
"""Tags and entities of HTML."""


class PT2Backend(str, enum.Enum):
    """What `pt2` in model-config.yaml may name as a backend of torch.compile."""

    EAGER = "eager"
    AOT_EAGER = "aot_eager"
    INDUCTOR = "inductor"
    NVFUSER = "nvfuser"
    AOT_NVFUSER = "aot_nvfuser"
    AOT_CUDAGRAPHS = "aot_cudagraphs"
    OFI = "ofi"
    FX2TRT = "fx2trt"
    ONNXRT = "onnxrt"
    IPEX = "ipex"
    TORCHXLA_TRACE_ONCE = "torchxla_trace_once"
    OPENVINO = "openvino"
    TENSORRT = "tensorrt"
    HPU_BACKEND = "hpu_backend"


class PredictionException(Exception):
    """Ends a whole batch with a code in HTTP's numbers; in the returned list, its own item alone."""

    def __init__(self, message: str, error_code: int = 500) -> None:
        super().__init__(message)
        self.message = message
        self.error_code = error_code

    def __str__(self) -> str:
        return f"{self.message} : {self.error_code}"


def list_classes_from_module(module: ModuleType, parent_class: type | None = None) -> list[type]:
    """The classes that a module defines itself; of them the subclasses of `parent_class` where one is given."""
    found = [one for _, one in inspect.getmembers(module, inspect.isclass) if one.__module__ == module.__name__]
    return found if parent_class is None else [one for one in found if issubclass(one, parent_class)]


def load_label_mapping(mapping_file_path: str | Path) -> dict[str, str] | None:
    """Label by class, from index_to_name.json; None where there is no such file. TypeError where it is another thing.

    A list under `object_type_names` becomes a mapping from "0", "1", ...; of a list of labels the last one counts.
    """
    path = Path(mapping_file_path)
    if not path.is_file():
        return None
    mapping = json.loads(path.read_text())
    if not isinstance(mapping, dict):
        raise TypeError(f'{path.name}: it is not in the json format {{"class": "label"}}')
    names = mapping.get("object_type_names")
    if isinstance(names, list):
        mapping = {str(index): name for index, name in enumerate(names)}
    labels = {key: value[-1] if isinstance(value, list) and value else value for key, value in mapping.items()}
    wrong = [key for key, label in labels.items() if not isinstance(label, str)]
    if wrong:
        raise TypeError(f"{path.name}: the label of class {wrong[0]!r} is neither text nor a list of texts")
    return labels


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
    """The content of a YAML file, read as data."""
    return yaml.safe_load(Path(yaml_file_path).read_text())


def check_valid_pt2_backend(backend: str) -> bool:
    """Whether torch.compile may be asked for a backend of this name."""
    return backend in [known.value for known in PT2Backend]


def deprecated(
    version: str, replacement: str = "", klass: type[Warning] = PendingDeprecationWarning
) -> Callable[[Any], Any]:
    """Mark a function as old since `version`: a call of it warns, with a warning of `klass`, and works."""

    def mark(function: Any) -> Any:
        @wraps(function)
        def warned(*arguments: Any, **named: Any) -> Any:
            text = f"{function.__name__} is old since {version}" + (f"; use {replacement}" if replacement else "")
            warnings.warn(text, klass, stacklevel=2)
            return function(*arguments, **named)

        return warned

    return mark
