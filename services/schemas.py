"""Schemas: which services there are, and the .proto files that describe them. What reflection answers from.

What lives here: `Schema`, one set of services with the files that they need, in a pool of its own.
What must not: the wire's messages (reflection.py); importing generated code; anything of a model.

Rules
1. Schemas are never merged: two users may bring two different files of one name, and both stay whole.
2. A schema holds what its services need and nothing more, whatever else the pool that they came from has.
3. A service whose messages name no such service in their pool (one written by hand) has a name and no files.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Protocol

from google.protobuf.descriptor import FileDescriptor, ServiceDescriptor
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from google.protobuf.descriptor_pool import DescriptorPool
from grpclib.const import Handler


class HasMapping(Protocol):
    """A grpclib service."""

    def __mapping__(self) -> Mapping[str, Handler]:
        """Give the handlers by path."""


def names_of(service: HasMapping) -> list[str]:
    """The full names of the services that an object answers for."""
    return list(dict.fromkeys(path.split("/")[1] for path in service.__mapping__()))


class Schema:
    """Services by name, and the files that describe them."""

    def __init__(self, services: Iterable[str], files: Iterable[bytes]) -> None:
        """`files`: serialized FileDescriptorProtos, each behind those that it imports."""
        self.services = tuple(services)
        self._pool = DescriptorPool()
        self._imports: dict[str, tuple[str, ...]] = {}
        self._files: dict[str, bytes] = {}
        for data in files:
            file = FileDescriptorProto.FromString(data)
            self._pool.AddSerializedFile(data)
            self._files[file.name] = data
            self._imports[file.name] = tuple(file.dependency)

    @classmethod
    def of(cls, services: Iterable[HasMapping]) -> Schema:
        """The schema of service objects, found through the messages of their methods."""
        names: list[str] = []
        files: dict[str, bytes] = {}
        for service in services:
            for name in names_of(service):
                names.append(name)
                found = _descriptor(service, name)
                if found is not None:
                    _add_with_imports(found.file, files)
        return cls(names, files.values())

    def file(self, name: str) -> bytes | None:
        """One file by the name under which others import it."""
        return self._files.get(name)

    def containing(self, symbol: str) -> list[bytes] | None:
        """The file that defines a symbol, then every file that it needs."""
        for name in (symbol, symbol.rpartition(".")[0]):  # the pool finds a service, but not its methods
            try:
                file = self._pool.FindFileContainingSymbol(name)
            except KeyError:
                continue
            if name == symbol or self._is_method(symbol):
                return self._with_imports(file.name)
        return None

    def _is_method(self, symbol: str) -> bool:
        service, _, method = symbol.rpartition(".")
        try:
            return method in self._pool.FindServiceByName(service).methods_by_name
        except KeyError:
            return False

    def extending(self, message: str, number: int) -> list[bytes] | None:
        """The file that defines an extension of a message, then every file that it needs."""
        try:
            extension = self._pool.FindExtensionByNumber(self._pool.FindMessageTypeByName(message), number)
        except KeyError:
            return None
        return self._with_imports(self._pool.FindFileContainingSymbol(extension.full_name).name)

    def extensions(self, message: str) -> list[int] | None:
        """The numbers of a message's extensions; None: there is no such message."""
        try:
            descriptor = self._pool.FindMessageTypeByName(message)
        except KeyError:
            return None
        return sorted(extension.number for extension in self._pool.FindAllExtensions(descriptor))

    def answers_for(self, symbol: str) -> bool:
        """Whether a symbol is one of the services, or a method of one."""
        return symbol in self.services or symbol.rpartition(".")[0] in self.services

    def _with_imports(self, name: str) -> list[bytes]:
        order: dict[str, None] = {name: None}
        queue = [name]
        while queue:
            for other in self._imports[queue.pop()]:
                if other not in order:
                    order[other] = None
                    queue.append(other)
        return [self._files[one] for one in order]


def _descriptor(service: HasMapping, name: str) -> ServiceDescriptor | None:
    """A service's descriptor: from a file of its messages, else from a pool that one of them lives in (rule 3)."""
    files = list(_message_files(service, name))
    for file in files:  # first: an Empty among the messages lives in a pool that may have another service of this name
        for descriptor in file.services_by_name.values():
            if descriptor.full_name == name:
                return descriptor
    for file in files:
        try:
            return file.pool.FindServiceByName(name)
        except KeyError:
            continue
    return None


def _message_files(service: HasMapping, name: str) -> Iterator[FileDescriptor]:
    for path, handler in service.__mapping__().items():
        if path.startswith(f"/{name}/"):
            for message in (handler.request_type, handler.reply_type):
                descriptor = getattr(message, "DESCRIPTOR", None)
                if descriptor is not None:
                    yield descriptor.file


def _add_with_imports(file: FileDescriptor, files: dict[str, bytes]) -> None:
    """Enter a file behind all that it imports."""
    if file.name not in files:
        for other in file.dependencies:
            _add_with_imports(other, files)
        files[file.name] = file.serialized_pb
