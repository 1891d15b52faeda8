"""A probe: a worker that imports a model's code, says what it is, and ends. It loads nothing and has no GPU.

So the server learns a schema, or a graph, without a running worker and without importing anybody's code.
What must not live here: what the answer means.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import trio

from actorserve.actors import wire
from actorserve.actors.loading import load_content
from actorserve.actors.messages import ChildSpec, ModelSpec, Placement
from actorserve.actors.model_actor import ActorSettings
from actorserve.actors.wire import Kind
from actorserve.actors.worker_process import LineLimit, OutputPump, Worker
from actorserve.errors import LoadFailed

LIMIT_S = 60.0
MOST_BYTES = 4 << 20


async def probe(spec: ModelSpec, settings: ActorSettings, *, limit_s: float = LIMIT_S) -> dict[str, Any]:
    """What the handler of `spec` says of itself. LoadFailed: it cannot be imported, or not within `limit_s`.

    Cancelling kills the probe.
    """
    child = ChildSpec(replace(spec, devices=("cpu",)), 0, Placement())
    await settings.spawner.prepare(child)
    answer: dict[str, Any] | str = f"its code did not say what it is within {limit_s:g} s"
    with trio.move_on_after(limit_s):
        try:
            worker = await settings.spawner.spawn(child)
        except Exception as error:  # noqa: BLE001  # whatever a spawner raises
            raise LoadFailed(f"{spec.name}: no process could be started: {error}", permanent=False) from None
        try:
            answer = await _asked(worker, child, settings)
        finally:
            with trio.CancelScope(shield=True):
                await trio.aclose_forcefully(worker)
                worker.process.kill()
                await worker.process.wait()
    if isinstance(answer, str):
        raise LoadFailed(f"{spec.name}: {answer}")
    return answer


async def _asked(worker: Worker, child: ChildSpec, settings: ActorSettings) -> dict[str, Any] | str:
    """The answer, or why there is none."""
    said: list[str] = []
    ended = trio.Event()
    answer: dict[str, Any] | str = ""
    async with trio.open_nursery() as nursery:
        for _, descriptor in worker.process.outputs():
            nursery.start_soon(OutputPump(descriptor, said.append, LineLimit()).run, ended.wait)
        nursery.start_soon(worker.run_writer)
        content = load_content(child, settings.path, settings.cache_dir)
        worker.write(wire.note(Kind.LOAD, content | {"probe": True}))
        try:
            answer = await _heard(worker)
        except wire.WireError as error:
            answer = f"its process broke the protocol: {error}"
        finally:
            ended.set()
            nursery.cancel_scope.cancel()
    if not answer:
        answer = "the process that imports its code died" + (f"; it said: {said[-1]}" if said else "")
    return answer


async def _heard(worker: Worker) -> dict[str, Any] | str:
    while frames := await worker.receive():
        for frame in frames:
            if frame.kind == Kind.SCHEMA:
                if len(frame.payload) > MOST_BYTES:
                    return f"its schema is larger than {MOST_BYTES} bytes"
                return wire.read_note(frame.payload)
            if frame.kind == Kind.FAILED:
                return str(wire.read_note(frame.payload).get("reason"))
    return ""
