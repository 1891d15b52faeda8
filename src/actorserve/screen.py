"""What a person sees on the terminal: progress while models load, then one screen. Pure text.

What must not live here: the log (log.py), when to print (__main__.py).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from actorserve import __version__
from actorserve.actors.messages import ModelView, State, Tree
from actorserve.listening import Bound

EXAMPLES = {
    "actorserve.handlers.digits:Digits": "recognise_digit.py",
    "actorserve.handlers.image_classification:ImageClassification": "classify_photo.py",
    "actorserve.handlers.text_embedding:TextEmbedding": "embed_sentences.py",
    "actorserve.handlers.text_generation:TextGeneration": "stream_story.py",
}
MANAGEMENT = "org.pytorch.serve.grpc.management.ManagementAPIsService"
PREDICTIONS = "org.pytorch.serve.grpc.inference.InferenceAPIsService/Predictions"


def listening(bound: Iterable[Bound]) -> str:
    """The first line: where calls are taken, before any model is ready."""
    places = "; ".join(f"{', '.join(one.services)} on {', '.join(one.addresses)}" for one in bound)
    return f"actorserve {__version__}: {places}"


def progress(tree: Tree, seconds: float) -> str:
    """One line: how far the models are."""
    ready = [model for model in tree.models if model.state is State.READY]
    waiting = [called(model, tree) for model in tree.models if model.state in (State.LOADING, State.RESTARTING)]
    done = f"{len(ready)} of {len(tree.models)} models ready"
    return f"  {done} after {seconds:.1f} s" + (f", loading {', '.join(waiting)}" if waiting else "")


def screen(bound: Sequence[Bound], tree: Tree, folder: Path) -> str:
    """Listeners, models, devices, workers, and a command to try."""
    lines = ["", f"actorserve {__version__} {_summary(tree)}", ""]
    lines += _table(
        ("listener", "address", "services"),
        [(one.name, " ".join(one.addresses), " ".join(one.services)) for one in bound],
    )
    lines.append("")
    head = ("model", "version", "state", "workers", "device", "batch", "handler")
    lines += _table(head, [_row(model, tree) for model in tree.models])
    for model in tree.models:
        lines += [f"  {called(model, tree)}: {reason}" for reason in failures(model)]
    lines += ["", *hint(bound, tree, folder), "", "Ctrl-C drains and stops; a second one kills.", ""]
    return "\n".join(lines)


def _has_others(model: ModelView, tree: Tree) -> bool:
    """Whether there are further versions of it."""
    return sum(one.spec.name == model.spec.name for one in tree.models) > 1


def called(model: ModelView, tree: Tree) -> str:
    """A model as a person tells it from the others: by its name, with its version where there are several."""
    return model.spec.key if _has_others(model, tree) else model.spec.name


def _summary(tree: Tree) -> str:
    failed = [model for model in tree.models if model.state is State.FAILED]
    if not failed:
        return "is ready"
    return f"serves {len(tree.models) - len(failed)} of {len(tree.models)} models; {len(failed)} FAILED, see below"


def one_line(text: str) -> str:
    """A reason as a person reads it: without line breaks."""
    return " ".join(text.split())


def failures(model: ModelView) -> list[str]:
    """Why workers of a model have failed."""
    return sorted({one_line(replica.reason) for replica in model.replicas if replica.state is State.FAILED})


def _row(model: ModelView, tree: Tree) -> tuple[str, ...]:
    spec = model.spec
    ready = sum(replica.state is State.READY for replica in model.replicas)
    devices = ",".join(sorted({replica.device for replica in model.replicas})) or "-"
    workers = f"{ready}/{spec.workers_min}"
    version = f"{spec.version} (default)" if model.is_default and _has_others(model, tree) else spec.version
    return spec.name, version, model.state.value, workers, devices, str(spec.batch_size), spec.handler


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> list[str]:
    table = [head, *rows]
    widths = [max(len(row[column]) for row in table) for column in range(len(head))]
    return [
        "  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in table
    ]


def hint(bound: Sequence[Bound], tree: Tree, folder: Path) -> list[str]:
    """A command to try."""
    addresses = [one.addresses[0] for one in bound if "inference" in one.services]
    users = [one.addresses[0] for one in bound if {"servicers", "reflection"} <= {*one.services}]
    managed = [one.addresses[0] for one in bound if "management" in one.services]
    ready = [model for model in tree.models if model.state is State.READY]
    if users and any(model.spec.has_own_schema for model in ready):
        return ["Try, in another terminal:", f"  grpcurl -plaintext {users[0]} list"]
    ready = [model for model in ready if not model.spec.has_own_schema]
    if not ready and managed:
        what = "ScaleWorker to start workers of a model, or " if tree.models else ""
        return [f"Call {MANAGEMENT} on {managed[0]}: {what}RegisterModel to bring one."]
    called = [one.addresses[0] for one in bound if {"servicers", "predict"} & {*one.services}]
    if called and any(model.spec.has_own_schema for model in tree.models):
        return [f"Your own services answer on {', '.join(called)}."]
    if not addresses or not ready:
        return ["Nothing can be called yet: docs/configuration.md says how to add listeners and models."]
    for model in ready:
        example = folder / "examples" / EXAMPLES.get(model.spec.handler, "-")
        if example.is_file():
            return ["Try, in another terminal:", f"  {sys.executable} {os.path.relpath(example)} {addresses[0]}"]
    model = next((model for model in ready if model.is_default), ready[0])
    version = "" if model.is_default else f' and model_version = "{model.spec.version}"'
    return [f'Call {PREDICTIONS} on {addresses[0]} with model_name = "{model.spec.name}"{version}.']
