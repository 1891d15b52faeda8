"""grpc.health.v1: who takes calls now, asked once (Check, List) or watched (Watch). docs/health.md is its page.

What lives here: `HealthBoard`, the statuses of the whole server, and `HealthService`, one listener's view of them.
What must not: what makes a model READY (actors/), when the server drains (server.py).

Rules
1. The names that may be asked for: "" (the server), each service of the listener, each model (`digits`: its default
   version), each version (`digits/1.0`). A service's name wins over a model's; a model's name has no slash.
2. "" and the inference service are SERVING once every configured model has been READY or FAILED, and while one
   is READY; at once where no model is configured with workers. A service of [[servicers]] is SERVING as its model is
   (rule 3); one that applications answer, while one of their ingress deployments that have a method of it is. Other
   services take calls from the start.
3. A model or a version is SERVING while one of its workers is READY. One that has none and starts one on demand is
   SERVING too, also while that one loads.
4. From the beginning of the drain everything is NOT_SERVING. Watchers are told, then their calls end: a watcher
   never holds up the drain.
5. A watcher holds one status, the last that it was sent, however many changes it slept through: memory is bounded,
   and nobody polls. SERVICE_UNKNOWN is no end: the name may become known.
6. A token that is for some models only is told of those only. Where health is exempt, nobody is asked.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, TypeAlias

import trio
from grpclib.const import Status
from grpclib.exceptions import GRPCError

from actorserve.actors.messages import ModelView, State, Tree
from actorserve.errors import Draining
from actorserve.proto.grpc_health_v1_grpc import HealthBase
from actorserve.proto.grpc_health_v1_pb2 import HealthCheckResponse, HealthListResponse
from actorserve.services.access import check_model

if TYPE_CHECKING:
    from actorserve.services.transport.server import ServerStream

    ServingStatus: TypeAlias = HealthCheckResponse.ServingStatus.ValueType
SERVING = HealthCheckResponse.SERVING
NOT_SERVING = HealthCheckResponse.NOT_SERVING
SERVICE_UNKNOWN = HealthCheckResponse.SERVICE_UNKNOWN

FOLLOWS_MODELS = "org.pytorch.serve.grpc.inference.InferenceAPIsService"
"""The service whose status is the server's: its calls need a model. The others' do not."""


class HealthBoard:
    """The statuses of a server and its models, kept up to date by `refresh`, which waits for nothing."""

    def __init__(self, observe: Callable[[], Tree], configured: Iterable[str] = ()) -> None:
        """`configured`: the keys (`name/version`) of the models that start with the server."""
        self.draining = False
        self._observe = observe
        self._unsettled = set(configured)
        self._seen: set[str] = set()
        self._needs_model = bool(self._unsettled)
        self._models: Mapping[str, ServingStatus] = {}
        self._changed = trio.Event()

    def expect(self, configured: Iterable[str]) -> None:
        """Replace the models that start with the server, before they do: the registry has its say in them."""
        self._unsettled = set(configured)
        self._needs_model = bool(self._unsettled)

    def forget(self, key: str) -> None:
        """One of those that start with the server never will: it is not waited for."""
        self._unsettled.discard(key)
        self.refresh()

    def reconfigure(self, configured: Iterable[str]) -> None:
        """Other models are configured now. Who was SERVING is not asked to wait for the new ones."""
        names = set(configured)
        self._unsettled &= names
        self._needs_model = bool(names)
        self.refresh()

    def refresh(self) -> None:
        """Look at the models again; wake the watchers if a status has changed."""
        before = (self.overall(), self._models)
        views = {view.spec.key: view for view in self._observe().models}
        self._settle(views)
        models = {}
        for key, view in views.items():
            status = SERVING if answers(view) and not self.draining else NOT_SERVING
            models[key] = status
            if view.is_default:
                models[view.spec.name] = status
        self._models = models
        if before != (self.overall(), models):
            self._wake()

    def _settle(self, views: Mapping[str, ModelView]) -> None:
        """Note which configured models have been READY or FAILED, or were unregistered before that."""
        gone = {key for key in self._unsettled & self._seen if key not in views}
        done = {key for key in self._unsettled & views.keys() if views[key].state in (State.READY, State.FAILED)}
        self._seen |= views.keys() & self._unsettled
        self._unsettled -= gone | done

    def look_again(self) -> None:
        """Other models answer for a service: watchers ask anew."""
        self._wake()

    def drain(self) -> None:
        """Say NOT_SERVING everywhere from now on. Idempotent."""
        if not self.draining:
            self.draining = True
            self.refresh()
            self._wake()

    def _wake(self) -> None:
        self._changed.set()
        self._changed = trio.Event()

    async def wait_changed(self) -> None:
        """Wait until a status changes. Read first, then wait: between the two nothing else can run."""
        await self._changed.wait()

    def overall(self) -> ServingStatus:
        """The server's own status (rule 2)."""
        if self.draining or self._unsettled:
            return NOT_SERVING
        return SERVING if not self._needs_model or SERVING in self._models.values() else NOT_SERVING

    def models(self) -> Mapping[str, ServingStatus]:
        """The status of each model and each version, by its name."""
        return self._models


def answers(view: ModelView) -> bool:
    """Whether a model answers, be it once its first worker has loaded: who were told no would never ask."""
    if view.state is State.READY:
        return True
    on_demand = not view.spec.workers_min and view.spec.workers_max
    return bool(on_demand) and view.state in (State.NO_WORKERS, State.LOADING)


class HealthService(HealthBase):  # type: ignore[misc]  # generated without types
    """See the module's docstring."""

    def __init__(
        self,
        board: HealthBoard,
        services: Collection[str],
        follows: Mapping[str, Callable[[], Iterable[str]]] = MappingProxyType({}),
    ) -> None:
        """`follows`: services that are as well as models, whose names are told when asked for; both may change."""
        self._board = board
        self._services = services
        self._follows = follows

    def status_of(self, name: str) -> ServingStatus:
        """The status of one name (rule 1)."""
        board = self._board
        if not name or (name == FOLLOWS_MODELS and name in self._services):
            return board.overall()
        if name in self._follows:
            models = board.models()
            return SERVING if any(models.get(one) == SERVING for one in self._follows[name]()) else NOT_SERVING
        if name in self._services:
            return NOT_SERVING if board.draining else SERVING
        return board.models().get(name, SERVICE_UNKNOWN)

    async def _asked(self, stream: ServerStream) -> str:
        """The name that a call asks for; NotAllowed where its token is for other models (rule 6)."""
        request = await stream.recv_message()
        assert request is not None  # noqa: S101  # the transport has refused a unary call without a message
        name: str = request.service
        if name and name not in self._services and name not in self._follows:
            check_model(stream, name.partition("/")[0])
        return name

    async def Check(self, stream: ServerStream) -> None:  # noqa: N802  # the rpc's name
        """Answer for one name, now; NOT_FOUND for an unknown one."""
        name = await self._asked(stream)
        status = self.status_of(name)
        if status == SERVICE_UNKNOWN:
            raise GRPCError(Status.NOT_FOUND, f"there is no service or model {name!r} here")
        await stream.send_message(HealthCheckResponse(status=status))

    async def List(self, stream: ServerStream) -> None:  # noqa: N802
        """Answer for every name, now."""
        await stream.recv_message()
        token = stream.token
        models = (name for name in self._board.models() if token is None or token.allows_model(name.partition("/")[0]))
        names = {"", *self._services, *self._follows, *models}
        statuses = {name: HealthCheckResponse(status=self.status_of(name)) for name in sorted(names)}
        await stream.send_message(HealthListResponse(statuses=statuses))

    async def Watch(self, stream: ServerStream) -> None:  # noqa: N802
        """Answer for one name now and at each change, until the client goes or the server drains (rules 4, 5)."""
        name = await self._asked(stream)
        last = None
        while True:
            status = self.status_of(name)
            if status != last:
                last = status
                await stream.send_message(HealthCheckResponse(status=status))
            elif self._board.draining:
                raise Draining("the server is shutting down")
            else:
                await self._board.wait_changed()
