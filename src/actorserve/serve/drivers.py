"""The drivers of Ray Serve 2.1: a deployment that answers gRPC by itself, on a port of its own.

    my_app = DefaultgRPCDriver.bind(dag, port=9000)      # ray.serve.PredictAPIsService
    class MyDriver(x_pb2_grpc.XServicer, gRPCIngress)    # a service of your own, with is_driver_deployment=True

What lives here: what such a deployment is. What must not: the port is the server's; it opens 127.0.0.1:PORT while the
application runs, so a driver runs one replica like any other deployment, and user code never listens.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from actorserve.serve.config import check_whole
from actorserve.serve.definition import deployment

__all__ = ["DEFAULT_PORT", "DefaultgRPCDriver", "gRPCIngress"]

DEFAULT_PORT = 9000
PREDICT = "/ray.serve.PredictAPIsService/Predict"


class gRPCIngress:  # noqa: N801  # Ray's name
    """Base of a driver with a schema of its own: the class before it in the bases is a grpcio servicer."""

    def __init__(self, port: int = DEFAULT_PORT) -> None:
        check_whole("port", port, least=0, most=65535)

    @classmethod
    def grpc_port_of(cls, args: Sequence[Any], kwargs: Mapping[str, Any]) -> int:
        """The port that a driver asks for, by what its constructor is bound with."""
        signature = inspect.signature(cls)
        bound = signature.bind_partial(*args, **kwargs)
        bound.apply_defaults()
        port = bound.arguments.get("port", DEFAULT_PORT)
        check_whole("port", port, least=0, most=65535)
        return int(port)


class _DefaultgRPCDriver(gRPCIngress):
    """Answers `Predict` with what its graph gives for the request's inputs."""

    def __init__(self, dag: Any, port: int = DEFAULT_PORT) -> None:
        super().__init__(port)
        self.dag = dag

    async def Predict(self, inputs: dict[str, bytes]) -> bytes:  # noqa: N802  # the rpc's name
        """Give the graph's answer, which must be bytes."""
        answer = await (await self.dag.remote(inputs))
        if not isinstance(answer, bytes | bytearray | memoryview):
            raise TypeError(f"the graph must give bytes for a prediction; it gave {type(answer).__name__}")
        return bytes(answer)


DefaultgRPCDriver = deployment(name="DefaultgRPCDriver", is_driver_deployment=True)(_DefaultgRPCDriver)
