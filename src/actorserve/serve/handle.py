"""Handles: how one deployment calls another, and how a script calls its application.

    answer = await handle.method.remote(x)                      # in async code
    answer = handle.method.remote(x).result()                   # in a plain def, or in a script
    async for part in handle.options(stream=True).remote(x):    # an iterator, where the method is a generator

A call begins with `.remote()`, whether somebody awaits it or not. What must not live here: its task, its
answer (responses.py), the socket (`Link`).

Rules
1. Arguments that are themselves responses are awaited first: `b.remote(a.remote(x))`.
2. The request's deadline goes with every call that it makes; when it is cancelled, so are the calls that it began.
3. A multiplexed model id is said by `.options(multiplexed_model_id=...)`, never inherited.
4. In a graph under a 2.1 driver, `.remote()` is a coroutine that gives the response: awaited twice in all.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from actorserve.serve.context import PROCESS, Link, OutCall, RequestContext
from actorserve.serve.exceptions import ServeError
from actorserve.serve.responses import GIVE_RESPONSES, DeploymentResponse, DeploymentResponseGenerator

__all__ = [
    "DeploymentHandle",
    "DeploymentResponse",
    "DeploymentResponseGenerator",
    "RayServeDAGHandle",
    "RayServeDeploymentHandle",
    "RayServeHandle",
    "RayServeSyncHandle",
]


class DeploymentHandle:
    """Calls one deployment. It can be given to another deployment, and pickled."""

    def __init__(
        self,
        deployment: str,
        application: str,
        *,
        method: str = "__call__",
        stream: bool = False,
        multiplexed_model_id: str = "",
        session_id: str = "",
        link: Link | None = None,
    ) -> None:
        """`link`: in a script; in a replica it is the process's own."""
        self._deployment = deployment
        self._application = application
        self._method = method
        self._stream = stream
        self._multiplexed_model_id = multiplexed_model_id
        self._session_id = session_id
        self._link = link

    @property
    def deployment_name(self) -> str:
        """The deployment that it calls."""
        return self._deployment

    @property
    def app_name(self) -> str:
        """The application of that deployment."""
        return self._application

    def options(
        self,
        *,
        method_name: str | None = None,
        stream: bool | None = None,
        multiplexed_model_id: str | None = None,
        session_id: str | None = None,
    ) -> DeploymentHandle:
        """Give a handle that calls in another way. What is None stays."""
        return type(self)(
            self._deployment,
            self._application,
            method=self._method if method_name is None else method_name,
            stream=self._stream if stream is None else stream,
            multiplexed_model_id=self._multiplexed_model_id if multiplexed_model_id is None else multiplexed_model_id,
            session_id=self._session_id if session_id is None else session_id,
            link=self._link,
        )

    def __getattr__(self, name: str) -> DeploymentHandle:
        if name.startswith("_"):
            raise AttributeError(name)
        return self.options(method_name=name)

    def __reduce__(self) -> Any:
        options = {
            "method": self._method,
            "stream": self._stream,
            "multiplexed_model_id": self._multiplexed_model_id,
            "session_id": self._session_id,
        }
        return _restored, (type(self), self._deployment, self._application, options)

    def __repr__(self) -> str:
        return f"{type(self).__name__}(deployment={self._deployment!r}, application={self._application!r})"

    def remote(self, *args: Any, **kwargs: Any) -> Any:
        """Begin a call. Gives a DeploymentResponse, or a DeploymentResponseGenerator where `stream` was asked for."""
        return self._begin(args, kwargs)

    def _begin(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        link = self._link or PROCESS.link
        if link is None:
            raise ServeError(f"{self!r}: there is no server to ask here; not while the module loads")
        kind = DeploymentResponseGenerator if self._stream else DeploymentResponse
        return kind(link, self, self._call, args, kwargs)

    def _call(self, payload: bytes, asking: RequestContext | None) -> OutCall:
        """The call as data, with what the request that makes it hands down."""
        metadata: dict[str, str | bytes] = {}
        if asking is not None:
            for key in ("request_id", "traceparent"):
                if value := getattr(asking, key):
                    metadata[key] = value
        if self._multiplexed_model_id:
            metadata["multiplexed_model_id"] = self._multiplexed_model_id
        if session := self._session_id or (asking.session_id if asking is not None else ""):
            metadata["session_id"] = session
        deadline = None if asking is None else asking.deadline
        return OutCall(self._application, self._deployment, self._method, payload, self._stream, deadline, metadata)


def _restored(kind: type[DeploymentHandle], deployment: str, application: str, options: dict[str, Any]) -> Any:
    return kind(deployment, application, **options)


class RayServeDeploymentHandle(DeploymentHandle):
    """A handle in a graph under a 2.1 driver: `.remote()` is a coroutine that gives the response."""

    async def remote(self, *args: Any, **kwargs: Any) -> Any:
        """Begin a call and give its response, to be awaited in turn."""
        return self._begin(args, kwargs)


RayServeHandle = RayServeDeploymentHandle


class RayServeSyncHandle(DeploymentHandle):
    """Ray's name of a handle in a script."""


class RayServeDAGHandle:
    """What a 2.1 driver gets in place of a graph: `await (await dag.remote(x))` runs it."""

    def __init__(self, node: Any) -> None:
        """`node`: a DeploymentHandle, or a `Call` with its arguments resolved to such."""
        self._node = node

    async def remote(self, *args: Any) -> Any:
        """Begin the graph with its input and give its response."""
        given = args[0] if len(args) == 1 else args
        return self._started(self._node, given)

    def _started(self, node: Any, given: Any) -> Any:
        if isinstance(node, Call):
            args = tuple(self._filled(one, given) for one in node.args)
            kwargs = {key: self._filled(one, given) for key, one in node.kwargs.items()}
            return DeploymentHandle._begin(node.handle, args, kwargs)  # noqa: SLF001  # of one file
        return DeploymentHandle._begin(node, (given,), {})  # noqa: SLF001  # of one file

    def _filled(self, value: Any, given: Any) -> Any:
        """The value with the input in place of what stands for it; a call inside is begun."""
        if isinstance(value, Input):
            return value.of(given)
        if isinstance(value, Call):
            return self._started(value, given)
        return value


GIVE_RESPONSES.update((RayServeDeploymentHandle.remote.__code__, RayServeDAGHandle.remote.__code__))


class Call:
    """A call in a graph: whom, and with what."""

    def __init__(self, handle: DeploymentHandle, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        self.handle = handle
        self.args = args
        self.kwargs = kwargs


class Input:
    """The input of a graph, or a part of it."""

    def __init__(self, path: tuple[tuple[str, Any], ...]) -> None:
        self.path = path

    def of(self, given: Any) -> Any:
        """Take the part out of what the graph was called with."""
        for how, key in self.path:
            given = given[key] if how == "item" else getattr(given, key)
        return given
