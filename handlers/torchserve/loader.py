"""A handler in TorchServe's style as a native one: the model's `handler` in the config is
`actorserve.handlers.torchserve.loader:TorchServeHandler`.

`options.torchserve` says which: `handler` (a file, `file:function`, or a built-in), `serialized_file`, `model_file`,
`manifest`, `model_yaml_config`, `batch_size`, `envelope` and `stream_buffer_bytes`. See docs/torchserve-handlers.md.
The worker works inside the model's folder, which is on its `sys.path` behind the folder of our `ts`.
What must not live here: the rules of loading (entry.py), rows and answers (rows.py), streams (runs.py, continuous.py),
sequences (stateful.py).
"""

from __future__ import annotations

import asyncio
import importlib
import inspect
import os
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from actorserve.errors import LoadFailed
from actorserve.handlers.base import Answer, Context, Request
from actorserve.handlers.torchserve.continuous import Continuous
from actorserve.handlers.torchserve.entry import SHIM, find_entry, wrapped
from actorserve.handlers.torchserve.rows import DESCRIBE, Row, calls_of, data_of, settle
from actorserve.handlers.torchserve.runs import Runs
from actorserve.handlers.torchserve.stateful import Stateful

BUFFER_BYTES = 64 << 20
CONTINUOUS, STATEFUL = "continuousBatching", "sequenceBatching"
KEYS = frozenset(
    (
        *("handler", "serialized_file", "model_file", "manifest", "model_yaml_config", "batch_size", "envelope"),
        *("stream_buffer_bytes", "limit_max_image_pixels"),
    )
)


class TorchServeHandler:
    """See the module's docstring."""

    def load(self, context: Context) -> None:
        """Find and initialise the handler. LoadFailed names what is wrong with the options or with its file."""
        options = _options(context.options)
        if threading.current_thread() is not threading.main_thread():
            raise LoadFailed("a handler in TorchServe's style needs a worker process: it changes the working folder")
        sys.path[:0] = [str(SHIM), str(context.model_dir)]
        os.chdir(context.model_dir)
        self._call_type: Any = importlib.import_module("ts.context")
        self._context = self._make_context(context, options)
        self._runs = Runs(
            self._context,
            self._make_call,
            self._handle,
            (int(options.get("batch_size", 1)), int(options.get("stream_buffer_bytes", BUFFER_BYTES))),
        )
        self._context.sink = self._runs.push
        entry = find_entry(str(options["handler"]), context.model_dir, self._context)
        self._entry = wrapped(entry, str(options.get("envelope", "")))
        self._become(options.get("model_yaml_config") or {})

    def _become(self, yaml: Mapping[str, Any]) -> None:
        """What the worker finds beside this class's methods, or in place of them: it asks once `load` has returned."""
        if yaml.get(STATEFUL):
            one = Stateful(self._context, lambda rows: self._run(rows)[0])
            vars(self).update(open=one.open, feed=one.feed, ended=one.ended, release=one.release)
        elif yaml.get(CONTINUOUS):
            many = Continuous(self._context, lambda rows: self._run(rows)[1], self._runs.limit)
            vars(self).update(infer=None, generate=None)
            vars(self).update(prefill=many.prefill, step=many.step, release=many.release)

    def infer(self, batch: Sequence[Request]) -> Sequence[Answer | Exception]:
        """One call of `handle`, and one for each row that is alone. What it sent on the way goes before each answer."""
        rows = [Row(request) for request in batch]
        for together in calls_of(rows):
            self._run(together)
        return [row.whole() for row in rows]

    def generate(self, request: Request) -> Iterator[Answer]:
        """Each part that `handle` sends, then what it returns. Streams that begin together share a call."""
        return self._runs.open(request)

    def describe(self) -> Answer:
        """What the handler answers to an empty row whose header `describe` is "True"."""
        row = Row(Request({}), {DESCRIBE: "True"})
        self._run([row])
        answer = row.whole()
        if isinstance(answer, Exception):
            raise answer
        return answer

    def _run(self, rows: list[Row]) -> tuple[Any, Any]:
        """One call of `handle`, which settles the rows; gives what belonged to the call, and what it returned."""
        call = self._runs.enter(rows)
        self._context.call = call
        try:
            return call, self._handle(rows, call)
        finally:
            self._runs.leave(call)

    def _handle(self, rows: list[Row], call: Any) -> Any:
        """Call the handler and settle its rows; gives what it returned or raised."""
        try:
            answers = self._entry([data_of(row) for row in rows], self._context)
            if inspect.isawaitable(answers):
                answers = asyncio.run(_wait_for(answers))
        except Exception as error:  # noqa: BLE001  # the handler's: it is its rows' ending
            answers = error
        settle(rows, call.request_processor, answers)
        return answers

    def _make_call(self, rows: Sequence[Row]) -> Any:
        processors = [self._call_type.RequestProcessor(row.headers) for row in rows]
        ids = {index: row.id for index, row in enumerate(rows)}
        metrics = self._context.metrics
        metrics.request_ids = ids
        return self._call_type.Call(ids, processors)

    def _make_context(self, context: Context, options: Mapping[str, Any]) -> Any:
        metrics = importlib.import_module("ts.metrics.metrics_store").MetricsStore({}, context.name)
        return self._call_type.Context(
            context.name,
            str(context.model_dir),
            _manifest(options, context),
            int(options.get("batch_size", 1)),
            _gpu_id(context.device),
            importlib.import_module("ts").__version__,
            limit_max_image_pixels=bool(options.get("limit_max_image_pixels", True)),
            metrics=metrics,
            model_yaml_config=dict(options.get("model_yaml_config") or {}),
        )


async def _wait_for(answers: Any) -> Any:
    return await answers


def _options(options: Mapping[str, Any]) -> Mapping[str, Any]:
    """The table `torchserve`, checked."""
    found = options.get("torchserve")
    if not isinstance(found, Mapping) or not found.get("handler"):
        raise LoadFailed(
            'options.torchserve.handler is missing: a file of the model\'s folder, for example "handler.py"'
        )
    unknown = sorted(set(found) - KEYS)
    if unknown:
        raise LoadFailed(f"options.torchserve.{unknown[0]}: unknown; keys are {', '.join(sorted(KEYS))}")
    for key, least in (("batch_size", 1), ("stream_buffer_bytes", 1)):
        value = found.get(key, least)
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise LoadFailed(f"options.torchserve.{key} is {value!r}; it must be a whole number of at least {least}")
    yaml = found.get("model_yaml_config") or {}
    if yaml.get(CONTINUOUS) and yaml.get(STATEFUL):
        raise LoadFailed(f"model-config.yaml: {CONTINUOUS} and {STATEFUL} are not served together: choose one")
    return found


def _manifest(options: Mapping[str, Any], context: Context) -> dict[str, Any]:
    """The manifest as given, completed by what the options name themselves."""
    manifest = dict(options.get("manifest") or {})
    model = dict(manifest.get("model") or {})
    named = {
        "modelName": context.name,
        "modelVersion": context.version,
        "handler": options["handler"],
        "serializedFile": options.get("serialized_file"),
        "modelFile": options.get("model_file"),
    }
    manifest["model"] = {key: value for key, value in named.items() if value} | model
    return manifest


def _gpu_id(device: str) -> int | None:
    kind, _, index = device.partition(":")
    return int(index or 0) if kind == "cuda" else None
