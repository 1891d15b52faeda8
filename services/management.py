"""ManagementAPIsService: TorchServe's management contract, each call a message to the supervisor.

Texts and JSON bodies are TorchServe's (its keys, its order). A client's cancel or deadline ends the answer,
never the change. Over 250 lines: six rpcs, and the fields of the one that has many.
What must not live here: how a model starts or ends (actors/), statuses (status.py).
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import structlog

from actorserve import config
from actorserve.actors import manifest, model_store, urls
from actorserve.actors.directory import Directory
from actorserve.actors.messages import ModelSpec, ModelView, Observe, Scale, SetDefault, Spawn, State, Stop
from actorserve.actors.progress import Phase
from actorserve.actors.registrar import Registrar
from actorserve.actors.sources import Sources
from actorserve.actors.supervisor import Supervisor
from actorserve.config_defaults import MOST_WORKERS
from actorserve.config_types import NAME_RULE, is_name
from actorserve.errors import ActorserveError, BadInput, ConfigError, ModelApiDisabled, NoSuchModel
from actorserve.proto.management_grpc import ManagementAPIsServiceBase
from actorserve.proto.management_pb2 import (
    ManagementResponse,
    RegisterModelRequest,
)
from actorserve.services import describe
from actorserve.services.access import check_model
from actorserve.services.compat import About
from actorserve.services.customized import ask_handler

if TYPE_CHECKING:
    from actorserve.services.transport.server import ServerStream

UPDATING = "Processing worker updates..."
IN_PROGRESS = "Workers scaling in progress..."
FIELDS = {
    "max_batch_delay_ms": "max_batch_delay",
    "response_timeout_s": "response_timeout",
    "startup_timeout_s": "startup_timeout",
    "workers.min": "initial_workers",
}
DEFAULT_VERSION: str = config.Model.model_fields["version"].default
RUNTIMES = ("", "python", "python3")
NUMBERS = ("batch_size", "initial_workers", "max_batch_delay", "response_timeout", "startup_timeout")

log = structlog.get_logger("actorserve.management")


class ManagementService(ManagementAPIsServiceBase):  # type: ignore[misc]  # generated without types
    """See the module's docstring.

    `as_torchserve`: bodies, and what is taken as not given, are TorchServe's; statuses are by the listener's table.
    """

    def __init__(
        self,
        directory: Directory,
        supervisor: Supervisor,
        registrar: Registrar,
        *,
        as_torchserve: bool = False,
        sources: Sources,
        grace_s: float,
        model_api: bool = True,
        registered_workers: int = 0,
        defaults: model_store.FindDefaults = model_store.no_defaults,
    ) -> None:
        self._directory = directory
        self._supervisor = supervisor
        self._registrar = registrar
        self._as_torchserve = as_torchserve
        self._knows_number_gpu = False
        self._sources = sources
        self._grace_s = grace_s
        self._model_api = model_api
        self._registered_workers = registered_workers
        self._defaults = defaults

    async def ListModels(self, stream: ServerStream) -> None:  # noqa: N802  # the rpc's name
        """The default versions, by name, at most 100 a page."""
        request = await _read(stream)
        tree = await self._supervisor.ask(Observe()).wait()
        under_way = self._sources.board.all()
        page = describe.listing(
            tree,
            under_way,
            limit=request.limit,
            start=request.next_page_token,
            as_torchserve=self._as_torchserve,
        )
        await _say(stream, page)

    async def DescribeModel(self, stream: ServerStream) -> None:  # noqa: N802
        """One version, or with "all" every one; of one, what its handler says of itself where that is asked for."""
        request = await _read(stream)
        asks = request.customized and request.model_version != "all"
        stream.about = About(request.model_name, request.model_version, customized=asks)
        name, version = _named(stream, request.model_name), request.model_version
        if not self._directory.default(name) and (under_way := self._sources.board.of(name)):
            await _say(stream, describe.beginnings(under_way))
            return
        customized = await ask_handler(stream, self._directory.find(name, version)) if asks else None
        models = await self._views(name, version)
        await _say(stream, describe.description(models, customized, as_torchserve=self._as_torchserve))

    async def _views(self, name: str, version: str) -> list[ModelView]:
        """The versions that are meant, one at least; NoSuchModel."""
        if version != "all":
            self._directory.find(name, version)
        tree = await self._supervisor.ask(Observe()).wait()
        models = [
            model
            for model in tree.models
            if model.spec.name == name
            and (version == "all" or (model.spec.version == version if version else model.is_default))
        ]
        if not models:
            raise NoSuchModel(name)
        return models

    async def RegisterModel(self, stream: ServerStream) -> None:  # noqa: N802
        """Spawn a model: a native handler, a folder, an archive or a file of the model store, or what a URL names.

        Cancelled while it is fetched or unpacked, nothing has happened.
        """
        self._check_open()
        request = await _read(stream)
        stream.about = About(url=_kept_url(request))
        self._check_fields(request)
        if request.model_name:
            check_model(stream, request.model_name)
        with self._sources.board.entry(request.model_name, _kept_url(request)) as under_way:
            found = await self._sources.open(request.url, under_way)
            try:
                spec = self._spec(request, found)
                stream.about = About(spec.name, spec.version, _kept_url(request))
                check_model(stream, spec.name)
                under_way.name, under_way.phase = spec.name, Phase.LOADING
                answer = self._registrar.ask(Spawn(spec, unregister_on_failure=request.synchronous))
            except BaseException:
                await self._sources.give_back(request.url, found.path)
                raise
            await answer.accepted.wait()
        workers = spec.workers_min
        if request.synchronous or not workers:
            await answer.done.wait()
        label = f'Model "{spec.name}" Version: {spec.version} registered with {workers} initial workers'
        if not workers:
            await _say(stream, f"{label}. Use scale workers API to add workers for the model.")
        elif request.synchronous:
            await _say(stream, await self._once_scaled(label, spec.name, spec.version, workers))
        else:
            await _say(stream, UPDATING)

    async def ScaleWorker(self, stream: ServerStream) -> None:  # noqa: N802
        """Set the number of workers. proto3 cannot tell 0 from unset: `min_worker` 0 is 1, as TorchServe has it.

        `timeout`: seconds that those which leave get for what they have in hand, below 0 for ever; 0 is the server's
        own grace. `number_gpu` has no effect, as in TorchServe.
        """
        request = await _read(stream)
        stream.about = About(request.model_name, request.model_version)
        self._note_number_gpu(request.number_gpu)
        least = request.min_worker if request.min_worker > 0 else 1
        most = request.max_worker if request.max_worker > 0 else least
        for field in ("min_worker", "max_worker"):
            if getattr(request, field) > MOST_WORKERS:
                raise BadInput(field, f"{getattr(request, field)} is wrong: it must be at most {MOST_WORKERS}")
        if most < least:
            raise BadInput("max_worker", "max_worker cannot be less than min_worker.")
        name, version = _named(stream, request.model_name), request.model_version
        self._directory.find(name, version)
        grace_s = float("inf") if request.timeout < 0 else request.timeout or None
        answer = self._registrar.ask(Scale(name, version, least, most, grace_s))
        if not request.synchronous:
            await answer.accepted.wait()
            await _say(stream, UPDATING)
            return
        await answer.done.wait()
        suffix = f", version: {version}" if version else ""
        text = f"Workers scaled to {least} for model: {name}{suffix}"
        await _say(stream, await self._once_scaled(text, name, version, least))

    async def _once_scaled(self, text: str, name: str, version: str, least: int) -> str:
        """`text`, unless one of the workers that were READY is not any more, or another change has followed."""
        try:
            (model,) = await self._views(name, version)
        except ActorserveError:
            return IN_PROGRESS
        ready = sum(replica.state is State.READY for replica in model.replicas)
        return text if ready >= least else IN_PROGRESS

    def _note_number_gpu(self, number: int) -> None:
        if number and not self._knows_number_gpu:
            self._knows_number_gpu = True
            log.warning("number_gpu of ScaleWorker has no effect", number_gpu=number)

    async def UnregisterModel(self, stream: ServerStream) -> None:  # noqa: N802
        """Drain a version: new calls are refused at once, what is queued is answered within the grace."""
        self._check_open()
        request = await _read(stream)
        stream.about = About(request.model_name, request.model_version)
        name = _named(stream, request.model_name)
        await self._registrar.ask(Stop(name, request.model_version, self._grace_s)).done.wait()
        await _say(stream, f'Model "{name}" unregistered')

    async def SetDefault(self, stream: ServerStream) -> None:  # noqa: N802
        """Make a version the one that calls without one mean. Calls that run keep the version that they have."""
        request = await _read(stream)
        stream.about = About(request.model_name, request.model_version)
        name, version = _named(stream, request.model_name), request.model_version
        if not version:
            raise NoSuchModel(name, " ") if self._directory.default(name) else NoSuchModel(name)
        await self._registrar.ask(SetDefault(name, version)).done.wait()
        await _say(stream, f'Default version successfully updated for model "{name}" to "{version}"')

    def _check_open(self) -> None:
        if not self._model_api:
            raise ModelApiDisabled

    # --- RegisterModel's fields ------------------------------------------------------------------

    def _check_fields(self, request: RegisterModelRequest) -> None:
        """BadInput for what is wrong whatever the source holds. A negative number is not given, for TorchServe."""
        if request.runtime not in RUNTIMES:
            raise BadInput("runtime", f"Invalid RuntimeType value: {request.runtime}")
        if request.s3_sse_kms:
            raise BadInput("s3_sse_kms", "not supported: models are not fetched from S3 with a KMS key")
        for field in NUMBERS:
            if getattr(request, field) < 0:
                if not self._as_torchserve:
                    raise BadInput(field, f"{getattr(request, field)} is negative")
                setattr(request, field, 0)
        native = request.handler and (not self._as_torchserve or manifest.is_native(request.handler))
        if not request.url and not native:
            raise BadInput("url", "Parameter url is required.")

    def _spec(self, request: RegisterModelRequest, found: model_store.Folder) -> ModelSpec:
        name = request.model_name or found.name
        defaults = dict(self._defaults(name, str(found.content.get("version", DEFAULT_VERSION))))
        defaults["workers"] = {"min": self._registered_workers}
        content = model_store.merge(found, {**_given(request), **found.fixed}, defaults)
        return self._parse(request, _with_runtime(content, request.runtime), name, found.path)

    def _parse(self, request: RegisterModelRequest, content: dict[str, Any], name: str, folder: Path) -> ModelSpec:
        if not name:
            raise BadInput("model_name", "Model name is not defined.")
        if not is_name(name):
            raise BadInput("model_name", f"{name[:80]!r} {NAME_RULE}")
        if not content.get("handler"):
            raise BadInput("handler", f'is missing: give "module:Class", here or in the folder\'s {model_store.FILE}')
        try:
            return model_store.spec_of(name, model_store.parse(content), folder=folder, url=_kept_url(request))
        except ConfigError as error:
            raise BadInput(_field(error.key, request), error.text) from None


def _field(key: str, request: RegisterModelRequest) -> str:
    """The request's field that a wrong key came from; the key itself where the folder's file said it."""
    field = FIELDS.get(key, key) or "url"  # no key: those of the folder's file contradict each other
    return field if getattr(request, field, None) else key


def _kept_url(request: RegisterModelRequest) -> str:
    """The url as it is shown and kept: a query may hold a signature."""
    return urls.shown(request.url) if urls.is_url(request.url) else request.url


def _given(request: RegisterModelRequest) -> dict[str, Any]:
    """The fields that were given (0 and "" are not), as the config's keys."""
    given: dict[str, Any] = {
        "handler": request.handler,
        "batch_size": request.batch_size,
        "max_batch_delay_ms": request.max_batch_delay,
        "response_timeout_s": request.response_timeout,
        "startup_timeout_s": request.startup_timeout,
        "workers": {"min": request.initial_workers} if request.initial_workers else None,
    }
    return {key: value for key, value in given.items() if value}


def _with_runtime(content: dict[str, Any], runtime: str) -> dict[str, Any]:
    """The keys, with the request's runtime in the manifest that a handler in TorchServe's style sees."""
    if not runtime or content.get("handler") != manifest.LOADER:
        return content
    options = content["options"]
    said = options["torchserve"]
    said = {**said, "manifest": {**said["manifest"], "runtime": runtime}}
    return {**content, "options": {**options, "torchserve": said}}


def _named(stream: ServerStream, name: str) -> str:
    if not name:
        raise BadInput("model_name", "is empty: name a model, ListModels lists them")
    check_model(stream, name)
    return name


async def _read(stream: ServerStream) -> Any:
    """The one request of a unary call."""
    return await stream.recv_message()


async def _say(stream: ServerStream, text: str) -> None:
    await stream.send_message(ManagementResponse(msg=text))
