"""Two answers, field by field. Pure: nothing is sent, read or written here.

An answer is flattened to paths (`text.0` is the first line of the text, `msg.0.workers.0.pid` a field of a JSON body,
`.keys` an object's keys in their order, `.layout` whether the body is printed as TorchServe prints one). What no two
runs have in common (times, pids, memory, ids, worker numbers) is replaced by its kind once it has the kind's form.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

ABSENT = "(absent)"
IDENTITY = re.compile(r"\b[0-9a-f]{8}-?[0-9a-f]{4}-?[0-9a-f]{4}-?[0-9a-f]{4}-?[0-9a-f]{12}\b")
ADDRESS = re.compile(r"at 0x[0-9a-f]+")
KINDS = {  # the last part of a path of a JSON body -> the form of the value, and the word that replaces it
    "pid": (re.compile(r"[1-9]\d*"), "(pid)"),
    "memoryUsage": (re.compile(r"\d+"), "(memory)"),
    "startTime": (re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z"), "(time)"),
    "id": (re.compile(r"9\d{3}"), "(worker)"),
}


@dataclass(frozen=True)
class Found:
    """One field in which two answers differ."""

    case: str
    field: str
    theirs: Any
    ours: Any


def flatten(answer: Any) -> dict[str, Any]:
    """An answer's fields, normalised, in their order."""
    return dict(_fields(answer, ""))


def _fields(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    """Walk an answer; texts are split into lines, JSON bodies are opened."""
    dot = f"{path}." if path else ""
    if isinstance(value, dict):
        if path:
            yield f"{dot}keys", ",".join(value)
        for key, one in value.items():
            yield from _fields(one, dot + key)
    elif isinstance(value, list):
        yield f"{dot}length", len(value)
        for number, one in enumerate(value):
            yield from _fields(one, f"{dot}{number}")
    elif path in {"msg", "health"} and (body := _json(value)) is not None:
        yield f"{dot}layout", "TorchServe's" if json.dumps(body, indent=2, ensure_ascii=False) == value else value
        yield from _fields(body, path)
    elif path == "text":
        for number, line in enumerate(value.split("\n")):
            yield f"text.{number}", normal("", line)
    else:
        yield path, normal(path.rpartition(".")[2], value)


def _json(text: str) -> Any:
    """A body that is an object or a list, or None."""
    try:
        return json.loads(text) if text.startswith(("{", "[")) else None
    except ValueError:
        return None


def normal(key: str, value: Any) -> Any:
    """A value with what no two runs have in common replaced by its kind."""
    if key in KINDS:
        form, word = KINDS[key]
        return word if form.fullmatch(str(value)) else value
    if isinstance(value, str):
        return ADDRESS.sub("at (address)", IDENTITY.sub("(id)", value))
    return value


def differ(case: str, theirs: list[dict[str, Any]], ours: dict[str, Any]) -> list[Found]:
    """Fields of `ours` that are in none of the takes of `theirs`. What one side has nothing of is one field."""
    mine = flatten(ours)
    takes = [flatten(take) for take in theirs]
    if any(_same(take, mine) for take in takes):
        return []
    whole = dict.fromkeys(key for take in [*theirs, ours] for key in take)
    lost = [key for key in whole if all((key in take) != (key in ours) for take in theirs)]
    found = [Found(case, key, theirs[0].get(key, ABSENT), ours.get(key, ABSENT)) for key in lost]
    return found + [
        Found(case, name, takes[0].get(name, ABSENT), mine.get(name, ABSENT))
        for name in dict.fromkeys([*takes[0], *mine])
        if name.split(".")[0] not in lost
        and all(not _equal(take.get(name, ABSENT), mine.get(name, ABSENT)) for take in takes)
    ]


def _same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return one.keys() == other.keys() and all(_equal(one[name], other[name]) for name in one)


def _equal(one: Any, other: Any) -> bool:
    """Equal, and of one type: true is not 1, 7 is not 7.0."""
    return type(one) is type(other) and one == other


def unstable(first: dict[str, Any], second: dict[str, Any]) -> list[str]:
    """Fields in which two takes of one server differ."""
    return [one.field for one in differ("", [first], second)]
