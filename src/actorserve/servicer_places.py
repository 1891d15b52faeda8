"""Where servicers are served: the listeners, and the routes, schemas and health that a servicer has on each.

    free? (no servicer of its name, none of its methods on its listeners) -> routed -> its routes go

What must not live here: what answers (servicing.py), what a call is (services/servicers.py), sockets.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import trio
from grpclib.const import Handler

from actorserve.actors.messages import ModelSpec
from actorserve.config_servicer import Servicer
from actorserve.errors import AlreadyRegistered, BadInput, WrongState
from actorserve.services.schemas import Schema
from actorserve.services.servicers import ServicerSchema, waiting
from actorserve.services.transport.server import GrpcServer, HasMapping


@dataclass
class Place:
    """One listener that serves servicers: where routes go, and what its reflection and its health read.

    `follows`: services by name -> what names the models that each is as well as. `unknown`: what answers the methods
    that nobody has; None: the transport.
    """

    server: GrpcServer
    schemas: list[Schema]
    follows: dict[str, Callable[[], Iterable[str]]]
    unknown: Handler | None = None


@dataclass(frozen=True)
class Served:
    """One servicer that is served: its model, None where applications answer; its schema; its routes by listener.

    `models_of`: the names of the models that one of its services is as well as.
    """

    servicer: Servicer
    spec: ModelSpec | None
    schema: ServicerSchema
    routes: Mapping[str, HasMapping]
    models_of: Callable[[str], Iterable[str]]


class Places:
    """See the module's docstring. `served`: the servicers by their labels."""

    def __init__(self) -> None:
        self.served: dict[str, Served] = {}
        self._places: dict[str, Place] = {}

    def add(self, listener: str, place: Place) -> None:
        """Have a listener serve servicers."""
        self._places[listener] = place

    def hold(self, settled: trio.Event) -> None:
        """Have calls of methods that nobody knows wait for `settled`."""
        for place in self._places.values():
            place.server.otherwise(waiting(settled, place.server.find, place.unknown))

    def let_go(self) -> None:
        """Answer them at once from now on."""
        for place in self._places.values():
            place.server.otherwise(place.unknown)

    def free_for(self, servicer: Servicer, schema: ServicerSchema) -> tuple[str, ...]:
        """The listeners for a new one. AlreadyRegistered; BadInput where there is no such listener."""
        if servicer.label in self.served:
            raise AlreadyRegistered(f"a servicer {servicer.label!r} is served already")
        places = self.of(servicer)
        self._check_free(servicer.label, schema, places)
        return places

    def of(self, servicer: Servicer) -> tuple[str, ...]:
        """The listeners that a servicer is for; BadInput where there is no such one."""
        places = tuple(servicer.listeners or self._places)
        for name in places:
            if name not in self._places:
                raise BadInput("listeners", f'no listener {name!r} has "servicers" among its services')
        return places

    def _check_free(self, label: str, schema: ServicerSchema, places: Iterable[str]) -> None:
        for name in places:
            for path in schema.methods:
                if self._places[name].server.find(path) is not None:
                    raise AlreadyRegistered(f"servicer {label!r}: {path} is served on listener {name!r} already")

    def route(self, served: Served) -> None:
        """Serve it: its methods, its reflection, its health."""
        self.served[served.servicer.label] = served
        for name, routes in served.routes.items():
            place = self._places[name]
            place.server.add(routes)
            place.schemas.append(served.schema.described)
            for service in served.schema.services:
                place.follows[service] = _followed(served, service)

    def unroute(self, served: Served) -> None:
        """Serve it no longer. Calls in hand go on."""
        del self.served[served.servicer.label]
        for name, routes in served.routes.items():
            place = self._places[name]
            place.server.remove(routes)
            place.schemas.remove(served.schema.described)
            for service in served.schema.services:
                place.follows.pop(service, None)

    def switch(self, old: Served, new: Served) -> None:
        """Route to the new one, in one step; the old one stays where that cannot be. AlreadyRegistered, WrongState."""
        label = new.servicer.label
        if self.served.get(label) is not old:
            raise WrongState(f"servicer {label!r} was changed by somebody else meanwhile")
        self.unroute(old)
        try:
            self._check_free(label, new.schema, new.routes)
        except AlreadyRegistered:
            self.route(old)
            raise
        self.route(new)


def _followed(served: Served, service: str) -> Callable[[], Iterable[str]]:
    return lambda: served.models_of(service)
