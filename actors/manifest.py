"""What a TorchServe archive says of itself: MAR-INF/MANIFEST.json and model-config.yaml, read as data.

Rules of pytorch/serve 0.12.0: archive/model/Manifest.java, ModelConfig.java, model-archiver. Bytes in, keys of
`[models.NAME]` and options for the handler out. What must not live here: files, archives, other people's code.
"""

from __future__ import annotations

import datetime as dt
import json
import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from actorserve.errors import BadInput, Unsupported

PLACE = "MAR-INF/MANIFEST.json"
LOADER = "actorserve.handlers.torchserve.loader:TorchServeHandler"
MOST_MANIFEST_BYTES = 1 << 20
MOST_YAML_BYTES = 128 << 10
MOST_VALUES = 100_000
MOST_DEPTH = 64
MOST_ALIASES = 10
RUNTIMES = ("", "python", "python3")
FILES = ("serializedFile", "modelFile", "requirementsFile", "configFile")
TEXTS = ("modelName", "modelVersion", "handler", "extensions", *FILES)
YAML_TIMEOUT_S = 120.0
"""Seconds of responseTimeout and startupTimeout in an archive whose yaml does not name them."""


@dataclass(frozen=True, slots=True)
class Manifest:
    """A manifest: its whole content, and the texts of its `model`, "" where it has none."""

    content: Mapping[str, Any] = field(default_factory=dict)
    model: Mapping[str, str] = field(default_factory=lambda: dict.fromkeys(TEXTS, ""))


@dataclass(frozen=True, slots=True)
class Settings:
    """What model-config.yaml means for the server.

    `content`: keys of `[models.NAME]`. `fixed`: those that win over RegisterModel's fields, as in TorchServe.
    `yaml`: all of it, for the handler. `ignored`: what has no effect, and why.
    """

    content: Mapping[str, Any] = field(default_factory=dict)
    fixed: Mapping[str, Any] = field(default_factory=dict)
    yaml: Mapping[str, Any] = field(default_factory=dict)
    ignored: tuple[str, ...] = ()


# --- the manifest -------------------------------------------------------------------------------


def parse_manifest(data: bytes, present: Callable[[str], bool]) -> Manifest:
    """A manifest from its bytes; `present` tells whether a file is in the archive. BadInput, Unsupported."""
    content = _json(data)
    runtime, model = content.get("runtime", ""), content.get("model", {})
    if runtime == "LSP":
        raise Unsupported(f"{PLACE}: runtime LSP (C++) is not served")
    if runtime not in RUNTIMES:
        raise _wrong(f"Invalid RuntimeType value: {runtime!r:.80}")
    if not isinstance(model, dict):
        raise _wrong("model is not an object")
    texts = {}
    for key in TEXTS:
        value = model.get(key)
        if value is not None and not isinstance(value, str):
            raise _wrong(f"model.{key} is not text")
        texts[key] = value or ""
    for key in FILES:
        check_basename(f"model.{key}", texts[key])
    for key in ("serializedFile", "modelFile"):
        if texts[key] and not present(texts[key]):
            raise _wrong(f"model.{key} {texts[key]!r} is not in the archive")
    check_basename("model.handler", texts["handler"].partition(":")[0])
    return Manifest(content, texts)


def _json(data: bytes) -> dict[str, Any]:
    if len(data) > MOST_MANIFEST_BYTES:
        raise _wrong(f"it is larger than {MOST_MANIFEST_BYTES} bytes")
    try:
        content = json.loads(data)
        plain = Plain().copy(content)
    except (ValueError, RecursionError) as error:
        raise _wrong(f"it is not JSON: {error}") from None
    if not isinstance(plain, dict):
        raise _wrong("it is not an object")
    return plain


def check_basename(what: str, name: str) -> None:
    """BadInput unless `name` is empty or the bare name of a file."""
    if name in (".", "..") or {"/", "\\", "\0"} & set(name):
        raise _wrong(f"{what} {name!r:.80} is not the bare name of a file")


def _wrong(text: str) -> BadInput:
    return BadInput("url", f"{PLACE}: {text}")


# --- handlers -----------------------------------------------------------------------------------


def is_native(handler: str) -> bool:
    """Whether a handler is a native `module:Class` rather than in TorchServe's notation.

    TorchServe's are `file.py`, `file`, `file:function` and built-in names. A class is told by its capital.
    """
    module, _, name = handler.partition(":")
    return not module.endswith(".py") and name[:1].isupper()


def options(manifest: Manifest, yaml: Mapping[str, Any], *, handler: str, batch_size: int) -> dict[str, Any]:
    """What TorchServeHandler gets as its option `torchserve`."""
    return {
        "handler": handler,
        "serialized_file": manifest.model["serializedFile"],
        "model_file": manifest.model["modelFile"],
        "manifest": dict(manifest.content),
        "model_yaml_config": dict(yaml),
        "batch_size": batch_size,
    }


# --- model-config.yaml --------------------------------------------------------------------------


def parse_yaml(data: bytes, name: str) -> dict[str, Any]:
    """The mapping that a YAML file holds, as JSON has values; BadInput names the file.

    By yaml.safe_load. Depth and aliases are counted first: nested aliases and merge keys grow without bound.
    """
    import yaml  # noqa: PLC0415  # few models have one, and the server starts fast

    def wrong(text: str) -> BadInput:
        return BadInput("url", f"{name}: {' '.join(text.split())}")

    if len(data) > MOST_YAML_BYTES:
        raise wrong(f"it is larger than {MOST_YAML_BYTES} bytes")
    try:
        _check_events(yaml.parse(data, Loader=yaml.SafeLoader))
        content = Plain().copy(yaml.safe_load(data))
    except (yaml.YAMLError, ValueError, RecursionError, OverflowError, TypeError) as error:
        raise wrong(f"it is not YAML that can be used: {error}") from None
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise wrong("it is not a mapping")
    return content


def _check_events(events: Any) -> None:
    """ValueError for a document that is nested too deeply or has too many aliases. Events are read one by one."""
    depth = aliases = 0
    for event in events:
        kind = type(event).__name__
        depth += kind in ("MappingStartEvent", "SequenceStartEvent")
        depth -= kind in ("MappingEndEvent", "SequenceEndEvent")
        aliases += kind == "AliasEvent"
        if depth > MOST_DEPTH:
            raise ValueError(f"it is nested deeper than {MOST_DEPTH}")
        if aliases > MOST_ALIASES:
            raise ValueError(f"it has more than {MOST_ALIASES} aliases")


class Plain:
    """Copies a value as JSON has it; ValueError where it is too large, too deep, or nothing that JSON has."""

    def __init__(self) -> None:
        self._left = MOST_VALUES

    def copy(self, value: Any, depth: int = 0) -> Any:
        """The copy. Dates become text, keys become text, tuples and sets lists."""
        self._left -= 1
        if depth > MOST_DEPTH or self._left < 0:
            raise ValueError(f"it is deeper than {MOST_DEPTH} or has more than {MOST_VALUES} values")
        match value:
            case None | bool() | str():
                return value
            case int() if -(2**63) <= value < 2**64:
                return value
            case float() if math.isfinite(value):
                return value
            case dt.date():
                return value.isoformat()
            case list() | tuple() | set():
                return [self.copy(one, depth + 1) for one in value]
            case dict():
                return {str(self.copy(key, depth + 1)): self.copy(one, depth + 1) for key, one in value.items()}
        raise ValueError(f"a value of type {type(value).__name__} cannot be handed to a worker")


SERVER_KEYS: dict[str, tuple[str, float, float]] = {
    "batchSize": ("batch_size", 1, 1),
    "maxBatchDelay": ("max_batch_delay_ms", 0, 1),
    "jobQueueSize": ("queue_size", 1, 1),
    "responseTimeout": ("response_timeout_s", 1, 1),
    "startupTimeout": ("startup_timeout_s", 1, 1),
    "maxNumSequence": ("max_sequences", 1, 1),
    "sequenceMaxIdleMSec": ("sequence_idle_timeout_s", 1, 1000),
}
"""Their names in `[models.NAME]`, the least that counts, and what divides them."""
FIXED = ("response_timeout_s", "startup_timeout_s")
WITHOUT_EFFECT = ("parallelType", "parallelLevel", "torchrun", "maxRetryTimeoutInSec", "clientTimeoutInMills",
                  "sequenceTimeoutMSec", "maxSequenceJobQueueSize", "useVenv")  # fmt: skip


def settle(yaml: Mapping[str, Any], devices: Collection[str] = ()) -> Settings:
    """What a model-config.yaml means; `devices` are the machine's. A wrong type is ignored, as TorchServe does."""
    content: dict[str, Any] = {}
    ignored = [f"{key} has no effect" for key in WITHOUT_EFFECT if key in yaml]
    for key, (ours, least, divisor) in SERVER_KEYS.items():
        value = yaml.get(key)
        if isinstance(value, int) and not isinstance(value, bool) and value >= least:
            content[ours] = value / divisor if ours.endswith(("_s", "_ms")) else value
        elif key in yaml and not (key == "sequenceMaxIdleMSec" and value == 0):
            ignored.append(f"{key} = {value!r:.40} is not a whole number of at least {least:g}")
    fixed: dict[str, Any] = {key: content.pop(key, YAML_TIMEOUT_S) for key in FIXED}
    fewest, most = yaml.get("minWorkers"), yaml.get("maxWorkers")
    if type(fewest) is int and type(most) is int and 0 < fewest <= most:
        fixed["workers"] = {"min": fewest, "max": most}
    elif {"minWorkers", "maxWorkers"} & yaml.keys():
        ignored.append("minWorkers and maxWorkers count together, as whole numbers with 0 < minWorkers <= maxWorkers")
    if type(yaml.get("useJobTicket")) is bool:
        content["job_tickets"] = yaml["useJobTicket"]
    elif "useJobTicket" in yaml:
        ignored.append(f"useJobTicket = {yaml['useJobTicket']!r:.40} is neither true nor false")
    device, wrong = _device(yaml, devices)
    if device is not None:
        content["device"] = device
    return Settings(content, fixed, dict(yaml), (*ignored, *wrong))


def _device(yaml: Mapping[str, Any], devices: Collection[str]) -> tuple[str | list[str] | None, list[str]]:
    """The key `device`, None where the yaml says nothing; and what was ignored."""
    kind, ids = yaml.get("deviceType"), yaml.get("deviceIds")
    if kind == "cpu":
        return "cpu", []
    wrong = [] if kind in (None, "gpu") else [f"deviceType = {kind!r:.40} is neither cpu nor gpu"]
    if ids is None:
        return None, wrong
    if isinstance(ids, list) and ids and all(type(one) is int for one in ids):
        names = [f"cuda:{one}" for one in dict.fromkeys(ids)]
        if all(name in devices for name in names):
            return names, wrong
    return None, [*wrong, f"deviceIds = {ids!r:.40} are not all GPUs of this machine"]
