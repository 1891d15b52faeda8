"""A deployment of an application in the worker: the host whose methods are those of the user's instance.

Two kinds of call come. One of a handle has the method "handle/NAME" and pickled arguments of the same application
(handle_calls.py); the ingress lets no client's call through that does not begin with "/". One of a client has its rpc's
full name: its request is decoded by the schema (`add_XServicer_to_server` functions, or Ray's own Predict), and the
method is the last part (client_calls.py).
What must not live here: what an application is made of (application.py), how the instance is run (instance.py), how a
call is answered, the caller's end (links.py).
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable
from typing import Any

from actorserve.actors.messages import Cardinality
from actorserve.actors.wire import Data
from actorserve.handlers.base import Context
from actorserve.handlers.rpc.application import definition_of, described
from actorserve.handlers.rpc.client_calls import rpc_method
from actorserve.handlers.rpc.deployment_calls import Replica
from actorserve.handlers.rpc.deployment_schema import (
    driver_schema,
    functions_schema,
    handlers_of_driver,
    is_driver,
    is_servicer_driver,
    rpcs_of,
    services_of,
)
from actorserve.handlers.rpc.engine import Engine
from actorserve.handlers.rpc.handle_calls import Methods
from actorserve.handlers.rpc.host import RpcHost
from actorserve.handlers.rpc.instance import Instance, resolved
from actorserve.handlers.rpc.links import EngineLink
from actorserve.handlers.rpc.methods import Method, cardinality
from actorserve.serve.context import PROCESS, ReplicaContext, enter_worker
from actorserve.serve.drivers import PREDICT
from actorserve.serve.multiplexing import MULTIPLEX_MARK


class DeploymentHost(RpcHost):
    """See the module's docstring. Options: application, deployment, blob + digest or import_path + args, legacy,
    user_config, functions.
    """

    def __init__(self) -> None:
        super().__init__()
        enter_worker()
        self._replica: Replica

    def schema(self, context: Context) -> dict[str, Any]:
        """What a probe answers: the application as data, the schema of its functions, those of its drivers, and the
        services of which each deployment has a method.
        """
        options = context.options
        data = described(options)
        give = definition_of(options)
        functions = tuple(options.get("functions") or ())
        paths = [*rpcs_of(functions), PREDICT]
        drivers: dict[str, Any] = {}
        answers: dict[str, list[str]] = {}
        for name in [one["name"] for one in data["deployments"]] if data else options["deployments"]:
            target = give(name)[0]
            if is_driver(target):
                drivers[name] = driver_schema(target)
            answers[name] = services_of(target, paths)
        return {"application": data, "drivers": drivers, "answers": answers, **functions_schema(functions)}

    async def build(self, context: Context) -> None:
        """Make the user's instance, and a method of each rpc that it can answer; a function answers them all."""
        options = context.options
        target, args, kwargs = definition_of(options)(options["deployment"])
        application, legacy = options["application"], bool(options.get("legacy"))
        instance = Instance(target, self._submit)
        await instance.build(
            tuple(resolved(one, application, legacy=legacy) for one in args),
            {key: resolved(one, application, legacy=legacy) for key, one in kwargs.items()},
        )
        self._replica = Replica(application, options["deployment"], instance)
        tag = f"{application}#{options['deployment']}#{os.getpid()}"
        PROCESS.replica = ReplicaContext(application, options["deployment"], tag, instance.object, context.device)
        if options.get("user_config") is not None:
            await instance.reconfigure(options["user_config"])
        self.abilities["multiplexes"] = multiplexes(target)
        self.abilities["checks_health"] = callable(getattr(instance.object, "check_health", None))
        rpcs = methods_of(self._replica, target, tuple(options.get("functions") or ()))
        self.methods = Methods(self._replica, rpcs)

    def _submit(self, run: Callable[[], None]) -> None:
        if self.engine is None:  # while it loads there is no pool
            run()
        else:
            self.engine.pool.submit(run)

    async def _serve(self, send: Callable[[Data], None]) -> None:
        engine = self.engine = Engine(self, send, threads=self._threads)
        PROCESS.link = self._replica.link = EngineLink(engine)
        await engine.run()
        await self.shut()

    async def control(self, content: dict[str, Any]) -> dict[str, Any]:
        """Reconfigure in place, or say how healthy the instance is. What user code raises is the answer's error."""
        match content.get("do"):
            case "reconfigure":
                await self._replica.instance.reconfigure(content.get("user_config"))
                return {}
            case "health":
                await self._replica.instance.check_health()
                return {}
        return await super().control(content)

    async def shut(self) -> None:
        """Let the instance go: its `__del__`, which may be `async`, is called as Ray calls it."""
        delete = getattr(self._replica.instance.object, "__del__", None)
        if inspect.iscoroutinefunction(delete):
            await delete()


def multiplexes(target: Any) -> bool:
    """Whether a deployment has a function that `serve.multiplexed` made, or is one."""
    kinds = target.__mro__ if inspect.isclass(target) else ()
    return any(
        hasattr(one, MULTIPLEX_MARK) for one in (target, *(value for kind in kinds for value in vars(kind).values()))
    )


def methods_of(replica: Replica, target: Any, functions: tuple[str, ...]) -> dict[str, Method]:
    """A method of each rpc that the instance can answer, by full name."""
    instance = replica.instance
    if is_servicer_driver(target):
        from actorserve.handlers.rpc.servicer import methods_of_grpcio  # noqa: PLC0415  # only for drivers

        return methods_of_grpcio(handlers_of_driver(target, instance.object))
    found: dict[str, Method] = {}
    for path, handler in rpcs_of(functions).items():
        method = instance.method(path.rpartition("/")[2] if inspect.isclass(target) else "__call__")
        if method is not None:
            found[path] = rpc_method(replica, path, method, cardinality(handler), handler.request_deserializer)
    if PREDICT not in found and (method := instance.method("Predict")) is not None:
        found[PREDICT] = _predict(replica, method, prediction=is_driver(target))
    return found


def _predict(replica: Replica, method: Callable[..., Any], *, prediction: bool) -> Method:
    from actorserve.proto.ray_serve_pb2 import PredictRequest  # noqa: PLC0415  # only where it is called

    decode = PredictRequest.FromString
    return rpc_method(replica, PREDICT, method, Cardinality.UNARY_UNARY, decode, prediction=prediction)
