"""What a listener of the configuration serves: its services, how they speak, who may call; one GrpcServer each.

    services named in the file -> health and reflection, which speak of them all -> GrpcServer
    the listener then is a place where servicers and applications may add routes of their own

What must not live here: sockets (listening.py), files of tokens (admission.py), what a service does (services/).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from grpclib.const import Handler

from actorserve import config
from actorserve.actors.model_store import FindDefaults
from actorserve.app_places import AppPlace
from actorserve.config_listener import Listener
from actorserve.parts import Parts
from actorserve.servicer_places import Place
from actorserve.services import compat, ray_compat, status
from actorserve.services.applications import ApplicationsService, RayService, Translate
from actorserve.services.health import HealthBoard, HealthService
from actorserve.services.inference import InferenceService
from actorserve.services.management import ManagementService
from actorserve.services.reflection import AlphaReflectionService, ReflectionService
from actorserve.services.schemas import Schema, names_of
from actorserve.services.sequences import InBand
from actorserve.services.servicers import refusing
from actorserve.services.transport.server import GrpcServer, Limits


@dataclass(frozen=True, slots=True)
class Dialect:
    """How a listener speaks: as ours do, or as clients of another server know it.

    `translate`: an error as a status; `in_band`: inside StreamPredictions2. `unknown`: what answers methods that nobody
    has; None: the transport.
    """

    translate: Translate
    in_band: InBand = status.status_bytes
    as_torchserve: bool = False
    as_ray: bool = False
    unknown: Handler | None = None


def dialect_of(listener: Listener) -> Dialect:
    """What its `compatibility` comes to."""
    match listener.compatibility:
        case "torchserve":
            return Dialect(compat.translate, compat.status_bytes, as_torchserve=True)
        case "ray":
            translate = ray_compat.translating(listener.request_timeout_s)
            return Dialect(translate, as_ray=True, unknown=refusing(ray_compat.UNKNOWN))
        case "none":
            return Dialect(status.translate)


def serve_on(
    name: str, listener: Listener, parts: Parts, *, further: Sequence[Any], defaults: FindDefaults
) -> GrpcServer:
    """What serves a listener; from then on servicers and applications may add to it.

    `further`: services beside those of the file. `defaults`: what `model_defaults` says of a model.
    ConfigError, StartFailed: a file that it names is wrong.
    """
    dialect = dialect_of(listener)
    place = _place(name, listener, dialect, parts, further=further, defaults=defaults)
    if "servicers" in listener.services:
        parts.servicing.places.add(name, place)
    parts.apps.places.add(name, AppPlace(place, dialect.as_ray, dialect.translate))
    if "predict" in listener.services:
        parts.apps.places.take_predict(name)
    return place.server


def _place(
    name: str, listener: Listener, dialect: Dialect, parts: Parts, *, further: Sequence[Any], defaults: FindDefaults
) -> Place:
    """A listener's server, and what its reflection and its health read."""
    schemas: list[Schema] = []
    follows: dict[str, Callable[[], Iterable[str]]] = {}
    services = _own(listener, dialect, parts, defaults)
    services += _standard(listener, services, further, health=parts.health, schemas=schemas, follows=follows)
    grpc = GrpcServer(
        [*services, *further],
        limits=Limits(**{field.name: getattr(listener, field.name) for field in fields(Limits)}),
        translate=dialect.translate,
        on_end=parts.access.add if _tells_calls(parts.settings.log) else None,
        interceptors=parts.admission.interceptors(listener),
        certificates=parts.admission.certificates(name, listener.tls),
    )
    grpc.otherwise(dialect.unknown)
    return Place(grpc, schemas, follows, dialect.unknown)


def _tells_calls(log: config.Log) -> bool:
    return log.access and log.level in ("debug", "info")


def _own(listener: Listener, dialect: Dialect, parts: Parts, defaults: FindDefaults) -> list[Any]:
    """Those services of the file that say something of their own."""
    makers: Mapping[str, Callable[[], Any]] = {
        "inference": lambda: InferenceService(
            parts.directory, parts.supervisor, in_band=dialect.in_band, as_torchserve=dialect.as_torchserve
        ),
        "management": lambda: _management(dialect, parts, defaults),
        "ray": lambda: RayService(parts.apps.board),
        "applications": lambda: ApplicationsService(parts.sent_apps),
    }
    return [make() for service, make in makers.items() if service in listener.services]


def _management(dialect: Dialect, parts: Parts, defaults: FindDefaults) -> ManagementService:
    server = parts.settings.server
    return ManagementService(
        parts.directory,
        parts.supervisor,
        parts.registrar,
        as_torchserve=dialect.as_torchserve,
        sources=parts.sources,
        grace_s=parts.unregister_grace_s,
        model_api=server.model_api,
        registered_workers=server.registered_workers,
        defaults=defaults,
    )


def _standard(
    listener: Listener,
    own: Sequence[Any],
    further: Sequence[Any],
    *,
    health: HealthBoard,
    schemas: list[Schema],
    follows: dict[str, Callable[[], Iterable[str]]],
) -> list[Any]:
    """Health and reflection, which speak of all that the listener has, themselves included; `schemas` is filled."""
    names: list[str] = []
    standard: list[Any] = []
    if "health" in listener.services:
        standard.append(HealthService(health, names, follows))
    if "reflection" in listener.services:
        standard += [ReflectionService(schemas), AlphaReflectionService(schemas)]
        schemas += [Schema.of([*own, *standard]), *(Schema.of([one]) for one in further)]
    names += [name for service in (*own, *standard, *further) for name in names_of(service)]
    return standard
