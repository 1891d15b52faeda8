"""Deployments and how they are bound to each other: what `@serve.deployment` makes.

What lives here: `deployment`, `Deployment`, `Application` (a bound deployment), the nodes of a 2.1 graph. Nothing here
starts anything. What must not: how a graph becomes data (graph.py), what runs it (handlers/rpc/).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self, overload

from actorserve.serve.exceptions import GraphError, OptionError
from actorserve.serve.options import Options

__all__ = ["Application", "CallNode", "Deployment", "InputNode", "InputPart", "deployment"]


class Deployment:
    """A class or function with options, not bound yet. Made by `@serve.deployment`."""

    def __init__(self, target: Callable[..., Any], options: Options) -> None:
        if not (inspect.isclass(target) or inspect.isfunction(target)):
            raise OptionError("deployment", f"{target!r} is neither a class nor a function")
        self._target = target
        self._options = options
        self.__doc__ = target.__doc__

    @property
    def name(self) -> str:
        """Its name in an application; by default the class's or the function's."""
        return self._options.name or self._target.__name__

    @property
    def func_or_class(self) -> Callable[..., Any]:
        """What it runs."""
        return self._target

    @property
    def settings(self) -> Options:
        """Its options, as data."""
        return self._options

    def options(self, **given: Any) -> Deployment:
        """Give the same with other options; OptionError names the one that is wrong."""
        return Deployment(self._target, self._options.with_(given))

    def bind(self, *args: Any, **kwargs: Any) -> Any:
        """Give a node of an application: the arguments are the constructor's, or those of a function in a graph.

        A bound deployment among them, also inside lists, tuples, sets and dicts, arrives as a handle.

        Raises:
            TypeError: the constructor, or the function, does not take these arguments.
        """
        try:
            inspect.signature(self._target).bind(*args, **kwargs)
        except ValueError:
            pass  # a class written in C has no signature to read
        except TypeError as error:
            if inspect.isclass(self._target) or args or kwargs:
                raise TypeError(f"{self.name}.bind: {error}") from None
        application = Application(self, args, kwargs)
        if inspect.isfunction(self._target) and (args or kwargs):
            return CallNode(Application(self, (), {}), "__call__", args, kwargs)
        return application

    def __call__(self, *_args: Any, **_kwargs: Any) -> Any:
        """Say that this is not how it is called."""
        raise GraphError(f"deployment {self.name} is not called itself: bind it, run it, and call its handle")

    def __repr__(self) -> str:
        return f"Deployment(name={self.name!r})"


class Application:
    """A bound deployment: with those that its arguments name, an application that can be run."""

    def __init__(self, deployment: Deployment, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        self._deployment = deployment
        self._args = tuple(args)
        self._kwargs = dict(kwargs)

    def __getattr__(self, name: str) -> _Method:
        if name.startswith("_"):
            raise AttributeError(name)
        if not callable(getattr(self._deployment.func_or_class, name, None)):
            text = f"deployment {self._deployment.name} has no method {name!r}"
            raise AttributeError(text)  # noqa: TRY004  # what an attribute that is not there raises
        return _Method(self, name)

    def __repr__(self) -> str:
        return f"Application({self._deployment.name!r})"


class _Method:
    """One method of a bound deployment, as a 2.1 graph names it."""

    def __init__(self, application: Application, name: str) -> None:
        self._application = application
        self._name = name

    def bind(self, *args: Any, **kwargs: Any) -> CallNode:
        """Give a node that calls it; an InputNode among the arguments stands for what the graph is called with."""
        return CallNode(self._application, self._name, args, kwargs)


class CallNode:
    """A call of one method in a graph. Its arguments may be an InputNode, parts of it, or other calls."""

    def __init__(self, application: Application, method: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        self.application = application
        self.method = method
        self.args = tuple(args)
        self.kwargs = dict(kwargs)


class InputNode:
    """What a graph is called with: `with InputNode() as input:`. `input[key]` and `input.name` are parts of it."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        return None

    def __getitem__(self, key: Any) -> InputPart:
        return InputPart((("item", key),))

    def __getattr__(self, name: str) -> InputPart:
        if name.startswith("_"):
            raise AttributeError(name)
        return InputPart((("attribute", name),))


class InputPart:
    """A part of what a graph is called with; `path`: how to get it, from the outside in."""

    def __init__(self, path: tuple[tuple[str, Any], ...]) -> None:
        self._path = path

    def __getitem__(self, key: Any) -> InputPart:
        return InputPart((*self._path, ("item", key)))

    def __getattr__(self, name: str) -> InputPart:
        if name.startswith("_"):
            raise AttributeError(name)
        return InputPart((*self._path, ("attribute", name)))


@overload
def deployment(target: Callable[..., Any], /) -> Deployment: ...
@overload
def deployment(target: None = None, /, **given: Any) -> Callable[[Callable[..., Any]], Deployment]: ...
def deployment(target: Callable[..., Any] | None = None, /, **given: Any) -> Any:
    """Make a class or a function a deployment: `@serve.deployment` or `@serve.deployment(num_replicas=2)`.

    OptionError names an option that is unknown or wrong; docs/applications.md lists them.
    """
    if target is not None:
        return Deployment(target, Options())
    options = Options().with_(given)
    return lambda found: Deployment(found, options)
