"""Where calls for applications come in: the listeners, and the routes of schemas that any application may answer.

What must not live here: which application a call means (services/applications.py), which of them run (apps.py), the
ports of drivers (app_ports.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from actorserve.actors.messages import Cardinality
from actorserve.app_running import Running
from actorserve.proto import ray_serve_pb2
from actorserve.servicer_places import Place
from actorserve.services.applications import AppRoutes, Board, Translate
from actorserve.services.schemas import Schema
from actorserve.services.servicers import ServicerSchema

PREDICT = "/ray.serve.PredictAPIsService/Predict"

PREDICT_SCHEMA = ServicerSchema(
    ("ray.serve.PredictAPIsService",),
    {PREDICT: Cardinality.UNARY_UNARY},
    Schema(["ray.serve.PredictAPIsService"], [ray_serve_pb2.DESCRIPTOR.serialized_pb]),
)
"""Ray's own schema of 2.1."""


@dataclass(frozen=True, slots=True)
class AppPlace:
    """A listener that takes calls for applications: its place, and how it chooses and says what is wrong."""

    place: Place
    lenient: bool
    translate: Translate


class AppPlaces:
    """See the module's docstring. `running`: the applications by name, as they change."""

    def __init__(self, board: Board, running: Mapping[str, Running]) -> None:
        self._board = board
        self._running = running
        self._places: dict[str, AppPlace] = {}

    def add(self, listener: str, place: AppPlace) -> None:
        """Have a listener take calls for applications, once something routes them there."""
        self._places[listener] = place

    def routes_on(self, listener: str, schema: ServicerSchema) -> AppRoutes:
        """What answers a schema's rpcs on a listener: whichever application a call means."""
        where = self._places[listener]
        return AppRoutes(schema, self._board.picking(lenient=where.lenient), where.translate, self._board.settled)

    def models_of(self, service: str) -> list[str]:
        """The models that answer a service's calls: those ingresses that have a method of it."""
        return [
            one.application.model(one.ingress)
            for one in self._running.values()
            if one.source.name in self._board.taken and service in one.answers.get(one.ingress, ())
        ]

    def take_predict(self, listener: str) -> None:
        """Have a listener take the calls of Ray's own schema."""
        place = self._places[listener].place
        place.server.add(self.routes_on(listener, PREDICT_SCHEMA))
        place.schemas.append(PREDICT_SCHEMA.described)
        for service in PREDICT_SCHEMA.services:
            place.follows[service] = lambda service=service: self.models_of(service)  # type: ignore[misc]  # a default
