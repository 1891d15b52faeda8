"""The interceptor that lets calls in: a bearer token, looked at before any message is read.

`check_model` is the other half: which models a token may ask for is known once the message names one.
`metadata_for` is what a message gets of the call's metadata: no higher priority than the token may ask for.
What must not live here: how tokens are kept (tokens.py, key_file.py), TLS.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Protocol

from actorserve.actors.claims import PRIORITY, priority_of
from actorserve.actors.messages import Metadata
from actorserve.errors import NotAllowed, Unauthenticated
from actorserve.services.codec import metadata_of
from actorserve.services.tokens import Token
from actorserve.services.transport.interceptors import Proceed
from actorserve.services.transport.server_stream import ServerStream

PATHS = {
    "org.pytorch.serve.grpc.inference.InferenceAPIsService": "inference",
    "org.pytorch.serve.grpc.management.ManagementAPIsService": "management",
    "grpc.health.v1.Health": "health",
    "grpc.reflection.v1.ServerReflection": "reflection",
    "grpc.reflection.v1alpha.ServerReflection": "reflection",
}


def service_of(method: str) -> str:
    """The config's name of a method's service; its full name where the config has none."""
    full = method.rpartition("/")[0].lstrip("/")
    return PATHS.get(full, full)


class Finds(Protocol):
    """Where tokens are known: tokens.py, key_file.py."""

    def find(self, authorization: str) -> Token | None:
        """The token that an `authorization` header brings; None if it is none of ours."""


class Access:
    """Checks every call's token. `exempt`: services that need none."""

    def __init__(self, tokens: Finds, exempt: Collection[str] = ()) -> None:
        self._tokens = tokens
        self._exempt = frozenset(exempt)

    def renew(self, tokens: Finds, exempt: Collection[str]) -> None:
        """Go by other tokens from the next call on."""
        self._tokens = tokens
        self._exempt = frozenset(exempt)

    async def __call__(self, call: ServerStream, proceed: Proceed) -> None:
        """Unauthenticated without a token of ours, NotAllowed where it does not allow the service."""
        service = service_of(call.method)
        if service not in self._exempt:
            call.token = self._token(call, service)
        await proceed(call)

    def _token(self, call: ServerStream, service: str) -> Token:
        authorization = call.metadata.get("authorization")
        if not isinstance(authorization, str):
            raise Unauthenticated("no token: send the metadata authorization: Bearer TOKEN")
        token = self._tokens.find(authorization)
        if token is None:
            raise Unauthenticated("the token is not known here")
        if not token.allows_service(service):
            raise NotAllowed(f"the token {token.name!r} does not allow the service {service!r}")
        return token


def check_model(call: ServerStream, model: str) -> None:
    """NotAllowed if the call's token is not for this model."""
    token = call.token
    if token is not None and not token.allows_model(model):
        raise NotAllowed(f"the token {token.name!r} does not allow the model {model!r}")


def metadata_for(call: ServerStream) -> Metadata:
    """The call's metadata for a message; BadInput where its priority is none, capped where its token says so."""
    metadata = metadata_of(call.metadata)
    token = call.token
    if token is None:
        return metadata
    metadata = {key: value for key, value in metadata.items() if key != "authorization"}  # no model sees a token
    if priority_of(metadata) <= token.max_priority:
        return metadata
    return {**metadata, PRIORITY: str(token.max_priority)}
