"""grpc.reflection v1 and v1alpha: a client without .proto files asks for them. grpcurl and its like live on it.

What lives here: the two services, which are one under two names.
What must not: how descriptors are found and kept apart (schemas.py).

Rules
1. A symbol is looked for among services first, then in every schema, in the order that they were given.
2. The answer for a symbol brings all the files that it needs, so that two schemas that use one file name differently
   do not meet. A file that is asked for afterwards on the same stream comes from the schema that answered last.
3. What cannot be answered is an error_response with a status code; the stream goes on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import ModuleType
from typing import TYPE_CHECKING, Any, TypeVar

from grpclib.const import Status

from actorserve.proto import grpc_reflection_v1_pb2, grpc_reflection_v1alpha_pb2
from actorserve.proto.grpc_reflection_v1_grpc import ServerReflectionBase
from actorserve.proto.grpc_reflection_v1alpha_grpc import ServerReflectionBase as AlphaBase
from actorserve.services.schemas import Schema

if TYPE_CHECKING:
    from actorserve.services.transport.server import ServerStream

T = TypeVar("T")


class Unknown(Exception):
    """There is no such thing in any schema, or nothing was asked."""

    def __init__(self, status: Status, text: str) -> None:
        super().__init__(text)
        self.status = status


class Conversation:
    """One stream's questions, answered in the messages of one version of the protocol."""

    def __init__(self, schemas: Sequence[Schema], messages: ModuleType) -> None:
        self._schemas = schemas
        self._messages = messages
        self._last: Schema | None = None

    def answer(self, request: Any) -> Any:
        """Answer one question (rule 3)."""
        reply = self._messages.ServerReflectionResponse(valid_host=request.host, original_request=request)
        try:
            self._fill(reply, request)
        except Unknown as error:
            reply.error_response.error_code = error.status.value
            reply.error_response.error_message = str(error)
        return reply

    def _fill(self, reply: Any, request: Any) -> None:
        files = reply.file_descriptor_response.file_descriptor_proto
        match request.WhichOneof("message_request"):
            case "file_by_filename":
                name = request.file_by_filename
                files.append(self._find(lambda schema: schema.file(name), f"file {name!r}"))
            case "file_containing_symbol":
                symbol = request.file_containing_symbol
                files.extend(self._find(lambda schema: schema.containing(symbol), f"symbol {symbol!r}", symbol))
            case "file_containing_extension":
                message = request.file_containing_extension.containing_type
                number = request.file_containing_extension.extension_number
                files.extend(
                    self._find(lambda schema: schema.extending(message, number), f"extension {number} of {message!r}")
                )
            case "all_extension_numbers_of_type":
                message = request.all_extension_numbers_of_type
                numbers = self._find(lambda schema: schema.extensions(message), f"message {message!r}")
                reply.all_extension_numbers_response.base_type_name = message
                reply.all_extension_numbers_response.extension_number.extend(numbers)
            case "list_services":
                for name in sorted({name for schema in self._schemas for name in schema.services}):
                    reply.list_services_response.service.add(name=name)
            case _:
                raise Unknown(Status.INVALID_ARGUMENT, "the request asks for nothing: message_request is not set")

    def _find(self, look: Callable[[Schema], T | None], what: str, symbol: str = "") -> T:
        """The first schema's answer, those with a service of this name first (rule 1), then the last one (rule 2)."""
        order = sorted(self._schemas, key=lambda one: (not one.answers_for(symbol), one is not self._last))
        for schema in order:
            found = look(schema)
            if found is not None:
                self._last = schema
                return found
        raise Unknown(Status.NOT_FOUND, f"there is no {what} here")


class ReflectionService(ServerReflectionBase):  # type: ignore[misc]  # generated without types
    """grpc.reflection.v1. `schemas` may grow and shrink while the server runs."""

    def __init__(self, schemas: Sequence[Schema]) -> None:
        self._schemas = schemas

    async def ServerReflectionInfo(self, stream: ServerStream) -> None:  # noqa: N802  # the rpc's name
        """Answer each question in turn, until the client ends."""
        conversation = Conversation(self._schemas, grpc_reflection_v1_pb2)
        async for request in stream:
            await stream.send_message(conversation.answer(request))


class AlphaReflectionService(AlphaBase):  # type: ignore[misc]  # generated without types
    """grpc.reflection.v1alpha."""

    def __init__(self, schemas: Sequence[Schema]) -> None:
        self._schemas = schemas

    async def ServerReflectionInfo(self, stream: ServerStream) -> None:  # noqa: N802
        """As above."""
        conversation = Conversation(self._schemas, grpc_reflection_v1alpha_pb2)
        async for request in stream:
            await stream.send_message(conversation.answer(request))
