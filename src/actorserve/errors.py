"""Every error that crosses a floor. Each class says who is to blame; none knows gRPC.

The one table from these classes to status codes stands in `services/status.py`.
What must not live here: anything that imports trio, grpclib, torch or another floor.
"""

from __future__ import annotations

from collections.abc import Sequence


class ActorserveError(Exception):
    """Base of the errors below. Raise a subclass."""


# --- the caller's request is at fault -------------------------------------------------


class BadInput(ActorserveError):
    """The request is wrong: `field` names where, `text` says what would be right.

    A handler may raise or return it: only its own item fails.
    """

    def __init__(self, field: str, text: str) -> None:
        super().__init__(field, text)
        self.field = field
        self.text = text

    def __str__(self) -> str:
        return f"{self.field}: {self.text}"


class NoSuchModel(ActorserveError):
    """No model of this name, or no such version of it, is registered."""

    def __init__(self, name: str, version: str = "") -> None:
        super().__init__(name, version)
        self.name = name
        self.version = version

    def __str__(self) -> str:
        if self.version:
            return f"Model version: {self.version} does not exist for model: {self.name}"
        return f"Model not found: {self.name}"


class UrlNotAllowed(ActorserveError):
    """Nothing is fetched from this URL: `server.allowed_urls` does not have it. `why`: where it is not its text."""

    def __init__(self, url: str, why: str = "") -> None:
        super().__init__(url, why)
        self.url = url
        self.why = why

    def __str__(self) -> str:
        text = f"Given URL {self.url} does not match any allowed URL(s)"
        return f"{text}: {self.why}" if self.why else text


class DownloadFailed(ActorserveError):
    """What a URL names could not be fetched: its server, the way to it, or its size is at fault."""

    def __init__(self, url: str, why: str) -> None:
        super().__init__(url, why)
        self.url = url
        self.why = why

    def __str__(self) -> str:
        return f"Failed to download archive from: {self.url}: {self.why}"


class ModelFileExists(ActorserveError):
    """The model store has a file already of the name that a URL's would have."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = name

    def __str__(self) -> str:
        return f"Model file already exists {self.name}"


class NoSuchApplication(ActorserveError):
    """No application of this name runs; an empty name: the call names none, and there is not exactly one."""

    def __init__(self, name: str, known: Sequence[str] = ()) -> None:
        super().__init__(name, known)
        self.name = name
        self.known = tuple(known)

    def __str__(self) -> str:
        there = f"there are {', '.join(self.known)}" if self.known else "there are none"
        if not self.name:
            return f"the call names no application (metadata `application`), and {there}"
        return f"Application not found: {self.name}; {there}"


class NoSuchSequence(ActorserveError):
    """The sequence is not known, or not any more: it has expired or ended."""


class AlreadyRegistered(ActorserveError):
    """A model of this name and version exists already."""


class WrongState(ActorserveError):
    """The request is well formed, but the system's state forbids it; trying again will not help."""


class Unauthenticated(ActorserveError):
    """The caller brings no token that is known here."""


class NotAllowed(ActorserveError):
    """The caller is known, and may not do this."""


class ModelApiDisabled(NotAllowed):
    """Nobody may register or unregister models here: `server.model_api` is off."""

    def __init__(self) -> None:
        super().__init__("Model API disabled")


class Unsupported(ActorserveError):
    """The contract has this, the server does not (yet)."""


class NotStateful(Unsupported):
    """The model's handler has no sequences: ask it item by item."""


class TooLarge(ActorserveError):
    """A message above a limit. Sizes in `unit`."""

    def __init__(self, what: str, size: int, limit: int, unit: str = "bytes") -> None:
        super().__init__(what, size, limit, unit)
        self.what = what
        self.size = size
        self.limit = limit
        self.unit = unit

    def __str__(self) -> str:
        return f"{self.what} of {self.size} {self.unit} is larger than the limit of {self.limit} {self.unit}"


# --- the server cannot answer now ------------------------------------------------------


class Overloaded(ActorserveError):
    """The mailbox is full: try again after `retry_after_s` seconds. `limit` 0: nothing waits there, nobody is idle."""

    def __init__(self, name: str, limit: int, retry_after_s: float) -> None:
        super().__init__(name, limit, retry_after_s)
        self.name = name
        self.limit = limit
        self.retry_after_s = retry_after_s

    def __str__(self) -> str:
        if not self.limit:
            return f"model {self.name}: no worker is idle (job_tickets)"
        return f"model {self.name}: {self.limit} requests are waiting already (queue_size)"


class TooManySequences(ActorserveError):
    """The model has as many sequences as it may have: try again when one has ended."""

    def __init__(self, name: str, limit: int) -> None:
        super().__init__(name, limit)
        self.name = name
        self.limit = limit

    def __str__(self) -> str:
        return f"model {self.name}: {self.limit} sequences are open already (max_sequences)"


class Unavailable(ActorserveError):
    """The model cannot answer. Raise a subclass; `reason` is what a client can switch on."""

    reason = "UNAVAILABLE"


class ActorCrashed(Unavailable):
    """The worker died with this request in hand. Another try may work."""

    reason = "CRASHED"


class ActorGone(Unavailable):
    """The model was given up after too many failures in a row. Trying again will not help."""

    reason = "GIVEN_UP"


class NoWorkers(Unavailable):
    """The model is registered but has no worker."""

    reason = "NO_WORKERS"


class Draining(Unavailable):
    """The server drains; another server may answer."""

    reason = "DRAINING"


class StateFailed(ActorserveError):
    """The registry cannot be written: the change that was asked for was not made."""


class Expired(ActorserveError):
    """The request's deadline passed before it was answered."""


# --- the model's code is at fault --------------------------------------------------------


class HandlerRaised(ActorserveError):
    """The handler raised `kind` (the exception's type name) with `text`."""

    def __init__(self, kind: str, text: str) -> None:
        super().__init__(kind, text)
        self.kind = kind
        self.text = text

    def __str__(self) -> str:
        return f"{self.kind}: {self.text}" if self.text else self.kind


class HandlerStatus(ActorserveError):
    """The handler ended its item with a status `code` of its own, in HTTP's numbers (TorchServe's contract).

    `answer`: what it answered all the same, where it only set a status.
    """

    def __init__(self, code: int, text: str, answer: bytes | None = None) -> None:
        super().__init__(code, text, answer)
        self.code = code
        self.text = text
        self.answer = answer

    def __str__(self) -> str:
        return self.text


class LoadFailed(ActorserveError):
    """The model could not be loaded. `permanent`: no restart can mend it."""

    def __init__(self, text: str, *, permanent: bool = True) -> None:
        super().__init__(text)
        self.permanent = permanent


class StartupTimeout(ActorserveError):
    """The model was not READY within `startup_timeout_s`."""


# --- the operator is at fault ------------------------------------------------------------


class ConfigError(ActorserveError):
    """The configuration is wrong: `key` names where, `text` says what would be right."""

    def __init__(self, key: str, text: str) -> None:
        super().__init__(key, text)
        self.key = key
        self.text = text

    def __str__(self) -> str:
        return f"{self.key}: {self.text}" if self.key else self.text


class StartFailed(ActorserveError):
    """The server cannot start, for example because its port is in use."""
