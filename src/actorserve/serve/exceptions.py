"""The errors of applications, under the names that Ray Serve's users catch.

What lives here: what user code may see raised by a handle, by `serve.run` or by an option. What must not: statuses.
"""

from __future__ import annotations

__all__ = [
    "BackPressureError",
    "BatchSizeError",
    "DeployError",
    "DeploymentUnavailableError",
    "GraphError",
    "OptionError",
    "RayServeException",
    "RequestCancelledError",
    "ServeError",
    "gRPCStatusError",
]


class ServeError(Exception):
    """Base of the errors here."""


RayServeException = ServeError
"""Ray's name of the base."""


class DeployError(ServeError, RuntimeError):
    """An application cannot run, or not as it was to be changed: what `serve.run` raises. Ray's is a RuntimeError."""


class OptionError(ServeError, ValueError):
    """An option of a deployment is wrong: `option` names it, `text` says what would be right."""

    def __init__(self, option: str, text: str) -> None:
        super().__init__(option, text)
        self.option = option
        self.text = text

    def __str__(self) -> str:
        return f"{self.option}: {self.text}"


class GraphError(ServeError, ValueError):
    """Deployments are bound in a way that makes no application."""


class BatchSizeError(ServeError):
    """A batched function gave another number of results than it was given items."""


class RequestCancelledError(ServeError):
    """The request was cancelled before it was answered: by its caller, or by `cancel()`."""


class BackPressureError(ServeError):
    """The deployment has as many requests waiting as it may have (max_queued_requests): try again later.

    `retry_after_s`: when, as the server reckons; 0: it cannot tell.
    """

    def __init__(self, text: str = "", retry_after_s: float = 0.0) -> None:
        super().__init__(text, retry_after_s)
        self.text = text
        self.retry_after_s = retry_after_s

    def __str__(self) -> str:
        return self.text


class DeploymentUnavailableError(ServeError):
    """No replica of the deployment can answer, or the one that had the request died. `reason`: as in ErrorInfo."""

    def __init__(self, text: str = "", reason: str = "") -> None:
        super().__init__(text, reason)
        self.text = text
        self.reason = reason

    def __str__(self) -> str:
        return self.text


class gRPCStatusError(ServeError):  # noqa: N801  # Ray's name
    """The call ended with a status that no other error here says. `code`: gRPC's number."""

    def __init__(self, code: int, details: str) -> None:
        super().__init__(code, details)
        self.code = code
        self.details = details

    def __str__(self) -> str:
        return self.details or f"status {self.code}"
