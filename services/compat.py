"""`compatibility = "torchserve"`: an error of ours and what was asked -> TorchServe's status and text.

Measured on TorchServe 0.12.0. A text has two lines: the message, and the Java class or a literal that names the kind;
where TorchServe lets an exception escape it is UNKNOWN without a text. What TorchServe has no row for keeps our
status and text. Its faults are not repeated: where it loses an answer, the answer is what it says when it does not.
docs/torchserve-compatibility.md has both tables. Pure but for `translate`, which reads the call; the record of a call
(the access log) keeps our own text. Over 250 lines: it is one table. What must not live here: our own (status.py), who
raised what.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from google.rpc.error_details_pb2 import ErrorInfo
from grpclib.const import Status
from grpclib.encoding.proto import ProtoStatusDetailsCodec
from grpclib.exceptions import GRPCError

from actorserve import errors
from actorserve.config_types import is_packed
from actorserve.services import status as ours
from actorserve.services.access import Finds, service_of
from actorserve.services.status import coded, shorten
from actorserve.services.tokens import Token
from actorserve.services.transport.server_stream import Malformed, ServerStream

BAD = "BadRequestException.()"
INTERNAL = "InternalServerException.()"
BAD_REQUEST = "org.pytorch.serve.http.BadRequestException"
INTERNAL_SERVER = "org.pytorch.serve.http.InternalServerException"
NO_MODEL = "org.pytorch.serve.archive.model.ModelNotFoundException"
NO_VERSION = "org.pytorch.serve.archive.model.ModelVersionNotFoundException"
INVALID_MODEL = "org.pytorch.serve.archive.model.InvalidModelException"
MODEL = "org.pytorch.serve.archive.model.ModelException"
DOWNLOAD = "org.pytorch.serve.archive.DownloadArchiveException"

TOKEN = "Token Authorization failed. Token either incorrect, expired, or not provided correctly"  # noqa: S105  # a text
URL_MISSING = "Parameter url is required."
NO_NAME = "Model name is not defined."
SCALE_ORDER = "max_worker cannot be less than min_worker."
OUT_OF_RESOURCES = "Out of resources"
DIED = "Worker died."
OF_HANDLERS = (
    "Invalid model predict output",
    "number of batch response mismatched",
    "Unsupported model output data type.",
)
"""What a handler in TorchServe's style is told when it answers what cannot be sent (handlers/torchserve/rows.py)."""
OF_REGISTER = (URL_MISSING, SCALE_ORDER, "Invalid RuntimeType value: ")
NOT_FETCHED = ("Relative path is not allowed in url: ", "does not match any allowed URL(s)")
OUTSIDE = "is not a folder inside the model store"
FETCHED = ("http", "https", "file")
BY_KERNEL = "SIGKILL"
"""How a worker's end reads when the kernel or a person ended it, as for want of memory: TorchServe's exit code 137."""
INFERENCE, MANAGEMENT = "inference", "management"
_bearer = re.compile(r"Bearer\s+\S+").fullmatch


class About(NamedTuple):
    """What a call asks for, as far as it has been read. `version` is the request's; of RegisterModel the model's.

    `customized`: DescribeModel asks the handler.
    """

    model: str = ""
    version: str = ""
    url: str = ""
    customized: bool = False


class Said(NamedTuple):
    """A status and the two lines of its text; `kind` is also the reason inside a stream."""

    status: Status
    text: str = ""
    kind: str = ""

    @property
    def message(self) -> str:
        """The text as it travels."""
        return f"{shorten(self.text)}\n{self.kind}" if self.kind else self.text


Row = Callable[[Any, About], Said | None]

UNCAUGHT = Said(Status.UNKNOWN)
"""TorchServe did not catch it."""


def translate(error: Exception, call: ServerStream) -> GRPCError | None:
    """The status of a call; None: not one of ours, so a bug."""
    service, rpc = service_of(call.method), call.method.rpartition("/")[2]
    about = call.about if isinstance(call.about, About) else About()
    said = answer(error, service, rpc, about)
    if said is not None:
        return GRPCError(said.status, said.message)
    known = ours.translate(error)
    if known is None or isinstance(error, GRPCError) or service not in (INFERENCE, MANAGEMENT):
        return known
    return GRPCError(known.status, f"{known.message}\n{_kind(error)}", known.details)


def status_bytes(error: Exception, about: About) -> bytes:
    """A google.rpc.Status in its bytes, for a reply of StreamPredictions2; its ErrorInfo's reason is the kind."""
    said = answer(error, INFERENCE, "StreamPredictions2", about)
    if said is None:
        known = ours.translate(error) or GRPCError(Status.INTERNAL, "internal error")
        said = Said(known.status, known.message or "", _kind(error))
    return ProtoStatusDetailsCodec().encode(said.status, shorten(said.text), [ErrorInfo(reason=said.kind)])


def answer(error: Exception, service: str, rpc: str, about: About) -> Said | None:
    """TorchServe's row for an error of an rpc; None: it has none. `service` is its name in the config."""
    said = _of_door(error)
    if said is None and service == INFERENCE:
        return _of_inference(error, about)
    if said is None and service == MANAGEMENT:
        return _of_customized(error) if about.customized else _of_management(error, rpc, about)
    return said


def _of_door(error: Exception) -> Said | None:
    """What is said before anything is asked, whatever it is."""
    match error:
        case errors.ModelApiDisabled():
            return Said(Status.PERMISSION_DENIED, str(error), MODEL)
        case errors.Unauthenticated() | errors.NotAllowed():
            return Said(Status.PERMISSION_DENIED, TOKEN)
        case Malformed():
            return UNCAUGHT
    return None


def _kind(error: Exception) -> str:
    return BAD_REQUEST if isinstance(error, errors.BadInput) else INTERNAL_SERVER


# --- inference ------------------------------------------------------------------------------------


def _of_inference(error: Exception, about: About) -> Said | None:
    match error:
        case errors.BadInput(field="model_name") if not about.model:
            return Said(Status.INTERNAL, "Parameter model_name is required.", BAD)
        case errors.NoSuchModel():
            return _not_found(error, Status.INTERNAL)
        case (
            errors.NoWorkers()
            | errors.ActorGone()
            | errors.Overloaded()
            | errors.TooManySequences()
            | errors.NoSuchSequence()
        ):
            return Said(Status.INTERNAL, no_worker(about), INTERNAL)
        case errors.ActorCrashed() | errors.Draining():
            return Said(_of_death(error), DIED, INTERNAL_SERVER)
        case errors.HandlerRaised() | errors.HandlerStatus():
            return _of_handler(error)
    return None


def _of_handler(error: errors.HandlerRaised | errors.HandlerStatus) -> Said:
    if isinstance(error, errors.HandlerStatus):
        return Said(coded(error.code), error.text, INTERNAL_SERVER)
    if error.kind == "MemoryError" or "CUDA" in error.text:
        return Said(Status.INTERNAL, OUT_OF_RESOURCES, INTERNAL_SERVER)
    text = error.text if error.text in OF_HANDLERS else "Prediction failed"
    return Said(Status.UNAVAILABLE, text, INTERNAL_SERVER)


def no_worker(about: About) -> str:
    """The one text for no worker, a full queue and a sequence that cannot go on. Its stray quote is TorchServe's."""
    version = f'" Version {about.version}' if about.version else ""
    return (
        f'Model "{about.model}{version}" has no worker to serve inference request. Please use scale workers API to add '
        "workers. If this is a sequence inference, please check if it is closed, or expired; or exceeds "
        "maxSequenceJobQueueSize"
    )


def _not_found(error: Any, status: Status) -> Said:
    return Said(status, str(error), NO_VERSION if error.version else NO_MODEL)


def _of_death(error: Exception) -> Status:
    return Status.RESOURCE_EXHAUSTED if BY_KERNEL in str(error) else Status.INTERNAL


# --- management -----------------------------------------------------------------------------------


def _of_customized(error: Exception) -> Said | None:
    match error:
        case errors.BadInput(field="model_name"):
            return Said(Status.INTERNAL, "Model not found: ", NO_MODEL)
        case errors.NoSuchModel():
            return _not_found(error, Status.INTERNAL)
        case errors.NoWorkers() | errors.ActorGone() | errors.Overloaded():
            return Said(Status.INTERNAL, INTERNAL, INTERNAL_SERVER)
        case errors.ActorCrashed() | errors.Draining():
            return Said(_of_death(error), DIED, INTERNAL_SERVER)
        case errors.HandlerRaised() | errors.HandlerStatus():
            return _of_handler(error)
    return None


def _of_management(error: Exception, rpc: str, about: About) -> Said | None:
    for rpcs, kind, row in ROWS:
        if rpc in rpcs and isinstance(error, kind):
            said = row(error, about)
            if said is not None:
                return said
    return None


def _without_name(said: Said) -> Row:
    """The row of a request that names no model."""
    return lambda _, about: None if about.model or about.url else said


def _uncaught(_error: Any, _about: About) -> Said:
    return UNCAUGHT


def _of_scheme(_error: Any, about: About) -> Said | None:
    """TorchServe cannot make a URL of s3: and its like, and lets that escape."""
    scheme, mark, _ = about.url.partition("://")
    return UNCAUGHT if mark and scheme.lower() not in FETCHED else None


def _of_list(error: Any, about: About) -> Said:
    """A URL that is not allowed. Ours also says why, where that is not its text."""
    return _of_scheme(error, about) or Said(Status.NOT_FOUND, str(errors.UrlNotAllowed(error.url)), NO_MODEL)


def _of_download(_error: Any, about: About) -> Said:
    return Said(Status.INVALID_ARGUMENT, f"Failed to download archive from: {about.url}", DOWNLOAD)


def _of_choice(error: Any, about: About) -> Said | None:
    if not error.version:
        return None
    text = f"Model version {about.version} does not exist for model {about.model}"
    return Said(Status.NOT_FOUND, text, NO_VERSION)


def _of_fields(error: Any, about: About) -> Said | None:
    text = error.text
    if text.startswith(OF_REGISTER):
        return Said(Status.INVALID_ARGUMENT, text, BAD_REQUEST)
    if text == NO_NAME:
        return Said(Status.INVALID_ARGUMENT, text, INVALID_MODEL)
    return _of_url(text, about) if error.field == "url" else None


def _of_url(text: str, about: About) -> Said | None:
    """A source that is not allowed, not there or broken. What a folder of ours says wrong of itself is no row."""
    if any(words in text for words in NOT_FETCHED):
        return Said(Status.NOT_FOUND, text, NO_MODEL)
    if OUTSIDE in text:
        return _not_there(about)
    if not is_packed(about.url) and "neither a folder nor an archive" not in text:
        return None if "cannot be used" in text else _not_there(about)
    if "MANIFEST.json: Invalid RuntimeType value: '" in text:  # a text that is none: another type does not parse
        return Said(Status.INVALID_ARGUMENT, "Runtime is not defined or invalid.", INVALID_MODEL)
    if "MANIFEST.json" in text:
        return Said(Status.INVALID_ARGUMENT, "Failed to parse signature.json.", INVALID_MODEL)
    return _not_saved(about)


def _not_there(about: About) -> Said:
    return Said(Status.NOT_FOUND, f"Model not found at: {about.url}", NO_MODEL)


def _not_saved(about: About) -> Said:
    return Said(Status.INTERNAL, f"Failed to save model: {about.url}", INTERNAL_SERVER)


def _of_start(error: Any, about: About) -> Said:
    """A model that cannot start; where it is not known yet, its archive cannot be unpacked."""
    if not about.model:
        return _not_saved(about)
    if about.url and "its requirements" in str(error):  # as actors/installing.py says it
        return Said(Status.INVALID_ARGUMENT, f"Custom pip package installation failed for model {about.model}", MODEL)
    text = f"Failed to start workers for model {about.model} version: {about.version or 'null'}"
    return Said(_of_death(error), text, INTERNAL_SERVER)


_NAMELESS = Said(Status.NOT_FOUND, "Model not found: ", NO_MODEL)
_STARTS = ("RegisterModel", "ScaleWorker")
_OTHERS = ("ScaleWorker", "DescribeModel", "SetDefault", "UnregisterModel")
ROWS: tuple[tuple[Sequence[str], type[Exception] | tuple[type[Exception], ...], Row], ...] = (
    (("UnregisterModel",), errors.BadInput, _without_name(Said(Status.INVALID_ARGUMENT, URL_MISSING, BAD_REQUEST))),
    (_STARTS, errors.BadInput, _of_fields),
    (("ScaleWorker",), errors.BadInput, _without_name(UNCAUGHT)),
    (("DescribeModel", "SetDefault"), errors.BadInput, _without_name(_NAMELESS)),
    (("SetDefault",), errors.NoSuchModel, _of_choice),
    (("RegisterModel",), errors.NoSuchModel, lambda _, about: _not_there(about)),
    (_OTHERS, errors.NoSuchModel, lambda error, _: _not_found(error, Status.NOT_FOUND)),
    (("RegisterModel",), errors.AlreadyRegistered, _uncaught),
    (("RegisterModel",), errors.Unsupported, _of_scheme),
    (("RegisterModel",), errors.UrlNotAllowed, _of_list),
    (("RegisterModel",), errors.DownloadFailed, _of_download),
    (("RegisterModel",), errors.ModelFileExists, lambda error, _: Said(Status.INTERNAL, str(error), INTERNAL_SERVER)),
    (("UnregisterModel",), errors.WrongState, _uncaught),
    (_STARTS, (errors.LoadFailed, errors.StartupTimeout), _of_start),
)
"""The management rpcs: the first row whose rpc and error fit, and that says something."""


# --- tokens ---------------------------------------------------------------------------------------


class CaseSensitive:
    """Tokens of a listener that takes `Bearer TOKEN` only as TorchServe writes it."""

    def __init__(self, tokens: Finds) -> None:
        self._tokens = tokens

    def find(self, authorization: str) -> Token | None:
        """See `Tokens.find`."""
        return self._tokens.find(authorization) if _bearer(authorization) else None
