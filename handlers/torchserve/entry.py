"""What of a handler's file is called: TorchServe's rules of loading, with errors that say what to do.

1. `name.py`, `name` or `name.py:function` is a file of the model's folder, or else a built-in of `ts.torch_handler`.
2. A module with the function (`handle` where none is named) is a function handler: it is called once with None.
3. Otherwise the one class that the module defines is made without arguments; its `handle` is bound, then its
   `initialize` is called.
A file that is there and cannot be imported fails with its own error: it is never taken for a missing built-in.
What must not live here: requests and answers.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from actorserve.errors import LoadFailed

SHIM = Path(__file__).parent / "shim"
ENVELOPES = {
    "body": "body:BodyEnvelope",
    "json": "json:JSONEnvelope",
    "kserve": "kserve:KServeEnvelope",
    "kservev2": "kservev2:KServev2Envelope",
}
NOT_SERVED = frozenset(("dali_image_classifier", "vllm_handler", "trt_llm_handler"))
"""Built-ins of TorchServe that need engines of their own."""

Entry = Callable[[Any, Any], Any]


def find_entry(handler: str, model_dir: Path, context: Any) -> Entry:
    """What to call with data and `context`, with which it is initialised.

    LoadFailed says what is wrong with `handler`; whatever the handler's own code raises is raised.
    """
    name, _, function = handler.partition(":")
    module = _module(name.removesuffix(".py"), model_dir)
    found = getattr(module, function or "handle", None)
    if inspect.isfunction(found):
        found(None, context)
        return found
    if function:
        raise LoadFailed(f"handler {handler!r}: {name} has no function {function}")
    return _of_class(module, name, context)


def _of_class(module: ModuleType, name: str, context: Any) -> Entry:
    classes = [one for _, one in inspect.getmembers(module, inspect.isclass) if one.__module__ == module.__name__]
    if len(classes) != 1:
        names = ", ".join(one.__name__ for one in classes) or "none"
        raise LoadFailed(f"handler {name!r}: expected a function handle or one class in the file; it has {names}")
    service: Any = classes[0]()
    entry = getattr(service, "handle", None)
    if not callable(entry):
        raise LoadFailed(f"handler {name!r}: class {classes[0].__name__} has no method handle")
    service.initialize(context)
    bound: Entry = entry
    return bound


def _module(name: str, model_dir: Path) -> ModuleType:
    path = model_dir / f"{name}.py"
    if path.is_file():
        return from_file(path)
    if name in NOT_SERVED:
        raise LoadFailed(f"handler {name!r}: this built-in of TorchServe is not served here")
    if name.isidentifier() and (SHIM / "ts" / "torch_handler" / f"{name}.py").is_file():
        return importlib.import_module(f"ts.torch_handler.{name}")
    if name and importlib.util.find_spec(name) is not None:
        return importlib.import_module(name)
    raise LoadFailed(f"handler {name!r}: the model's folder has no {path.name}, and no built-in has this name")


def from_file(path: Path) -> ModuleType:
    """Import a file under its own name, so that what it pickled is found, unless that name is taken already."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise LoadFailed(f"{path.name} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules.setdefault(path.stem, module)
    try:
        spec.loader.exec_module(module)
    except ImportError as error:
        raise LoadFailed(f"handler {path.name!r} cannot be imported: {error}") from error
    return module


def wrapped(entry: Entry, envelope: str) -> Entry:
    """The entry inside the envelope of this name; "" for none."""
    if not envelope:
        return entry
    if envelope not in ENVELOPES:
        raise LoadFailed(f"envelope {envelope!r}: must be one of {', '.join(sorted(ENVELOPES))}")
    module, _, name = ENVELOPES[envelope].partition(":")
    found = getattr(importlib.import_module(f"ts.torch_handler.request_envelope.{module}"), name)
    return found(entry).handle  # type: ignore[no-any-return]  # imported by name
