"""Which rpcs a deployment may answer: those of `add_XServicer_to_server` functions, a driver's own, Ray's Predict.

What lives here: rpcs by full name, and schemas of them, found without an instance. What must not: answering them
(client_calls.py), how a schema is written as data (schema.py).
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator
from typing import Any

from actorserve.actors.messages import Cardinality
from actorserve.handlers.rpc.instance import name_of
from actorserve.handlers.rpc.schema import schema_of
from actorserve.serve.drivers import PREDICT, gRPCIngress


def rpcs_of(functions: tuple[str, ...]) -> dict[str, Any]:
    """The rpcs of `add_XServicer_to_server` functions by full name, as grpcio's handlers. Loads grpc."""
    from actorserve.handlers.rpc.servicer import Nobody, handlers_of, named  # noqa: PLC0415  # only where there are any

    if not functions:
        return {}
    adders = [named(_with_colon(one), "functions") for one in functions]
    return handlers_of(adders, Nobody(), f"functions {functions!r}")


def _with_colon(target: str) -> str:
    """Ray writes "module.function"."""
    if ":" in target:
        return target
    module, _, name = target.rpartition(".")
    return f"{module}:{name}"


def services_of(target: Any, paths: Iterable[str]) -> list[str]:
    """The services, of those that rpcs by full name belong to, that a deployment has a method of."""
    return sorted({path.split("/")[1] for path in paths if might_answer(target, path.rpartition("/")[2])})


def might_answer(target: Any, method: str) -> bool:
    """Whether an instance may have a method (Instance.method), which `__getattr__` hides before there is one."""
    if not inspect.isclass(target):
        return method == "__call__"
    if method.startswith("_") and method != "__call__":
        return False
    return any(name in vars(kind) for kind in target.__mro__ for name in (method, "__getattr__"))


# --- drivers --------------------------------------------------------------------------------------


def is_driver(target: Any) -> bool:
    """Whether a deployment is a driver of Ray 2.1."""
    return inspect.isclass(target) and issubclass(target, gRPCIngress)


def is_servicer_driver(target: Any) -> bool:
    """Whether a deployment is a driver with a schema of its own: its class is a grpcio servicer as well."""
    return is_driver(target) and any(_adders(target))


def _adders(target: type) -> Iterator[Any]:
    from actorserve.handlers.rpc.servicer import adders_of  # noqa: PLC0415  # only for drivers

    return adders_of(target)


def handlers_of_driver(target: type, made: Any) -> dict[str, Any]:
    """The rpcs of a servicer driver by full name, as grpcio's handlers. `made`: who answers."""
    from actorserve.handlers.rpc.servicer import handlers_of  # noqa: PLC0415  # only for drivers

    return handlers_of(_adders(target), made, name_of(target))


# --- schemas --------------------------------------------------------------------------------------


def functions_schema(functions: tuple[str, ...]) -> dict[str, Any]:
    """The schema of functions, as servicing's."""
    from actorserve.handlers.rpc.servicer import schema_of_grpcio  # noqa: PLC0415  # only where there are any

    return schema_of_grpcio(rpcs_of(functions))


def driver_schema(target: type) -> dict[str, Any]:
    """The schema of a driver: its servicer's, or Ray's own."""
    from actorserve.handlers.rpc.servicer import Nobody, schema_of_grpcio  # noqa: PLC0415  # only for drivers

    if is_servicer_driver(target):
        return schema_of_grpcio(handlers_of_driver(target, Nobody()))
    from actorserve.proto.ray_serve_pb2 import PredictRequest  # noqa: PLC0415  # only here

    return schema_of({PREDICT: Cardinality.UNARY_UNARY}, [PredictRequest])
