"""The supervisor's tree as text, for the log: a line for each model, a line for each replica. Pure.

    2 models, 3 workers READY
    minilm/1.0  READY  default  waiting 3 of 100
      #0  READY       cpu  pid 4242  incarnation 1  in hand 4
      #1  RESTARTING  cpu  no pid    incarnation 3  in hand 0  restarts 2  failures in a row 1  last exit: Crashed: ...

What must not live here: JSON for callers (services/describe.py), the screen at the start (screen.py).
"""

from __future__ import annotations

from collections.abc import Iterator

from actorserve.actors.messages import ModelView, ReplicaView, State, Tree
from actorserve.actors.supervision import cause_of


def render(tree: Tree) -> str:
    """The whole tree; models that were unregistered and still drain come last."""
    replicas = [replica for model in (*tree.models, *tree.leaving) for replica in model.replicas]
    ready = sum(replica.state is State.READY for replica in replicas)
    lines = [f"{_count(len(tree.models), 'model')}, {_count(ready, 'worker')} READY"]
    for model in tree.models:
        lines += _model(model)
    for model in tree.leaving:
        lines += _model(model, "unregistered")
    return "\n".join(lines)


def last_exit(replica: ReplicaView) -> str:
    """How its last incarnation ended, in words; empty where none has."""
    exit = replica.last_exit
    if exit is None:
        return ""
    return f"{type(exit).__name__}: {one_line(cause_of(exit))}"


def one_line(text: str) -> str:
    """A text without line breaks."""
    return " ".join(text.split())


def _model(model: ModelView, note: str = "") -> Iterator[str]:
    note = note or ("default" if model.is_default else "")
    words = (model.spec.key, model.state.value, note, f"waiting {model.waiting} of {model.spec.queue_size}")
    rollout = f"rollout: {one_line(model.rollout)}" if model.rollout else ""
    yield "  ".join(word for word in (*words, rollout) if word)
    rows = [_replica(replica) for replica in model.replicas]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        yield ("  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))).rstrip()


def _replica(replica: ReplicaView) -> tuple[str, ...]:
    counts = {
        "in hand": replica.in_hand,
        "restarts": replica.restarts,
        "replaced": replica.replaced,
        "failures in a row": replica.failures_in_a_row,
    }
    said = [f"{name} {count}" for name, count in counts.items() if count or name == "in hand"]
    if exit := last_exit(replica):
        said.append(f"last exit: {exit}")
    if replica.reason and replica.reason not in exit:
        said.append(f"reason: {one_line(replica.reason)}")
    pid = "no pid" if replica.pid is None else f"pid {replica.pid}"
    head = (f"#{replica.index}", replica.state.value, replica.device, pid, f"incarnation {replica.incarnation}")
    return (*head, "  ".join(said))


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"
