"""An application as data: a list of deployments, with their arguments in one blob.

What lives here: `build`, which walks a bound deployment, and `References`, which stand for handles and calls inside the
arguments until a replica resolves them. What must not: unpickling in the server; it reads `Built.data` alone.

The blob is a pickled dict of deployment name -> cloudpickled (target, args, kwargs), so that a replica unpickles what
is its own. Only a script makes one and only a worker of the same application reads it.
"""

from __future__ import annotations

import hashlib
import inspect
import pickle
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from actorserve.serve.definition import Application, CallNode, Deployment, InputNode, InputPart
from actorserve.serve.exceptions import GraphError

BATCH_MARK = "_actorserve_batch"
"""Attribute of a function that `serve.batch` made: its settings."""


@dataclass(frozen=True, slots=True)
class HandleRef:
    """In place of a bound deployment: the name of the one that a handle calls."""

    deployment: str


@dataclass(frozen=True, slots=True)
class CallRef:
    """In place of a CallNode."""

    deployment: str
    method: str
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class InputRef:
    """In place of an InputNode, or of a part of it."""

    path: tuple[tuple[str, Any], ...] = ()


@dataclass(frozen=True, slots=True)
class Node:
    """One deployment of an application, with its arguments resolved to references."""

    name: str
    deployment: Deployment
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]

    def pickled(self) -> bytes:
        """What a replica needs to make its instance."""
        import cloudpickle  # noqa: PLC0415  # of the extra [serve]; importing this module needs it not

        return bytes(cloudpickle.dumps((self.deployment.func_or_class, self.args, dict(self.kwargs))))


@dataclass(frozen=True, slots=True)
class Built:
    """An application, ready to be sent. `ingress`: the deployment that answers its callers."""

    ingress: str
    nodes: tuple[Node, ...]
    legacy: bool = False
    parts: Mapping[str, bytes] = field(default_factory=dict, repr=False)

    @property
    def blob(self) -> bytes:
        """Every deployment's code and arguments, each pickled apart."""
        return pickle.dumps(dict(self.parts))

    def node(self, name: str) -> Node:
        """The deployment of this name; GraphError says which there are."""
        for node in self.nodes:
            if node.name == name:
                return node
        raise GraphError(f"the application has no deployment {name!r}; it has {', '.join(n.name for n in self.nodes)}")

    def data(self) -> dict[str, Any]:
        """What the server reads: names, options, ports. JSON can hold it."""
        digests = {name: hashlib.sha256(part).hexdigest() for name, part in self.parts.items()}
        return {
            "ingress": self.ingress,
            "legacy": self.legacy,
            "deployments": [_describe(node, digests.get(node.name, "")) for node in self.nodes],
        }


def build(target: Any, *, pickles: bool = True) -> Built:
    """Walk an application from its ingress; GraphError says what is wrong with it. `pickles`: make the blob."""
    if isinstance(target, Deployment):
        raise GraphError(f"deployment {target.name} is not bound: give {target.name}.bind(...)")
    if not isinstance(target, Application):
        raise GraphError(f"{target!r} is no application: expected a bound deployment")
    walk = _Walk()
    ingress = walk.name_of(target)
    nodes = tuple(walk.nodes)
    legacy = target._deployment.settings.is_driver_deployment  # noqa: SLF001  # its attributes are the user's methods
    parts = {node.name: node.pickled() for node in nodes} if pickles else {}
    return Built(ingress, nodes, legacy, parts)


class _Walk:
    """Names every bound deployment once, in the order in which a constructor needs them."""

    def __init__(self) -> None:
        self.nodes: list[Node] = []
        self._names: dict[int, str] = {}
        self._taken: set[str] = set()
        self._kept: list[Application] = []  # so that no id is given twice

    def name_of(self, bound: Application) -> str:
        """The name of a bound deployment; a second one of the same name gets a number."""
        if id(bound) in self._names:
            return self._names[id(bound)]
        deployment: Deployment = bound._deployment  # noqa: SLF001  # see build
        name, number = deployment.name, 0
        while name in self._taken:
            number += 1
            name = f"{deployment.name}_{number}"
        self._taken.add(name)
        self._names[id(bound)] = name
        self._kept.append(bound)
        args = tuple(self.refer(one) for one in bound._args)  # noqa: SLF001  # see build
        kwargs = {key: self.refer(one) for key, one in bound._kwargs.items()}  # noqa: SLF001  # see build
        self.nodes.append(Node(name, deployment, args, kwargs))
        return name

    def refer(self, value: Any) -> Any:
        """The same value with references in place of nodes."""
        match value:
            case Application():
                return HandleRef(self.name_of(value))
            case CallNode():
                args = tuple(self.refer(one) for one in value.args)
                kwargs = {key: self.refer(one) for key, one in value.kwargs.items()}
                return CallRef(self.name_of(value.application), value.method, args, kwargs)
            case InputNode():
                return InputRef()
            case InputPart():
                return InputRef(value._path)  # noqa: SLF001  # its attributes are parts
            case Deployment():
                raise GraphError(f"deployment {value.name} is an argument but not bound: give {value.name}.bind(...)")
        return over(value, self.refer)


def over(value: Any, change: Callable[[Any], Any]) -> Any:
    """A container with `change` done to what it holds; anything else as it is. Containers without nodes stay."""
    match value:
        case dict():
            made: Any = {key: change(one) for key, one in value.items()}
            same = all(made[key] is value[key] for key in value)
        case tuple() if hasattr(value, "_fields"):
            made = type(value)(*map(change, value))
            same = all(map(_is, made, value))
        case list() | tuple():
            made = type(value)(map(change, value)) if type(value) in (list, tuple) else value
            same = all(map(_is, made, value))
        case set() | frozenset():
            made = type(value)(map(change, value))
            same = made == value
        case _:
            return value
    return value if same else made


def _is(one: Any, other: Any) -> bool:
    return one is other


def batch_limit(target: Any) -> int:
    """The most calls that the batched methods of a class, or a batched function, can use at once; 0: none is."""
    functions = (
        [target]
        if inspect.isfunction(target)
        else [value for kind in target.__mro__ for value in vars(kind).values() if hasattr(value, BATCH_MARK)]
    )
    marks = [getattr(one, BATCH_MARK) for one in functions if hasattr(one, BATCH_MARK)]
    return max((mark.max_batch_size * mark.max_concurrent_batches for mark in marks), default=0)


def _describe(node: Node, digest: str) -> dict[str, Any]:
    target = node.deployment.func_or_class
    port_of = getattr(target, "grpc_port_of", None)  # drivers say so: serve/drivers.py
    return {
        "name": node.name,
        "options": node.deployment.settings.data(),
        "digest": digest,
        "batch_limit": batch_limit(target),
        "port": None if port_of is None else port_of(node.args, node.kwargs),
    }
