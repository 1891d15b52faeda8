"""Reading a request's fields: the words of every BadInput that is not about pictures or tokens.

The convention: a model's main input is the key `data`, or `body` where `data` is absent; whatever tunes the
answer has a key of its own and travels as text ("0.7", "64").
What must not live here: torch, PIL, or anything that knows one model. The contract is handlers/base.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

from actorserve.errors import BadInput, LoadFailed
from actorserve.handlers.base import Request

__all__ = ["check_options", "floating", "integer", "main_input", "read_each", "text"]

T = TypeVar("T")

_MAIN = ("data", "body")


def main_input(request: Request) -> bytes:
    """The bytes under `data`, else under `body`."""
    inputs = request.inputs
    for key in _MAIN:
        if key in inputs:
            return inputs[key]
    raise BadInput("data", f"missing: send the input under the key 'data' (or 'body'); {_seen(inputs)}")


def text(value: bytes, field: str = "data") -> str:
    """`value` as UTF-8 text with something in it."""
    try:
        decoded = value.decode()
    except UnicodeDecodeError as error:
        raise BadInput(field, f"not UTF-8 text: byte {error.start} cannot be decoded ({error.reason})") from None
    if not decoded.strip():
        raise BadInput(field, "empty: send some text")
    return decoded


def integer(request: Request, key: str, default: int, low: int, high: int) -> int:
    """The whole number under `key`, or `default` where the key is absent."""
    raw = request.inputs.get(key)
    if raw is None:
        return default
    try:
        value = int(raw.decode("ascii"))
    except ValueError:
        raise BadInput(key, f"{_shown(raw)} is not a whole number; send {low} to {high} as text") from None
    if not low <= value <= high:
        raise BadInput(key, f"{value} is out of range: {low} to {high}")
    return value


def floating(request: Request, key: str, default: float, low: float, high: float) -> float:
    """The number under `key`, or `default` where the key is absent."""
    raw = request.inputs.get(key)
    if raw is None:
        return default
    try:
        value = float(raw.decode("ascii"))
    except ValueError:
        raise BadInput(key, f"{_shown(raw)} is not a number; send {low} to {high} as text") from None
    if math.isnan(value) or not low <= value <= high:
        raise BadInput(key, f"{value} is out of range: {low} to {high}")
    return value


def read_each(batch: Sequence[Request], read: Callable[[Request], T]) -> list[T | Exception]:
    """`read` each item; what it raises stands in that item's place, so that one bad item fails alone."""
    read_items: list[T | Exception] = []
    for request in batch:
        try:
            read_items.append(read(request))
        except Exception as error:  # noqa: BLE001 - whatever one item raises is that item's answer
            read_items.append(error)
    return read_items


def check_options(options: Mapping[str, Any], known: Iterable[str]) -> None:
    """Refuse a misspelt key of the config's `options` table instead of ignoring it."""
    accepted = sorted(known)
    unknown = sorted(set(options) - set(accepted))
    if unknown:
        takes = ", ".join(accepted) if accepted else "none"
        raise LoadFailed(f"options.{unknown[0]}: unknown option; this handler takes {takes}")


def _seen(inputs: Mapping[str, bytes]) -> str:
    return f"got {', '.join(repr(key[:40]) for key in sorted(inputs)[:8])}" if inputs else "got no input at all"


def _shown(raw: bytes) -> str:
    return repr(raw[:40].decode("ascii", "replace"))
