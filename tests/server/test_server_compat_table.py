"""TorchServe's table (services/compat.py), row by row: an error and what was asked, and what TorchServe 0.12.0 says.

The texts stand here a second time, in full: they are what clients match.
"""

from types import SimpleNamespace

import pytest
from google.rpc import status_pb2
from google.rpc.error_details_pb2 import ErrorInfo
from grpclib.const import Status
from grpclib.exceptions import GRPCError

from actorserve import errors
from actorserve.actors.model_actor import describe_status
from actorserve.services.compat import About, CaseSensitive, status_bytes, translate
from actorserve.services.transport.server_stream import Malformed

INFERENCE = "/org.pytorch.serve.grpc.inference.InferenceAPIsService/"
MANAGEMENT = "/org.pytorch.serve.grpc.management.ManagementAPIsService/"
DENIED = "Token Authorization failed. Token either incorrect, expired, or not provided correctly"
NO_WORKER = (
    " has no worker to serve inference request. Please use scale workers API to add workers. If this is a sequence "
    "inference, please check if it is closed, or expired; or exceeds maxSequenceJobQueueSize"
)
HTTP = "org.pytorch.serve.http."
MODEL = "org.pytorch.serve.archive.model."

M, MV = About("m"), About("m", "2")
FULL = 'Model "m"' + NO_WORKER + "\nInternalServerException.()"
DIED = f"Worker died.\n{HTTP}InternalServerException"
FAILED = f"Prediction failed\n{HTTP}InternalServerException"
MEMORY = f"Out of resources\n{HTTP}InternalServerException"
KILLED = "the worker of model m died: " + describe_status(-9)

PREDICTIONS = [
    (errors.BadInput("model_name", "is empty"), About(), Status.INTERNAL,
     "Parameter model_name is required.\nBadRequestException.()"),
    (errors.NoSuchModel("m"), M, Status.INTERNAL, f"Model not found: m\n{MODEL}ModelNotFoundException"),
    (errors.NoSuchModel("m", "2"), MV, Status.INTERNAL,
     f"Model version: 2 does not exist for model: m\n{MODEL}ModelVersionNotFoundException"),
    (errors.NoWorkers("none"), M, Status.INTERNAL, FULL),
    (errors.NoWorkers("none"), MV, Status.INTERNAL,
     'Model "m" Version 2"' + NO_WORKER + "\nInternalServerException.()"),
    (errors.ActorGone("given up"), M, Status.INTERNAL, FULL),
    (errors.Overloaded("m", 8, 1.5), M, Status.INTERNAL, FULL),
    (errors.TooManySequences("m", 8), M, Status.INTERNAL, FULL),
    (errors.NoSuchSequence("expired"), M, Status.INTERNAL, FULL),
    (errors.HandlerRaised("KeyError", "'x'"), M, Status.UNAVAILABLE, FAILED),
    (errors.HandlerRaised("KeyError", ""), M, Status.UNAVAILABLE, FAILED),
    (errors.HandlerRaised("RuntimeError", "CUDA error: out of memory"), M, Status.INTERNAL, MEMORY),
    (errors.HandlerRaised("MemoryError", ""), M, Status.INTERNAL, MEMORY),
    (errors.HandlerRaised("TypeError", "Invalid model predict output"), M, Status.UNAVAILABLE,
     f"Invalid model predict output\n{HTTP}InternalServerException"),
    (errors.HandlerRaised("ValueError", "number of batch response mismatched"), M, Status.UNAVAILABLE,
     f"number of batch response mismatched\n{HTTP}InternalServerException"),
    (errors.HandlerRaised("TypeError", "Unsupported model output data type."), M, Status.UNAVAILABLE,
     f"Unsupported model output data type.\n{HTTP}InternalServerException"),
    (errors.HandlerStatus(404, "not here"), M, Status.NOT_FOUND, f"not here\n{HTTP}InternalServerException"),
    (errors.HandlerStatus(302, "moved"), M, Status.UNKNOWN, f"moved\n{HTTP}InternalServerException"),
    (errors.HandlerStatus(0, "nothing"), M, Status.UNKNOWN, f"nothing\n{HTTP}InternalServerException"),
    (errors.ActorCrashed("it exited with status 1"), M, Status.INTERNAL, DIED),
    (errors.ActorCrashed(KILLED), M, Status.RESOURCE_EXHAUSTED, DIED),
    (errors.Draining("going"), M, Status.INTERNAL, DIED),
]  # fmt: skip

NOT_STARTED = f"Failed to start workers for model m version: 2\n{HTTP}InternalServerException"
MAR = About(url="m.mar")
HTTPS = "https://a/m.mar"

ROWS = [
    *((f"{INFERENCE}{rpc}", *row) for rpc in ("Predictions", "StreamPredictions", "StreamPredictions2")
      for row in PREDICTIONS),
    # the doors
    (f"{INFERENCE}Ping", errors.Unauthenticated("no token"), None, Status.PERMISSION_DENIED, DENIED),
    (f"{MANAGEMENT}ListModels", errors.Unauthenticated("no token"), None, Status.PERMISSION_DENIED, DENIED),
    ("/grpc.health.v1.Health/Check", errors.Unauthenticated("no token"), None, Status.PERMISSION_DENIED, DENIED),
    (f"{INFERENCE}Predictions", errors.NotAllowed("not this model"), M, Status.PERMISSION_DENIED, DENIED),
    (f"{INFERENCE}Predictions", Malformed(Status.INVALID_ARGUMENT, "not a message"), None, Status.UNKNOWN, ""),
    (f"{MANAGEMENT}ScaleWorker", Malformed(Status.INVALID_ARGUMENT, "not a message"), None, Status.UNKNOWN, ""),
    *((f"{MANAGEMENT}{rpc}", errors.ModelApiDisabled(), None, Status.PERMISSION_DENIED,
       f"Model API disabled\n{MODEL}ModelException") for rpc in ("RegisterModel", "UnregisterModel")),
    # DescribeModel
    (f"{MANAGEMENT}DescribeModel", errors.BadInput("model_name", "is empty"), About(), Status.NOT_FOUND,
     f"Model not found: \n{MODEL}ModelNotFoundException"),
    (f"{MANAGEMENT}DescribeModel", errors.NoSuchModel("m"), M, Status.NOT_FOUND,
     f"Model not found: m\n{MODEL}ModelNotFoundException"),
    (f"{MANAGEMENT}DescribeModel", errors.NoSuchModel("m", "2"), MV, Status.NOT_FOUND,
     f"Model version: 2 does not exist for model: m\n{MODEL}ModelVersionNotFoundException"),
    # DescribeModel, customized
    *((f"{MANAGEMENT}DescribeModel", error, About("m", customized=True), status, text) for error, status, text in (
        (errors.BadInput("model_name", "is empty"), Status.INTERNAL,
         f"Model not found: \n{MODEL}ModelNotFoundException"),
        (errors.NoSuchModel("m"), Status.INTERNAL, f"Model not found: m\n{MODEL}ModelNotFoundException"),
        (errors.NoSuchModel("m", "2"), Status.INTERNAL,
         f"Model version: 2 does not exist for model: m\n{MODEL}ModelVersionNotFoundException"),
        (errors.NoWorkers("none"), Status.INTERNAL, f"InternalServerException.()\n{HTTP}InternalServerException"),
        (errors.Overloaded("m", 8, 1.5), Status.INTERNAL, f"InternalServerException.()\n{HTTP}InternalServerException"),
        (errors.ActorGone("x"), Status.INTERNAL, f"InternalServerException.()\n{HTTP}InternalServerException"),
        (errors.HandlerRaised("KeyError", "'x'"), Status.UNAVAILABLE, FAILED),
        (errors.ActorCrashed("it exited with status 1"), Status.INTERNAL, DIED),
    )),
    # RegisterModel
    *((f"{MANAGEMENT}RegisterModel", error, about, status, text) for error, about, status, text in (
        (errors.BadInput("url", "Parameter url is required."), About(), Status.INVALID_ARGUMENT,
         f"Parameter url is required.\n{HTTP}BadRequestException"),
        (errors.BadInput("runtime", "Invalid RuntimeType value: lua"), MAR, Status.INVALID_ARGUMENT,
         f"Invalid RuntimeType value: lua\n{HTTP}BadRequestException"),
        (errors.BadInput("model_name", "Model name is not defined."), MAR, Status.INVALID_ARGUMENT,
         f"Model name is not defined.\n{MODEL}InvalidModelException"),
        (errors.NoSuchModel("m.mar (no such folder or archive)"), MAR, Status.NOT_FOUND,
         f"Model not found at: m.mar\n{MODEL}ModelNotFoundException"),
        (errors.BadInput("url", "'/etc' is not a folder inside the model store"), About(url="/etc"), Status.NOT_FOUND,
         f"Model not found at: /etc\n{MODEL}ModelNotFoundException"),
        (errors.BadInput("url", "Relative path is not allowed in url: ../m.mar"), About(url="../m.mar"),
         Status.NOT_FOUND, f"Relative path is not allowed in url: ../m.mar\n{MODEL}ModelNotFoundException"),
        (errors.BadInput("url", "'m.mar' cannot be used: File is not a zip file"), MAR, Status.INTERNAL,
         f"Failed to save model: m.mar\n{HTTP}InternalServerException"),
        (errors.LoadFailed("m.mar cannot be read"), MAR, Status.INTERNAL,
         f"Failed to save model: m.mar\n{HTTP}InternalServerException"),
        (errors.BadInput("url", "'m.mar' cannot be used: MAR-INF/MANIFEST.json: it is not JSON"), MAR,
         Status.INVALID_ARGUMENT, f"Failed to parse signature.json.\n{MODEL}InvalidModelException"),
        (errors.AlreadyRegistered("there"), MV, Status.UNKNOWN, ""),
        (errors.Unsupported("not fetched"), About(url="s3://bucket/m.mar"), Status.UNKNOWN, ""),
        (errors.UrlNotAllowed("s3://bucket/m.mar"), About(url="s3://bucket/m.mar"), Status.UNKNOWN, ""),
        (errors.UrlNotAllowed(HTTPS, "its host is not public"), About(url=HTTPS), Status.NOT_FOUND,
         f"Given URL {HTTPS} does not match any allowed URL(s)\n{MODEL}ModelNotFoundException"),
        (errors.DownloadFailed("elsewhere", "the answer was 404"), About(url=HTTPS), Status.INVALID_ARGUMENT,
         f"Failed to download archive from: {HTTPS}\norg.pytorch.serve.archive.DownloadArchiveException"),
        (errors.ModelFileExists("m.mar"), About(url=HTTPS), Status.INTERNAL,
         f"Model file already exists m.mar\n{HTTP}InternalServerException"),
        (errors.BadInput("url", "'m.txt' cannot be used: it is neither a folder nor an archive"),
         About(url="m.txt"), Status.INTERNAL, f"Failed to save model: m.txt\n{HTTP}InternalServerException"),
        (errors.BadInput("url", "'m.mar' cannot be used: MAR-INF/MANIFEST.json: Invalid RuntimeType value: 'lua'"),
         MAR, Status.INVALID_ARGUMENT, f"Runtime is not defined or invalid.\n{MODEL}InvalidModelException"),
        (errors.LoadFailed("no file"), MV, Status.INTERNAL, NOT_STARTED),
        (errors.StartupTimeout("slow"), MV, Status.INTERNAL, NOT_STARTED),
        (errors.LoadFailed(describe_status(-9)), MV, Status.RESOURCE_EXHAUSTED, NOT_STARTED),
        (errors.LoadFailed("its requirements cannot be installed: no"), About("m", "2", "m.mar"),
         Status.INVALID_ARGUMENT, f"Custom pip package installation failed for model m\n{MODEL}ModelException"),
    )),
    # ScaleWorker
    *((f"{MANAGEMENT}ScaleWorker", error, about, status, text) for error, about, status, text in (
        (errors.BadInput("max_worker", "max_worker cannot be less than min_worker."), M, Status.INVALID_ARGUMENT,
         f"max_worker cannot be less than min_worker.\n{HTTP}BadRequestException"),
        (errors.BadInput("model_name", "is empty"), About(), Status.UNKNOWN, ""),
        (errors.NoSuchModel("m"), M, Status.NOT_FOUND, f"Model not found: m\n{MODEL}ModelNotFoundException"),
        (errors.NoSuchModel("m", "2"), MV, Status.NOT_FOUND,
         f"Model version: 2 does not exist for model: m\n{MODEL}ModelVersionNotFoundException"),
        (errors.LoadFailed("no file"), MV, Status.INTERNAL, NOT_STARTED),
        (errors.LoadFailed("no file"), M, Status.INTERNAL,
         f"Failed to start workers for model m version: null\n{HTTP}InternalServerException"),
    )),
    # SetDefault
    *((f"{MANAGEMENT}SetDefault", error, about, status, text) for error, about, status, text in (
        (errors.BadInput("model_name", "is empty"), About(), Status.NOT_FOUND,
         f"Model not found: \n{MODEL}ModelNotFoundException"),
        (errors.NoSuchModel("m"), M, Status.NOT_FOUND, f"Model not found: m\n{MODEL}ModelNotFoundException"),
        (errors.NoSuchModel("m", "2"), MV, Status.NOT_FOUND,
         f"Model version 2 does not exist for model m\n{MODEL}ModelVersionNotFoundException"),
        (errors.NoSuchModel("m", " "), M, Status.NOT_FOUND,
         f"Model version  does not exist for model m\n{MODEL}ModelVersionNotFoundException"),
    )),
    # UnregisterModel
    *((f"{MANAGEMENT}UnregisterModel", error, about, status, text) for error, about, status, text in (
        (errors.BadInput("model_name", "is empty"), About(), Status.INVALID_ARGUMENT,
         f"Parameter url is required.\n{HTTP}BadRequestException"),
        (errors.NoSuchModel("m"), M, Status.NOT_FOUND, f"Model not found: m\n{MODEL}ModelNotFoundException"),
        (errors.NoSuchModel("m", "2"), MV, Status.NOT_FOUND,
         f"Model version: 2 does not exist for model: m\n{MODEL}ModelVersionNotFoundException"),
        (errors.WrongState("version 1.0 is the default"), MV, Status.UNKNOWN, ""),
    )),
]  # fmt: skip


def call(method, about):
    """What the table sees of a call."""
    return SimpleNamespace(method=method, about=about)


@pytest.mark.parametrize(("method", "error", "about", "status", "text"), ROWS)
def test_row(method, error, about, status, text):
    """An error of an rpc has TorchServe's status and its two lines, and no details, which TorchServe never sends."""
    found = translate(error, call(method, about))
    assert found is not None
    assert (found.status, found.message, found.details) == (status, text, None)


OURS = [
    (errors.BadInput("data", "is empty"), Status.INVALID_ARGUMENT, f"data: is empty\n{HTTP}BadRequestException"),
    (errors.Expired("late"), Status.DEADLINE_EXCEEDED, f"late\n{HTTP}InternalServerException"),
    (errors.TooLarge("the answer", 9, 8), Status.RESOURCE_EXHAUSTED,
     f"the answer of 9 bytes is larger than the limit of 8 bytes\n{HTTP}InternalServerException"),
    (errors.Unsupported("not so"), Status.UNIMPLEMENTED, f"not so\n{HTTP}InternalServerException"),
    (errors.StateFailed("disk full"), Status.UNAVAILABLE, f"disk full\n{HTTP}InternalServerException"),
]  # fmt: skip


@pytest.mark.parametrize("method", [f"{INFERENCE}Predictions", f"{MANAGEMENT}RegisterModel"])
@pytest.mark.parametrize(("error", "status", "text"), OURS)
def test_what_torchserve_has_no_row_for(method, error, status, text):
    """It keeps our status and text, and its kind is the second line, so that every text has two."""
    found = translate(error, call(method, M))
    assert (found.status, found.message) == (status, text)


def test_what_is_not_of_these_services():
    """A GRPCError goes through as it is, other services keep our table, and a bug is nobody's row."""
    error = GRPCError(Status.RESOURCE_EXHAUSTED, "too large")
    assert translate(error, call(f"{INFERENCE}Predictions", M)) is error
    found = translate(errors.NoSuchModel("m"), call("/grpc.health.v1.Health/Check", None))
    assert (found.status, found.message) == (Status.NOT_FOUND, "Model not found: m")
    assert translate(ValueError("a bug"), call(f"{INFERENCE}Predictions", M)) is None


@pytest.mark.parametrize(("error", "about", "status", "text"), PREDICTIONS)
def test_inside_a_stream(error, about, status, text):
    """In StreamPredictions2 the message is the first line, and the second is the reason of an ErrorInfo."""
    message, _, reason = text.partition("\n")
    found = status_pb2.Status.FromString(status_bytes(error, about))
    info = ErrorInfo.FromString(found.details[0].value)
    assert (found.code, found.message, info.reason) == (status.value, message, reason)
    assert len(found.details) == 1


def test_long_texts_are_cut():
    """A text of any length is cut, and its second line is whole."""
    found = translate(errors.HandlerStatus(404, "x" * 5000), call(f"{INFERENCE}Predictions", M))
    first, second = found.message.split("\n")
    assert (first[-3:], second) == ("...", f"{HTTP}InternalServerException")
    assert len(first) == 1000


@pytest.mark.parametrize(
    ("authorization", "passes"),
    [("Bearer abc", True), ("Bearer  abc", True), ("bearer abc", False), ("BEARER abc", False), ("Bearer abc d", False),
     ("Bearer ", False), ("Bearer", False), ("Basic abc", False), (" Bearer abc", False)],
)  # fmt: skip
def test_bearer(authorization, passes):
    """A token counts only as TorchServe takes it: `Bearer`, in this case, blanks, and one word."""

    class Anything:
        def find(self, authorization):
            return authorization

    assert CaseSensitive(Anything()).find(authorization) == (authorization if passes else None)
