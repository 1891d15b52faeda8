"""A deployment of an application in the worker: the host whose methods are those of the user's instance.

Two kinds of call come. One of a handle has the method "handle/NAME" and pickled arguments of the same application; the
ingress lets no client's call through that does not begin with "/". One of a client has its rpc's full name: its request
is decoded by the schema (`add_XServicer_to_server` functions, or Ray's own Predict), and the method is the last part.
What must not live here: how the instance is run (instance.py), the caller's end (links.py).

Rules of a client's call, where Ray has any (facts: its recorded answers; docs/migrating-from-ray-serve.md)
1. A parameter named `grpc_context` gets a RayServegRPCContext. A code that it sets ends the call, also when the method
   returns; when it raises, the details are those that were set, else the exception's text. Trailers go in either case.
2. A method that raises without a code, or with OK, is INTERNAL with the exception's type and text; one of ours has its
   own code.
3. A request that does not decode is INVALID_ARGUMENT. A method that the application lacks is UNIMPLEMENTED.
"""

from __future__ import annotations

import asyncio
import hashlib
import importlib
import inspect
import os
import pickle
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from actorserve import errors
from actorserve.actors.messages import Cardinality, Ending, Pairs
from actorserve.errors import LoadFailed
from actorserve.handlers.base import Context
from actorserve.handlers.rpc.call import CallCancelled, RpcCall
from actorserve.handlers.rpc.engine import Engine
from actorserve.handlers.rpc.host import RpcHost
from actorserve.handlers.rpc.instance import Instance, name_of, resolved
from actorserve.handlers.rpc.links import EngineLink
from actorserve.handlers.rpc.methods import Method, cardinality
from actorserve.handlers.rpc.peers import auth_of, peer_of
from actorserve.handlers.rpc.schema import schema_of
from actorserve.handlers.rpc.source import digest_of, digest_of_arguments
from actorserve.serve.codec import packed_error, packed_result, read_arguments
from actorserve.serve.context import PROCESS, ReplicaContext, RequestContext, enter_worker, entered
from actorserve.serve.definition import Application
from actorserve.serve.drivers import PREDICT, gRPCIngress
from actorserve.serve.exceptions import (
    BackPressureError,
    DeploymentUnavailableError,
    OptionError,
    RequestCancelledError,
    gRPCStatusError,
)
from actorserve.serve.graph import Built, build
from actorserve.serve.grpc_util import RayServegRPCContext, gRPCInputStream, status_number
from actorserve.serve.multiplexing import MULTIPLEX_MARK

HANDLE = "handle/"
CANCELLED, INVALID_ARGUMENT, DEADLINE_EXCEEDED, RESOURCE_EXHAUSTED, INTERNAL, UNAVAILABLE = 1, 3, 4, 8, 13, 14
CODES: Mapping[type[BaseException], int] = {
    RequestCancelledError: CANCELLED,
    errors.BadInput: INVALID_ARGUMENT,
    errors.Expired: DEADLINE_EXCEEDED,
    errors.TooLarge: RESOURCE_EXHAUSTED,
    BackPressureError: RESOURCE_EXHAUSTED,
    DeploymentUnavailableError: UNAVAILABLE,
}
MOST_DETAILS = 4096
"""Characters of an exception's text that travel, as in Ray."""
TRUNCATED = "... [truncated]"
"""What stands at the end of one that was longer; Ray's."""
_END = object()
"""Behind the last message of a client that streams."""


# --- what it is made of ---------------------------------------------------------------------------


def parts_of(import_path: str) -> tuple[str, str]:
    """The module and the name in it, of "module:name" or Ray's "module.name"."""
    module, colon, name = import_path.partition(":")
    if not colon:
        module, _, name = import_path.rpartition(".")
    return module, name


def import_application(import_path: str, args: Mapping[str, Any]) -> Application:
    """The bound deployment that "module:name" (or Ray's "module.name") names, or that a function of it gives."""
    module_name, name = parts_of(import_path)
    try:
        found: Any = importlib.import_module(module_name)
        for part in name.split("."):
            found = getattr(found, part)
    except ModuleNotFoundError as error:
        if error.name is not None and (module_name == error.name or module_name.startswith(f"{error.name}.")):
            raise LoadFailed(f"import_path {import_path!r}: there is no module {error.name}") from None
        raise
    except AttributeError as error:
        raise LoadFailed(f"import_path {import_path!r}: {error}") from None
    if inspect.isfunction(found):
        found = found(dict(args)) if inspect.signature(found).parameters else found()
    if not isinstance(found, Application):
        raise LoadFailed(
            f"import_path {import_path!r} is no application: expected what a deployment's .bind(...) gives"
        )
    return found


def definition_of(options: Mapping[str, Any]) -> Callable[[str], tuple[Any, tuple[Any, ...], dict[str, Any]]]:
    """What gives (target, args, kwargs) of a deployment by its name, from the blob or from the module."""
    if options.get("import_path"):
        built = build(import_application(options["import_path"], options.get("args") or {}), pickles=False)

        def imported(name: str) -> tuple[Any, tuple[Any, ...], dict[str, Any]]:
            node = built.node(name)
            return node.deployment.func_or_class, node.args, dict(node.kwargs)

        return imported
    data = Path(options["blob"]).read_bytes()
    if hashlib.sha256(data).hexdigest() != options["digest"]:
        raise LoadFailed(f"{options['blob']}: the application's code is not what was sent")
    parts = pickle.loads(data)  # noqa: S301  # the script's, sent over its private socket; checked above
    return lambda name: pickle.loads(parts[name])  # noqa: S301  # as above


def described(options: Mapping[str, Any]) -> dict[str, Any] | None:
    """What the server reads of an application that is imported; None where the script has sent it."""
    if not options.get("import_path"):
        return None
    found: Built = build(import_application(options["import_path"], options.get("args") or {}), pickles=False)
    data = found.data()
    known = {one["name"]: one for one in data["deployments"]}
    source = digest_of(parts_of(options["import_path"])[0])
    for node in found.nodes:
        known[node.name]["digest"] = f"{source}-{digest_of_arguments((node.args, dict(node.kwargs)))}"
    for name, given in (options.get("overrides") or {}).items():
        if name not in known:
            raise LoadFailed(f"deployments.{name}: the application has no such deployment, but {', '.join(known)}")
        try:
            known[name]["options"] = found.node(name).deployment.settings.with_(given).data()
        except OptionError as error:
            raise LoadFailed(f"deployments.{name}.{error}") from None
    return data


# --- schemas --------------------------------------------------------------------------------------


def rpcs_of(functions: tuple[str, ...]) -> dict[str, Any]:
    """The rpcs of `add_XServicer_to_server` functions by full name, as grpcio's handlers. Loads grpc."""
    from actorserve.handlers.rpc.servicer import _Nobody, handlers_of, named  # noqa: PLC0415  # only where there are any

    if not functions:
        return {}
    adders = [named(_with_colon(one), "functions") for one in functions]
    return handlers_of(adders, _Nobody(), f"functions {functions!r}")


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


def is_servicer_driver(target: Any) -> bool:
    """Whether a deployment is a driver with a schema of its own: its class is a grpcio servicer as well."""
    return inspect.isclass(target) and issubclass(target, gRPCIngress) and any(_adders(target))


def _adders(target: type) -> Iterator[Any]:
    from actorserve.handlers.rpc.servicer import adders_of  # noqa: PLC0415  # only for drivers

    return adders_of(target)


def _predict() -> dict[str, Any]:
    from actorserve.proto.ray_serve_pb2 import PredictRequest  # noqa: PLC0415  # only where it is called

    return {"decode": PredictRequest.FromString}


class DeploymentHost(RpcHost):
    """See the module's docstring. Options: application, deployment, blob + digest or import_path + args, legacy,
    user_config, functions.
    """

    def __init__(self) -> None:
        super().__init__()
        enter_worker()
        self.options: Mapping[str, Any] = {}
        self.link: EngineLink | None = None
        self.instance: Instance

    # --- the host's ---------------------------------------------------------------------------

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
            if inspect.isclass(target) and issubclass(target, gRPCIngress):
                drivers[name] = driver_schema(target)
            answers[name] = services_of(target, paths)
        return {"application": data, "drivers": drivers, "answers": answers, **functions_schema(functions)}

    async def build(self, context: Context) -> None:
        """Make the user's instance, and a method of each rpc that it can answer; a function answers them all."""
        options = self.options = context.options
        target, args, kwargs = definition_of(options)(options["deployment"])
        application, legacy = options["application"], bool(options.get("legacy"))
        self.instance = Instance(target, self._submit)
        await self.instance.build(
            tuple(resolved(one, application, legacy=legacy) for one in args),
            {key: resolved(one, application, legacy=legacy) for key, one in kwargs.items()},
        )
        tag = f"{application}#{options['deployment']}#{os.getpid()}"
        PROCESS.replica = ReplicaContext(application, options["deployment"], tag, self.instance.object, context.device)
        if options.get("user_config") is not None:
            await self.instance.reconfigure(options["user_config"])
        kinds = target.__mro__ if inspect.isclass(target) else ()
        self.abilities["multiplexes"] = any(
            hasattr(one, MULTIPLEX_MARK)
            for one in (target, *(value for kind in kinds for value in vars(kind).values()))
        )
        self.abilities["checks_health"] = callable(getattr(self.instance.object, "check_health", None))
        self.methods = Methods(self, self._rpcs(target, tuple(options.get("functions") or ())))

    def _rpcs(self, target: Any, functions: tuple[str, ...]) -> dict[str, Method]:
        if is_servicer_driver(target):
            from actorserve.handlers.rpc import servicer  # noqa: PLC0415  # only for drivers

            handlers = servicer.handlers_of(_adders(target), self.instance.object, name_of(target))
            return servicer.methods_of_grpcio(handlers)
        found: dict[str, Method] = {}
        for path, handler in rpcs_of(functions).items():
            method = self.instance.method(path.rpartition("/")[2] if inspect.isclass(target) else "__call__")
            if method is not None:
                rpc = Rpc(self, path, method, cardinality(handler), handler.request_deserializer)
                found[path] = Method(cardinality(handler), rpc.begin)
        if PREDICT not in found and (method := self.instance.method("Predict")) is not None:
            is_default = inspect.isclass(target) and issubclass(target, gRPCIngress)
            rpc = Rpc(self, PREDICT, method, Cardinality.UNARY_UNARY, _predict()["decode"], prediction=is_default)
            found[PREDICT] = Method(Cardinality.UNARY_UNARY, rpc.begin)
        return found

    def _submit(self, run: Callable[[], None]) -> None:
        if self.engine is None:  # while it loads there is no pool
            run()
        else:
            self.engine.pool.submit(run)

    async def _serve(self, send: Callable[[Any], None]) -> None:
        engine = self.engine = Engine(self, send, threads=self._threads)
        PROCESS.link = self.link = EngineLink(engine)
        await engine.run()
        await self.shut()

    async def control(self, content: dict[str, Any]) -> dict[str, Any]:
        """Reconfigure in place, or say how healthy the instance is. What user code raises is the answer's error."""
        match content.get("do"):
            case "reconfigure":
                await self.instance.reconfigure(content.get("user_config"))
                return {}
            case "health":
                await self.instance.check_health()
                return {}
        return await super().control(content)

    async def shut(self) -> None:
        """Let the instance go: its `__del__`, which may be `async`, is called as Ray calls it."""
        delete = getattr(self.instance.object, "__del__", None)
        if inspect.iscoroutinefunction(delete):
            await delete()


class Methods(dict[str, Method]):
    """Rpcs by full name, and what handles call by "handle/NAME"."""

    def __init__(self, host: DeploymentHost, rpcs: Mapping[str, Method]) -> None:
        super().__init__(rpcs)
        self._host = host

    def get(self, name: str, default: Any = None) -> Any:
        """An rpc, or what a handle calls; a method's first call settles who streams, so each name has two keys."""
        if not name.startswith(HANDLE):
            return super().get(name, default)
        found = super().get(name)
        if found is None:
            stream = name.startswith(f"{HANDLE}stream/")
            found = self[name] = handle_method(self._host, name.rpartition("/")[2], stream=stream)
        return found


def handle_method(host: DeploymentHost, name: str, *, stream: bool) -> Method:
    """What a handle's call of one method does."""
    called = HandleCalls(host, name, stream=stream)
    return Method(Cardinality.UNARY_STREAM if stream else Cardinality.UNARY_UNARY, called.begin)


def functions_schema(functions: tuple[str, ...]) -> dict[str, Any]:
    """The schema of functions, as servicing's."""
    from actorserve.handlers.rpc.servicer import _messages_of  # noqa: PLC0415  # only where there are any

    handlers = rpcs_of(functions)
    messages = [message for handler in handlers.values() for message in _messages_of(handler)]
    return schema_of({path: cardinality(handler) for path, handler in handlers.items()}, messages)


def driver_schema(target: type) -> dict[str, Any]:
    """The schema of a driver: its servicer's, or Ray's own."""
    from actorserve.handlers.rpc.servicer import (  # noqa: PLC0415  # only for drivers
        _messages_of,
        _Nobody,
        handlers_of,
    )

    if is_servicer_driver(target):
        handlers = handlers_of(_adders(target), _Nobody(), name_of(target))
        messages = [message for handler in handlers.values() for message in _messages_of(handler)]
        return schema_of({path: cardinality(handler) for path, handler in handlers.items()}, messages)
    from actorserve.proto.ray_serve_pb2 import PredictRequest  # noqa: PLC0415  # only here

    return schema_of({PREDICT: Cardinality.UNARY_UNARY}, [PredictRequest])


# --- calls ----------------------------------------------------------------------------------------


def request_of(call: RpcCall, application: str, deployment: str, method: str) -> RequestContext:
    """What user code may ask about a call."""
    opened = call.opened
    said = {key: value for key, value in opened.metadata if isinstance(value, str)}
    return RequestContext(
        request_id=opened.request_id,
        application=application,
        deployment=deployment,
        method=method,
        multiplexed_model_id=said.get("multiplexed_model_id", ""),
        session_id=said.get("session_id", ""),
        traceparent=said.get("traceparent", ""),
        deadline=opened.deadline_ns / 1e9 if opened.deadline_ns else None,
    )


class _Calls:
    """Runs calls of one method, each in a task of its own."""

    def __init__(self, host: DeploymentHost, name: str) -> None:
        self.host = host
        self.name = name

    def begin(self, call: RpcCall) -> None:
        """Begin one, on the loop."""
        options = self.host.options
        asked = request_of(call, options["application"], options["deployment"], self.name)
        link, model = self.host.link, asked.multiplexed_model_id
        if model and link is not None:
            link.begin(model)
            asked.scope.at_end(lambda: link.end(model))
        task = call.spawn(self._run(call, asked))  # it ends the call where it was cancelled before its first step
        task.add_done_callback(lambda _task: asked.scope.end())

        def cancel() -> None:
            asked.scope.cancel()
            task.cancel()

        call.on_cancel = cancel

    async def _run(self, call: RpcCall, asked: RequestContext) -> None:
        try:
            with entered(asked):
                ending = await self.answer(call, asked)
        except asyncio.CancelledError as error:
            if call.cancelled:
                call.end(Ending(CANCELLED, "the caller has gone"))
                raise
            ending = Ending(INTERNAL, text_of(error))  # the user's own: nobody has cancelled this call
        except BaseException as error:  # noqa: BLE001  # the user's: SystemExit must not end the replica either
            ending = Ending(INTERNAL, text_of(error))
        call.end(ending)

    async def answer(self, call: RpcCall, asked: RequestContext) -> Ending:
        """Answer it; its ending."""
        raise NotImplementedError


class HandleCalls(_Calls):
    """Calls that handles make: pickled arguments in, pickled results out; exceptions travel as they are."""

    def __init__(self, host: DeploymentHost, name: str, *, stream: bool) -> None:
        super().__init__(host, name)
        self._stream = stream

    async def answer(self, call: RpcCall, asked: RequestContext) -> Ending:
        """See the class."""
        instance = self.host.instance
        try:
            method = instance.method(self.name)
            if method is None:
                raise AttributeError(f"deployment {asked.deployment} has no method {self.name!r}")
            args, kwargs = read_arguments(call.opened.data or b"")
            if not self._stream:
                return Ending(data=packed_result(await instance.call(method, args, kwargs)))

            async def send(item: Any) -> None:
                data = packed_result(item)
                await call.room()
                call.send(data)

            def send_blocking(item: Any) -> bool:
                data = packed_result(item)
                if call.room_blocking():
                    call.send(data)
                return call.is_active

            await instance.stream(method, args, kwargs, send=send, send_blocking=send_blocking)
            return Ending()
        except Exception as error:  # noqa: BLE001  # the user's, for the caller to raise
            data = packed_error(error)
        if not self._stream:
            return Ending(data=data)
        await call.room()
        call.send(data)
        return Ending()


class Rpc(_Calls):
    """Calls of one rpc of a schema. `prediction`: the method takes the inputs and gives bytes (Ray's Predict)."""

    def __init__(
        self,
        host: DeploymentHost,
        path: str,
        method: Callable[..., Any],
        cardinality: Cardinality,
        decode: Callable[[bytes], Any],
        *,
        prediction: bool = False,
    ) -> None:
        super().__init__(host, path.rpartition("/")[2])
        self._method = method
        self._cardinality = cardinality
        self._decode = decode
        self._prediction = prediction
        self._wants_context = _has_context(method)

    async def answer(self, call: RpcCall, asked: RequestContext) -> Ending:
        """See the rules of the module."""
        said = grpc_context(call)
        kwargs = {"grpc_context": said} if self._wants_context else {}
        try:
            request = self._request(call)
        except Exception as error:  # noqa: BLE001  # protobuf's, or the user's own
            return Ending(INVALID_ARGUMENT, f"the request cannot be read: {text_of(error)}", trailers_of(said))
        try:
            data = await self._answered(call, request, kwargs)
        except Exception as error:  # noqa: BLE001  # the user's
            return failed(error, said)
        code = 0 if said.code() is None else status_number(said.code())
        return Ending(code, said.details() or "", trailers_of(said), data=None if code else data)

    def _request(self, call: RpcCall) -> Any:
        if self._cardinality.client_streams:
            return input_stream(call, self._decode)
        request = self._decode(call.opened.data or b"")
        return dict(request.input) if self._prediction else request

    async def _answered(self, call: RpcCall, request: Any, kwargs: Mapping[str, Any]) -> bytes | None:
        instance = self.host.instance
        if not self._cardinality.server_streams:
            return self._packed(await instance.call(self._method, (request,), kwargs))

        async def send(item: Any) -> None:
            data = self._packed(item)
            await call.room()
            call.send(data)

        def send_blocking(item: Any) -> bool:
            data = self._packed(item)
            if call.room_blocking():
                call.send(data)
            return call.is_active

        await instance.stream(self._method, (request,), kwargs, send=send, send_blocking=send_blocking)
        return None

    def _packed(self, answer: Any) -> bytes:
        if self._prediction:
            from actorserve.proto.ray_serve_pb2 import PredictResponse  # noqa: PLC0415  # only where it is called

            return bytes(PredictResponse(prediction=answer).SerializeToString())
        if not hasattr(answer, "SerializeToString"):
            raise TypeError(f"{name_of(self._method)} must give a protobuf message; it gave {type(answer).__name__}")
        return bytes(answer.SerializeToString())


def input_stream(call: RpcCall, decode: Callable[[bytes], Any]) -> gRPCInputStream:
    """What a client streams, decoded. It raises BadInput for what is no message."""

    def read(data: bytes | None) -> Any:
        if data is None:
            return _END
        try:
            return decode(data)
        except Exception as error:
            raise errors.BadInput("request", f"a message of the stream cannot be read: {text_of(error)}") from error

    async def take() -> Any:
        return read(await call.receive())

    def take_blocking() -> Any:
        try:
            return read(call.receive_blocking())
        except CallCancelled:
            return _END

    return gRPCInputStream(take, end=_END, take_blocking=take_blocking, is_gone=lambda: call.cancelled)


def _has_context(method: Callable[..., Any]) -> bool:
    try:
        return "grpc_context" in inspect.signature(method).parameters
    except (TypeError, ValueError):
        return False


def grpc_context(call: RpcCall) -> RayServegRPCContext:
    """What a method is given of the call."""
    opened = call.opened
    return RayServegRPCContext(
        metadata=opened.metadata,
        peer=peer_of(opened.peer),
        request_id=opened.request_id,
        auth=auth_of(opened.auth),
        deadline=call.time_remaining,
    )


def trailers_of(said: RayServegRPCContext) -> Pairs:
    """The trailers that user code has set; the request's id is the ingress's to add."""
    return tuple((key, value) for key, value in said.trailing_metadata() if key != "request_id")


def failed(error: BaseException, said: RayServegRPCContext) -> Ending:
    """How a call ends that raised (rules 1 and 2)."""
    code = 0 if said.code() is None else status_number(said.code())
    if code:
        return Ending(code, said.details() or cut(str(error)), trailers_of(said))
    if isinstance(error, gRPCStatusError):
        return Ending(error.code, error.details, trailers_of(said))
    for kind, code in CODES.items():
        if isinstance(error, kind):
            return Ending(code, cut(str(error)), trailers_of(said), rich_of(error, code))
    return Ending(INTERNAL, text_of(error), trailers_of(said))


def rich_of(error: BaseException, code: int) -> bytes:
    """A google.rpc.Status in its bytes, where there is more to say: when to come again, why nobody answers."""
    from google.protobuf.duration_pb2 import Duration  # noqa: PLC0415  # only where something went wrong
    from google.rpc.error_details_pb2 import ErrorInfo, RetryInfo  # noqa: PLC0415
    from google.rpc.status_pb2 import Status  # noqa: PLC0415

    status = Status(code=code, message=cut(str(error)))
    if isinstance(error, BackPressureError) and error.retry_after_s:
        nanos = int(error.retry_after_s * 1e9)
        status.details.add().Pack(RetryInfo(retry_delay=Duration(seconds=nanos // 10**9, nanos=nanos % 10**9)))
    elif isinstance(error, DeploymentUnavailableError) and error.reason:
        status.details.add().Pack(ErrorInfo(reason=error.reason, domain="actorserve"))
    else:
        return b""
    return bytes(status.SerializeToString())


def text_of(error: BaseException) -> str:
    """An exception's type and text."""
    text = str(error)
    return cut(f"{type(error).__name__}: {text}" if text else type(error).__name__)


def cut(text: str) -> str:
    """A text that travels: one that is too long is cut, and says so."""
    return text if len(text) <= MOST_DETAILS else text[: MOST_DETAILS - len(TRUNCATED)] + TRUNCATED
