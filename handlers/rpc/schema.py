"""What a probe answers: the methods of services, and the files that describe them, as data.

    {"methods": {"/pkg.Service/Method": 0..3}, "files": [base64 of a FileDescriptorProto, each behind its imports],
     "services": ["pkg.Service"]}

What must not live here: who answers the methods.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping
from typing import Any

from actorserve.actors.messages import Cardinality


def schema_of(methods: Mapping[str, Cardinality], messages: Iterable[Any]) -> dict[str, Any]:
    """The schema of methods by full name (`/package.Service/Method`).

    `messages`: classes of messages that the methods take and give, in whose pools the services are looked for; a
    service that is in none has no files.
    """
    services = list(dict.fromkeys(path.split("/")[1] for path in methods))
    files: dict[str, bytes] = {}
    pools = list({id(pool): pool for pool in map(_pool_of, messages) if pool is not None}.values())
    for name in services:
        found = next((file for pool in pools if (file := _file_with(pool, name)) is not None), None)
        if found is not None:
            _add_with_imports(found, files)
    return {
        "services": services,
        "methods": {path: int(cardinality) for path, cardinality in methods.items()},
        "files": [base64.b64encode(data).decode() for data in files.values()],
    }


def _pool_of(message: Any) -> Any:
    descriptor = getattr(message, "DESCRIPTOR", None)
    return None if descriptor is None else descriptor.file.pool


def _file_with(pool: Any, service: str) -> Any:
    try:
        return pool.FindServiceByName(service).file
    except KeyError:
        return None


def _add_with_imports(file: Any, files: dict[str, bytes]) -> None:
    if file.name not in files:
        for other in file.dependencies:
            _add_with_imports(other, files)
        files[file.name] = file.serialized_pb
