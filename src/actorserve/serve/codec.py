"""What crosses between a handle and a replica: arguments, results and exceptions, pickled at the ends alone.

Both ends belong to one application (contracts: only the socket of `serve.run` and workers carry these bytes); the
server hands them on unread. What must not live here: where they go.
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping, Sequence
from typing import Any

VALUE = b"\0"
RAISED = b"\1"
PLAIN = (bytes, str, int, float, bool, type(None))


def dumps(value: Any) -> bytes:
    """Pickle anything that a user may pass, classes of a script's own included."""
    if type(value) in PLAIN:
        return pickle.dumps(value, protocol=5)
    import cloudpickle  # noqa: PLC0415  # of the extra [serve]; importing this module needs it not

    return bytes(cloudpickle.dumps(value, protocol=5))


def packed_arguments(args: Sequence[Any], kwargs: Mapping[str, Any]) -> bytes:
    """The arguments of one call."""
    return dumps((tuple(args), dict(kwargs)))


def read_arguments(data: bytes) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """In a replica: the arguments of a call."""
    args, kwargs = pickle.loads(data)  # noqa: S301  # of a handle of the same application
    return args, kwargs


def packed_result(value: Any) -> bytes:
    """One item of an answer."""
    return VALUE + dumps(value)


def packed_error(error: BaseException) -> bytes:
    """The last item of an answer that failed: the exception itself, or its type and text if it cannot travel."""
    try:
        data = dumps(error)
        pickle.loads(data)  # noqa: S301  # what was pickled above: many exceptions cannot be unpickled
    except Exception:  # noqa: BLE001  # whatever a user's class raises
        data = dumps(RuntimeError(f"{type(error).__name__}: {error}"))
    return RAISED + data


def read_result(data: bytes) -> Any:
    """At a handle: one item of an answer. Raises what the replica raised."""
    value = pickle.loads(memoryview(data)[1:])  # noqa: S301  # of a replica of the same application
    if data[:1] == RAISED:
        raise value
    return value
